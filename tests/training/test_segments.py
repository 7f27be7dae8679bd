"""Training on label maps: the same guarantees as on classes."""

from pathlib import Path

import numpy as np
import pytest

from piggyback_tf.backbones import load_backbone, model_hash, named_variables
from piggyback_tf.data import DataError, TaskData
from piggyback_tf.data.geometry import VOID
from piggyback_tf.methods import METHODS
from piggyback_tf.training import InputConfig, TrainConfig, backup, train_task
from tests.methods.toy import PatternSource

SHAPE = (40, 56)
INPUTS = InputConfig(augment_train="translate(3)|flip", augment_eval="resize(40,56)", cache="memory")
CONFIG = TrainConfig(epochs=3, batch_size=2, head_lr=3e-2)
LEARN_PIXELS = [name for name in METHODS.names() if "map" in METHODS[name].Config.problems]


class Rectangles(PatternSource):
    """Grey noise with a rectangle, brighter than its surroundings, whose pixels are of class 1; an edge of no class."""

    image_size, has_maps = SHAPE, True

    def __init__(self, first: int, count: int):
        self._first, self._count = first, count

    def __len__(self) -> int:
        return self._count

    @property
    def labels(self) -> np.ndarray:
        return np.zeros(self._count, np.int32)

    def read(self, index: int) -> np.ndarray:
        random = np.random.default_rng(self._first + index)
        image = random.integers(0, 120, (*SHAPE, 3))
        top, left = random.integers(2, 20), random.integers(2, 30)
        labels = np.zeros(SHAPE)
        labels[top : top + 16, left : left + 20] = 1
        image[labels == 1] += 120
        labels[:1] = VOID
        return np.concatenate([image, labels[..., None]], axis=-1).astype(np.uint8)

    def describe(self, index: int) -> str:
        return f"rectangle {self._first + index}"

    def key(self, index: int) -> str:
        return self.describe(index)

    def fingerprint(self) -> str:
        return f"rectangles {self._first} {self._count}"


def rectangles() -> TaskData:
    names = ("ground", "rectangle")
    return TaskData("rectangles", "rectangles", names, Rectangles(0, 12), Rectangles(12, 6), None, target="map")


def trained(method: str, state_dir: Path | None = None, **changes):
    kind = METHODS[method]
    if state_dir is not None:
        state_dir.mkdir(exist_ok=True)
    backbone = load_backbone("shapesnet", image_size=32)
    before = model_hash(backbone.model)
    config = TrainConfig(**{**CONFIG.__dict__, **changes})
    found = train_task(kind(), backbone, rectangles(), config, INPUTS, state_dir=state_dir)
    assert model_hash(backbone.model) == before
    return found


@pytest.mark.parametrize(
    "method",
    [
        name if name == "piggyback" else pytest.param(name, marks=pytest.mark.slow)
        for name in LEARN_PIXELS
        if name != "ssf"  # It refuses networks with batch norm, as this one.
    ],
)
def test_a_method_learns_segments(method):
    found = trained(method, epochs=10)
    assert found.model.output_shape == (None, *SHAPE, 2)
    # Half of the mean IoU is for free: the ground is most of the image.
    assert found.history["val_error"][found.best_epoch] < 25 < found.history["val_error"][0]
    answers = found.model(np.stack([Rectangles(12, 6).read(i)[..., :3] for i in range(6)])).numpy()
    truth = np.stack([Rectangles(12, 6).read(i)[..., 3] for i in range(6)])
    error = found.problem.measured(found.problem.count(answers, truth))["mean_iou_error"]
    assert error == pytest.approx(found.history["val_error"][found.best_epoch], abs=0.01)


@pytest.mark.slow
def test_a_killed_training_ends_as_if_it_was_not(tmp_path, monkeypatch):
    whole = trained("piggyback", tmp_path / "whole", epochs=2)
    stopped = tmp_path / "stopped"

    class Killed(Exception):
        pass

    original, calls = backup.BackupAndRestore.on_epoch_end, []

    def end(self, epoch, logs=None):
        original(self, epoch, logs)
        calls.append(epoch)
        if len(calls) == 1:
            raise Killed

    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(backup.BackupAndRestore, "on_epoch_end", end)
        trained("piggyback", stopped, epochs=2)
    resumed = trained("piggyback", stopped, epochs=2)
    assert resumed.history == whole.history
    first, second = (named_variables(found.model) for found in (whole, resumed))
    assert all(np.array_equal(first[path].numpy(), second[path].numpy()) for path in first)


@pytest.mark.slow
def test_a_finetuned_network_is_recalled_with_its_head():
    kind = METHODS["finetune"]
    found, backbone = trained("finetune"), load_backbone("shapesnet", image_size=32)
    memory = kind().remember(found.model, backbone, "rectangles", ())
    again = kind(memory=memory).recall(backbone, "rectangles")
    images = np.stack([Rectangles(12, 6).read(i)[..., :3] for i in range(6)])
    assert np.array_equal(again(images).numpy(), found.model(images, training=False).numpy())


def test_training_and_evaluation_have_one_size():
    kind = METHODS["classifier_only"]
    inputs = InputConfig(augment_train="resize(36,56)", augment_eval="resize(40,56)")
    with pytest.raises(DataError, match="Training images have 36x56 pixels .* and those of evaluation 40x56"):
        train_task(kind(), load_backbone("shapesnet", image_size=32), rectangles(), CONFIG, inputs)
