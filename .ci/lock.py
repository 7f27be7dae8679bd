"""Writes which versions CI installs, to .ci/constraints.txt: the newest that requirements-dev.txt allows today.

    .venv/bin/python .ci/lock.py            # writes the lock anew
    .venv/bin/python .ci/lock.py --check    # is it what is installed here, each package and no other?

`.ci/run` installs with it, by PIP_CONSTRAINT, so that what passes today does not fail tomorrow for a release of
somebody else. Users install what the ranges allow. It is for the Python and the platform of CI.
"""

import argparse
import importlib.metadata
import json
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / ".ci" / "constraints.txt"
HEADER = "# Written by .ci/lock.py: what CI installs. Users install what the ranges in requirements.txt allow.\n"
# Every environment has them, as old as the Python that made it.
UNLOCKED = {"pip", "setuptools"}


def canonical(name: str) -> str:
    """Returns the name of a package as registries compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def read_lock(text: str) -> dict[str, str]:
    """Returns the version of each package."""
    lines = (line.strip() for line in text.splitlines())
    pins = (line.split("==") for line in lines if line and not line.startswith("#"))
    return {canonical(name): version for name, version in pins}


def resolved() -> dict[str, str]:
    """Returns what pip would install into an empty environment."""
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet", "--report", "-"]
    out = subprocess.run([*command, "-r", "requirements-dev.txt"], cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout
    found = (item["metadata"] for item in json.loads(out)["install"])
    return {canonical(one["name"]): one["version"] for one in found}


def installed() -> dict[str, str]:
    """Returns what is installed."""
    found = importlib.metadata.distributions()
    return {canonical(one.metadata["Name"]): one.version for one in found}


def differences(locked: dict[str, str], there: dict[str, str]) -> list[str]:
    """Returns in sentences what is installed otherwise than locked."""
    names = sorted((locked.keys() | there.keys()) - UNLOCKED)
    return [
        f"{name} is locked to {locked.get(name, 'nothing')}, and installed is {there.get(name, 'nothing')}."
        for name in names
        if locked.get(name) != there.get(name)
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare it with what is installed")
    if not parser.parse_args().check:
        pins = [f"{name}=={version}\n" for name, version in sorted(resolved().items()) if name not in UNLOCKED]
        LOCK.write_text(HEADER + "".join(pins))
        return 0
    found = differences(read_lock(LOCK.read_text()), installed())
    print(*(found or ["What is installed is what is locked."]), sep="\n")
    if found:
        print("Write the lock anew with .ci/lock.py, in an environment made with README's command.")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
