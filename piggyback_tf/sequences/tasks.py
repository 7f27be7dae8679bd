"""The tasks of a sequence, as a command line gives them."""

from collections.abc import Sequence

from piggyback_tf.packs import check_task_name


def parse_tasks(entries: Sequence[str]) -> dict[str, str]:
    """Returns the data of each task by the task's name, in the order of learning.

    Args:
        entries: `"NAME=DATA"`, with data as `load_data` takes them, such as `"birds=folder:/data/birds"`.

    Raises:
        ValueError: If an entry has another form, a name is none, or occurs twice.
    """
    tasks: dict[str, str] = {}
    for entry in entries:
        name, equals, data = (part.strip() for part in entry.partition("="))
        if not (name and equals and data):
            raise ValueError(f"A task is NAME=DATA, as in birds=folder:/data/birds. Received: {entry!r}.")
        if check_task_name(name) in tasks:
            raise ValueError(f"Task {name!r} is there twice. Give every task a name of its own.")
        tasks[name] = data
    return tasks
