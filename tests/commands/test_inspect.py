"""`inspect`: what packs hold, without TensorFlow."""

import numpy as np
import pytest

from piggyback_tf.__main__ import main
from piggyback_tf.packs.codec import encode
from tests.packs.helpers import make_pack, save_good_looking_pack
from tests.run_command import run_command


@pytest.fixture(name="pack")
def _pack(tmp_path):
    return save_good_looking_pack(tmp_path)


def test_inspect_needs_no_tensorflow(tmp_path, pack):
    make_pack("none", task="plain", errors={}, norm={}).save(tmp_path / "plain")
    make_pack("ternary", task="signs", norm={}).save(tmp_path / "signs")
    status, lines, errors, loaded = run_command("inspect", pack, tmp_path / "plain", tmp_path / "signs", "--layers")
    assert (status, errors, loaded) == (0, "", False)
    birds, plain, signs = (line.split("  ") for line in lines[2:5])
    birds, plain, signs = ([cell.strip() for cell in row if cell.strip()] for row in (birds, plain, signs))
    zeros = f"{100 * make_pack().zeros_total:.2f} %"
    size = f"{pack.stat().st_size / 1000:.1f} kB"
    assert birds == [
        "birds", "piggyback", "mobilenet_v2 (random)", "ab" * 6, "binary + norm", "3", "12.50 [3.50, 36.00]", size,
        "1.031", zeros,
    ]  # fmt: skip
    assert plain[4:7] == ["none", "3", "-"]
    assert plain[8:] == ["-", "-"]
    coded = encode(make_pack("ternary", norm={}).masks, "ternary").nbytes
    assert (signs[4], signs[8]) == ("ternary", f"{8 * coded / 163:.3f}")
    assert lines[6] == "birds:"
    assert lines[9].split()[:3] == ["conv/kernel", "3x3x3x5", "135"]
    assert "no masks" in lines


def test_inspect_prints_all_that_is_in_a_pack(tmp_path):
    path = tmp_path / "birds"
    test = {"top1_error": 12.5, "top1_error_low": 3.5, "top1_error_high": 36.0, "images": 1600}
    validation = {"top1_error": 20.0, "top5_error": 2.0, "top5_error_low": 1.0, "top5_error_high": 4.0, "images": 9}
    make_pack(
        errors={"test": test, "validation": validation},
        settings={"epochs": 3, "mask_init": "constant", "patterns": ["*"], "note": "tüvö", "data_dir": None},
        versions={"keras": "3.15.1", "numpy": "2.1.0"},
    ).save(path)
    status, lines, errors, loaded = run_command("inspect", "--details", path)
    assert (status, errors, loaded) == (0, "", False)
    assert lines[3:] == [
        "",
        f"{path}:",
        "  format version     4",
        "  task               birds",
        "  created            2026-01-02T03:04:05+00:00",
        "  method             piggyback",
        "  base               small",
        "  base weights       given",
        "  base hash          " + "ab" * 32,
        "  base structure     not recorded",
        "  preprocessing      x / 255",
        "  finds              a class for each image",
        "  image size         8x8",
        "  eval augmentation  resize(8,8)",
        "  mask               binary, threshold 0.005",
        "  masked weights     163 in 2 variables",
        "  norm               2 variables of this task",
        "  head               kernel 4x3, bias 3, stored as float32",
        "  classes: 3",
        "    0 'wren', 1 'rook', 2 'tüvö'",
        "  errors % [95 % Wilson score interval]:",
        "    split                     top-1              top-5  images",
        "    ----------  -------------------  -----------------  ------",
        "    test        12.50 [3.50, 36.00]                  -   1,600",
        "    validation                20.00  2.00 [1.00, 4.00]       9",
        "  settings:",
        "    data_dir   null",
        "    epochs     3",
        '    mask_init  "constant"',
        '    note       "tüvö"',
        '    patterns   ["*"]',
        "  package versions:",
        "    keras  3.15.1",
        "    numpy  2.1.0",
    ]


def test_inspect_says_what_a_pack_does_not_hold(tmp_path, capsys):
    make_pack("none", norm={}, errors={}, settings={}, versions={}, eval_augment="").save(tmp_path / "plain")
    assert main(["inspect", "--details", str(tmp_path / "plain")]) == 0
    lines = capsys.readouterr().out.splitlines()
    for line in (
        "  eval augmentation  none",
        "  mask               none",
        "  masked weights     none",
        "  norm               that of the base",
        "  errors: none measured",
        "  settings: none",
        "  package versions: none",
    ):
        assert line in lines


def test_inspect_wraps_classes_between_names_and_shows_no_control_characters(tmp_path, capsys):
    names = [f"kind {index}, with a blank" for index in range(40)] + ["line\nend", "\x1b[31mred", "x" * 200]
    head = {"kernel": np.ones((4, len(names)), "float32"), "bias": np.zeros(len(names), "float32")}
    make_pack(class_names=names, head=head, preprocessing="x\n/ 255").save(tmp_path / "pack")
    assert main(["inspect", "--details", str(tmp_path / "pack")]) == 0
    lines = capsys.readouterr().out.splitlines()
    start = lines.index("  classes: 43") + 1
    listed = lines[start : lines.index("  errors % [95 % Wilson score interval]:")]
    assert " ".join(line.strip() for line in listed) == ", ".join(f"{i} {name!r}" for i, name in enumerate(names))
    assert all(len(line) <= 100 for line in listed[:-1])
    assert listed[-1] == f"    42 {'x' * 200!r}"
    # As full as they can be.
    assert all(len(line) > 60 for line in listed[:-2])
    assert "  preprocessing      'x\\n/ 255'" in lines


def test_both_lists_of_inspect_together(tmp_path, capsys):
    for task in ("birds", "fish"):
        make_pack(task=task).save(tmp_path / task)
    assert main(["inspect", "--details", "--layers", str(tmp_path / "birds"), str(tmp_path / "fish")]) == 0
    lines = capsys.readouterr().out.splitlines()
    places = [lines.index(line) for line in (f"{tmp_path}/birds:", "birds:", f"{tmp_path}/fish:", "fish:")]
    assert places == sorted(places)


def test_inspect_names_the_broken_and_shows_the_others(tmp_path, pack):
    (tmp_path / "broken").write_bytes(pack.read_bytes()[:-1])
    status, lines, errors, _ = run_command("inspect", tmp_path / "broken", pack, tmp_path / "nothing")
    assert status == 2
    assert len(lines) == 3
    assert lines[2].startswith("birds")
    assert [line.split(":")[0] for line in errors.splitlines()] == ["python -m piggyback_tf inspect"] * 2
    assert f"{str(tmp_path / 'broken')!r} should be" in errors
    assert f"{str(tmp_path / 'nothing')!r}: No such file or directory." in errors
