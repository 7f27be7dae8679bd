"""All heads, and how one is put on a network."""

from collections.abc import Callable, Sequence

import keras

from piggyback_tf.backbones.endpoints import Endpoint
from piggyback_tf.problems.heads.spec import HeadSpec
from piggyback_tf.problems.heads.start import HeadStart
from piggyback_tf.registry import Registry

# Of the layer, or the model, whose weights a task's head are: their paths begin with it.
HEAD_NAME = "head"
# From a spec, tensors of a network and how it starts, to logits.
HEADS: Registry[Callable[[HeadSpec, Sequence[keras.KerasTensor], HeadStart], keras.KerasTensor]] = Registry("head")


def add_head(
    features: keras.Model, spec: HeadSpec, start: HeadStart, endpoints: Sequence[Endpoint] = ()
) -> keras.Model:
    """Returns a network with a head on top.

    Args:
        features: A functional model from images to features `[B, F]`; its layers become the result's own.
        spec: Which head.
        start: How it starts.
        endpoints: Those that the head builds on, that of the finest stride first; none for the features.

    Returns:
        A functional model from images to float32 logits, whatever the dtype policy: `[B, C]`, or `[B, H, W, C]` of a
        head with an answer for each pixel.

    Raises:
        ValueError: If there are fewer than two classes, the network has a layer of the head's name, or lacks what the
            head builds on.
    """
    if spec.classes < 2:
        raise ValueError(f"A head needs at least 2 classes. Received: {spec.classes}.")
    taken = {layer.name for layer in features.layers} & {HEAD_NAME, f"{HEAD_NAME}_dropout"}
    if taken:
        raise ValueError(
            f"The backbone has a layer named {sorted(taken)[0]!r}, which is what the head of a task is called. Give "
            "that layer another name."
        )
    tensors = [features.get_layer(endpoint.layer).output for endpoint in endpoints] or [features.output]
    logits = HEADS[spec.kind](spec, tensors, start)
    return keras.Model(features.input, logits, name=features.name)
