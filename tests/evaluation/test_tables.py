"""Tables of runs: what stands in them."""

import math
import statistics

import pytest

from piggyback_tf.evaluation.tables import make_table, read_benchmark, read_runs
from tests.evaluation.run_folders import (
    BASE,
    cells_of,
    errors,
    sequence,
    table_of,
    write_packnet,
    write_sequence,
    write_single,
)
from tests.packs.helpers import make_pack


@pytest.fixture(name="packnet")
def _packnet(tmp_path):
    return write_packnet(tmp_path)


# ---------------------------------------------------------------------------------------------------------------- paper


def test_paper2(tmp_path, packnet):
    for task, top1 in (("cubs", 20.0), ("cars", 12.0)):
        write_single(tmp_path / task, task, {"classifier_only": 3 * top1, "piggyback": top1})
        write_single(tmp_path / f"{task}_1", task, {"piggyback": top1 + 1}, seed=1)
        write_single(tmp_path / f"{task}_net", task, {"finetune": top1 + 0.5})
    write_sequence(tmp_path / "ewc", sequence("ewc", {"cubs": {"cubs": 1}}))
    runs = [tmp_path / name for name in ("cubs", "cars", "cubs_1", "cars_1", "cubs_net", "cars_net", "ewc")]
    table = table_of("paper2", *runs, *packnet)
    columns = ["Classifier Only", "PackNet ↓", "PackNet ↑", "Piggyback", "Individual Networks"]
    assert list(table.header) == ["task", *columns]
    plain = sum(len(make_pack(task=task, seed=4).to_bytes("bits")) for task in ("cubs", "cars"))
    assert [row[1:] for row in [list(row) for row in _rows(table)]] == [
        ["60.00", "22.00", "25.00", "20.50 ± 0.71", "20.50"],
        ["36.00", "15.00", "13.00", "12.50 ± 0.71", "12.50"],
        ["", "1 (1 MB)", "1 (1 MB)", f"1 ({(BASE + plain) / 1e6:.3g} MB)", "3 (3 MB)"],
    ]
    notes = " ".join(table.notes)
    assert "Not in this layout: ewc." in notes
    assert "(PackNet ↓: cubs; PackNet ↑: cars)" in notes


def _rows(table):
    return [["" if cell is None else str(cell) for cell in row] for row in table.rows]


def test_paper2_where_packnet_begins_with_the_data_of_the_base(tmp_path):
    for task, top1 in (("cubs", 20.0), ("cars", 12.0)):
        write_single(tmp_path / task, task, {"classifier_only": 3 * top1, "piggyback": top1})
    runs = [tmp_path / "cubs", tmp_path / "cars"]
    for name, one, two in (("down", "cubs", "cars"), ("up", "cars", "cubs")):
        first = {"imagenet": 30.0}
        steps = {"imagenet": first, one: first | {one: 14.0}, two: first | {one: 14.0, two: 16.0}}
        runs.append(write_sequence(tmp_path / name, sequence("packnet", steps, replaces=True, added=BASE + 999)))
    table = table_of("paper2", *runs)
    assert list(table.header) == ["task", "Classifier Only", "PackNet ↓", "PackNet ↑", "Piggyback"]
    rows = {row[0]: row[1:] for row in _rows(table)}
    assert rows["imagenet"] == ["", "30.00", "30.00", ""]
    assert rows["cubs"] == ["60.00", "14.00", "16.00", "20.00"]
    assert rows["models (size)"][1:3] == ["1 (1 MB)", "1 (1 MB)"] and rows["models (size)"][3].startswith("1 (")
    notes = " ".join(table.notes)
    assert "retrains it on imagenet" in notes and "in the paper, that is" not in notes


def test_a_missing_cell_stays_empty(tmp_path):
    one = write_single(tmp_path / "cubs", "cubs", {"classifier_only": 40, "piggyback": 20})
    two = write_single(tmp_path / "cars", "cars", {"finetune": 9})
    cells = cells_of(table_of("paper2", one, two))
    assert cells["cubs"]["Individual Networks"] == cells["cars"]["Piggyback"] == ""
    # Without both tasks, nobody knows what they take together.
    assert set(cells["models (size)"].values()) == {""}
    lone = write_single(tmp_path / "lone", "cubs", {"piggyback": 20}, pack=False)
    assert cells_of(table_of("paper2", lone))["models (size)"]["Piggyback"] == "", "the plain size is that of a pack"


def test_paper3_has_joint_training_and_top5_errors(tmp_path):
    joint = sequence("joint", {"imagenet": {}, "places": {"imagenet": errors(33.5, top5_error=12.25), "places": 50}})
    table = table_of(
        "paper3",
        write_sequence(tmp_path / "joint", joint),
        write_single(tmp_path / "places", "places", {"piggyback": errors(46.7, top5_error=16.0)}),
    )
    cells = cells_of(table)
    assert cells["imagenet"] == {"Joint Training": "33.50 (12.25)", "Piggyback": ""}
    assert cells["places"] == {"Joint Training": "50.00", "Piggyback": "46.70 (16.00)"}
    assert "In brackets: top-5 errors." in table.notes
    few_classes = table_of("paper3", write_single(tmp_path / "few", "cubs", {"piggyback": 20.0}))
    assert not any("top-5" in note for note in few_classes.notes), "there are no brackets"


def test_paper4_has_a_block_for_each_network(tmp_path):
    runs = [
        write_single(tmp_path / "a", "cubs", {"piggyback": 18.0}, backbone="resnet50", base_hash="cd" * 32),
        write_single(tmp_path / "b", "cubs", {"piggyback": 21.0}),
        # Of these the batch size is no variant: it is another network's.
        write_single(tmp_path / "c", "cubs", {"finetune": 8.0}, backbone="densenet121", base_hash="ef" * 32, epochs=3),
    ]
    cells = cells_of(table_of("paper4", *runs))
    assert cells["resnet50/cubs"] == {"Piggyback": "18.00", "Individual Networks": ""}
    assert cells["densenet121/cubs"]["Individual Networks"] == "8.00"
    assert cells["vgg16/models (size)"]["Piggyback"].startswith("1 (1")


def test_paper5_by_what_network_and_masks_start_from(tmp_path):
    runs = [
        write_single(tmp_path / "a", "cubs", {"piggyback": 18.0}),
        write_single(tmp_path / "b", "cubs", {"piggyback": 27.0}, weights="w/places.h5", base_hash="cd" * 32),
        write_single(tmp_path / "c", "cubs", {"piggyback": 20.0}, mask_init="uniform"),
    ]
    assert cells_of(table_of("paper5", *runs))["cubs"] == {
        "vgg16, imagenet (mask_init=constant)": "18.00",
        "vgg16, places.h5 (mask_init=constant)": "27.00",
        "vgg16, imagenet (mask_init=uniform)": "20.00",
    }


def test_paper6_zeros_of_single_runs_and_of_packs(tmp_path):
    single = write_single(tmp_path / "a", "cubs", {"piggyback": 18.0})
    seeds = [
        write_sequence(
            tmp_path / f"b{seed}",
            sequence("piggyback", {"cars": {"cars": 9}, "cubs": {"cars": 9, "cubs": 18}}, base_hash="cd" * 32),
            packs=seed < 2,
            seed=seed,
            backbone="resnet50",
        )
        for seed in (0, 2)
    ]
    zeros = [100 * make_pack(seed=seed).zeros_total for seed in (4, 2)]
    cells = cells_of(table_of("paper6", single, seeds[0]))
    assert cells["cubs"] == {"vgg16": f"{zeros[0]:.2f}", "resnet50": f"{zeros[1]:.2f}"}
    assert "resnet50" not in cells_of(table_of("paper6", single, *seeds))["cubs"], "of one seed there are no packs"


def test_paper7_fixed_against_trained_batch_norm(tmp_path):
    runs = [
        write_single(tmp_path / "a", "art", {"piggyback": 25.92}, norm="task"),
        write_single(tmp_path / "b", "art", {"piggyback": 28.67}),
        write_single(tmp_path / "c", "art", {"piggyback": 30.67}, seed=1),
    ]
    table = table_of("paper7", *runs)
    assert list(table.header) == ["network", "task", "fixed batch norm", "trained batch norm"]
    assert _rows(table) == [["vgg16", "art", "29.67 ± 1.41", "25.92"]]


# --------------------------------------------------------------------------------------------------------------- survey


def _survey_rows():
    """Rows of the benchmark: two seeds of one method, a sequential one in both orders, and one that refused."""
    a, b = "sketch", "art"
    return {
        "classifier_only/forward/0": sequence("classifier_only", {a: {a: 40}, b: {a: 40, b: 50}}, added=100),
        "lwf/forward/0": sequence(
            "lwf",
            {a: {a: 9}, b: {a: 19, b: 30}},
            replaces=True,
            added=BASE + 50,
            learning=52_600_000,
            cost=250,
            measures={"forgetting": 10.0},
        ),
        "dan/forward/0": {"method": "dan", "refused": "DAN cannot mix layer 'x'."},
        "piggyback/forward/0": sequence("piggyback", {a: {a: 10}, b: {a: 10, b: 20}}),
        "piggyback/forward/1": sequence("piggyback", {a: {a: 14}, b: {a: 14, b: errors(20, images=400)}}),
        "lwf/reverse/0": sequence("lwf", {b: {b: 25}, a: {b: 29, a: 8}}, replaces=True, added=BASE + 50),
        "dan/forward/1": {"method": "dan", "refused": "DAN cannot mix layer 'x'."},
    }


def test_the_survey():
    table = make_table("survey", read_benchmark(_survey_rows()))
    cells = cells_of(table)
    assert list(cells) == ["classifier_only/↓", "lwf/↓", "lwf/↑", "dan/↓", "piggyback/↓"]
    half = 1.96 * math.sqrt((12 * 88 + 20 * 80) / 400) / 2
    assert cells["piggyback/↓"] == {
        "seeds": "2",
        "sketch %": "12.00 ± 2.83",
        "art %": "20.00 ± 0.00",
        "mean %": f"16.00 ± {statistics.stdev([15, 17]):.2f}",
        "95 % ±": f"{half:.2f}",
        "forgetting": "",
        "added": "5.0 kB",
        "compressed": "1.0 kB",
        "system": "1.0 MB",
        "learning": "0 bytes",
        "trained parameters": "140",
        "multiply-adds": "1.00",
        "time": "20 s",
    }
    assert cells["lwf/↓"]["forgetting"] == "10.00"
    assert cells["lwf/↓"]["multiply-adds"] == "2.50"
    assert cells["lwf/↓"]["learning"] == "52.6 MB"
    # The base is replaced: the compressed network is smaller than the base.
    assert (cells["lwf/↑"]["added"], cells["lwf/↑"]["compressed"]) == ("50 bytes", "-999.0 kB")
    assert set(cells["dan/↓"].values()) == {""}
    assert "dan, seed 0, 1: DAN cannot mix layer 'x'." in table.notes
    assert "backward transfer" not in table.header, "nothing was measured"


def test_a_single_run_counts_a_base_that_its_network_replaces_once(tmp_path):
    runs = [write_single(tmp_path / method, "cubs", {method: 20.0}) for method in ("ewc", "finetune")]
    cells = cells_of(make_table("survey", read_runs(runs)))
    sizes = [(row["added"], row["system"]) for row in cells.values()]
    assert sizes == [("10 bytes", "1.0 MB"), ("1.0 MB", "2.0 MB")]


def test_task_agnostic_measures_and_forward_transfer_are_columns_where_they_are():
    rows = _survey_rows()
    assert not any("class-incremental" in title for title in make_table("survey", read_benchmark(rows)).header)
    for seed, rate in ((0, 90.0), (1, 80.0)):
        found = {"task_id_accuracy": rate, "class_incremental_error": 30.0}
        rows[f"piggyback/forward/{seed}"]["task_agnostic"] = {"entropy": found}
        rows[f"piggyback/forward/{seed}"]["measures"]["forward_transfer"] = 1.5
    cells = cells_of(make_table("survey", read_benchmark(rows)))
    assert cells["piggyback/↓"]["task id %, entropy"] == "85.00 ± 7.07"
    assert cells["piggyback/↓"]["class-incremental %, entropy"] == "30.00 ± 0.00"
    assert cells["piggyback/↓"]["forward transfer"] == "1.50 ± 0.00"
    assert cells["lwf/↓"]["task id %, entropy"] == ""


def test_a_refused_seed_leaves_the_others():
    rows = _survey_rows()
    rows["piggyback/forward/1"] = {"method": "piggyback", "refused": "The training collapsed."}
    table = make_table("survey", read_benchmark(rows))
    assert cells_of(table)["piggyback/↓"]["sketch %"] == "10.00"
    assert "piggyback, seed 1: The training collapsed." in table.notes


def test_the_survey_of_folders(tmp_path, packnet):
    """Runs with a task each make one row, and their bytes and times are added; no order is claimed for them."""
    for task in ("cubs", "cars"):
        write_single(tmp_path / task, task, {"piggyback": 20.0})
    table = table_of("survey", tmp_path / "cubs", tmp_path / "cars", *packnet)
    cells = cells_of(table)
    assert list(cells) == ["piggyback/", "packnet/↓", "packnet/↑"]
    plain = sum(len(make_pack(task=task, seed=4).to_bytes("bits")) for task in ("cubs", "cars"))
    compressed = sum((tmp_path / task / f"{task}.task.safetensors").stat().st_size for task in ("cubs", "cars"))
    assert cells["piggyback/"]["added"] == f"{plain / 1000:.1f} kB"
    assert cells["piggyback/"]["compressed"] == f"{compressed / 1000:.1f} kB"
    assert cells["piggyback/"]["time"] == "120 s"
    assert cells["piggyback/"]["trained parameters"] == ""
    assert "multiply-adds" not in table.header, "there is no classifier_only to compare with"


def test_a_seed_with_fewer_tasks_counts_for_those(tmp_path):
    runs = [write_single(tmp_path / task, task, {"piggyback": 20.0}) for task in ("cubs", "cars")]
    runs.append(write_single(tmp_path / "other", "cubs", {"piggyback": 22.0}, seed=1))
    row = cells_of(table_of("survey", *runs))["piggyback/"]
    assert (row["cubs %"], row["cars %"], row["mean %"]) == ("21.00 ± 1.41", "20.00", "20.00")
    assert row["95 % ±"] == f"{1.96 * math.sqrt(2 * 20 * 80 / 400) / 2:.2f}"
    assert row["time"] == "120 s", "that of the seed with all tasks"


def test_settings_that_differ_name_rows_and_are_no_seeds(tmp_path):
    runs = [
        write_single(tmp_path / "a", "cubs", {"classifier_only": 40.0, "piggyback": 20.0}),
        write_single(tmp_path / "b", "cubs", {"classifier_only": 40.0, "piggyback": 22.0}, mask_init="uniform"),
        write_single(tmp_path / "c", "cubs", {"piggyback": 26.0}, mask_init="uniform", seed=1),
        # Errors that happen to be equal make no baseline of it.
        write_single(tmp_path / "d", "cubs", {"piggyback": 20.0}, mask_init="magnitude"),
    ]
    cells = cells_of(table_of("survey", *runs))
    assert {name: row["cubs %"] for name, row in cells.items()} == {
        # Trained again beside the second run, with the same errors.
        "classifier_only/": "40.00",
        "piggyback (mask_init=constant)/": "20.00",
        "piggyback (mask_init=uniform)/": "24.00 ± 2.83",
        "piggyback (mask_init=magnitude)/": "20.00",
    }


def test_baselines_with_other_recipes_are_no_seeds(tmp_path):
    runs = [
        write_single(
            tmp_path / name,
            "cubs",
            {"packnet": error, "piggyback": 20.0 + seed},
            weights_lr=1e-4,
            seed=seed,
            baseline_settings={"packnet": {"weights_lr": rate}} if rate else {},
        )
        for seed, (name, rate, error) in enumerate([("a", 1e-3, 30.0), ("b", 1e-3, 32.0), ("c", None, 80.0)])
    ]
    cells = cells_of(table_of("survey", *runs))
    assert {name: row["cubs %"] for name, row in cells.items()} == {
        "packnet (weights_lr=0.001)/": "31.00 ± 1.41",
        "packnet (weights_lr=0.0001)/": "80.00",
        "piggyback/": "21.00 ± 1.00",
    }
