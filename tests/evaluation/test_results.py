"""The one shape of results, and that what the first version wrote still means the same."""

import json
from pathlib import Path

import pytest

from piggyback_tf.evaluation.continual import measures
from piggyback_tf.evaluation.report import summary, write_report
from piggyback_tf.evaluation.results import (
    FORMAT,
    ResultsError,
    read_metrics,
    read_result,
    read_sequence,
    write_metrics,
    write_result,
)
from tests.evaluation.run_folders import cells_of, errors, sequence, table_of, write_sequence, write_single
from tests.run_command import run_command

# The `metrics.json` and `settings.json` of runs of the first version, with some layers left out.
VERSION1 = Path(__file__).parent / "version1"


def _of_version1(name, folder):
    """Writes a folder as the first version left it; returns its metrics and its settings."""
    content = json.loads((VERSION1 / f"{name}.json").read_text())
    folder.mkdir()
    for part, value in content.items():
        (folder / f"{part}.json").write_text(json.dumps(value))
    return content["metrics"], content["settings"]


def test_a_run_of_one_task_is_read_as_a_sequence_of_one(tmp_path):
    old, _ = _of_version1("single", tmp_path / "run")
    metrics = read_metrics(tmp_path / "run" / "metrics.json")
    assert (metrics["format"], list(metrics["methods"])) == (FORMAT, ["classifier_only", "finetune", "piggyback"])
    assert metrics["data"] == {"digits_0-4": "digits:0-4"}
    assert metrics["skipped_images"] == {"digits_0-4": {"train": 0, "validation": 0, "test": 0}}
    for name, before in old["methods"].items():
        found = metrics["methods"][name]
        (step,) = found["steps"]
        assert step["errors"] == {"digits_0-4": before["test"]}
        assert step["validation"] == {"digits_0-4": before["validation"]}
        assert step["history"] == before["history"], "it was in percent"
        assert (step["bytes"]["base"], step["bytes"]["compressed"]) == (
            before["bytes"]["base"],
            before["bytes"]["task"],
        )
        plain = None if name != "finetune" else before["bytes"]["task"]
        assert step["bytes"]["added"] == plain
        assert step["bytes"]["system"] == (None if plain is None else before["bytes"]["base"] + plain)
        assert found["measures"]["average_error"] == before["test"]["top1_error"]
        assert found["measures"]["seconds"] == before["seconds"]
        assert found["base_hash"] == old["base_hash"]


def test_a_run_of_several_tasks_has_its_histories_in_percent(tmp_path):
    old, _ = _of_version1("sequence", tmp_path / "run")
    metrics = read_metrics(tmp_path / "run" / "metrics.json")
    (found,) = metrics["methods"].values()
    for step, before in zip(found["steps"], old["steps"], strict=True):
        assert step["history"]["val_error"] == pytest.approx([100 * error for error in before["history"]["val_error"]])
        assert step["history"]["val_loss"] == before["history"]["val_loss"]
        assert {**step, "history": None} == {**before, "history": None}
    assert {name: found[name] for name in ("measures", "task_agnostic")} == {
        name: old[name] for name in ("measures", "task_agnostic")
    }
    assert metrics["left_out"] == old["left_out"]


@pytest.mark.parametrize("name", ["single", "sequence"])
def test_what_is_read_is_the_shape_of_today(name, tmp_path):
    _of_version1(name, tmp_path / "run")
    metrics = read_metrics(tmp_path / "run" / "metrics.json")
    write_metrics(tmp_path / "again.json", metrics)
    assert read_metrics(tmp_path / "again.json") == metrics
    # Measures that were worked out anew are those that were written.
    for found in metrics["methods"].values():
        for name, value in measures(found).items():
            assert value == (found["measures"][name] and pytest.approx(found["measures"][name], rel=1e-4))
    assert write_report(tmp_path, metrics).read_text().count("| 37.22") == len(metrics["methods"]["piggyback"]["steps"])
    assert any("37.22" in line for line in summary(metrics))


@pytest.mark.parametrize("name", ["single", "sequence"])
def test_a_finished_run_of_the_first_version_is_finished(name, tmp_path):
    """Its table is printed again, without TensorFlow."""
    _, settings = _of_version1(name, tmp_path / "run")
    named = {"data": None, "tasks": None} | settings
    given = {setting: value for setting, value in named.items() if value not in (None, [], "")}
    flags = [
        f"--{setting}={','.join(value) if isinstance(value, list) else value}"
        for setting, value in given.items()
        if setting not in ("baseline", "baseline_settings")
    ]
    flags += [f"--baseline={baseline}" for baseline in settings["baseline"]]
    # Rates of baselines with recipes of their own would hold for those, too.
    flags = [flag for flag in flags if not flag.startswith(("--weights_", "--warmup_steps"))]
    status, lines, _, loaded = run_command("train", *flags, f"--output_dir={tmp_path / 'run'}")
    assert (status, loaded) == (0, False)
    assert any(line.startswith(("| piggyback ", "| b ")) for line in lines)
    assert not (tmp_path / "run" / "report.md").exists()


@pytest.mark.parametrize("layout", ["survey", "paper2", "paper6"])
def test_tables_of_both_shapes_are_equal(layout, tmp_path):
    runs = [
        write_single(tmp_path / "cubs", "cubs", {"classifier_only": 40.0, "finetune": 21.0, "piggyback": 20.0}),
        write_single(tmp_path / "cars", "cars", {"piggyback": errors(12.0, top5_error=2.0)}),
        write_sequence(
            tmp_path / "packnet", sequence("packnet", {"cubs": {"cubs": 22}, "cars": {"cubs": 22, "cars": 15}})
        ),
        write_sequence(tmp_path / "joint", sequence("joint", {"cubs": {}, "cars": {"cubs": 30, "cars": 16}})),
    ]
    before = cells_of(table_of(layout, *runs))
    for run in runs:
        write_metrics(Path(run) / "metrics.json", read_metrics(Path(run) / "metrics.json"))
    assert cells_of(table_of(layout, *runs)) == before


def test_results_of_single_trainings(tmp_path):
    """What a run wrote before it was killed: a baseline's result, or that of an earlier task."""
    single = {"test": errors(3.0), "validation": errors(4.0), "file": "a.keras", "bytes": {"task": 5, "base": 7}}
    (tmp_path / "result.json").write_text(json.dumps(single | {"history": {"error": [30.0]}}))
    step = read_result(tmp_path / "result.json", "a")
    assert (step["errors"], step["validation"]) == ({"a": errors(3.0)}, {"a": errors(4.0)})
    assert step["bytes"] == {"base": 7, "added": 5, "compressed": 5, "system": 12, "learning": 0}
    assert step["history"] == {"error": [30.0]}
    (tmp_path / "result.json").write_text(json.dumps({"errors": {"a": errors(3.0)}, "history": {"error": [0.25]}}))
    assert read_result(tmp_path / "result.json", "a") == {"errors": {"a": errors(3.0)}, "history": {"error": [25.0]}}
    write_result(tmp_path / "result.json", step)
    assert read_result(tmp_path / "result.json", "a") == step


def test_rows_of_the_benchmark():
    row = sequence("ewc", {"a": {"a": 1}})
    row["steps"][0]["history"] = {"error": [0.5], "loss": [0.5]}
    row["alone"] = {"b": {"errors": {}, "history": {"val_error": [0.25]}}}
    found = read_sequence(row)
    assert found["steps"][0]["history"] == {"error": [50.0], "loss": [0.5]}
    assert found["alone"]["b"]["history"] == {"val_error": [25.0]}
    assert read_sequence({"format": FORMAT, **found}) == {"format": FORMAT, **found}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"format": 3}', "metrics.json' has format 3, and this version of piggyback_tf reads up to 2"),
        ('{"methods": ', "metrics.json' is no JSON file"),
        ("{}", "metrics.json' does not hold what a run writes: KeyError"),
        ("[1]", "metrics.json' does not hold what a run writes"),
    ],
)
def test_what_cannot_be_read_gets_a_sentence(text, message, tmp_path):
    (tmp_path / "metrics.json").write_text(text)
    with pytest.raises(ResultsError, match=message):
        read_metrics(tmp_path / "metrics.json")


def test_a_task_without_a_test_split_has_no_measures_of_errors():
    found = measures({"method": "piggyback", "tasks": ["a"], "sequential": False, "steps": [{"errors": {}}]})
    assert found["average_error"] is found["forgetting"] is found["forward_transfer"] is None
