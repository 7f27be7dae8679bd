"""The command `reproduce`: its runs are what configs/ holds, what it lists, runs, refuses, and the table at its end."""

import json
import re
import shlex
from pathlib import Path

import pytest
from absl import flags

from piggyback_tf import flags as own_flags
from piggyback_tf.__main__ import main
from piggyback_tf.commands.reproduce_needs import NETWORKS
from piggyback_tf.commands.reproduce_plan import COLUMNS, TABLES, figures
from piggyback_tf.data.tfds_builder import parse_options
from piggyback_tf.evaluation.decathlon import DOMAINS
from piggyback_tf.methods import METHODS
from piggyback_tf.sequences import parse_tasks
from piggyback_tf.training import TrainConfig
from tests.evaluation.run_folders import sequence, write_sequence, write_single
from tests.flag_values import defined_flags
from tests.run_command import ROOT, run_command

CONFIGS = ROOT / "configs"
SETS = ("cubs", "cars", "flowers", "wikiart", "sketch")
# What configs/ has besides the paper's tables: first steps, segments, other sequences and another base for table 8, the
# base's own set, and Places365 on networks of which the paper has no row.
OTHER = {
    *("quickstart", "camvid_mobilenet_v2", "voc_vgg16", "data/voc", "bases/decathlon_imagenet64", "data/imagenet64"),
    *(f"imagenet_{network}" for network in ("vgg16", "resnet50", "densenet121")),
    *("data/imagenet", "places365_resnet50", "places365_densenet121"),
    *(f"sequences/{name}" for name in ("digits", "digits_held", "digits_replay", "decathlon", "sketch_art_textures")),
    *("sequences/sketch_streets_textures", "sequences/textures_art_sketch"),
}
FLAGS = flags.FLAGS


@pytest.fixture(autouse=True)
def _checkout(monkeypatch):
    monkeypatch.chdir(ROOT)


def _listed(table, capsys, *arguments):
    assert main(["reproduce", table, "--dry_run", "--json", *map(str, arguments)]) == 0
    return json.loads(capsys.readouterr().out)


def _refusal(capsys, *arguments):
    assert main(["reproduce", *map(str, arguments)]) == 2
    return capsys.readouterr().err


def _with_included(name: str) -> set[str]:
    text = (CONFIGS / f"{name}.flags").read_text()
    found = re.findall(r"^--flagfile=configs/(\S+)\.flags$", text, re.MULTILINE)
    return {name}.union(*map(_with_included, found))


def test_the_runs_of_all_tables_are_what_configs_holds(capsys):
    files = set()
    for table in TABLES:
        for run in _listed(table, capsys)["runs"]:
            for name in re.findall(r"--flagfile=configs/(\S+)\.flags", run["command"]):
                files |= _with_included(name)
    held = {str(path.relative_to(CONFIGS).with_suffix("")) for path in CONFIGS.rglob("*.flags")}
    assert files - held == set() and held - files == OTHER


@pytest.mark.parametrize("table", TABLES)
def test_every_command_is_one_that_train_understands(table, capsys):
    listed = _listed(table, capsys, "--data_root=/elsewhere", "--data_dir=/tfds", "--output_dir=/big", "--seeds=0,3")
    places = {need["place"] for need in listed["data"]}
    plan = {run.folder: run for run in TABLES[table].runs}
    assert len({run["folder"] for run in listed["runs"]}) == len(listed["runs"])
    with defined_flags() as parse:
        for run in listed["runs"]:
            program, script, *arguments = shlex.split(run["command"])
            assert (program, script) == ("python", "train.py")
            assert len(parse(*arguments)) == 1
            assert (FLAGS.output_dir, FLAGS.seed, FLAGS.data_dir) == (run["folder"], run["seed"], "/tfds")
            assert FLAGS.output_dir.startswith("/big/")
            config = own_flags.read_config(TrainConfig, METHODS[FLAGS.method].Config.recipe)
            own_flags.read_config(METHODS[FLAGS.method].Config)
            # What the command reads of the files is what absl does.
            own = plan[run["name"].removesuffix(f"_seed{run['seed']}")].flags
            assert (own["method"], own["backbone"]) == (FLAGS.method, FLAGS.backbone)
            assert config.epochs == int(own["epochs"]) and bool(FLAGS.data) != bool(FLAGS.tasks)
            for spec in parse_tasks(FLAGS.tasks).values() if FLAGS.tasks else [FLAGS.data]:
                kind, _, argument = spec.partition(":")
                name, _, query = argument.partition("?")
                assert (f"/tfds/{name}" if kind == "tfds" else argument) in places
                assert kind == "tfds" or argument.startswith("/elsewhere/")
                assert kind == "folder" or set(parse_options(query, spec)) == {"train", "test"}
            if run["needs"]:
                assert FLAGS.weights.startswith(f"/big/{run['needs']}/") and FLAGS.weights.endswith(".keras")
                assert any(other["name"] == run["needs"] for other in listed["runs"])


def test_the_documentation_counts_the_runs():
    counts = re.findall(r"^\| `(\w+)` \|.*\| (\d+) \|", (ROOT / "docs" / "reproduce.md").read_text(), re.MULTILINE)
    assert counts == [(name, str(len(table.runs))) for name, table in TABLES.items()]


def test_a_network_that_others_start_from_is_trained_once_and_first(capsys):
    names = [run["name"] for run in _listed("table5", capsys, "--seeds=0,1")["runs"]]
    assert names.count("bases/places365_resnet50") == 1
    assert names.index("bases/places365_resnet50") < names.index("cubs_resnet50_places365")
    assert {"cubs_resnet50_places365_seed1", "cubs_resnet50_random", "cubs_resnet50"} <= {*names}
    runs = _listed("table8", capsys)["runs"]
    assert runs[0]["name"] == "bases/decathlon" and {run["needs"] for run in runs[1:]} == {"bases/decathlon"}
    assert {run["name"] for run in runs[1:11]} == {f"decathlon/{domain}" for domain in DOMAINS}


def test_the_papers_figures_are_read_from_the_files():
    for table in ("table2", "table4", "table8"):
        for run in TABLES[table].runs:
            if not run.folder.startswith(("sequences", "bases")):
                assert {*COLUMNS[:3]} <= figures(run).keys(), run.folder
    for run in TABLES["table6"].runs:
        assert figures(run)["zeros"]
    found = {run.folder: figures(run) for run in TABLES["table7"].runs}["wikiart_resnet50"]
    assert found == {
        "piggyback": "28.67",
        "classifier only": "44.40",
        "individual networks": "24.40",
        "trained batch norm": "25.92",
        "zeros": "29 to 34",
    }


def test_what_a_table_needs_is_listed_without_tensorflow(tmp_path):
    (tmp_path / "sketch" / "train").mkdir(parents=True)
    write_single(tmp_path / "runs" / "sketch_vgg16", "sketch", {"piggyback": 23.0})
    status, lines, errors, loaded = run_command(
        "reproduce", "table2", "--dry_run", f"--data_root={tmp_path}", f"--output_dir={tmp_path / 'runs'}"
    )
    assert (status, errors, loaded) == (0, "", False)
    text = "\n".join(lines)
    assert "\nsketch_vgg16 (finished; paper: error of 22.70 %; " in text
    assert "\ncubs_vgg16_individual (not finished; paper: error of 21.30 %; " in text
    assert "\nsequences/paper_vgg16_packnet (not finished; paper: no figure at hand; " in text
    assert f"folder:{tmp_path}/sketch: {tmp_path}/sketch is there" in text
    assert f"{tmp_path}/cubs_cropped is missing\n    Caltech-UCSD Birds-200-2011: " in text
    assert "https://www.vision.caltech.edu/datasets/cub_200_2011/" in text
    assert re.search(r"oxford_flowers102 is downloaded by the first run|oxford_flowers102 is there", text)
    assert lines[-1].startswith("17 runs, 1 finished. The rest takes about ")


def test_hours_and_space_follow_from_network_images_and_epochs(capsys):
    runs = {run["name"]: run for run in _listed("table2", capsys)["runs"]}
    multiply_adds, weights = NETWORKS["vgg16_torch"]
    hours = 3 * 2 * multiply_adds * 5994 * 30 / 1e13 / 3600
    assert runs["cubs_vgg16"]["gpu_hours"] == pytest.approx(hours, abs=0.01)
    assert runs["cubs_vgg16_classifier_only"]["gpu_hours"] == pytest.approx(hours / 3, abs=0.01)
    assert runs["cubs_vgg16"]["disk_bytes"] == weights // 8
    assert runs["cubs_vgg16_individual"]["disk_bytes"] == 4 * weights
    images = 5994 + 8144 + 2040 + 42129 + 16000
    assert runs["sequences/paper_vgg16_packnet"]["gpu_hours"] == pytest.approx(hours * images / 5994, abs=0.01)
    assert all(run["gpu_hours"] and run["disk_bytes"] is not None for run in runs.values())


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_networks_take_what_is_said_of_them(name):
    from piggyback_tf.backbones import load_backbone
    from piggyback_tf.sequences.measure import multiply_adds

    model = load_backbone(name, weights="random").model
    assert (multiply_adds(model), sum(weight.value.shape.num_elements() for weight in model.weights)) == NETWORKS[name]


def test_runs_are_chosen_by_name_and_by_part(capsys):
    names = [run["name"] for run in _listed("table2", capsys, "--only=cubs*", "--only=sequences/*")["runs"]]
    assert names[:3] == ["cubs_vgg16", "cubs_vgg16_classifier_only", "cubs_vgg16_individual"] and len(names) == 5
    parts = [[run["name"] for run in _listed("table2", capsys, f"--part={part}/3")["runs"]] for part in (1, 2, 3)]
    assert sorted(sum(parts, [])) == sorted(run.folder for run in TABLES["table2"].runs)
    assert [len(part) for part in parts] == [6, 6, 5]


def test_wrong_arguments_are_refused(capsys, tmp_path, monkeypatch):
    said = _refusal(capsys, "table2", f"--data_root={tmp_path}", "--only=cubs_vgg16")
    assert f"{tmp_path}/cubs_cropped, for folder:" in said and "CUB_200_2011.tgz" in said and "--data_root" in said
    assert "no run of table2 has such a name. Runs: cubs_vgg16," in _refusal(capsys, "table2", "--only=birds*")
    assert "must be I/N with I from 1 to N" in _refusal(capsys, "table2", "--part=4/3")
    assert "must be integers of at least 0" in _refusal(capsys, "table2", "--seeds=1,1")
    assert "table8" in _refusal(capsys, "table9")
    monkeypatch.chdir(tmp_path)
    assert "Run this in the folder of a checkout" in _refusal(capsys, "table2", "--dry_run")


def _write_finished(folder: Path) -> None:
    """Writes the runs of table 2 for two sets, as if they were finished; masks with two seeds."""
    base = {"backbone": "vgg16_torch", "weights": "hf://timm/vgg16.tv_in1k"}
    for place, task in enumerate(("cubs", "cars")):
        write_single(folder / f"{task}_vgg16", task, {"piggyback": 20.0 + place}, **base)
        write_single(folder / f"{task}_vgg16_seed1", task, {"piggyback": 22.0 + place}, seed=1, **base)
        write_single(folder / f"{task}_vgg16_classifier_only", task, {"classifier_only": 35.0}, **base)
        write_single(folder / f"{task}_vgg16_individual", task, {"finetune": 21.0}, norm="task", **base)
    steps = {"cubs": {"cubs": 22}, "cars": {"cubs": 22, "cars": 15}}
    write_sequence(folder / "sequences" / "paper_vgg16_packnet", sequence("packnet", steps), **base)


def test_figures_stand_behind_their_column(tmp_path, capsys):
    for name in ("cubs_cropped", "cars_cropped"):
        (tmp_path / name / "train").mkdir(parents=True)
    runs = tmp_path / "runs"
    _write_finished(runs)
    asked = ["reproduce", "table2", f"--data_root={tmp_path}", f"--output_dir={runs}", "--seeds=0,1"]
    assert main([*asked, "--only=cubs_vgg16", "--json"]) == 0
    printed = capsys.readouterr()
    assert "run 1 of 1, cubs_vgg16: finished before." in printed.err
    table = json.loads(printed.out)["result"]
    assert table["header"] == [
        *("task", "Classifier Only", "paper", "PackNet ↓", "Piggyback", "paper", "Individual Networks", "paper")
    ]
    cubs, cars, _ = table["rows"]
    assert [cubs[place] for place in (0, 2, 5, 7)] == ["cubs", "36.49", "20.99", "21.30"]
    assert [cars[place] for place in (0, 2, 5, 7)] == ["cars", "54.66", "11.87", "12.49"]
    assert (cubs[4]["value"], cars[4]["value"]) == (21, 22) and cubs[4]["spread"] > 1
    assert main([*asked, "--only=cubs_vgg16"]) == 0
    assert "9 of 34 runs of table2" in capsys.readouterr().out


def test_a_finished_run_with_other_settings_is_not_taken_for_it(tmp_path, capsys):
    (tmp_path / "cubs_cropped" / "train").mkdir(parents=True)
    runs = tmp_path / "runs"
    _write_finished(runs)
    write_single(runs / "cubs_vgg16", "cubs", {"piggyback": 60.0}, backbone="vgg16_torch", epochs=1)
    asked = ["table2", f"--data_root={tmp_path}", f"--output_dir={runs}", "--only=cubs_vgg16"]
    assert "has epochs=1, and that of the table has epochs=30" in _refusal(capsys, *asked)


@pytest.mark.parametrize(
    ("table", "runs", "header", "row"),
    [
        (
            "table4",
            {"wikiart_resnet50": {}, "wikiart_resnet50_individual": {"method": "finetune", "norm": "task"}},
            ["network", "task", "Piggyback", "paper", "Individual Networks", "paper"],
            ["resnet50_torch", "wikiart", None, "28.67", None, "24.40"],
        ),
        (
            "table5",
            {"wikiart_resnet50": {}, "wikiart_resnet50_random": {"weights": "random", "base_hash": "cd" * 32}},
            ["task", "resnet50_torch, resnet50.tv_in1k", "paper", "resnet50_torch, random"],
            ["wikiart", None, "28.67", None],
        ),
        ("table6", {"wikiart_resnet50": {}}, ["task", "resnet50_torch", "paper"], ["wikiart", None, "29 to 34"]),
        (
            "table7",
            {"wikiart_resnet50": {}, "wikiart_resnet50_trained_norm": {"norm": "task"}},
            ["network", "task", "fixed batch norm", "paper", "trained batch norm", "paper"],
            ["resnet50_torch", "wikiart", None, "28.67", None, "25.92"],
        ),
    ],
)
def test_each_table_has_figures_at_its_own_places(table, runs, header, row, tmp_path, capsys):
    (tmp_path / "wikiart" / "train").mkdir(parents=True)
    usual = {"backbone": "resnet50_torch", "weights": "hf://timm/resnet50.tv_in1k"}
    for name, changes in runs.items():
        settings = usual | changes
        write_single(tmp_path / "runs" / name, "wikiart", {settings.pop("method", "piggyback"): 30.0}, **settings)
    asked = ["reproduce", table, f"--data_root={tmp_path}", f"--output_dir={tmp_path / 'runs'}", "--json"]
    assert main([*asked, "--only=wikiart_resnet50"]) == 0
    result = json.loads(capsys.readouterr().out)["result"]
    assert result["header"] == header
    assert [cell if isinstance(cell, str) else None for cell in result["rows"][0]] == row


def test_finished_runs_need_neither_data_nor_their_base(tmp_path, capsys):
    places = {"backbone": "resnet50_torch", "weights": "runs/bases/places365_resnet50/places365.keras"}
    for task in SETS:
        write_single(tmp_path / f"{task}_resnet50_places365", task, {"piggyback": 30.0}, **places)
    asked = ["reproduce", "table5", f"--data_root={tmp_path}/no", f"--output_dir={tmp_path}", "--json"]
    assert main([*asked, "--only=*_places365", "--only=bases/*"]) == 0
    printed = capsys.readouterr()
    assert "bases/places365_resnet50: needed by none." in printed.err
    result = json.loads(printed.out)["result"]
    assert result["header"] == ["task", "resnet50_torch, places365.keras"] and len(result["rows"]) == len(SETS)


TINY = """--data=digits:0-3
--task={task}
--backbone=shapesnet
--method=piggyback
--norm=frozen
--epochs=1
--batch_size=256
--chance_epochs=0
--verbose=0
--notensorboard
--output_dir=runs/{task}_vgg16
"""


@pytest.mark.slow
def test_runs_go_on_where_one_fails_and_are_not_done_twice(tmp_path, monkeypatch, capfd):
    (tmp_path / "configs").mkdir()
    for task in SETS:
        name = "flowers" if task == "flowers" else f"{task}_vgg16"
        (tmp_path / "configs" / f"{name}.flags").write_text(TINY.format(task=task))
    broken = tmp_path / "configs" / "cars_vgg16.flags"
    broken.write_text(TINY.format(task="cars") + "--batch_size=0\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    assert main(["reproduce", "figure3", "--only=c*", "--json"]) == 2
    printed = capfd.readouterr()
    found = json.loads(printed.out)
    assert {run["name"]: (run["finished"], run.get("error")) for run in found["runs"]} == {
        "cubs_vgg16": (True, None),
        "cars_vgg16": (False, "it ended with status 2"),
    }
    assert "cars_vgg16 is not finished: it ended with status 2" in printed.err
    assert [Path(plot).name for plot in found["result"]["plots"]][0] == "zeros.png"
    before = (tmp_path / "runs" / "cubs_vgg16" / "metrics.json").stat().st_mtime_ns
    broken.write_text(TINY.format(task="cars"))
    assert main(["reproduce", "figure3", "--only=c*"]) == 0
    printed = capfd.readouterr()
    assert "cubs_vgg16: finished before." in printed.err and "2 of 5 runs of figure3" in printed.out
    assert (tmp_path / "runs" / "cubs_vgg16" / "metrics.json").stat().st_mtime_ns == before
    assert (tmp_path / "runs" / "figure3" / "zeros.png").stat().st_size > 500
