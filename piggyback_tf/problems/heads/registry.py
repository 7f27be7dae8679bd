"""All heads, and how one is put on a network."""

import dataclasses
from collections.abc import Callable, Sequence

import keras
import tensorflow as tf

from piggyback_tf.backbones import Backbone
from piggyback_tf.backbones.endpoints import Endpoint, endpoint_tensors
from piggyback_tf.head_spec import HeadSpec
from piggyback_tf.problems.heads.start import HeadStart
from piggyback_tf.registry import Registry

# Of the layer, or the model, whose weights a task's head are: their paths begin with it.
HEAD_NAME = "head"


def is_head(path: str) -> bool:
    """Whether a canonical path is that of a variable of the head."""
    return path.startswith(f"{HEAD_NAME}/")


@dataclasses.dataclass(frozen=True)
class Head:
    """A kind of head.

    Attributes:
        build: Returns logits of a spec, tensors of a network, and how the head starts.
        read: Returns the spec of a layer that is a head of this kind for images of a size, None of any other.
        network: Returns the network of a backbone for the images of a spec, over the same variables, and what the head
            builds on, the finest first; None where it builds on the features of the backbone as it is. It raises
            `ValueError` where there is nothing to build on.
        fewest_classes: How many classes it needs.
        parts: The names of the layers whose outputs, side by side, are the logits; none where one layer makes them.
        answers: Returns what devices are told of each part, by name, of the outputs of these layers and the spec; None
            where there are no parts, and devices take the logits.
    """

    build: Callable[[HeadSpec, Sequence[keras.KerasTensor], HeadStart], keras.KerasTensor]
    read: Callable[[keras.Layer, tuple[int, int]], HeadSpec | None]
    network: Callable[[Backbone, HeadSpec], tuple[keras.Model, tuple[Endpoint, ...]]] | None = None
    fewest_classes: int = 2
    parts: tuple[str, ...] = ()
    answers: Callable[[Sequence[tf.Tensor], HeadSpec], dict[str, tf.Tensor]] | None = None


HEADS: Registry[Head] = Registry("head")


def network_for(backbone: Backbone, spec: HeadSpec) -> tuple[Backbone, tuple[Endpoint, ...]]:
    """Returns a backbone for the images of a head, over the same variables, and the endpoints that the head builds on.

    Raises:
        ValueError: If the network cannot take images of that size, or has no endpoints.
    """
    build = HEADS[spec.kind].network
    if build is None:
        return backbone, ()
    model, endpoints = build(backbone, spec)
    return dataclasses.replace(backbone, model=model), endpoints


def cropped(logits: keras.KerasTensor, spec: HeadSpec) -> keras.KerasTensor:
    """Returns what belongs to the image of logits for what the network saw; see `HeadSpec.padded_shape`."""
    assert spec.image_shape is not None
    below, right = (there - side for there, side in zip(spec.padded_shape, spec.image_shape, strict=True))
    if not (below or right):
        return logits
    return keras.layers.Cropping2D(((0, below), (0, right)), dtype="float32", name="crop")(logits)


def read_spec(model: keras.Model) -> HeadSpec:
    """Returns the spec of the head of a task's model.

    Raises:
        ValueError: If it has none of these.
    """
    found = [layer for layer in model.layers if layer.name == HEAD_NAME]
    shape, kinds = tuple(model.input_shape[1:3]), [HEADS[name] for name in HEADS.names()]
    specs = [spec for layer in found for kind in kinds if (spec := kind.read(layer, shape)) is not None]
    if not specs:
        raise ValueError(f"Model {model.name!r} has no head of a task.")
    return specs[0]


def features_of(model: keras.Model, endpoints: Sequence[Endpoint] = ()) -> keras.Model:
    """Returns a model from images to features `[B, F]`: what a head gets, of endpoints the means of the coarsest.

    Args:
        model: A network, with a head or without.
        endpoints: Those that the head builds on; none for the features.
    """
    if endpoints:
        features = keras.ops.mean(endpoint_tensors(model, endpoints)[-1], axis=(1, 2))
    else:
        head = {layer.name: layer for layer in model.layers}.get(HEAD_NAME)
        features = model.output if head is None else head.input
    return keras.Model(model.input, features)


def add_head(
    features: keras.Model, spec: HeadSpec, start: HeadStart | None = None, endpoints: Sequence[Endpoint] = ()
) -> keras.Model:
    """Returns a network with a head on top.

    Args:
        features: A functional model from images to features `[B, F]`; its layers become the result's own.
        spec: Which head.
        start: How it starts; `HeadStart()` if None.
        endpoints: Those that the head builds on, that of the finest stride first; none for the features.

    Returns:
        A functional model from images to float32 logits, whatever the dtype policy: `[B, C]`, or `[B, H, W, C]` of a
        head with an answer for each pixel, and `[B, h, w, C + 4]` of one for boxes.

    Raises:
        ValueError: If there are too few classes, the network has a layer of the head's name, or lacks what the
            head builds on.
    """
    if spec.classes < (fewest := HEADS[spec.kind].fewest_classes):
        raise ValueError(f"A head of kind {spec.kind!r} needs at least {fewest} classes. Received: {spec.classes}.")
    taken = {layer.name for layer in features.layers} & {HEAD_NAME, f"{HEAD_NAME}_dropout"}
    if taken:
        raise ValueError(
            f"The backbone has a layer named {sorted(taken)[0]!r}, which is what the head of a task is called. Give "
            "that layer another name."
        )
    tensors = endpoint_tensors(features, endpoints) or [features.output]
    logits = HEADS[spec.kind].build(spec, tensors, start or HeadStart())
    return keras.Model(features.input, logits, name=features.name)
