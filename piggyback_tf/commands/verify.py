"""verify: whether packs are whole and fit their base."""

import argparse
from typing import Any

from piggyback_tf.commands.answers import DONE, NO, WRONG, Answer, UsageError
from piggyback_tf.commands.common import (
    PACK_HELP,
    add_base_options,
    choose_base,
    complain,
    file_error,
    load_base,
    load_pack,
    seed_of,
)
from piggyback_tf.foreign_text import short_hash
from piggyback_tf.packs import BaseSpec, PackError, TaskPack
from piggyback_tf.packs.parts import count_parts


def add_command(commands: Any) -> argparse.ArgumentParser:
    """Declares the command's arguments and returns it; `commands` is what `ArgumentParser.add_subparsers` returns."""
    command = commands.add_parser(
        "verify",
        help="check that packs are whole and fit their base",
        description="Checks files of tasks (format, checksum, masks), then loads the base and compares its hash, "
        "what it computes, and the shapes of its weights. Exit status: 0 if all packs are good, 1 if one is "
        "not, 2 if a file or the base is not found.",
        allow_abbrev=False,
    )
    command.set_defaults(run=_run)
    command.add_argument("packs", metavar="PACK", nargs="+", help=PACK_HELP)
    add_base_options(command)
    return command


def _run(options: argparse.Namespace) -> Answer:
    packs, answers = [], {}
    # All files first: what is wrong with one is said before TensorFlow is loaded.
    for path in options.packs:
        try:
            pack, data = load_pack(path)
            packs.append((path, pack, len(data), choose_base(pack, options.backbone, options.weights)))
        except (PackError, UsageError, OSError) as error:
            answers[path] = _bad(error, file_error(path, error))
            complain(options.command, file_error(path, error))
    loaded: dict[tuple, BaseSpec] = {}
    for path, pack, size, base in packs:
        try:
            key = (*base, pack.image_size, seed_of(pack) if base[1] == "random" else None)
            if key not in loaded:
                loaded[key] = BaseSpec.of(load_base(pack, base))
            print(f"{path}:\n{_check(pack, size, loaded[key])}")
            answers[path] = DONE, {"task": pack.task, "good": True, "error": None}
        except (PackError, UsageError, OSError) as error:
            answers[path] = _bad(error, str(error))
            complain(options.command, f"{path!r}: {error}")
    value = [{"file": path, **answers[path][1]} for path in options.packs]
    return Answer(value, status=max(status for status, _ in answers.values()))


def _bad(error: Exception, sentence: str) -> tuple[int, dict[str, Any]]:
    """Returns status and answer for a pack that is not good, or of which that cannot be said."""
    known = isinstance(error, PackError)
    return NO if known else WRONG, {"task": None, "good": False if known else None, "error": sentence}


def _check(pack: TaskPack, size: int, base: BaseSpec) -> str:
    from piggyback_tf.packs.base_fit import check_fits

    check_fits(pack.claims, base)
    parts = "".join(f"{kind} for {weights} weights, " for kind, (weights, _) in count_parts(pack.parts).items())
    computed = ", and computes the same" if pack.base_structure else "; what that one computed is not recorded"
    return (
        f"  file    whole: {size:,} bytes, format version {pack.format_version}, checksum as computed\n"
        f"  base    {base.name} ({base.weights}) has the hash that the pack names, {short_hash(base.hash)}..."
        f"{computed}\n"
        f"  shapes  fit: {len(pack.masks)} masks, {len(pack.norm)} variables of batch norm, {parts}and a head, "
        f"{pack.head_text}"
    )
