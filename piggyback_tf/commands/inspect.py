"""inspect: what is in packs, without TensorFlow."""

import argparse
import json
from typing import Any

from safetensors.numpy import load as load_tensors

from piggyback_tf.commands.answers import DONE, WRONG, Answer
from piggyback_tf.commands.common import PACK_HELP, complain, file_error, load_pack
from piggyback_tf.evaluation import format_bytes, format_error, format_table, format_zeros, zeros_table
from piggyback_tf.evaluation.text import ERROR_TITLES, format_pairs, interval_kind
from piggyback_tf.foreign_text import printable, short_hash
from piggyback_tf.packs import PackError, TaskPack
from piggyback_tf.packs.parts import count_parts
from piggyback_tf.targets import TARGETS

# The list of classes is wrapped to this many characters.
_WIDTH = 100


def add_command(commands: Any) -> argparse.ArgumentParser:
    """Declares the command's arguments and returns it; `commands` is what `ArgumentParser.add_subparsers` returns."""
    command = commands.add_parser("inspect", help="show what is in packs; needs no TensorFlow", allow_abbrev=False)
    command.set_defaults(run=_run)
    command.add_argument("packs", metavar="PACK", nargs="+", help=PACK_HELP)
    command.add_argument(
        "--details", action="store_true", help="print everything that a pack says about its task, including settings"
    )
    command.add_argument("--layers", action="store_true", help="also list the share of zeros in each mask")
    return command


def _run(options: argparse.Namespace) -> Answer:
    status, packs = DONE, []
    for path in options.packs:
        try:
            pack, data = load_pack(path)
            packs.append((path, pack, len(data), _mask_bytes(data)))
        except (PackError, OSError) as error:
            status = WRONG
            complain(options.command, file_error(path, error))
    parts = []
    if packs:
        header = ["task", "method", "base", "hash", "mask", "classes", "error %", "bytes", "bits/weight", "zeros"]
        parts.append(
            format_table(header, [_row(pack, size, mask_bytes) for _, pack, size, mask_bytes in packs], left=5)
        )
    for path, pack, *_ in packs:
        if options.details:
            parts.append(f"\n{path}:\n{_details(pack)}")
        if options.layers:
            parts.append(f"\n{printable(pack.task)}:\n{format_zeros(pack) if pack.masks else 'no masks'}")
    return Answer([_json(*pack, layers=options.layers) for pack in packs], "\n".join(parts), status)


def _mask_bytes(data: bytes) -> int:
    """Returns the bytes that masks take in a pack's file, without their list of weights and shapes."""
    # In format version 1 a tensor for each mask, later the tensors of all masks together.
    return sum(array.nbytes for name, array in load_tensors(data).items() if name.startswith(("mask/", "masks/")))


def _json(path: str, pack: TaskPack, size: int, mask_bytes: int, layers: bool) -> dict[str, Any]:
    """Returns what a pack holds as JSON values; the keys are those in docs/commands.md."""
    return {
        "file": path,
        "bytes": size,
        "format_version": pack.format_version,
        "content_digest": pack.content_digest(),
        "task": pack.task,
        "classes": pack.class_names,
        "created": pack.created,
        "method": pack.method,
        "base": {
            "name": pack.base_name,
            "weights": pack.base_weights,
            "hash": pack.base_hash,
            "structure": pack.base_structure,
            "answers": pack.base_answers,
        },
        "image_size": pack.image_size,
        "preprocessing": pack.preprocessing,
        "eval_augment": pack.eval_augment,
        "mask": {
            "kind": pack.mask_kind,
            "threshold": pack.threshold,
            "weights": pack.masked_weights,
            "zeros": pack.zeros_total if pack.masks else None,
            "bytes": mask_bytes,
            "bits_per_weight": 8 * mask_bytes / pack.masked_weights if pack.masks else None,
        },
        "norm_variables": len(pack.norm),
        "parts": [
            {"kind": kind, "weights": weights, "numbers": numbers}
            for kind, (weights, numbers) in count_parts(pack.parts).items()
        ],
        "problem": pack.problem,
        "image_shape": list(pack.image_shape),
        "head": pack.head_spec.to_json(),
        "features": pack.head["kernel"].shape[0] if pack.head_spec.is_dense else None,
        "dtype": pack.dtype,
        "errors": pack.errors,
        "settings": pack.settings,
        "versions": pack.versions,
        **({"layers": zeros_table(pack)} if layers else {}),
    }


def _row(pack: TaskPack, size: int, mask_bytes: int) -> list[str]:
    return [
        pack.task,
        pack.method,
        f"{pack.base_name} ({pack.base_weights})",
        short_hash(pack.base_hash),
        " + ".join([pack.mask_kind, *(["norm"] if pack.norm else []), *count_parts(pack.parts)]),
        f"{len(pack.class_names):,}",
        format_error(pack.errors.get("test")),
        format_bytes(size),
        f"{8 * mask_bytes / pack.masked_weights:.3f}" if pack.masks else "-",
        f"{100 * pack.zeros_total:.2f} %" if pack.masks else "-",
    ]


def _details(pack: TaskPack) -> str:
    """Returns what a pack holds but the zeros of its masks, a line each."""
    about = {
        "format version": str(pack.format_version),
        "task": pack.task,
        "created": pack.created,
        "method": pack.method,
        "base": pack.base_name,
        "base weights": pack.base_weights,
        "base hash": pack.base_hash,
        "base structure": pack.base_structure or "not recorded",
        "preprocessing": pack.preprocessing,
        "finds": str(TARGETS.get(pack.problem, pack.problem)),
        "image size": "x".join(map(str, pack.image_shape)),
        "eval augmentation": pack.eval_augment or "none",
        "mask": f"{pack.mask_kind}, threshold {pack.threshold}" if pack.masks else "none",
        "masked weights": f"{pack.masked_weights:,} in {len(pack.masks):,} variables" if pack.masks else "none",
        "norm": f"{len(pack.norm):,} variables of this task" if pack.norm else "that of the base",
        **{
            kind: f"{numbers:,} numbers for {weights:,} weights"
            for kind, (weights, numbers) in count_parts(pack.parts).items()
        },
        "head": f"{pack.head_text}, stored as {pack.dtype}",
    }
    names = [f"{place} {name!r}" for place, name in enumerate(pack.class_names)]
    settings = {name: json.dumps(value, ensure_ascii=False) for name, value in pack.settings.items()}
    kinds = [name for name in ERROR_TITLES if any(name in measured for measured in pack.errors.values())]
    titles = [ERROR_TITLES[name].removesuffix(" error %").removesuffix(" %") for name in kinds]
    errors = [
        [
            split,
            *(format_error(measured, name) for name in kinds),
            f"{measured['images']:,}" if "images" in measured else "-",
        ]
        for split, measured in pack.errors.items()
    ]
    return "\n".join(
        [
            *format_pairs(about, indent=2),
            f"  classes: {len(pack.class_names):,}",
            *_wrapped(names, indent=4),
            f"  errors % [{interval_kind(next(iter(pack.errors.values())))}]:" if kinds else "  errors: none measured",
            *(_indented(format_table(["split", *titles, "images"], errors), 4) if kinds else []),
            "  settings:" if settings else "  settings: none",
            *format_pairs(settings, indent=4),
            "  package versions:" if pack.versions else "  package versions: none",
            *format_pairs(pack.versions, indent=4),
        ]
    )


def _wrapped(names: list[str], indent: int) -> list[str]:
    """Returns names as lines with commas between them; unlike `textwrap`, never breaks one at its blanks or hyphens."""
    lines = [""]
    for place, name in enumerate(names):
        name += "," if place < len(names) - 1 else ""
        if lines[-1] and indent + len(lines[-1]) + 1 + len(name) > _WIDTH:
            lines.append("")
        lines[-1] += f" {name}" if lines[-1] else name
    return [" " * indent + line for line in lines]


def _indented(text: str, indent: int) -> list[str]:
    return [" " * indent + line for line in text.splitlines()]
