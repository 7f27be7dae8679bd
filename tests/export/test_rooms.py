"""Sources of exports are short enough to be read at once, name each thing once, and load no more than they need."""

import ast
import collections
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
EXPORT = ROOT / "export"
# Each is one file that runs by itself, on a device or on the machine of a client.
WHOLE = {"edge/piggyback_edge.py", "deployment/client.py", "edge/cpp/piggyback_edge.cc"}


def test_no_source_but_those_that_go_elsewhere_has_more_than_400_lines():
    sources = (path for path in EXPORT.rglob("*") if path.suffix in (".py", ".cc", ".h", ".sh"))
    lines = {path.relative_to(EXPORT).as_posix(): len(path.read_text().splitlines()) for path in sources}
    assert len(lines) > 50
    assert {name for name, count in lines.items() if count > 400} == WHOLE


def test_the_tree_in_the_documentation_is_that_of_the_folder():
    text = (ROOT / "docs" / "architecture.md").read_text()
    lines = text.partition("```text\nexport/\n")[2].partition("```")[0].splitlines()
    listed, above = set(), []
    for line in lines:
        name, _, said = line.strip().partition(" ")
        depth = (len(line) - len(line.lstrip())) // 2 - 1
        above[depth:] = [name.rstrip("/")]
        listed.add("/".join(above))
        assert said.strip(), line
    there = {path.relative_to(EXPORT) for path in EXPORT.rglob("*.py") if path.name != "__init__.py"}
    there |= {path.parent for path in there if path.parent.name} | {Path("edge/cpp")}
    assert listed == {path.as_posix() for path in there}


def test_no_name_of_an_export_stands_for_something_else_elsewhere():
    """But in the files that go elsewhere, which have copies, and in what each command has."""
    places = collections.defaultdict(list)
    for path in [*EXPORT.rglob("*.py"), *(ROOT / "piggyback_tf").rglob("*.py")]:
        if not path.as_posix().endswith(tuple(WHOLE)):
            for node in ast.parse(path.read_text()).body:
                if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
                    places[node.name].append(path.relative_to(ROOT).as_posix())
    twice = {name: found for name, found in places.items() if len(found) > 1 and found[0].startswith("export/")}
    assert {"WeightLayout", "ServerMemory", "TaskBank"} < places.keys()
    assert twice.keys() == {"define_flags"}, twice


def test_what_clients_and_devices_import_loads_no_tensorflow():
    modules = ("deployment.sent_pack", "servable.folder", "lite.inputs.run", "lite.inputs.input_format")
    program = "".join(f"import export.{module}\n" for module in modules)
    program += "import sys\nprint(sorted({name.partition('.')[0] for name in sys.modules} & {'tensorflow', 'keras'}))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout == "[]\n", done.stderr
