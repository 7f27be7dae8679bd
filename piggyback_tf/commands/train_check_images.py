"""Checks all images of a run before the first step of `train`: all that is wrong with them is told at once."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from piggyback_tf.commands.progress import ProgressBar
from piggyback_tf.data import DataError, DataProblems, Part, TaskData, check_images
from piggyback_tf.data.decoding import check_input
from piggyback_tf.data.sources import Subset
from piggyback_tf.data.unusable_files import are_all_listed, describe_problems
from piggyback_tf.file_names import PROBLEMS_FILE
from piggyback_tf.files import write_atomically
from piggyback_tf.settings import InputConfig
from piggyback_tf.settings.inputs import EXACT
from piggyback_tf.training.team import Team


def look_first(
    folder: Path,
    tasks: Mapping[str, TaskData],
    inputs: InputConfig,
    *,
    learned: Iterable[str] = (),
    joined: bool = False,
    team: Team | None = None,
) -> None:
    """Looks at all images of some tasks, through the cache, with a progress bar.

    Args:
        folder: The run's folder, which gets a list of all problems if they are too many for a message.
        tasks: The data, by task.
        inputs: Augmentation, for the backbone's size, and caching.
        learned: The tasks whose training is done; of these the test images may still be measured.
        joined: Whether the tasks are trained as one.
        team: The machines that train together: each looks at its share.

    Raises:
        DataError: If anything is wrong with the images.
    """
    team, parts = team or Team(), []
    for data in tasks.values():
        check_input(inputs.input, data.train)
    for task, data in tasks.items():
        training = "uncached" if joined else "later" if task in learned else "next"
        for split, source in data.splits.items():
            augment = inputs.augment_train if split == "train" else inputs.augment_eval
            if team.size > 1:
                source = Subset(source, range(team.index, len(source), team.size))
            use = "later" if split == "test" else "uncached" if split == "train" and inputs.input != EXACT else training
            parts.append(Part(source, augment, use))
    listed = [problem for data in tasks.values() for found in data.problems.values() for problem in found]
    name = ", ".join(dict.fromkeys(data.spec for data in tasks.values()))
    path = folder / PROBLEMS_FILE
    path.unlink(missing_ok=True)
    try:
        with ProgressBar("images looked at") as bar:
            check_images(parts, name, check=inputs.check, listed=listed, progress=bar, **inputs.cache_options())
    except DataProblems as error:
        if are_all_listed(error.problems) or not team.is_chief:
            raise
        write_atomically(path, describe_problems(error.problems, name, listed=None) + "\n")
        raise DataError(f"{error}\nAll of them are listed in {path}.") from None
