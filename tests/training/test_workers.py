"""Two workers on this machine learn what one process learns, and go on after one of them was lost."""

import signal
import time

import numpy as np
import pytest
from PIL import Image

from piggyback_tf.packs import TaskPack
from piggyback_tf.settings import CONFIGS
from tests.training.workers import ROOT, Workers

# Some epochs of the head alone, which take little: what is tested is who ends, and when.
QUICK = ("--data=digits", "--backbone=shapesnet", "--method=classifier_only", "--epochs=6", "--batch_size=128")


def trainings(folder, *flags, quick=QUICK):
    own = [*quick, "--verbose=2", "--strategy=multi_worker", "--notensorboard", *flags]
    # Each has a folder of its own, of which only that of the chief is written to.
    return [[str(ROOT / "train.py"), *own, f"--output_dir={folder}/run{index}"] for index in range(2)]


def digest(folder):
    return TaskPack.load(folder / "run0" / "digits.task.safetensors").content_digest()


@pytest.fixture(scope="module", name="whole")
def _whole(tmp_path_factory):
    """The folder of a run of two workers that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    with Workers(folder, trainings(folder)) as workers:
        assert [workers.wait(index) for index in range(2)] == [0, 0], workers.said(0)
        assert "Worker 1 has done its part." in workers.said(1)
    return folder


_LEARN = """
import os, sys
import numpy as np
from piggyback_tf.backbones import load_backbone, named_variables
from piggyback_tf.data import load_data
from piggyback_tf.methods import METHODS
from piggyback_tf.training import InputConfig, TrainConfig, prepare_devices, train_task
from piggyback_tf.training.cluster import read_cluster
from piggyback_tf.training.team import joined_team

_, strategy, out, name = sys.argv
kind = METHODS[name]
with joined_team(read_cluster() if strategy == "multi_worker" else None, 90, lambda *_: os._exit(3)) as team:
    data = load_data("digits")
    reads, read = [0], type(data.train).read
    def counted(source, index):
        reads[0] += 1
        return read(source, index)
    type(data.train).read = counted
    with prepare_devices(strategy, "none", deterministic=False).scope():
        config = TrainConfig(**{**kind.Config.recipe, "epochs": 4, "batch_size": 16})
        model = train_task(kind(), load_backbone("shapesnet"), data, config, InputConfig(cache="none"), team=team).model
        arrays = {path: variable.numpy() for path, variable in named_variables(model).items()}
    np.savez(f"{out}{team.index}.npz", reads=reads[0], **arrays)
"""


@pytest.mark.slow
@pytest.mark.parametrize("method", [name for name in CONFIGS.names() if CONFIGS[name].several_machines])
def test_two_workers_learn_what_one_process_learns(method, tmp_path):
    """324 steps; the last batch of an epoch has 15 images, of which the second worker reads 7."""
    for strategy, count in (("none", 1), ("multi_worker", 2)):
        command = ["-c", _LEARN, strategy, str(tmp_path / strategy), method]
        with Workers(tmp_path / f"logs_{strategy}", [command] * count) as workers:
            assert [workers.wait(index) for index in range(count)] == [0] * count, workers.said(0)[-3000:]
    one, *two = (np.load(tmp_path / f"{name}.npz") for name in ("none0", "multi_worker0", "multi_worker1"))
    threshold, differing, zeros, bits = np.float32(5e-3), 0, 0, 0
    for path in set(one.files) - {"reads"}:
        # Workers have the same bits, or they would drift apart.
        np.testing.assert_array_equal(two[0][path], two[1][path], err_msg=path)
        if path.endswith("mask_real"):
            other = (one[path] >= threshold) != (two[0][path] >= threshold)
            for found in (one, two[0]):
                assert (np.abs(found[path][other] - threshold) <= 1e-6).all(), path
            differing, zeros, bits = differing + other.sum(), zeros + (one[path] < threshold).sum(), bits + other.size
        else:
            np.testing.assert_allclose(two[0][path], one[path], atol=1e-5, rtol=1e-5, err_msg=path)
    print(f"{method}: {differing} of {bits} bits differ, {zeros} are zero")
    assert method != "piggyback" or zeros > 1e-3 * bits
    # Each reads its own half, and the first images of the validation split beside it.
    assert all(abs(found["reads"] / one["reads"] - 0.5) < 0.05 for found in two)


@pytest.mark.slow
def test_a_worker_or_the_chief_that_is_killed_ends_all_and_the_same_commands_go_on(whole, tmp_path):
    for killed, name, epoch in ((1, "Worker 1", 2), (0, "The chief", 4)):
        with Workers(tmp_path / name, trainings(tmp_path)) as workers:
            workers.wait_for(f"epoch {epoch}/6")
            workers.send(killed, signal.SIGKILL)
            started = time.monotonic()
            assert workers.wait(1 - killed, 60) == 143
            print(f"the other ended {time.monotonic() - started:.1f} s after {name}")
            assert f"{name} (localhost:" in workers.said(1 - killed)
            assert "go on after the last completed epoch." in workers.said(1 - killed)
    with Workers(tmp_path / "3", trainings(tmp_path)) as workers:
        assert [workers.wait(index) for index in range(2)] == [0, 0], workers.said(0)
        assert "epoch 2/6" not in workers.said(0)
    assert digest(tmp_path) == digest(whole)
    assert not (tmp_path / "run1").exists()


@pytest.mark.slow
@pytest.mark.parametrize(("stopped", "name"), [(1, "Worker 1"), (0, "The chief")])
def test_a_worker_that_is_stopped_ends_the_others(stopped, name, tmp_path):
    with Workers(tmp_path, trainings(tmp_path)) as workers:
        workers.wait_for("epoch 2/6")
        workers.send(stopped, signal.SIGSTOP)
        started = time.monotonic()
        assert workers.wait(1 - stopped, 60) == 143
        print(f"ended {time.monotonic() - started:.1f} s after {name} was stopped")
        assert f"{name} (localhost:" in workers.said(1 - stopped)
        assert "has said nothing for 45 seconds." in workers.said(1 - stopped)


@pytest.mark.slow
def test_sigterm_ends_all_and_the_same_commands_go_on(whole, tmp_path):
    with Workers(tmp_path / "1", trainings(tmp_path)) as workers:
        workers.wait_for("epoch 2/6")
        workers.send(1, signal.SIGTERM)
        assert [workers.wait(index, 30) for index in range(2)] == [143, 143]
        for index in range(2):
            assert "Worker 1 (localhost:" in workers.said(index)
            assert "was told to end (SIGTERM)." in workers.said(index)
    with Workers(tmp_path / "2", trainings(tmp_path)) as workers:
        assert [workers.wait(index) for index in range(2)] == [0, 0], workers.said(0)
        assert "epoch 1/6" not in workers.said(0)
    assert digest(tmp_path) == digest(whole)


def refused(tmp_path, commands, folders=None):
    """Returns what both workers say last; neither trains."""
    with Workers(tmp_path / "logs", commands, folders) as workers:
        assert [workers.wait(index) for index in range(2)] == [2, 2], workers.said(0)
        return [workers.said(index) for index in range(2)]


def test_settings_that_differ_are_refused_with_both_values(tmp_path):
    commands = trainings(tmp_path)
    commands[1].append("--seed=3")
    for said in refused(tmp_path, commands):
        assert "--seed is 0 at the chief and 3 at worker 1" in said


@pytest.mark.slow
def test_data_and_base_that_differ_are_refused_with_both_values(tmp_path):
    from piggyback_tf.backbones import load_backbone

    folders = [tmp_path / "a", tmp_path / "b"]
    for number, folder in enumerate(folders):
        folder.mkdir()
        for place in range(20 + 2 * number):
            pixels = np.random.default_rng([number, place]).integers(0, 256, (32, 32, 3), np.uint8)
            image = folder / "photos" / "train" / f"class{place % 2}" / f"{place}.png"
            image.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(image)
        load_backbone("shapesnet", weights="random", seed=number).model.save_weights(folder / "own.weights.h5")
    quick = ("--data=folder:photos", "--backbone=shapesnet", "--weights=own.weights.h5", "--method=classifier_only")
    for said in refused(tmp_path, trainings(tmp_path, "--batch_size=4", quick=quick), folders):
        assert "base is " in said
        assert "train_digest is " in said
        assert "train_images is 18 at the chief and " in said
