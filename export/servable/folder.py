"""The folder of a SavedModel export: versions that are written whole or not at all, each with what is known of it.

`DIR/<version>` is the servable; `DIR/with_mask/<version>` is the second one, beside it. A server takes no notice of
subfolders whose names are no numbers. Nothing here needs TensorFlow.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from piggyback_tf.backbones.structure_record import Structure
from piggyback_tf.foreign_text import some
from piggyback_tf.junk import is_junk
from piggyback_tf.packs import BaseSpec

from ..shared.errors import ExportError
from ..shared.folders import new_folders
from .layout import WeightLayout
from .task_tables import TaskTables

# Earlier versions of this package would drop the signatures of tasks of other answers than classes, which are held from
# format 2 on, and what tasks change beside masks and batch norm, which is held in format 3.
FORMAT_OF_CLASSES, FORMAT_OF_ALL_ANSWERS, FORMAT = 1, 2, 3
SECOND = "with_mask"
# Beside a SavedModel's variables: what is needed to add a task, without weights or images.
DESCRIPTION, NETWORK = Path("assets/export.json"), Path("assets/network")
# The network with each kind of head that is more than a layer on the features: `0`, `1` and so on.
HEADS = Path("assets/heads")


def next_version(output: Path) -> int:
    """Returns the version after the highest that is there; 1 if there is none."""
    return max([0, *versions_in(output), *versions_in(output / SECOND)]) + 1


def check_is_for_exports(output: Path) -> None:
    """Raises an `ExportError` if a folder has no version of an export, but something else in it."""
    if not output.is_dir() or versions_in(output):
        return
    if others := sorted(path.name for path in output.iterdir() if path.name != SECOND and not is_junk(path.name)):
        raise ExportError(
            f"{str(output)!r} is no export, and holds something else: {some(others)}. Name a new or empty folder."
        )


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
    """Yields where both servables are made, whose folders become those of a version when the block ends well.

    Args:
        output: The export's folder; made if need be.
        version: The version.

    Raises:
        ExportError: If the version is there already, or somebody else wrote it meanwhile.
        OSError: If the folders cannot be written.
    """
    first, second = output / str(version), output / SECOND / str(version)

    def check_free() -> None:
        check_is_for_exports(output)
        if taken := [target for target in (first, second) if target.exists()]:
            raise ExportError(
                f"There is a version {version} already: {str(taken[0])!r}. Versions are never overwritten."
            )

    # The second first: where a server sees the one that is listed, the other is there.
    with new_folders([second, first], check_free) as folders:
        yield folders[1], folders[0]


def link_variables(first: Path, second: Path) -> None:
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
    folder: Path,
    spec: BaseSpec,
    layout: WeightLayout,
    tables: TaskTables,
    options: dict[str, Any],
    kernels: str,
    heads: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Writes what is known of an export beside its variables.

    Args:
        folder: The folder of the version.
        spec, layout, tables, options: What the export is made of.
        kernels: How masked kernels are kept.
        heads: What is known of each network in `HEADS`, in order.
    """
    base = {name: getattr(spec, name) for name in ("name", "weights", "hash", "image_size", "features")}
    # Beside "base" and not in it, so that earlier versions read the export, too.
    structure = {} if spec.structure is None else spec.structure.to_json()
    number = FORMAT_OF_CLASSES if tables.only_classes else FORMAT_OF_ALL_ANSWERS
    number = number if tables.parts is None else FORMAT
    content = {"format": number, "base": base, **structure, "options": options, "kernels": kernels}
    content |= tables.to_json() | ({"heads": list(heads)} if heads else {})
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
        if content["format"] not in range(FORMAT_OF_CLASSES, FORMAT + 1):
            raise ExportError(
                f"{str(folder)!r} is an export of format {content['format']}; this package reads {FORMAT_OF_CLASSES} "
                f"to {FORMAT}."
            )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ExportError(f"{str(folder)!r} is no export, or is damaged: {error}.") from error
    return content


def described_base(content: Mapping[str, Any], layout: WeightLayout) -> BaseSpec:
    """Returns with what packs for an export have to agree.

    Args:
        content: What `write_description` wrote.
        layout: Where weights are, as it says.

    Raises:
        LookupError, TypeError, ValueError: If it is damaged.
    """
    return BaseSpec(
        **content["base"],
        shapes={
            path: shape for part in (layout.kernels, layout.norm, layout.rest) for path, shape in part.shapes.items()
        },
        norm_paths=frozenset(layout.norm.shapes),
        structure=Structure.from_json(content),
        maskable=frozenset(layout.kernels.shapes),
    )


def versions_in(folder: Path) -> list[int]:
    """Returns the subfolders that a server would take for versions, in any order."""
    if not folder.is_dir():
        return []
    return [int(path.name) for path in folder.iterdir() if path.name.isascii() and path.name.isdigit()]
