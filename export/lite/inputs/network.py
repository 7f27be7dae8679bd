"""A base whose masks, and perhaps batch norm, are arguments of its forward pass."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from piggyback_tf.backbones import Backbone, named_layers
from piggyback_tf.backbones.paths import is_container, layer_weights
from piggyback_tf.masking import share
from piggyback_tf.packs import TaskPack
from piggyback_tf.surgery import features_with

from ..weights import Network
from .input_format import Changes, InputFormat, MaskCode
from .layers import DEVICE_LAYERS, DeviceLayer, DeviceNorm, Filter, Replacement, check_device_layer


class DeviceNetwork:
    """A base with the layers that tasks change in a form that devices compute fast.

    Args:
        backbone: The base; not changed.
        changes: What tasks may change.
        base_structure: The digest of what the base computes, which becomes a part of the format; None for models of
            before that was recorded.

    Attributes:
        format: What tasks hand over.
        variables: The variables that stand for what tasks change, in order; their values are not used.

    Raises:
        ValueError: If a layer cannot be exported.
    """

    def __init__(self, backbone: Backbone, changes: Changes, base_structure: str | None):
        self._network, self._changes = Network.of(backbone), changes
        self._model, layers, self._norms = _rebuild(backbone.model, changes, self._network)
        self._filters = [(layer, each) for layer in layers for each in layer.filters]
        norms = self._network.norms if changes.norm else {}
        self.format = InputFormat(
            code=MaskCode(changes.bits),
            filters={filter_.path: filter_.shape for _, filter_ in self._filters},
            norms={path: norm.offset(self._network.weights).size for path, norm in norms.items()},
            classes=changes.classes,
            features=backbone.feature_dim,
            image_size=backbone.image_size,
            base_hash=backbone.hash,
            base_structure=base_structure,
        )
        offsets = [layer for layer in layers if layer.offset is not None]
        self._own_offsets = [layer for layer in offsets if changes.norm and layer.norm]
        self._constants = [(layer.offset, self._offset(layer)) for layer in offsets if layer not in self._own_offsets]
        others = (layer for _, layer in named_layers(self._model) if not isinstance(layer, Replacement))
        self._constants += [(variable, variable.numpy()) for layer in others for variable in layer.weights]
        self.variables = [
            *(filter_.variable for _, filter_ in self._filters),
            *(layer.offset for layer in self._own_offsets),
            *(variable for layer in self._norms for variable in (layer.factor, layer.offset)),
        ]

    def base_values(self) -> list[np.ndarray]:
        """Returns a value of every variable before a task was set, float32: kernels as they are in the file."""
        weights = [self._kernel(layer, filter_) for layer, filter_ in self._filters]
        return weights + [np.zeros(variable.shape, np.float32) for variable in self.variables[len(weights) :]]

    def values(self, mask: tf.Tensor | None, norm: tf.Tensor | None) -> list[tf.Tensor]:
        """Returns the value of every variable for a task.

        Args:
            mask: uint8 `[mask_bytes]`; None if that is 0.
            norm: float32 `[norm_length]`; None if that is 0.
        """
        factors, offsets = self._split_norm(norm)
        code, values, start = self.format.code, [], 0
        for layer, filter_ in self._filters:
            kernel = self._kernel(layer, filter_)
            length = code.length(kernel.size)
            value = code.expand(mask[start : start + length], filter_.shape) * kernel
            if self._changes.norm and layer.norm and filter_ is layer.filters[-1]:
                value *= tf.reshape(factors[layer.norm], filter_.channel_shape())
            values.append(value)
            start += length
        for layer in self._own_offsets:
            offset = offsets[layer.norm]
            if layer.bias_path:
                offset += factors[layer.norm] * self._network.weights[layer.bias_path]
            values.append(offset)
        for layer in self._norms:
            values += [factors[layer.norm], offsets[layer.norm]]
        return values

    def features(self, values: Sequence[tf.Tensor], images: tf.Tensor) -> tf.Tensor:
        """Returns features, float32 `[1, F]`.

        Args:
            values: The value of each of `variables`.
            images: float32 `[1, S, S, 3]`.
        """
        mapping = list(zip(self.variables, values, strict=True))
        mapping += [(variable, tf.constant(value)) for variable, value in self._constants]
        return features_with(self._model, mapping, images)

    def mask_of(self, pack: TaskPack) -> np.ndarray:
        """Returns a task's mask, uint8 `[mask_bytes]`; kernels that it does not mask are kept whole."""
        parts = []
        for _, filter_ in self._filters:
            shape = self._network.kernels[filter_.path].shape
            mask = pack.mask(filter_.path) if filter_.path in pack.masks else np.ones(shape, np.int8)
            parts.append(self.format.code.write(filter_.arrange(mask)))
        return np.concatenate(parts) if parts else np.zeros(0, np.uint8)

    def norm_of(self, pack: TaskPack) -> np.ndarray:
        """Returns a task's batch norm as factors and offsets, float32 `[norm_length]`."""
        weights = {**self._network.weights, **pack.norm}
        layers = [self._network.norms[path] for path in self.format.norms]
        parts = [part for layer in layers for part in (layer.factor(weights), layer.offset(weights))]
        return np.concatenate(parts) if parts else np.zeros(0, np.float32)

    def _kernel(self, layer: DeviceLayer, filter_: Filter) -> np.ndarray:
        """Returns a kernel of the base on the device, with the batch norm that is the same for all tasks."""
        kernel = filter_.arrange(self._network.weights[filter_.path])
        if self._changes.norm or not layer.norm or filter_ is not layer.filters[-1]:
            return kernel
        factor = self._network.norms[layer.norm].factor(self._network.weights)
        return kernel * factor.reshape(filter_.channel_shape())

    def _offset(self, layer: DeviceLayer) -> np.ndarray:
        """Returns what is added to a layer's result for every task."""
        weights = self._network.weights
        offset = weights[layer.bias_path] if layer.bias_path else np.zeros((), np.float32)
        if layer.norm:
            norm = self._network.norms[layer.norm]
            offset = offset * norm.factor(weights) + norm.offset(weights)
        return offset

    def _split_norm(self, norm: tf.Tensor | None) -> tuple[dict[str, tf.Tensor], dict[str, tf.Tensor]]:
        """Returns the factors and the offsets of each batch norm layer by path."""
        factors, offsets, start = {}, {}, 0
        for path, channels in self.format.norms.items():
            factors[path], offsets[path] = (norm[start + i * channels :][:channels] for i in range(2))
            start += 2 * channels
        return factors, offsets


def _rebuild(
    model: keras.Model, changes: Changes, network: Network
) -> tuple[keras.Model, list[DeviceLayer], list[DeviceNorm]]:
    """Returns a model with device layers in the place of those that tasks change, and these layers in order."""
    # A copy over the same variables, whose graph is no one else's.
    copy = share(model)
    follower = followers(copy)
    paths = {id(layer): path for path, layer in named_layers(copy)}
    new: dict[int, keras.Layer] = {}
    for path, layer in named_layers(copy):
        if id(layer) in new or changes.masked.isdisjoint(f"{path}/{name}" for name in layer_weights(layer)):
            continue
        check_device_layer(layer, path)
        norm = after = None
        end = layer
        if _is_linear(layer) and _can_fold(follower.get(id(layer)), layer):
            end = follower[id(layer)]
            norm = paths[id(end)]
            new[id(end)] = Replacement(name=end.name)
        if _is_linear(layer) and _is_rectifier(follower.get(id(end))):
            after = follower[id(end)]
            new[id(after)] = Replacement(name=after.name)
        new[id(layer)] = DEVICE_LAYERS[type(layer)](layer, path, norm, after)
    if changes.norm:
        for path, layer in named_layers(copy):
            if path in network.norms and id(layer) not in new:
                new[id(layer)] = DeviceNorm(layer, path)
    found = list(new.values())
    rebuilt = keras.models.clone_model(copy, clone_function=lambda layer: new.get(id(layer), layer), recursive=True)
    return rebuilt, *([layer for layer in found if isinstance(layer, kind)] for kind in (DeviceLayer, DeviceNorm))


def _is_linear(layer: keras.Layer) -> bool:
    return getattr(layer, "activation", None) in (None, keras.activations.linear)


def _can_fold(norm: Any, layer: keras.Layer) -> bool:
    """Returns whether a layer is batch norm over the channels of the one before."""
    if type(norm) is not keras.layers.BatchNormalization or norm.compute_dtype != "float32":
        return False
    return norm.axis in (-1, len(layer.output.shape) - 1)


def _is_rectifier(layer: Any) -> bool:
    """Returns whether LiteRT can compute a layer as a part of the addition before it."""
    if isinstance(layer, keras.layers.Activation):
        return layer.activation in (keras.activations.relu, keras.activations.relu6)
    return type(layer) is keras.layers.ReLU


def followers(model: keras.Model) -> dict[int, keras.Layer]:
    """Returns for a layer the one that alone reads its result, by the first one's `id`.

    Both are called once, in the same model or nested model, and no one else reads what the first one returns.

    Args:
        model: A functional or sequential model whose layers belong to no other model.
    """
    pairs, calls = [], Counter()
    for container in _containers(model):
        readers: dict[int, list[keras.Layer]] = {}
        # What a model returns has a reader outside.
        ends = {id(tensor._keras_history.operation) for tensor in container.outputs}
        for layer in container.operations:
            # Keras has no public list of who is called on what; the model has been made anew, so all nodes are its own.
            for node in layer._inbound_nodes:
                calls[id(layer)] += 1
                for parent in node.parent_nodes:
                    readers.setdefault(id(parent.operation), []).append(layer)
        by_id = {id(layer): layer for layer in container.operations}
        pairs += [(by_id[key], found[0]) for key, found in readers.items() if len(found) == 1 and key not in ends]
    return {id(first): second for first, second in pairs if calls[id(first)] == calls[id(second)] == 1}


def _containers(model: keras.Model) -> Iterator[keras.Function]:
    """Yields the graphs of a model and of all models in it, each as often as it occurs."""
    # The layers of a sequential model have their nodes in a functional one within it.
    yield model._functional if isinstance(model, keras.Sequential) else model
    for layer in model.layers:
        if is_container(layer):
            yield from _containers(layer)
