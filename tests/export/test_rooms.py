"""Sources of exports are short enough to be read at once."""

from pathlib import Path

EXPORT = Path(__file__).resolve().parent.parent.parent / "export"
# Each is one file that runs by itself, on a device or on the machine of a client.
WHOLE = {"edge/piggyback_edge.py", "deployment/client.py", "edge/cpp/piggyback_edge.cc"}


def test_no_source_but_those_that_go_elsewhere_has_more_than_400_lines():
    sources = (path for path in EXPORT.rglob("*") if path.suffix in (".py", ".cc", ".h", ".sh"))
    lines = {path.relative_to(EXPORT).as_posix(): len(path.read_text().splitlines()) for path in sources}
    assert len(lines) > 50
    assert {name for name, count in lines.items() if count > 400} == WHOLE
