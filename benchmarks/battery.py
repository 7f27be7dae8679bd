"""Do masks learn on any data, in any length of training, with no setting? Beside classifier only and fine-tuning.

    PIGGYBACK_REALDATA=... python benchmarks/battery.py

Seven sets on MobileNetV2 with ImageNet weights and four on EfficientNet-Lite0, a network that the registry does not
know, both at 96 px. Default settings, 10 epochs of 32, three seeds; fine-tuning at the best of three rates, chosen for
each network and set on the validation split of seed 0. Masks also for 3 and for 30 epochs, in batches of 8, 16 and 64,
and at a third and three times their rate. The recipe was found on photos40, dtd10, gtsrb43 and cars98 with MobileNetV2
(ablation.py); the other sets and the other network were not looked at before it was fixed.

Some 240 runs, five to seven hours on two cores with `--jobs=2`; interrupted, it goes on. Writes results/battery.json,
a row a run.
"""

import dataclasses
import json
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from common import RESULTS, Results, markdown, measure_all, parser, realdata
from tasks import efficientnet_lite0, mobilenet, train_and_test

from piggyback_tf.backbones import Backbone
from piggyback_tf.data import load_data
from piggyback_tf.masking import MaskConfig
from piggyback_tf.settings.methods import CONFIGS, VARIABLE_GROUPS
from piggyback_tf.training import TrainConfig, mask_rate
from piggyback_tf.training.schedules import HEAD_RATE

SETS = ("photos40", "dtd10", "gtsrb43", "cars98", "pacs_sketch", "pacs_art_painting", "omniglot129")
LITE_SETS = ("photos40", "dtd10", "gtsrb43", "omniglot129")
NETWORKS = {"mobilenet_v2": mobilenet, "efficientnet_lite0": efficientnet_lite0}
METHODS = ("classifier_only", "piggyback", "finetune")
RATES = (3e-5, 1e-4, 3e-4)
TUNED = ("photos40", "dtd10", "gtsrb43")


@dataclasses.dataclass(frozen=True)
class Run:
    """One training: network, set, method, seed, and what is not the default."""

    network: str
    name: str
    method: str
    seed: int
    epochs: int = 10
    batch_size: int = 32
    rate: float = 1.0

    @property
    def key(self) -> str:
        """Names the run in the file of results."""
        changes = [f"epochs{self.epochs}"] * (self.epochs != 10) + [f"batch{self.batch_size}"] * (self.batch_size != 32)
        changes += [f"rate{self.rate:g}"] * (self.rate != 1.0)
        return "/".join([self.network, self.name, self.method, *changes, str(self.seed)])


def plan(seeds: Sequence[int]) -> Iterator[Run]:
    """Returns all runs but fine-tuning's, whose rates depend on results; seed by seed, so that each seed is whole."""
    for seed in seeds:
        pairs = [("mobilenet_v2", name) for name in SETS] + [("efficientnet_lite0", name) for name in LITE_SETS]
        for network, name in pairs:
            yield Run(network, name, "classifier_only", seed)
            yield Run(network, name, "piggyback", seed)
            yield Run(network, name, "finetune", seed)
        for method in ("classifier_only", "piggyback"):
            yield from (Run("mobilenet_v2", name, method, seed, epochs=3) for name in SETS)
            yield from (Run("mobilenet_v2", n, method, seed, epochs=30) for n in ("photos40", "dtd10", "omniglot129"))
            yield from (Run("mobilenet_v2", n, method, seed, batch_size=b) for n in TUNED for b in (8, 16, 64))
        yield from (Run("mobilenet_v2", n, "piggyback", seed, rate=r) for n in TUNED for r in (1 / 3, 3.0))


def config_of(run: Run, images: int) -> TrainConfig:
    """Returns how a run is trained.

    Args:
        run: The run.
        images: How many training images there are; the masks' own rate follows from the steps.
    """
    config = TrainConfig(seed=run.seed, epochs=run.epochs, batch_size=run.batch_size)
    if run.method == "finetune":
        return dataclasses.replace(config, weights_lr=run.rate)
    if run.rate != 1.0:
        steps = run.epochs * math.ceil(images / run.batch_size)
        return dataclasses.replace(config, mask_lr=run.rate * mask_rate(MaskConfig(), steps))
    return config


def battery_rows() -> dict[str, Any]:
    """Returns the rows of this benchmark, if there are any, for others that have runs of the same recipe."""
    path = RESULTS / "battery.json"
    return json.loads(path.read_text())["rows"] if path.exists() else {}


def same_recipe(row: Mapping[str, Any], method: str, config: TrainConfig) -> bool:
    """Whether a row was trained with some settings, as far as its method heeds them."""
    trains = CONFIGS[method].trains
    heeded = {name: value for name, value in dataclasses.asdict(config).items() if _group_of(name) in (None, *trains)}
    # Both networks have the 1,280 features for which the rate of a head is this one by default.
    recorded, heeded = ({**own, "head_lr": own["head_lr"] or HEAD_RATE} for own in (row["config"], heeded))
    return all(recorded.get(name) == value for name, value in heeded.items())


def _group_of(setting: str) -> str | None:
    """Returns the group of variables that a setting is for, by how its name begins."""
    group = setting.partition("_")[0]
    return group if group in VARIABLE_GROUPS else None


class Battery:
    """Runs what is not in the results yet, and judges what is."""

    def __init__(self, results: Results):
        self.results = results
        self._networks: dict[str, Backbone] = {}
        self._images: dict[str, int] = {}

    def row(self, run: Run) -> dict[str, Any]:
        """Returns the row of a run of the plan."""
        return self.at_best_rate(run) if run.method == "finetune" else self.measure(run)

    def measure(self, run: Run) -> dict[str, Any]:
        """Returns the row of a run; trains it if there is none."""
        return self.results.run(run.key, lambda: self._train(run))

    def _train(self, run: Run) -> dict[str, Any]:
        config = config_of(run, self._count(run.name))
        return train_and_test(self.network(run.network), run.name, run.method, config, f"battery/{run.key}")

    def network(self, name: str) -> Backbone:
        """Returns a network, loaded once."""
        if name not in self._networks:
            self._networks[name] = NETWORKS[name]()
        return self._networks[name]

    def _count(self, name: str) -> int:
        if name not in self._images:
            self._images[name] = len(load_data(f"folder:{realdata() / name}").train)
        return self._images[name]

    def at_best_rate(self, run: Run, rates: Sequence[float] = RATES) -> dict[str, Any]:
        """Returns the row of a run at the rate that is best on the validation split of seed 0."""
        first = {rate: self.measure(dataclasses.replace(run, seed=0, rate=rate)) for rate in rates}
        # Of equal errors the lower loss; a run that was stopped is no choice.
        best = min(rates, key=lambda rate: (first[rate].get("val_error", 100.0), first[rate].get("val_loss", math.inf)))
        return self.measure(dataclasses.replace(run, rate=best))


def error_of(row: Mapping[str, Any]) -> float:
    """Returns the test error of a run in percent; that of a run that was stopped is all."""
    return row.get("test_error", 100.0)


def paired(rows: Sequence[Mapping[str, Any]], others: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    """Returns how many points more error some runs have than others on the same images, and its standard error."""
    differences = np.concatenate([hits_of(other) - hits_of(row) for row, other in zip(rows, others, strict=True)])
    return 100 * float(differences.mean()), 100 * float(differences.std(ddof=1) / math.sqrt(len(differences)))


def hits_of(row: Mapping[str, Any]) -> np.ndarray:
    """Returns for each test image 1 if its class was found, and 0 otherwise."""
    bits = np.unpackbits(np.frombuffer(bytes.fromhex(row["hits"]), np.uint8))
    return bits[: row["test_images"]].astype(np.int64)


def judge_cells(rows: Mapping[Run, Mapping[str, Any]]) -> tuple[list[list[str]], list[str]]:
    """Returns the table's lines, one for each network, set and setting, and a sentence for each missed point."""
    cells: dict[Run, list[Run]] = {}
    for run in rows:
        if run.method == "piggyback":
            cells.setdefault(dataclasses.replace(run, seed=0), []).append(run)
    lines, missed = [], []
    for cell, runs in cells.items():
        partners = [dataclasses.replace(run, method="classifier_only", rate=1.0) for run in runs]
        if any(partner not in rows for partner in partners):
            continue
        own, reference = [rows[run] for run in runs], [rows[partner] for partner in partners]
        tuned = [rows.get(dataclasses.replace(run, method="finetune")) for run in runs]
        title = cell.key.removesuffix("/0").replace("/piggyback", "")
        dead = [
            run.seed
            for run, row, other in zip(runs, own, reference, strict=True)
            if "stopped" in row or row["final_loss"] > 1.05 * other["final_loss"]
        ]
        if dead:
            missed.append(f"{title}: final training loss above 1.05 of classifier only with seeds {dead}")
        if not any("stopped" in row for row in own):
            gain, error = paired(own, reference)
            if gain > 2 * error:
                missed.append(f"{title}: {gain:.1f} points worse than classifier only, standard error {error:.1f}")
        columns = [own, reference, tuned if all(tuned) else []]
        means = [f"{statistics.mean(map(error_of, column)):.1f}" if column else "-" for column in columns]
        zeros = [row["zeros_percent"] for row in own if "zeros_percent" in row]
        lines.append([title, str(len(runs)), *means, f"{statistics.mean(zeros):.2f}" if zeros else "-"])
    return lines, missed


def judge_means(rows: Mapping[Run, Mapping[str, Any]]) -> list[list[str]]:
    """Returns a line for each point about means: what, measured, limit, and whether it holds."""
    masks = [run for run in rows if run.method == "piggyback"]

    def mean(runs: Sequence[Run]) -> float:
        return statistics.mean(error_of(rows[run]) for run in runs)

    def against(what: str, runs: Sequence[Run], partners: Sequence[Run], limit: float) -> list[str]:
        """Compares the means of runs and of their partners; without any the line says so."""
        pairs = [(run, partner) for run, partner in zip(runs, partners, strict=True) if partner in rows]
        if not pairs:
            return [what, "-", f"{limit:+.1f}", "-"]
        own, other = mean([run for run, _ in pairs]), mean([partner for _, partner in pairs])
        holds = "yes" if own <= other + limit else "no"
        return [f"{what} ({len(pairs)} pairs)", f"{own:.2f} against {other:.2f}", f"{limit:+.1f}", holds]

    usual = [run for run in masks if dataclasses.replace(run, epochs=10, batch_size=32, rate=1.0) == run]
    tuned = [dataclasses.replace(run, method="finetune") for run in usual]
    lines = [against("masks and fine-tuning", usual, tuned, 0.5)]
    for what, limit, changed in (
        ("30 epochs and 10", 0.5, {"epochs": 30}),
        *((f"batch {size} and 32", 2.0, {"batch_size": size}) for size in (8, 16, 64)),
        ("a third of the rate and the rate", 2.0, {"rate": 1 / 3}),
        ("three times the rate and the rate", 2.0, {"rate": 3.0}),
    ):
        runs = [run for run in masks if dataclasses.replace(run, **changed) == run and run not in usual]
        default = [dataclasses.replace(run, epochs=10, batch_size=32, rate=1.0) for run in runs]
        lines.append(against(what, runs, default, limit))
    sketches = [run for run in usual if run.name == "pacs_sketch"]
    if sketches:
        found = mean(sketches)
        lines.append(["pacs_sketch", f"{found:.2f}", "7.9", "yes" if found <= 7.9 else "no"])
    idle = [run.key for run in masks if rows[run].get("zeros_percent", 1.0) < 0.01]
    lines.append(["runs with less than 0.01 % zeros", ", ".join(idle) or "none", "", ""])
    return lines


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments.add_argument("--sets", nargs="+", default=list(SETS), choices=SETS, help="Run these only.")
    arguments.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=NETWORKS, help="Run these only.")
    arguments.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS, help="Run these only.")
    arguments.add_argument("--jobs", type=int, default=1, help="How many processes train at once, a thread each.")
    options = arguments.parse_args()
    battery = Battery(Results("battery"))
    runs = [
        run
        for run in plan(options.seeds)
        if run.name in options.sets and run.network in options.networks and run.method in options.methods
    ]
    rows = measure_all(runs, battery.row, options.jobs)
    lines, missed = judge_cells(rows)
    battery.results.save()
    print(markdown(["network, set", "seeds", "piggyback", "classifier only", "fine-tuning", "zeros %"], lines), "\n")
    print(markdown(["test error %", "measured", "limit", "holds"], judge_means(rows)), "\n")
    print("\n".join(missed) or "No run died, and no cell is worse than classifier only by two standard errors.")


if __name__ == "__main__":
    main()
