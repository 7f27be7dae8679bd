"""What stands on top of a backbone for one task."""

from piggyback_tf.heads.classification import HEAD_NAME, add_classification_head, head_logits, is_head

__all__ = ["HEAD_NAME", "add_classification_head", "head_logits", "is_head"]
