"""Detection: a box around each object, and its class."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from piggyback_tf.data import NO_BOX, Operation, Original, boxes_at_own_size
from piggyback_tf.data.boxes import COLUMNS
from piggyback_tf.head_spec import HeadSpec
from piggyback_tf.problems.base import PROBLEMS, AnswerSpec, Problem, WayBack
from piggyback_tf.problems.box_measures import MOST, ImageBoxes, measured_boxes
from piggyback_tf.problems.box_metric import BoxPrecisionError, judge
from piggyback_tf.problems.heads.fcos import SIDES, distances, stride_of
from piggyback_tf.problems.points import area, assign, focal_loss, giou, point_centres
from piggyback_tf.settings.methods import MethodConfig

# Channels of the head: with float16 that of 3 classes on MobileNetV2 takes 150 kB.
_WIDTH = 32
# Boxes that are answered have at least this score; of two of a class that overlap more, only the surer one is. Both are
# those of FCOS.
LEAST_SCORE, OVERLAP = 0.05, 0.6


class Points(NamedTuple):
    """What a head says of each point.

    Attributes:
        logits: Of each class, float32 `[B, P, C]`.
        boxes: ymin, xmin, ymax and xmax in pixels of the prepared image, float32 `[B, P, 4]`; they may leave it.
    """

    logits: tf.Tensor
    boxes: tf.Tensor


class PointLoss(keras.losses.Loss):
    """The loss of an image: focal loss of its points' classes, and 1 less the GIoU of their boxes.

    Both are sums over the points, divided by the number of points that answer for a box (FCOS, equation 2), at least 1.
    So an image weighs the same however many boxes it has, and a batch is the mean of its images, on one device and on
    several.

    Args:
        image_shape: `(height, width)` of the images.
        reduction: As of Keras' losses.
        name: Name of the loss.
    """

    def __init__(
        self, image_shape: tuple[int, int], reduction: str = "sum_over_batch_size", name: str = "cross_entropy"
    ):
        super().__init__(name=name, reduction=reduction)
        self._image_shape = image_shape

    def call(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        return point_loss(y_true, y_pred, self._image_shape)


def point_loss(targets: tf.Tensor, outputs: tf.Tensor, image_shape: tuple[int, int]) -> tf.Tensor:
    """Returns the loss of each image, float32 `[B]`; see `PointLoss`.

    Args:
        targets: Boxes, float32 `[B, N, 6]`.
        outputs: What the head says, `[B, h, w, C + 4]`.
        image_shape: As of `PointLoss`.
    """
    found, (centres, stride) = points_of(outputs, image_shape), grid_of(outputs, image_shape)
    wanted = assign(tf.cast(targets, tf.float32), centres, stride, found.logits.shape[-1])
    classes = tf.reduce_sum(focal_loss(found.logits, wanted.classes) * wanted.counts, [1, 2])
    boxes = tf.reduce_sum((1.0 - giou(found.boxes, wanted.boxes)) * wanted.positive, 1)
    return (classes + boxes) / tf.maximum(tf.reduce_sum(wanted.positive, 1), 1.0)


def grid_of(outputs: tf.Tensor, image_shape: tuple[int, int]) -> tuple[np.ndarray, tuple[float, float]]:
    """Returns the points of what a head says, float32 `[P, 2]`, and the stride between them; see `point_centres`."""
    size = outputs.shape[1], outputs.shape[2]
    stride = stride_of(size, image_shape)
    return point_centres(size, stride), stride


def points_of(outputs: tf.Tensor, image_shape: tuple[int, int]) -> Points:
    """Returns what a head says of each point; see `distances`.

    Args:
        outputs: `[B, h, w, C + 4]`.
        image_shape: `(height, width)` of the images.
    """
    centres, stride = grid_of(outputs, image_shape)
    outputs = tf.reshape(tf.cast(outputs, tf.float32), [-1, len(centres), outputs.shape[3]])
    logits, sides = outputs[..., :-SIDES], outputs[..., -SIDES:]
    far = distances(sides, stride)
    return Points(logits, tf.concat([centres - far[..., :2], centres + far[..., 2:]], axis=-1))


@PROBLEMS.register("boxes")
class Detection(Problem):
    """Finds objects; the error is 100 % less the average precision (AP) of COCO.

    AP is the mean over classes, and over ten thresholds of intersection over union from 0.5 to 0.95, of the
    interpolated precision at 101 recalls. The best epoch is chosen by it, too, and not by AP50, which does not see how
    well boxes fit once they cover half of the same.
    """

    judges_originals = True
    head_first = 0.25
    mask_trust = 0.1
    activation = "linear"
    answers_boxes = True
    signature = "detect"
    answers: ClassVar[Mapping[str, AnswerSpec]] = {
        "boxes": AnswerSpec("float32", (MOST, 4)),
        "scores": AnswerSpec("float32", (MOST,)),
        "classes": AnswerSpec("int32", (MOST,), NO_BOX),
        "count": AnswerSpec("int32"),
    }
    file_answers = answers

    def head(self, config: MethodConfig) -> HeadSpec:
        del config
        return HeadSpec("fcos", len(self.class_names), _WIDTH, self.image_shape)

    def loss(self, reduction: str) -> keras.losses.Loss:
        return PointLoss(self.image_shape, reduction)

    def raw_answer(self, logits: tf.Tensor) -> dict[str, tf.Tensor]:
        """Returns what is said of each point, for those who choose among overlapping boxes themselves.

        Args:
            logits: As of `answer`.

        Returns:
            `"boxes"`, float32 `[B, P, 4]`, cut to the image, and `"scores"`, float32 `[B, P, C]`, 0 of a box outside of
            it: points are also where the network sees an image padded.
        """
        found, limits = points_of(logits, self.image_shape), tf.constant([*self.image_shape] * 2, tf.float32)
        boxes = tf.clip_by_value(found.boxes, 0.0, limits)
        there = tf.cast(area(boxes) > 0, tf.float32)[..., None]
        return {"boxes": boxes, "scores": tf.sigmoid(found.logits) * there}

    def answer(self, logits: tf.Tensor) -> dict[str, tf.Tensor]:
        """Returns the boxes that are left where the surer of two of a class that overlap is kept, the surest first.

        Args:
            logits: `[B, h, w, C + 4]`.

        Returns:
            `"boxes"`, float32 `[B, MOST, 4]`: ymin, xmin, ymax and xmax in pixels of the prepared image; `"scores"`,
            float32 `[B, MOST]`; `"classes"`, int32 `[B, MOST]`; `"count"`, int32 `[B]`. Behind so many boxes are zeros,
            and -1 for classes.
        """
        raw = self.raw_answer(logits)
        boxes, scores, classes, count = tf.image.combined_non_max_suppression(
            raw["boxes"][:, :, None], raw["scores"], MOST, MOST, OVERLAP, LEAST_SCORE, clip_boxes=False
        )
        there = tf.range(MOST) < count[:, None]
        classes = tf.where(there, tf.cast(classes, tf.int32), NO_BOX)
        return {"boxes": boxes, "scores": scores, "classes": classes, "count": count}

    def predicted(self, answers: Mapping[str, tf.Tensor]) -> tf.Tensor:
        """Returns float32 `[B, MOST, 6]`: boxes, classes and scores, as `answer` has them, in one array."""
        columns = [tf.cast(answers[name], tf.float32)[..., None] for name in ("classes", "scores")]
        return tf.concat([answers["boxes"], *columns], axis=-1)

    def file_answer(self, answers: Mapping[str, tf.Tensor], way: WayBack) -> dict[str, tf.Tensor]:
        """Returns the same with boxes in pixels of the image, cut to it."""
        scale, offset = (tf.tile(tf.cast(part, tf.float32), [2]) for part in (way.scale, way.offset))
        limits = tf.tile(tf.cast(way.size, tf.float32), [2])
        boxes = tf.clip_by_value((answers["boxes"] - offset) / scale, 0.0, limits)
        there = tf.range(MOST) < answers["count"]
        return {**answers, "boxes": tf.where(there[:, None], boxes, 0.0)}

    def metrics(self) -> list[keras.metrics.Metric]:
        loss = keras.metrics.MeanMetricWrapper(point_loss, name="cross_entropy", image_shape=self.image_shape)
        return [BoxPrecisionError(len(self.class_names), self._packed), loss]

    def count(self, answers: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """Returns what was found and what is there of each image, objects `[B]` of `ImageBoxes`."""
        return self._counted(self._found(answers), [targets[targets[:, 4] != NO_BOX] for targets in targets])

    def count_originals(
        self, answers: np.ndarray, targets: np.ndarray, originals: Iterable[Original], operations: Sequence[Operation]
    ) -> np.ndarray:
        """Does what `count` does, in pixels of the images as they are in their source."""
        del targets
        found, originals = self._found(answers), list(originals)
        for own, original in zip(found, originals, strict=True):
            own[:, :4] = boxes_at_own_size(own[:, :4], operations, original.size)
        return self._counted(found, [original.target for original in originals])

    def measured(self, counts: np.ndarray) -> dict[str, Any]:
        """Returns `"ap_error"`, `"mean_ap50"`, and under `"ap"` and `"ap50"` those of each class, in percent.

        The AP of a class that does not occur is None.
        """
        return measured_boxes(counts, self.class_names)

    def _packed(self, logits: tf.Tensor) -> tf.Tensor:
        return self.predicted(self.answer(logits))

    def _found(self, answers: np.ndarray) -> list[np.ndarray]:
        """Returns the boxes found in each image, float32 `[n, 6]`, of what a head says or the bank answers."""
        answers, classes = np.asarray(answers), len(self.class_names)
        if answers.ndim == 4 and answers.shape[-1] == classes + SIDES:
            if np.isnan(answers).any():
                raise ValueError("Answers must not be NaN.")
            answers = self._packed(tf.constant(answers)).numpy()
        if answers.ndim != 3 or answers.shape[-1] != COLUMNS:
            raise ValueError(
                f"Answers of {classes} classes must be boxes [B, n, {COLUMNS}], or [B, h, w, {classes + SIDES}] of a "
                f"head. Received: {list(answers.shape)}."
            )
        numbers = answers[..., 4]
        if np.isnan(answers).any() or not np.isin(numbers, np.arange(NO_BOX, classes)).all():
            raise ValueError(f"Boxes that are answers must hold classes below {classes}, and nothing that is NaN.")
        return [own[own[:, 4] != NO_BOX] for own in answers]

    def _counted(self, found: Sequence[np.ndarray], truth: Sequence[np.ndarray]) -> np.ndarray:
        numbers = np.concatenate([np.zeros([0]), *(own[:, 4] for own in truth)])
        if strange := [int(one) for one in numbers if not 0 <= one < len(self.class_names)]:
            raise ValueError(f"Boxes must hold classes below {len(self.class_names)}. Received: {strange[0]}.")
        judged = judge(_of_one_length(found), _of_one_length(truth))[:, :, 0].numpy()
        counts = np.empty(len(found), object)
        for place, (own, there, right) in enumerate(zip(found, truth, judged, strict=True)):
            right = right[: len(own)]
            counts[place] = ImageBoxes(own, there, np.where(right[:, 1] > 0, right[:, 0], -1).astype(np.int64))
        return counts


def _of_one_length(boxes: Sequence[np.ndarray]) -> tf.Tensor:
    """Returns the boxes of some images as one tensor, float32 `[B, n, 6]`, with rows of no box behind."""
    padded = np.zeros([len(boxes), max([1, *map(len, boxes)]), COLUMNS], np.float32)
    padded[..., 4] = NO_BOX
    for row, own in zip(padded, boxes, strict=True):
        row[: len(own)] = own
    return tf.constant(padded)
