"""Prints how long each part of .ci/run took beside its budget; fails if all of them or a part took far too long.

    python3 .ci/budget.py PARTS

PARTS has a line `NAME|SECONDS|BUDGET|LIMIT` for each part, in seconds. Over its budget a part is too slow on a quiet
machine, which is a warning. Over its limit, which may be empty, it fails on any machine.
"""

import sys
from pathlib import Path

# An hour: who waits for CI waits for all of it.
TOTAL = 3600


def judge(lines: list[str]) -> tuple[list[str], list[str], bool]:
    """Returns a table, sentences about what took too long, and whether that is a failure.

    Args:
        lines: What `.ci/run` writes of each part.
    """
    parts = [(name, int(took), int(budget), limit) for name, took, budget, limit in (line.split("|") for line in lines)]
    parts.append(("all of CI", sum(took for _, took, _, _ in parts), TOTAL, str(TOTAL)))
    table = [f"{'part':<32} {'seconds':>8} {'budget':>8}"]
    sentences, failed = [], False
    for name, took, budget, limit in parts:
        table.append(f"{name:<32} {took:>8} {budget:>8}{'  over' if took > budget else ''}")
        if limit and took > int(limit):
            failed = True
            sentences.append(f"FAILED: {name} took {took} s, and may never take more than {limit} s.")
        elif took > budget:
            sentences.append(f"WARNING: {name} took {took} s, and should take at most {budget} s on a quiet machine.")
    return table, sentences, failed


def main() -> int:
    table, sentences, failed = judge(Path(sys.argv[1]).read_text().splitlines())
    print(*table, *sentences, sep="\n", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
