"""Works on the rows of a farm on the machines of a Ray cluster, which decides where; `pool.py` says how."""

import collections
import contextlib
import dataclasses
import os
import platform
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from piggyback_tf.extras import need
from piggyback_tf.farm.pool import Farm, Running
from piggyback_tf.farm.rows import FarmError, TaskRow
from piggyback_tf.farm.state import FAILED, REFUSED, RowState, folder_of_row
from piggyback_tf.file_names import FARM_MARK
from piggyback_tf.foreign_text import counted, reason, some
from piggyback_tf.version import __version__

START = "Start it with `ray start --head` here, and with `ray start --address=HOST:6379` on each other machine."


@dataclasses.dataclass(frozen=True)
class Share:
    """What a training gets of a machine.

    Attributes:
        cpus: How many cores.
        gpus: How many GPUs; a part of one is shared with other trainings. None for one where the cluster has any.
    """

    cpus: int = 1
    gpus: float | None = None


@dataclasses.dataclass(frozen=True)
class Machine:
    """A node of a Ray cluster.

    Attributes:
        node: Ray's name of it.
        address: Its address.
        cpus: How many cores it offers.
        gpus: How many GPUs it offers.
    """

    node: str
    address: str
    cpus: float
    gpus: float

    def room(self, share: Share) -> int:
        """Returns how many trainings fit onto it at once; the GPUs of `share` are known."""
        rooms = [self.cpus // share.cpus]
        if share.gpus:
            rooms.append(self.gpus // share.gpus)
        return int(min(rooms))


def learn_on_ray(
    rows: Sequence[TaskRow],
    farm: Farm,
    jobs: int | None,
    share: Share,
    told: Callable[[TaskRow, RowState], None],
    say: Callable[[str], None],
) -> dict[str, RowState]:
    """Learns rows on the machines of the Ray cluster that runs here, or that `RAY_ADDRESS` names.

    A training whose machine or worker dies goes on elsewhere, after its last completed epoch. If this process ends,
    Ray ends its workers, and Linux the trainings with them. The cluster stays as it was.

    Args:
        rows: The rows, begun in this order.
        farm: What they have in common. All machines have to see its folder.
        jobs: How many trainings run at once at most; None for as many as there is room for.
        share: What each of them gets.
        told: Is called in this thread as soon as a row is done or given up.
        say: Is called once, with a sentence on the cluster.

    Returns:
        How each went, by the name of its task.

    Raises:
        ModuleNotFoundError: If Ray is not installed.
        FarmError: If there is no cluster, none of its machines has room for a training, or one cannot take part.
    """
    need("ray")
    with contextlib.ExitStack() as stack:
        ray = stack.enter_context(_connected())
        machines = machines_of(ray.nodes())
        share = fitting_share(machines, share)
        mark = stack.enter_context(_marked(farm.folder))
        _check_machines(ray, [each for each in machines if each.room(share)], mark)
        say(_cluster_sentence(machines, share))
        # What was tried by earlier commands is no attempt of this one.
        before = {row.task: folder_of_row(farm.folder, row.task).read().attempts for row in rows}
        # Ray retries where a worker or a machine dies, nothing else. `Farm.learn` counts attempts itself, since Ray
        # does not count those that end for want of memory.
        remote = ray.remote(
            num_cpus=share.cpus, num_gpus=share.gpus, max_retries=farm.attempts, retry_exceptions=False
        )(_learn)
        farm = dataclasses.replace(farm, threads=share.cpus, directory=Path.cwd())
        waiting, begun, states = collections.deque(rows), {}, {}
        while waiting or begun:
            while waiting and (jobs is None or len(begun) < jobs):
                row = waiting.popleft()
                begun[remote.options(name=row.task).remote(farm, row, before[row.task], mark)] = row
            ended, _ = ray.wait(list(begun))
            for reference in ended:
                row = begun.pop(reference)
                states[row.task] = _state(ray, reference, row, farm)
                told(row, states[row.task])
    return states


def machines_of(nodes: Sequence[Mapping[str, Any]]) -> list[Machine]:
    """Returns the machines that are up among those that Ray lists.

    Args:
        nodes: What `ray.nodes()` returns.
    """
    return [
        Machine(
            node["NodeID"],
            node["NodeManagerAddress"],
            node["Resources"].get("CPU", 0.0),
            node["Resources"].get("GPU", 0.0),
        )
        for node in nodes
        if node["Alive"]
    ]


def fitting_share(machines: Sequence[Machine], share: Share) -> Share:
    """Returns what a training gets, with its GPUs known.

    Raises:
        FarmError: If no machine has that much; Ray would wait for one.
    """
    if share.gpus is None:
        share = dataclasses.replace(share, gpus=float(any(machine.gpus for machine in machines)))
    if not any(machine.room(share) for machine in machines):
        there = some([_size(machine.cpus, machine.gpus) for machine in machines])
        raise FarmError(
            f"No machine of the Ray cluster has room for a training with {_size(share.cpus, share.gpus or 0)}. They "
            f"have: {there}. Give --cpus and --gpus of which one machine has as many."
        )
    return share


def _learn(farm: Farm, row: TaskRow, before: int, mark: Path) -> RowState:
    """Learns a row where Ray starts it; `before` is how often it was tried before this command."""
    if wrong := _wrong_here(mark, Path(farm.directory or ".")):
        return RowState(REFUSED, before, 0.0, wrong, (*farm.flags, *row.flags), platform.node())
    return farm.learn(row, Running(), before)


@contextlib.contextmanager
def _marked(folder: Path) -> Iterator[Path]:
    """Puts a file into the folder by which machines know it; returns its path.

    Its name is a new one: of an old one, a machine may still know for a minute that it was not there.
    """
    for old in folder.glob(f"{FARM_MARK}*"):
        old.unlink(missing_ok=True)
    mark = folder / f"{FARM_MARK}{secrets.token_hex(8)}"
    mark.touch()
    try:
        yield mark
    finally:
        mark.unlink(missing_ok=True)


def _wrong_here(mark: Path, directory: Path) -> str:
    """Returns why this machine cannot take part, in a sentence; an empty one if it can."""
    if not mark.exists():
        return (
            f"{platform.node()} does not see the folder {str(mark.parent)!r} of this farm. With --engine=ray all "
            "machines need --output_dir on a file system that they share, since a training goes on where another one "
            "began it."
        )
    if not directory.is_dir():
        return f"{platform.node()} has no folder {str(directory)!r}, in which the farm was started."
    return ""


def _look(mark: Path, directory: Path) -> tuple[str, str]:
    return __version__, _wrong_here(mark, directory)


def _check_machines(ray: Any, machines: Sequence[Machine], mark: Path) -> None:
    """Raises a `FarmError` if a machine cannot take part: it says now what would else be said of each row."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    looks = {
        machine: ray.remote(num_cpus=0, max_retries=0)(_look)
        .options(name="look", scheduling_strategy=NodeAffinitySchedulingStrategy(machine.node, soft=False))
        .remote(mark, Path.cwd())
        for machine in machines
    }
    for machine, look in looks.items():
        try:
            version, wrong = ray.get(look)
        except ray.exceptions.RayError as error:
            raise FarmError(
                f"Machine {machine.address} of the Ray cluster cannot run piggyback_tf; install it there, as here: "
                f"{_said(error)}."
            ) from None
        if wrong:
            raise FarmError(f"Machine {machine.address} of the Ray cluster cannot take part: {wrong}")
        if version != __version__:
            raise FarmError(
                f"Machine {machine.address} of the Ray cluster has piggyback_tf {version}, and here is {__version__}. "
                "Install the same on all."
            )


def _state(ray: Any, reference: Any, row: TaskRow, farm: Farm) -> RowState:
    """Returns how a row went whose task in Ray has ended."""
    try:
        return ray.get(reference)
    except ray.exceptions.RayError as error:
        files = folder_of_row(farm.folder, row.task)
        found = files.read()
        given_up = f"Ray gave it up: {_said(error)}. See {files.log}."
        state = dataclasses.replace(found, status=FAILED, error=given_up, flags=(*farm.flags, *row.flags))
        files.folder.mkdir(parents=True, exist_ok=True)
        files.write(state)
        return state


@contextlib.contextmanager
def _connected() -> Iterator[Any]:
    """Connects with the cluster, and takes leave of it at the end, however that comes."""
    import ray

    address = os.environ.get("RAY_ADDRESS", "")
    if address.startswith("ray://"):
        raise FarmError(
            f"RAY_ADDRESS={address}: the farm runs on a machine of the cluster, since it reads what trainings write. "
            "Start it there, with RAY_ADDRESS=HOST:6379, or by `ray job submit`."
        )
    try:
        # Without an address Ray would start a cluster of its own, with what it leaves behind.
        ray.init(address="auto", log_to_driver=False, logging_level="ERROR")
    except (ConnectionError, RuntimeError, ValueError) as error:
        asked = f"No Ray cluster answers at RAY_ADDRESS={address}" if address else "No Ray cluster runs here"
        raise FarmError(f"{asked}: {reason(error)}. {START}") from None
    try:
        yield ray
    finally:
        ray.shutdown()


def _cluster_sentence(machines: Sequence[Machine], share: Share) -> str:
    rooms = [machine.room(share) for machine in machines]
    return (
        f"Ray: {counted(len(machines), 'machine')}, with room for {counted(sum(rooms), 'training')} at once, each with "
        f"{_size(share.cpus, share.gpus or 0)}."
    )


def _size(cpus: float, gpus: float) -> str:
    cores = counted(int(cpus), "core")
    return f"{cores} and {gpus:g} GPU{'s' if gpus > 1 else ''}" if gpus else f"{cores} and no GPU"


def _said(error: BaseException) -> str:
    """Returns what an error of Ray says, or what happened in a task; Ray puts a stack trace before that."""
    cause = getattr(error, "cause", None) or error
    return f"{type(cause).__name__}, {reason(cause)}"
