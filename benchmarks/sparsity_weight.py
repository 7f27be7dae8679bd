"""Smaller packs at equal error? Test error and bytes by the price of dropping weights.

    PIGGYBACK_REALDATA=... python benchmarks/sparsity_weight.py

MobileNetV2 at 96 px with ImageNet weights, and the schedule of methods.py; the best epoch is chosen on a tenth of the
training images. The masks of dtd10 drop next to nothing, and are left out by default. Run init_from.py first: its runs
without a price are reused. Interrupted, it goes on. Writes results/sparsity_weight.json.
"""

from typing import Any

from common import Results, markdown, mean_and_spread, parser
from mask_runs import USUAL, learn_masks
from tasks import MASKS, SETS, mobilenet

from piggyback_tf.methods.piggyback import PiggybackConfig

WEIGHTS = (3.0, 10.0, 30.0)


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    arguments.add_argument("--sets", nargs="+", default=["pacs_sketch", "pacs_art_painting"], choices=SETS)
    arguments.add_argument("--weights", type=float, nargs="+", default=list(WEIGHTS))
    options = arguments.parse_args()
    results, measured = Results("sparsity_weight"), Results("init_from").rows
    backbone = mobilenet()

    def run(name: str, weight: float, seed: int) -> dict[str, Any]:
        key = f"{name}/{weight:g}/{seed}"

        def learn() -> dict[str, Any]:
            if not weight and f"{name}/{USUAL}/{seed}" in measured:
                return measured[f"{name}/{USUAL}/{seed}"]
            return learn_masks(
                backbone,
                name,
                seed,
                PiggybackConfig(**MASKS.settings, sparsity_weight=weight),
                f"sparsity_weight/{key}",
            )

        return results.run(key, learn)

    weights = [0.0, *(weight for weight in options.weights if weight)]
    rows = {
        (name, weight, seed): run(name, weight, seed)
        for seed in options.seeds
        for weight in weights
        for name in options.sets
    }
    table = []
    for name in options.sets:
        for weight in weights:
            found = [rows[name, weight, seed] for seed in options.seeds]
            table.append(
                [
                    name,
                    f"{weight:g}",
                    mean_and_spread([row["test_error"] for row in found]),
                    mean_and_spread([min(row["val_errors"]) for row in found]),
                    mean_and_spread([row["zeros_percent"] for row in found]),
                    mean_and_spread([row["mask_bytes"] / 1000 for row in found]),
                    mean_and_spread([row["pack_bytes"] / 1000 for row in found]),
                ]
            )
    results.save()
    header = ["set", "sparsity_weight", "test error %", "val. error %", "zeros %", "masks, kB", "pack, kB"]
    print(markdown(header, table))


if __name__ == "__main__":
    main()
