"""The three sets of real images on MobileNetV2 at 96 px, which several benchmarks train on."""

import dataclasses
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras
from common import realdata

from piggyback_tf.backbones import Backbone, load_backbone
from piggyback_tf.data import load_data, make_dataset
from piggyback_tf.evaluation import evaluate
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


# What masks need in this schedule, see recipe.py: a higher rate, fewer flips at once, none over depthwise kernels.
MASKS = Recipe("piggyback", {"mask_exclude": "*depthwise"}, {"mask_lr": 3.5e-4, "max_flips": 3e-4})


def mobilenet() -> Backbone:
    """Returns MobileNetV2 at 96 px with ImageNet weights."""
    return load_backbone(
        "mobilenet_v2", weights=str(realdata() / "weights/mobilenet_v2_imagenet_notop.weights.h5"), image_size=96
    )


def state_folder(state: str) -> Path:
    """Returns the folder of a run under the system's temporary one; makes it if need be."""
    folder = Path(tempfile.gettempdir()) / "piggyback_benchmarks" / state
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def train_and_test(
    backbone: Backbone, name: str, method: str, config: TrainConfig, state: str, **settings: Any
) -> dict[str, Any]:
    """Trains a method on one of the sets, and measures it on the test split.

    Args:
        backbone: The network.
        name: One of `SETS`.
        method: Name of the method.
        config: How to train; its seed decides the validation split too.
        state: Names the run's `state_folder`, from which an interrupted training goes on, and where a task with masks
            leaves its pack, `<name>.task.safetensors`.
        **settings: The method's, where they are not its defaults.
    """
    data = load_data(f"folder:{realdata() / name}", seed=config.seed)
    folder = state_folder(state)
    kind, row = METHODS[method], {"config": dataclasses.asdict(config)}
    try:
        trained = train_task(kind(kind.Config(**settings)), backbone, data, config, INPUTS, state_dir=folder)
    except TrainingError as error:
        return row | {"stopped": str(error)}
    row |= {
        "test_error": _error(trained.model, data.test),
        "val_error": 100 * min(trained.history["val_error"]),
        "last_val_error": 100 * trained.history["val_error"][-1],
        "val_loss": trained.history["val_loss"][trained.best_epoch],
        "best_epoch": trained.best_epoch + 1,
        "loss": trained.history["loss"][-1],
        "seconds": round(trained.seconds, 1),
    }
    masks = read_masks(trained.model)
    if masks:
        zeros = sum(int((m == 0).sum()) for m in masks.values())
        row["zeros_percent"] = 100 * zeros / sum(m.size for m in masks.values())
        TaskPack.from_model(
            trained.model,
            task=name,
            class_names=data.class_names,
            backbone=backbone,
            method=method,
            eval_augment=INPUTS.augment_eval,
            settings=row["config"],
        ).save(folder / f"{name}.task.safetensors")
    return row


def _error(model: keras.Model, source: Any) -> float:
    dataset = make_dataset(source, INPUTS.augment_eval, batch_size=64, training=False)
    return float(evaluate(model.predict_on_batch, dataset)["top1_error"])
