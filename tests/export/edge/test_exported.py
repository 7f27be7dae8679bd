"""The C++ patcher on bases and tasks that were really exported: the bytes of the Python one."""

import subprocess

import pytest

from export.edge.piggyback_edge import Base, Model, Task
from export.lite.patch.task_file import task_bytes


def _run(program, *arguments):
    done = subprocess.run([program, *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(("quantize", "max_classes"), [("none", 0), ("float16", 9), ("dynamic", 9), ("int8", 0)])
@pytest.mark.parametrize("build", ["plain", "sanitized"])
def test_both_patchers_make_the_same_model(patched, tmp_path, quantize, max_classes, build, request):
    program, folder = request.getfixturevalue(build) / "piggyback_edge", patched(quantize, max_classes).folder
    base, model = Base.load(folder / "base.tflite"), tmp_path / "model.tflite"
    files, seen = (folder / "base.tflite", folder / "manifest.bin"), set()
    for path in sorted(folder.glob("*.edge")):
        task, python = Task.load(path, base.manifest), Model(base)
        python.install(task)
        seen.add(bytes(python.data))
        coded = tmp_path / "coded.edge"
        coded.write_bytes(task_bytes(task, base.manifest, compress=True))
        for each in (path, coded):
            _run(program, "verify", *files, each)
            _run(program, "install", *files, each, model)
            assert model.read_bytes() == python.data
    assert len(seen) == 6
    _run(program, "remove", *files, model)
    assert model.read_bytes() == base.data


def test_damaged_files_of_an_export_under_sanitizers(patched, sanitized):
    for number, quantize in enumerate(("float16", "int8")):
        folder = patched(quantize, 9 if quantize == "float16" else 0).folder
        files = (folder / "base.tflite", folder / "manifest.bin", *sorted(folder.glob("*.edge")))
        said = _run(sanitized / "piggyback_edge_fuzz", 300, number, *files).splitlines()
        assert len(said) > 10, said
