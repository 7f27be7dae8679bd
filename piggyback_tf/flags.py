"""Every flag of `train.py`, defined once; most are made from the fields of the config dataclasses.

`commands/absl_command.py` answers flags that do not exist, and lists those that do.
"""

import dataclasses
import sys
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar, get_type_hints

from absl import flags, logging

from piggyback_tf.files import local_path
from piggyback_tf.settings import (
    CONFIGS,
    PRECISIONS,
    RETIRED,
    STRATEGIES,
    InputConfig,
    RunConfig,
    TrainConfig,
    record_run,
    settings_of,
    write_record,
)
from piggyback_tf.settings.run import groups_of

Config = TypeVar("Config", bound=Any)

# Settings that a method which has none of them refuses: whoever gives one expects something of it.
NEVER_IGNORED = ("init_from", "sparsity_weight")
# What defines a flag, by the type of its values.
_MAKERS: dict[Any, Any] = {
    bool: flags.DEFINE_bool,
    int: flags.DEFINE_integer,
    int | None: flags.DEFINE_integer,
    float: flags.DEFINE_float,
    str: flags.DEFINE_string,
    str | None: flags.DEFINE_string,
    tuple[str, ...]: flags.DEFINE_list,
}
# The names of flags by the heading under which --help lists them. --helpfull lists those of `MORE`, too.
HEADINGS: dict[str, list[str]] = {}
ESSENTIALS = "What matters most"
MORE = "Settings of single methods"
# What the first run of `train` may need, in this order.
_ESSENTIALS = (
    *("data", "output_dir", "backbone", "weights", "image_size", "epochs", "batch_size", "method", "baseline"),
    *("tasks", "task"),
)


def define_flags() -> None:
    """Defines all flags; call it once, before absl parses the command line."""
    text, flag, methods = flags.DEFINE_string, flags.DEFINE_bool, CONFIGS.names()
    choices = {"method": methods, "baseline": methods, "strategy": STRATEGIES, "mixed_precision": PRECISIONS}
    HEADINGS[ESSENTIALS] = []  # The first.
    define_config_flags(RunConfig, "Run", choices)
    # Where and how fast a run goes on, and what is measured besides: no settings, which decide what is learned.
    define(text, "output_dir", None, "Folder of the results; an interrupted run continues there.", "Run")
    define(text, "data_dir", None, "Where TensorFlow Datasets are prepared.", "Run")
    define(flag, "tensorboard", True, "Write TensorBoard files to OUTPUT_DIR/tensorboard.", "Run")
    verbose = "0: quiet; 1: counts steps (default on a terminal); 2: epochs."
    define(flags.DEFINE_integer, "verbose", None, verbose, "Run")
    agnostic = "With --tasks, also measure at the end how well the task of an image is inferred."
    define(flag, "task_agnostic", True, agnostic, "Run")
    transfer = "With --tasks, also train every task but the first alone, for comparison."
    define(flag, "forward_transfer", False, transfer, "Run")
    define_config_flags(InputConfig, "Images")
    define_config_flags(TrainConfig, "Training")
    define_config_flags(CONFIGS["piggyback"], "Masks and head")
    _move(_ESSENTIALS, ESSENTIALS)
    _move([name for name in HEADINGS["Training"] if name.startswith(("mask_", "head_"))], "Masks and head")
    for _, config in CONFIGS.items():
        define_config_flags(config, MORE)
    for name, (kind, instead) in RETIRED.items():
        _MAKERS[kind](name, None, f"Does nothing any more. {instead}", module_name="retired")


def define_base_flags() -> None:
    """Defines the flags by which programs that read packs are told the base; `define_flags` has its own."""
    for field in dataclasses.fields(RunConfig):
        if field.name in ("backbone", "weights"):  # Of which packs name theirs.
            define(flags.DEFINE_string, field.name, None, field.metadata["help"], "Base")


class MoreFlag(flags.Flag):
    """A list to which each time that the flag is given adds, in the place of the last time counting alone."""

    def __init__(self, name: str, default: list[str] | None, help: str):
        super().__init__(flags.ListParser(), flags.CsvListSerializer(","), name, default, help)

    def parse(self, argument: Any) -> None:
        before: list[str] = self.value if self.present else []
        super().parse(argument)
        self.value: list[str] = [*before, *self.value]


def define_packs_flag() -> None:
    """Defines `--packs` of programs that read packs; `find_packs` reads it."""

    def make(name: str, default: list[str] | None, help: str) -> None:
        flags.DEFINE_flag(MoreFlag(name, default, help))

    text = "Packs: files, URLs, folders or glob patterns. May be given more than once."
    define(make, "packs", None, text, ESSENTIALS)


def define_config_flags(
    config: type, heading: str = "Settings", choices: Mapping[str, Collection[str]] = MappingProxyType({})
) -> None:
    """Defines a flag for each field of a config dataclass that has none; `read_config` reads them.

    Args:
        config: The dataclass.
        heading: Under which the help lists them.
        choices: The values, or those of its members, that a field of text can have, by its name.
    """
    kinds, there = get_type_hints(config), {name for names in HEADINGS.values() for name in names}
    for field in dataclasses.fields(config):
        if field.name in there:  # A setting that two methods share, such as `norm`.
            if flags.FLAGS[field.name].default != field.default:
                raise ValueError(f"Two configs define --{field.name} with different defaults.")
            continue
        make, default, options = _MAKERS[kinds[field.name]], field.default, {}
        if isinstance(default, tuple):
            default = list(default)
        if field.name in choices:
            make = flags.DEFINE_enum if make is flags.DEFINE_string else flags.DEFINE_multi_enum
            options = {"enum_values": choices[field.name]}
        define(make, field.name, default, field.metadata["help"], heading, **options)


def define(make: Callable[..., Any], name: str, default: Any, help: str, heading: str, **options: Any) -> None:
    """Defines a flag and notes where the help lists it.

    Args:
        make: What defines a flag of its kind, such as `flags.DEFINE_string`.
        name: Its name.
        default: Its default; the help text is made to end in it.
        help: Its help text.
        heading: Under which the help lists it.
        **options: Further arguments of `make`.
    """
    make(name, default, help=help, **options)
    flag = flags.FLAGS[name]
    # absl's own text for choices is one long word.
    flag.help = f"{help} One of {', '.join(options['enum_values'])}." if "enum_values" in options else help
    if flag.default not in (None, "", []):
        flag.help += f" [{flag.default_as_str[1:-1]}]"
    HEADINGS.setdefault(heading, []).append(name)


def _move(names: Iterable[str], heading: str) -> None:
    """Lists flags under another heading, in front of what stands there."""
    names = list(names)
    for listed in HEADINGS.values():
        listed[:] = [name for name in listed if name not in names]
    HEADINGS[heading][:0] = names


def read_config(config: type[Config], recipe: Mapping[str, Any] = MappingProxyType({})) -> Config:
    """Returns a config dataclass with the values of the flags of the same names.

    Args:
        config: The dataclass.
        recipe: Values for flags that were not given.

    Raises:
        flags.IllegalFlagValueError: If a value is not valid; the message is that of the dataclass.
    """
    try:
        return config(
            **{
                field.name: recipe[field.name]
                if field.name in recipe and not flags.FLAGS[field.name].present
                else flags.FLAGS[field.name].value
                for field in dataclasses.fields(config)
            }
        )
    except ValueError as error:
        raise flags.IllegalFlagValueError(str(error).replace("Received: ", "Received: --")) from None


def given_path(name: str) -> Path | None:
    """Returns the path of this machine that a flag gives, None if it is not given.

    Raises:
        PathError: If it is given as an empty text or a URL.
    """
    value = flags.FLAGS[name].value
    return None if value is None else local_path(value, f"--{name}=")


def check_unused(methods: Iterable[str]) -> None:
    """Refuses settings beyond the paper that none of some methods has, and warns of others that were given.

    A warning is enough for those of the papers: files of flags hold them, and are used with other methods, too. Retired
    flags are warned of as well.

    Args:
        methods: Names of all methods of the run.

    Raises:
        flags.IllegalFlagValueError: If a setting beyond the paper is not at its default.
    """
    for name, (_, instead) in RETIRED.items():
        if flags.FLAGS[name].present:
            logging.warning("--%s does nothing any more. %s", name, instead)
    having: dict[str, list[str]] = {}
    for name, config in CONFIGS.items():
        for field in dataclasses.fields(config):
            having.setdefault(field.name, []).append(name)
    methods = list(methods)
    for setting, names in having.items():
        flag = flags.FLAGS[setting]
        if set(names) & set(methods):
            continue
        if setting in NEVER_IGNORED and flag.value != flag.default:
            raise flags.IllegalFlagValueError(
                f"--{setting} goes with --method={' or '.join(names)}. Received: --method={methods[-1]}."
            )
        if flag.present:
            logging.warning(
                "--%s changes nothing: it is a setting of %s, not of %s.", setting, ", ".join(names), ", ".join(methods)
            )
    trained = {group for name in methods for group in CONFIGS[name].trains}
    for field in dataclasses.fields(TrainConfig):
        groups = groups_of(field)
        if groups and not trained & {*groups} and flags.FLAGS[field.name].present:
            logging.warning(
                "--%s changes nothing: it is for variables of the kind %s, and %s trains %s.",
                field.name,
                " or ".join(groups),
                ", ".join(methods),
                ", ".join(sorted(trained)),
            )


def settings(method: str) -> dict[str, Any]:
    """Returns what is recorded of a method: the flags that decide what it learns, by its recipe where not given."""
    return write_record(_values(method), settings_of(method))


def settings_of_run(method: str, baselines: Iterable[str] = ()) -> dict[str, Any]:
    """Returns what is recorded of a run: the `settings` of its method, and in what those of its baselines differ."""
    return record_run({name: _values(name) for name in (*baselines, method)})


def _values(method: str) -> dict[str, Any]:
    train = dataclasses.asdict(read_config(TrainConfig, CONFIGS[method].recipe))
    return {name: train.get(name, flags.FLAGS[name].value) for name in settings_of(method)}


def verbosity() -> int:
    """Returns how much a training prints: what --verbose says, or a bar on a terminal and a line an epoch elsewhere."""
    return (1 if sys.stdout.isatty() else 2) if flags.FLAGS.verbose is None else flags.FLAGS.verbose
