"""Tables, plots and the report."""

import json

import numpy as np
import pytest
from PIL import Image

from piggyback_tf.evaluation import format_bytes, format_error, format_zeros, summary, write_report, zeros_table
from tests.packs.helpers import make_pack


def _errors(error):
    return {"top1_error": error, "top1_error_low": error - 1, "top1_error_high": error + 2, "images": 100}


def _metrics():
    history = {"cross_entropy": [1.5, 0.7, 0.3], "val_cross_entropy": [1.4, 0.9, 0.6]}
    history |= {"error": [40, 20, 9], "val_error": [38, 22, 15]}
    zeros = {f"block{i}/conv/kernel": 0.01 * i for i in range(20)}
    return _run(
        classifier_only={
            "errors": {"birds": _errors(30.0)},
            "validation": {"birds": _errors(29.0)},
            "bytes": {"compressed": 812, "base": 8_000_000},
            "history": history,
            "seconds": 61.4,
        },
        piggyback={
            "errors": {"birds": _errors(12.5) | {"top5_error": 2.25}},
            "validation": {"birds": _errors(12.0)},
            "zeros": zeros,
            "zeros_total": 0.0712,
            "bytes": {"compressed": 300_000, "base": 8_000_000},
            "history": history,
            "seconds": 171.2,
        },
    )


def _run(**steps):
    """Returns the metrics of a run of one task, from what each method measured."""
    return {"methods": {name: {"method": name, "tasks": ["birds"], "steps": [step]} for name, step in steps.items()}}


def _step(metrics):
    return metrics["methods"]["piggyback"]["steps"][0]


def test_the_report(tmp_path):
    # As it comes from the file.
    path = write_report(tmp_path, json.loads(json.dumps(_metrics())))
    assert path == tmp_path / "report.md"
    lines = path.read_text().splitlines()
    assert lines[0] == "# Task birds"
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    assert rows[0] == [
        "method", "test error %", "test top-5 error %", "validation error %", "zeros %", "task", "base", "task / base",
        "time",
    ]  # fmt: skip
    assert rows[2] == [
        "classifier_only", "30.00 [29.00, 32.00]", "-", "29.00 [28.00, 31.00]", "-", "812 bytes", "8.0 MB", "0.0 %",
        "61 s",
    ]  # fmt: skip
    assert rows[3] == [
        "piggyback", "12.50 [11.50, 14.50]", "2.25", "12.00 [11.00, 14.00]", "7.12", "300.0 kB", "8.0 MB", "3.8 %",
        "171 s",
    ]  # fmt: skip
    assert len({len(row) for row in rows}) == 1
    for name in ("zeros.png", "learning_curves.png"):
        assert f"({name})" in path.read_text()
        with Image.open(tmp_path / name) as image:
            pixels = np.asarray(image.convert("RGB"))
        assert min(pixels.shape[:2]) > 400
    assert sorted(path.name for path in tmp_path.iterdir()) == ["learning_curves.png", "report.md", "zeros.png"]


def test_masks_that_drop_nothing_are_named(tmp_path):
    metrics = _metrics()
    assert "what was learned is the head" not in write_report(tmp_path, metrics).read_text()
    _step(metrics)["zeros_total"] = 5e-5
    text = write_report(tmp_path, metrics).read_text()
    assert "The masks of piggyback drop 0.0050 % of the weights: what was learned is the head." in text
    assert "classifier_only drop" not in text


def test_no_zeros_and_no_top_5(tmp_path):
    metrics = _metrics()
    text = write_report(tmp_path, metrics).read_text()
    assert "Errors are top-1 and top-5 in percent" in text
    masks = _step(metrics)
    masks["zeros"], masks["zeros_total"] = dict.fromkeys(masks["zeros"], 0.0), 0.0
    del masks["errors"]["birds"]["top5_error"]
    text = write_report(tmp_path, metrics).read_text()
    assert "The masks of piggyback drop no weight: what was learned is the head." in text
    row = next(line for line in text.splitlines() if line.startswith("| piggyback "))
    assert "0.00" in [cell.strip() for cell in row.split("|")]
    assert "Errors are top-1 in percent" in text
    assert "top-5" not in text
    assert "zeros.png" not in text, "a plot of nothing"
    assert not (tmp_path / "zeros.png").exists()
    masks["zeros_total"] = 1e-9
    assert "drop less than 0.0001 % of the weights" in write_report(tmp_path, metrics).read_text()
    del metrics["methods"]["piggyback"]
    text = write_report(tmp_path, metrics).read_text()
    assert "*Zeros*" not in text
    assert "*Task* is what the task adds to the base." in text


def test_both_methods_are_drawn_in_colours_of_their_own(tmp_path):
    metrics = _metrics()
    metrics["methods"]["other"] = {**metrics["methods"]["piggyback"]}
    write_report(tmp_path, metrics)
    with Image.open(tmp_path / "zeros.png") as image:
        colours = {colour for count, colour in image.convert("RGB").getcolors(1 << 24) if count > 2000}
    # The second and the third of the palette: a method has the same colour in both plots.
    assert {(0xD5, 0x5E, 0x00), (0x00, 0x9E, 0x73)} <= colours
    assert (0x00, 0x72, 0xB2) not in colours


def test_equal_metrics_give_equal_files(tmp_path):
    files = []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        write_report(tmp_path / name, _metrics())
        files.append({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()})
    assert files[0] == files[1]


def test_what_was_not_measured_is_left_out(tmp_path):
    write_report(tmp_path, _metrics())
    path = write_report(tmp_path, _run(**{"a|b": {"errors": {"birds": _errors(3.0)}, "history": {}}}))
    text = path.read_text()
    assert "| method | " in text
    assert "zeros" not in text.splitlines()[2]
    assert "a\\|b" in text
    assert ".png" not in text
    assert [path.name for path in tmp_path.iterdir()] == ["report.md"], "plots of an earlier report would mislead"
    with pytest.raises(ValueError, match="at least one method"):
        write_report(tmp_path, _run())


@pytest.mark.parametrize("layers", [1, 8, 150])
@pytest.mark.parametrize("epochs", [1, 40])
def test_plots_of_any_size(tmp_path, layers, epochs):
    step = {
        "errors": {},
        "zeros": {f"a_rather_long_layer_name_{i}/pointwise_kernel": 0.01 for i in range(layers)},
        "history": {"val_cross_entropy": [0.5] * epochs, "cross_entropy": [float("nan")] * epochs},
    }
    write_report(tmp_path, _run(piggyback=step))
    with Image.open(tmp_path / "zeros.png") as image:
        assert image.width < 2400
        # Something is drawn besides the background: axes, names.
        assert len(image.convert("L").getcolors()) > 10


def test_the_table_is_aligned_in_a_terminal():
    lines = summary(_metrics())
    assert len({len(line) for line in lines}) == 1
    assert lines[1].startswith("| ---")


def test_format_error():
    assert format_error(_errors(2.5)) == "2.50 [1.50, 4.50]"
    assert format_error({"top1_error": 2.5}) == "2.50"
    assert format_error(None) == format_error({}) == format_error(_errors(1.0), "top5_error") == "-"


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 bytes"), (999, "999 bytes"), (1000, "1.0 kB"), (999_960, "1.0 MB"), (17_240_000, "17.2 MB"), (None, "-")],
)
def test_format_bytes(count, text):
    assert format_bytes(count) == text


def test_zeros_per_layer():
    pack = make_pack()
    rows = zeros_table(pack)
    assert [row["path"] for row in rows] == ["conv/kernel", "block/dense/kernel"]
    assert rows[0]["shape"] == [3, 3, 3, 5]
    assert rows[0]["weights"] == 135
    assert rows[0]["zeros"] == (pack.mask("conv/kernel") == 0).mean()
    lines = format_zeros(pack).splitlines()
    assert lines[0].split() == ["weight", "shape", "weights", "zeros"]
    assert lines[2].split() == ["conv/kernel", "3x3x3x5", "135", f"{100 * pack.zeros['conv/kernel']:.2f}", "%"]
    assert lines[-1].split() == ["all", "163", f"{100 * pack.zeros_total:.2f}", "%"]


def test_measures_of_each_class_have_tables(tmp_path):
    step = {"errors": {"birds": {"mean_iou_error": 40.0, "images": 9, "iou": {"road": 61.234, "sky": None}}}}
    alone = {"validation": {"birds": {"mean_iou_error": 50.0, "images": 9, "iou": {"road": 50.0}}}, "errors": {}}
    text = write_report(tmp_path, _run(piggyback=step, finetune=alone)).read_text()
    table = text.split("## IoU % by class\n\n")[1].split("\n\n")[0].splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
    assert rows[0] == ["class", "piggyback", "finetune"] and rows[2:] == [["road", "61.23", "50.00"], ["sky", "-", "-"]]
    assert "by class" not in write_report(tmp_path, _metrics()).read_text()
