"""The Visual Decathlon in small, for anybody: six sets on one MobileNetV2, with the decathlon's score.

    PIGGYBACK_REALDATA=... python benchmarks/small_decathlon.py

Signs, letters, textures, cars, sketches and paintings, at 96 px, 10 epochs of 32, three seeds: sets, splits and recipe
are those of battery.py, and a row of results/battery.json is taken where its settings and its test images are today's.
So residual adapters alone are new runs. Fine-tuning and residual adapters have the best of three rates, chosen for each
set on the validation split of seed 0. Masks and the head alone have their defaults.

The score is the decathlon's: the sum over the sets of 1000 (max(0, (E_max - E) / E_max))^2, E the mean test error over
seeds, and E_max twice that of fine-tuning, which has 250 points a set by that. Intervals are of test images that are
drawn with replacement, the same for all methods, while E_max stays. They say how far it may be chance which images were
tested, and not how far other seeds would be.

Parameters are counted as the challenge does: kernels, a mask as a 32nd of them, no heads and no batch norm. Residual
adapters stand at full 3x3 convolutions, of which MobileNetV2 has one: most of what they learn is batch norm.

By the times in results/battery.json, the 30 runs of residual adapters take some three hours of one process, and all 96
some ten. `--jobs=2` trains two at once, a thread each. Interrupted, it goes on. Writes results/small_decathlon.json, a
row a run, and with `--figure=FILE.png` a plot of score against parameters. `--try` trains one epoch on a few images of
each split, without results.
"""

import dataclasses
import math
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from at_rates import few, with_interval
from battery import RATES, Battery, Run, battery_rows, config_of, error_of, hits_of, same_recipe
from common import Results, markdown, measure_all, parser, realdata
from tasks import INPUTS, state_folder, train_on

from piggyback_tf.data import TaskData, load_data
from piggyback_tf.evaluation.decathlon import points_of_error, relative_parameters
from piggyback_tf.evaluation.plot_style import COLOURS, GREY, new_figure, write_plot
from piggyback_tf.methods import METHODS
from piggyback_tf.training import TrainConfig

SETS = ("gtsrb43", "omniglot129", "dtd10", "cars98", "pacs_sketch", "pacs_art_painting")
METHOD_NAMES = ("classifier_only", "piggyback", "residual_adapters", "finetune")
REFERENCE = "finetune"
# Rates that are tried, of fine-tuning as they are, of residual adapters as multiples of their own.
TRIED: Mapping[str, Sequence[float]] = {"finetune": RATES, "residual_adapters": (1 / 3, 1.0, 3.0)}
DRAWS = 10_000
NETWORK = "mobilenet_v2"


def config_for(run: Run, images: int) -> TrainConfig:
    """Returns how a run is trained: as in battery.py, residual adapters by their own recipe at a multiple of its rates.

    Args:
        run: The run.
        images: How many training images there are.
    """
    if run.method != "residual_adapters":
        return config_of(run, images)
    recipe = METHODS[run.method].Config.recipe
    scaled = {name: value * run.rate if name.endswith("_lr") else value for name, value in recipe.items()}
    return TrainConfig(seed=run.seed, epochs=run.epochs, batch_size=run.batch_size, **scaled)


class SmallDecathlon(Battery):
    """Runs what is in no results yet.

    Args:
        results: Where rows are kept.
        rows: Rows of battery.py by key, which are taken where they are of the same recipe.
        trial: Whether it is a try, on a few images.
    """

    def __init__(self, results: Results, rows: Mapping[str, Any], trial: bool):
        super().__init__(results)
        self._rows, self._trial = rows, trial

    def row(self, run: Run) -> dict[str, Any]:
        if run.method in TRIED and not self._trial:
            return self.at_best_rate(run, TRIED[run.method])
        return self.measure(run)

    def _train(self, run: Run) -> dict[str, Any]:
        data = self.data(run)
        config = config_for(run, len(data.train))
        row = self._rows.get(run.key)
        if row and same_recipe(row, run.method, config) and row.get("test_images") == len(data.test or ()):
            return {**row, "from": "battery"}
        state = f"small_decathlon{'_try' * self._trial}/{run.key}"
        return train_on(self.network(NETWORK), data, INPUTS, run.method, config, state)

    def data(self, run: Run) -> TaskData:
        """Returns the images of a run; a few for a try."""
        data = load_data(f"folder:{realdata() / run.name}", seed=run.seed)
        return few(data, 32) if self._trial else data

    def parameters(self, method: str, names: Sequence[str]) -> tuple[float, float]:
        """Returns how many times the kernels of the base it takes with all sets, without heads and with them."""
        backbone = self.network(NETWORK)
        heads = {
            name: (backbone.feature_dim + 1) * len(load_data(f"folder:{realdata() / name}").class_names)
            for name in names
        }

        def trained(name: str, group: str) -> int:
            learner = METHODS[name]()
            found = learner.groups(learner.build(backbone, 2))
            return sum(math.prod(variable.shape) for variable in found.get(group, ()))

        # Masks are over all kernels.
        kernels = trained("piggyback", "mask")
        own = {"finetune": kernels, "residual_adapters": trained("residual_adapters", "adapter")}.get(method, 0)
        masked = dict.fromkeys(names, kernels if method == "piggyback" else 0)
        whole = len(names) * own / kernels
        return whole + relative_parameters(kernels, masked), whole + relative_parameters(kernels, masked, heads)


@dataclasses.dataclass(frozen=True)
class Standing:
    """What a method has reached: errors in percent by set, score, and scores of drawn test images, `[DRAWS]`."""

    method: str
    errors: Mapping[str, float]
    score: float
    draws: np.ndarray
    parameters: tuple[float, float]


def standings(rows: Mapping[Run, Mapping[str, Any]], names: Sequence[str]) -> list[Standing]:
    """Returns the methods that have all sets.

    Args:
        rows: Rows by run, with the runs of the plan.
        names: The sets.
    """
    found = {
        method: {name: [row for run, row in rows.items() if (run.method, run.name) == (method, name)] for name in names}
        for method in METHOD_NAMES
    }
    largest = {name: 2 * statistics.mean(map(error_of, own)) for name, own in found[REFERENCE].items()}
    result = []
    for method, by_name in found.items():
        errors = {name: statistics.mean(map(error_of, own)) for name, own in by_name.items()}
        score = sum(points_of_error(errors[name], largest[name]) for name in names)
        drawn = np.zeros(DRAWS)
        for place, name in enumerate(names):
            drawn += points_drawn(by_name[name], largest[name], place)
        result.append(Standing(method, errors, score, drawn, (math.nan, math.nan)))
    return result


def points_drawn(rows: Sequence[Mapping[str, Any]], largest: float, seed: int) -> np.ndarray:
    """Returns the points of a set for test images that are drawn with replacement, `[DRAWS]`.

    Args:
        rows: The runs of a method on the set, a seed each.
        largest: E_max.
        seed: Of the draws: the same for all methods.
    """
    known = [hits_of(row) for row in rows if "hits" in row]
    if not known:
        return np.zeros(DRAWS)
    # A run that was stopped has no hits, and an error of 100 %.
    wrong = 1 - np.sum(known, axis=0) / len(rows)
    times = np.random.default_rng(seed).multinomial(len(wrong), np.full(len(wrong), 1 / len(wrong)), DRAWS)
    errors = 100 * (times @ wrong) / len(wrong)
    return 1000 * np.maximum(0.0, (largest - errors) / largest) ** 2


def table(found: Sequence[Standing], names: Sequence[str]) -> str:
    """Returns the table of all methods."""
    masks = next(each for each in found if each.method == "piggyback")
    lines = []
    for each in found:
        difference = "-" if each is masks else with_interval(each.score - masks.score, each.draws - masks.draws)
        errors = [f"{each.errors[name]:.2f}" for name in names]
        sizes = [f"{size:.2f}" for size in each.parameters]
        lines.append([each.method, *errors, with_interval(each.score, each.draws), difference, *sizes])
    return markdown(["method", *names, "score", "points above masks", "parameters", "with heads"], lines)


def draw(found: Sequence[Standing]) -> Any:
    """Returns a figure of score against parameters."""
    figure, (axis,) = new_figure(1, 5.6, 3.8)
    for place, each in enumerate(found):
        low, high = np.percentile(each.draws, [2.5, 97.5])
        x = each.parameters[0]
        axis.errorbar(x, each.score, [[each.score - low], [high - each.score]], fmt="o", color=COLOURS[place])
        axis.annotate(each.method, (x, each.score), (6, 4), textcoords="offset points", size=8)
    axis.set_xlabel("parameters, those of one network are 1", color=GREY)
    axis.set_ylabel("score", color=GREY)
    return figure


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments.add_argument("--sets", nargs="+", default=list(SETS), choices=SETS, help="Run these only.")
    arguments.add_argument("--jobs", type=int, default=1, help="How many processes train at once, a thread each.")
    arguments.add_argument("--figure", type=Path, help="Where to draw score against parameters, a PNG file.")
    arguments.add_argument("--try", dest="trial", action="store_true", help="One epoch, few images, no results.")
    options = arguments.parse_args()
    results, rows = Results("small_decathlon"), battery_rows()
    if options.trial:
        results, rows = Results("small_decathlon", state_folder("small_decathlon_try")), {}
    benchmark = SmallDecathlon(results, rows, options.trial)
    epochs, rate = (1, 1e-4) if options.trial else (10, 1.0)
    runs = [
        Run(NETWORK, name, method, seed, epochs, rate=rate if method == "finetune" else 1.0)
        for seed in options.seeds
        for name in options.sets
        for method in METHOD_NAMES
    ]
    found = standings(measure_all(runs, benchmark.row, options.jobs), options.sets)
    found = [dataclasses.replace(each, parameters=benchmark.parameters(each.method, options.sets)) for each in found]
    results.save(scores={each.method: each.score for each in found}, intervals="test images, with replacement")
    print(table(found, options.sets))
    if options.figure and not write_plot(options.figure, lambda: draw(found)):
        sys.exit("There is no matplotlib to draw with.")


if __name__ == "__main__":
    main()
