"""What TensorBoard shows of a training."""

from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from piggyback_tf.masking import masked_weights


class TensorBoard(keras.callbacks.Callback):
    """Writes loss, cross-entropy, error and the zeros of each mask to TensorBoard event files, by epoch.

    Args:
        folder: Where the event files go.
    """

    def __init__(self, folder: Path):
        super().__init__()
        self.folder = folder

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        self._writer = tf.summary.create_file_writer(str(self.folder))

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        with self._writer.as_default(step=epoch + 1):
            for name, value in (logs or {}).items():
                split, measure = ("validation", name[4:]) if name.startswith("val_") else ("train", name)
                tf.summary.scalar(f"{measure}/{split}", value)
            for path, weight in masked_weights(self.model).items():
                tf.summary.scalar(f"zeros/{path}", float(np.mean(weight.read() == 0)))
        self._writer.flush()

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        self._writer.close()
