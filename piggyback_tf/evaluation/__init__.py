"""What measurements say: errors with their intervals, zeros per layer, reports and tables. Nothing here is measured.

Networks are run on images elsewhere: by `sequences/measure.py` in a run, by `commands/evaluate.py` for a pack. Here
figures are computed from what they answer. Nothing here imports TensorFlow.
"""

from piggyback_tf.evaluation import answer_kinds as _answer_kinds  # noqa: F401  (they register themselves)
from piggyback_tf.evaluation.metrics import evaluate, top_k_error
from piggyback_tf.evaluation.report import summary, write_report
from piggyback_tf.evaluation.results import ResultsError
from piggyback_tf.evaluation.sparsity import format_zeros, zeros_table
from piggyback_tf.evaluation.text import format_bytes, format_error, format_table
from piggyback_tf.file_names import METRICS_FILE, RESULT_FILE
from piggyback_tf.top_k import top_k_hits, wilson_interval

__all__ = [
    "METRICS_FILE",
    "RESULT_FILE",
    "ResultsError",
    "evaluate",
    "format_bytes",
    "format_error",
    "format_table",
    "format_zeros",
    "summary",
    "top_k_error",
    "top_k_hits",
    "wilson_interval",
    "write_report",
    "zeros_table",
]
