"""What stands on a backbone's features for one task: a file for each kind of task, today `classification.py`.

A new kind of task, such as segmentation or boxes, begins here with a file of its own. What else knows today that tasks
are classes of images: labels in `data/sources.py`, loss and error in `training/fit.py`, the head's arrays in
`packs/arrays.py`, errors in `evaluation/metrics.py`.
"""

from piggyback_tf.heads.classification import HEAD_NAME, add_classification_head, head_logits, is_head

__all__ = ["HEAD_NAME", "add_classification_head", "head_logits", "is_head"]
