"""Settings as fields of config dataclasses, and the one rule by which a record of them is written and read.

A record holds settings by name. One that it lacks counts as `before`, what was done before there was such a setting, or
as the default where the field does not say. So settings can be added, and old records say what they said.
"""

import dataclasses
import json
import math
import numbers
from collections.abc import Collection, Mapping, Sequence
from typing import Any, get_type_hints

from piggyback_tf.registry import did_you_mean

# In the record of a run, beside the settings of its own method: what is otherwise with its baselines, by method.
BASELINE_SETTINGS = "baseline_settings"


def option(
    default: Any,
    help: str,
    *,
    before: Any = dataclasses.MISSING,
    recorded: bool = True,
    groups: Collection[str] = (),
) -> Any:
    """A field of a config dataclass with its help text, from which the command-line flag is made.

    Args:
        default: What a new run has without the flag.
        help: The flag's help text.
        before: For a setting that is added to those that are there: the value with which a run does what runs did
            before. A record without the setting counts as having it, and it is never recorded, so that records, and
            digests of packs that hold them, stay as they were. It stays the same if the default ever changes.
        recorded: Whether it decides what is learned. What does not is in no record.
        groups: Groups of variables, `VARIABLE_GROUPS` of the methods, without which a training does not heed the
            setting; a setting of `TrainConfig` that begins with a group and an underscore need not say so.

    Raises:
        TypeError: If `before` is of another type than the default: it would not equal what is recorded.
    """
    if before is not dataclasses.MISSING and None not in (before, default) and type(before) is not type(default):
        raise TypeError(f"`before` must be a {type(default).__name__}, as the default is. Received: {before!r}.")
    metadata = {"help": help, "before": before, "recorded": recorded, "groups": tuple(groups)}
    return dataclasses.field(default=default, metadata=metadata)


def prefixed(config: type, prefix: str, base: type) -> type:
    """Returns a frozen dataclass with the settings of another one, their names with a prefix, behind those of `base`.

    So a setting stands in one place, and a method that has it has it as a flag.

    Args:
        config: The dataclass; its fields that are no `option` are left out.
        prefix: What stands in front of each name.
        base: The dataclass to inherit from.
    """
    kinds = get_type_hints(config)
    fields = [
        (prefix + name, kinds[name], dataclasses.field(default=field.default, metadata=field.metadata))
        for name, field in _options(config).items()
    ]
    return dataclasses.make_dataclass(f"Prefixed{config.__name__}", fields, bases=(base,), frozen=True)


def without_prefix(settings: Any, config: type, prefix: str) -> dict[str, Any]:
    """Returns the values that an object with `prefixed` settings has for another config, by the names there."""
    return {name: getattr(settings, prefix + name) for name in _options(config)}


def _options(config: type) -> dict[str, dataclasses.Field]:
    return {field.name: field for field in dataclasses.fields(config) if "help" in field.metadata}


def check_finite(config: Any) -> None:
    """Raises a `ValueError` that names a setting, field of a dataclass, that is infinite or no number."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"`{field.name}` must be a finite number. Received: {field.name}={value}.")


def check_choice(name: str, value: str, valid: Sequence[str], error: type[ValueError] = ValueError) -> None:
    """Checks that a setting has one of the values that are valid.

    Args:
        name: The setting's name.
        value: What was given.
        valid: The values.
        error: The kind of error to raise.

    Raises:
        ValueError: If it is none of them; or `error`.
    """
    if value not in valid:
        question = did_you_mean(str(value), valid)
        raise error(f"`{name}` must be one of {', '.join(valid)}. Received: {name}={value!r}.{question}")


def check_integer(
    name: str, value: Any, least: int, most: int | None = None, error: type[ValueError] = ValueError
) -> None:
    """Checks that a setting is an integer in a range.

    Args:
        name: The setting's name.
        value: What was given; integers of NumPy are some, too.
        least: The smallest that is valid.
        most: The largest; any if None.
        error: The kind of error to raise.

    Raises:
        ValueError: If it is none; or `error`.
    """
    is_integer = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if is_integer and least <= value and (most is None or value <= most):
        return
    valid = f"of at least {least}" if most is None else f"from {least} to {most}"
    raise error(f"{name} must be an integer {valid}. Received: {name}={value!r}.")


def write_record(values: Mapping[str, Any], fields: Mapping[str, dataclasses.Field]) -> dict[str, Any]:
    """Returns what is recorded of settings, as JSON values: all but those that are as before there was such a setting.

    Args:
        values: The value of every setting.
        fields: The settings that decide what is learned, by name.
    """
    plain = _plain({name: values[name] for name in fields})
    return {name: value for name, value in plain.items() if value != _before(fields[name])}


def read_record(
    record: Mapping[str, Any], fields: Mapping[str, dataclasses.Field], ignored: Collection[str]
) -> dict[str, Any]:
    """Returns every setting that a record means, as JSON values: those that it lacks, too.

    Args:
        record: Recorded settings of one method; see `own_record`.
        fields: The settings that decide what is learned, by name.
        ignored: Settings that are known not to decide it. Any other name stays: what it stands for is not known.
    """
    found = {name: value for name, value in record.items() if name in fields or name not in ignored}
    missing = {name: field.default if _is_first(field) else field.metadata["before"] for name, field in fields.items()}
    return _plain(missing | found)


def own_record(record: Mapping[str, Any], method: str) -> dict[str, Any]:
    """Returns the recorded settings of one of a run's methods, be it the main one or a baseline."""
    own = {name: value for name, value in record.items() if name != BASELINE_SETTINGS}
    return own | record.get(BASELINE_SETTINGS, {}).get(method, {})


def baseline_record(
    values: Mapping[str, Any], fields: Mapping[str, dataclasses.Field], main: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns what a run records of a baseline: what `own_record` would not find in the record of the main method.

    Args:
        values: The value of every setting of the baseline.
        fields: Its settings, by name.
        main: The record of the main method.
    """
    plain = _plain({name: values[name] for name in fields})
    return {name: value for name, value in plain.items() if value != main.get(name, _before(fields[name]))}


def _is_first(field: dataclasses.Field) -> bool:
    return field.metadata["before"] is dataclasses.MISSING


def _before(field: dataclasses.Field) -> Any:
    """Returns the value that is not recorded, or what equals no JSON value."""
    return dataclasses.MISSING if _is_first(field) else _plain(field.metadata["before"])


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value))
