"""Which tests may be skipped, where, and why. Any other skip, and every xfail, is a failure.

A combination that makes no sense is not skipped: it is not among the parameters. A test is skipped only where a machine
lacks what it needs.
"""

import os
from collections.abc import Iterator
from typing import NamedTuple

import pytest


class AllowedSkip(NamedTuple):
    """A skip that is allowed.

    Attributes:
        place: The file or folder of the tests, without `tests/`.
        reason: How the reason given by `pytest.skip` or `skipif` begins.
        why: Why a machine may lack what is needed.
        in_ci: Whether CI's machine may lack it, too.
    """

    place: str
    reason: str
    why: str
    in_ci: bool


ALLOWED_SKIPS = (
    AllowedSkip("", "needs the environment variable PIGGYBACK_REALDATA", "The images are nobody's to give away.", True),
    AllowedSkip("", "there is no /dev/full", "Only Linux has it.", False),
    AllowedSkip("test_files.py", "root may make no devices here", "Containers may forbid it.", True),
    AllowedSkip("data/test_folder.py", "root reads every folder", "setpriv, to be somebody else, is Linux'.", False),
    AllowedSkip("data/test_tfds.py", "the package array_record does not exist", "It is made for Linux only.", False),
    AllowedSkip("export/edge", "needs cmake", "Who changes only Python needs no compiler.", False),
    AllowedSkip("export/edge", "needs c++", "Who changes only Python needs no compiler.", False),
    AllowedSkip("export/edge/test_old_python.py", "needs PIGGYBACK_PYTHON39", "Few machines have it.", True),
    AllowedSkip("export/test_beam.py", "needs PIGGYBACK_BEAM_PYTHON", "Beam needs other versions than this.", True),
    AllowedSkip("farm/test_pool.py", "needs Linux", "No other system ends a process with its parent.", False),
    AllowedSkip("export/test_deployment.py", "needs bash", "Windows has none.", False),
    AllowedSkip("export/test_deployment.py", "needs kubectl", "No package of pip has it.", True),
    AllowedSkip("export/serving/test_tls.py", "needs openssl", "No package of pip has it.", False),
    AllowedSkip("export/serving/test_docs.py", "needs curl", "No package of pip has it.", False),
    AllowedSkip("export/serving/test_docs.py", "needs Java", "No package of pip has it.", True),
    AllowedSkip(
        "export/serving/test_many_clients.py",
        "tensorflow_model_server is not installed",
        "No package of pip has it; the server of the tests is asked in its place.",
        True,
    ),
    AllowedSkip("backbones/test_timm.py", "needs torch and timm", "PyTorch is large, and for one comparison.", True),
    AllowedSkip("packs/test_spare_memory.py", "reads /proc", "Only Linux has it.", False),
    AllowedSkip("commands/test_report_browser.py", "needs chromium", "No package of pip has it.", True),
    AllowedSkip("", "no time left", "Slow tests end when CI's hour does, and those left out are printed.", True),
)


def complaint(nodeid: str, reason: str, in_ci: bool) -> str | None:
    """Returns what is wrong with a skip, and None if it is allowed.

    Args:
        nodeid: The name of the test, or of a file that skips itself.
        reason: The reason given.
        in_ci: Whether this is CI's machine.
    """
    place = nodeid.partition("::")[0].removeprefix("tests/")
    for allowed in ALLOWED_SKIPS:
        if f"/{place}/".startswith(f"/{allowed.place}/".replace("//", "/")) and reason.startswith(allowed.reason):
            if allowed.in_ci or not in_ci:
                return None
            return f"{nodeid} was skipped ({reason}), which tests/allowed_skips.py allows elsewhere, but not in CI."
    return (
        f"{nodeid} was skipped ({reason}). That is not in tests/allowed_skips.py: take what makes no sense out of the "
        "parameters, or add what a machine may lack to the list, with the reason."
    )


def _check(report: pytest.TestReport | pytest.CollectReport) -> None:
    if report.skipped:
        # By this attribute pytest knows an xfail, which counts as no failure.
        hopeless = vars(report).pop("wasxfail", None)
        text = report.longrepr[2] if hopeless is None else f"xfail: {hopeless}"
        if wrong := complaint(report.nodeid, text.removeprefix("Skipped: "), "CI" in os.environ):
            report.outcome, report.longrepr = "failed", wrong


# Hooks of pytest, which conftest.py imports. They change reports before pytest-xdist sends them on.


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport() -> Iterator[None]:
    report = yield
    _check(report)
    return report


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_make_collect_report() -> Iterator[None]:
    report = yield
    _check(report)
    return report
