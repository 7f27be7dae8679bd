"""The diagonal of the Fisher information: how much each weight matters for a trained network's answers."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf


def diagonal_fisher(
    model: keras.Model, variables: Mapping[str, keras.Variable], images: Iterable[tuple[Any, Any]]
) -> dict[str, np.ndarray]:
    """Returns the mean over images of `(d log p(label | image) / d weight) ** 2`, by the name of the variable.

    This is the empirical Fisher information, with the labels of the data in place of labels that the network draws.
    The square is taken image by image, since that of a batch's mean gradient is another thing; the network is in
    inference mode, in which an image's gradient does not depend on other images.

    Args:
        model: From images `[B, S, S, 3]` to logits `[B, C]`.
        variables: What to differentiate by.
        images: Pairs of an image `[S, S, 3]` and its label, gone through once.

    Returns:
        Float32 arrays of the variables' shapes.

    Raises:
        ValueError: If there are no images.
    """
    # With several devices, what lies on the first of them, which is what is read outside of a training step.
    local = tf.distribute.get_strategy().experimental_local_results
    weights = [local(variable.value)[0] for variable in variables.values()]

    @tf.function(reduce_retracing=True, jit_compile=False)
    def squares(image: tf.Tensor, label: tf.Tensor) -> list[tf.Tensor]:
        with tf.GradientTape() as tape:
            logits = model(image[None], training=False)
            loss = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=label[None], logits=logits)
        gradients = tape.gradient(loss, weights, unconnected_gradients=tf.UnconnectedGradients.ZERO)
        return [tf.square(gradient) for gradient in gradients]

    sums, count = [np.zeros(weight.shape, np.float32) for weight in weights], 0
    for image, label in images:
        for total, square in zip(sums, squares(tf.convert_to_tensor(image), tf.convert_to_tensor(label)), strict=True):
            total += square.numpy()
        count += 1
    if not count:
        raise ValueError("There are no images to take the Fisher information from.")
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
