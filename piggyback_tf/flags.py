"""Every flag of `train.py`, defined once; most are made from the fields of the config dataclasses."""

import dataclasses
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, TypeVar

from absl import flags, logging

from piggyback_tf.methods import METHODS, Method
from piggyback_tf.training import STRATEGIES, InputConfig, TrainConfig

Config = TypeVar("Config")

# They change where and how fast a run goes on, and what is measured besides; not what is learned.
NOT_SETTINGS = {
    "task_agnostic",
    "forward_transfer",
    "output_dir",
    "data_dir",
    "cache",
    "cache_limit_mb",
    "cache_dir",
    "tensorboard",
    "verbose",
    "chance_epochs",
}
# Settings that a method which has none of them refuses: whoever gives one expects something of it.
NEVER_IGNORED = ("init_from", "sparsity_weight")
PRECISIONS = ("none", "float16", "bfloat16")
_OWN: list[str] = []

# The flags then count as those of the program that calls `define_flags`, and its --helpshort lists them.
flags.disclaim_key_flags()


def define_flags() -> None:
    """Defines all flags; call it once, before absl parses the command line."""
    text, flag, number = flags.DEFINE_string, flags.DEFINE_bool, flags.DEFINE_integer
    _own(text, "data", None, "What to learn from: tfds:NAME, folder:PATH, or digits. Required without --tasks.")
    _own(flags.DEFINE_list, "tasks", [], "Tasks to learn in turn: NAME=DATA,NAME=DATA; see --data.")
    _own(
        flag, "task_agnostic", True, "With --tasks, measure at the end also how well the task of an image is inferred."
    )
    _own(flag, "forward_transfer", False, "With --tasks, train every task but the first alone, too, to compare with.")
    _own(text, "output_dir", None, "Folder of the results; an interrupted run goes on. Required.", required=True)
    _own(text, "data_dir", None, "Where TensorFlow Datasets are prepared.")
    _own(text, "task", None, "Name of the task; by default that of the data set.")
    _own(flags.DEFINE_float, "val_fraction", 0.1, "Part of train for validation, if there is no such split.")
    _own(flag, "skip_broken_images", False, "Leave broken images out and count them.")
    define_base_flags("mobilenet_v2")
    _own(number, "image_size", None, "Height and width in pixels; by default the backbone's own.")
    own = ", ".join(name for name in METHODS if METHODS[name].recipe)
    help_text = f"How the task is learned. All settings: --helpfull. {own} have optimisers and rates of their own."
    _own(flags.DEFINE_enum, "method", "piggyback", METHODS.names(), help_text)
    _own(flags.DEFINE_multi_enum, "baseline", [], METHODS.names(), "A method to compare with, trained first.")
    _own(flags.DEFINE_enum, "strategy", "auto", STRATEGIES, "Devices; auto: mirrored if several.")
    _own(flags.DEFINE_enum, "mixed_precision", "none", PRECISIONS, "Half precision of the computation.")
    _own(flag, "deterministic", False, "Bit-equal runs on GPUs too (slower there).")
    _own(flag, "tensorboard", True, "Write TensorBoard files to OUTPUT_DIR/tensorboard.")
    _own(number, "verbose", None, "0: quiet; 1: bar (default on a terminal); 2: a line an epoch.")
    for config in (TrainConfig, InputConfig, METHODS["piggyback"].Config):
        define_config_flags(config)
    # Listed by --helpfull under the module of the method, so that --helpshort stays readable.
    for name in METHODS:
        define_config_flags(METHODS[name].Config, module_name=METHODS[name].__module__)


def define_base_flags(backbone: str | None = None) -> None:
    """Defines the flags that say which base is meant; `define_flags` does so, too.

    Args:
        backbone: Default of `--backbone`; None where packs name theirs.
    """
    _own(flags.DEFINE_string, "backbone", backbone, "The frozen network; python -m piggyback_tf backbones lists them.")
    _own(flags.DEFINE_string, "weights", None, "imagenet, random, or a .weights.h5 or .keras file.")


def define_config_flags(config: type, module_name: str | None = None) -> None:
    """Defines a flag for each field of a config dataclass that has none; `read_config` reads them.

    Args:
        config: The dataclass.
        module_name: Module whose help lists them; None for the program's own.
    """
    makers = {bool: flags.DEFINE_bool, int: flags.DEFINE_integer, float: flags.DEFINE_float, str: flags.DEFINE_string}
    for field in dataclasses.fields(config):
        if field.name in _OWN:  # A setting that two methods share, such as `norm`.
            if flags.FLAGS[field.name].default != field.default:
                raise ValueError(f"Two configs define --{field.name} with different defaults.")
            continue
        place = {} if module_name is None else {"module_name": module_name}
        _own(makers[type(field.default)], field.name, field.default, field.metadata["help"], **place)


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


def make_method(name: str) -> Method:
    """Returns the method of a name with the settings that the flags give it."""
    method = METHODS[name]
    return method(read_config(method.Config))


def check_unused(methods: Iterable[str]) -> None:
    """Refuses settings beyond the paper that none of some methods has, and warns of others that were given.

    A warning is enough for those of the papers: files of flags hold them, and are used with other methods, too.

    Args:
        methods: Names of all methods of the run.

    Raises:
        flags.IllegalFlagValueError: If a setting beyond the paper is not at its default.
    """
    having: dict[str, list[str]] = {}
    for name in METHODS:
        for field in dataclasses.fields(METHODS[name].Config):
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


def settings(method: str) -> dict[str, Any]:
    """Returns the values of all flags that decide what a method learns, by its recipe where they were not given."""
    train = dataclasses.asdict(read_config(TrainConfig, METHODS[method].recipe))
    return {name: train.get(name, flags.FLAGS[name].value) for name in _OWN if name not in NOT_SETTINGS}


def settings_of_run(method: str, baselines: Iterable[str] = ()) -> dict[str, Any]:
    """Returns the `settings` of a run's method, and in `"baseline_settings"` those in which a baseline's differ."""
    own = settings(method)
    differing = {
        name: {setting: value for setting, value in settings(name).items() if value != own[setting]}
        for name in baselines
    }
    differing = {name: values for name, values in differing.items() if values}
    return own | ({"baseline_settings": differing} if differing else {})


def _own(define: Any, name: str, *args: Any, **kwargs: Any) -> None:
    define(name, *args, **kwargs)
    _OWN.append(name)
    # absl gives the default a line of its own; behind the help text it takes none.
    flag = flags.FLAGS[name]
    if flag.default not in (None, "", []):
        flag.help += f" [{flag.default_as_str[1:-1]}]"
    flag.default_as_str = None
