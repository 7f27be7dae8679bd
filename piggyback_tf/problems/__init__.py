"""Problems: what is to be found in an image, and all that depends on it; one file each."""

from piggyback_tf.problems import classification as _classification  # noqa: F401
from piggyback_tf.problems import segmentation as _segmentation
from piggyback_tf.problems.base import PROBLEMS, Problem, problem_of
from piggyback_tf.problems.heads import HEAD_NAME, HEADS, HeadSpec, HeadStart, add_head

__all__ = ["HEADS", "HEAD_NAME", "PROBLEMS", "HeadSpec", "HeadStart", "Problem", "add_head", "problem_of"]
