"""Whatever happens to a writer, the file is a whole pack: the old one or the new one."""

import errno
import json
import subprocess
import sys
from pathlib import Path

from piggyback_tf.packs import TaskPack

ROOT = Path(__file__).parents[2]
NAME = "birds.task.safetensors"


def _run(what, folder):
    """Runs `tests/packs/writers.py`, which reads the file after each writer; returns what it saw."""
    command = [sys.executable, "-m", "tests.packs.writers", what, str(folder / NAME)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_writer_that_is_killed_leaves_a_whole_pack(tmp_path):
    seen = _run("kill", tmp_path)
    assert seen["kills"] == 200
    assert seen["changes"] > 10, "writers got as far as to replace the file"
    assert seen["files"] > 1, "writers were killed before they did"
    # What they leave is removed by the next one.
    assert seen["files"] <= 2
    TaskPack.load(tmp_path / NAME).save(tmp_path / NAME)
    assert list(tmp_path.iterdir()) == [tmp_path / NAME]
    TaskPack.load(tmp_path / NAME)


def test_a_full_disk_leaves_the_old_pack(tmp_path):
    seen = _run("full", tmp_path)
    full = [errno.EFBIG, "old", [NAME]]
    assert seen == {"0.0": full, "0.3": full, "0.999": full, "1.0": [0, "new", [NAME]]}
