"""train.py and its images: all are looked at before the first step, and what is wrong costs no training."""

import json
import shutil
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from piggyback_tf.packs import TaskPack
from tests.forked import run_forked

CLASSES = ("dark", "light")
# What every epoch prints.
TRAINED = "epoch 1/1"
QUICK = ["--backbone=shapesnet", "--method=classifier_only", "--epochs=1", "--batch_size=8", "--chance_epochs=0"]


@pytest.fixture(name="photos")
def _photos(tmp_path, monkeypatch):
    """Two classes of twelve noisy images in each split."""
    monkeypatch.setenv("PIGGYBACK_CACHE", str(tmp_path / "cache"))
    noise, root = np.random.default_rng(0), tmp_path / "photos"
    for split in ("train", "val", "test"):
        for label, name in enumerate(CLASSES):
            (root / split / name).mkdir(parents=True)
            for number in range(12):
                pixels = noise.integers(0, 100, (40, 40, 3)) + 140 * label
                PIL.Image.fromarray(pixels.astype(np.uint8)).save(root / split / name / f"{number}.png")
    return root


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:600])


def _train(folder: Path, photos: Path, *flags: str):
    return run_forked("train.py", f"--data=folder:{photos}", *QUICK, f"--output_dir={folder}", *flags)


def test_all_problems_are_told_before_the_first_step_and_left_out_by_one_flag(photos, tmp_path):
    _cut(photos / "test/light/3.png")
    (photos / "train/dark/IMG_7.HEIC").write_bytes(b"photo")
    for number in range(12):
        (photos / f"val/dark/notes{number}.txt").write_text("x")
    refused = _train(tmp_path / "run", photos)
    assert refused.returncode == 2
    assert TRAINED not in refused.stdout
    said = refused.stderr.split("train.py: ")[-1]
    assert said.startswith(f"14 files of folder:{photos} cannot be used:")
    assert "1 photo in HEIC" in said and "12 files that are not images by their names" in said
    assert f"Broken image '{photos / 'test/light/3.png'}'" in said and "... and 2 more" in said
    # Too many for a message.
    listed = (tmp_path / "run/problems.txt").read_text()
    assert f"All of them are listed in {tmp_path / 'run/problems.txt'}." in said
    assert all(str(photos / f"val/dark/notes{number}.txt") in listed for number in range(12))

    done = _train(tmp_path / "run", photos, "--skip_broken_images")
    assert done.returncode == 0, done.stderr[-3000:]
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    assert metrics["skipped_images"] == {"photos": {"train": 1, "validation": 12, "test": 1}}
    assert metrics["left_out"]["photos"]["test"] == [{"place": str(photos / "test/light/3.png"), "kind": "damaged"}]
    assert metrics["methods"]["classifier_only"]["steps"][0]["errors"]["photos"]["images"] == 23
    report = (tmp_path / "run/report.md").read_text()
    assert "- train: 1 photo in HEIC" in report and f"`{photos / 'train/dark/IMG_7.HEIC'}`" in report
    assert all(f"`{photos / f'val/dark/notes{number}.txt'}`" in report for number in range(12))
    assert not (tmp_path / "run/problems.txt").exists()


@pytest.mark.slow
def test_fast_input_is_kept_in_run_and_pack_and_nothing_of_it_is_cached(photos, tmp_path):
    fast = ("--input=fast", "--cache=disk", "--augment_train=random_area_crop(32)|flip", "--method=piggyback")
    done = _train(tmp_path / "run", photos, *fast)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads((tmp_path / "run/settings.json").read_text())["input"] == "fast"
    assert TaskPack.load(tmp_path / "run/photos.task.safetensors").settings["input"] == "fast"
    # Validation and test images are as ever, and those are cached.
    assert len(list((tmp_path / "cache").glob("images-*/pixels.bin"))) == 2
    again = _train(tmp_path / "run", photos, *fast)
    assert again.returncode == 0, again.stderr[-3000:]
    refused = _train(tmp_path / "run", photos, *fast[1:])
    assert refused.returncode == 2 and '--input was "fast" and is "exact" now' in refused.stderr


def test_fast_input_of_what_is_no_file_is_refused_before_the_training(tmp_path):
    refused = run_forked("train.py", "--data=digits", *QUICK, f"--output_dir={tmp_path / 'run'}", "--input=fast")
    assert refused.returncode == 2 and TRAINED not in refused.stdout
    assert "These images are no such files; use input=exact" in refused.stderr


@pytest.mark.slow
def test_a_finished_training_is_used_though_its_test_images_had_to_change(photos, tmp_path):
    """Nobody looked at the pixels, and the one that is broken is found when the training is over."""
    _cut(photos / "test/light/3.png")
    stopped = _train(tmp_path / "run", photos, "--check=headers")
    assert stopped.returncode == 2
    assert TRAINED in stopped.stdout
    assert f"Broken image '{photos / 'test/light/3.png'}'" in stopped.stderr
    (photos / "test/light/3.png").unlink()
    done = _train(tmp_path / "run", photos)
    assert done.returncode == 0, done.stderr[-3000:]
    assert TRAINED not in done.stdout
    assert "The test images are no longer those with which the run in" in done.stderr
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    assert metrics["methods"]["classifier_only"]["steps"][0]["errors"]["photos"]["images"] == 23
    # They were measured: from now on others would be measured twice.
    (tmp_path / "run/metrics.json").unlink()
    (photos / "test/light/4.png").unlink()
    refused = _train(tmp_path / "run", photos)
    assert refused.returncode == 2
    assert "test_images was 23 and is 22 now" in refused.stderr


def test_other_training_images_are_refused_before_and_after(photos, tmp_path):
    _cut(photos / "test/light/3.png")
    assert _train(tmp_path / "run", photos, "--check=headers").returncode == 2
    for path in ("train/dark/0.png", "test/light/3.png"):
        (photos / path).unlink()
    found = (tmp_path / "run/found.json").read_bytes()
    refused = _train(tmp_path / "run", photos)
    assert refused.returncode == 2
    assert "train_images was 24 and is 23 now" in refused.stderr and "test_images" not in refused.stderr
    assert (tmp_path / "run/found.json").read_bytes() == found


@pytest.fixture(name="two_tasks")
def _two_tasks(photos, tmp_path):
    """Two folders with a broken test image each, and the flags that learn them in turn."""
    other = Path(shutil.copytree(photos, tmp_path / "other"))
    for root in (photos, other):
        _cut(root / "test/light/3.png")
    return photos, other, ["--data=", f"--tasks=a=folder:{photos},b=folder:{other}", "--method=finetune_sequential"]


def test_tasks_are_looked_at_together_before_the_first_is_learned(two_tasks, tmp_path):
    photos, other, flags = two_tasks
    refused = _train(tmp_path / "run", photos, *flags)
    assert refused.returncode == 2
    said = refused.stderr.split("train.py: ")[-1]
    assert said.startswith(f"2 files of folder:{photos}, folder:{other} cannot be used:")
    assert str(photos / "test/light/3.png") in said and str(other / "test/light/3.png") in said
    assert not (tmp_path / "run/1_a").exists()


@pytest.mark.slow
def test_test_images_of_a_task_that_was_not_measured_may_change(two_tasks, tmp_path):
    photos, other, flags = two_tasks
    (photos / "test/light/3.png").unlink()
    assert _train(tmp_path / "run", photos, *flags, "--check=headers").returncode == 2
    assert (tmp_path / "run/1_a/result.json").exists() and not (tmp_path / "run/2_b/result.json").exists()
    shutil.copy(photos / "test/light/4.png", photos / "test/light/3.png")
    refused = _train(tmp_path / "run", photos, *flags, "--check=headers")
    assert "a: test_images was 23 and is 24 now" in refused.stderr and "b: test" not in refused.stderr
    for root in (photos, other):
        (root / "test/light/3.png").unlink()
    done = _train(tmp_path / "run", photos, *flags)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "(b: test_images, b: test_digest)" in done.stderr


@pytest.mark.parametrize("flags", [["--task={name}"], ["--data=", "--tasks=a=digits,{name}=digits"]])
def test_a_name_that_is_too_long_for_a_file_is_found_at_once(flags, photos, tmp_path):
    refused = _train(tmp_path / "run", photos, *(flag.format(name="x" * 240) for flag in flags))
    assert refused.returncode == 2
    said = refused.stderr.split("train.py: ")[-1]
    assert "cannot be written" in said and "File name too long" in said and "Give the task another name" in said
    assert "looked" not in refused.stdout and "Caching" not in refused.stderr
    assert [path.name for path in (tmp_path / "run").iterdir() if "xxx" in path.name] == []


def test_wrong_choices_are_refused(photos, tmp_path):
    for flag, valid in (("--check=header", "pixels, headers"), ("--cache=ram", "auto, memory, disk, none")):
        refused = _train(tmp_path / "run", photos, flag)
        assert refused.returncode == 2
        assert f"must be one of {valid}" in refused.stderr


def test_segments_of_a_method_that_learns_none_are_refused_before_anything_is_loaded(tmp_path):
    for kind in ("images", "labels"):
        (tmp_path / "roads/train" / kind).mkdir(parents=True)
        for number in range(4):
            pixels = np.full((8, 8, 3) if kind == "images" else (8, 8), number % 2, np.uint8)
            PIL.Image.fromarray(pixels).save(tmp_path / f"roads/train/{kind}/{number}.png")
    (tmp_path / "roads/classes.txt").write_text("ground\nroad\n")
    spec = f"segmentation:{tmp_path / 'roads'}"
    refused = run_forked("train.py", f"--data={spec}", *QUICK, "--method=ewc", f"--output_dir={tmp_path / 'run'}")
    assert refused.returncode == 2
    assert f"{spec!r} has a class for each pixel, which method ewc does not learn" in refused.stderr
