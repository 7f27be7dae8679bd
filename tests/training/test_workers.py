"""Two workers on this machine learn what one process learns, and go on after one of them was lost."""

import json
import signal
import time

import numpy as np
import pytest
from PIL import Image

from piggyback_tf.evaluation.results import read_result
from piggyback_tf.file_names import RESULT_FILE
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


THRESHOLD = np.float32(5e-3)
# One that keeps a pack of each task, and one that learns a task on what it keeps of those before.
IN_TURN = ("piggyback", "finetune_sequential")


def learned(tmp_path, strategy, count, **settings):
    """Returns what each of some processes has learned of digits together."""
    command = ["-m", "tests.training.learn_digits", strategy, str(tmp_path / strategy), json.dumps(settings)]
    with Workers(tmp_path / f"logs_{strategy}", [command] * count) as workers:
        for index in range(count):
            assert workers.wait(index, 500) == 0, workers.said(index)[-3000:]
    return [np.load(tmp_path / f"{strategy}{index}.npz") for index in range(count)]


def assert_same(found, others):
    """Checks that workers have the same bits, or they would drift apart."""
    for path in set(found.files) - {"reads"}:
        np.testing.assert_array_equal(found[path], others[path], err_msg=path)


def differing_bits(one, two):
    """Returns how many bits of masks differ, all at the threshold, how many are zero, and how many there are."""
    counts = np.zeros(3, int)
    for path in set(one.files) - {"reads"}:
        if path.endswith("mask_real"):
            other = (one[path] >= THRESHOLD) != (two[path] >= THRESHOLD)
            for found in (one, two):
                assert (np.abs(found[path][other] - THRESHOLD) <= 1e-6).all(), path
            counts += other.sum(), (one[path] < THRESHOLD).sum(), other.size
        else:
            np.testing.assert_allclose(two[path], one[path], atol=1e-5, rtol=1e-5, err_msg=path)
    return counts


@pytest.mark.slow
@pytest.mark.parametrize("method", [name for name in CONFIGS.names() if not CONFIGS[name].why_one_machine])
def test_two_workers_learn_what_one_process_learns(method, tmp_path):
    """324 steps; the last batch of an epoch has 15 images, of which the second worker reads 7."""
    (one,) = learned(tmp_path, "none", 1, method=method)
    two = learned(tmp_path, "multi_worker", 2, method=method)
    assert_same(*two)
    differing, zeros, bits = differing_bits(one, two[0])
    print(f"{method}: {differing} of {bits} bits differ, {zeros} are zero")
    assert method != "piggyback" or zeros > 1e-3 * bits
    # Each reads its own half, and the first images of the validation split beside it.
    assert all(abs(found["reads"] / one["reads"] - 0.5) < 0.05 for found in two)


@pytest.mark.slow
def test_two_workers_learn_what_two_devices_learn_on_mobilenet_v2(realdata, tmp_path):
    """324 steps, bit for bit. One device rounds otherwise, by which other weights are dropped; see docs/scale.md."""
    weights = str(realdata / "weights" / "mobilenet_v2_imagenet_notop.weights.h5")
    settings = {"method": "piggyback", "backbone": "mobilenet_v2", "weights": weights}
    (one,) = learned(tmp_path, "mirrored", 1, **settings)
    two = learned(tmp_path, "multi_worker", 2, **settings)
    assert_same(*two)
    assert_same(one, two[0])
    differing, zeros, bits = differing_bits(one, two[0])
    assert differing == 0
    assert zeros > 1e-3 * bits


@pytest.mark.slow
def test_gradients_of_masks_in_bfloat16_leave_workers_with_the_same_bits(tmp_path):
    two = learned(tmp_path, "multi_worker", 2, method="piggyback", mask_gradients="bfloat16")
    assert_same(*two)
    masks = np.concatenate([two[0][path].ravel() for path in two[0].files if path.endswith("mask_real")])
    assert (masks < THRESHOLD).mean() > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("method", IN_TURN)
def test_two_workers_learn_tasks_in_turn_as_two_devices_do(method, tmp_path):
    """Bit for bit; of one device the sums are rounded otherwise."""
    (one,) = learned(tmp_path, "mirrored", 1, method=method, tasks=2, epochs=2)
    two = learned(tmp_path, "multi_worker", 2, method=method, tasks=2, epochs=2)
    # The second task is learned alone, too, by a method that learns it on the first.
    alone = set() if method == "piggyback" else {"2"}
    assert {path.partition("/")[0] for path in two[0].files} == {"0", "1", "reads"} | alone
    assert_same(*two)
    assert_same(one, two[0])
    for name in ("1_digits0", "2_digits1"):
        folders = [tmp_path / run / name for run in ("mirrored0", "multi_worker0")]
        first, second = (read_result(folder / RESULT_FILE, name) for folder in folders)
        assert first["errors"] == second["errors"]
        for pack in folders[0].glob("*.task.safetensors"):
            first, second = (TaskPack.load(folder / pack.name) for folder in folders)
            assert first.content_digest() == second.content_digest()
    # The other has read what the chief keeps, and leaves no results.
    assert not list((tmp_path / "multi_worker1").rglob(RESULT_FILE))


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
def test_tasks_in_turn_go_on_with_the_task_in_which_a_worker_was_lost(tmp_path):
    quick = ("--tasks=a=digits,b=digits", *QUICK[1:3], "--epochs=2", "--batch_size=128")
    names = ("1_a/a.task.safetensors", "2_b/b.task.safetensors")
    commands = {folder: trainings(tmp_path / folder, quick=quick) for folder in ("whole", "lost")}
    with Workers(tmp_path / "logs0", commands["whole"]) as workers:
        assert [workers.wait(index) for index in range(2)] == [0, 0], workers.said(0)
    with Workers(tmp_path / "logs1", commands["lost"]) as workers:
        workers.wait_for("task 2 of 2")
        workers.wait_for("epoch 1/2", after="task 2 of 2")
        workers.send(1, signal.SIGKILL)
        assert workers.wait(0, 60) == 143
    with Workers(tmp_path / "logs2", commands["lost"]) as workers:
        assert [workers.wait(index) for index in range(2)] == [0, 0], workers.said(0)
        assert "task 1 of 2" not in workers.said(0)
        assert "epoch 1/2" not in workers.said(0)
    for name in names:
        whole, lost = (TaskPack.load(tmp_path / folder / "run0" / name) for folder in ("whole", "lost"))
        assert lost.content_digest() == whole.content_digest()


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
