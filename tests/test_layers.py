"""Who may import whom, as pyproject.toml says it: all contracts hold, and they have a place for every folder."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LINT = [sys.executable, "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()", "--no-cache"]


def lint(folder):
    run = subprocess.run(LINT, cwd=folder, env={"PYTHONPATH": str(folder)}, capture_output=True, text=True)
    return run.returncode, run.stdout + run.stderr


def test_every_folder_imports_only_from_those_before_it():
    status, printed = lint(ROOT)
    assert (status, printed[-len("0 broken.\n") :]) == (0, "0 broken.\n"), printed


@pytest.mark.parametrize(
    ("file", "line", "broken"),
    [
        ("piggyback_tf/settings/inputs.py", "import piggyback_tf.flags", "settings.inputs -> piggyback_tf.flags"),
        ("piggyback_tf/newcomer/__init__.py", "", "piggyback_tf.newcomer"),
    ],
)
def test_an_import_upwards_and_a_folder_without_a_place_are_seen(file, line, broken, tmp_path):
    for name in ("piggyback_tf", "export"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", "shipped"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / file).parent.mkdir(exist_ok=True)
    with (tmp_path / file).open("a") as written:
        written.write(f"\n{line}\n")
    status, printed = lint(tmp_path)
    assert status == 1, printed
    assert broken in " ".join(printed.split())
