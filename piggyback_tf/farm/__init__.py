"""Many tasks: a training for each row of a table, side by side, each in a process of its own."""

from piggyback_tf.farm.pool import learn_rows
from piggyback_tf.farm.rows import FarmError, TaskRow, read_rows
from piggyback_tf.farm.state import RowState, read_state

__all__ = ["FarmError", "TaskRow", "RowState", "learn_rows", "read_rows", "read_state"]
