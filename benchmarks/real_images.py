"""The table at the top of README.md: test error of three methods on three sets of real images, over three seeds.

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
    arguments.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS, help="Train these only.")
    options = arguments.parse_args()
    results, backbone = Results("real_images"), mobilenet()
    for name in options.sets:
        for seed in options.seeds:
            for method in options.methods:
                key, config = f"{name}/{method}/{seed}", TrainConfig(seed=seed)
                results.run(
                    key,
                    lambda: train_and_test(backbone, name, method, config, f"real_images/{key}"),  # noqa: B023
                )
    if set(options.methods) != set(METHODS):
        return
    table = []
    for name in options.sets:
        rows = {m: [results.rows[f"{name}/{m}/{seed}"] for seed in options.seeds] for m in METHODS}
        errors = {m: [row["test_error"] for row in rows[m]] for m in METHODS}
        gain = statistics.mean(errors["classifier_only"]) - statistics.mean(errors["piggyback"])
        zeros = mean_and_spread([row["zeros_percent"] for row in rows["piggyback"]])
        table.append([name, *(mean_and_spread(errors[m]) for m in METHODS), f"{gain:.1f}", zeros])
    results.save()
    header = ["set", *METHODS, "piggyback gains", "zeros %"]
    print(markdown(header, table))


if __name__ == "__main__":
    main()
