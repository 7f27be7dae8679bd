"""What is installed: its packages, what it depends on, its commands, and how they call themselves."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from piggyback_tf.evaluation.plot_style import write_plot
from piggyback_tf.extras import EXTRAS
from tests.forked import run_forked

ROOT = Path(__file__).resolve().parent.parent
EXPORTS = ("saved_model", "serving", "litert", "verify")


@pytest.fixture(scope="module", name="project")
def _project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_every_folder_with_code_is_a_package(project):
    folders = {path.parent for top in ("piggyback_tf", "export") for path in (ROOT / top).rglob("*.py")}
    names = {".".join(folder.relative_to(ROOT).parts) for folder in folders}
    packages = {name if name.startswith("piggyback_tf") else f"piggyback_tf.{name}" for name in names}
    assert sorted(packages) == project["tool"]["setuptools"]["packages"]
    assert all((folder / "__init__.py").is_file() for folder in folders)


def test_every_file_that_is_no_code_is_package_data(project):
    listed = set()
    for package, patterns in project["tool"]["setuptools"]["package-data"].items():
        folder = ROOT / package.replace("piggyback_tf.export", "export").replace(".", "/")
        listed |= {path for pattern in patterns for path in folder.glob(pattern)}
    others = {
        path
        for top in ("piggyback_tf", "export")
        for path in (ROOT / top).rglob("*")
        if path.is_file() and path.suffix not in (".py", ".pyc")
    }
    assert listed == others


def test_dependencies_and_extras_are_the_requirements(project):
    lines, of_tests = (
        [line.partition("#")[0].strip() for line in (ROOT / name).read_text().splitlines()]
        for name in ("requirements.txt", "requirements-dev.txt")
    )
    core, extras = project["project"]["dependencies"], project["project"]["optional-dependencies"]
    (ray,) = extras["ray"]  # Large, and for clusters alone.
    assert ray in of_tests
    union = [*core, *(requirement for extra in extras.values() for requirement in extra if requirement != ray)]
    assert sorted(union) == sorted(filter(None, lines))
    assert {"absl-py", "tensorflow-model-optimization"} <= {requirement.partition(">")[0] for requirement in core}
    assert {*EXTRAS.values()} == {*extras}
    for package, extra in EXTRAS.items():
        assert any(package.split("_")[0] in requirement for requirement in extras[extra])


def test_an_export_imports_nothing_by_the_name_of_the_checkout():
    code = [path for path in (ROOT / "export").rglob("*.py") if "from export" in path.read_text()]
    assert not code


def test_the_checkout_has_the_package_that_is_installed():
    program = "import sys, piggyback_tf.export.shared.packs as packs; print(packs.__file__, 'export' in sys.modules)"
    done = run_forked("-c", program)
    assert done.stdout.split() == [str(ROOT / "export" / "shared" / "packs.py"), "False"], done.stderr


def test_elsewhere_no_folder_is_taken_into_the_package(tmp_path):
    """A folder `export` beside the installed package, without `train.py`, is somebody else's."""
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "__init__.py").touch()
    (tmp_path / "piggyback_tf").mkdir()
    for name in ("__init__.py", "lazy.py", "version.py"):
        (tmp_path / "piggyback_tf" / name).write_bytes((ROOT / "piggyback_tf" / name).read_bytes())
    program = "import piggyback_tf; print(len(piggyback_tf.__path__)); import piggyback_tf.export"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env={}, capture_output=True, text=True, check=False
    )
    assert done.stdout == "1\n"
    assert "No module named 'piggyback_tf.export'" in done.stderr


@pytest.mark.parametrize("command", ["train", *(f"export {name}" for name in EXPORTS)])
def test_one_program_has_all_commands(command):
    called = run_forked("-m", "piggyback_tf", *command.split())
    assert (called.returncode, called.stdout) == (2, "")
    assert f"    python -m piggyback_tf {command} " in called.stderr
    assert "What matters most:\n  --" in called.stderr
    wrong = run_forked("-m", "piggyback_tf", *command.split(), "--no_flag=1")
    assert wrong.returncode == 2
    assert wrong.stderr.splitlines()[-1].startswith(f"python -m piggyback_tf {command}: There is no flag --no_flag.")


def test_the_installed_program_says_its_own_name():
    program = "import sys; sys.argv[:] = ['/usr/bin/piggyback', *{!r}]; from piggyback_tf.__main__ import main; main()"
    for arguments in (["inspect", "nothing"], ["export", "verify", "--packs="]):
        done = run_forked("-c", program.format(arguments))
        assert done.stderr.splitlines()[-1].startswith(f"piggyback {' '.join(arguments[:-1])}: "), done.stderr


@pytest.mark.parametrize(
    ("package", "arguments"),
    [
        ("ai_edge_litert", ["export", "litert", "--packs={pack}", "--output={folder}/out"]),
        ("tensorflow_serving", ["export", "serving", "{folder}"]),
        ("matplotlib", ["table", "--layout=survey", "{folder}", "--plots={folder}/plots"]),
    ],
)
def test_a_missing_extra_is_named(package, arguments, tmp_path):
    (tmp_path / "pack").touch()
    arguments = [argument.format(pack=tmp_path / "pack", folder=tmp_path) for argument in arguments]
    hidden = f"import sys; [sys.modules.pop(n) for n in [*sys.modules] if n.split('.')[0] == {package!r}]; "
    hidden += f"sys.modules[{package!r}] = None; from piggyback_tf.__main__ import main; sys.exit(main({arguments!r}))"
    done = run_forked("-c", hidden)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()[-1:]
    assert f"The package {package} is needed to " in line
    assert line.endswith(f"and not installed: pip install 'piggyback_tf[{EXTRAS[package]}]'")


def test_reports_do_without_plots_and_say_so(tmp_path, monkeypatch):
    from piggyback_tf.evaluation import write_report

    monkeypatch.setitem(sys.modules, "matplotlib", None)
    (tmp_path / "zeros.png").write_bytes(b"of before")
    errors = {"images": 5, "top1_error": 1.0}
    sequence = {"tasks": ["t"], "steps": [{"errors": {"t": errors}, "zeros": {"a": 0.5}}]}
    write_report(tmp_path, {"methods": {"piggyback": sequence}})
    report = (tmp_path / "report.md").read_text()
    assert "There are no plots. The package matplotlib is needed" in report
    assert ".png" not in report
    assert not (tmp_path / "zeros.png").exists()
    assert not write_plot(tmp_path / "plot.png", lambda: None)
