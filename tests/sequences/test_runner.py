"""What a sequence measures after its last task: answers without a task id, and forward transfer."""

import dataclasses
import json

import numpy as np
import pytest

from piggyback_tf.data import TaskData
from piggyback_tf.evaluation.answers import read_answers
from piggyback_tf.evaluation.report import matrix_table
from piggyback_tf.methods import METHODS
from piggyback_tf.sequences import run_sequence
from piggyback_tf.sequences import runner as runner_module
from piggyback_tf.training import TrainingError
from tests.forked import run_forked
from tests.methods.toy import PatternSource, toy_backbone, toy_settings, toy_tasks


def _run(folder, method, tasks=None, **settings):
    return run_sequence(
        folder, toy_backbone(), tasks or toy_tasks(), dataclasses.replace(toy_settings(method, epochs=2), **settings)
    )


def _two_classes(name):
    """Returns a task of two classes."""
    splits = [PatternSource(20, 2, seed) for seed in range(3)]
    return TaskData(name, name, ("dark", "bright"), *splits)


def _forbidden(*args, **kwargs):
    raise AssertionError("This was done already.")


@pytest.mark.parametrize(
    ("method", "ways"),
    [
        ("piggyback", ["entropy", "gradient"]),
        pytest.param("classifier_only", ["entropy"], marks=pytest.mark.slow),
        pytest.param("ewc", ["entropy"], marks=pytest.mark.slow),
    ],
)
def test_tasks_are_inferred_once(method, ways, tmp_path, monkeypatch):
    metrics = _run(tmp_path, method)
    found = metrics["task_agnostic"]
    assert list(found) == ways
    errors = {task: one["top1_error"] for task, one in metrics["steps"][-1]["errors"].items()}
    for measured in found.values():
        assert list(measured["by_task"]) == metrics["tasks"]
        for task, own in measured["by_task"].items():
            # An image whose class is wrong with its task given is wrong without; a wrong task adds to that at most all.
            missed = own["class_incremental_error"] - errors[task]
            assert -1e-9 <= missed <= 100 - own["task_id_accuracy"] + 1e-9
        assert 0 < measured["task_id_accuracy"] < 100
    assert json.loads((tmp_path / "2_spots" / "result.json").read_text())["task_agnostic"] == found
    monkeypatch.setattr(runner_module, "measure_task_agnostic", _forbidden)
    assert _run(tmp_path, method) == metrics


@pytest.mark.slow
@pytest.mark.parametrize("method", [pytest.param("classifier_only", marks=pytest.mark.slow), "ewc"])
def test_inferring_tasks_can_be_left_out_and_done_later(method, tmp_path, monkeypatch):
    monkeypatch.setattr(runner_module, "measure_task_agnostic", _forbidden)
    (tmp_path / "two").mkdir()
    without = _run(tmp_path / "two", method, task_agnostic=False)
    assert "task_agnostic" not in without
    # One task is known without.
    (tmp_path / "one").mkdir()
    assert "task_agnostic" not in _run(tmp_path / "one", method, {"spots": toy_tasks()["spots"]})
    monkeypatch.undo()
    monkeypatch.setattr(runner_module, "train_task", _forbidden)
    later = _run(tmp_path / "two", method)
    assert later.pop("task_agnostic")["entropy"]["task_id_accuracy"] > 0
    assert later == without


@pytest.mark.parametrize("method", ["classifier_only", pytest.param("finetune_sequential", marks=pytest.mark.slow)])
def test_the_answers_that_are_counted_are_kept(method, tmp_path, monkeypatch):
    """Those after the last task, of packs and of a method that forgets; without a test split those of validation."""
    counted = []
    measure = runner_module.measure
    monkeypatch.setattr(
        runner_module, "measure", lambda network, *given: counted.append(network) or measure(network, *given)
    )
    metrics = _run(tmp_path, method, task_agnostic=False)
    # Validation and test of the first task, then of the second, and the test split of the first again.
    assert len(counted) == 5
    last = metrics["steps"][-1]
    for place, task in enumerate(metrics["tasks"], start=1):
        found = read_answers(tmp_path / f"{place}_{task}" / f"{task}.answers1.json.gz")
        assert (found.task, found.split, found.after) == (task, "test", metrics["tasks"][-1])
        assert found.errors == last["errors"][task]
        wrong = np.not_equal(found.columns["truth"], found.columns["answer"])
        assert 100 * wrong.mean() == pytest.approx(last["errors"][task]["top1_error"])
        assert found.columns["truth"] == toy_tasks()[task].test.labels.tolist()
        assert np.greater_equal(found.columns["probability"], found.columns["truth_probability"]).all()
        assert np.mean(found.columns["probability"]) > 1 / len(found.class_names)
    (tmp_path / "untested").mkdir()
    data = dataclasses.replace(toy_tasks()["spots"], test=None)
    metrics = run_sequence(
        tmp_path / "untested", toy_backbone(), {"spots": data}, toy_settings(method, epochs=1, warmup_steps=0)
    )
    found = read_answers(tmp_path / "untested" / "1_spots" / "spots.answers1.json.gz")
    assert (found.split, found.errors) == ("validation", metrics["steps"][0]["validation"]["spots"])
    assert found.columns["truth"] == data.validation.labels.tolist()


def test_a_later_task_of_one_class_is_refused_before_the_first_is_learned(tmp_path):
    tasks = toy_tasks()
    tasks["spots"] = dataclasses.replace(tasks["spots"], class_names=("spots0",))
    with pytest.raises(ValueError, match=r"Task 'spots' has the classes \['spots0'\]; a task needs at least 2\."):
        _run(tmp_path, "piggyback", tasks)
    assert not list(tmp_path.iterdir())


def test_more_tasks_than_there_is_room_for_are_refused_before_the_first_is_learned(tmp_path):
    settings = toy_settings("packnet", epochs=2)
    settings = dataclasses.replace(settings, config=type(settings.config)(packnet_prune_first=0.0))
    with pytest.raises(ValueError, match="No weight of 'first_conv/kernel' is free for task 2"):
        run_sequence(tmp_path, toy_backbone(), toy_tasks(), settings)
    assert not list(tmp_path.iterdir())


def test_a_task_with_a_bar_in_its_name_has_one_cell():
    errors = {"cats|dogs": {"top1_error": 10.0}}
    step = {"errors": errors, "bytes": dict.fromkeys(("system", "added", "compressed"), 1000)}
    metrics = {"tasks": ["cats|dogs"], "steps": [step | {"trained_parameters": 10, "seconds": 1.0}]}
    assert {line.replace("\\|", "").count("|") for line in matrix_table(metrics)} == {7}


def test_the_check_for_chance_of_joint_training_is_within_the_own_head(tmp_path):
    # Two classes each: guessing gives ln 2, and ln 4 among all. Features that are 0 leave nothing but guessing.
    backbone = toy_backbone()
    for variable in backbone.model.get_layer("dense").weights:
        variable.assign(0.0 * variable)
    settings = toy_settings("joint", chance_epochs=2, warmup_steps=0, epochs=8)
    with pytest.raises(TrainingError, match=r"guessing gives 0\.693"):
        run_sequence(tmp_path, backbone, {name: _two_classes(name) for name in ("a", "b")}, settings)


def test_the_check_for_chance_does_not_see_what_a_method_adds_to_the_loss(tmp_path):
    # HAT's gates add about 0.75. With a head of zeros it would be at chance for longer than this.
    settings = toy_settings("hat", chance_epochs=2, warmup_steps=0, epochs=5, head_lr=1e-2)
    history = run_sequence(tmp_path, toy_backbone(), {"a": _two_classes("a")}, settings)["steps"][0]["history"]
    assert min(history["loss"]) > np.log(2) > history["cross_entropy"][-1]


@pytest.mark.slow
def test_forward_transfer_is_measured_from_tasks_learned_alone(tmp_path, monkeypatch):
    folder = tmp_path / "sequence"
    folder.mkdir()
    without = _run(folder, "ewc")
    assert without["measures"]["forward_transfer"] is None and "alone" not in without
    # What is there is not learned again.
    metrics = _run(folder, "ewc", forward_transfer=True)
    assert metrics["steps"] == without["steps"]
    (tmp_path / "single").mkdir()
    single = _run(tmp_path / "single", "ewc", {"spots": toy_tasks()["spots"]})
    alone = metrics["alone"]
    assert list(alone) == ["spots"]
    assert alone["spots"]["answers"] == single["steps"][0]["answers"] != metrics["steps"][1]["answers"]
    errors = [found["errors"]["spots"]["top1_error"] for found in (alone["spots"], metrics["steps"][1])]
    assert metrics["measures"]["forward_transfer"] == pytest.approx(errors[0] - errors[1])
    assert metrics["measures"]["seconds"] == without["measures"]["seconds"]
    assert [path.name for path in (folder / "alone" / "2_spots").iterdir()] == ["result.json"]
    monkeypatch.setattr(runner_module, "train_task", _forbidden)
    assert _run(folder, "ewc", forward_transfer=True) == metrics


@pytest.mark.slow
@pytest.mark.parametrize("method", ["piggyback", "joint"])
def test_forward_transfer_of_methods_that_learn_in_no_order(method, tmp_path):
    metrics = _run(tmp_path, method, forward_transfer=not METHODS[method].Config.at_once, task_agnostic=False)
    assert metrics["measures"]["forward_transfer"] == (None if method == "joint" else 0.0)
    assert not (tmp_path / "alone").exists()


def test_what_has_no_forward_transfer_refuses_it():
    with pytest.raises(ValueError, match="joint learns all tasks at once, none after another"):
        dataclasses.replace(toy_settings("joint"), forward_transfer=True)


def _command(folder, *flags):
    return run_forked("train.py", f"--output_dir={folder}", "--backbone=shapesnet", *flags)


SHORT = ["--tasks=a=digits,b=digits", "--epochs=1", "--batch_size=256", "--chance_epochs=0"]


def test_the_command_prints_and_reports_it(tmp_path):
    done = _command(
        tmp_path / "run", *SHORT, "--method=classifier_only", "--augment_train=resize(32,32)", "--forward_transfer"
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (metrics,) = json.loads((tmp_path / "run" / "metrics.json").read_text())["methods"].values()
    # Both tasks are the same, and so are their networks: the first is always taken.
    measured = metrics["task_agnostic"]["entropy"]
    assert measured["task_id_accuracy"] == 50.0
    assert measured["by_task"]["b"]["class_incremental_error"] == 100.0
    (row,) = [line for line in done.stdout.splitlines() if line.startswith("| entropy")]
    report = (tmp_path / "run" / "report.md").read_text().splitlines()
    assert row in report and "- forward transfer: +0.00 points" in report


@pytest.mark.slow
def test_forward_transfer_can_be_measured_later(tmp_path):
    def run(*flags):
        flags = (*SHORT, "--method=finetune_sequential", "--augment_train=resize(32,32)", *flags)
        done = _command(tmp_path / "run", *flags)
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads((tmp_path / "run" / "metrics.json").read_text())["methods"]["finetune_sequential"]

    before, after = run("--notask_agnostic"), run("--notask_agnostic", "--forward_transfer")
    assert before["steps"] == after["steps"] and "task_agnostic" not in after
    assert before["measures"]["forward_transfer"] is None
    error = after["alone"]["b"]["errors"]["b"]["top1_error"] - after["steps"][1]["errors"]["b"]["top1_error"]
    assert after["measures"]["forward_transfer"] == pytest.approx(error)
    assert f"- forward transfer: {error:+.2f} points" in (tmp_path / "run" / "report.md").read_text()
    at_last = run("--forward_transfer")
    assert at_last.pop("task_agnostic")["entropy"]["task_id_accuracy"] > 0
    assert at_last == after


def test_the_command_refuses_flags_that_would_do_nothing(tmp_path):
    refused = {
        "--data=digits --forward_transfer": "go with --tasks.",
        "--data=digits --notask_agnostic": "go with --tasks.",
        "--tasks=a=digits --method=joint --forward_transfer": "learns all tasks at once, none after another",
    }
    for flags, sentence in refused.items():
        done = _command(tmp_path / "run", *flags.split())
        assert done.returncode == 2
        assert sentence in done.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("method", "again"),
    [
        ("piggyback", False),
        *(pytest.param(*pair, marks=pytest.mark.slow) for pair in (("finetune_sequential", False), ("ewc", True))),
    ],
)
def test_training_images_are_read_again_only_by_methods_that_need_them(method, again, tmp_path, monkeypatch):
    streamed = []

    def stream(source, *arguments, **options):
        streamed.append(source)
        assert options.pop("cache") == "existing"
        yield from real(source, *arguments, **options)

    real = runner_module.stream_batches
    monkeypatch.setattr(runner_module, "stream_batches", stream)
    tasks = {name: _two_classes(name) for name in ("a", "b")}
    _run(tmp_path, method, tasks, task_agnostic=False)
    assert streamed == ([data.train for data in tasks.values()] if again else [])
