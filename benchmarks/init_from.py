"""Does it help to start a mask from another task's mask? And is the best start found before training?

    PIGGYBACK_REALDATA=... python benchmarks/init_from.py

MobileNetV2 at 96 px with ImageNet weights, and the schedule of methods.py. Each set starts as usual and from the packs
of others. `auto` is not trained: it is the row of the start that it chooses among them, with the same seed. Validation
errors are those after so many epochs. The best epoch is chosen on a tenth of the training images. Interrupted, it goes
on. Writes results/init_from.json.
"""

import time
from typing import Any

from common import Results, markdown, mean_and_spread, parser, realdata
from mask_runs import USUAL, learn_masks, pack_file
from tasks import INPUTS, MASKS, SETS, mobilenet

from piggyback_tf.backbones import Backbone
from piggyback_tf.data import load_data
from piggyback_tf.methods.piggyback import Piggyback, PiggybackConfig
from piggyback_tf.sequences import with_start

SOURCES = {
    "pacs_sketch": ("pacs_art_painting",),
    "pacs_art_painting": ("pacs_sketch",),
    "dtd10": ("pacs_sketch", "pacs_art_painting"),
}
EARLY = (1, 2, 3)


def state_of(name: str, start: str, seed: int) -> str:
    """Returns the name of a run's folder."""
    return f"init_from/{name}/{start}/{seed}"


def train(backbone: Backbone, name: str, start: str, seed: int) -> dict[str, Any]:
    """Learns a set whose masks start as usual or from another set's pack, which is there or is learned again."""
    if start == USUAL:
        return learn_masks(backbone, name, seed, PiggybackConfig(**MASKS.settings), state_of(name, USUAL, seed))
    train(backbone, start, USUAL, seed)
    config = PiggybackConfig(**MASKS.settings, init_from=str(pack_file(start, state_of(start, USUAL, seed))))
    return learn_masks(backbone, name, seed, config, state_of(name, start, seed))


def choose(backbone: Backbone, name: str, seed: int) -> dict[str, Any]:
    """Returns which start `auto` takes for a set, the scores of all, and how long that took."""
    learned = {}
    for source in SOURCES[name]:
        train(backbone, source, USUAL, seed)
        learned[source] = pack_file(source, state_of(source, USUAL, seed))
    data = load_data(f"folder:{realdata() / name}", seed=seed)
    method, began = Piggyback(PiggybackConfig(**MASKS.settings, init_from="auto")), time.perf_counter()
    found = with_start(method, backbone, data, INPUTS, seed=seed, learned=learned).provenance["start"]
    scores = {start or USUAL: score for start, score in found["scores"]}
    return {"chosen": found["pack"] or USUAL, "scores": scores, "seconds": round(time.perf_counter() - began, 1)}


def table_row(label: str, rows: list[dict[str, Any]], scores: str = "") -> list[str]:
    """Returns the cells of one start of a set, over seeds."""
    early = [mean_and_spread([row["val_errors"][epoch - 1] for row in rows]) for epoch in EARLY]
    return [
        label,
        scores,
        mean_and_spread([row["test_error"] for row in rows]),
        *early,
        mean_and_spread([row["zeros_percent"] for row in rows]),
        mean_and_spread([row["mask_bytes"] / 1000 for row in rows]),
        mean_and_spread([row["pack_bytes"] / 1000 for row in rows]),
    ]


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    arguments.add_argument("--sets", nargs="+", default=list(SETS), choices=SETS)
    options = arguments.parse_args()
    results, backbone = Results("init_from"), mobilenet()
    for seed in options.seeds:
        # As usual first: the other runs start from these.
        for name in SETS:
            results.run(f"{name}/{USUAL}/{seed}", lambda: train(backbone, name, USUAL, seed))  # noqa: B023
        for name in options.sets:
            results.run(f"{name}/auto/{seed}", lambda: choose(backbone, name, seed))  # noqa: B023
            for start in SOURCES[name]:
                results.run(f"{name}/{start}/{seed}", lambda: train(backbone, name, start, seed))  # noqa: B023
    table = []
    for name in options.sets:
        chosen = [results.rows[f"{name}/auto/{seed}"] for seed in options.seeds]
        for start in (USUAL, *SOURCES[name]):
            rows = [results.rows[f"{name}/{start}/{seed}"] for seed in options.seeds]
            table.append([name, *table_row(start, rows, mean_and_spread([one["scores"][start] for one in chosen]))])
        rows = [results.rows[f"{name}/{one['chosen']}/{s}"] for one, s in zip(chosen, options.seeds, strict=True)]
        table.append([name, *table_row(f"auto: {', '.join(one['chosen'] for one in chosen)}", rows)])
    results.save()
    early = [f"val. error %, epoch {epoch}" for epoch in EARLY]
    print(markdown(["set", "start", "LogME", "test error %", *early, "zeros %", "masks, kB", "pack, kB"], table))


if __name__ == "__main__":
    main()
