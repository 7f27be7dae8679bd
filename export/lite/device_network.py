"""A base whose masks, and perhaps batch norm, are arguments of its forward pass."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from piggyback_tf.backbones import Backbone, named_layers
from piggyback_tf.backbones.paths import layer_weights
from piggyback_tf.masking import share
from piggyback_tf.packs import PackError, TaskPack

from .chains import followers
from .device_layers import DEVICE_LAYERS, DeviceLayer, DeviceNorm, Filter, Replacement, check_layer
from .mask_bytes import MaskCode
from .weights import Network


@dataclasses.dataclass(frozen=True)
class Layout:
    """What a task hands over to a model, and in which order.

    Attributes:
        code: How masks are written.
        filters: The masked kernels by path, each with its shape on the device.
        norms: The batch norm layers by path, each with its number of channels; none if all tasks have the base's.
        classes: For how many classes the head is.
        features: How many features it takes.
        image_size: Side of the images in pixels.
        base_hash: The hash of the base.
        base_structure: The digest of what the base computes; None in models of before that was recorded.
    """

    code: MaskCode
    filters: Mapping[str, tuple[int, ...]]
    norms: Mapping[str, int]
    classes: int
    features: int
    image_size: int
    base_hash: str
    base_structure: str | None

    @property
    def mask_bytes(self) -> int:
        """Bytes of a mask; every kernel begins with a byte of its own."""
        return sum(self.code.length(int(np.prod(shape))) for shape in self.filters.values())

    @property
    def norm_length(self) -> int:
        """Numbers in `norm`: for each layer its factors, then its offsets."""
        return 2 * sum(self.norms.values())

    def to_json(self) -> dict[str, Any]:
        """Returns the layout as JSON values."""
        return {
            "bits": self.code.bits,
            "filters": [[path, list(shape)] for path, shape in self.filters.items()],
            "norms": [[path, channels] for path, channels in self.norms.items()],
            "classes": self.classes,
            "features": self.features,
            "image_size": self.image_size,
            "base_hash": self.base_hash,
        } | ({} if self.base_structure is None else {"base_structure": self.base_structure})

    def digest(self) -> str:
        """Returns a SHA-256 that is the same if what a task hands over means the same."""
        return hashlib.sha256(json.dumps(self.to_json(), separators=(",", ":")).encode()).hexdigest()


@dataclasses.dataclass(frozen=True)
class Changes:
    """What tasks may change in a model; the rest are constants of it, which is cheaper.

    Attributes:
        masked: The paths of the kernels that have masks.
        norm: Whether tasks have batch norm of their own.
        bits: Bits of a number of a mask; see `MaskCode`.
        classes: For how many classes heads are.
    """

    masked: frozenset[str]
    norm: bool
    bits: int
    classes: int

    @classmethod
    def of(cls, packs: Sequence[TaskPack], max_classes: int | None = None) -> "Changes":
        """Returns what these tasks change, with room for `max_classes`, or as many as the largest task has if None."""
        return cls(
            masked=frozenset(path for pack in packs for path in pack.masks),
            norm=any(pack.norm for pack in packs),
            bits=2 if any(pack.mask_kind == "ternary" for pack in packs) else 1,
            classes=max(len(pack.class_names) for pack in packs) if max_classes is None else max_classes,
        )

    def check(self, pack: TaskPack) -> None:
        """Checks that a task changes no more than that.

        Raises:
            PackError: If it does.
        """
        own, task = Changes.of([pack]), f"Task {pack.task!r}"
        if own.classes > self.classes:
            raise PackError(f"{task} has {own.classes} classes, and the model has room for {self.classes}.")
        if more := sorted(own.masked - self.masked):
            raise PackError(f"{task} has a mask for {more[0]!r}, which is a constant of the model; export it anew.")
        if own.norm > self.norm:
            raise PackError(f"{task} has batch norm of its own, which is constant in the model; export it anew.")
        if own.bits > self.bits:
            raise PackError(f"{task} has ternary masks, and the model takes binary ones; export it anew.")


class DeviceNetwork:
    """A base with the layers that tasks change in a form that devices compute fast.

    Args:
        backbone: The base; not changed.
        changes: What tasks may change.
        base_structure: The digest of what the base computes, which becomes a part of the layout; None for models of
            before that was recorded.

    Attributes:
        layout: What tasks hand over.
        variables: The variables that stand for what tasks change, in order; their values are not used.

    Raises:
        ValueError: If a layer cannot be exported.
    """

    def __init__(self, backbone: Backbone, changes: Changes, base_structure: str | None):
        self._network, self._changes = Network.of(backbone), changes
        self._model, layers, self._norms = _rebuild(backbone.model, changes, self._network)
        self._filters = [(layer, each) for layer in layers for each in layer.filters]
        norms = self._network.norms if changes.norm else {}
        self.layout = Layout(
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
        code, values, start = self.layout.code, [], 0
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
        # Within the scope Keras reads these tensors in the place of the variables.
        with keras.StatelessScope(state_mapping=mapping):
            return tf.cast(self._model(images, training=False), tf.float32)

    def mask_of(self, pack: TaskPack) -> np.ndarray:
        """Returns a task's mask, uint8 `[mask_bytes]`; kernels that it does not mask are kept whole."""
        parts = []
        for _, filter_ in self._filters:
            shape = self._network.kernels[filter_.path].shape
            mask = pack.mask(filter_.path) if filter_.path in pack.masks else np.ones(shape, np.int8)
            parts.append(self.layout.code.write(filter_.arrange(mask)))
        return np.concatenate(parts) if parts else np.zeros(0, np.uint8)

    def norm_of(self, pack: TaskPack) -> np.ndarray:
        """Returns a task's batch norm as factors and offsets, float32 `[norm_length]`."""
        weights = self._network.weights | pack.norm
        layers = [self._network.norms[path] for path in self.layout.norms]
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
        offset = weights[layer.bias_path] if layer.bias_path else np.float32(0)
        if layer.norm:
            norm = self._network.norms[layer.norm]
            offset = offset * norm.factor(weights) + norm.offset(weights)
        return offset

    def _split_norm(self, norm: tf.Tensor | None) -> tuple[dict[str, tf.Tensor], dict[str, tf.Tensor]]:
        """Returns the factors and the offsets of each batch norm layer by path."""
        factors, offsets, start = {}, {}, 0
        for path, channels in self.layout.norms.items():
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
        check_layer(layer, path)
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
