"""The signatures of an export: those of tasks of classes, and beside them those of other problems."""

import tensorflow as tf

from piggyback_tf.problems import head_logits

from ..shared.graph import good_images
from .decode import decode_batch
from .network import ServedNetwork
from .options import ExportOptions
from .problem_signatures import ENCODED, Outputs, ProblemSignatures, by_problem, chosen_preparations
from .requests import check_images_and_tasks, check_same_length
from .served_tasks import ServedTasks, class_labels
from .task_tables import CLASSES, TaskTables


class Servable(ServedTasks):
    """All tasks on one base.

    Tasks and images that cannot be answered never raise within the graph, since a server merges the requests of several
    clients into one run: their rows are flagged.

    Args:
        base: The base.
        tables: The tasks.
        options: What images come as, and how many classes `encoded` returns.
        unpacked: Whether kernels are unpacked once.
    """

    def __init__(self, base: ServedNetwork, tables: TaskTables, options: ExportOptions, *, unpacked: bool):
        super().__init__(base, tables, unpacked=unpacked)
        self._features, self._shape = base.features, (base.spec.image_size,) * 2
        self._dtype, self._top_k = tf.as_dtype(options.image_dtype), options.top_k
        self._has_classes, self._width = CLASSES in tables.families, tables.most_classes([CLASSES])
        self._chains = chosen_preparations(tables, [CLASSES])
        self._max_pixels = options.max_image_pixels
        self._others = [
            ProblemSignatures(self, base, tables, options, problem, families)
            for problem, families in by_problem(tables.families).items()
        ]
        # Traced once: every signature calls the same function of the graph.
        images = tf.TensorSpec([None, *self._shape, 3], self._dtype)
        self._classify_rows = tf.function(self._classify, [images, tf.TensorSpec([None], tf.int32)], autograph=False)

    def signatures(self) -> dict[str, tf.types.experimental.GenericFunction]:
        """Returns the signatures by name."""
        images = tf.TensorSpec([None, *self._shape, 3], self._dtype, "images")
        names = tf.TensorSpec([None], tf.string, "task")
        inputs = {
            "serving_default": (self._serving_default, [images, tf.TensorSpec([None], tf.int32, "task")]),
            "by_name": (self._by_name, [images, names]),
            ENCODED: (self._encoded, [tf.TensorSpec([None], tf.string, "image_bytes"), names]),
        }
        found = dict(inputs) if self._has_classes else {}
        for problem in self._others:
            found |= problem.signatures()
        return {
            name: tf.function(function, specs, autograph=False).get_concrete_function()
            for name, (function, specs) in found.items()
        }

    def _serving_default(self, images: tf.Tensor, task: tf.Tensor) -> Outputs:
        images, task = check_images_and_tasks(images, task, self._shape)
        probabilities, class_id = self._classify_rows(images, task)
        return {"probabilities": probabilities, "class_id": class_id, "task_ok": self._known(task)}

    def _by_name(self, images: tf.Tensor, task: tf.Tensor) -> Outputs:
        images, task = check_images_and_tasks(images, task, self._shape)
        places = self.find(task)
        probabilities, class_id = self._classify_rows(images, places)
        return {"probabilities": probabilities, "class_id": class_id, "task_ok": self._known(places)}

    def _encoded(self, image_bytes: tf.Tensor, task: tf.Tensor) -> Outputs:
        image_bytes, task = check_same_length(image_bytes, task)
        places = self.find(task)
        known = self._known(places)
        # The file of a task that is not known is decoded all the same, so that `image_ok` tells of the file alone.
        tasks = self.or_first(places, [CLASSES])
        preparation = self._chains.of(tf.gather(self.preparation, tasks))
        images, image_ok = decode_batch(
            image_bytes, preparation, self._chains.preparations, self._shape, self._max_pixels
        )
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
        features = self._features(*self.base_weights(task), images)
        kernel, bias, classes = self.dense_head(task, features.shape[1])
        found = head_probabilities(features, kernel, bias)
        return tf.ensure_shape(tf.pad(found, [[0, 0], [0, self._width - classes]]), [None, self._width])

    def _known(self, task: tf.Tensor) -> tf.Tensor:
        return self.known(task, [CLASSES])


def head_probabilities(features: tf.Tensor, kernel: tf.Tensor, bias: tf.Tensor) -> tf.Tensor:
    """Returns the softmax over the logits of a head, `[B, C]`."""
    return tf.nn.softmax(head_logits(features, kernel, bias))
