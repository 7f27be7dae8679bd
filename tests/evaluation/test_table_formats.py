"""Tables of runs as Markdown, CSV and LaTeX, and their plots."""

import csv
import io
import re

import pytest
from PIL import Image

from piggyback_tf.evaluation.tables import LAYOUTS, Number, Table, read_runs, to_csv, to_latex, to_markdown
from piggyback_tf.evaluation.tables.plots import write_plots
from tests.evaluation.run_folders import sequence, table_of, write_packnet, write_sequence, write_single

STRANGE = Table(
    "survey",
    "100 % of {a_b}",
    ["method", "error % & more", "size"],
    [
        [r"a_b|c\d^~$#", Number(12.345678, 0.5, second=Number(3.25)), Number(2_500_000, style="bytes")],
        ["x → y ↓, \x1b[2J", None, Number(-1500, style="bytes")],
    ],
    notes=["50 % of <them>"],
)


def test_latex_is_well_formed():
    text = to_latex(STRANGE)
    begins, ends = (re.findall(rf"\\{word}\{{(\w+)\}}", text) for word in ("begin", "end"))
    assert begins == ends[::-1] == ["table", "tabular"]
    body = text.split(r"\hline")
    rows = [line for part in body[1:3] for line in part.splitlines() if line.strip()]
    assert len(rows) == 3
    for row in rows:
        assert row.endswith(r" \\")
        assert len(re.findall(r"(?<!\\)&", row)) == 2
    assert rows[1].startswith(r"a\_b\textbar{}c\textbackslash{}d\textasciicircum{}\textasciitilde{}\$\#")
    assert r"12.35 $\pm$ 0.50 (3.25) & 2.5 MB" in rows[1]
    assert r"$\rightarrow$ y $\downarrow$" in rows[2]
    # What is left has no character of its own meaning, outside of commands.
    plain = re.sub(r"\\[a-zA-Z]+(\{[a-z]*\})?|\\[%&#_{}$\\]|\$\\[a-z]+\$", "", text)
    assert not re.search(r"[%#_^~$<>|]", plain)
    assert text.isascii()
    assert "\x1b" not in text


def test_no_row_of_latex_begins_with_what_the_row_before_takes_for_an_argument():
    table = Table("survey", "c", ["method"], [["[a]"], ["*"], ["a"]])
    rows = [line for line in to_latex(table).splitlines() if line.endswith(r" \\")]
    assert rows == [r"method \\", r"{}[a] \\", r"{}* \\", r"a \\"]


def test_csv_has_numbers_and_columns_for_what_belongs_to_them():
    rows = list(csv.reader(io.StringIO(to_csv(STRANGE))))
    assert rows[0] == ["method", "error % & more", "error % & more std", "error % & more top-5", "size"]
    assert rows[1][1:] == ["12.345678", "0.5", "3.25", "2500000"]
    assert rows[2][1:] == ["", "", "", "-1500"]


def test_markdown_has_equal_rows_and_no_command_for_a_terminal():
    lines = to_markdown(STRANGE).splitlines()
    table = [line for line in lines if line.startswith("|")]
    assert len({len(line) for line in table}) == 1
    assert r"a_b\|c" in table[2]
    assert r"\x1b[2J" in table[3]
    assert "\x1b" not in "".join(lines)
    assert lines[-1] == "- 50 % of <them>"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_in_every_format(layout, tmp_path):
    # A set of table 8, which has no others.
    task = "dtd" if layout == "paper8" else "cubs"
    runs = [
        write_single(tmp_path / "a", task, {"classifier_only": 50.0, "piggyback": 20.0}),
        *write_packnet(tmp_path),
    ]
    table = table_of(layout, *runs)
    assert {len(row) for row in table.rows} == {len(table.header)}
    assert len(list(csv.reader(io.StringIO(to_csv(table))))) == len(table.rows) + 1
    assert to_latex(table).count(r"\\" + "\n") == len(table.rows) + 1
    assert {"dtd": "DTD"}.get(task, task) in to_markdown(table)


def test_plots(tmp_path):
    masks = sequence("piggyback", {"cubs": {"cubs": 20}, "cars": {"cubs": 20, "cars": 10}})
    write_sequence(tmp_path / "masks", masks, packs=True)
    records = read_runs([str(tmp_path / "masks"), *write_packnet(tmp_path)])
    written = write_plots(tmp_path, records)
    assert [path.name for path in written] == [
        "zeros.png", "errors_piggyback_forward.png", "errors_packnet_forward.png", "errors_packnet_reverse.png",
        "error_and_bytes.png",
    ]  # fmt: skip
    for path in written:
        with Image.open(path) as image:
            assert image.width > 300
    with Image.open(tmp_path / "zeros.png") as image:
        colours = {colour for _, colour in image.convert("RGB").getcolors(1 << 24)}
    assert {(0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00)} <= colours, "two tasks, two lines"


def test_plots_of_several_bases_have_names_of_their_own(tmp_path):
    runs = [
        write_single(tmp_path / "a", "cubs", {"piggyback": 18.0}, backbone="resnet50", base_hash="cd" * 32),
        write_single(tmp_path / "b", "cubs", {"piggyback": 21.0}),
    ]
    written = write_plots(tmp_path, read_runs(runs))
    assert sorted(path.name for path in written) == [
        "resnet50_error_and_bytes.png", "resnet50_zeros.png", "vgg16_error_and_bytes.png", "vgg16_zeros.png",
    ]  # fmt: skip
