"""The folder of an export: versions that are written whole or not at all, and read again to add tasks.

`DIR/<version>` is the servable; `DIR/with_mask/<version>` is the second one, beside it. A server takes no notice of
subfolders whose names are no numbers.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tensorflow as tf

from piggyback_tf.backbones import Structure
from piggyback_tf.files import flush, make_folder, temporary_folder
from piggyback_tf.packs import BaseSpec

from ..errors import ExportError
from .layout import Layout
from .network import ExportedBase
from .options import ExportOptions
from .tables import ARRAYS, TaskTables

FORMAT = 1
SECOND = "with_mask"
# Beside a SavedModel's variables: what is needed to add a task, without weights or images.
DESCRIPTION, NETWORK = Path("assets/export.json"), Path("assets/network")


def next_version(output: Path) -> int:
    """Returns the version after the highest that is there; 1 if there is none."""
    return max([0, *versions_in(output), *versions_in(output / SECOND)]) + 1


def is_version(path: Path) -> bool:
    """Returns whether a folder is a version of an export."""
    return (path / DESCRIPTION).is_file()


def find_version(path: Path) -> Path:
    """Returns the folder of a version: the path itself, or the highest version in it.

    Raises:
        ExportError: If there is none.
    """
    if is_version(path):
        return path
    found = versions_in(path)
    if not found or not is_version(path / str(max(found))):
        raise ExportError(
            f"{str(path)!r} is no export: neither it nor a version in it has a file {str(DESCRIPTION)!r}."
        )
    return path / str(max(found))


@contextlib.contextmanager
def new_version(output: Path, version: int) -> Iterator[tuple[Path, Path]]:
    """Yields temporary folders for both servables, which become those of a version when the block ends well.

    Args:
        output: The export's folder; made if need be.
        version: The version.

    Raises:
        ExportError: If the version is there already, or somebody else wrote it meanwhile.
    """
    targets = output / str(version), output / SECOND / str(version)
    _check_free(targets, version)
    with made_folder(targets[1].parent), temporary_folder(output) as temporary:
        yield temporary / "main", temporary / SECOND
        for path in temporary.rglob("*"):
            flush(path)
        _check_free(targets, version)
        # The second first: where a server sees the one that is listed, the other is there.
        (temporary / SECOND).rename(targets[1])
        try:
            (temporary / "main").rename(targets[0])
        except OSError:
            shutil.rmtree(targets[1])
            raise
        flush(targets[1].parent)
        flush(output)


def _check_free(targets: tuple[Path, Path], version: int) -> None:
    """Raises an `ExportError` if one of the folders of a version is there."""
    if taken := [target for target in targets if target.exists()]:
        raise ExportError(f"There is a version {version} already: {str(taken[0])!r}. Versions are never overwritten.")


@contextlib.contextmanager
def made_folder(folder: Path) -> Iterator[None]:
    """Makes a folder with those above it, and removes what it made if the block fails."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    make_folder(folder)
    try:
        yield
    except BaseException:
        for path in missing:
            # Another file of ours may be in it still; then it is left to the context that made it.
            with contextlib.suppress(OSError):
                path.rmdir()
        raise


def share_variables(first: Path, second: Path) -> None:
    """Makes the variables' files of the second servable those of the first, so that the disk holds the base once.

    A loader reads by name what its graph asks for, and the first one's files hold all that the second one's do. A copy
    that does not keep hard links holds both, and serves as well.
    """
    for path in (second / "variables").iterdir():
        path.unlink()
    for path in (first / "variables").iterdir():
        try:
            os.link(path, second / "variables" / path.name)
        except OSError:
            # Not every file system has links.
            shutil.copy2(path, second / "variables" / path.name)


def write_description(
    folder: Path, spec: BaseSpec, layout: Layout, tables: TaskTables, options: dict[str, Any], kernels: str
) -> None:
    """Writes what is known of an export beside its variables; `kernels` says how masked kernels are kept."""
    base = {name: getattr(spec, name) for name in ("name", "weights", "hash", "image_size", "features")}
    # Beside "base" and not in it, so that earlier versions read the export, too.
    structure = {} if spec.structure is None else spec.structure.to_json()
    content = {"format": FORMAT, "base": base, **structure, "options": options, "kernels": kernels}
    content |= tables.to_json()
    content["layout"] = layout.to_json()
    path = folder / DESCRIPTION
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def read_description(folder: Path) -> dict[str, Any]:
    """Returns what `write_description` wrote.

    Raises:
        ExportError: If the file is not there or of another format.
    """
    try:
        content = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise ExportError(
                f"{str(folder)!r} is an export of format {content['format']}; this package reads {FORMAT}."
            )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ExportError(f"{str(folder)!r} is no export, or is damaged: {error}.") from error
    return content


def read_export(folder: Path) -> tuple[ExportedBase, TaskTables, ExportOptions]:
    """Reads an export: its base, its tasks, and what was chosen for it.

    Raises:
        ExportError: If the folder is no whole export.
    """
    content = read_description(folder)
    try:
        layout = Layout.from_json(content["layout"])
        shapes = {p: s for part in (layout.kernels, layout.norm, layout.rest) for p, s in part.shapes.items()}
        spec = BaseSpec(
            **content["base"],
            shapes=shapes,
            norm_paths=frozenset(layout.norm.shapes),
            structure=Structure.from_json(content),
            maskable=frozenset(layout.kernels.shapes),
        )
        options = ExportOptions(**content["options"])
        # From the file: loading the SavedModel would unpack the kernels of every task.
        reader = tf.train.load_checkpoint(str(folder / "variables" / "variables"))
        arrays = {
            name: reader.get_tensor(f"{name}/.ATTRIBUTES/VARIABLE_VALUE") for name in (*ARRAYS, "kernels", "rest")
        }
        network = tf.saved_model.load(str(folder / NETWORK))
        base = ExportedBase(spec, layout, network.features, arrays["kernels"], arrays["rest"])
        return base, TaskTables.restore(arrays, content), options
    except (OSError, ValueError, LookupError, TypeError, RuntimeError, tf.errors.OpError) as error:
        raise ExportError(f"{str(folder)!r} is no whole export: {error}") from error


def versions_in(folder: Path) -> list[int]:
    """Returns the subfolders that a server would take for versions, in any order."""
    if not folder.is_dir():
        return []
    return [int(path.name) for path in folder.iterdir() if path.name.isascii() and path.name.isdigit()]
