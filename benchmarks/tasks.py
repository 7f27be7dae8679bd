"""Sets of real images on MobileNetV2 at 96 px, which several benchmarks train on."""

import dataclasses
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
from common import realdata

from piggyback_tf.backbones import Backbone, load_backbone
from piggyback_tf.data import TaskData, load_data, make_dataset
from piggyback_tf.evaluation.metrics import top_k_error, top_k_hits
from piggyback_tf.file_names import pack_name
from piggyback_tf.masking import read_masks
from piggyback_tf.methods import METHODS
from piggyback_tf.packs import TaskPack
from piggyback_tf.training import InputConfig, TrainConfig, TrainingError, train_task

SETS = ("pacs_sketch", "pacs_art_painting", "dtd10")
INPUTS = InputConfig(augment_train="resize(96,96)|translate(4)|flip", augment_eval="resize(96,96)")
# Half of the default's epochs with half of its batch size: as many steps in less time.
SCHEDULE = TrainConfig(epochs=5, batch_size=16)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A method, its settings, and those of its training where they are not those of `SCHEDULE`."""

    method: str
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    train: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def config(self, seed: int) -> TrainConfig:
        """Returns how it is trained."""
        return dataclasses.replace(SCHEDULE, seed=seed, **self.train)


MASKS = Recipe("piggyback")


def mobilenet() -> Backbone:
    """Returns MobileNetV2 at 96 px with ImageNet weights."""
    return load_backbone(
        "mobilenet_v2", weights=str(realdata() / "weights/mobilenet_v2_imagenet_notop.weights.h5"), image_size=96
    )


def efficientnet_lite0() -> Backbone:
    """Returns EfficientNet-Lite0 at 96 px with ImageNet weights, as users bring a network of their own."""
    return Backbone.from_model(keras.models.load_model(realdata() / "weights/efficientnet_lite0_96px.keras"))


def state_folder(state: str) -> Path:
    """Returns the folder of a run under the system's temporary one; makes it if need be."""
    folder = Path(tempfile.gettempdir()) / "piggyback_benchmarks" / state
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def train_and_test(
    backbone: Backbone, name: str, method: str, config: TrainConfig, state: str, *, test: bool = True, **settings: Any
) -> dict[str, Any]:
    """Trains a method on one of the sets, and measures it on the test split.

    Args:
        backbone: The network.
        name: The folder of the set.
        method: Name of the method.
        config: How to train; its seed decides the validation split too.
        state: Names the run's `state_folder`, from which an interrupted training goes on, and where a task that has
            one leaves its pack, `<name>.task.safetensors`.
        test: Whether to look at the test split; a search does not.
        **settings: The method's, where they are not its defaults.

    Returns:
        What was measured. `"final_loss"` is the cross-entropy of the training images without augmentation after the
        last epoch, whichever is the best one. `"hits"` are the test images whose class was found, a bit each, in
        hexadecimal.
    """
    return train_on(
        backbone,
        load_data(f"folder:{realdata() / name}", seed=config.seed),
        INPUTS,
        method,
        config,
        state,
        test=test,
        **settings,
    )


def train_on(
    backbone: Backbone,
    data: TaskData,
    inputs: InputConfig,
    method: str,
    config: TrainConfig,
    state: str,
    *,
    test: bool = True,
    **settings: Any,
) -> dict[str, Any]:
    """Trains a method on data, and measures it; see `train_and_test`."""
    folder, name, inputs = state_folder(state), data.name, inputs.for_size(backbone.image_size)
    kind, row = METHODS[method], {"config": dataclasses.asdict(config)}
    learner = kind(kind.Config(**settings))
    last = _LastLoss(data.train, inputs.augment_eval)
    learner.callbacks = lambda model, own=learner.callbacks: [*own(model), last]
    try:
        trained = train_task(learner, backbone, data, config, inputs, state_dir=folder)
    except TrainingError as error:
        return row | {"stopped": str(error)}
    if last.loss is None:
        raise RuntimeError(f"'{folder}' holds a training that had ended, whose last loss is not known. Remove it.")
    row |= {
        "val_error": min(trained.history["val_error"]),
        "last_val_error": trained.history["val_error"][-1],
        "val_loss": trained.history["val_loss"][trained.best_epoch],
        "best_epoch": trained.best_epoch + 1,
        "loss": trained.history["loss"][-1],
        "losses": [round(loss, 4) for loss in trained.history["cross_entropy"]],
        "final_loss": last.loss,
        "seconds": round(trained.seconds, 1),
    }
    if test:
        labels, scores = _answers(trained.model, data.test, inputs.augment_eval)
        hits = top_k_hits(labels, scores, 1)
        row |= {"test_error": top_k_error(labels, scores), "hits": np.packbits(hits).tobytes().hex()}
        row["test_images"] = len(labels)
    masks = read_masks(trained.model)
    if masks:
        zeros = sum(int((m == 0).sum()) for m in masks.values())
        row["zeros_percent"] = 100 * zeros / sum(m.size for m in masks.values())
    if kind.makes_pack:
        pack = folder / pack_name(name)
        TaskPack.from_model(
            trained.model,
            task=name,
            class_names=data.class_names,
            backbone=backbone,
            method=method,
            eval_augment=inputs.augment_eval,
            settings=row["config"],
        ).save(pack)
        row["pack_bytes"] = pack.stat().st_size
    return row


class _LastLoss(keras.callbacks.Callback):
    """Measures the training images when the last epoch is done, before the best one's weights come back."""

    def __init__(self, source: Any, augment: str):
        super().__init__()
        self.source = source
        self.augment = augment
        self.loss: float | None = None

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        labels, scores = _answers(self.model, self.source, self.augment)
        shifted = scores - scores.max(axis=1, keepdims=True)
        own = np.take_along_axis(shifted, labels[:, None], axis=1)[:, 0]
        self.loss = float((np.log(np.exp(shifted).sum(axis=1)) - own).mean())


def _answers(model: keras.Model, source: Any, augment: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns the labels of a split and the logits of a model for its images, float64, in the split's order."""
    dataset = make_dataset(source, augment, batch_size=64, training=False)
    labels, scores = zip(*((labels, model.predict_on_batch(images)) for images, labels in dataset), strict=True)
    return np.concatenate([np.asarray(part) for part in labels]), np.concatenate(scores).astype(np.float64)
