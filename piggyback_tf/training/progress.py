"""What a training tells while it runs: what it trains, how long that takes, and each epoch."""

import time
from collections.abc import Mapping
from typing import Any

import keras

from piggyback_tf.foreign_text import counted, duration

# The time of a step is known after so many steps and seconds, the first, in which the graph is made, left out.
_STEPS, _SECONDS = 3, 0.3
# A forward pass, as of validation, takes about a third of a training step.
_FORWARD = 1 / 3
# The line that counts steps: how often, in seconds, and how wide.
_REDRAW, _WIDTH = 0.2, 78


class Progress(keras.callbacks.Callback):
    """Prints a sentence on what is trained, the expected time, and a line an epoch with the time left.

    Args:
        title: What is trained, such as the method's name.
        parameters: How many parameters are trained, by group.
        base: The name of the network, for the sentence.
        epochs: Epochs of the whole training.
        first_epoch: The first one that is still to do, from 0.
        steps: Training steps of an epoch.
        validation_steps: Batches of the validation split.
        batch_size: Images of a step.
        live: Whether a line counts the steps of an epoch, as on a terminal.
    """

    def __init__(
        self,
        title: str,
        parameters: Mapping[str, int],
        base: str,
        *,
        epochs: int,
        first_epoch: int,
        steps: int,
        validation_steps: int,
        batch_size: int,
        live: bool,
    ):
        super().__init__()
        self.epochs, self.steps, self.validation_steps, self.live = epochs, steps, validation_steps, live
        self._epoch, self._began, self._drawn, self._told = first_epoch, 0.0, 0.0, False
        # When and after how many steps of an epoch the first one was done, with which the graph is made.
        self._first = (0.0, 0)
        self._is_made = False
        trained = ", ".join(f"{group} {count:,}" for group, count in parameters.items())
        left = epochs - first_epoch
        length = f"the last {left:,} of {epochs:,} epochs" if first_epoch else counted(epochs, "epoch")
        self._say(
            f"{title} trains {sum(parameters.values()):,} parameters ({trained}) on {base}, in {length} of "
            f"{counted(steps, 'step')} with up to {counted(batch_size, 'image')}."
        )

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        self._is_made = False

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._epoch, self._began, self._first = epoch, time.perf_counter(), (0.0, 0)

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        now, done = time.perf_counter(), batch + 1
        if not self._first[1]:
            self._first = now, done
            return
        steps, seconds = done - self._first[1], now - self._first[0]
        each = seconds / steps
        if not self._told and steps >= _STEPS and seconds >= _SECONDS:
            self._told = True
            epochs = (self.epochs - self._epoch) * (self.steps + _FORWARD * self.validation_steps)
            self._say(f"This takes about {duration(each * (epochs - done))}, at {_of_a_step(each)} a step.")
        if self.live and now - self._drawn >= _REDRAW:
            self._drawn = now
            place = f"epoch {self._epoch + 1}/{self.epochs}: step {done:,} of {self.steps:,}"
            line = f"  {place}, {duration(each * (self.steps - done))} to its end"
            print(f"\r{line:<{_WIDTH}}", end="", flush=True)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        took = time.perf_counter() - self._began
        next_one = took if self._is_made else took - (self._first[0] - self._began)
        self._told = self._is_made = True
        left, width = self.epochs - epoch - 1, len(str(self.epochs))
        self._say(
            f"  epoch {epoch + 1:>{width}}/{self.epochs}: loss {logs['loss']:.4g}, error {100 * logs['error']:.2f} %; "
            f"validation: loss {logs['val_loss']:.4g}, error {100 * logs['val_error']:.2f} %; "
            f"{duration(took)}, {f'{duration(left * next_one)} left' if left else 'the last'}"
        )

    def _say(self, text: str) -> None:
        if self.live:
            text = f"\r{text:<{_WIDTH}}"  # Over the line that counts steps.
        print(text, flush=True)


def _of_a_step(seconds: float) -> str:
    return f"{1000 * seconds:.0f} ms" if seconds < 1 else f"{seconds:.2f} s"
