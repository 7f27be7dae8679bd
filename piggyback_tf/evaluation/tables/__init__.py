"""Tables of finished runs, in the layout of the Piggyback paper's and as a survey of methods, without TensorFlow."""

from collections.abc import Callable, Mapping, Sequence

from piggyback_tf.evaluation.tables import paper
from piggyback_tf.evaluation.tables.cells import Number, Table
from piggyback_tf.evaluation.tables.decathlon import visual_decathlon
from piggyback_tf.evaluation.tables.formats import FORMATS, to_csv, to_latex, to_markdown
from piggyback_tf.evaluation.tables.runs import Record, TableError, read_benchmark, read_runs
from piggyback_tf.evaluation.tables.survey import survey
from piggyback_tf.evaluation.tables.variants import check_tests, drop_repeated_baselines

LAYOUTS: Mapping[str, Callable[[Sequence[Record]], Table]] = {
    "paper2": paper.fine_grained,
    "paper3": paper.large_scale,
    "paper4": paper.networks,
    "paper5": paper.initialisations,
    "paper6": paper.zeros,
    "paper7": paper.batch_norm,
    "paper8": visual_decathlon,
    "survey": survey,
}


def make_table(layout: str, records: Sequence[Record]) -> Table:
    """Returns the table of some runs.

    Args:
        layout: One of `LAYOUTS`.
        records: The runs, as `read_runs` and `read_benchmark` return them.

    Raises:
        TableError: If runs do not fit together.
        PackError: If a pack that has to be read is damaged.
    """
    check_tests(records)
    return LAYOUTS[layout](drop_repeated_baselines(records))


__all__ = [
    "FORMATS",
    "LAYOUTS",
    "Number",
    "Record",
    "Table",
    "TableError",
    "make_table",
    "read_benchmark",
    "read_runs",
    "to_csv",
    "to_latex",
    "to_markdown",
]
