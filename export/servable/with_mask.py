"""The second servable: a task whose mask and head come with the request, and the list of the tasks of the first one.

A server merges requests along the first dimension of all inputs, which a mask does not have, so that this one is
served without batching.
"""

import tensorflow as tf

from ..shared.graph import good_images
from .network import ServedNetwork, unpack_kernels
from .options import ExportOptions
from .problem_signatures import ENCODED, Outputs, file_signature
from .requests import any_shape, check_image_shape
from .served_tasks import class_labels, family_variable, table_variable
from .signatures import head_probabilities
from .task_tables import TaskTables


class WithMask(tf.Module):
    """The base, and the names of tasks.

    `with_mask` takes images, `mask` (uint8: the bytes of `WeightLayout.pack_mask` one behind another, two planes if the
    mask is ternary), `head` (float32 `[F + 1, C]`: the kernel and below it the bias) and `norm` (float32: batch norm of
    the task as `WeightLayout.norm` flattens it, or none for that of the base).

    Args:
        base: The base.
        tables: The tasks.
        options: What images come as.
    """

    def __init__(self, base: ServedNetwork, tables: TaskTables, options: ExportOptions):
        super().__init__(name="with_mask")
        self._features, self._layout, self._feature_count = base.features, base.layout, base.spec.features
        self._size, self._dtype = base.spec.image_size, tf.as_dtype(options.image_dtype)
        self._width = int(tables.classes.max())
        for name, array in {"kernels": base.kernels, "rest": base.rest, "norm": tables.norms[0]}.items():
            setattr(self, name, tf.Variable(array, trainable=False, name=name))
        for name in ("names", "classes", "label_start", "labels"):
            setattr(self, name, table_variable(name, getattr(tables, name)))
        self._file_signatures = [file_signature(family) for family in tables.families]
        if not tables.only_classes:
            self.family = family_variable(tables)

    def signatures(self) -> dict[str, tf.types.experimental.GenericFunction]:
        """Returns the signatures by name."""
        inputs = [
            tf.TensorSpec([None, self._size, self._size, 3], self._dtype, "images"),
            tf.TensorSpec([None], tf.uint8, "mask"),
            tf.TensorSpec([self._feature_count + 1, None], tf.float32, "head"),
            tf.TensorSpec([None], tf.float32, "norm"),
        ]
        names = tf.TensorSpec([None], tf.string, "task")
        return {
            "with_mask": tf.function(self._with_mask, inputs, autograph=False).get_concrete_function(),
            "tasks": tf.function(self._tasks, [], autograph=False).get_concrete_function(),
            "find_tasks": tf.function(self._find_tasks, [names], autograph=False).get_concrete_function(),
        }

    def _with_mask(self, images: tf.Tensor, mask: tf.Tensor, head: tf.Tensor, norm: tf.Tensor) -> Outputs:
        bits, numbers = self._layout.mask_bytes, self._layout.norm.length
        images = check_image_shape(images, (self._size, self._size))
        mask = _check(mask, f"mask must be [{bits}], or [{2 * bits}] if ternary, not", [[bits], [2 * bits]])
        norm = _check(norm, f"norm must be [{numbers}], or [0] for that of the base, not", [[numbers], [0]])
        rows, columns = self._feature_count + 1, tf.shape(any_shape(head))[-1]
        head = _check(head, f"head must be [{rows}, C], not", [tf.stack([rows, columns])])
        planes = tf.reshape(mask, [-1, bits])
        kernels = unpack_kernels(self._layout.kernels, tf.identity(self.kernels), planes)
        norm = tf.cond(tf.size(norm) == 0, lambda: tf.identity(self.norm), lambda: norm)
        norm = tf.ensure_shape(norm, [numbers])
        good = good_images(images)
        # Not NaN, which no JSON can hold; the rows are set to 0 below.
        whole = tf.where(good[:, None, None, None], tf.cast(images, tf.float32), 0.0)
        features = self._features(list(kernels.values()), norm, tf.identity(self.rest), whole)
        found = head_probabilities(features, head[:-1], head[-1])
        good &= tf.reduce_all(tf.math.is_finite(found), axis=1)
        found = tf.where(good[:, None], found, 0.0)
        class_id = tf.where(good, tf.argmax(found, axis=1, output_type=tf.int32), -1)
        return {"probabilities": found, "class_id": class_id}

    def _tasks(self) -> Outputs:
        tasks = tf.range(tf.shape(self.classes)[0])
        columns = tf.tile(tf.range(self._width)[None], [tf.size(tasks), 1])
        found = {"names": tf.identity(self.names), "classes": class_labels(self, tasks, columns)}
        if set(self._file_signatures) != {ENCODED}:
            found["signature"] = tf.gather(tf.constant(self._file_signatures), tf.identity(self.family))
        return found

    def _find_tasks(self, task: tf.Tensor) -> Outputs:
        """Returns what `tasks` does of some tasks, or of all if none is named, and how many classes each has.

        Where not all tasks are of classes, both say which signature answers files for each.

        TensorFlow Serving's REST API cannot call a signature that has no inputs.
        """
        wanted = tf.reshape(any_shape(task), [-1])
        found = tf.reduce_any(tf.identity(self.names)[:, None] == wanted[None], axis=1) | (tf.size(wanted) == 0)
        listed = {**self._tasks(), "count": tf.identity(self.classes)}
        return {name: tf.boolean_mask(rows, found) for name, rows in listed.items()}


def _check(tensor: tf.Tensor, message: str, shapes: list[list[int] | tf.Tensor]) -> tf.Tensor:
    """Returns a tensor; the call fails unless it has one of the shapes, all of which are of the tensor's rank."""
    shape = tf.shape(any_shape(tensor))
    good = tf.constant(False)
    for expected in shapes:
        good |= tf.cond(
            tf.size(shape) == len(tensor.shape), lambda one=expected: tf.reduce_all(shape == one), lambda: False
        )
    with tf.control_dependencies([tf.debugging.Assert(good, [message, shape], 10)]):
        return tf.identity(tensor)
