"""The survey in docs/results.md: every method on three sets of real images in turn, errors, forgetting, bytes, time.

    PIGGYBACK_REALDATA=... python benchmarks/methods.py

MobileNetV2 at 96 px with ImageNet weights; the same epochs, optimisers, schedule, images and augmentation for every
method: the defaults of `train.py`, but for half of the epochs with half of the batch size, which are as many steps.
Methods whose tasks depend on those before run in both orders: sketch, art, textures, and the reverse. Some have
settings of their own: HAT starts with most of its gates open, since half of them closed leave little of a
pretrained network. Residual adapters, on this network batch norm and little else, train that at ten times the default
rate. PackNet trains weights at ten times the default rate, and lets the statistics of batch norm follow, since those of
the base are of a network that pruning has changed. Methods that keep images draw as many of them in a step as there are
new ones. A-GEM and PathNet have their own recipe, SGD without momentum, since they promise nothing of Adam's steps. CPG
has twice as many epochs, since it fine-tunes in the first half to know its goal; the time is of both. The best epoch is
chosen on a tenth of the training images. An interrupted run goes on where it was; a run that is in results/methods.json
is not done again.

`python -m piggyback_tf table --layout=survey benchmarks/results/methods.json` prints the same table, and draws plots.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from common import Results, parser, realdata
from tasks import INPUTS, MASKS, SCHEDULE, SETS, Recipe, mobilenet, state_folder

from piggyback_tf.backbones import Backbone
from piggyback_tf.data import load_data
from piggyback_tf.evaluation.results import FORMAT
from piggyback_tf.evaluation.tables import make_table, read_benchmark, to_markdown
from piggyback_tf.methods import METHODS
from piggyback_tf.sequences import SequenceSettings, run_sequence
from piggyback_tf.settings import CONFIGS
from piggyback_tf.training import TrainingError

# They keep images of the tasks before.
REPLAY = ("er", "agem", "derpp")
ORDERS = {"forward": SETS, "reverse": SETS[::-1]}


VARIANTS: dict[str, Recipe] = {
    **{name: Recipe(name) for name in METHODS.names()},
    **{name: Recipe(name, {"replay_batch": SCHEDULE.batch_size}, CONFIGS[name].recipe) for name in REPLAY},
    "cpg": Recipe("cpg", {"norm_statistics": "task"}, {"epochs": 2 * SCHEDULE.epochs}),
    "hat": Recipe("hat", {"hat_mean": 2.0}),
    "packnet": Recipe("packnet", {"norm_statistics": "task"}, {"weights_lr": 1e-3}),
    "pathnet": Recipe("pathnet", train=CONFIGS["pathnet"].recipe),
    "residual_adapters": Recipe("residual_adapters", train={"norm_lr": 1e-2}),
    "piggyback": MASKS,
    "piggyback_norm": dataclasses.replace(MASKS, settings={**MASKS.settings, "norm": "task"}),
}


def orders_of(label: str) -> tuple[str, ...]:
    """Returns the orders of tasks in which a method runs."""
    return tuple(ORDERS) if METHODS[VARIANTS[label].method].sequential else ("forward",)


def runs_of(labels: Sequence[str], seeds: Sequence[int]) -> Iterator[tuple[str, str, int]]:
    """Returns the label, order and seed of each run, in the order in which they are done."""
    for seed in seeds:
        for order in ORDERS:
            for label in labels:
                if order in orders_of(label):
                    yield label, order, seed


def learn(backbone: Backbone, label: str, order: str, seed: int) -> dict[str, Any]:
    """Learns the three sets by a method; returns what `run_sequence` does, without histories."""
    variant = VARIANTS[label]
    kind = METHODS[variant.method]
    tasks = {name: load_data(f"folder:{realdata() / name}", seed=seed) for name in ORDERS[order]}
    settings = SequenceSettings(variant.method, kind.Config(**variant.settings), variant.config(seed), INPUTS)
    try:
        metrics = run_sequence(state_folder(f"methods/{label}/{order}/{seed}"), backbone, tasks, settings)
    except (TrainingError, ValueError) as error:
        return {"method": variant.method, "refused": str(error)}
    for step in metrics["steps"]:
        step.pop("history", None)
    return {"format": FORMAT, **metrics}


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    arguments.add_argument("--methods", nargs="+", default=list(VARIANTS), choices=VARIANTS, metavar="METHOD")
    options = arguments.parse_args()
    results, backbone = Results("methods"), mobilenet()
    rows = {}
    for label, order, seed in runs_of(options.methods, options.seeds):
        key = f"{label}/{order}/{seed}"
        rows[key] = results.run(key, lambda: learn(backbone, label, order, seed))  # noqa: B023
    results.save()
    print(to_markdown(make_table("survey", read_benchmark(rows))))


if __name__ == "__main__":
    main()
