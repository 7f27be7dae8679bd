"""compare: what the masks of two packs have in common, without TensorFlow."""

import argparse
import dataclasses
from typing import TYPE_CHECKING, Any

from piggyback_tf.commands.answers import Answer
from piggyback_tf.commands.common import PACK_HELP, load_pack
from piggyback_tf.evaluation import format_table
from piggyback_tf.foreign_text import printable

if TYPE_CHECKING:
    from piggyback_tf.packs.compare import MaskOverlap

_LEGEND = (
    "In percent of the weights: zeros of each mask, weights that both drop, and weights to which both do the same.\n"
    "shared: of the weights that at least one mask drops, those that both drop (Jaccard index)."
)


def add_command(commands: Any) -> argparse.ArgumentParser:
    """Declares the command's arguments and returns it; `commands` is what `ArgumentParser.add_subparsers` returns."""
    command = commands.add_parser(
        "compare",
        help="show how much the masks of two tasks have in common; needs no TensorFlow",
        description="Shows, for each layer and in total, how much the masks of two tasks on the same base overlap.",
        allow_abbrev=False,
    )
    command.set_defaults(run=_run)
    command.add_argument("packs", metavar="PACK", nargs=2, help=PACK_HELP)
    return command


def _run(options: argparse.Namespace) -> Answer:
    from piggyback_tf.packs.compare import MaskOverlap, compare_masks

    a, b = (load_pack(path)[0] for path in options.packs)
    overlaps = compare_masks(a, b)
    named = list(zip("AB", (a, b), options.packs, strict=True))
    value = {
        **{letter.lower(): {"file": path, "task": pack.task} for letter, pack, path in named},
        "layers": [{"path": path, **_json(overlap)} for path, overlap in overlaps.items()],
        "total": _json(MaskOverlap.total(overlaps.values())) if overlaps else None,
    }
    text = "\n".join(f"{letter}  {printable(pack.task)}  {path}" for letter, pack, path in named)
    if not overlaps:
        return Answer(value, f"{text}\n\nNeither task has masks.")
    ternary = "ternary" in (a.mask_kind, b.mask_kind)
    header = ["weight", "weights", "zeros A", "zeros B", "both drop", "same", "shared", *(["negated"] * ternary)]
    rows = [_row(path, overlap, ternary) for path, overlap in overlaps.items()]
    rows.append(_row("all", MaskOverlap.total(overlaps.values()), ternary))
    text += f"\n\n{format_table(header, rows)}\n\n{_LEGEND}"
    if ternary:
        text += "\nnegated: weights that both keep, one with the opposite sign."
    return Answer(value, text)


def _json(overlap: "MaskOverlap") -> dict[str, Any]:
    shares = {"agreement": overlap.agreement, "zeros_jaccard": overlap.zeros_jaccard}
    return {"weights": overlap.weights, **dataclasses.asdict(overlap), **shares}


def _row(name: str, overlap: "MaskOverlap", ternary: bool) -> list[str]:
    def percent(count: float) -> str:
        return f"{100 * count / overlap.weights:.2f}"

    return [
        name,
        f"{overlap.weights:,}",
        percent(overlap.only_b + overlap.neither),
        percent(overlap.only_a + overlap.neither),
        percent(overlap.neither),
        f"{100 * overlap.agreement:.2f}",
        f"{100 * overlap.zeros_jaccard:.2f}",
        *([percent(overlap.opposite)] * ternary),
    ]
