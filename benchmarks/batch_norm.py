"""Does batch norm that is trained do better with statistics of its own? And what does PackNet need here?

    PIGGYBACK_REALDATA=... python benchmarks/batch_norm.py

MobileNetV2 at 96 px with ImageNet weights, and the schedule of methods.py: batches of 16 images. Methods that train
batch norm, with the base's statistics and with the task's, beside masks and a classifier without; residual adapters at
more rates of batch norm. PackNet's first task, pruned at once and gradually, with both statistics and two rates of the
weights. `loss` is that of training in the last epoch. Interrupted, it goes on. Writes results/batch_norm.json.
"""

import dataclasses
from typing import Any

from common import Results, markdown, mean_and_spread, parser
from tasks import MASKS, Recipe, mobilenet, train_and_test

ART, TEXTURES = "pacs_art_painting", "dtd10"
STATISTICS = ("frozen", "task")


def runs() -> dict[str, tuple[str, Recipe]]:
    """Returns what is compared, a set and a recipe by label, in the order of the table."""
    found = [(ART, Recipe("classifier_only")), (ART, MASKS)]
    for statistics in STATISTICS:
        own = {"norm_statistics": statistics}
        found += [(ART, dataclasses.replace(MASKS, settings={**MASKS.settings, "norm": "task", **own}))]
        found += [(ART, Recipe("dan", own))]
        found += [(ART, Recipe("residual_adapters", own, {"norm_lr": rate})) for rate in (1e-3, 5e-3, 1e-2)]
    for schedule in ("one_shot", "gradual"):
        for statistics in STATISTICS:
            settings = {"packnet_schedule": schedule, "norm_statistics": statistics}
            found += [(TEXTURES, Recipe("packnet", settings, {"weights_lr": rate})) for rate in (1e-4, 1e-3)]
    return {label_of(name, recipe): (name, recipe) for name, recipe in found}


def label_of(name: str, recipe: Recipe) -> str:
    """Returns the set, the method, and what is not its default."""
    changes = ",".join(f"{key}={value}" for key, value in {**recipe.settings, **recipe.train}.items())
    return f"{name}/{recipe.method}" + (f"/{changes}" if changes else "").replace("*", "")


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--seeds", type=int, nargs="+", default=[0])
    options = arguments.parse_args()
    results, backbone, table = Results("batch_norm"), mobilenet(), []

    def learn(label: str, name: str, recipe: Recipe, seed: int) -> dict[str, Any]:
        key, config = f"{label}/{seed}", recipe.config(seed)
        state = f"batch_norm/{key}"
        return results.run(key, lambda: train_and_test(backbone, name, recipe.method, config, state, **recipe.settings))

    for label, (name, recipe) in runs().items():
        rows = [learn(label, name, recipe, seed) for seed in options.seeds]
        cells = [mean_and_spread([row[measure] for row in rows]) for measure in ("test_error", "val_error", "loss")]
        table.append([label, *cells])
    results.save()
    print(markdown(["set, method, settings", "test error %", "validation error %", "loss"], table))


if __name__ == "__main__":
    main()
