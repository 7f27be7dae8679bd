"""Do masks learn to segment as well as fine-tuning does? CamVid on MobileNetV2, beside the head alone.

    PIGGYBACK_REALDATA=... python benchmarks/segmentation.py

Images of 160x224, the same head, epochs and augmentation for all methods. Each method is tried at three rates of what
it trains, with seed 0: the masks, the weights, and the head where it is alone. The rate with the best mean IoU on the
validation split is trained with two more seeds. What is told is of the test split, at the size of the label maps in
their files; nothing is decided by it.

The test split has 233 frames of two videos, 171 of them of one. Frames that follow one another show the same street, so
they are no independent images. Intervals come from blocks of some 20 consecutive frames, of which as many as there are
(12) are drawn with replacement, the same for all methods. Seeds are not drawn: errors are means over them.

Some 15 runs of up to 20 minutes on two cores; interrupted, it goes on. `--jobs=2` trains two at once, a thread each.
Writes results/segmentation.json, a row a run. `--try` trains one epoch on a few images of each split, without results.
"""

import dataclasses
import itertools
import math
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
from common import Results, markdown, mean_and_spread, measure_all, parser, realdata
from tasks import mobilenet, state_folder

from piggyback_tf.backbones import Backbone, named_variables
from piggyback_tf.confusion import intersection_over_union
from piggyback_tf.data import Source, TaskData, load_data
from piggyback_tf.data.sources import Subset
from piggyback_tf.masking import MaskConfig
from piggyback_tf.methods import METHODS
from piggyback_tf.packs import TaskPack
from piggyback_tf.packs.codec import encode
from piggyback_tf.problems import Problem, is_head
from piggyback_tf.sequences.measure import count_answers, measured_batches
from piggyback_tf.training import InputConfig, TrainConfig, TrainingError, train_task
from piggyback_tf.training.schedules import mask_rate

INPUTS = InputConfig(
    augment_train="random_scale(0.75,1.5)|random_crop(160,width=224)|flip", augment_eval="resize(160,224)"
)
SCHEDULE = TrainConfig(epochs=30, batch_size=8)
# Rates of each method. Those of masks are multiples of the rate that follows from the number of steps.
RATES: Mapping[str, Sequence[float]] = {
    "classifier_only": (3e-4, 1e-3, 3e-3),
    "piggyback": (1 / 3, 1.0, 3.0),
    "finetune": (1e-4, 3e-4, 1e-3),
}
SEARCH_SEED, MORE_SEEDS = 0, (1, 2)
# Consecutive frames that are drawn together, about.
BLOCK = 20
DRAWS = 2000
# float16 on a device or in a file.
HEAD_LIMIT = 150_000


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
        if self.method == "piggyback":
            steps = schedule.epochs * math.ceil(images / schedule.batch_size)
            # 0 stands for the rate that follows from the steps, whatever the recipe makes of it.
            rate = {"mask_lr": 0.0 if self.rate == 1 else self.rate * mask_rate(MaskConfig(), steps)}
        else:
            rate = {{"finetune": "weights_lr", "classifier_only": "head_lr"}[self.method]: self.rate}
        return dataclasses.replace(schedule, seed=self.seed, **rate)


def train(run: Run, backbone: Backbone, data: TaskData, schedule: TrainConfig, state: str) -> dict[str, Any]:
    """Trains and measures one run; goes on with one that was interrupted.

    Args:
        run: What to train.
        backbone: The base.
        data: The images.
        schedule: Epochs and batches.
        state: Names the benchmark's `state_folder`.

    Returns:
        What was measured. `"blocks"` are the confusion matrices of blocks of consecutive test frames, of which all that
        is told of the test split is made.
    """
    config, method = run.config(schedule, len(data.train)), METHODS[run.method]()
    row: dict[str, Any] = {"method": run.method, "rate": run.rate, "seed": run.seed}
    row["config"] = dataclasses.asdict(config)
    try:
        trained = train_task(method, backbone, data, config, INPUTS, state_dir=state_folder(f"{state}/{run.key}"))
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
    assert data.test is not None, "camvid11 has a test split"
    counts = _counts(trained.model, trained.problem, data.test)
    blocks = [counts[block].sum(axis=0, dtype=np.int64) for block in blocks_of(data.test)]
    variables = named_variables(trained.model)
    row |= {
        "test_mean_iou": mean_iou(counts.sum(axis=0, dtype=np.int64)),
        "blocks": [block.tolist() for block in blocks],
        "head_bytes_float16": 2 * sum(math.prod(v.shape) for p, v in variables.items() if is_head(p)),
    }
    if run.method == "piggyback":
        row |= _pack_sizes(trained.model, backbone, data, config)
    return row


def _counts(model: keras.Model, problem: Problem, source: Source) -> np.ndarray:
    """Returns the confusion matrix of each image of a split, at the size of its label map, `[N, K, K]`."""
    batches = measured_batches(problem, source, INPUTS.augment_eval, batch_size=SCHEDULE.batch_size)
    return count_answers(model.predict_on_batch, problem, INPUTS.augment_eval, batches)


def _pack_sizes(model: keras.Model, backbone: Backbone, data: TaskData, config: TrainConfig) -> dict[str, Any]:
    pack = TaskPack.from_model(
        model,
        task=data.name,
        class_names=data.class_names,
        backbone=backbone,
        method="piggyback",
        eval_augment=INPUTS.augment_eval,
        problem=data.target,
        settings=dataclasses.asdict(config),
    )
    return {
        "zeros_percent": 100 * pack.zeros_total,
        "mask_bytes": encode(pack.masks, pack.mask_kind).nbytes,
        "pack_bytes_float16": len(pack.astype("float16").to_bytes()),
    }


def blocks_of(source: Source) -> list[np.ndarray]:
    """Returns the places of the frames of each block: `BLOCK` consecutive ones, about, of one video.

    Args:
        source: Frames in the order of their names, which begin with the video's and an underscore.
    """
    names = [Path(source.key(index)).name for index in range(len(source))]
    assert names == sorted(names), "frames must come in the order of time"
    blocks: list[np.ndarray] = []
    for _, places in itertools.groupby(range(len(names)), lambda place: names[place].split("_")[0]):
        frames = np.array(list(places))
        blocks += np.array_split(frames, max(1, round(len(frames) / BLOCK)))
    return blocks


def mean_iou(confusion: np.ndarray) -> float:
    """Returns the mean over classes that occur of intersection over union, in percent."""
    return 100.0 * float(np.nanmean(intersection_over_union(confusion)))


def drawn(rows: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """Returns the mean IoU, averaged over runs, of blocks that are drawn with replacement, `[DRAWS]`.

    The draws are the same for all runs and methods, so that differences of what this returns are of the same frames.
    """
    matrices = np.stack([np.array(row["blocks"], np.int64) for row in rows])
    count = matrices.shape[1]
    times = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), DRAWS)
    sums = np.einsum("db,rbij->drij", times, matrices)
    return np.array([statistics.mean(mean_iou(matrix) for matrix in draw) for draw in sums])


def with_interval(value: float, draws: np.ndarray) -> str:
    """Returns `"47.31 [44.02, 50.80]"`: a number with the middle 95 % of what blocks of frames give."""
    low, high = np.percentile(draws, [2.5, 97.5])
    return f"{value:.2f} [{low:.2f}, {high:.2f}]"


def report(chosen: Mapping[str, Sequence[Mapping[str, Any]]], class_names: Sequence[str]) -> dict[str, Any]:
    """Prints the tables of the chosen runs of each method, and returns what is asked of masks."""
    values = {method: [row["test_mean_iou"] for row in rows] for method, rows in chosen.items()}
    means = {method: statistics.mean(own) for method, own in values.items()}
    draws = {method: drawn(rows) for method, rows in chosen.items()}
    cells = []
    for method, rows in chosen.items():
        masks, zeros = ([row[name] for row in rows if name in row] for name in ("mask_bytes", "zeros_percent"))
        cells.append(
            [
                method,
                f"{rows[0]['rate']:.2g}",
                with_interval(means[method], draws[method]),
                mean_and_spread(values[method]),
                mean_and_spread(zeros) if zeros else "-",
                f"{statistics.mean(masks) / 1000:.1f} kB" if masks else "-",
                f"{rows[0]['head_bytes_float16'] / 1000:.1f} kB",
            ]
        )
    header = ["method", "rate", "test mean IoU, 95 % over blocks of frames", "over seeds", "zeros %", "masks", "head"]
    print(markdown(header, cells))
    print()
    by_class = {
        method: np.mean([intersection_over_union(np.sum(row["blocks"], axis=0)) for row in rows], axis=0)
        for method, rows in chosen.items()
    }
    lines = [
        [name, *(f"{100 * by_class[method][place]:.1f}" for method in chosen)] for place, name in enumerate(class_names)
    ]
    print(markdown(["IoU of", *chosen], lines))
    print()
    behind = means["piggyback"] - means["finetune"]
    gap = means["finetune"] - means["classifier_only"]
    gained = means["piggyback"] - means["classifier_only"]
    verdict = {
        "masks_less_finetune": behind,
        "part_of_gap": gained / gap if gap > 0 else None,
        "head_bytes_float16": chosen["piggyback"][0]["head_bytes_float16"],
    }
    apart = {
        "masks less fine-tuning": (behind, draws["piggyback"] - draws["finetune"], "at least -1.00"),
        "masks less head alone": (gained, draws["piggyback"] - draws["classifier_only"], f"at least {gap / 2:.2f}"),
        "fine-tuning less head alone": (gap, draws["finetune"] - draws["classifier_only"], "-"),
    }
    rows = [[what, with_interval(value, own), asked] for what, (value, own, asked) in apart.items()]
    size = f"{verdict['head_bytes_float16']:,} bytes"
    print(markdown(["", "points of mean IoU", "asked"], [*rows, ["head in float16", size, f"at most {HEAD_LIMIT:,}"]]))
    return verdict


def few(data: TaskData, images: int) -> TaskData:
    """Returns the data with a few images of each split, spread over it."""
    sources = {
        name: Subset(source, np.linspace(0, len(source) - 1, images).astype(int))
        for name, source in data.splits.items()
    }
    return dataclasses.replace(data, **sources)


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--jobs", type=int, default=1, help="How many processes train at once, a thread each.")
    arguments.add_argument("--try", dest="trial", action="store_true", help="One epoch, few images, no results.")
    options = arguments.parse_args()
    data, schedule, state = load_data(f"segmentation:{realdata() / 'camvid11'}"), SCHEDULE, "segmentation"
    results = Results("segmentation")
    if options.trial:
        data, schedule, state = few(data, 16), dataclasses.replace(SCHEDULE, epochs=1), "segmentation_try"
        results = Results("segmentation", state_folder(state))
    backbone = mobilenet()

    def measured(runs: Sequence[Run]) -> dict[Run, dict[str, Any]]:
        return measure_all(
            runs, lambda run: results.run(run.key, lambda: train(run, backbone, data, schedule, state)), options.jobs
        )

    searched = measured([Run(method, rate, SEARCH_SEED) for method, rates in RATES.items() for rate in rates])
    chosen: dict[str, list[dict[str, Any]]] = {}
    best: dict[str, Run] = {}
    for method in RATES:
        own = {run: row for run, row in searched.items() if run.method == method and "stopped" not in row}
        if not own:
            sys.exit(f"{method} did not learn at any of its rates.")
        best[method] = min(own, key=lambda run: own[run]["val_error"])
        if best[method].rate in (RATES[method][0], RATES[method][-1]):
            print(f"{method}: the best rate is at the end of those that were tried.", file=sys.stderr)
    more = measured([dataclasses.replace(run, seed=seed) for seed in MORE_SEEDS for run in best.values()])
    for method, run in best.items():
        rows = [searched[run], *(more[dataclasses.replace(run, seed=seed)] for seed in MORE_SEEDS)]
        chosen[method] = [row for row in rows if "stopped" not in row]
        if len(chosen[method]) < len(rows):
            print(f"{method}: {len(rows) - len(chosen[method])} of {len(rows)} trainings stopped.", file=sys.stderr)
    search = [
        [run.method, f"{run.rate:.2g}", "stopped" if "stopped" in row else f"{100 - row['val_error']:.2f}"]
        for run, row in searched.items()
    ]
    print(markdown(["method", "rate", "validation mean IoU, seed 0"], search))
    print()
    verdict = report(chosen, data.class_names)
    results.save(
        verdict=verdict, intervals=f"blocks of about {BLOCK} consecutive frames of one video, with replacement"
    )


if __name__ == "__main__":
    main()
