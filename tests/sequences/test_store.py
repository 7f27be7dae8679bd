"""What a sequence reads and builds: each task's pack once, and one bank for all."""

import dataclasses
import json
from collections import Counter

import pytest

from piggyback_tf.evaluation.results import read_result
from piggyback_tf.methods import Memory
from piggyback_tf.packs import TaskBank, TaskPack
from piggyback_tf.sequences import run_sequence
from piggyback_tf.sequences import runner as runner_module
from piggyback_tf.training import TrainedTask
from tests.methods.toy import toy_backbone, toy_settings, toy_tasks


@pytest.fixture(autouse=True)
def _untrained(monkeypatch):
    """Leaves out the training and what networks cost, on which nothing here depends."""

    def train_task(method, backbone, data, config, inputs, **options):
        model = method.build(backbone, len(data.class_names), seed=config.seed)
        return TrainedTask(model, None, {"error": [50.0], "val_error": [25.0], "val_loss": [0.5]}, 0, 1.0)

    monkeypatch.setattr(runner_module, "train_task", train_task)
    monkeypatch.setattr(runner_module, "multiply_adds", lambda network: network.count_params())


@pytest.fixture(name="counts")
def _counts(monkeypatch):
    """Counts the banks that are built, and the files of packs and memories that are read."""
    counts: Counter = Counter()

    def count(owner, name, what):
        real = getattr(owner, name)

        def counted(*arguments, **options):
            counts[what] += 1
            return real(*arguments, **options)

        monkeypatch.setattr(owner, name, counted if name == "__init__" else staticmethod(counted))

    count(TaskBank, "__init__", "banks")
    count(TaskPack, "load", "packs")
    count(Memory, "load", "memories")
    return counts


def _four_tasks():
    tasks = toy_tasks()
    return {f"{name}{number}": data for number in range(2) for name, data in tasks.items()}


def _run(folder, method):
    return run_sequence(folder, toy_backbone(), _four_tasks(), toy_settings(method, epochs=1, warmup_steps=0))


@pytest.mark.slow
def test_four_tasks_build_one_bank_and_read_no_pack(tmp_path, counts):
    whole = _run(tmp_path, "piggyback")
    assert counts == {"banks": 1}
    counts.clear()
    # Killed before the last task was learned.
    (tmp_path / "4_spots1" / "result.json").unlink()
    again = _run(tmp_path, "piggyback")
    assert counts == {"banks": 1, "packs": 3}
    assert again["steps"][-1]["answers"] == whole["steps"][-1]["answers"]
    assert again["task_agnostic"] == whole["task_agnostic"]
    counts.clear()
    assert _run(tmp_path, "piggyback") == again
    assert not counts, "nothing is left to be measured"


@pytest.mark.slow
def test_a_memory_is_read_where_a_sequence_goes_on(tmp_path, counts):
    whole = _run(tmp_path, "finetune_sequential")
    assert not counts
    # Killed after the third task was learned; its memory was not needless then.
    settings = toy_settings("finetune_sequential", epochs=1, warmup_steps=0)
    tasks = dict(list(_four_tasks().items())[:3])
    (tmp_path / "again").mkdir()
    run_sequence(tmp_path / "again", toy_backbone(), tasks, dataclasses.replace(settings, task_agnostic=False))
    assert not counts
    again = _run(tmp_path / "again", "finetune_sequential")
    assert counts == {"memories": 1}
    assert again["steps"][-1]["answers"] == whole["steps"][-1]["answers"]
    assert again["steps"][-1]["bytes"] == whole["steps"][-1]["bytes"]


@pytest.mark.slow
def test_a_sequence_that_the_first_version_began_goes_on(tmp_path):
    """Its results have no number of a format, and histories of fractions."""
    whole = _run(tmp_path, "piggyback")
    path = tmp_path / "1_stripes0" / "result.json"
    step = json.loads(path.read_text())
    assert step.pop("format") == 2
    for name in ("validation", "file", "zeros", "zeros_total"):
        del step[name]
    step["history"] = {
        name: [value / 100 for value in values] if name.endswith("error") else values
        for name, values in step["history"].items()
    }
    path.write_text(json.dumps(step))
    (tmp_path / "4_spots1" / "result.json").unlink()
    again = _run(tmp_path, "piggyback")
    assert again["steps"][0]["history"] == whole["steps"][0]["history"]
    assert again["steps"][-1]["answers"] == whole["steps"][-1]["answers"]
    assert again["measures"] == {**whole["measures"], "seconds": pytest.approx(again["measures"]["seconds"])}


@pytest.mark.parametrize(("method", "file"), [("piggyback", "spots.task.safetensors"), ("finetune", "spots.keras")])
def test_a_task_by_itself_is_a_sequence_of_one(method, file, tmp_path):
    """Its files are in the folder itself; a method without packs leaves a Keras model, and no test split is needed."""
    tasks = {"spots": toy_tasks()["spots"]}
    settings = toy_settings(method, epochs=1, warmup_steps=0)
    for name in ("alone", "in_turn", "without"):
        (tmp_path / name).mkdir()
    alone = run_sequence(tmp_path / "alone", toy_backbone(), tasks, settings, in_turn=False)
    in_turn = run_sequence(tmp_path / "in_turn", toy_backbone(), tasks, settings)
    assert sorted(path.name for path in (tmp_path / "alone").iterdir()) == sorted(
        ["result.json", "spots.answers1.json.gz", file]
    )
    (one,), (other,) = alone["steps"], in_turn["steps"]
    assert one["file"] == file
    for part in ("errors", "validation", "answers", "multiply_adds", "history", "trained_parameters"):
        assert one[part] == other[part]
    assert read_result(tmp_path / "alone" / "result.json", "spots") == one
    if method == "piggyback":
        packs = [TaskPack.load(path / file) for path in (tmp_path / "alone", tmp_path / "in_turn" / "1_spots")]
        assert packs[0].content_digest() == packs[1].content_digest()
        assert packs[0].errors == {"validation": one["validation"]["spots"], "test": one["errors"]["spots"]}
    unmeasured = {"spots": dataclasses.replace(tasks["spots"], test=None)}
    (step,) = run_sequence(tmp_path / "without", toy_backbone(), unmeasured, settings, in_turn=False)["steps"]
    assert step["errors"] == step["answers"] == {}
    assert step["validation"] == one["validation"]
