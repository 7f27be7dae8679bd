"""Sequences: several tasks learned one after another by any method, and what becomes of all of them."""

from piggyback_tf.sequences.runner import SequenceSettings, run_sequence
from piggyback_tf.sequences.start import provenance, with_start
from piggyback_tf.sequences.tasks import parse_tasks

__all__ = ["SequenceSettings", "parse_tasks", "provenance", "run_sequence", "with_start"]
