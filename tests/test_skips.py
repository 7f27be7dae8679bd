"""A skip that is not in the list is a failure."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.allowed_skips import ALLOWED_SKIPS, complaint

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize(
    ("nodeid", "reason", "in_ci", "words"),
    [
        ("tests/export/serving/test_tls.py::test_a", "needs openssl", False, None),
        ("tests/export/serving/test_tls.py::test_a", "needs openssl", True, "elsewhere, but not in CI"),
        ("tests/export/serving/test_docs.py::test_a", "needs Java", True, None),
        ("tests/export/edge/test_cpp.py::test_a[x]", "needs cmake and c++ to build", False, None),
        ("tests/packs/test_pack.py::test_a", "needs openssl", False, "not in tests/allowed_skips.py"),
        ("tests/export/edges/test_cpp.py::test_a", "needs cmake", False, "not in tests/allowed_skips.py"),
        ("tests/packs/test_pack.py::test_a", "this method has no masks", False, "out of the parameters"),
    ],
)
def test_skips_are_allowed_by_place_reason_and_machine(nodeid, reason, in_ci, words):
    found = complaint(nodeid, reason, in_ci)
    assert found is None if words is None else words in found


def test_the_list_names_only_skips_that_there_are():
    for allowed in ALLOWED_SKIPS:
        place = ROOT / "tests" / allowed.place
        files = [place] if place.is_file() else [*place.rglob("*.py"), ROOT / ".ci" / "slow_tests.py"]
        text = "".join(file.read_text() for file in files if file.name not in ("allowed_skips.py", "test_skips.py"))
        # What is put together at run time is known by its first word.
        assert allowed.reason in text or allowed.reason.split()[0] in ("needs", "tensorflow_model_server"), allowed
        assert "skip" in text, allowed


def test_another_skip_fails(tmp_path):
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    (tmp_path / "test_skipped.py").write_text(
        "import pytest\n"
        "def test_allowed():\n    pytest.skip('no time left')\n"
        "def test_other():\n    pytest.skip('no combination')\n"
        "@pytest.mark.skipif(True, reason='marked')\ndef test_marked():\n    pass\n"
        "@pytest.mark.xfail(reason='hopeless')\ndef test_hopeless():\n    assert False\n"
        "def test_good():\n    pass\n"
    )
    (tmp_path / "test_file.py").write_text("import pytest\npytest.importorskip('no_such_package')\n")
    command = [sys.executable, "-m", "pytest", "-q", "-n", "1", "-p", "tests.allowed_skips", "-p", "xdist"]
    command += ["-p", "no:cacheprovider", "--rootdir", tmp_path, tmp_path, "--continue-on-collection-errors"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "2 failed, 1 passed, 1 skipped, 2 errors" in done.stdout, done.stdout
    for reason in ("(no combination)", "(marked)", "hopeless", "no_such_package"):
        assert reason in done.stdout, reason
