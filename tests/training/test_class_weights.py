"""Weights of classes in the loss: by the median frequency, computed once, recorded, the same in a resumed training."""

import dataclasses
import json

import numpy as np
import pytest
import tensorflow as tf

from piggyback_tf.backbones import load_backbone, named_variables
from piggyback_tf.data.geometry import VOID
from piggyback_tf.file_names import WEIGHTS_FILE, pack_name
from piggyback_tf.methods import METHODS
from piggyback_tf.packs import TaskPack
from piggyback_tf.problems.segmentation import PixelCrossEntropy, Segmentation
from piggyback_tf.sequences import SequenceSettings, run_sequence
from piggyback_tf.settings.methods import check_is_for
from piggyback_tf.settings.methods.base import CLASS_WEIGHTS
from piggyback_tf.training import TrainConfig, TrainingError, backup, train_task
from piggyback_tf.training.class_weights import class_weights, median_frequency
from tests.training.test_segments import CONFIG, INPUTS, Rectangles, rectangles

CLASSES = ("ground", "rectangle")


def test_weights_are_those_of_the_paper():
    # Class 0 is 60 of the 200 pixels of two images, class 1 is 90 of the 100 of one, class 2 half of the other one,
    # and class 3 nowhere.
    frequencies = np.array([[10, 90, 0, 0], [50, 0, 50, 0]])
    parts = [60 / 200, 90 / 100, 50 / 100]
    expected = [np.median(parts) / part for part in parts]
    assert median_frequency(frequencies) == pytest.approx([*expected, 0.0])
    assert not median_frequency(np.zeros((2, 3), np.int64)).any()


def test_pixels_of_no_class_are_not_counted():
    labels = np.full((4, 5), VOID, np.uint8)
    labels[0], labels[1, :2] = 0, 1
    image = np.dstack([np.zeros((4, 5, 3), np.uint8), labels])
    assert Segmentation(CLASSES, (4, 5)).frequencies(image).tolist() == [5, 2]


def test_a_pixel_weighs_what_its_class_does():
    random = np.random.default_rng(0)
    labels, logits = random.integers(0, 3, (4, 6, 7)).astype(np.uint8), random.normal(size=(4, 6, 7, 3))
    labels[:, 0] = VOID
    weights = (0.5, 2.0, 3.0)
    log_probabilities = tf.nn.log_softmax(logits).numpy()
    expected = [
        np.mean([-weights[truth[y, x]] * own[y, x, truth[y, x]] for y in range(1, 6) for x in range(7)])
        for truth, own in zip(labels, log_probabilities, strict=True)
    ]
    loss = Segmentation(("a", "b", "c"), (6, 7)).weighted_loss("none", weights)
    assert loss(labels, logits).numpy() == pytest.approx(expected, rel=1e-5)
    same = PixelCrossEntropy("none", class_weights=(1.0, 1.0, 1.0))(labels, logits).numpy()
    assert same == pytest.approx(PixelCrossEntropy("none")(labels, logits).numpy(), rel=1e-6)


def trained(state_dir=None, kind="median_frequency", **changes):
    if state_dir is not None:
        state_dir.mkdir(exist_ok=True)
    method = METHODS["classifier_only"]
    config = TrainConfig(**{**CONFIG.__dict__, **changes})
    backbone = load_backbone("shapesnet", image_size=32)
    learner = method(method.Config(class_weights=kind))
    return train_task(learner, backbone, rectangles(), config, INPUTS, state_dir=state_dir)


@pytest.mark.slow
def test_they_are_kept_and_the_same_in_a_resumed_training(tmp_path, monkeypatch):
    whole = trained(tmp_path / "whole", epochs=2)
    truth = np.stack([Rectangles(0, 12).read(index)[..., 3] for index in range(12)])
    counted = [[(own == label).sum() for label in (0, 1)] for own in truth]
    expected = median_frequency(np.array(counted))
    assert list(whole.class_weights.values()) == pytest.approx(expected, rel=1e-5)
    # The rectangle is rarer than the ground, and every image has both.
    assert whole.class_weights["ground"] < 1 < whole.class_weights["rectangle"]
    assert json.loads((tmp_path / "whole" / WEIGHTS_FILE).read_text()) == whole.class_weights
    plain = trained(kind="none", epochs=2)
    assert plain.class_weights == {} and plain.history["loss"] != whole.history["loss"]
    # What is told of the targets has no weights.
    assert plain.history["loss"] == pytest.approx(plain.history["cross_entropy"], rel=1e-5)
    assert whole.history["loss"] != pytest.approx(whole.history["cross_entropy"], rel=1e-2)

    class Killed(Exception):
        pass

    original = backup.BackupAndRestore.on_epoch_end

    def end(self, epoch, logs=None):
        original(self, epoch, logs)
        raise Killed

    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(backup.BackupAndRestore, "on_epoch_end", end)
        trained(tmp_path / "stopped", epochs=2)
    with monkeypatch.context() as patched:
        patched.setattr(Segmentation, "frequencies", lambda *_: pytest.fail("counted again"))
        resumed = trained(tmp_path / "stopped", epochs=2)
    assert resumed.history == whole.history and resumed.class_weights == whole.class_weights
    first, second = (named_variables(found.model) for found in (whole, resumed))
    assert all(np.array_equal(first[path].numpy(), second[path].numpy()) for path in first)


@pytest.mark.parametrize("text", ["{", "[]", '{"ground": 1.0}', '{"ground": 1.0, "rectangle": -1.0}'])
def test_a_damaged_file_is_said(tmp_path, text):
    (tmp_path / WEIGHTS_FILE).write_text(text)
    with pytest.raises(TrainingError, match="class_weights.json is damaged"):
        class_weights("median_frequency", Segmentation(CLASSES, (4, 5)), Rectangles(0, 2), tmp_path)


@pytest.mark.slow
def test_they_are_recorded_in_the_pack_and_the_result(tmp_path):
    config = METHODS["classifier_only"].Config(class_weights="median_frequency")
    settings = SequenceSettings("classifier_only", config, TrainConfig(epochs=1, batch_size=4), INPUTS)
    found = run_sequence(
        tmp_path, load_backbone("shapesnet", image_size=32), {"roads": rectangles()}, settings, in_turn=False
    )
    weights = found["steps"][0]["weight_of_class"]
    assert list(weights) == list(CLASSES) and weights["ground"] < weights["rectangle"]
    assert TaskPack.load(tmp_path / pack_name("roads")).settings["weight_of_class"] == weights


@pytest.mark.parametrize(("setting", "value"), [("class_weights", "median_frequency"), ("head", "fcn8")])
def test_settings_that_would_do_nothing_are_refused(setting, value, tmp_path):
    config = METHODS["classifier_only"].Config(**{setting: value})
    data = dataclasses.replace(rectangles(), target="class")
    words = f"`{setting}='{value}'` is for tasks that find a class for each pixel; these find a class for each image"
    with pytest.raises(ValueError, match=words):
        train_task(METHODS["classifier_only"](config), load_backbone("shapesnet"), data, TrainConfig(), INPUTS)
    settings = SequenceSettings("classifier_only", config, TrainConfig(), INPUTS)
    with pytest.raises(ValueError, match=words):
        run_sequence(tmp_path, load_backbone("shapesnet"), {"shapes": data}, settings)
    assert not list(tmp_path.iterdir())
    # Beside a task that they are for.
    check_is_for(config, ("class", "map"))


def test_settings_name_what_there_is():
    with pytest.raises(ValueError, match="`class_weights` must be one of none, median_frequency"):
        METHODS["piggyback"].Config(class_weights="mean")
    assert CLASS_WEIGHTS[0] == "none"
