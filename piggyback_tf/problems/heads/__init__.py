"""Heads: what stands on top of a network for one task, made of a spec that packs keep."""

from piggyback_tf.problems.heads import dense as _dense  # noqa: F401  (they register themselves)
from piggyback_tf.problems.heads import fpn as _fpn
from piggyback_tf.problems.heads.registry import HEAD_NAME, HEADS, add_head
from piggyback_tf.problems.heads.spec import HeadSpec
from piggyback_tf.problems.heads.start import HeadStart

__all__ = ["HEADS", "HEAD_NAME", "HeadSpec", "HeadStart", "add_head"]
