"""Does a run ever end worse than classifier only? Three sets, three seeds, and a range of mask learning rates.

    PIGGYBACK_REALDATA=... python benchmarks/stability.py

First the default recipe at a third, once, twice and three times its mask learning rate; then the ablation: without the
limit on flips, without warm-up, with Keras' epsilon, with none of them, and the paper's recipe (Adam at 1e-4, no
warm-up, step schedule), on the set and the seed that are hardest to keep stable. `last epoch` is the validation error
of the last epoch, which choosing the best epoch hides. Run real_images.py first: its runs at the default rate are
reused. Interrupted, it goes on. Writes results/stability.json.
"""

import dataclasses
import itertools

from common import RESULTS, Results, markdown, mean_and_spread, parser
from tasks import SETS, mobilenet, train_and_test

from piggyback_tf.training import TrainConfig

FACTORS = {"1/3": 1 / 3, "1": 1.0, "2": 2.0, "3": 3.0}
DEFAULT = TrainConfig()
ABLATION = {
    "no flip limit": {"max_flips": 0.0},
    "no warm-up": {"warmup_steps": 0},
    "Keras' epsilon": {"mask_epsilon": 1e-7},
    "none of them": {"max_flips": 0.0, "warmup_steps": 0, "mask_epsilon": 1e-7},
    "paper": {
        "max_flips": 0.0,
        "warmup_steps": 0,
        "schedule": "step",
        "mask_lr": 1e-4,
        "mask_epsilon": 1e-8,
        "adam_epsilon": 1e-8,
    },
}


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments.add_argument("--factors", nargs="+", default=list(FACTORS), choices=FACTORS)
    arguments.add_argument("--sets", nargs="+", default=list(SETS), choices=SETS)
    arguments.add_argument("--ablation", nargs="*", default=list(ABLATION), choices=ABLATION)
    arguments.add_argument("--ablation_sets", nargs="*", default=["dtd10"], choices=SETS)
    arguments.add_argument("--ablation_seeds", type=int, nargs="+", default=[1])
    arguments.add_argument("--ablation_factors", nargs="+", default=["1", "2"], choices=FACTORS)
    options = arguments.parse_args()
    results, measured = Results("stability"), Results("real_images", RESULTS).rows
    backbone = mobilenet()

    def train(recipe: str, changes: dict, factor: str, name: str, seed: int) -> dict:
        config = dataclasses.replace(DEFAULT, seed=seed, **changes)
        config = dataclasses.replace(config, mask_lr=config.mask_lr * FACTORS[factor])
        key = f"{recipe}/{factor}/{name}/{seed}".replace(" ", "_")

        def run() -> dict:
            row = measured.get(f"{name}/piggyback/{seed}", {})
            if row.get("config") == dataclasses.asdict(config):
                return row
            return train_and_test(backbone, name, "piggyback", config, "stability/" + key.replace("/", "-"))

        return results.run(key, run)

    def reference(name: str, seed: int) -> float:
        key = f"{name}/classifier_only/{seed}"
        config = TrainConfig(seed=seed)
        row = measured.get(key) or results.run(
            key, lambda: train_and_test(backbone, name, "classifier_only", config, "stability/" + key)
        )
        return row["test_error"]

    table = []
    # Seeds outermost: interrupted, every rate has been tried on some of them.
    for seed, factor, name in itertools.product(options.seeds, options.factors, options.sets):
        train("default", {}, factor, name, seed)
    for recipe in options.ablation:
        for factor, name, seed in itertools.product(
            options.ablation_factors, options.ablation_sets, options.ablation_seeds
        ):
            train(recipe, ABLATION[recipe], factor, name, seed)
    for recipe in ("default", *options.ablation):
        own = recipe == "default"
        for factor in options.factors if own else options.ablation_factors:
            for name in options.sets if own else options.ablation_sets:
                seeds = options.seeds if own else options.ablation_seeds
                rows = [results.rows[f"{recipe}/{factor}/{name}/{seed}".replace(" ", "_")] for seed in seeds]
                base = [reference(name, seed) for seed in seeds]
                stopped = sum("stopped" in row for row in rows)
                errors = [row.get("test_error", 100.0) for row in rows]
                worse = sum(error > limit for error, limit in zip(errors, base, strict=True))
                last = [row.get("last_val_error", 100.0) for row in rows]
                table.append(
                    [recipe, factor, name, mean_and_spread(errors), mean_and_spread(last), mean_and_spread(base)]
                    + [f"{worse} of {len(rows)}", stopped]
                )
    results.save()
    header = ["recipe", "rate x", "set", "test error %", "last epoch, val. %", "classifier only %", "worse", "stopped"]
    print(markdown(header, table))


if __name__ == "__main__":
    main()
