"""Before a LiteRT model is written, whatever its design: it has to answer as the network itself and the bank do."""

import numpy as np
import tensorflow as tf

from piggyback_tf.backbones import Backbone
from piggyback_tf.packs import TaskBank, TaskPack
from piggyback_tf.problems import PROBLEMS

from ..edge.piggyback_edge import boxes_of_points
from ..shared.errors import ExportError
from .runtime import ImageModel

# What a model returns of some images, by name.
Outputs = dict[str, np.ndarray]

# How much features may differ, as a share of their length. What a wrong constant does is far beyond; what integers
# cost, a test set has to show. An int8 base has the ranges of its tasks, not its own: it is compared as float32.
FEATURE_LIMITS = {"none": 1e-3, "float16": 5e-2, "dynamic": 0.5}
# The same for probabilities, absolute; only of types that are exact enough for it.
_LIMITS = {"none": 1e-3, "float16": 5e-2}
# The share of places at which another class may be found, where the classes are all that is answered: those that are as
# good as equally probable there. Noise, which is what is looked at, has more of them than photos.
_OTHER_CLASS = {"none": 1e-3, "float16": 5e-2}
# By how many pixels the sides of boxes may differ.
_PIXELS = {"none": 0.02, "float16": 2.0}


def probe_images(image_shape: tuple[int, int]) -> np.ndarray:
    """Returns the images that exports are compared on, float32 `[2, H, W, 3]`."""
    return np.random.default_rng(0).uniform(0, 255, (2, *image_shape, 3)).astype(np.float32)


def run_model(data: bytes | bytearray, images: np.ndarray, signature: str | None = None) -> np.ndarray:
    """Returns the output of a model that has one, `[B, ...]`, for images, float32 `[B, H, W, 3]`; see `ImageModel`."""
    (found,) = run_outputs(data, images, signature).values()
    return found


def run_outputs(data: bytes | bytearray, images: np.ndarray, signature: str | None = None) -> Outputs:
    """Returns the outputs of a model by name, `[B, ...]` each; see `run_model`."""
    model = ImageModel(bytes(data), signature)
    found = [model.outputs(image) for image in images]
    return {name: np.concatenate([each[name] for each in found]) for name in found[0]}


def check_features(data: bytes | bytearray, backbone: Backbone, quantize: str) -> None:
    """Checks that a file that ends in features gives those of its network.

    Raises:
        ExportError: If not.
    """
    images = probe_images((backbone.image_size, backbone.image_size))
    expected = np.asarray(backbone.model(images, training=False), np.float32)
    found = run_model(data, images)
    difference = float(np.linalg.norm(found - expected) / max(float(np.linalg.norm(expected)), 1e-30))
    # Not "greater than": NaN is no number that is small enough.
    if not difference <= FEATURE_LIMITS[quantize]:
        cure = (
            "Conversion has made a constant of a kernel and of something else, such as the offset of a Rescaling "
            "before a convolution without padding. Use --design=switch or --design=input."
            if quantize == "none"
            else "Try another quantisation, or --design=switch."
        )
        raise ExportError(
            f"The converted base does not give the features of {backbone.name!r}: with constants of type {quantize!r} "
            f"they differ by {difference:.1%} of their length. {cure}"
        )


def check_answers(found: np.ndarray | Outputs, bank: TaskBank, pack: TaskPack, quantize: str) -> None:
    """Checks that an export gives the bank's answers for `probe_images`; with integers, that it gives numbers.

    Args:
        found: The answers; of a task of boxes what the model returned, of which they are chosen.
        bank: Without the task, which is in it while this runs. One bank for many tasks is built only once.
        pack: The task.
        quantize: The type of the export's constants.

    Raises:
        ExportError: If not.
    """
    if not all(np.isfinite(each).all() for each in (found.values() if isinstance(found, dict) else [found])):
        raise ExportError(f"Task {pack.task!r} gives results that are no numbers on this base.")
    limit = _LIMITS.get(quantize)
    if limit is None:
        return
    if isinstance(found, dict):
        _check_points(found, bank, pack, quantize)
        return
    expected = bank.add(pack).predict(probe_images(pack.image_shape), task=pack.task)
    bank.remove(pack.task)
    if PROBLEMS[pack.problem].answers_labels:
        share = float((found != expected).mean())
        if share > _OTHER_CLASS[quantize]:
            raise ExportError(
                f"Task {pack.task!r} finds other classes on the converted base than in the bank: at {share:.2%} of all "
                "places."
            )
        return
    difference = float(np.abs(found - expected).max())
    if not difference <= limit:
        raise ExportError(
            f"Task {pack.task!r} gives other probabilities on the converted base than in the bank: they differ by "
            f"{difference:.2g}."
        )


def _check_points(found: Outputs, bank: TaskBank, pack: TaskPack, quantize: str) -> None:
    """Does what `check_answers` does with what boxes are chosen of: a choice would hide much, or show too much.

    Raises:
        ExportError: If scores or sides are others.
    """
    images = probe_images(pack.image_shape)
    # Of the bank's tensors, without the choice.
    logits = bank.add(pack).to_keras(pack.task)(images, training=False)
    bank.remove(pack.task)
    problem = PROBLEMS[pack.problem](pack.class_names, pack.image_shape)
    expected = {name: value.numpy() for name, value in problem.raw_answer(tf.constant(logits)).items()}
    scores = found["scores"][..., : len(pack.class_names)]
    boxes, chances = boxes_of_points(scores, found["sides"], pack.image_shape)
    # A box of which hardly anything is in the image is one, or none.
    there = (expected["scores"] > 0) & (chances > 0)
    by_score = float(np.where(there, np.abs(chances - expected["scores"]), 0).max())
    by_side = float(np.abs(boxes - expected["boxes"]).max())
    if not (by_score <= _LIMITS[quantize] and by_side <= _PIXELS[quantize]):
        raise ExportError(
            f"Task {pack.task!r} gives other boxes on the converted base than in the bank, before it chooses among "
            f"them: scores differ by {by_score:.2g}, sides by {by_side:.2g} pixels."
        )
