"""What reports say of images that were left out."""

from piggyback_tf.evaluation import write_report
from piggyback_tf.evaluation.left_out import left_out_lines


def _files(*places, kind="empty"):
    return [{"place": place, "kind": kind} for place in places]


def test_files_are_named_by_split_and_kind():
    lines = left_out_lines({"train": _files("a`b.png", "c\n.png") + _files("d.heic", kind="heic"), "test": _files("e")})
    assert lines[:3] == ["## Images left out", "", "4 files could not be used (`--skip_broken_images`)."]
    assert [line for line in lines[3:] if line] == [
        "- train: 1 photo in HEIC, which Pillow does not read",
        "  - `d.heic`",
        "- train: 2 empty files",
        "  - `` a`b.png ``",
        "  - `'c\\n.png'`",
        "- test: 1 empty file",
        "  - `e`",
    ]
    assert left_out_lines({"train": [], "test": []}) == left_out_lines({}) == []


def test_of_very_many_the_first_are_named():
    lines = left_out_lines({"train": _files(*(f"{number}.png" for number in range(150)))})
    assert sum(".png`" in line for line in lines) == 100
    assert "  - and 50 more, which `metrics.json` names under `left_out`" in lines


def test_both_reports_have_them(tmp_path):
    left_out = {"t": {"train": [], "test": _files("gone.png")}}
    single = {"method": "piggyback", "tasks": ["t"], "steps": [{"errors": {}}]}
    metrics = {"methods": {"piggyback": single}, "left_out": left_out}
    assert "- test: 1 empty file\n  - `gone.png`\n" in write_report(tmp_path, metrics).read_text()
    step = {"errors": {"t": {"top1_error": 10.0}}, "bytes": dict.fromkeys(("system", "added", "compressed"), 1000)}
    step |= {"trained_parameters": 10, "seconds": 1.0}
    measures = {"average_error": 10.0, "old_answers_identical": True}
    sequence = {"method": "hat", "tasks": ["t", "u"], "steps": [step, {"errors": {}}], "measures": measures}
    metrics = {"methods": {"hat": sequence}, "left_out": left_out}
    assert write_report(tmp_path, metrics).read_text().endswith("- t, test: 1 empty file\n  - `gone.png`\n")
