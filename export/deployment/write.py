"""Writes what a server needs beside an export."""

import os
from pathlib import Path

from ..servable.additions import BATCHING_FILE, WARMUP_FILE
from ..servable.folder import SECOND, is_version, read_description, versions_in
from ..shared.errors import ExportError
from ..shared.folders import bytes_of
from . import texts
from .memory import memory_of
from .options import ServingOptions
from .owned_files import write_files
from .warmup import warm_up_records, warm_up_requests


def write_deployment(
    export: str | os.PathLike,
    output: str | os.PathLike | None = None,
    options: ServingOptions | None = None,
    *,
    overwrite: bool = False,
) -> list[Path]:
    """Writes what a server needs beside an export, all or nothing.

    Args:
        export: The export's folder, with its versions.
        output: Where the server's configuration goes; the folder `deployment` in the export if None.
        options: What can be chosen; `ServingOptions()` if None.
        overwrite: Whether files are replaced that were changed or written by somebody else.

    Returns:
        The files that are new or changed.

    Raises:
        ExportError: If the folder is no export with both servables, a label's version is not there, or a file that
            somebody else wrote or changed is in the way.
        OSError: If the files cannot be written.
    """
    export, options = Path(export), options or ServingOptions()
    usual = export / "deployment"
    output = usual if output is None else Path(output)
    output = next((folder for folder in (export, usual) if folder.resolve() == output.resolve()), output)
    versions = exported_versions(export)
    loaded = loaded_versions(versions, options)
    memory = memory_of([export / str(version) for version in versions[-loaded:]], options, loaded)
    within = output.resolve().is_relative_to(export.resolve())
    seen = os.path.relpath(export.resolve(), output.resolve()) if within else str(export.resolve())
    folders = [base / str(version) for base in (export, export / SECOND) for version in versions]
    # Without what this command adds to them.
    disk = bytes_of(folders, without=(WARMUP_FILE.name, BATCHING_FILE.name))
    files = {
        output / "models.config": texts.models_config(options, loaded).encode(),
        output / "batching_parameters.txt": texts.batching_threads(options).encode(),
        output / "monitoring.config": texts.monitoring().encode(),
        output / "docker-compose.yml": texts.compose(options, memory, seen).encode(),
        output / "kubernetes.yaml": texts.kubernetes(options, memory, disk).encode(),
        output / "client.py": texts.read_client(),
    }
    inside: dict[Path, bytes] = {}
    for version in versions:
        first, second = export / str(version), export / SECOND / str(version)
        requests = list(warm_up_requests(read_description(first), options.max_batch_size))
        inside[first / BATCHING_FILE] = texts.batching_params(options).encode()
        for servable in (first, second):
            inside[servable / WARMUP_FILE] = warm_up_records(servable, requests)
    # The export remembers what is in its versions, so that a deployment elsewhere may replace it. Earlier versions of
    # this command remembered it in its folder `deployment`.
    groups: dict[Path, dict[Path, bytes]] = {output: files}
    for folder, content in ((export, inside), (usual, {})):
        groups.setdefault(folder, {}).update(content)
    return write_files(groups, overwrite=overwrite)


def exported_versions(export: Path) -> list[int]:
    """Returns the versions in an export's folder, the oldest first.

    Raises:
        ExportError: If a folder that a server would load is no export, or has no second servable.
    """
    if is_version(export):
        raise ExportError(f"{str(export)!r} is one version of an export; give the folder in which it lies.")
    # A server takes every folder for a version whose name is a number.
    found = sorted({*versions_in(export), *versions_in(export / SECOND)})
    if not found:
        raise ExportError(f"{str(export)!r} is no export: there is no version in it.")
    for version in found:
        first, second = export / str(version), export / SECOND / str(version)
        if not first.exists():
            raise ExportError(
                f"{str(export)!r} is no whole export: {str(second)!r} stands alone, without {str(first)!r}; remove it."
            )
        read_description(first)
        if not second.is_dir():
            raise ExportError(f"{str(export)!r} is no whole export: there is no folder {str(second)!r}.")
    return found


def loaded_versions(versions: list[int], options: ServingOptions) -> int:
    """Returns how many of the newest versions a server keeps loaded.

    With labels that is one more than reaches back to the oldest of them, so that it does not lose its version when the
    next one comes.

    Raises:
        ExportError: If a label's version is not there.
    """
    for label, version in options.labels.items():
        if version not in versions:
            raise ExportError(
                f"--{label}={version}: there is no version {version}; there are {', '.join(map(str, versions))}."
            )
    if not options.labels:
        return 1
    return len(versions) - versions.index(min(options.labels.values())) + 1
