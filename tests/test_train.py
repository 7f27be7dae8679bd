"""train.py as its users run it: results, resume after SIGKILL, refusals."""

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from piggyback_tf.data import load_data
from piggyback_tf.packs import TaskPack
from piggyback_tf.training.same_base_and_data import describe_data
from tests.forked import run_forked, start_forked

ROOT = Path(__file__).resolve().parent.parent
QUICK = [
    "--data=digits",
    "--backbone=shapesnet",
    "--epochs=3",
    "--batch_size=256",
    "--head_lr=1e-2",
    "--mask_lr=4e-3",
    "--mask_budget=1",
    "--warmup_steps=2",
    "--head_dropout=0.3",
    "--chance_epochs=0",
    "--augment_train=resize(36,36)|random_crop(32)",
]


def _command(folder: Path, *flags: str) -> list[str]:
    return ["train.py", *QUICK, f"--output_dir={folder}", *flags]


def _train(folder: Path, *flags: str) -> subprocess.CompletedProcess:
    return run_forked(*_command(folder, *flags))


@pytest.fixture(scope="module", name="finished")
def _finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished") / "run"
    done = _train(folder, "--baseline=finetune")
    assert done.returncode == 0, done.stderr[-3000:]
    return folder, done.stdout


def test_the_result_is_a_pack_with_all_that_belongs_to_it(finished):
    folder, printed = finished
    metrics = json.loads((folder / "metrics.json").read_text())
    assert "| piggyback " in printed
    assert "| finetune " in printed
    assert list(metrics["methods"]) == ["finetune", "piggyback"]
    (row,) = metrics["methods"]["piggyback"]["steps"]
    pack = TaskPack.load(folder / "digits.task.safetensors")
    assert pack.errors["test"]["images"] == 359
    assert pack.errors["test"]["top1_error"] == row["errors"]["digits"]["top1_error"] < 80
    assert pack.errors["validation"] == row["validation"]["digits"]
    assert pack.base_hash == metrics["methods"]["piggyback"]["base_hash"]
    assert pack.class_names == list("0123456789")
    assert pack.settings["head_dropout"] == 0.3
    assert pack.zeros == row["zeros"]
    assert 0 < pack.zeros_total < 0.1
    assert row["bytes"]["compressed"] == (folder / "digits.task.safetensors").stat().st_size
    assert row["bytes"]["compressed"] < row["bytes"]["base"] / 8
    assert len(row["history"]["val_error"]) == 3
    for file in ("report.md", "zeros.png", "learning_curves.png"):
        assert (folder / file).stat().st_size > 500
    assert list((folder / "tensorboard").iterdir())
    assert not (folder / "training_state.safetensors").exists()


def test_finetune_writes_a_keras_model_that_loads_without_training_code(finished):
    path = finished[0] / "baselines" / "finetune" / "digits.keras"
    script = (
        "import sys, keras, numpy; model = keras.models.load_model(sys.argv[1]);"
        "assert model(numpy.zeros((1, 32, 32, 3))).shape == (1, 10); assert 'piggyback_tf' not in sys.modules"
    )
    done = run_forked("-c", script, path)
    assert done.returncode == 0, done.stderr[-2000:]
    (step,) = json.loads((finished[0] / "metrics.json").read_text())["methods"]["finetune"]["steps"]
    # Weights only, without the moments of an optimiser.
    assert path.stat().st_size < 2 * step["bytes"]["base"]


def test_a_finished_run_is_not_done_again(finished):
    folder, printed = finished
    before = (folder / "digits.task.safetensors").stat().st_mtime_ns
    again = _train(folder, "--baseline=finetune")
    assert again.returncode == 0
    assert "Epoch" not in again.stdout
    assert again.stdout.strip().splitlines() == printed.strip().splitlines()[-6:]
    assert (folder / "digits.task.safetensors").stat().st_mtime_ns == before


def test_other_settings_are_refused_by_name(finished):
    refused = _train(finished[0], "--baseline=finetune", "--mask_lr=1e-3", "--cache=disk")
    assert refused.returncode == 2
    assert "--mask_lr was 0.004 and is 0.001 now" in refused.stderr
    assert "cache" not in refused.stderr.split("train.py:")[-1]


@pytest.mark.slow
def test_what_was_finished_before_a_method_broke_off_is_shown(tmp_path):
    flags = ("--baseline=classifier_only", "--method=finetune", "--weights_optimizer=sgd", "--weights_lr=1e30")
    done = _train(tmp_path / "run", *flags)
    assert done.returncode == 2
    sentence = done.stderr.strip().splitlines()[-1]
    assert "The loss of finetune became nan" in sentence or "The loss of finetune became inf" in sentence
    assert "classifier_only is finished, with an error of " in sentence
    assert "learned from the same network" in sentence
    assert "| classifier_only |" in (tmp_path / "run" / "report.md").read_text()
    assert not (tmp_path / "run" / "metrics.json").exists(), "the run is not complete"


def test_a_run_that_recorded_all_flags_is_complete_though_flags_came_and_went(finished, tmp_path):
    folder = Path(shutil.copytree(finished[0], tmp_path / "run"))
    recorded = json.loads((folder / "settings.json").read_text())
    assert "ewc_lambda" not in recorded
    (folder / "settings.json").write_text(json.dumps(recorded | {"ewc_lambda": 3.0, "gone": 1.0}))
    program = f"""
import dataclasses, sys
sys.path.insert(0, {str(ROOT)!r})
from piggyback_tf.commands import train
from piggyback_tf.settings import CONFIGS, RETIRED, MethodConfig, option

@dataclasses.dataclass(frozen=True)
class Config(MethodConfig):
    sampler_rate: float = option(0.5, "A rate.")

CONFIGS.register("sampler")(Config)
RETIRED["gone"] = (float, "Nothing took its place.")
train.PROGRAM({_command(folder, "--baseline=finetune", "--gone=2", "--sampler_rate=0.1")[1:]!r}, "train.py")
"""
    again = run_forked("-c", program)
    assert again.returncode == 0, again.stderr[-3000:]
    assert "--gone does nothing any more. Nothing took its place." in again.stderr
    assert again.stdout.strip().splitlines()[:-1] == finished[1].strip().splitlines()[-6:-1]


def test_killed_anywhere_it_goes_on_to_the_same_pack(finished, tmp_path):
    """Three kills: after the first epoch, in the middle of writing the second one's state, and at a random moment."""
    folder = tmp_path / "run"
    state = folder / "training_state.safetensors"

    process = start_forked(*_command(folder))
    while not state.exists():
        assert process.is_alive(), "the run ended before its first state was saved"
        time.sleep(0.01)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    first = state.read_bytes()

    torn = f"""
import os, signal, sys
sys.path.insert(0, {str(ROOT)!r})
from piggyback_tf.commands import train
from piggyback_tf import files
whole = files.save_file
def half(tensors, path, *arguments):
    whole(tensors, path, *arguments)
    os.truncate(path, os.path.getsize(path) // 2)
    os.kill(os.getpid(), signal.SIGKILL)
files.save_file = half
train.PROGRAM({_command(folder)[1:]!r}, "train.py")
"""
    assert run_forked("-c", torn).returncode == -signal.SIGKILL
    assert state.read_bytes() == first

    process = start_forked(*_command(folder))
    time.sleep(6 * (os.getpid() % 7) / 7)
    process.kill()
    process.join()

    assert _train(folder).returncode == 0
    killed = TaskPack.load(folder / "digits.task.safetensors")
    whole = TaskPack.load(finished[0] / "digits.task.safetensors")
    # The list of baselines is the one setting in which the two commands differ.
    whole.settings["baseline"] = killed.settings["baseline"]
    assert killed.content_digest() == whole.content_digest()


@pytest.mark.slow
def test_two_devices_train_evaluate_and_write(tmp_path):
    """TensorFlow makes two logical devices only before it starts."""
    script = f"""
import sys
import tensorflow as tf
sys.path.insert(0, {str(ROOT)!r})
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
from piggyback_tf.commands import train
train.PROGRAM({_command(tmp_path / "run", "--strategy=mirrored", "--epochs=1")[1:]!r}, "train.py")
"""
    done = run_forked("-c", script)
    assert done.returncode == 0, done.stderr[-3000:]
    assert TaskPack.load(tmp_path / "run" / "digits.task.safetensors").errors["test"]["images"] == 359


@pytest.mark.slow
def test_tasks_are_learned_one_after_another(tmp_path):
    flags = ["--data=", "--tasks=first=digits,second=digits", "--epochs=1", "--verbose=0"]
    done = _train(tmp_path / "run", *flags)
    assert done.returncode == 0, done.stderr[-3000:]
    run = json.loads((tmp_path / "run" / "metrics.json").read_text())
    (metrics,) = run["methods"].values()
    assert metrics["tasks"] == ["first", "second"]
    assert run["skipped_images"]["second"] == {"train": 0, "validation": 0, "test": 0}
    assert list((tmp_path / "run" / "2_second" / "tensorboard").iterdir())
    assert metrics["measures"]["old_answers_identical"]
    assert list(metrics["steps"][1]["errors"]) == ["first", "second"]
    packs = [
        tmp_path / "run" / f"{place}_{task}" / f"{task}.task.safetensors"
        for place, task in ((1, "first"), (2, "second"))
    ]
    assert metrics["steps"][1]["bytes"]["compressed"] == sum(path.stat().st_size for path in packs)
    assert TaskPack.load(packs[0]).masks.keys() == TaskPack.load(packs[1]).masks.keys()
    report = (tmp_path / "run" / "report.md").read_text()
    assert "later tasks changed answers of earlier ones: no" in report
    assert (tmp_path / "run" / "errors.png").exists()
    assert "| first |" in done.stdout
    again = _train(tmp_path / "run", *flags)
    assert again.returncode == 0
    assert again.stdout == done.stdout


def test_two_processes_in_one_folder(tmp_path):
    import fcntl

    folder = tmp_path / "run"
    folder.mkdir()
    with (folder / ".lock").open("w") as lock:
        lock.write("4711")
        lock.flush()
        fcntl.flock(lock, fcntl.LOCK_EX)
        refused = _train(folder)
    assert refused.returncode == 2
    assert "process (id 4711)" in refused.stderr
    assert ".lock" in refused.stderr


# Flags, and words of the sentence that refuses them.
WRONG_INPUT = [
    (["--mask_lrr=1"], ["mask_lrr", "mask_lr"]),
    (["--method=piggy"], ["piggyback", "finetune"]),
    (["--schedule=linear"], ["cosine, step, constant"]),
    (["--backbone=mobilenetv2"], ["mobilenet_v2"]),
    (["--data=folder:/no/such/folder"], ["/no/such/folder"]),
    (["--data=digit"], ["digits"]),
    (["--augment_train=resize(40,40)"], ["40x40", "32x32"]),
    (["--mask_include=stage*"], ["stage*"]),
    (["--task=a/b"], ["a/b", "slashes"]),
    (["--output_dir="], ["--output_dir"]),
    (["--tasks=a=digits"], ["--data", "--tasks"]),
    (["--data=", "--tasks=a=digits,a=digits"], ["'a'", "twice"]),
    (["--data=", "--tasks=digits"], ["NAME=DATA"]),
    (["--data=", "--tasks=a=digits", "--baseline=finetune"], ["--baseline", "--tasks"]),
    (["surplus"], ["surplus"]),
]


@pytest.mark.parametrize("given, words", WRONG_INPUT, ids=[" ".join(given) for given, _ in WRONG_INPUT])
def test_wrong_input_gets_a_sentence_and_no_stack(given, words, tmp_path):
    refused = _train(tmp_path / "run", *given)
    assert refused.returncode != 0
    for word in words:
        assert word in refused.stderr
    assert "Traceback" not in refused.stderr


def test_a_run_that_goes_on_must_find_the_same_images(tmp_path):
    def described(root):
        return describe_data(load_data(f"folder:{root}"))

    colours = np.random.default_rng(0).integers(0, 255, (12, 3))
    for number, colour in enumerate(colours):
        # One of them has a name that is no text in UTF-8.
        name = os.fsdecode(b"5\xe9.png") if number == 5 else f"{number}.png"
        path = tmp_path / "data" / ("test" if number < 4 else "train") / f"class{number % 2}" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.new("RGB", (8, 8), tuple(colour)).save(path)
    before = described(tmp_path / "data")
    copy = Path(shutil.copytree(tmp_path / "data", tmp_path / "copy", copy_function=shutil.copyfile))
    assert described(copy) == before
    for split in ("train", "test"):
        number = 4 if split == "train" else 0
        changed = Path(shutil.copytree(copy, tmp_path / split))
        noise = np.random.default_rng(1).integers(0, 255, (8, 8, 3), np.uint8)
        PIL.Image.fromarray(noise).save(changed / split / "class0" / f"{number}.png")
        after = described(changed)
        different = {name for name in before if before[name] != after[name]}
        # Which of train and validation an image of train is in follows from its name.
        assert different in ([{"test_digest"}] if split == "test" else [{"train_digest"}, {"validation_digest"}])
