"""What `predict` shows of an answer: a way for each problem."""

import argparse
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from piggyback_tf.data import NO_BOX, Operation, at_own_size, boxes_at_own_size
from piggyback_tf.evaluation.box_pictures import BELIEVED, boxes_png
from piggyback_tf.evaluation.segment_pictures import label_png, overlay_png
from piggyback_tf.files import write_atomically
from piggyback_tf.foreign_text import printable
from piggyback_tf.packs import TaskPack
from piggyback_tf.registry import Registry
from piggyback_tf.top_k import best_classes


@dataclasses.dataclass(frozen=True)
class AskedImage:
    """An image that a task was asked about.

    Attributes:
        path: Its file or URL.
        pixels: uint8 `(height, width, 3)`, before it was prepared.
        operations: How it was prepared.
    """

    path: str
    pixels: np.ndarray
    operations: list[Operation]


@dataclasses.dataclass(frozen=True)
class Shown:
    """How answers of a problem are shown.

    Attributes:
        show: From an answer to JSON values and lines of text.
        draws: Whether there are pictures of it, which `--output_dir` asks for.
    """

    show: Callable[[TaskPack, np.ndarray, AskedImage, argparse.Namespace], tuple[dict[str, Any], list[str]]]
    draws: bool = False


# By the name of the problem.
SHOWN: Registry[Shown] = Registry("problem that predict shows")


def show_classes(
    pack: TaskPack, answer: np.ndarray, asked: AskedImage, options: argparse.Namespace
) -> tuple[dict[str, Any], list[str]]:
    """Returns the most probable classes."""
    del asked
    best = best_classes(answer, options.top_k)
    classes = [{"class": pack.class_names[place], "probability": float(answer[place])} for place in best]
    return {"classes": classes}, [f"  {100 * one['probability']:6.2f} %  {printable(one['class'])}" for one in classes]


def show_areas(
    pack: TaskPack, answer: np.ndarray, asked: AskedImage, options: argparse.Namespace
) -> tuple[dict[str, Any], list[str]]:
    """Returns the share of the image that each class has, the largest first, and writes the pictures."""
    height, width = asked.pixels.shape[:2]
    labels = at_own_size(answer, asked.operations, (height, width))
    shares = np.bincount(labels.reshape(-1), minlength=len(pack.class_names)) / labels.size
    places = [place for place in best_classes(shares, len(shares)) if shares[place] > 0]
    areas = [{"class": pack.class_names[place], "share": float(shares[place])} for place in places]
    files: dict[str, str | None] = {"labels": None, "overlay": None}
    if options.output_dir:
        pictures = {"labels": label_png(labels), "overlay": overlay_png(asked.pixels, labels)}
        for kind, content in pictures.items():
            path = picture_path(options.output_dir, asked.path, kind)
            write_atomically(path, content)
            files[kind] = str(path)
    lines = [f"  {100 * one['share']:6.2f} %  {printable(one['class'])}" for one in areas]
    return {"size": [height, width], "areas": areas, **files}, lines


def show_boxes(
    pack: TaskPack, answer: np.ndarray, asked: AskedImage, options: argparse.Namespace
) -> tuple[dict[str, Any], list[str]]:
    """Returns all boxes as COCO's results have them, and of those that are believed lines, and the picture."""
    size = asked.pixels.shape[:2]
    found = answer[answer[:, 4] != NO_BOX]
    edges = boxes_at_own_size(found[:, :4], asked.operations, size)
    boxes, lines, labels = [], [], []
    for (top, left, bottom, right), number, score in zip(
        edges.tolist(), found[:, 4].astype(int).tolist(), found[:, 5].tolist(), strict=True
    ):
        name = pack.class_names[number]
        # The ids of COCO's categories begin with 1.
        told = {"image_id": Path(asked.path).name, "category_id": number + 1, "class": name}
        boxes.append({**told, "bbox": [left, top, right - left, bottom - top], "score": score})
        if score >= BELIEVED:
            place = f"{left:.0f}, {top:.0f} to {right:.0f}, {bottom:.0f}"
            lines.append(f"  {100 * score:6.2f} %  {printable(name)}  ({place})")
            labels.append(f"{name} {100 * score:.0f} %")
    path = None
    if options.output_dir:
        path = picture_path(options.output_dir, asked.path, "boxes")
        drawn = len(labels)
        numbers = found[:drawn, 4].astype(int).tolist()
        write_atomically(path, boxes_png(asked.pixels, edges[:drawn], numbers, labels))
    values = {"size": list(size), "boxes": boxes, "drawn": None if path is None else str(path)}
    return values, lines or [f"  no box with a score of {100 * BELIEVED:.0f} % or more"]


def picture_path(folder: str, image: str, kind: str) -> Path:
    """Returns the file of a picture of an image."""
    return Path(folder) / f"{Path(image).name}.{kind}.png"


SHOWN.register("class")(Shown(show_classes))
SHOWN.register("multilabel")(Shown(show_classes))
SHOWN.register("map")(Shown(show_areas, draws=True))
SHOWN.register("boxes")(Shown(show_boxes, draws=True))
