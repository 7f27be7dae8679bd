"""Problems: what is to be found in an image, and all that depends on it; one file each."""

from piggyback_tf.problems import classification as _classification  # noqa: F401  (it registers itself)
from piggyback_tf.problems import detection as _detection  # noqa: F401
from piggyback_tf.problems import multilabel as _multilabel  # noqa: F401
from piggyback_tf.problems import segmentation as _segmentation  # noqa: F401
from piggyback_tf.problems.base import PNG, PROBLEMS, AnswerSpec, Problem, WayBack, image_shape_of, problem_of
from piggyback_tf.problems.heads import (
    HEAD_NAME,
    HEADS,
    Head,
    HeadNetwork,
    HeadSpec,
    HeadStart,
    add_head,
    features_of,
    head_logits,
    is_head,
    network_for,
    read_spec,
)

__all__ = [
    "HEADS",
    "HEAD_NAME",
    "PNG",
    "PROBLEMS",
    "AnswerSpec",
    "Head",
    "HeadNetwork",
    "HeadSpec",
    "HeadStart",
    "Problem",
    "WayBack",
    "add_head",
    "features_of",
    "head_logits",
    "image_shape_of",
    "is_head",
    "network_for",
    "problem_of",
    "read_spec",
]
