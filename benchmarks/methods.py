"""Every method on the three sets of real images, one after another: errors, forgetting, bytes, time.

    PIGGYBACK_REALDATA=... python benchmarks/methods.py

MobileNetV2 at 96 px with ImageNet weights; each method with its own recipe and the same number of epochs, images and
augmentation. Methods whose tasks depend on those before run in both orders: sketch, art, textures, and the reverse. The
best epoch is chosen on a tenth of the training images. An interrupted run goes on where it was; a run that is in
results/methods.json is not done again.

The intervals of 95 % are those of the test images, seeds taken together: with p the error of a set, n its images and s
seeds, 1.96 sqrt(sum over sets of p (1 - p) / (n s)) / sets.
"""

import math
import statistics
from collections.abc import Sequence
from typing import Any

from common import Results, markdown, parser, realdata
from tasks import INPUTS, SETS, mobilenet, state_folder

from piggyback_tf.backbones import Backbone
from piggyback_tf.data import load_data
from piggyback_tf.evaluation import format_bytes
from piggyback_tf.methods import METHODS
from piggyback_tf.sequences import SequenceSettings, run_sequence
from piggyback_tf.training import TrainConfig, TrainingError

ORDERS = {"forward": SETS, "reverse": SETS[::-1]}
EPOCHS = 10


def learn(backbone: Backbone, method: str, order: str, seed: int) -> dict[str, Any]:
    """Learns the three sets by a method; returns what the table needs."""
    kind = METHODS[method]
    tasks = {name: load_data(f"folder:{realdata() / name}", seed=seed) for name in ORDERS[order]}
    config = TrainConfig(**{**kind.recipe, "epochs": EPOCHS, "seed": seed})
    settings = SequenceSettings(method, kind.Config(), config, INPUTS)
    try:
        metrics = run_sequence(state_folder(f"methods/{method}/{order}/{seed}"), backbone, tasks, settings)
    except (TrainingError, ValueError) as error:
        return {"refused": str(error)}
    last = metrics["steps"][-1]
    return {
        **metrics["measures"],
        "errors": [
            {task: (found["top1_error"], found["images"]) for task, found in step["errors"].items()}
            for step in metrics["steps"]
        ],
        "bytes": last["bytes"],
        "trained_parameters": last["trained_parameters"],
        "multiply_adds": statistics.fmean(last["multiply_adds"].values()),
    }


def row_of(method: str, order: str, runs: Sequence[dict[str, Any]], base_cost: float) -> list[str]:
    """Returns the table's row of a method in one order, over its seeds."""
    if refused := [run["refused"] for run in runs if "refused" in run]:
        return [method, order, refused[0], *[""] * 8]
    errors = {name: statistics.fmean(run["errors"][-1][name][0] for run in runs) for name in SETS}
    images = {name: runs[0]["errors"][-1][name][1] for name in SETS}
    variance = sum(p * (100 - p) / (images[name] * len(runs)) for name, p in errors.items())
    cells = [method, order, *(f"{errors[name]:.2f}" for name in SETS)]
    cells.append(f"{statistics.fmean(errors.values()):.2f} ± {1.96 * math.sqrt(variance) / len(SETS):.2f}")
    forgotten = [run["forgetting"] for run in runs if run["forgetting"] is not None]
    cells.append(f"{statistics.fmean(forgotten):.2f}" if forgotten else "")
    size = runs[0]["bytes"]
    cells += [
        format_bytes(size["system"] - size["base"]),
        format_bytes(size["system"] - size["added"] + size["compressed"] - size["base"]),
        f"{statistics.fmean(run['multiply_adds'] for run in runs) / base_cost:.2f}",
        f"{statistics.fmean(run['seconds'] for run in runs):.0f} s",
    ]
    return cells


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    arguments.add_argument("--methods", nargs="+", default=METHODS.names(), choices=METHODS.names())
    options = arguments.parse_args()
    results, backbone = Results("methods"), mobilenet()
    table = []
    for method in options.methods:
        for order in ORDERS if METHODS[method].sequential else ("forward",):
            for seed in options.seeds:
                key = f"{method}/{order}/{seed}"
                results.run(key, lambda: learn(backbone, method, order, seed))  # noqa: B023
    base_cost = results.rows[f"classifier_only/forward/{options.seeds[0]}"]["multiply_adds"]
    for method in options.methods:
        for order in ORDERS if METHODS[method].sequential else ("forward",):
            runs = [results.rows[f"{method}/{order}/{seed}"] for seed in options.seeds]
            table.append(row_of(method, order, runs, base_cost))
    results.save()
    header = ["method", "order", *(f"{name} %" for name in SETS), "mean %", "forgetting", "added", "compressed"]
    print(markdown([*header, "multiply-adds", "time"], table))


if __name__ == "__main__":
    main()
