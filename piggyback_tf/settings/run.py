"""Which settings decide what a run learns, and so are what it records.

They are those of the run, its training, its input and its own method, so that a setting of another method is nothing
that its record, tables or packs know of.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from piggyback_tf.settings.inputs import InputConfig
from piggyback_tf.settings.methods import CONFIGS, VARIABLE_GROUPS
from piggyback_tf.settings.records import (
    BASELINE_SETTINGS,
    baseline_record,
    option,
    own_record,
    read_record,
    write_record,
)
from piggyback_tf.settings.training import TrainConfig

STRATEGIES = ("auto", "none", "mirrored", "multi_worker")
PRECISIONS = ("none", "float16", "bfloat16")


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """What a run of `train.py` learns, on which base, by which methods."""

    data: str | None = option(
        None,
        "What to learn from: folder:PATH, multilabel:PATH, segmentation:PATH, coco:PATH, voc:PATH, tfds:NAME, or "
        "digits. Needed without --tasks.",
    )
    tasks: tuple[str, ...] = option((), "Tasks to learn one after another: NAME=DATA,NAME=DATA; see --data.")
    task: str | None = option(None, "Name of the task; by default that of the data set.")
    val_fraction: float = option(0.1, "Share of train to hold out if there is no val split.")
    skip_broken_images: bool = option(False, "Leave out files that cannot be used.")
    backbone: str = option("mobilenet_v2", "The frozen network: a name, as `backbones` lists them, or PATH.keras.")
    weights: str | None = option(
        None, "imagenet, random, hf://OWNER/NAME, or a .weights.h5, .keras or .safetensors file."
    )
    image_size: int | None = option(None, "Height and width in pixels; by default the backbone's own.")
    method: str = option(
        "piggyback",
        f"Method of learning. {', '.join(n for n in CONFIGS.names() if CONFIGS[n].recipe)} have their own "
        "optimisers and rates.",
    )
    baseline: tuple[str, ...] = option((), "A method to compare with, trained first.")
    strategy: str = option(
        "auto",
        "auto: mirrored if there are several devices. multi_worker: all machines in TF_CONFIG.",
    )
    mixed_precision: str = option("none", "Half precision.")
    worker_timeout: int = option(300, "Seconds that multi_worker waits for others at the start.", recorded=False)
    deterministic: bool = option(False, "Bit-equal runs on GPUs too (slower there).")


# Flags that are gone: the type of their values, and a sentence on what took their place. One that is given is warned
# of, and in old records they are passed over. Keep a flag here for as long as there may be records that hold it.
RETIRED: Mapping[str, tuple[type, str]] = {
    "max_flips": (
        float,
        "--mask_trust and --mask_budget limit what flips, over all layers together.",
    ),
}


def settings_of(method: str) -> dict[str, dataclasses.Field]:
    """Returns the settings that decide what a method learns, by name: of the run, its training, its input, its own.

    Args:
        method: Name of the method; of one that is not registered the own settings are not known.
    """
    own: tuple[dataclasses.Field, ...] = ()
    trains: tuple[str, ...] = VARIABLE_GROUPS
    if method in CONFIGS:
        own, trains = dataclasses.fields(CONFIGS[method]), CONFIGS[method].trains
    training = [field for field in dataclasses.fields(TrainConfig) if _is_heeded(field, trains)]
    fields = (*dataclasses.fields(RunConfig), *training, *dataclasses.fields(InputConfig), *own)
    return {field.name: field for field in fields if field.metadata["recorded"]}


def complete(record: Mapping[str, Any], method: str) -> dict[str, Any]:
    """Returns every setting of a method that a record means, as JSON values; see `piggyback_tf.settings`.

    Other methods' settings, which runs once recorded too, and retired ones are left out. What is not known at all
    stays: it may be a setting of a later version.

    Args:
        record: Of a run, or of a pack.
        method: The method, or a baseline of the run.
    """
    others = CONFIGS if method in CONFIGS else ()
    configs = (RunConfig, TrainConfig, InputConfig, *(CONFIGS[name] for name in others))
    known = {field.name for config in configs for field in dataclasses.fields(config)}
    return read_record(own_record(record, method), settings_of(method), known | RETIRED.keys())


def complete_run(record: Mapping[str, Any]) -> dict[str, Any]:
    """Returns every setting of a run that its record means, those of the baselines as `"NAME of BASELINE"`.

    Of a baseline only those that can be otherwise than with the main method. What is no record of a run stays as it is.
    """
    if record.get("method") not in CONFIGS:
        return dict(record)
    main, whole = record["method"], complete(record, record["method"])
    found = dict(whole)
    for name in filter(CONFIGS.__contains__, whole["baseline"]):
        own = complete(record, name)
        differing = {*own} - {*whole} | {*CONFIGS[name].recipe} | {*CONFIGS[main].recipe}
        found |= {f"{setting} of {name}": own[setting] for setting in own if setting in differing}
    return found


def record_run(values: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Returns the record of a run: the settings of its method, and in what those of its baselines differ.

    Args:
        values: The value of every setting of each method, by method; the main one is the last.
    """
    *baselines, main = values
    record = write_record(values[main], settings_of(main))
    of_baselines = {name: baseline_record(values[name], settings_of(name), record) for name in baselines}
    of_baselines = {name: own for name, own in of_baselines.items() if own}
    return record | ({BASELINE_SETTINGS: of_baselines} if of_baselines else {})


def groups_of(field: dataclasses.Field) -> list[str]:
    """Returns the groups of variables of which a setting of `TrainConfig` is; empty if of all."""
    return field.metadata["groups"] or [group for group in VARIABLE_GROUPS if field.name.startswith(f"{group}_")]


def _is_heeded(field: dataclasses.Field, trains: Iterable[str]) -> bool:
    """Whether a training with variables of some groups heeds a setting of `TrainConfig`."""
    groups = groups_of(field)
    return not groups or bool({*groups} & {*trains})
