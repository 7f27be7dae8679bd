"""What a command line of `train` asks for; all of it is checked before Keras is loaded."""

import dataclasses
from collections.abc import Collection, Mapping
from pathlib import Path

from absl import flags

from piggyback_tf.backbones.own import is_model_file
from piggyback_tf.backbones.registry import check_request
from piggyback_tf.commands.common import prepare_for
from piggyback_tf.data import TARGETS, DataError, TaskData, load_data, output_size, parse_augment
from piggyback_tf.data.augment import check_draws_nothing
from piggyback_tf.data.specs import possible_targets
from piggyback_tf.file_names import pack_name
from piggyback_tf.files import is_empty
from piggyback_tf.flags import check_unused, read_config
from piggyback_tf.packs import check_task_name
from piggyback_tf.sequences import folders_of, parse_tasks
from piggyback_tf.settings import CONFIGS, InputConfig, TrainConfig
from piggyback_tf.settings.methods import check_learns
from piggyback_tf.targets import check_own_settings
from piggyback_tf.training import check_file_name, folders_of_methods
from piggyback_tf.training.sizes import check_image_size

FLAGS = flags.FLAGS
# Flags that name files and folders, of which an empty one would count as not given.
_FILES = ("backbone", "weights", "init_from", "cache_dir")


@dataclasses.dataclass(frozen=True)
class TrainRequest:
    """What is to be learned, and how.

    Attributes:
        specs: The data of each task by its name, which is empty if it is to be that of the data.
        methods: The methods, those to compare with before the main one.
        inputs: Augmentation and caching, for the backbone's size.
        image_size: Height and width of the images that the backbone is built for.
        in_turn: Whether it is a run of tasks in turn, by `--tasks`, and not of one by itself.
    """

    specs: Mapping[str, str]
    methods: list[str]
    inputs: InputConfig
    image_size: int
    in_turn: bool

    def folders(self, folder: Path, tasks: Mapping[str, TaskData]) -> dict[str, dict[str, Path]]:
        """Returns the folder of each task by method."""
        methods = folders_of_methods(folder, self.methods)
        return {name: folders_of(own, tasks, in_turn=self.in_turn) for name, own in methods.items()}


def read_request() -> TrainRequest:
    """Returns what the flags ask for, when all has been checked that can be checked of them by themselves.

    Raises:
        flags.IllegalFlagValueError: If a flag is wrong, or two do not go together.
        ValueError: If a name is wrong.
    """
    if bool(FLAGS.tasks) == bool(FLAGS.data):
        raise flags.IllegalFlagValueError(
            "Give either --data, for one task, or --tasks, for several."
            if FLAGS.data
            else "One of --data, for one task, and --tasks, for several, is needed."
        )
    if FLAGS.tasks and (FLAGS.task or FLAGS.baseline):
        raise flags.IllegalFlagValueError("--task and --baseline go with --data; --tasks names its tasks itself.")
    if FLAGS.data and (FLAGS["task_agnostic"].present or FLAGS["forward_transfer"].present):
        raise flags.IllegalFlagValueError("--task_agnostic and --forward_transfer go with --tasks.")
    if FLAGS.method in FLAGS.baseline:
        raise flags.IllegalFlagValueError(f"--baseline={FLAGS.method} is the --method itself; leave it out.")
    names = [*dict.fromkeys(FLAGS.baseline), FLAGS.method]
    check_unused(names)
    if FLAGS.data and (at_once := [name for name in names if CONFIGS[name].at_once]):
        raise flags.IllegalFlagValueError(f"Method {at_once[0]} learns several tasks at once; give them by --tasks.")
    if FLAGS.forward_transfer and CONFIGS[FLAGS.method].at_once:
        raise flags.IllegalFlagValueError(
            f"Method {FLAGS.method} learns all tasks at once, none after another: there is no forward transfer."
        )
    for name in _FILES:
        if FLAGS[name].present and FLAGS[name].value == "":
            raise flags.IllegalFlagValueError(f"{is_empty(f'--{name}=')} Give a value, or leave the flag out.")
    for name in names:
        read_config(CONFIGS[name])
        read_config(TrainConfig, CONFIGS[name].recipe)
    _, _, image_size = check_request(FLAGS.backbone, FLAGS.weights, FLAGS.image_size)
    if is_model_file(FLAGS.backbone) and FLAGS.mixed_precision != "none":
        raise flags.IllegalFlagValueError(
            f"--mixed_precision={FLAGS.mixed_precision}: the layers of {FLAGS.backbone!r} compute as its file says; "
            "leave it out."
        )
    inputs = read_config(InputConfig).for_size(image_size)
    check_draws_nothing(parse_augment(inputs.augment_eval), inputs.augment_eval)
    specs = {check_task_name(FLAGS.task) if FLAGS.task else "": FLAGS.data}
    specs = parse_tasks(FLAGS.tasks) if FLAGS.tasks else specs
    # At once: reading data takes a second.
    possible = {target for spec in specs.values() for target in possible_targets(spec)}
    _check_own_settings(possible)
    if not any(TARGETS[target].own_size for target in possible):
        _check_square(inputs, image_size)
    return TrainRequest(specs, names, inputs, image_size, bool(FLAGS.tasks))


def read_tasks(folder: Path, request: TrainRequest) -> dict[str, TaskData]:
    """Returns the data of each task by its name, split as the flags say; the images are not looked at.

    Args:
        folder: The folder of the run, in which files of the tasks' names must be possible.
        request: What is asked for.

    Raises:
        DataError: If there are no such data.
        TrainingError: If a name cannot be that of a file.
    """
    for name in filter(None, request.specs):
        _check_name(folder, name)
    tasks: dict[str, TaskData] = {}
    for name, spec in request.specs.items():
        prepare_for(spec, FLAGS.data_dir)
        data = load_data(
            spec,
            data_dir=FLAGS.data_dir,
            val_fraction=FLAGS.val_fraction,
            seed=FLAGS.seed,
            skip_broken_images=FLAGS.skip_broken_images,
            cache_dir=FLAGS.cache_dir or None,
            raise_problems=False,
        )
        _check_target(data, request)
        tasks[name or _check_name(folder, data.name)] = data
    _check_own_settings({data.target for data in tasks.values()})
    return tasks


def _check_own_settings(targets: Collection[str]) -> None:
    """Raises an error if a setting is given that is for tasks of other targets alone, which would do nothing."""
    names = [name for target in TARGETS.values() for name in target.settings]
    given = {name: str(FLAGS[name].value) for name in names if FLAGS[name].value != FLAGS[name].default}
    try:
        check_own_settings(given, targets, "--{}={}")
    except ValueError as error:
        raise flags.IllegalFlagValueError(str(error)) from None


def _check_target(data: TaskData, request: TrainRequest) -> None:
    """Raises an error if a method cannot learn what the data have, or the sizes of the images do not go together."""
    for name in request.methods:
        check_learns(name, CONFIGS[name], data.target, repr(data.spec))
    if not TARGETS[data.target].own_size:
        _check_square(request.inputs, request.image_size)
        return
    train, evaluation = (output_size(text) for text in (request.inputs.augment_train, request.inputs.augment_eval))
    if train != evaluation:
        raise DataError(
            f"Training images get the size {_size(train)} by --augment_train and those of evaluation "
            f"{_size(evaluation)} by --augment_eval; a task has one size."
        )


def _check_square(inputs: InputConfig, image_size: int) -> None:
    """Raises an error if the images do not have the size that the backbone is built for."""
    for augment in (inputs.augment_train, inputs.augment_eval):
        check_image_size(augment, output_size(augment), image_size)


def _size(size: tuple[int, int] | None) -> str:
    return f"{size[0]}x{size[1]}" if size else "of each image"


def _check_name(folder: Path, task: str) -> str:
    """Returns the name of a task if its files can be written into the run's folder."""
    flag = "--tasks=NAME=DATA" if FLAGS.tasks else "--task=NAME"
    check_file_name(folder, pack_name(check_task_name(task)), f"Give the task another name: {flag}.")
    return task
