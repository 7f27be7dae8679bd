"""Does batch norm that is trained do better with statistics of its own? And what does PackNet need here?

    PIGGYBACK_REALDATA=... python benchmarks/batch_norm.py

MobileNetV2 at 96 px with ImageNet weights, and the schedule of methods.py: batches of 16 images. Methods that train
batch norm, with the base's statistics and with the task's, beside masks and a classifier without; residual adapters at
more rates of batch norm. PackNet's first task, pruned at once and gradually, with both statistics and two rates of the
weights. `loss` is that of training in the last epoch. Interrupted, it goes on. Writes results/batch_norm.json.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from common import Results, markdown, mean_and_spread, parser
from tasks import SCHEDULE, mobilenet, train_and_test

ART, TEXTURES = "pacs_art_painting", "dtd10"
STATISTICS = ("frozen", "task")


@dataclasses.dataclass(frozen=True)
class Run:
    """A method on a set, its settings, and those of its training where they are not those of `SCHEDULE`."""

    name: str
    method: str
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    train: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __str__(self) -> str:
        changes = ",".join(f"{key}={value}" for key, value in {**self.settings, **self.train}.items())
        return f"{self.name}/{self.method}" + (f"/{changes}" if changes else "")


def runs() -> list[Run]:
    """Returns what is compared, in the order of the table."""
    found = [Run(ART, "classifier_only"), Run(ART, "piggyback")]
    for statistics in STATISTICS:
        own = {"norm_statistics": statistics}
        found += [Run(ART, "piggyback", {"norm": "task", **own}), Run(ART, "dan", own)]
        found += [Run(ART, "residual_adapters", own, {"norm_lr": rate}) for rate in (1e-3, 5e-3, 1e-2)]
    for schedule in ("one_shot", "gradual"):
        for statistics in STATISTICS:
            settings = {"packnet_schedule": schedule, "norm_statistics": statistics}
            found += [Run(TEXTURES, "packnet", settings, {"weights_lr": rate}) for rate in (1e-4, 1e-3)]
    return found


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--seeds", type=int, nargs="+", default=[0])
    options = arguments.parse_args()
    results, backbone, table = Results("batch_norm"), mobilenet(), []

    def learn(run: Run, seed: int) -> dict[str, Any]:
        config, key = dataclasses.replace(SCHEDULE, seed=seed, **run.train), f"{run}/{seed}"
        state = f"batch_norm/{key}"
        return results.run(key, lambda: train_and_test(backbone, run.name, run.method, config, state, **run.settings))

    for run in runs():
        rows = [learn(run, seed) for seed in options.seeds]
        cells = [mean_and_spread([row[measure] for row in rows]) for measure in ("test_error", "val_error", "loss")]
        table.append([str(run), *cells])
    results.save()
    print(markdown(["set, method, settings", "test error %", "validation error %", "loss"], table))


if __name__ == "__main__":
    main()
