"""What the runs of a table need: data and where they come from, hours of a GPU, and space for results."""

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path

from piggyback_tf.commands.reproduce_plan import PlannedRun, where_to_get
from piggyback_tf.settings import CONFIGS

# Multiplications with an addition that an image takes at the size of the paper, and weights, of each network without
# its classifier. A test compares them with the networks.
NETWORKS = {
    "vgg16_torch": (15_476_157_440, 134_260_544),
    "vgg16_bn": (15_489_717_632, 134_277_440),
    "resnet50_torch": (4_102_193_472, 23_561_152),
    "densenet121_torch": (2_850_360_608, 7_037_504),
    "wrn28_4": (848_165_424, 5_853_680),
}
# What a GPU keeps up, in floating point operations a second: a guess, to which hours are in proportion.
FLOPS = 1e13
_BY_HAND = ("imagenet2012", "visual_domain_decathlon/imagenet12")


@dataclasses.dataclass(frozen=True)
class DataNeed:
    """Data that some runs read.

    Attributes:
        spec: As it is asked for here.
        place: Where it is or goes.
        state: `"there"`, `"missing"`, or `"downloaded"` for what TensorFlow Datasets fetches by itself.
        about: What `configs/` says of it.
    """

    spec: str
    place: str
    state: str
    about: str


def data_needs(planned: Sequence[PlannedRun]) -> list[DataNeed]:
    """Returns the data of some runs, each once, and whether they are there."""
    found: dict[str, DataNeed] = {}
    for run in planned:
        for task, spec in run.specs.items():
            if spec not in found:
                found[spec] = _need(spec, run.run.specs[task], run.data_dir)
    return list(found.values())


def _need(spec: str, as_written: str, data_dir: str | None) -> DataNeed:
    kind, _, argument = spec.partition(":")
    about = where_to_get(as_written)
    if kind == "tfds":
        name = argument.partition("?")[0]
        folder = Path(data_dir or "~/tensorflow_datasets").expanduser()
        there = any((folder / name).glob("**/dataset_info.json"))
        state = "there" if there else "missing" if name in _BY_HAND else "downloaded"
        return DataNeed(spec, str(folder / name), state, about)
    if kind == "folder":
        return DataNeed(spec, argument, "there" if (Path(argument) / "train").is_dir() else "missing", about)
    return DataNeed(spec, argument, "there", about)  # Such as digits, which come with scikit-learn.


def training_images(planned: PlannedRun) -> int | None:
    """Returns how many images an epoch has, as `configs/` says; None if it does not."""
    total = 0
    for spec in planned.run.specs.values():
        said = re.search(r"([\d,]+) training", where_to_get(spec))
        if not said:
            return None
        total += int(said[1].replace(",", ""))
    return total


def gpu_hours(planned: PlannedRun) -> float | None:
    """Returns how long a run takes about, on a GPU that keeps up `FLOPS`; None if that cannot be said.

    An image takes a pass forward, and for all but a head alone a pass back, which is twice as much.
    """
    flags, images = planned.flags, training_images(planned)
    if images is None or flags.get("backbone") not in NETWORKS:
        return None
    passes = 1 if planned.flags["method"] == "classifier_only" else 3
    operations = 2 * passes * NETWORKS[flags["backbone"]][0]
    return operations * images * int(flags["epochs"]) / FLOPS / 3600


def disk_bytes(planned: PlannedRun) -> int | None:
    """Returns how much the results of a run take about without heads: networks as they are, of masks a bit a weight."""
    flags, tasks = planned.flags, len(planned.run.specs)
    if flags.get("backbone") not in NETWORKS:
        return None
    weights = NETWORKS[flags["backbone"]][1]
    if "mask" in CONFIGS[planned.flags["method"]].trains:
        return tasks * weights // 8
    if planned.flags["method"] == "classifier_only":
        return 0
    return 4 * weights * (tasks if planned.flags["method"] == "finetune" else 1)
