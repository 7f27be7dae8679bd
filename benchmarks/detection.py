"""Do masks learn to find boxes as well as fine-tuning does? Blood cells (BCCD) on MobileNetV2, beside the head alone.

    PIGGYBACK_REALDATA=... python benchmarks/detection.py

Images of 240x320, the same head, epochs and augmentation for all methods. Rates are chosen as `at_rates.py` says. What
is told is AP and AP50 of the test split, by pycocotools, in pixels of the files; nothing is decided by it. Intervals
are of 200 bootstraps over the 72 test images, the same draws for all runs. Seeds are not drawn: values are means over
them.

Some 15 runs of up to 20 minutes on two cores; interrupted, it goes on. `--jobs=2` trains two at once, a thread each.
Writes results/detection.json, a row a run. `--try` trains one epoch on a few images of each split, without results.
"""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
from at_rates import counts_of, run_benchmark, with_interval
from common import markdown, mean_and_spread, realdata

from piggyback_tf.data import Source, load_data
from piggyback_tf.problems import Problem
from piggyback_tf.problems.box_measures import EvaluatedBoxes
from piggyback_tf.training import InputConfig, TrainConfig

INPUTS = InputConfig(augment_train="resize(240,320)|translate(24)|flip", augment_eval="resize(240,320)")
SCHEDULE = TrainConfig(epochs=40, batch_size=8)
DRAWS = 200


def measure(model: keras.Model, problem: Problem, source: Source) -> dict[str, Any]:
    """Returns AP and AP50 of the test split in percent, those of each class, and those of bootstraps over images."""
    counts = counts_of(model, problem, source, INPUTS.augment_eval, SCHEDULE.batch_size)
    evaluated = EvaluatedBoxes(counts, len(problem.class_names))
    times = np.random.default_rng(0).multinomial(len(counts), np.full(len(counts), 1 / len(counts)), DRAWS)
    whole = 100 * evaluated.precision(np.ones(len(counts), np.int64))
    draws = [100 * evaluated.precision(row) for row in times]
    return {
        "ap": float(np.nanmean(whole)),
        "ap50": float(np.nanmean(whole[0])),
        "ap_by_class": whole.mean(axis=0).tolist(),
        "ap50_by_class": whole[0].tolist(),
        "ap_draws": [round(float(np.nanmean(draw)), 3) for draw in draws],
        "ap50_draws": [round(float(np.nanmean(draw[0])), 3) for draw in draws],
    }


def report(chosen: Mapping[str, Sequence[Mapping[str, Any]]], class_names: Sequence[str]) -> dict[str, Any]:
    """Prints the tables of the chosen runs of each method, and returns what is asked of masks."""
    means, draws = {}, {}
    for method, rows in chosen.items():
        for name in ("ap", "ap50"):
            means[method, name] = statistics.mean(row[name] for row in rows)
            draws[method, name] = np.mean([row[f"{name}_draws"] for row in rows], axis=0)
    cells = []
    for method, rows in chosen.items():
        masks, zeros = ([row[name] for row in rows if name in row] for name in ("mask_bytes", "zeros_percent"))
        cells.append(
            [
                method,
                f"{rows[0]['rate']:.2g}",
                *(with_interval(means[method, name], draws[method, name]) for name in ("ap", "ap50")),
                mean_and_spread([row["ap"] for row in rows]),
                mean_and_spread(zeros) if zeros else "-",
                f"{statistics.mean(masks) / 1000:.1f} kB" if masks else "-",
                f"{rows[0]['head_bytes_float16'] / 1000:.1f} kB",
                f"{statistics.mean(row['seconds'] for row in rows):.0f} s",
            ]
        )
    header = ["method", "rate", "test AP, 95 %", "test AP50, 95 %", "AP over seeds", "zeros %", "masks", "head", "time"]
    print(markdown(header, cells))
    print()
    by_class = {method: np.mean([row["ap_by_class"] for row in rows], axis=0) for method, rows in chosen.items()}
    lines = [[name, *(f"{by_class[method][place]:.1f}" for method in chosen)] for place, name in enumerate(class_names)]
    print(markdown(["AP of", *chosen], lines))
    print()
    verdict, lines = {}, []
    for name in ("ap", "ap50"):
        of = {method: (means[method, name], draws[method, name]) for method in chosen}
        gap = of["finetune"][0] - of["classifier_only"][0]
        for one, other, asked in (
            ("piggyback", "finetune", "at least -2.00"),
            ("piggyback", "classifier_only", f"at least {gap / 2:.2f}" if name == "ap" else "-"),
            ("finetune", "classifier_only", "-"),
        ):
            value = of[one][0] - of[other][0]
            verdict[f"{name}/{one} less {other}"] = value
            lines.append(
                [f"{name.upper()}, {one} less {other}", with_interval(value, of[one][1] - of[other][1]), asked]
            )
    print(markdown(["", "points", "asked"], lines))
    return verdict


def main() -> None:
    data = load_data(f"coco:{realdata() / 'bccd'}")
    intervals = f"{DRAWS} bootstraps over test images"
    run_benchmark("detection", __doc__, data, INPUTS, SCHEDULE, measure, report, intervals)


if __name__ == "__main__":
    main()
