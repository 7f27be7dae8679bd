"""push: packs and a model card to a repository on the Hugging Face Hub, without TensorFlow."""

import argparse
from typing import Any

from piggyback_tf.commands.answers import Answer, UsageError
from piggyback_tf.commands.common import PACK_HELP, complain, load_pack
from piggyback_tf.evaluation import format_bytes
from piggyback_tf.foreign_text import printable
from piggyback_tf.packs import PackError, TaskPack

_CARD = "README.md"


def add_command(commands: Any) -> argparse.ArgumentParser:
    """Declares the command's arguments and returns it; `commands` is what `ArgumentParser.add_subparsers` returns."""
    command = commands.add_parser(
        "push",
        help="upload packs to a repository on the Hugging Face Hub; needs no TensorFlow",
        description="Uploads packs, under the names of their tasks, and a model card (README.md) that lists all packs "
        "of the repository, in one commit. The repository is created if it does not exist. If it already has a "
        "README.md, only the part between the command's marker lines is replaced. The token is that of "
        "huggingface_hub: HF_TOKEN, or 'hf auth login'.",
        allow_abbrev=False,
    )
    command.set_defaults(run=_run)
    command.add_argument("packs", metavar="PACK", nargs="+", help=PACK_HELP)
    command.add_argument("--repo", required=True, metavar="OWNER/NAME", help="the repository")
    command.add_argument("--private", action="store_true", help="if the repository is created, only you can see it")
    command.add_argument("--revision", metavar="BRANCH", help="a branch, created if it does not exist; default: main")
    command.add_argument("--message", metavar="TEXT", help="message of the commit; by default it names the tasks")
    return command


def _run(options: argparse.Namespace) -> Answer:
    from piggyback_tf.evaluation.model_card import CardError, PackFile, model_card
    from piggyback_tf.hub import check_repository_name
    from piggyback_tf.packs.hub import PackRepository, pack_file

    check_repository_name(options.repo)
    packs: dict[str, tuple[TaskPack, bytes]] = {}
    for path in options.packs:
        pack, data = load_pack(path)
        name = pack_file(pack.task)
        if name in packs:
            raise UsageError(f"Two of the packs are of a task named {pack.task!r}; a repository holds one of a name.")
        packs[name] = pack, data
    repository = PackRepository.create(options.repo, options.revision, options.private)
    files = {name: PackFile(name, len(data), pack) for name, (pack, data) in packs.items()}
    for name in repository.pack_files().values():
        if name not in files:
            data = repository.read(name)
            files[name] = PackFile(name, len(data), _read(options.command, name, data))
    try:
        existing = repository.read(_CARD).decode() if _CARD in repository.files else None
        card = model_card(options.repo, [files[name] for name in sorted(files)], existing)
    except (CardError, UnicodeDecodeError) as error:
        raise UsageError(f"{_CARD} of {options.repo!r} cannot be filled in: {error}") from error
    message = options.message or f"Add {', '.join(repr(pack.task) for pack, _ in packs.values())}"
    uploads = {name: data for name, (_, data) in packs.items()} | {_CARD: card.encode()}
    address = repository.commit(uploads, message)
    lines = [f"{printable(name)}: {format_bytes(len(data))}" for name, (_, data) in packs.items()]
    lines += [f"{_CARD}: lists {len(files)} task{'s' * (len(files) > 1)}", address]
    value = {
        "files": [{"file": name, "task": pack.task, "bytes": len(data)} for name, (pack, data) in packs.items()],
        "listed": sorted(files),
        "commit": address,
    }
    return Answer(value, "\n".join(lines))


def _read(command: str, name: str, data: bytes) -> TaskPack | None:
    try:
        return TaskPack.from_bytes(data, name)
    except PackError as error:
        complain(command, f"In the repository: {error} The model card says so.")
        return None
