"""Test error of the three methods on three sets of real images, over three seeds.

    PIGGYBACK_REALDATA=... python benchmarks/real_images.py

MobileNetV2 at 96 px with ImageNet weights, the default recipe, 10 epochs. The best epoch is chosen on a tenth of the
training images; each run looks at the test images once. Interrupted, it goes on. Writes results/real_images.json.
"""

import statistics

from common import Results, markdown, mean_and_spread, parser
from tasks import SETS, mobilenet, train_and_test

from piggyback_tf.training import TrainConfig

METHODS = ("classifier_only", "piggyback", "finetune")


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments.add_argument("--sets", nargs="+", default=list(SETS), choices=SETS)
    options = arguments.parse_args()
    results, backbone = Results("real_images"), mobilenet()
    for seed in options.seeds:
        for name in options.sets:
            for method in METHODS:
                key = f"{name}/{method}/{seed}"
                results.run(
                    key,
                    lambda: train_and_test(backbone, name, method, TrainConfig(seed=seed), f"real_images/{key}"),  # noqa: B023
                )
    table = []
    for name in options.sets:
        rows = {m: [results.rows[f"{name}/{m}/{seed}"] for seed in options.seeds] for m in METHODS}
        errors = {m: [row["test_error"] for row in rows[m]] for m in METHODS}
        gain = statistics.mean(errors["classifier_only"]) - statistics.mean(errors["piggyback"])
        zeros = mean_and_spread([row["zeros_percent"] for row in rows["piggyback"]])
        seconds = statistics.median(row["seconds"] for row in rows["piggyback"])
        table.append([name, *(mean_and_spread(errors[m]) for m in METHODS), f"{gain:.1f}", zeros, f"{seconds:.0f} s"])
    results.save()
    header = ["set", *METHODS, "piggyback gains", "zeros %", "piggyback's time"]
    print(markdown(header, table))


if __name__ == "__main__":
    main()
