"""What the benchmarks of label maps and of boxes share: methods at three rates each, the best of them over more seeds.

Each method is tried at three rates of what it trains, with seed 0: the masks, the weights, and the head where it is
alone. Elsewhere the head has its default rate. The rate with the lowest error on the validation split is trained with
two more seeds.
"""

import dataclasses
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
from common import Results, markdown, measure_all, parser
from tasks import mobilenet, state_folder

from piggyback_tf.backbones import Backbone, named_variables
from piggyback_tf.data import Source, TaskData
from piggyback_tf.data.sources import Subset
from piggyback_tf.masking import MaskConfig
from piggyback_tf.methods import METHODS
from piggyback_tf.packs import TaskPack
from piggyback_tf.packs.codec import encode
from piggyback_tf.problems import Problem, is_head
from piggyback_tf.sequences.measure import count_answers, measured_batches
from piggyback_tf.training import InputConfig, TrainConfig, TrainingError, train_task
from piggyback_tf.training.schedules import head_rate, mask_rate

# Rates of each method. Those of masks and of the head are multiples of the default.
RATES: Mapping[str, Sequence[float]] = {
    "classifier_only": (1 / 3, 1.0, 3.0),
    "finetune": (1e-4, 3e-4, 1e-3),
    "piggyback": (1 / 3, 1.0, 3.0),
}
# Of the pyramids here, whose last layers have 28 and 32 channels.
_HEAD_RATE = head_rate({"logits/kernel": (1, 1, 32, 1), "logits/bias": (1,)})
SEARCH_SEED, MORE_SEEDS = 0, (1, 2)


@dataclasses.dataclass(frozen=True)
class Run:
    """A training: a method, one of its `RATES`, and a seed."""

    method: str
    rate: float
    seed: int

    @property
    def key(self) -> str:
        return f"{self.method}/{self.rate:.2g}/{self.seed}"

    def config(self, schedule: TrainConfig, images: int) -> TrainConfig:
        """Returns how it is trained on a number of images."""
        steps = schedule.epochs * math.ceil(images / schedule.batch_size)
        name, default = {
            "classifier_only": ("head_lr", _HEAD_RATE),
            "finetune": ("weights_lr", 1.0),
            "piggyback": ("mask_lr", mask_rate(MaskConfig(), steps)),
        }[self.method]
        # 0 stands for the default, whatever the recipe makes of it.
        rate = {name: 0.0 if self.rate == 1 else self.rate * default}
        return dataclasses.replace(schedule, seed=self.seed, **rate)


def train(
    run: Run,
    backbone: Backbone,
    data: TaskData,
    inputs: InputConfig,
    schedule: TrainConfig,
    state: str,
    measure: Callable[[keras.Model, Problem, Source], Mapping[str, Any]],
) -> dict[str, Any]:
    """Trains and measures one run; goes on with one that was interrupted.

    Args:
        run: What to train.
        backbone: The base.
        data: The images.
        inputs: How they are prepared.
        schedule: Epochs and batches.
        state: Names the benchmark's `state_folder`.
        measure: Returns what is told of the test split.

    Returns:
        What was measured, or `"stopped"` with the reason.
    """
    config, method = run.config(schedule, len(data.train)), METHODS[run.method]()
    row: dict[str, Any] = {"method": run.method, "rate": run.rate, "seed": run.seed}
    row["config"] = dataclasses.asdict(config)
    try:
        trained = train_task(method, backbone, data, config, inputs, state_dir=state_folder(f"{state}/{run.key}"))
    except TrainingError as error:
        return row | {"stopped": str(error)}
    history = trained.history
    row |= {
        "val_errors": [round(error, 3) for error in history["val_error"]],
        "val_error": min(history["val_error"]),
        "losses": [round(loss, 4) for loss in history["cross_entropy"]],
        "best_epoch": trained.best_epoch + 1,
        "seconds": round(trained.seconds, 1),
    }
    assert data.test is not None, f"{data.name} has a test split"
    row |= measure(trained.model, trained.problem, data.test)
    variables = named_variables(trained.model)
    row["head_bytes_float16"] = 2 * sum(math.prod(v.shape) for p, v in variables.items() if is_head(p))
    if run.method == "piggyback":
        row |= _pack_sizes(trained.model, backbone, data, inputs, config)
    return row


def counts_of(model: keras.Model, problem: Problem, source: Source, augment: str, batch_size: int) -> np.ndarray:
    """Returns what a problem counts of each image of a split, as the image is in its file."""
    batches = measured_batches(problem, source, augment, batch_size=batch_size)
    return count_answers(model.predict_on_batch, problem, augment, batches)


def _pack_sizes(
    model: keras.Model, backbone: Backbone, data: TaskData, inputs: InputConfig, config: TrainConfig
) -> dict[str, Any]:
    pack = TaskPack.from_model(
        model,
        task=data.name,
        class_names=data.class_names,
        backbone=backbone,
        method="piggyback",
        eval_augment=inputs.augment_eval,
        problem=data.target,
        settings=dataclasses.asdict(config),
    )
    return {
        "zeros_percent": 100 * pack.zeros_total,
        "mask_bytes": encode(pack.masks, pack.mask_kind).nbytes,
        "pack_bytes_float16": len(pack.astype("float16").to_bytes()),
    }


def chosen_runs(results: Results, row: Callable[[Run], dict[str, Any]], jobs: int) -> dict[str, list[dict[str, Any]]]:
    """Returns the rows of each method at its best rate, seed by seed; prints the search, and what stopped.

    Args:
        results: Where rows are kept.
        row: Trains and measures a run.
        jobs: How many processes train at once.
    """

    def measured(runs: Sequence[Run]) -> dict[Run, dict[str, Any]]:
        return measure_all(runs, lambda run: results.run(run.key, lambda: row(run)), jobs)

    searched = measured([Run(method, rate, SEARCH_SEED) for method, rates in RATES.items() for rate in rates])
    best: dict[str, Run] = {}
    for method, rates in RATES.items():
        own = {run: found for run, found in searched.items() if run.method == method and "stopped" not in found}
        if not own:
            sys.exit(f"{method} did not learn at any of its rates.")
        best[method] = min(own, key=lambda run: own[run]["val_error"])
        if best[method].rate in (rates[0], rates[-1]):
            print(f"{method}: the best rate is at the end of those that were tried.", file=sys.stderr)
    more = measured([dataclasses.replace(run, seed=seed) for seed in MORE_SEEDS for run in best.values()])
    chosen: dict[str, list[dict[str, Any]]] = {}
    for method, run in best.items():
        rows = [searched[run], *(more[dataclasses.replace(run, seed=seed)] for seed in MORE_SEEDS)]
        chosen[method] = [found for found in rows if "stopped" not in found]
        if len(chosen[method]) < len(rows):
            print(f"{method}: {len(rows) - len(chosen[method])} of {len(rows)} trainings stopped.", file=sys.stderr)
    search = [
        [run.method, f"{run.rate:.2g}", "stopped" if "stopped" in found else f"{found['val_error']:.2f}"]
        for run, found in searched.items()
    ]
    print(markdown(["method", "rate", "validation error %, seed 0"], search))
    print()
    return chosen


def with_interval(value: float, draws: np.ndarray) -> str:
    """Returns `"47.31 [44.02, 50.80]"`: a number with the middle 95 % of what draws of test images give."""
    low, high = np.percentile(draws, [2.5, 97.5])
    return f"{value:.2f} [{low:.2f}, {high:.2f}]"


def few(data: TaskData, images: int) -> TaskData:
    """Returns the data with a few images of each split, spread over it."""
    sources = {
        name: Subset(source, np.linspace(0, len(source) - 1, images).astype(int))
        for name, source in data.splits.items()
    }
    return dataclasses.replace(data, **sources)


def run_benchmark(
    name: str,
    doc: str | None,
    data: TaskData,
    inputs: InputConfig,
    schedule: TrainConfig,
    measure: Callable[[keras.Model, Problem, Source], Mapping[str, Any]],
    report: Callable[[Mapping[str, Sequence[Mapping[str, Any]]], Sequence[str]], dict[str, Any]],
    intervals: str,
) -> None:
    """Trains what is not in the results yet, prints the tables, and keeps what is asked of masks.

    Args:
        name: Names results and states.
        doc: What `--help` says.
        data: The images.
        inputs: How they are prepared.
        schedule: Epochs and batches.
        measure: As of `train`.
        report: Prints the tables of the chosen runs, and returns what is asked of masks.
        intervals: What intervals are of.
    """
    arguments = parser(doc)
    arguments.add_argument("--jobs", type=int, default=1, help="How many processes train at once, a thread each.")
    arguments.add_argument("--try", dest="trial", action="store_true", help="One epoch, few images, no results.")
    options = arguments.parse_args()
    state, results = name, Results(name)
    if options.trial:
        data, schedule, state = few(data, 16), dataclasses.replace(schedule, epochs=1), f"{name}_try"
        results = Results(name, state_folder(state))
    backbone = mobilenet()

    def row(run: Run) -> dict[str, Any]:
        return train(run, backbone, data, inputs, schedule, state, measure)

    results.save(verdict=report(chosen_runs(results, row, options.jobs), data.class_names), intervals=intervals)
