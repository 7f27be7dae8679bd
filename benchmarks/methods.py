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
from collections.abc import Iterator, Mapping, Sequence
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
EPOCHS = 8
# By label: a method, and where its settings differ from the defaults.
VARIANTS: dict[str, tuple[str, Mapping[str, Any]]] = {
    **{name: (name, {}) for name in METHODS.names()},
    "piggyback_ternary": ("piggyback", {"mask_kind": "ternary"}),
    "piggyback_norm": ("piggyback", {"norm": "task"}),
    "finetune_norm": ("finetune", {"norm": "task"}),
    "residual_adapters_series": ("residual_adapters", {"adapter_kind": "series"}),
    "packnet_gradual": ("packnet", {"packnet_schedule": "gradual"}),
}


def runs_of(labels: Sequence[str], seed: int) -> Iterator[tuple[str, str, str]]:
    """Returns the label, order and key of each run with a seed; one order if the order does not matter."""
    for order in ORDERS:
        for label in labels:
            if order == "forward" or METHODS[VARIANTS[label][0]].sequential:
                yield label, order, f"{label}/{order}/{seed}"


def learn(backbone: Backbone, label: str, order: str, seed: int) -> dict[str, Any]:
    """Learns the three sets by a method; returns what `run_sequence` does, without histories."""
    method, changes = VARIANTS[label]
    kind = METHODS[method]
    tasks = {name: load_data(f"folder:{realdata() / name}", seed=seed) for name in ORDERS[order]}
    config = TrainConfig(**{**kind.recipe, "epochs": EPOCHS, "seed": seed})
    settings = SequenceSettings(method, kind.Config(**changes), config, INPUTS)
    try:
        metrics = run_sequence(state_folder(f"methods/{label}/{order}/{seed}"), backbone, tasks, settings)
    except (TrainingError, ValueError) as error:
        return {"method": method, "refused": str(error)}
    for step in metrics["steps"]:
        step.pop("history", None)
    return metrics


def row_of(label: str, order: str, runs: Sequence[dict[str, Any]], base_cost: float) -> list[str]:
    """Returns the table's row of a method in one order, over its seeds."""
    if refused := [run["refused"] for run in runs if "refused" in run]:
        return [label, order, refused[0], *[""] * 8]
    found = {name: [run["steps"][-1]["errors"][name] for run in runs] for name in SETS}
    errors = {name: statistics.fmean(one["top1_error"] for one in found[name]) for name in SETS}
    variance = sum(p * (100 - p) / sum(one["images"] for one in found[name]) for name, p in errors.items())
    cells = [label, order, *(f"{errors[name]:.2f}" for name in SETS)]
    cells.append(f"{statistics.fmean(errors.values()):.2f} ± {1.96 * math.sqrt(variance) / len(SETS):.2f}")
    forgotten = [run["measures"]["forgetting"] for run in runs if run["measures"]["forgetting"] is not None]
    cells.append(f"{statistics.fmean(forgotten):.2f}" if forgotten else "")
    last = [run["steps"][-1] for run in runs]
    size = last[0]["bytes"]
    cost = statistics.fmean(statistics.fmean(step["multiply_adds"].values()) for step in last)
    return [
        *cells,
        format_bytes(size["system"] - size["base"]),
        format_bytes(size["system"] - size["added"] + size["compressed"] - size["base"]),
        f"{cost / base_cost:.2f}",
        f"{statistics.fmean(run['measures']['seconds'] for run in runs):.0f} s",
    ]


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    arguments.add_argument("--methods", nargs="+", default=list(VARIANTS), choices=VARIANTS)
    options = arguments.parse_args()
    results, backbone = Results("methods"), mobilenet()
    for seed in options.seeds:
        for label, order, key in runs_of(options.methods, seed):
            results.run(key, lambda: learn(backbone, label, order, seed))  # noqa: B023
    base_cost = statistics.fmean(
        results.rows[f"classifier_only/forward/{options.seeds[0]}"]["steps"][-1]["multiply_adds"].values()
    )
    rows = []
    for label, order, _ in runs_of(options.methods, options.seeds[0]):
        runs = [results.rows[f"{label}/{order}/{seed}"] for seed in options.seeds]
        rows.append(row_of(label, order, runs, base_cost))
    results.save()
    header = ["method", "order", *(f"{name} %" for name in SETS), "mean %", "forgetting", "added", "compressed"]
    print(markdown([*header, "multiply-adds", "time"], rows))


if __name__ == "__main__":
    main()
