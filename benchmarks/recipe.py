"""Which settings do masks need where training is short and batches are small? And does fine-tuning have good ones?

    PIGGYBACK_REALDATA=... python benchmarks/recipe.py

MobileNetV2 at 96 px with ImageNet weights, and the schedule of methods.py: batches of 16 images. Masks with their
default settings, with 1.4 times the rate, with a third of the flips at once as well, and with none over depthwise
kernels besides, which methods.py takes; fine-tuning at half, once and twice its default rate. Judged by validation, on
other seeds than those of methods.py; test errors are measured, and are not in the table. Interrupted, it goes on.
Writes results/recipe.json.
"""

from typing import Any

from common import Results, markdown, mean_and_spread, parser
from tasks import MASKS, SCHEDULE, SETS, Recipe, mobilenet, train_and_test

RECIPES = {
    "masks": Recipe("piggyback"),
    "masks, rate": Recipe("piggyback", train={"mask_lr": MASKS.train["mask_lr"]}),
    "masks, rate, flips": Recipe("piggyback", train=MASKS.train),
    "masks, rate, flips, depthwise": MASKS,
    **{
        f"fine-tuning, rate x {factor:g}": Recipe("finetune", train={"weights_lr": factor * SCHEDULE.weights_lr})
        for factor in (0.5, 1.0, 2.0)
    },
}
MEASURES = {"val_error": "validation error %", "val_loss": "validation loss", "loss": "training loss"}


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--seeds", type=int, nargs="+", default=[2, 3])
    arguments.add_argument("--sets", nargs="+", default=list(SETS), choices=SETS)
    options = arguments.parse_args()
    results, backbone = Results("recipe"), mobilenet()

    def learn(label: str, name: str, seed: int) -> dict[str, Any]:
        recipe, key = RECIPES[label], f"{label}/{name}/{seed}"
        state = f"recipe/{key}".replace(" ", "_")
        return results.run(
            key, lambda: train_and_test(backbone, name, recipe.method, recipe.config(seed), state, **recipe.settings)
        )

    runs = [(label, name, seed) for seed in options.seeds for name in options.sets for label in RECIPES]
    rows = {run: learn(*run) for run in runs}
    table = []
    for label in RECIPES:
        cells = [label]
        for name in options.sets:
            of_seeds = [rows[label, name, seed] for seed in options.seeds]
            cells += [mean_and_spread([row[measure] for row in of_seeds]) for measure in MEASURES]
        table.append(cells)
    results.save()
    print(markdown(["", *(f"{name}, {measure}" for name in options.sets for measure in MEASURES.values())], table))


if __name__ == "__main__":
    main()
