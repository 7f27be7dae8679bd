"""Who errs least with how many bytes a task? Masks beside LoRA, batch norm, biases, a head alone, and fine-tuning.

    PIGGYBACK_REALDATA=... python benchmarks/frontier.py
    PIGGYBACK_REALDATA=... python benchmarks/frontier.py --sets dtd10 --methods lora_r4 --seeds 0 --epochs 1   # a try

The sets, splits and recipe of battery.py: MobileNetV2 with ImageNet weights on seven sets, three seeds, and
EfficientNet-Lite0 on four sets, one seed; 96 px, 10 epochs of 32. A row of results/battery.json is taken where its
settings of training and its test images are today's; all others are trained here. The other methods have the rate, of
three, that errs least on the validation images of dtd10 and gtsrb43 together with seed 0, for each network; fine-tuning
has its rate chosen for each set. Masks have their default, which was found on photos40, dtd10, gtsrb43 and cars98, and
so had the longest tuning of all; the other sets are shown apart.

Bytes are those of a pack without its head. Of a task that has other numbers than masks they are of float16, in which
its pack is opened again and measured; of fine-tuning it is the network in float16. The difference to masks is that of
single images, over sets and seeds, with 95 % intervals of its mean: they say how far it may be chance which images
were tested, and not how far another training would be.

Some 270 runs, hours on two cores with `--jobs=2`; interrupted, it goes on. Writes results/frontier.json, a row a run,
and with `--figure=FILE.png` a plot of the table. `--speed` measures seconds a step and peak memory instead,
of a process of its own for each method.
"""

import dataclasses
import json
import math
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from battery import LITE_SETS, NETWORKS, SETS, battery_rows, error_of, paired, same_recipe
from battery import RATES as FINETUNE_RATES
from common import Results, in_new_process, markdown, measure_all, parser, peak_mib, realdata
from overhead import make_step
from tasks import INPUTS, state_folder, train_and_test

from piggyback_tf.backbones import Backbone
from piggyback_tf.data import load_data, make_dataset
from piggyback_tf.evaluation.plot_style import COLOURS, GREY, new_figure, write_plot
from piggyback_tf.file_names import pack_name
from piggyback_tf.packs import TaskBank, TaskPack
from piggyback_tf.top_k import Z95
from piggyback_tf.training import TrainConfig

MASKS = "piggyback"
# By label: the method, and its settings where they are not its defaults.
VARIANTS: dict[str, tuple[str, Mapping[str, Any]]] = {
    "classifier_only": ("classifier_only", {}),
    MASKS: ("piggyback", {}),
    "bias": ("bias_only", {}),
    **{f"lora_r{rank}": ("lora", {"lora_rank": rank}) for rank in (1, 2, 4, 8)},
    "norm": ("norm_only", {}),
    "norm_statistics": ("norm_only", {"norm_statistics": "task"}),
    "finetune": ("finetune", {}),
}
# Those whose rate is chosen once for all sets of a network; 1e-3 is the default.
TUNED = tuple(label for label, (method, _) in VARIANTS.items() if method in ("bias_only", "lora", "norm_only"))
RATES, TUNING_SETS = (1e-3, 3e-4, 3e-3), ("dtd10", "gtsrb43")
# The sets on which the recipe of masks was found.
KNOWN_SETS = ("photos40", "dtd10", "gtsrb43", "cars98")
BUDGETS = (20_000, 50_000, 100_000, 300_000)


@dataclasses.dataclass(frozen=True)
class Run:
    """One training: network, set, label of the method, seed, and a rate if it is not the default."""

    network: str
    name: str
    label: str
    seed: int
    epochs: int = 10
    rate: float | None = None

    @property
    def method(self) -> str:
        return VARIANTS[self.label][0]

    @property
    def config(self) -> TrainConfig:
        """How it is trained."""
        config = TrainConfig(seed=self.seed, epochs=self.epochs)
        if self.rate is None:
            return config
        groups = ("weights",) if self.method == "finetune" else ("adapter", "norm")
        return dataclasses.replace(config, **{f"{group}_lr": self.rate for group in groups})

    @property
    def key(self) -> str:
        """Names the run in the file of results, and in that of battery.py if it is there."""
        changes = [f"epochs{self.epochs}"] * (self.epochs != 10)
        changes += [f"rate{self.rate:g}"] if self.rate is not None else []
        return "/".join([self.network, self.name, self.label, *changes, str(self.seed)])


def plan(seeds: Sequence[int], epochs: int = 10) -> Iterator[Run]:
    """Returns all runs but those of the rates that are tried; seed by seed, so that each seed is whole."""
    for place, seed in enumerate(seeds):
        pairs = [("mobilenet_v2", name) for name in SETS]
        if not place:
            pairs += [("efficientnet_lite0", name) for name in LITE_SETS]
        for network, name in pairs:
            yield from (Run(network, name, label, seed, epochs) for label in VARIANTS)


class Frontier:
    """Runs what is in no results yet.

    Args:
        results: Where rows are kept.
        battery: Rows of battery.py by key, which are taken where they are of the same recipe.
    """

    def __init__(self, results: Results, battery: Mapping[str, Any]):
        self.results, self._battery = results, battery
        self._networks: dict[str, Backbone] = {}
        self._test_images: dict[str, int] = {}

    def row(self, run: Run) -> dict[str, Any]:
        """Returns the row of a run of the plan, at the rate that is best on validation."""
        if run.label == "finetune":
            return self.measure(dataclasses.replace(run, rate=self._best(run, [run.name], FINETUNE_RATES)))
        if run.label in TUNED:
            return self.measure(dataclasses.replace(run, rate=self._best(run, TUNING_SETS, RATES)))
        return self.measure(run)

    def _best(self, run: Run, names: Sequence[str], rates: Sequence[float]) -> float:
        """Returns the rate with the least error on the validation images of some sets, with seed 0."""

        def score(rate: float) -> tuple[float, float]:
            rows = [self.measure(dataclasses.replace(run, name=name, seed=0, rate=rate)) for name in names]
            # Of equal errors the lower loss; a run that was stopped is no choice.
            errors, losses = (
                [row.get(of, most) for row in rows] for of, most in (("val_error", 100.0), ("val_loss", 1e9))
            )
            return statistics.mean(errors), statistics.mean(losses)

        return min(rates, key=score)

    def measure(self, run: Run) -> dict[str, Any]:
        """Returns the row of a run; trains it if there is none."""
        return self.results.run(run.key, lambda: self._found(run) or self._train(run))

    def _found(self, run: Run) -> dict[str, Any] | None:
        """Returns the row of the battery, if there is one with the same recipe and test images."""
        row = self._battery.get(run.key)
        if (
            row is None
            or not same_recipe(row, run.method, run.config)
            or row.get("test_images") != self._images(run.name)
        ):
            return None
        row = {**row, "from": "battery"}
        if "pack_bytes" in row:
            row["bytes"] = row["pack_bytes"] - 4 * self._head_numbers(run)
        return row

    def _train(self, run: Run) -> dict[str, Any]:
        state, settings = f"frontier/{run.key}", VARIANTS[run.label][1]
        row = train_and_test(self._network(run.network), run.name, run.method, run.config, state, **settings)
        if "pack_bytes" in row:
            row |= self._stored(run, TaskPack.load(state_folder(state) / pack_name(run.name)))
        return row

    def _stored(self, run: Run, pack: TaskPack) -> dict[str, Any]:
        """Returns the bytes of a pack in float16 without its head, and its test error as it is stored."""
        half = pack.astype("float16")
        bank = TaskBank(self._network(run.network)).add(half)
        data = load_data(f"folder:{realdata() / run.name}", seed=run.seed)
        wrong = count = 0
        for images, labels in make_dataset(data.test, INPUTS.augment_eval, batch_size=64, training=False):
            answers = bank.predict(np.asarray(images), half.task).argmax(axis=1)
            wrong, count = wrong + int((answers != np.asarray(labels)).sum()), count + len(answers)
        return {
            "bytes": len(half.to_bytes()) - 2 * self._head_numbers(run),
            "float16_test_error": 100 * wrong / count,
        }

    def _head_numbers(self, run: Run) -> int:
        classes = len(load_data(f"folder:{realdata() / run.name}", seed=run.seed).class_names)
        return classes * (self._network(run.network).feature_dim + 1)

    def _network(self, name: str) -> Backbone:
        if name not in self._networks:
            self._networks[name] = NETWORKS[name]()
        return self._networks[name]

    def _images(self, name: str) -> int:
        if name not in self._test_images:
            self._test_images[name] = len(load_data(f"folder:{realdata() / name}").test)
        return self._test_images[name]

    def bytes_of(self, run: Run, row: Mapping[str, Any]) -> float:
        """Returns what a task takes beside its head, in bytes."""
        if run.method == "finetune":
            return 2.0 * sum(math.prod(v.shape) for v in self._network(run.network).model.weights)
        return float(row.get("bytes", 0))


@dataclasses.dataclass(frozen=True)
class Point:
    """A method on a network: bytes beside the head, mean errors in percent, and the difference to masks."""

    label: str
    bytes: float
    error: float
    known: float | None
    new: float | None
    difference: tuple[float, float] | None
    runs: int


def points(frontier: Frontier, rows: Mapping[Run, Mapping[str, Any]], network: str) -> list[Point]:
    """Returns the methods of a network by bytes, each over the sets and seeds that it and masks have.

    Args:
        frontier: Knows bytes.
        rows: Rows by run.
        network: Its name.
    """
    found = []
    for label in VARIANTS:
        runs = [run for run in rows if run.network == network and run.label == label]
        masks = [dataclasses.replace(run, label=MASKS) for run in runs]
        if all(partner in rows for partner in masks):
            found.append(_point(frontier, rows, label, runs, masks))
        else:
            found.append(_point(frontier, rows, label, runs, []))
    return sorted((point for point in found if point is not None), key=lambda point: point.bytes)


def _point(
    frontier: Frontier, rows: Mapping[Run, Mapping[str, Any]], label: str, runs: Sequence[Run], masks: Sequence[Run]
) -> Point | None:
    if not runs:
        return None

    def mean(names: Sequence[str]) -> float | None:
        errors = [error_of(rows[run]) for run in runs if run.name in names]
        return statistics.mean(errors) if errors else None

    difference = None
    pairs = [(rows[run], rows[other]) for run, other in zip(runs, masks, strict=False)]
    if pairs and label != MASKS and all("hits" in row for pair in pairs for row in pair):
        difference = paired(*map(list, zip(*pairs, strict=True)))
    return Point(
        label,
        statistics.mean(frontier.bytes_of(run, rows[run]) for run in runs),
        statistics.mean(error_of(rows[run]) for run in runs),
        mean(KNOWN_SETS),
        mean([name for name in SETS if name not in KNOWN_SETS]),
        difference,
        len(runs),
    )


def table(found: Sequence[Point]) -> str:
    """Returns the table of a network's methods."""
    header = ["method", "runs", "kB beside the head", "test error %", "known sets", "other sets", "points above masks"]

    def cell(value: float | None) -> str:
        return "-" if value is None else f"{value:.2f}"

    lines = []
    for point in found:
        interval = "-"
        if point.difference is not None:
            mean, error = point.difference
            interval = f"{mean:+.2f} [{mean - Z95 * error:+.2f}, {mean + Z95 * error:+.2f}]"
        errors = (cell(value) for value in (point.error, point.known, point.new))
        lines.append([point.label, str(point.runs), f"{point.bytes / 1000:.1f}", *errors, interval])
    return markdown(header, lines)


def best_within(found: Sequence[Point]) -> str:
    """Returns a table of who has the least mean error within each budget of bytes."""
    lines = []
    for budget in BUDGETS:
        fitting = [point for point in found if point.bytes <= budget]
        best = min(fitting, key=lambda point: point.error, default=None)
        lines.append([f"{budget // 1000} kB", *((best.label, f"{best.error:.2f}") if best else ("-", "-"))])
    return markdown(["beside the head at most", "least mean error", "%"], lines)


def draw(found: Mapping[str, Sequence[Point]]) -> Any:
    """Returns a figure of error against bytes, an axis for each network."""
    figure, axes = new_figure(len(found), 5.2 * len(found), 3.8)
    for axis, (network, each) in zip(axes, found.items(), strict=True):
        for place, point in enumerate(each):
            # A head alone takes nothing beside it, which has no place on the axis.
            x = max(point.bytes / 1000, 1.0)
            axis.scatter(x, point.error, color=COLOURS[0] if point.label == MASKS else COLOURS[1], zorder=3)
            axis.annotate(
                point.label, (x, point.error), (4, 4 if place % 2 else -10), textcoords="offset points", size=8
            )
        axis.set_xscale("log")
        axis.set_xlabel("kB beside the head", color=GREY)
        axis.set_ylabel("test error %", color=GREY)
        axis.set_title(network, size=10)
    return figure


def measure_speed(label: str, steps: int = 20) -> dict[str, float]:
    """Returns the median seconds of a step with MobileNetV2, 96 px, batches of 32, and the peak memory in MiB."""
    from piggyback_tf.backbones import load_backbone

    method, settings = VARIANTS[label]
    step = make_step(load_backbone("mobilenet_v2", weights="random", image_size=96), method, 32, **settings)
    seconds = []
    for _ in range(steps + 3):
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    return {"seconds_a_step": statistics.median(seconds[3:]), "peak_mib": peak_mib()}


def speeds(labels: Sequence[str]) -> str:
    """Measures what is not measured yet, each in a process of its own, and returns the table."""
    results = Results("frontier_speed")
    lines = []
    for label in labels:
        row = results.run(label, lambda label=label: in_new_process(__file__, "--speed_of", label))
        lines.append([label, f"{1000 * row['seconds_a_step']:.0f} ms", f"{row['peak_mib']:.0f} MiB"])
    results.save()
    return markdown(["method", "a step", "peak memory"], lines)


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments.add_argument("--sets", nargs="+", default=list(SETS), choices=SETS, help="Run these only.")
    arguments.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=NETWORKS, help="Run these only.")
    arguments.add_argument("--methods", nargs="+", default=list(VARIANTS), choices=VARIANTS, help="Run these only.")
    arguments.add_argument("--epochs", type=int, default=10, help="Other than 10 to try the script: no rate is chosen.")
    arguments.add_argument("--jobs", type=int, default=1, help="How many processes train at once, a thread each.")
    arguments.add_argument("--figure", type=Path, help="Where to draw error against bytes, a PNG file.")
    arguments.add_argument("--speed", action="store_true", help="Measure seconds a step and peak memory instead.")
    arguments.add_argument("--speed_of", choices=VARIANTS, help="Used by the script itself.")
    options = arguments.parse_args()
    if options.speed_of:
        print(json.dumps(measure_speed(options.speed_of)))
        return
    if options.speed:
        print(speeds(options.methods))
        return
    # A try leaves no rows among the results.
    results = Results("frontier") if options.epochs == 10 else Results("frontier", state_folder("frontier_try"))
    frontier = Frontier(results, battery_rows())
    runs = [
        run
        for run in plan(options.seeds, options.epochs)
        if run.name in options.sets and run.network in options.networks and run.label in options.methods
    ]
    rows = measure_all(runs, frontier.row if options.epochs == 10 else frontier.measure, options.jobs)
    frontier.results.save()
    found = {network: points(frontier, rows, network) for network in options.networks}
    for network, each in found.items():
        if each:
            print(f"{network}:\n\n{table(each)}\n\n{best_within(each)}\n")
    if options.figure and not write_plot(options.figure, lambda: draw({n: each for n, each in found.items() if each})):
        sys.exit("There is no matplotlib to draw with.")


if __name__ == "__main__":
    main()
