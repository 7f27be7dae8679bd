"""What does each part of the masks' default recipe do? The parts left out one at a time, judged by validation.

    PIGGYBACK_REALDATA=... python benchmarks/ablation.py

MobileNetV2 at 96 px with ImageNet weights on the sets that the recipe was found on, three seeds, 10 epochs of 32. The
test images are not looked at. The default's rows are those of battery.py, which is run first. `deep` is the network
with random weights of tests/training/test_stress.py. `final loss` is that of the training images without augmentation
after the last epoch. Interrupted, it goes on. Writes results/ablation.json.
"""

import dataclasses
import itertools
import statistics
from typing import Any
from unittest import mock

from common import Results, markdown, mean_and_spread, parser
from tasks import Recipe, mobilenet, train_and_test, train_on

from piggyback_tf.training import InputConfig, TrainConfig, trust_region
from tests.training.fragile import make_problem

SETS = ("photos40", "dtd10", "gtsrb43", "deep")
RECIPES = {
    "default": Recipe("piggyback"),
    "no feedback": Recipe("piggyback"),
    "no trust region: Adam at the same rate": Recipe("piggyback", train={"mask_trust": 0.0}),
    "no limit on what is promised": Recipe("piggyback", train={"mask_trust": 1e9}),
    "no budget of flips": Recipe("piggyback", train={"mask_budget": 1e9}),
    "random head": Recipe("piggyback", {"head_init": "glorot"}),
    "no warm-up": Recipe("piggyback", train={"warmup_steps": 0}),
    "Keras' epsilon": Recipe("piggyback", train={"mask_epsilon": 1e-7}),
}
# Constants of the code that a recipe changes.
CONSTANTS = {"no feedback": {"_LEAST": 1.0}}
_NONE = {"_LEAST": trust_region._LEAST}
MEASURES = {"val_error": "val. error %", "val_loss": "val. loss", "final_loss": "final loss"}


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments.add_argument("--sets", nargs="+", default=list(SETS), choices=[*SETS, "cars98"])
    arguments.add_argument("--recipes", nargs="+", default=list(RECIPES), choices=RECIPES, metavar="RECIPE")
    options = arguments.parse_args()
    results, battery, backbone = Results("ablation"), Results("battery"), mobilenet()

    def learn(label: str, name: str, seed: int) -> dict[str, Any]:
        recipe, key = RECIPES[label], f"{name}/{label}/{seed}"
        config = dataclasses.replace(TrainConfig(seed=seed, chance_epochs=0), **recipe.train)
        state = f"ablation/{key}".replace(" ", "_").replace(":", "")

        def measure() -> dict[str, Any]:
            if label == "default" and name != "deep":
                return battery.rows[f"mobilenet_v2/{name}/piggyback/{seed}"]
            if name == "deep":
                deep, data = make_problem()
                return train_on(deep, data, InputConfig(), recipe.method, config, state, test=False, **recipe.settings)
            return train_and_test(backbone, name, recipe.method, config, state, test=False, **recipe.settings)

        with mock.patch.multiple(trust_region, **CONSTANTS.get(label, _NONE)):
            return results.run(key, measure)

    # Seeds outermost: interrupted, every recipe has been tried on some of them.
    runs = list(itertools.product(options.seeds, options.sets, options.recipes))
    rows = {(label, name, seed): learn(label, name, seed) for seed, name, label in runs}
    table = []
    for label in options.recipes:
        cells = [label]
        for name in options.sets:
            of_seeds = [rows[label, name, seed] for seed in options.seeds]
            cells += [mean_and_spread([row[measure] for row in of_seeds]) for measure in MEASURES]
            zeros = [row["zeros_percent"] for row in of_seeds if "zeros_percent" in row]
            cells.append(f"{statistics.mean(zeros):.2f}" if zeros else "-")
        table.append(cells)
    results.save()
    header = [f"{name}, {measure}" for name in options.sets for measure in (*MEASURES.values(), "zeros %")]
    print(markdown(["recipe", *header], table))


if __name__ == "__main__":
    main()
