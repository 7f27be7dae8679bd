"""Endpoints: the tensors of a network that dense tasks build on, one for each stride.

Such a tensor is one that every path from the images to the features passes, and the last one of its stride. So it has
seen all that the network computes at that size, and nothing goes around it.
"""

import dataclasses
import math
from collections import Counter
from collections.abc import Collection, Sequence

import keras

from piggyback_tf.backbones.paths import calls_of, canonical_names
from piggyback_tf.head_spec import padded_shape


@dataclasses.dataclass(frozen=True)
class Endpoint:
    """A tensor of a network.

    Attributes:
        layer: Canonical name of the layer whose output it is.
        stride: Pixels of the image to a place of the feature map, rounded to a power of 2: sizes need not halve.
        height: Of the feature map.
        width: Of the feature map.
        channels: Of the feature map.
    """

    layer: str
    stride: int
    height: int
    width: int
    channels: int


def find_endpoints(model: keras.Model, named: Collection[str] = ()) -> tuple[Endpoint, ...]:
    """Returns the endpoints of a network, that of the smallest stride first.

    Args:
        model: A functional model from images `[B, H, W, 3]` of a fixed size. A model inside of it counts as one layer.
        named: Canonical names of layers that are endpoints, whatever goes around them, of a network in which something
            does; the rule finds those of the other strides.
    """
    calls, names = calls_of(model), canonical_names(model)
    times_called = Counter(id(call.operation) for call in calls)
    last_use = {id(tensor): place for place, call in enumerate(calls) for tensor in call.input_tensors}
    found: dict[int, Endpoint] = {}
    chosen: dict[int, Endpoint] = {}
    alive: set[int] = set()
    for place, call in enumerate(calls):
        alive = {tensor for tensor in alive if last_use[tensor] > place}
        alive |= {id(tensor) for tensor in call.output_tensors if id(tensor) in last_use}
        name = names.get(id(call.operation))
        if name is None or times_called[id(call.operation)] > 1 or not call.input_tensors:
            continue
        if len(alive) != 1 and name not in named:
            continue
        (tensor,) = call.output_tensors
        # A border of zeros is for the convolution behind it, which makes the feature map smaller.
        if len(tensor.shape) == 4 and not isinstance(call.operation, keras.layers.ZeroPadding2D):
            endpoint = _endpoint(name, tensor, model)
            (chosen if name in named else found)[endpoint.stride] = endpoint
    found |= chosen
    return tuple(found[stride] for stride in sorted(found))


def layer_endpoint(model: keras.Model, layer: str) -> Endpoint | None:
    """Returns a layer of a network as an endpoint; None if it has no such layer, or that gives no feature map.

    Args:
        model: A functional model.
        layer: Canonical name of the layer.
    """
    tensor = _tensors(model).get(layer)
    return None if tensor is None or len(tensor.shape) != 4 else _endpoint(layer, tensor, model)


def endpoint_tensors(model: keras.Model, endpoints: Sequence[Endpoint]) -> list[keras.KerasTensor]:
    """Returns the tensors of a network, or of a copy of it, that endpoints name."""
    tensors = _tensors(model)
    return [tensors[endpoint.layer] for endpoint in endpoints]


def _tensors(model: keras.Model) -> dict[str, keras.KerasTensor]:
    """Returns the first output of every layer of a network by canonical name."""
    names, found = canonical_names(model), {}
    for call in calls_of(model):
        if id(call.operation) in names:
            found.setdefault(names[id(call.operation)], call.output_tensors[0])
    return found


def _endpoint(layer: str, tensor: keras.KerasTensor, model: keras.Model) -> Endpoint:
    height, width, channels = tensor.shape[1:]
    # Of the images as the network sees them.
    image_height, _ = padded_shape(model.input_shape[1:3])
    return Endpoint(layer, 2 ** round(math.log2(image_height / height)), height, width, channels)
