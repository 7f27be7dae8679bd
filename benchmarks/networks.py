"""Every network of the registry, masked: does it start as the base, save and load, and train nothing but masks?

    python benchmarks/networks.py

Each network with random weights at its smallest image size, one after another in a process of its own. Interrupted,
it goes on. Writes results/networks.json.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import Results, markdown, parser

CHECKS = ("same_start", "base_unchanged", "only_masks_train", "round_trip")


def check(name: str) -> dict[str, Any]:
    """Returns for one network which of the checks hold."""
    from piggyback_tf.backbones import load_backbone
    from piggyback_tf.backbones.registry import get_entry
    from tests.common import check_masked_network

    started = time.perf_counter()
    size = get_entry(name).min_size
    with tempfile.TemporaryDirectory() as folder:
        row = check_masked_network(load_backbone(name, weights="random", image_size=size), Path(folder))
    return {"image_size": size} | row | {"seconds": round(time.perf_counter() - started, 1)}


def in_own_process(name: str) -> dict[str, Any]:
    """Runs `check` in a process of its own, whose memory goes with it."""
    done = subprocess.run([sys.executable, __file__, "--check", name], capture_output=True, text=True, check=False)
    if done.returncode:
        return {"error": done.stderr.strip().splitlines()[-1]}
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--names", nargs="+", help="Networks to check; all by default.")
    arguments.add_argument("--check", metavar="NAME", help="Used by the script itself.")
    options = arguments.parse_args()
    if options.check:
        print(json.dumps(check(options.check)))
        return
    from piggyback_tf.backbones import list_backbones

    results, table = Results("networks"), []
    for name in options.names or list_backbones():
        row = results.run(name, lambda: in_own_process(name))  # noqa: B023
        if "error" in row:
            table.append([name, row["error"]])
            continue
        share = f"{100 * row['masked_weights'] / row['weights']:.1f} %"
        marks = ("yes" if row[c] else "NO" for c in CHECKS)
        table.append([name, row["image_size"], row["masks"], f"{row['masked_weights']:,}", share, *marks])
    results.save()
    print(markdown(["network", "px", "masks", "masked weights", "of all weights", *CHECKS], table))
    if any("error" in row or not all(row[c] for c in CHECKS) for row in results.rows.values()):
        sys.exit(1)


if __name__ == "__main__":
    main()
