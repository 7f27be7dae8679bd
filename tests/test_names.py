"""What a reader finds by names alone: one place for names of files, one meaning for each name, one file a method."""

import ast
import collections
from pathlib import Path

from piggyback_tf import file_names
from piggyback_tf.methods import METHODS

PACKAGE = Path(file_names.__file__).resolve().parent
# Of every module that is a command, and of every version of a pack's file: one meaning.
SAME_MEANING = {"add_command", "read"}


def _trees():
    return {path: ast.parse(path.read_text()) for path in sorted(PACKAGE.rglob("*.py"))}


def test_the_names_of_a_runs_files_are_in_one_place():
    names = {value for name, value in vars(file_names).items() if name.endswith(("_FILE", "_PLOT", "PACK_SUFFIX"))}
    assert {"metrics.json", "settings.json", "report.md", "zeros.png", ".task.safetensors"} <= names
    again = [
        f"{path.relative_to(PACKAGE)}:{node.lineno} {node.value!r}"
        for path, tree in _trees().items()
        if path != Path(file_names.__file__).resolve()
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.rpartition("/")[2] in names
    ]
    assert not again


def test_a_public_function_or_class_has_its_name_alone():
    places = collections.defaultdict(list)
    for path, tree in _trees().items():
        for node in tree.body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
                places[node.name].append(str(path.relative_to(PACKAGE)))
    assert {name: found for name, found in places.items() if len(found) > 1 and name not in SAME_MEANING} == {}


def test_a_file_of_methods_is_a_method():
    files = {path.stem for path in (PACKAGE / "methods").glob("*.py")} - {"__init__", "base"}
    assert files == {METHODS[name].__module__.rpartition(".")[2] for name in METHODS.names()}
