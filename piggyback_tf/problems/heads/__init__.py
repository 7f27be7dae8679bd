"""Heads: what stands on top of a network for one task, made of a spec that packs keep."""

from piggyback_tf.head_spec import HeadSpec
from piggyback_tf.problems.heads import dense as _dense  # noqa: F401  (it registers itself)
from piggyback_tf.problems.heads import fcn as _fcn  # noqa: F401
from piggyback_tf.problems.heads import fcos as _fcos  # noqa: F401
from piggyback_tf.problems.heads import fpn as _fpn  # noqa: F401
from piggyback_tf.problems.heads.dense import head_logits
from piggyback_tf.problems.heads.forward import HeadNetwork
from piggyback_tf.problems.heads.registry import (
    HEAD_NAME,
    HEADS,
    Head,
    add_head,
    features_of,
    is_head,
    network_for,
    read_spec,
)
from piggyback_tf.problems.heads.start import HeadStart

__all__ = [
    "HEADS",
    "HEAD_NAME",
    "Head",
    "HeadNetwork",
    "HeadSpec",
    "HeadStart",
    "add_head",
    "features_of",
    "head_logits",
    "is_head",
    "network_for",
    "read_spec",
]
