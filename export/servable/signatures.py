"""The signatures of an export: one forward pass over any mix of tasks, and the ways to call it."""

import uuid

import numpy as np
import tensorflow as tf

from piggyback_tf.problems import head_logits

from ..shared.graph import good_images
from .decode import decode_batch
from .network import ServedNetwork, split_section, unpack_kernels, unpack_vector
from .options import ExportOptions
from .task_tables import ARRAYS, TaskTables
from .unpacked_kernels import UnpackedKernels

Outputs = dict[str, tf.Tensor]


class Servable(tf.Module):
    """All tasks on one base.

    Whatever an export knows of its tasks is in variables. Tasks and images that cannot be answered never raise within
    the graph, since a server merges the requests of several clients into one run: their rows are flagged.

    Args:
        base: The base.
        tables: The tasks.
        options: What images come as, and how many classes `encoded` returns.
        unpacked: Whether kernels are unpacked once.
    """

    def __init__(self, base: ServedNetwork, tables: TaskTables, options: ExportOptions, *, unpacked: bool):
        super().__init__(name="servable")
        self._features, self._section = base.features, base.layout.kernels
        self._size, self._dtype = base.spec.image_size, tf.as_dtype(options.image_dtype)
        self._count, self._width, self._top_k = len(tables.names), int(tables.classes.max()), options.top_k
        self._preparations, self._max_pixels = tables.preparations, options.max_image_pixels
        self.kernels = tf.Variable(base.kernels, trainable=False, name="kernels")
        self.rest = tf.Variable(base.rest, trainable=False, name="rest")
        # For the second servable, which reads it from the same file.
        self.norm = tf.Variable(tables.norms[0], trainable=False, name="norm")
        for name, array in tables.arrays().items():
            setattr(self, name, table_variable(name, array))
        self._ternary = bool((tables.sign_row >= 0).any())
        self.unpacked = self._unpack(tables) if unpacked else []
        # Traced once: every signature calls the same function of the graph.
        images = tf.TensorSpec([None, self._size, self._size, 3], self._dtype)
        self._classify_rows = tf.function(self._classify, [images, tf.TensorSpec([None], tf.int32)], autograph=False)

    def signatures(self) -> dict[str, tf.types.experimental.GenericFunction]:
        """Returns the signatures by name."""
        size = self._size
        images = tf.TensorSpec([None, size, size, 3], self._dtype, "images")
        names = tf.TensorSpec([None], tf.string, "task")
        inputs = {
            "serving_default": (self._serving_default, [images, tf.TensorSpec([None], tf.int32, "task")]),
            "by_name": (self._by_name, [images, names]),
            "encoded": (self._encoded, [tf.TensorSpec([None], tf.string, "image_bytes"), names]),
        }
        return {
            name: tf.function(function, specs, autograph=False).get_concrete_function()
            for name, (function, specs) in inputs.items()
        }

    def _serving_default(self, images: tf.Tensor, task: tf.Tensor) -> Outputs:
        images, task = self._checked(images, task)
        probabilities, class_id = self._classify_rows(images, task)
        return {"probabilities": probabilities, "class_id": class_id, "task_ok": self._known(task)}

    def _by_name(self, images: tf.Tensor, task: tf.Tensor) -> Outputs:
        images, task = self._checked(images, task)
        places = self._find(task)
        probabilities, class_id = self._classify_rows(images, places)
        return {"probabilities": probabilities, "class_id": class_id, "task_ok": self._known(places)}

    def _encoded(self, image_bytes: tf.Tensor, task: tf.Tensor) -> Outputs:
        image_bytes, task = _same_length(image_bytes, task)
        places = self._find(task)
        known = self._known(places)
        tasks = tf.maximum(places, 0)
        preparation = tf.gather(self.preparation, tasks)
        images, image_ok = decode_batch(image_bytes, preparation, self._preparations, self._size, self._max_pixels)
        probabilities, _ = self._classify_rows(tf.cast(images, self._dtype), tf.where(image_ok, places, -1))
        # Of equal probabilities the first class comes first; columns behind the last class have 0.
        wider = tf.pad(probabilities, [[0, 0], [0, max(0, self._top_k - self._width)]])
        scores, classes = tf.math.top_k(wider, self._top_k)
        labels = class_labels(self, tasks, classes)
        labels = tf.where((known & image_ok)[:, None], labels, "")
        return {"labels": labels, "scores": scores, "task_ok": known, "image_ok": image_ok}

    def _classify(self, images: tf.Tensor, task: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns probabilities `[B, C]` and class ids, int32 `[B]`; 0 and -1 where task or image are not good."""
        good = self._known(task) & good_images(images)
        rows = tf.where(good)[:, 0]
        tasks, group = tf.unique(tf.gather(task, rows))

        def answer_next(index: tf.Tensor, probabilities: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            """Sends the rows of one task through the network."""
            members = tf.boolean_mask(rows, group == index)
            found = self._answer(tasks[index], tf.cast(tf.gather(images, members), tf.float32))
            return index + 1, tf.tensor_scatter_nd_update(probabilities, members[:, None], found)

        start = tf.constant(0), tf.zeros([tf.shape(task)[0], self._width])
        shapes = (tf.TensorShape([]), tf.TensorShape([None, self._width]))
        _, probabilities = tf.while_loop(
            lambda index, _: index < tf.size(tasks), answer_next, start, shapes, parallel_iterations=1
        )
        return probabilities, tf.where(good, tf.argmax(probabilities, axis=1, output_type=tf.int32), -1)

    def _answer(self, task: tf.Tensor, images: tf.Tensor) -> tf.Tensor:
        """Returns the probabilities of one task, float32 `[B, C]`."""
        norm = tf.gather(self.norms, tf.gather(self.norm_row, task))
        features = self._features(list(self._masked_kernels(task).values()), norm, tf.identity(self.rest), images)
        classes = tf.gather(self.classes, task)
        count = features.shape[1] * classes
        length = tf.cast(count + classes, tf.int64)
        numbers = tf.slice(self.heads, tf.gather(self.head_start, task)[None], length[None])
        found = head_probabilities(features, tf.reshape(numbers[:count], [-1, classes]), numbers[count:])
        return tf.ensure_shape(tf.pad(found, [[0, 0], [0, self._width - classes]]), [None, self._width])

    def _masked_kernels(self, task: tf.Tensor) -> dict[str, tf.Tensor]:
        if self.unpacked:
            return split_section(self._section, tf.switch_case(task, [kernels.read for kernels in self.unpacked]))
        rows = tf.gather(self.keep_row, task)[None]
        if self._ternary:
            sign = tf.gather(self.sign_row, task)[None]
            rows = tf.concat([rows, tf.boolean_mask(sign, sign >= 0)], axis=0)
        return unpack_kernels(self._section, tf.identity(self.kernels), tf.gather(self.planes, rows))

    def _unpack(self, tables: TaskTables) -> list[UnpackedKernels]:
        # Traced once for all tasks.
        unpack = tf.function(
            lambda rows: unpack_vector(self._section, self.kernels.read_value(), tf.gather(self.planes, rows)),
            [tf.TensorSpec([None], tf.int32)],
            autograph=False,
        )
        # A server holds several versions of an export at a time, and a process several exports.
        name = f"kernels_{uuid.uuid4().hex}"
        rows = zip(tables.keep_row.tolist(), tables.sign_row.tolist(), strict=True)
        return [
            UnpackedKernels(f"{name}_{index}", self._section.length, unpack, [keep] if sign < 0 else [keep, sign])
            for index, (keep, sign) in enumerate(rows)
        ]

    def _known(self, task: tf.Tensor) -> tf.Tensor:
        return (task >= 0) & (task < self._count)

    def _find(self, task: tf.Tensor) -> tf.Tensor:
        """Returns the place of each name among the tasks, int32; -1 if there is none."""
        same = tf.cast(task[:, None] == tf.identity(self.names)[None], tf.int32)
        return tf.where(tf.reduce_max(same, axis=1) > 0, tf.argmax(same, axis=1, output_type=tf.int32), -1)

    def _checked(self, images: tf.Tensor, task: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Fails a call unless there are images of the right size and a task for each."""
        images = check_image_shape(images, self._size)
        with tf.control_dependencies([images]):
            return _same_length(images, task)


def table_variable(name: str, array: np.ndarray) -> tf.Variable:
    """Returns the variable for an array of `TaskTables`."""
    dtype = tf.string if ARRAYS[name] is object else tf.as_dtype(array.dtype)
    return tf.Variable(array, trainable=False, dtype=dtype, name=name)


def class_labels(tables: tf.Module, tasks: tf.Tensor, classes: tf.Tensor) -> tf.Tensor:
    """Returns the names of classes, string `[B, k]`; "" for those that a task does not have.

    Args:
        tables: A module with the variables `classes`, `label_start` and `labels`.
        tasks: Tasks, int32 `[B]`.
        classes: Classes of each, int32 `[B, k]`.
    """
    there = classes < tf.gather(tables.classes, tasks)[:, None]
    places = tf.gather(tables.label_start, tasks)[:, None] + tf.cast(classes, tf.int64)
    return tf.where(there, tf.gather(tables.labels, tf.where(there, places, 0)), "")


def head_probabilities(features: tf.Tensor, kernel: tf.Tensor, bias: tf.Tensor) -> tf.Tensor:
    """Returns the softmax over the logits of a head, `[B, C]`."""
    return tf.nn.softmax(head_logits(features, kernel, bias))


def check_image_shape(images: tf.Tensor, size: int) -> tf.Tensor:
    """Returns images; the call fails unless they are of shape `[B, size, size, 3]`."""
    shape = tf.shape(any_shape(images))
    good = (tf.size(shape) == 4) & tf.reduce_all(tf.concat([shape, [0] * 4], 0)[1:4] == [size, size, 3])
    with tf.control_dependencies(
        [tf.debugging.Assert(good, [f"images must be [B, {size}, {size}, 3], not", shape], 10)]
    ):
        return tf.identity(images)


def _same_length(images: tf.Tensor, task: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Fails a call unless both have the same first dimension, and the tasks no other."""
    counts = tf.shape(any_shape(images)), tf.shape(any_shape(task))
    good = (tf.size(counts[1]) == 1) & (tf.concat([counts[0], [-1]], 0)[0] == tf.concat([counts[1], [-2]], 0)[0])
    message = ["There must be one task for each image. Shapes of images and task:", *counts]
    with tf.control_dependencies([tf.debugging.Assert(good, message, 10)]):
        return tf.identity(images), tf.identity(task)


def any_shape(tensor: tf.Tensor) -> tf.Tensor:
    """Returns the tensor without its static shape.

    A server feeds what a client sends, whatever shape the signature names. TensorFlow takes the signature's shape for
    granted, and would remove a check that always holds by it.
    """
    return tf.raw_ops.PlaceholderWithDefault(input=tensor, shape=tf.TensorShape(None))
