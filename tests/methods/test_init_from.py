"""Masks that start from those of another task."""

import dataclasses
import json

import keras
import numpy as np
import pytest

from piggyback_tf.backbones import named_variables
from piggyback_tf.file_names import START_FILE
from piggyback_tf.masking import read_masks
from piggyback_tf.methods.piggyback import Piggyback, PiggybackConfig
from piggyback_tf.packs import PackError, TaskPack
from piggyback_tf.sequences import SequenceSettings, run_sequence, with_start
from piggyback_tf.sequences import init_from as start_module
from piggyback_tf.surgery import BaseVariable
from piggyback_tf.training import TrainingError
from piggyback_tf.training.backup import BackupAndRestore
from tests.methods.toy import CLASSES, INPUTS, SIZE, toy_backbone, toy_settings, toy_tasks

IMAGES = np.random.default_rng(1).uniform(0, 255, (4, SIZE, SIZE, 3)).astype(np.float32)


@pytest.fixture(scope="module", name="backbone")
def _backbone():
    return toy_backbone()


def _save(folder, backbone, name="other", seed=0, method=Piggyback, drop=0.3, **settings):
    """Writes the pack of a task with random masks and, with norm="task", random batch norm."""
    random = np.random.default_rng(seed)
    model = method(method.Config(head_init="glorot", **settings)).build(backbone, 3)
    for path, variable in named_variables(model).items():
        if path.endswith("mask_real"):
            variable.assign(np.where(random.random(variable.shape) < drop, -1.0, 1.0) * 1e-2)
        elif "_norm/" in path and not isinstance(variable, BaseVariable):
            variable.assign(variable + random.random(variable.shape).astype(np.float32))
    path = folder / f"{name}.task.safetensors"
    TaskPack.from_model(
        model,
        task=name,
        class_names=list("abc"),
        backbone=backbone,
        method="piggyback",
        eval_augment=INPUTS.augment_eval,
    ).save(path)
    return path


def _start(init_from, backbone, folder=None, learned=None, seed=0, **settings):
    method = Piggyback(PiggybackConfig(init_from=str(init_from), **settings))
    data = toy_tasks()["spots"]
    return with_start(method, backbone, data, INPUTS, seed=seed, folder=folder, learned=learned)


@pytest.mark.parametrize("norm", ["frozen", "task"])
def test_training_starts_with_the_packs_network_and_a_new_head(norm, backbone, tmp_path):
    path = _save(tmp_path, backbone, norm=norm)
    pack, method = TaskPack.load(path), _start(path, backbone, norm=norm, head_init="glorot")
    model = method.build(backbone, 3, seed=5)
    found = read_masks(model)
    assert 0.1 < pack.zeros_total < 0.5
    assert all(np.array_equal(found[name], pack.mask(name)) for name in pack.masks)
    variables = named_variables(model)
    assert len(pack.norm) == (8 if norm == "task" else 0)
    assert all(np.array_equal(variables[name], value) for name, value in pack.norm.items())
    usual = named_variables(Piggyback(PiggybackConfig(norm=norm, head_init="glorot")).build(backbone, 3, seed=5))
    assert np.array_equal(variables["head/kernel"], usual["head/kernel"])
    assert not np.array_equal(variables["head/kernel"], pack.head["kernel"])
    assert method.provenance == {"start": {"pack": str(path), "digest": pack.content_digest()}}


def test_layers_without_a_mask_in_the_pack_start_as_usual(backbone, tmp_path):
    path = _save(tmp_path, backbone, mask_exclude="dense")
    found = read_masks(_start(path, backbone, mask_exclude="first_conv").build(backbone, 3))
    assert (found["dense/kernel"] == 1).all()
    assert (found["second_conv/kernel"] == 0).any()
    assert "first_conv/kernel" not in found


def test_ternary_masks_start_from_binary_ones(backbone, tmp_path):
    path = _save(tmp_path, backbone)
    found, pack = read_masks(_start(path, backbone, mask_kind="ternary").build(backbone, 3)), TaskPack.load(path)
    assert all(np.array_equal(found[name], pack.mask(name)) for name in pack.masks)


def _other_base():
    backbone = toy_backbone()
    backbone.model.weights[0].assign(backbone.model.weights[0] + 1)
    return backbone


REFUSED = {
    "another base": ({}, {}, "was trained on another base"),
    "signs": ({"mask_kind": "ternary"}, {}, "has ternary masks, from which binary ones cannot start"),
    "batch norm": ({"norm": "task"}, {}, "has batch norm of its own.*norm='frozen'.*Use norm='task'"),
    "no masks": ({"method": "classifier_only"}, {}, "learned by 'piggyback' and has no masks"),
    "no file": ({}, {"init_from": "nothing.task.safetensors"}, "There is no pack 'nothing.task.safetensors'"),
    "a folder": ({}, {"init_from": "{folder}/empty"}, "is a folder; 'auto:.*/empty' chooses"),
    "no sequence": ({}, {"init_from": "auto"}, "chooses among the tasks of a sequence.*'auto:PACKS'"),
    "no packs": ({}, {"init_from": "auto: ,"}, "names no pack"),
    "empty folder": ({}, {"init_from": "auto:{folder}/empty"}, "has no file"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_masks_cannot_start_from_is_refused(case, backbone, tmp_path):
    from piggyback_tf.methods import METHODS

    saved, started, message = REFUSED[case]
    (tmp_path / "empty").mkdir()
    if "method" in saved:
        saved = {"method": METHODS[saved["method"]]}
    path = _save(tmp_path, _other_base() if case == "another base" else backbone, **saved)
    init_from = started.get("init_from", str(path)).format(folder=tmp_path)
    with pytest.raises(ValueError, match=message):
        _start(init_from, backbone)


def test_a_start_that_was_not_read_is_not_left_out(backbone):
    with pytest.raises(ValueError, match="has init_from='somewhere' and no start"):
        Piggyback(PiggybackConfig(init_from="somewhere")).build(backbone, 3)
    with pytest.raises(ValueError, match="`mask_scale` above `mask_threshold`"):
        PiggybackConfig(init_from="somewhere", mask_init="uniform", mask_scale=1e-3)


def test_only_what_starts_from_tasks_before_depends_on_their_order():
    assert Piggyback.sequential is False
    assert {name: Piggyback(PiggybackConfig(init_from=name)).sequential for name in ("", "a", "auto:a", "auto")} == {
        "": False,
        "a": False,
        "auto:a": False,
        "auto": True,
    }


def _features(worth):
    """Makes a `feature_model` whose networks tell classes apart as well as their dropped weights are worth."""

    def feature_model(self, backbone, seed):
        inputs = keras.Input((SIZE, SIZE, 3))
        dropped = float((self.start.masks["dense/kernel"] == 0).mean()) if self.start.masks else 0.0
        level = keras.ops.mean(keras.ops.cast(inputs, "float32"), axis=(1, 2, 3), keepdims=False)[:, None] / 100
        told = worth(dropped) * level + (1 - worth(dropped)) * keras.ops.sin(1e3 * level)
        return keras.Model(inputs, keras.ops.concatenate([told, keras.ops.ones_like(told)], axis=1))

    return feature_model


@pytest.mark.parametrize(
    ("worth", "best"),
    [(lambda d: d, "most"), (lambda d: 1 - d, None), (lambda d: 4 * d * (1 - d), "some")],
    ids=["most", "none", "some"],
)
def test_auto_takes_the_pack_with_the_best_features_or_none(worth, best, backbone, tmp_path, monkeypatch):
    files = {name: _save(tmp_path, backbone, name, drop=drop) for name, drop in (("some", 0.4), ("most", 0.9))}
    monkeypatch.setattr(Piggyback, "feature_model", _features(worth))
    method = _start("auto", backbone, learned=files)
    origin = method.provenance["start"]
    assert [name for name, _ in origin["scores"]] == [None, "some", "most"]
    assert origin["pack"] == best
    assert bool(method.start.masks) == (best is not None)
    # A folder, and files one by one, are the same packs.
    for packs in (str(tmp_path), ",".join(map(str, files.values()))):
        chosen = _start(f"auto:{packs}", backbone).provenance["start"]
        assert chosen["pack"] == (best and str(files[best]))
        assert sorted(score for _, score in chosen["scores"]) == sorted(score for _, score in origin["scores"])


def test_the_choice_is_made_once_and_the_pack_must_stay_the_same(backbone, tmp_path, monkeypatch):
    files = {name: _save(tmp_path, backbone, name, seed) for seed, name in enumerate(("one", "two"))}
    run = tmp_path / "run"
    run.mkdir()
    (run / START_FILE).write_text(json.dumps({"pack": "two", "scores": [[None, -1.0], ["one", -0.5], ["two", -0.25]]}))

    def never(*arguments):
        raise AssertionError

    monkeypatch.setattr(start_module, "_choose", never)
    with pytest.raises(TrainingError, match="digest was not set and is"):
        _start("auto", backbone, run, files)
    record = json.loads((run / START_FILE).read_text()) | {"digest": TaskPack.load(files["two"]).content_digest()}
    (run / START_FILE).write_text(json.dumps(record))
    assert _start("auto", backbone, run, files).provenance == {"start": record}
    _save(tmp_path, backbone, "two", 7)
    with pytest.raises(TrainingError, match="digest was"):
        _start("auto", backbone, run, files)
    with pytest.raises(TrainingError, match="'two', which is gone"):
        _start("auto", backbone, run, {"one": files["one"]})
    (run / START_FILE).write_text("{")
    with pytest.raises(TrainingError, match="damaged"):
        _start("auto", backbone, run, files)


def test_a_named_pack_must_stay_the_same_too(backbone, tmp_path):
    path = _save(tmp_path, backbone)
    for _ in range(2):
        _start(path, backbone, tmp_path)
    _save(tmp_path, backbone, seed=3)
    with pytest.raises(TrainingError, match="digest was"):
        _start(path, backbone, tmp_path)


class BrokenOffError(Exception):
    pass


@pytest.mark.slow
def test_a_sequence_chooses_among_the_tasks_before_and_goes_on_with_the_same(backbone, tmp_path, monkeypatch):
    usual = toy_settings("piggyback", mask_lr=5e-3, mask_trust=0.0)
    settings = dataclasses.replace(usual, config=PiggybackConfig(init_from="auto"))
    assert isinstance(settings, SequenceSettings)
    for name in ("whole", "broken"):
        (tmp_path / name).mkdir()
    whole = run_sequence(tmp_path / "whole", backbone, toy_tasks(), settings)
    first, second = (step["start"] for step in whole["steps"])
    assert first == {"pack": None, "scores": []}
    assert [name for name, _ in second["scores"]] == [None, "stripes"]
    assert whole["sequential"]
    pack = TaskPack.load(tmp_path / "whole" / "2_spots" / "spots.task.safetensors")
    assert pack.settings["start"] == second
    saves, save = [0], BackupAndRestore._save

    def break_off(self):
        save(self)
        saves[0] += 1
        if saves[0] == 6:
            raise BrokenOffError

    monkeypatch.setattr(BackupAndRestore, "_save", break_off)
    with pytest.raises(BrokenOffError):
        run_sequence(tmp_path / "broken", backbone, toy_tasks(), settings)
    monkeypatch.setattr(start_module, "log_me", lambda *_: 1 / 0)
    found = run_sequence(tmp_path / "broken", backbone, toy_tasks(), settings)
    assert found["steps"][-1]["answers"] == whole["steps"][-1]["answers"]
    assert found["steps"][-1]["start"] == second
    assert list(CLASSES) == found["tasks"]


def test_pack_errors_are_the_packages_own(backbone, tmp_path):
    with pytest.raises(PackError):
        _start(tmp_path / "missing", backbone)


def test_a_choice_by_whole_images_is_none_for_tasks_of_pixels(backbone, tmp_path):
    _save(tmp_path, backbone)
    method = Piggyback(PiggybackConfig(init_from=f"auto:{tmp_path}"))
    pixels = dataclasses.replace(toy_tasks()["spots"], target="map")
    with pytest.raises(ValueError, match="features of whole images, and 'spots' has a class for each pixel. Name one"):
        with_start(method, backbone, pixels, INPUTS, seed=0)
    several = dataclasses.replace(toy_tasks()["spots"], target="multilabel")
    assert with_start(method, backbone, several, INPUTS, seed=0).start is not None
