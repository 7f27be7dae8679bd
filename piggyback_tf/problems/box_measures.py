"""How good boxes are, as COCO measures it: by `pycocotools`, as everybody does."""

import contextlib
import copy
import io
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from piggyback_tf.problems.class_means import measured_by_class

# So many boxes are answered of an image at most, and judged.
MOST = 100
# Each draw is a pass of pycocotools over all boxes, in Python.
_DRAWS = 200


class ImageBoxes(NamedTuple):
    """The boxes of an image, in its pixels: ymin, xmin, ymax and xmax, and the number of the class.

    Attributes:
        found: With the score, float32 `[n, 6]`, at most `MOST`, the surest first.
        truth: With 1 for boxes that are to be ignored, float32 `[m, 6]`.
        right: Whether each that was found is right with an intersection over union of 0.5, int `[n]`: 1, 0, or -1 if it
            does not count.
    """

    found: np.ndarray
    truth: np.ndarray
    right: np.ndarray


def measured_boxes(counts: np.ndarray, class_names: Sequence[str]) -> dict[str, Any]:
    """Returns what `Problem.measured` tells of boxes, in percent.

    Args:
        counts: The boxes of each image, objects `[N]` of `ImageBoxes`.
        class_names: The classes.

    Returns:
        `"ap_error"`, 100 less the AP, with the ends of its interval; `"images"`; `"mean_ap50"`, the AP at an
        intersection over union of 0.5; `"ap"` and `"ap50"`, those of each class, None for one that does not occur.

    Raises:
        ValueError: If there are no images.
    """
    evaluated = EvaluatedBoxes(counts, len(class_names))
    errors, by_class = measured_by_class(
        "ap_error",
        lambda times: np.stack([evaluated.precision(row).mean(axis=0) for row in times]),
        len(counts),
        class_names,
        draws=_DRAWS,
    )
    (ap50,) = 100.0 * evaluated.precision(np.ones(len(counts), np.int64))[:1]
    known = ap50[~np.isnan(ap50)]
    return {
        **errors,
        "mean_ap50": float(known.mean()) if len(known) else 0.0,
        "ap": by_class,
        "ap50": {name: None if np.isnan(one) else one for name, one in zip(class_names, ap50.tolist(), strict=True)},
    }


class EvaluatedBoxes:
    """Images whose boxes were compared, to be counted any number of times each.

    Args:
        counts: The boxes of each image.
        classes: How many classes there are.
    """

    def __init__(self, counts: np.ndarray, classes: int):
        # It is needed nowhere else, and a pack may be opened where it is not installed.
        from pycocotools.cocoeval import COCOeval

        images = len(counts)
        with contextlib.redirect_stdout(io.StringIO()):
            truth = _coco([own.truth for own in counts], classes, lambda row: {"iscrowd": int(row[5])})
            found = _coco([own.found for own in counts], classes, lambda row: {"score": float(row[5])})
            self._evaluation = COCOeval(truth, found, "bbox")
            params = self._evaluation.params
            params.areaRng, params.areaRngLbl, params.maxDets = params.areaRng[:1], params.areaRngLbl[:1], [MOST]
            if images:
                self._evaluation.evaluate()
        self._compared = np.empty([classes, images], object)
        for place, one in enumerate(self._evaluation.evalImgs):
            self._compared[place // images, place % images] = one

    def precision(self, times: np.ndarray) -> np.ndarray:
        """Returns the average precision, float64 `[thresholds, classes]`, NaN of a class that does not occur.

        Not image ids are repeated, which COCO counts once each, but what was compared of an image.

        Args:
            times: How often each image counts, integers `[N]`.
        """
        drawn = np.repeat(np.arange(len(times)), times)
        evaluation = copy.copy(self._evaluation)
        evaluation.params, evaluation._paramsEval = (copy.copy(each) for each in [evaluation.params] * 2)
        evaluation.params.imgIds = evaluation._paramsEval.imgIds = list(range(len(drawn)))
        evaluation.evalImgs = self._compared[:, drawn].reshape(-1).tolist()
        with contextlib.redirect_stdout(io.StringIO()):
            evaluation.accumulate()
        # Thresholds, recalls, classes, ranges of areas, numbers of boxes.
        found = evaluation.eval["precision"][:, :, :, 0, 0]
        return np.where((found < 0).any(axis=1), np.nan, found.mean(axis=1))


def _coco(boxes: Sequence[np.ndarray], classes: int, more: Callable[[np.ndarray], dict[str, Any]]) -> Any:
    """Returns boxes as pycocotools wants them; all ids begin with 1, since 0 means that there is none.

    Args:
        boxes: Those of each image.
        classes: How many classes there are.
        more: Returns what else is said of a box.
    """
    from pycocotools.coco import COCO

    annotations: list[dict[str, Any]] = []
    for image, own in enumerate(boxes, start=1):
        for row in own:
            top, left, bottom, right = (float(edge) for edge in row[:4])
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image,
                    "category_id": int(row[4]) + 1,
                    "bbox": [left, top, right - left, bottom - top],
                    "area": (right - left) * (bottom - top),
                    "iscrowd": 0,
                    **more(row),
                }
            )
    found = COCO()
    found.dataset = {
        "images": [{"id": image} for image in range(1, len(boxes) + 1)],
        "categories": [{"id": number} for number in range(1, classes + 1)],
        "annotations": annotations,
    }
    found.createIndex()
    return found
