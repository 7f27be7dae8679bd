"""The program in the README of the C++ patcher is built as it says, and answers as the Python code does."""

import re
import shutil
import subprocess

import numpy as np
import pytest

from export.edge.piggyback_edge import Base, Model, Task
from tests.export.edge.conftest import SOURCE, need_tools

# The reader's part: what a runtime would return, here some numbers.
RUN_MODEL = """
#include <vector>
#include "piggyback_edge.h"
std::vector<float> RunModel(piggyback::Bytes) { return {%s}; }
"""
PROJECT = "cmake_minimum_required(VERSION 3.16)\nproject(app CXX)\n"


def _block(language):
    """Returns the only block of a language in the README."""
    (block,) = re.findall(rf"^```{language}\n(.*?)^```$", (SOURCE / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    return block


@pytest.mark.slow
@pytest.mark.parametrize("way", ["cmake", "sh"])
def test_the_program_builds_and_answers(patched, way, tmp_path):
    need_tools("cmake", "c++", "g++")
    export = patched("none")
    base = Base.load(export.folder / "base.tflite")
    manifest = base.manifest
    features = np.linspace(-1, 1, manifest.features, dtype=np.float32)
    expected = []
    for name, pack in zip(("flowers", "birds"), export.packs, strict=False):
        path = export.folder / f"{pack.task}.edge"
        shutil.copyfile(path, tmp_path / f"{name}.edge")
        task, model = Task.load(path, manifest), Model(base)
        model.install(task)
        expected += [*task.probabilities(features[None], bytes(model.data))[0]]
    for name in ("base.tflite", "manifest.bin"):
        shutil.copyfile(export.folder / name, tmp_path / name)
    shutil.copytree(SOURCE, tmp_path / "piggyback_edge")
    (tmp_path / "app.cc").write_text(_block("cpp"))
    (tmp_path / "run_model.cc").write_text(RUN_MODEL % ", ".join(f"{value:.9e}f" for value in features))
    commands = [_block("sh")]
    if way == "cmake":
        (tmp_path / "CMakeLists.txt").write_text(PROJECT + _block("cmake"))
        commands = [
            "cmake -S . -B build -DPIGGYBACK_EDGE_WERROR=ON -DPIGGYBACK_EDGE_PROGRAMS=OFF",
            "cmake --build build",
        ]
    for command in commands:
        done = subprocess.run(command, shell=True, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "warning" not in done.stdout + done.stderr
    done = subprocess.run([tmp_path / ("build/app" if way == "cmake" else "app")], cwd=tmp_path, capture_output=True)
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose([float(line) for line in done.stdout.split()], expected, atol=2e-6)
