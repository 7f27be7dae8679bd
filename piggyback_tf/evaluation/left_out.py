"""Images that were left out: what is recorded of them, and what a report says."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from piggyback_tf.data import TaskData
from piggyback_tf.data.unusable_files import KINDS
from piggyback_tf.foreign_text import printable

# So many of a kind and a split are named; the others are in the metrics.
_NAMED = 100


def files_left_out(data: TaskData) -> dict[str, list[dict[str, Any]]]:
    """Returns what each split of a task was left without: `"place"` and `"kind"` of each file, by split."""
    return {
        split: [{"place": problem.place, "kind": problem.kind} for problem in source.left_out]
        for split, source in data.splits.items()
    }


def count_files(left_out: Mapping[str, Sequence[Any]]) -> dict[str, int]:
    """Returns how many files each split was left without; see `files_left_out`."""
    return {split: len(files) for split, files in left_out.items()}


def left_out_lines(left_out: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[str]:
    """Returns lines of Markdown that name the files which were left out; none if there are none.

    Args:
        left_out: What `files_left_out` returns.
    """
    total = sum(len(files) for files in left_out.values())
    if not total:
        return []
    lines = ["## Images left out", ""]
    lines += [f"{total:,} {'file' if total == 1 else 'files'} could not be used (`--skip_broken_images`).", ""]
    for split, files in left_out.items():
        for name, kind in KINDS.items():
            own = [file["place"] for file in files if file["kind"] == name]
            if own:
                lines.append(f"- {split}: {len(own):,} {kind.one if len(own) == 1 else kind.many}")
                lines += [f"  - {_code(place)}" for place in own[:_NAMED]]
                if len(own) > _NAMED:
                    lines.append(f"  - and {len(own) - _NAMED:,} more, which `metrics.json` names under `left_out`")
    return [*lines, ""]


def _code(place: str) -> str:
    text = printable(place)
    # Longer than any run of backquotes in the name.
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence} {text} {fence}" if "`" in text else f"`{text}`"
