"""Answers to very many images: written in parts to a folder, by several processes, by a command that can go on."""

import argparse
import concurrent.futures
import csv
import hashlib
import json
import re
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from piggyback_tf.commands.answers import DONE, WRONG, Answer, UsageError
from piggyback_tf.commands.asked_tasks import AskedTasks, no_file
from piggyback_tf.commands.common import check_folder_above, load_pack, positive, share_of_cores
from piggyback_tf.farm.pool import PROGRAM, Running, error_in, start_with_parent, what_ended
from piggyback_tf.file_names import ANSWERS_PLAN, answers_part_name
from piggyback_tf.files import is_empty, write_atomically
from piggyback_tf.foreign_text import counted, duration, some
from piggyback_tf.packs import TaskPack
from piggyback_tf.packs.find import find_packs
from piggyback_tf.remote import is_url

_SHARD_SIZE = 1000
# What several processes are told as it was given; --jobs is what starts them.
# What answers depend on, as a person calls it.
_PLANNED = {
    "tasks": "the tasks",
    "top_k": "--top_k",
    "images": "the number of images",
    "list": "the images",
    "shard_size": "--shard_size",
}
_TOLD = ("list", "results", "shard_size", "top_k", "backbone", "weights", "batch_size")


def add_results_options(command: argparse.ArgumentParser) -> None:
    """Declares the arguments of `predict` for very many images."""
    command.add_argument(
        "--results",
        metavar="DIR",
        help="write the answers into this folder, in files of --shard_size images; the same command goes on with those "
        "that are missing",
    )
    command.add_argument(
        "--packs",
        metavar="PATH",
        action="append",
        help="with --results: more tasks on the same base, each asked about every image; files, URLs, folders or glob "
        "patterns; may be given more than once",
    )
    command.add_argument(
        "--jobs", type=positive, metavar="N", help="with --results: processes on this machine; default: 1"
    )
    command.add_argument(
        "--part",
        metavar="K/N",
        help="with --results: only each N-th file, from the K-th on, counted from 0; for N machines that share DIR",
    )
    command.add_argument(
        "--shard_size",
        type=positive,
        metavar="N",
        help=f"with --results: images in a file of answers; default: {_SHARD_SIZE}",
    )


def read_list(path: Path) -> list[str]:
    """Returns the images that a file lists: one in each line, or, of a `.csv`, in the column `image`.

    Raises:
        UsageError: If it cannot be read, or a line of a CSV file names no image.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            if path.suffix.lower() != ".csv":
                return [line for line in stream.read().splitlines() if line.strip()]
            rows = csv.DictReader(stream, strict=True)
            if "image" not in (rows.fieldnames or ()):
                raise UsageError(f"--list={path}: the first line names no column 'image'.")
            found = []
            for row in rows:
                if not row["image"]:
                    raise UsageError(f"--list={path}: line {rows.line_num} has nothing in the column 'image'.")
                found.append(row["image"])
            return found
    except (UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"--list={path}: this is no list in UTF-8: {error}.") from error


def check_some_exist(paths: Sequence[str]) -> None:
    """Raises a `UsageError` if none of these files is there."""
    if any(is_url(path) or Path(path).exists() for path in paths):
        return
    raise UsageError(
        no_file(paths[0]) if len(paths) == 1 else f"There is none of these files: {some(paths, form=repr)}."
    )


def predict_into(options: argparse.Namespace, paths: Sequence[str]) -> Answer:
    """Answers images into the folder `--results`.

    Args:
        options: Of the command.
        paths: All images.

    Returns:
        How many images, files and errors there are.

    Raises:
        UsageError: If the folder holds other answers, or something else that was given is wrong.
    """
    if not options.results:
        raise UsageError(f"{is_empty('--results=')} Name a folder.")
    if options.output_dir is not None:
        raise UsageError("--output_dir does not go with --results: pictures are for few images.")
    if options.jobs is not None and options.part is not None:
        raise UsageError("--jobs does not go with --part: it makes a part for each process.")
    packs = _read_packs(options)
    asked = AskedTasks(packs, options)
    size = options.shard_size or _SHARD_SIZE
    shards = _Shards(Path(options.results), paths, size)
    first, step = _part(options.part)
    mine = range(first, shards.number, step)
    if missing := shards.missing(mine):
        check_some_exist(shards.images(missing[0]))
    check_folder_above(shards.folder, "--results=")
    shards.keep_plan({"tasks": {pack.task: pack.content_digest() for pack in packs}, "top_k": options.top_k})
    if missing and (options.jobs or 1) > 1:
        _start_parts(options, min(options.jobs, len(missing)))
    else:
        began, answered = time.monotonic(), 0
        for place, number in enumerate(missing, start=1):
            answered += shards.write(number, asked, options.batch_size)
            rate = answered / (time.monotonic() - began)
            left = sum(len(shards.images(each)) for each in missing[place:]) / rate
            rest = f"; about {duration(left)} left" if left else ""
            print(f"{place} of {counted(len(missing), 'file')}: {rate:.1f} images a second{rest}", flush=True)
    images, errors = shards.count(mine)
    value = {"results": str(shards.folder), "files": len(mine), "new": len(missing), "images": images, "errors": errors}
    text = f"{counted(images, 'image')} in {counted(len(mine), 'file')}, {len(missing)} of them new: {shards.folder}"
    wrong = f"\n{counted(errors, 'image')} without all answers; their lines say why." if errors else ""
    return Answer(value, text + wrong, WRONG if errors else DONE)


class _Shards:
    """Files that hold the answers to some images each.

    Args:
        folder: Where they are.
        paths: All images.
        size: How many images a file is for.
    """

    def __init__(self, folder: Path, paths: Sequence[str], size: int):
        self.folder, self._paths, self._size = folder, paths, size
        self.number = -(-len(paths) // size)

    def images(self, number: int) -> Sequence[str]:
        """Returns the images of a file, which are counted from 0."""
        return self._paths[number * self._size : (number + 1) * self._size]

    def missing(self, numbers: range) -> list[int]:
        """Returns those of some files that are not there."""
        return [number for number in numbers if not self._path(number).exists()]

    def keep_plan(self, asked: dict[str, Any]) -> None:
        """Notes what the answers are to.

        Raises:
            UsageError: If the folder holds answers to something else.
        """
        digest = hashlib.sha256("\0".join(self._paths).encode("utf-8", "surrogateescape")).hexdigest()
        plan = {**asked, "images": len(self._paths), "list": digest, "shard_size": self._size}
        path = self.folder / ANSWERS_PLAN
        if path.exists():
            try:
                found = json.loads(path.read_text())
                other = [_PLANNED[name] for name in plan if found[name] != plan[name]]
            except (ValueError, KeyError, TypeError):
                raise UsageError(f"{str(path)!r} is damaged. Use another folder.") from None
            if other:
                raise UsageError(
                    f"--results={self.folder}: this folder holds answers to something else. What differs: "
                    f"{', '.join(other)}. Use another folder."
                )
        elif self.folder.exists() and any(self.folder.iterdir()):
            raise UsageError(f"--results={self.folder}: this folder holds something else. Use a new one.")
        self.folder.mkdir(exist_ok=True)
        write_atomically(path, json.dumps(plan, indent=1) + "\n")

    def write(self, number: int, asked: AskedTasks, batch_size: int) -> int:
        """Answers the images of a file, and writes it whole or not at all; returns how many they are."""
        images = self.images(number)
        lines = []
        for start in range(0, len(images), batch_size):
            for found in asked.answer(images[start : start + batch_size]):
                answer = {"error": found.error} if found.error else {"tasks": found.values}
                lines.append(json.dumps({"image": found.path, **answer}) + "\n")
        write_atomically(self._path(number), "".join(lines))
        return len(images)

    def count(self, numbers: range) -> tuple[int, int]:
        """Returns how many images have a line, and how many of them are without an answer of a task."""
        answers = [answer for number in numbers for answer in _errors_in(self._path(number))]
        return len(answers), sum(answers)

    def _path(self, number: int) -> Path:
        return self.folder / answers_part_name(number, self.number)


def _errors_in(path: Path) -> Iterator[bool]:
    """Yields for each line of a file of answers whether one is missing."""
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            answer = json.loads(line)
            yield "error" in answer or any("error" in value for value in answer["tasks"].values())


def _read_packs(options: argparse.Namespace) -> list[TaskPack]:
    """Returns the packs of all tasks that are asked."""
    packs = [load_pack(path)[0] for path in [options.pack, *(find_packs(options.packs) if options.packs else ())]]
    names = [pack.task for pack in packs]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UsageError(f"Two packs are of the task {twice[0]!r}.")
    return packs


def _part(text: str | None) -> tuple[int, int]:
    """Returns with which file a part begins, and how many parts there are."""
    if text is None:
        return 0, 1
    found = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text)
    if not found or int(found[1]) >= int(found[2]):
        raise UsageError(f"--part={text}: this must be K/N with K from 0 to N - 1, such as 0/4.")
    return int(found[1]), int(found[2])


def _start_parts(options: argparse.Namespace, jobs: int) -> None:
    """Answers all that is missing with a process for each part.

    Raises:
        UsageError: If one ends without having done its part; what the others wrote stays.
    """
    told = [f"--{name}={getattr(options, name)}" for name in _TOLD if getattr(options, name) is not None]
    told += [f"--packs={each}" for each in options.packs or ()]
    running = Running()

    def answer(part: int) -> None:
        command = (*PROGRAM, "predict", options.pack, *options.images, *told, f"--part={part}/{jobs}", "--json")
        process = start_with_parent(command, share_of_cores(jobs), stdout=subprocess.PIPE)
        with running.process(process):
            output, _ = process.communicate()
        if process.returncode not in (DONE, WRONG):
            raise UsageError(
                f"A process was ended by {what_ended(process.returncode)}. The same command goes on with what is "
                "missing; fewer --jobs need less memory."
            )
        if error := error_in(output):
            raise UsageError(error)

    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        futures = [pool.submit(answer, part) for part in range(jobs)]
        try:
            for future in concurrent.futures.as_completed(futures):
                future.result()
        except BaseException:
            running.end()
            raise
