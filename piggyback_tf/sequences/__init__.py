"""Sequences: tasks learned one after another by any method. Every run goes through here, that of one task, too.

Who measures: `measure.py` here runs networks on images and counts; `evaluation/` only computes figures from that.
Names are looked up when they are first used: to read the list of tasks needs no TensorFlow.
"""

from piggyback_tf.file_names import folders_of
from piggyback_tf.lazy import lazy_names
from piggyback_tf.sequences.tasks import parse_tasks

_HOMES = {"SequenceSettings": "runner", "run_sequence": "runner", "with_start": "init_from"}

__all__ = ["SequenceSettings", "folders_of", "parse_tasks", "run_sequence", "with_start"]

__getattr__, __dir__ = lazy_names(__name__, _HOMES)
