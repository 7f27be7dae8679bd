"""A page for a browser on learned tasks: one HTML file with all that it needs; nothing here imports TensorFlow."""

from piggyback_tf.evaluation.page import picture_kinds as _picture_kinds  # noqa: F401  (they register themselves)
from piggyback_tf.evaluation.page.document import is_page, write_page
from piggyback_tf.evaluation.page.subjects import PageError, Subjects, read_subjects

__all__ = ["PageError", "Subjects", "is_page", "read_subjects", "write_page"]
