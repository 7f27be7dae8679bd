"""Errors with their intervals, zeros per layer, and the report of a training. Nothing here imports TensorFlow."""

from piggyback_tf.evaluation.metrics import evaluate, top_k_error, top_k_hits, wilson_interval
from piggyback_tf.evaluation.report import format_bytes, format_error, idle_masks, results_table, write_report
from piggyback_tf.evaluation.sequence_report import sequence_table, write_sequence_report
from piggyback_tf.evaluation.sparsity import format_table, format_zeros, zeros_table

__all__ = [
    "evaluate",
    "format_bytes",
    "format_error",
    "format_table",
    "format_zeros",
    "idle_masks",
    "results_table",
    "sequence_table",
    "top_k_error",
    "top_k_hits",
    "wilson_interval",
    "write_report",
    "write_sequence_report",
    "zeros_table",
]
