"""The boundaries between the stages of a network, where methods put something in."""

import abc
from typing import Any

import keras

from piggyback_tf.backbones import is_container, named_layers


class StageInsertion(abc.ABC):
    """Calls the layers of a network, and puts something into it at its stage boundaries.

    These are the inputs of strided layers behind the first kernel, and the features.

    Attributes:
        boundaries: What the network computes there, with what was put in.
    """

    def __init__(self) -> None:
        # By the id of a tensor: those that a kernel was used for, and what strided layers see in their place.
        self._learned: dict[int, keras.KerasTensor] = {}
        self._replaced: dict[int, keras.KerasTensor] = {}
        self.boundaries: list[keras.KerasTensor] = []

    @abc.abstractmethod
    def inserted(self, tensor: keras.KerasTensor, number: int) -> keras.KerasTensor:
        """Returns what takes the place of a tensor, `[B, H, W, C]` or `[B, F]`.

        Args:
            tensor: What the network computes at a boundary.
            number: Of the boundary, from 0.
        """

    def __call__(self, layer: Any, *args: Any, **kwargs: Any) -> Any:
        if _is_strided(layer) and id(args[0]) in self._learned:
            args = (self._at_boundary(args[0]), *args[1:])
        outputs = layer(*args, **kwargs)
        has_kernel = isinstance(layer, keras.Layer) and any(len(weight.shape) > 1 for weight in layer.weights)
        if has_kernel or any(id(tensor) in self._learned for tensor in keras.tree.flatten((args, kwargs))):
            self._learned |= {id(tensor): tensor for tensor in keras.tree.flatten(outputs)}
        return outputs

    def finish(self, features: keras.KerasTensor) -> keras.KerasTensor:
        """Returns the features of the network, `[B, F]`, with what is put in there."""
        return self._at_boundary(features)

    def _at_boundary(self, tensor: keras.KerasTensor) -> keras.KerasTensor:
        """Returns a boundary with what is put in; the same for all strided layers behind it."""
        if id(tensor) not in self._replaced:
            replaced = self.inserted(tensor, len(self.boundaries))
            self.boundaries.append(replaced)
            # Both are kept, so that no other tensor gets their ids.
            self._learned |= {id(tensor): tensor, id(replaced): replaced}
            self._replaced |= {id(tensor): replaced}
        return self._replaced[id(tensor)]


def check_stages(model: keras.Model, method: str, what: str) -> None:
    """Refuses networks in which nothing can be put between the stages.

    Args:
        model: The network.
        method: Name of the method, for the error.
        what: What it puts there.

    Raises:
        ValueError: If a model is nested in the network, or its channels come first.
    """
    nested = next(filter(is_container, model.layers), None)
    if nested is not None:
        raise ValueError(
            f"{method} puts {what} between the layers of one functional model; {nested.name!r} "
            f"({type(nested).__name__}) is nested in it. Use another backbone, or another method."
        )
    for path, layer in named_layers(model):
        if getattr(layer, "data_format", None) == "channels_first":
            raise ValueError(f"{method} needs data_format='channels_last'; layer {path!r} has 'channels_first'.")


def _is_strided(layer: Any) -> bool:
    return isinstance(layer, keras.layers.Layer) and max(getattr(layer, "strides", (1,))) > 1
