"""pull: packs from a repository on the Hugging Face Hub, without TensorFlow."""

import argparse
from pathlib import Path
from typing import Any

from piggyback_tf.commands.answers import DONE, WRONG, Answer, UsageError
from piggyback_tf.commands.common import complain
from piggyback_tf.evaluation import format_bytes, format_error, format_table
from piggyback_tf.file_names import PACK_SUFFIX
from piggyback_tf.files import local_path, make_folder
from piggyback_tf.foreign_text import printable
from piggyback_tf.packs import PackError, TaskPack
from piggyback_tf.registry import unknown_name_message
from piggyback_tf.remote import is_url, write_bytes


def add_command(commands: Any) -> argparse.ArgumentParser:
    """Declares the command's arguments and returns it; `commands` is what `ArgumentParser.add_subparsers` returns."""
    command = commands.add_parser(
        "pull",
        help="download packs from a repository on the Hugging Face Hub; needs no TensorFlow",
        description="Downloads the packs in the top folder of a repository. Each is checked before it replaces a "
        "file of the same name. A single pack can also be used without a download, as "
        "hf://OWNER/NAME/TASK.task.safetensors, or hf://OWNER/NAME@REVISION/...",
        allow_abbrev=False,
    )
    command.set_defaults(run=_run)
    command.add_argument(
        "tasks",
        metavar="TASK",
        nargs="*",
        help=f"names of packs, without {PACK_SUFFIX}; default: all in the repository",
    )
    command.add_argument("--repo", required=True, metavar="OWNER/NAME", help="the repository")
    command.add_argument("--output_dir", default=".", metavar="DIR", help="a folder, or a URL; default: this one")
    command.add_argument("--revision", metavar="REVISION", help="a branch, tag or commit; default: main")
    return command


def _run(options: argparse.Namespace) -> Answer:
    from piggyback_tf.packs.hub import PackRepository

    remote = is_url(options.output_dir)
    folder = options.output_dir.rstrip("/") if remote else local_path(options.output_dir, "--output_dir=")
    if isinstance(folder, Path) and folder.exists() and not folder.is_dir():
        raise UsageError(f"--output_dir={options.output_dir}: this is no folder.")
    repository = PackRepository(options.repo, options.revision)
    files = repository.pack_files()
    if not files:
        raise UsageError(
            f"The repository {options.repo!r} has no packs: no file in its top folder ends in {PACK_SUFFIX}."
        )
    if unknown := [task for task in options.tasks if task not in files]:
        message = unknown_name_message("task", unknown[0], list(map(printable, files)))
        raise UsageError(f"In the repository {options.repo!r}: {message}")
    status, rows, value = DONE, [], []
    for task in dict.fromkeys(options.tasks or files):
        name = files[task]
        try:
            data = repository.read(name)
            pack = TaskPack.from_bytes(data, f"hf://{options.repo}/{name}")
        except PackError as error:
            status = WRONG
            value.append({"task": task, "error": str(error)})
            complain(options.command, str(error))
            continue
        if isinstance(folder, Path):
            make_folder(folder)
        path = folder / name if isinstance(folder, Path) else f"{folder}/{name}"
        write_bytes(path, data)
        value.append(
            {
                "task": pack.task,
                "file": str(path),
                "bytes": len(data),
                "base": {"name": pack.base_name, "weights": pack.base_weights, "hash": pack.base_hash},
                "classes": pack.class_names,
                "errors": pack.errors,
            }
        )
        rows.append(
            [
                pack.task,
                pack.base_name,
                f"{len(pack.class_names):,}",
                format_error(pack.errors.get("test")),
                format_bytes(len(data)),
                str(path),
            ]
        )
    text = ""
    if rows:
        text = format_table(["task", "base", "classes", "error %", "bytes", "file"], rows, left=2, end=1)
    return Answer(value, text, status)
