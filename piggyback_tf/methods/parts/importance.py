"""How much each weight of a trained network matters, image by image, and a penalty that holds those that do."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from piggyback_tf.backbones import named_variables
from piggyback_tf.methods.parts.added_loss import AddedLoss
from piggyback_tf.problems import is_head


def mean_over_images(
    model: keras.Model,
    variables: Mapping[str, keras.Variable],
    images: Iterable[tuple[Any, Any]],
    value: Callable[[tf.Tensor, tf.Tensor], tf.Tensor],
    size: Callable[[tf.Tensor], tf.Tensor],
) -> dict[str, np.ndarray]:
    """Returns the mean over images of the size of `d value / d weight`, by the name of the variable.

    It is taken image by image, since that of a batch's mean gradient is another thing; the network is in inference
    mode, in which an image's gradient does not depend on other images.

    Args:
        model: From images `[B, S, S, 3]` to logits `[B, C]`.
        variables: What to differentiate by.
        images: Pairs of an image `[S, S, 3]` and its label, gone through once.
        value: From the logits `[1, C]` of an image and its label, which has a dimension of 1 in front, to a number.
        size: What is averaged of a gradient, element by element, such as its square.

    Returns:
        Float32 arrays of the variables' shapes.

    Raises:
        ValueError: If there are no images.
    """
    # With several devices, what lies on the first of them, which is what is read outside of a training step.
    local = tf.distribute.get_strategy().experimental_local_results
    weights = [local(variable.value)[0] for variable in variables.values()]

    @tf.function(reduce_retracing=True, jit_compile=False)
    def sizes(image: tf.Tensor, label: tf.Tensor) -> list[tf.Tensor]:
        with tf.GradientTape() as tape:
            found = value(model(image[None], training=False), label[None])
        gradients = tape.gradient(found, weights, unconnected_gradients=tf.UnconnectedGradients.ZERO)
        return [size(gradient) for gradient in gradients]

    sums, count = [np.zeros(weight.shape, np.float32) for weight in weights], 0
    for image, label in images:
        for total, one in zip(sums, sizes(tf.convert_to_tensor(image), tf.convert_to_tensor(label)), strict=True):
            total += one.numpy()
        count += 1
    if not count:
        raise ValueError("There are no images by which weights could matter.")
    return {name: total / np.float32(count) for name, total in zip(variables, sums, strict=True)}


def sample_images(batches: Iterable[tuple[Any, Any]], count: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields single images and labels out of batches, a random sample of them that is always the same.

    Args:
        batches: Images `[B, ...]` and labels `[B]`, gone through once.
        count: How many; all images if 0 or if there are no more. As many are held in memory.
    """
    pairs = (
        (image, label)
        for images, labels in batches
        for image, label in zip(np.array(images), np.array(labels), strict=True)
    )
    if not count:
        yield from pairs
        return
    # Reservoir sampling: the first images alone could all be of one class, and how many there are is not known before.
    generator = np.random.default_rng(0)
    sample: list[tuple[np.ndarray, np.ndarray]] = []
    for seen, (image, label) in enumerate(pairs):
        place = seen if seen < count else int(generator.integers(seen + 1))
        if place < count:
            # A copy, lest an image keeps its whole batch.
            sample[place : place + 1] = [(image.copy(), label)]
    yield from sample


def penalised_variables(model: keras.Model) -> dict[str, keras.Variable]:
    """Returns the trainable variables of a model by canonical path, those of the head left out."""
    trainable = {id(variable) for variable in model.trainable_variables}
    return {
        path: variable
        for path, variable in named_variables(model).items()
        if id(variable) in trainable and not is_head(path)
    }


def check_remembered(wanted: Iterable[str], found: Iterable[str], settings: str) -> None:
    """Refuses what is remembered of weights if it is not what a training needs.

    Args:
        wanted: Names of arrays that it needs.
        found: Names of those that are remembered.
        settings: The flags on which they depend.

    Raises:
        ValueError: If they differ.
    """
    if different := sorted({*wanted} ^ {*found}):
        raise ValueError(
            f"What is remembered does not fit the settings: {different[0]!r} is in one of them only. Keep {settings} "
            "as for the first task."
        )


def quadratic_penalty(factor: float, terms: Sequence[tuple[keras.Variable, np.ndarray, np.ndarray]]) -> AddedLoss:
    """Returns what computes `factor * sum of importance * (weight - old) ** 2`.

    Args:
        factor: Weight of the penalty in the loss.
        terms: Variables of the model, each with its importance and its old value, arrays of its shape.
    """
    # Tensors, since the graph of a training step would hold a copy of an array.
    held = [(variable, tf.constant(importance), tf.constant(old)) for variable, importance, old in terms]

    def penalty(images: tf.Tensor, answers: tf.Tensor) -> tf.Tensor:
        del images, answers
        moved = [tf.reduce_sum(importance * tf.square(variable.value - old)) for variable, importance, old in held]
        return factor * tf.add_n(moved)

    return penalty
