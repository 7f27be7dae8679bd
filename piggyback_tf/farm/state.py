"""How far the task of a row has come, in a file of its own: several machines may work on rows of one table."""

import dataclasses
import json
from pathlib import Path

from piggyback_tf.farm.rows import FarmError
from piggyback_tf.file_names import FARM_LOG, FARM_RUN, FARM_STATE, FARM_TASKS, METRICS_FILE
from piggyback_tf.files import write_atomically

# What may be said of a row. Refused: something in it is wrong, and it was not tried again. Failed: its process died
# too often, or it has a fault.
NEW, DONE, REFUSED, FAILED = "new", "done", "refused", "failed"


@dataclasses.dataclass(frozen=True)
class RowState:
    """How far a row has come.

    Attributes:
        status: `"new"`, `"done"`, `"refused"` or `"failed"`.
        attempts: How many processes have worked on it.
        seconds: How long all of them took that ended while somebody looked.
        error: Why it is not done, in a sentence; empty else.
        flags: With which flags of `train` that was.
        machine: Which machine worked on it last; empty if it was none.
    """

    status: str = NEW
    attempts: int = 0
    seconds: float = 0.0
    error: str = ""
    flags: tuple[str, ...] = ()
    machine: str = ""


@dataclasses.dataclass(frozen=True)
class RowFolder:
    """The files of a row.

    Attributes:
        folder: Where they are.
    """

    folder: Path

    @property
    def run(self) -> Path:
        """The output folder of its training."""
        return self.folder / FARM_RUN

    @property
    def log(self) -> Path:
        """What its trainings printed."""
        return self.folder / FARM_LOG

    @property
    def is_learned(self) -> bool:
        """Whether its training is complete; whoever wants it again deletes the run."""
        return (self.run / METRICS_FILE).exists()

    def read(self) -> RowState:
        """Returns how far it has come.

        Raises:
            FarmError: If the file is damaged.
        """
        return read_state(self.folder / FARM_STATE)

    def write(self, state: RowState) -> None:
        """Notes how far it has come."""
        write_atomically(self.folder / FARM_STATE, json.dumps(dataclasses.asdict(state), indent=1) + "\n")


def folder_of_row(folder: Path, task: str) -> RowFolder:
    """Returns the files of a row in the folder of a farm."""
    return RowFolder(folder / FARM_TASKS / task)


def read_state(path: Path) -> RowState:
    """Returns the state that a file holds, that of a new row if there is none.

    Raises:
        FarmError: If the file is damaged.
    """
    try:
        found = json.loads(path.read_text())
        return RowState(**found | {"flags": tuple(found["flags"])})
    except FileNotFoundError:
        return RowState()
    except (ValueError, TypeError, KeyError) as error:
        raise FarmError(f"{str(path)!r} is damaged: {error}. Delete it; what was trained stays.") from error
