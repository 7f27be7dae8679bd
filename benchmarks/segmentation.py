"""Do masks learn to segment as well as fine-tuning does? CamVid on MobileNetV2, beside the head alone.

    PIGGYBACK_REALDATA=... python benchmarks/segmentation.py

Images of 160x224, the same head, epochs and augmentation for all methods. Rates are chosen as `at_rates.py` says. What
is told is of the test split, at the size of the label maps in their files; nothing is decided by it.

The test split has 233 frames of two videos, 171 of them of one. Frames that follow one another show the same street, so
they are no independent images. Intervals come from blocks of some 20 consecutive frames, of which as many as there are
(12) are drawn with replacement, the same for all methods. Seeds are not drawn: errors are means over them.

Some 15 runs of up to 20 minutes on two cores; interrupted, it goes on. `--jobs=2` trains two at once, a thread each.
Writes results/segmentation.json, a row a run. `--try` trains one epoch on a few images of each split, without results.
"""

import itertools
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
from at_rates import counts_of, run_benchmark, with_interval
from common import markdown, mean_and_spread, realdata

from piggyback_tf.confusion import intersection_over_union
from piggyback_tf.data import Source, load_data
from piggyback_tf.problems import Problem
from piggyback_tf.training import InputConfig, TrainConfig

INPUTS = InputConfig(
    augment_train="random_scale(0.75,1.5)|random_crop(160,width=224)|flip", augment_eval="resize(160,224)"
)
SCHEDULE = TrainConfig(epochs=30, batch_size=8)
# Consecutive frames that are drawn together, about.
BLOCK = 20
DRAWS = 2000
# float16 on a device or in a file.
HEAD_LIMIT = 150_000


def measure(model: keras.Model, problem: Problem, source: Source) -> dict[str, Any]:
    """Returns what is told of the test split: the confusion matrices of blocks of consecutive frames."""
    counts = counts_of(model, problem, source, INPUTS.augment_eval, SCHEDULE.batch_size)
    blocks = [counts[block].sum(axis=0, dtype=np.int64) for block in blocks_of(source)]
    return {
        "test_mean_iou": mean_iou(counts.sum(axis=0, dtype=np.int64)),
        "blocks": [block.tolist() for block in blocks],
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


def main() -> None:
    data = load_data(f"segmentation:{realdata() / 'camvid11'}")
    intervals = f"blocks of about {BLOCK} consecutive frames of one video, with replacement"
    run_benchmark("segmentation", __doc__, data, INPUTS, SCHEDULE, measure, report, intervals)


if __name__ == "__main__":
    main()
