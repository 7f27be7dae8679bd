"""Endpoints: the tensors of a network that dense tasks build on, one for each stride.

Such a tensor is one that every path from the images to the features passes, and the last one of its stride. So it has
seen all that the network computes at that size, and nothing goes around it.
"""

import dataclasses
import math
from collections import Counter

import keras

from piggyback_tf.backbones.paths import calls_of, canonical_names


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


def find_endpoints(model: keras.Model) -> tuple[Endpoint, ...]:
    """Returns the endpoints of a network, that of the smallest stride first.

    Args:
        model: A functional model from images `[B, H, W, 3]` of a fixed size. A model inside of it counts as one layer.
    """
    calls, names = calls_of(model), canonical_names(model)
    times_called = Counter(id(call.operation) for call in calls)
    last_use = {id(tensor): place for place, call in enumerate(calls) for tensor in call.input_tensors}
    image_height = model.input_shape[1]
    found: dict[int, Endpoint] = {}
    alive: set[int] = set()
    for place, call in enumerate(calls):
        alive = {tensor for tensor in alive if last_use[tensor] > place}
        alive |= {id(tensor) for tensor in call.output_tensors if id(tensor) in last_use}
        name = names.get(id(call.operation))
        if len(alive) != 1 or name is None or times_called[id(call.operation)] > 1 or not call.input_tensors:
            continue
        (tensor,) = call.output_tensors
        # A border of zeros is for the convolution behind it, which makes the feature map smaller.
        if len(tensor.shape) == 4 and not isinstance(call.operation, keras.layers.ZeroPadding2D):
            height, width, channels = tensor.shape[1:]
            stride = 2 ** round(math.log2(image_height / height))
            found[stride] = Endpoint(name, stride, height, width, channels)
    return tuple(found[stride] for stride in sorted(found))
