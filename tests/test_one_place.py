"""What CONTRIBUTING.md says to be in one place is in one place."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SECTION = (ROOT / "CONTRIBUTING.md").read_text().split("\n## One place for each thing\n")[1].split("\n## ")[0]
ROWS = re.findall(r"^\| (.+) \| (.+) \| `(grep .+)` \| (\d+) \|$", SECTION, re.MULTILINE)


def test_every_row_is_read():
    assert len(ROWS) == len(re.findall(r"^\| .+ \|$", SECTION, re.MULTILINE)) - 2 >= 20


@pytest.mark.parametrize(("what", "where", "command", "lines"), ROWS, ids=[row[0] for row in ROWS])
def test_a_thing_is_in_one_place(what, where, command, lines):
    run = subprocess.run(command, shell=True, cwd=ROOT, capture_output=True, text=True)
    assert run.stderr == ""
    found = run.stdout.splitlines()
    assert len(found) == int(lines), run.stdout
    places = re.findall("`(.+?)`", where)
    assert all(any(place in line for place in places) for line in found), run.stdout
