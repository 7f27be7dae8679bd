"""Packs that are well formed and say strange things: a sentence and exit status 2, and nothing for the terminal."""

import numpy as np
import pytest
from PIL import Image

from piggyback_tf.__main__ import main
from tests.packs.helpers import make_pack

BASE = {"base_name": "shapesnet", "base_weights": "shipped", "image_size": 32, "eval_augment": "resize(32,32)"}


@pytest.fixture(name="run")
def _run(tmp_path, capsys):
    """A function that runs a command on a pack with some changes, and returns the exit status and what was printed."""

    def run(command, *arguments, **changes):
        make_pack(**BASE | changes).save(tmp_path / "pack")
        status = main([command, str(tmp_path / "pack"), *map(str, arguments)])
        printed = capsys.readouterr()
        assert not {"\x1b", "\x9b"} & {*printed.out, *printed.err}
        return status, printed.out, printed.err

    return run


@pytest.mark.parametrize("augment", ["resize(32,32)|flip", "random_crop(32)"])
def test_an_augmentation_that_draws_random_numbers(run, augment):
    status, _, error = run("predict", __file__, eval_augment=augment)
    assert status == 2
    assert error.startswith(
        f"python -m piggyback_tf predict: Only training may draw random numbers, but the augmentation {augment!r} has "
    )
    assert error.count("\n") == 1


def test_an_augmentation_after_which_images_have_another_size_than_the_base_takes(run, tmp_path):
    paths = [tmp_path / "wide.png", tmp_path / "high.png"]
    for path, size in zip(paths, [(64, 32), (32, 64)], strict=True):
        Image.new("RGB", size).save(path)
    status, _, error = run("predict", *paths, eval_augment="resize(32)")
    assert status == 2
    for line, path, found in zip(error.splitlines(), paths, ["32x64", "64x32"], strict=True):
        sentence = f"The augmentation 'resize(32)' gives images of {found} pixels, and the base takes 32x32."
        assert line.endswith(f"Image {str(path)!r} cannot be prepared: {sentence}")


@pytest.mark.parametrize("split", ["test", "validation"])
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"seed": 0, "val_fraction": "x"}, "have a val_fraction that is no number: 'x'"),
        ({"seed": 0, "val_fraction": None}, "have a val_fraction that is no number: None"),
        ({"seed": "0", "val_fraction": 0.1}, "have a seed that is no integer: '0'"),
    ],
)
def test_settings_that_are_no_numbers(run, settings, message, split):
    status, _, error = run("evaluate", "--data=digits", f"--split={split}", settings=settings)
    assert (status, error.count("\n")) == (2, 1)
    assert message in error


@pytest.mark.parametrize("size", [8193, 100_000, 2**31 - 1])
def test_images_larger_than_any_that_a_command_can_make(run, tmp_path, size):
    base = {"base_name": "mobilenet_v2", "base_weights": "random", "image_size": size}
    status, _, error = run("merge", f"--output={tmp_path / 'model.keras'}", **base)
    assert (status, error.count("\n")) == (2, 1)
    assert f"takes images of {size:,}x{size:,} pixels; this command works with at most 8,192" in error


def test_a_base_that_takes_more_memory_than_there_is(run, tmp_path, monkeypatch):
    import tensorflow as tf

    from piggyback_tf.packs import TaskBank

    def out_of_memory(*_):
        raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor")

    monkeypatch.setattr(TaskBank, "__init__", out_of_memory)
    status, _, error = run("merge", f"--output={tmp_path / 'model.keras'}")
    assert (status, error.count("\n")) == (2, 1)
    assert "takes images of 32x32 pixels, for which its base takes more memory than there is" in error


def test_names_and_hashes_that_are_commands_to_a_terminal(run, tmp_path):
    make_pack().save(tmp_path / "other")
    status, _, error = run("compare", tmp_path / "other", base_hash="\x1b[2J\x9b1m")
    assert (status, error.count("\n")) == (2, 1)
    assert r"with hash \x1b[2J\x9b1m... and task" in error


def test_the_name_of_a_task_in_the_table_of_errors(run):
    from piggyback_tf.backbones import load_backbone

    backbone = load_backbone("shapesnet", weights="shipped", image_size=32)
    names = [str(digit) for digit in range(10)]
    head = {"kernel": np.zeros((backbone.feature_dim, 10), "float32"), "bias": np.zeros(10, "float32")}
    task = {"task": "a\x9b1m", "class_names": names, "head": head, "norm": {}, "base_hash": backbone.hash}
    status, output, _ = run("evaluate", "--data=digits", kind="none", **task)
    assert status == 0
    assert r"'a\x9b1m'" in output.splitlines()[0]
