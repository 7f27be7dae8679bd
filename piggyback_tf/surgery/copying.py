"""Copies of networks with other layers."""

from collections.abc import Callable
from typing import Any

import keras

from piggyback_tf.backbones.paths import (
    NESTED,
    copy_weights,
    finalize_layers,
    is_batch_norm,
    layer_weights,
    named_layers,
)
from piggyback_tf.foreign_text import one_line
from piggyback_tf.surgery.batch_norm import FrozenStatisticsBatchNormalization, TrainedNorm
from piggyback_tf.surgery.kernels import KERNELS, DerivedKernels, check_kernel

# Layers with vocabularies, which Keras keeps in tables and not in weights.
_WITH_TABLES = (
    keras.layers.TextVectorization,
    keras.layers.StringLookup,
    keras.layers.IntegerLookup,
)


Settings = Callable[[keras.Layer], tuple[type[keras.Layer], dict[str, Any]]]


class LayerCopier:
    """Copies the layers of a model, each once, under its canonical name.

    Args:
        model: The model whose layers are copied.
        settings_of: Returns the class of a layer's copy and what is changed in its config.

    Attributes:
        copies: All pairs of a copy and the layer it stands for, so far.
    """

    def __init__(self, model: keras.Model, settings_of: Settings):
        self._settings_of = settings_of
        self._names = {id(layer): path for path, layer in named_layers(model)}
        self._inside = {id(layer) for layer in model.layers}
        self._of: dict[int, Any] = {}
        self.copies: list[tuple[keras.Layer, keras.Layer]] = []

    def copy(self, layer: Any, *, flat: bool = False) -> Any:
        """Returns the copy of a layer, or of an operation such as `a + b`.

        Args:
            layer: One of the model, or of a model within it.
            flat: Whether all copies come to stand in one model, so that their names are the whole paths.

        Raises:
            ValueError: If it cannot be copied.
        """
        if id(layer) not in self._of:
            self._of[id(layer)] = self._copied(layer, flat)
        return self._of[id(layer)]

    def _copied(self, layer: Any, flat: bool) -> Any:
        if not isinstance(layer, keras.Layer):
            # One that two graphs share would keep both of them alive.
            return type(layer).from_config(layer.get_config())
        kind, changes = self._settings_of(layer)
        path = self._names[id(layer)]
        # Of a layer of a model within the model the path has the names of both.
        name = path.replace("/", NESTED) if flat or id(layer) in self._inside else path.rpartition("/")[2]
        if issubclass(kind, DerivedKernels):
            check_kernel(layer)
        if kind is keras.layers.Lambda:
            # Its function is here; its config would have to be trusted as if it came from a file.
            return _copy_lambda(layer, {"name": name, **changes})
        if tables := next((each for each in type(layer).__mro__ if each in _WITH_TABLES), None):
            raise ValueError(
                f"Layer {layer.name!r} ({tables.__name__}) keeps what it was adapted to outside of its weights, so "
                "that a copy of the network would be without it. Call it before the network, as a step of the data, "
                "and give the network its results."
            )
        try:
            # A base class is told nothing of what its subclass added to the config.
            config = kind.get_config(layer) if isinstance(layer, kind) else layer.get_config()
            copy = kind.from_config({**config, "name": name, **changes})
        except Exception as error:  # A layer of somebody else's may raise anything.
            raise ValueError(
                f"Layer {layer.name!r} ({type(layer).__name__}) cannot be copied: {one_line(error)} The copy is made "
                "of what `get_config` returns, by `from_config`; a class of your own needs both for the arguments of "
                "its constructor."
            ) from error
        self.copies.append((copy, layer))
        return copy


def copy_layers(
    model: keras.Model,
    settings_of: Settings,
    call_function: Callable[..., Any] | None = None,
) -> tuple[keras.Model, list[tuple[keras.Layer, keras.Layer]]]:
    """Rebuilds a model with other layers.

    Args:
        model: The model to rebuild; its layers' canonical names become the names of the copies.
        settings_of: Returns the class of a layer's copy and what is changed in its config.
        call_function: As of `keras.models.clone_model`: calls a copy, and can so put layers before or behind it; not
            for sequential models.

    Returns:
        The new model, and all pairs of a copy and the layer it stands for.

    Raises:
        ValueError: If a layer cannot be copied.
    """
    copier = LayerCopier(model, settings_of)
    copied = keras.models.clone_model(model, clone_function=copier.copy, call_function=call_function, recursive=True)
    return copied, copier.copies


def _copy_lambda(layer: keras.layers.Lambda, changes: dict[str, Any]) -> keras.layers.Lambda:
    """Returns a layer of the same function."""
    return keras.layers.Lambda(
        layer.function,
        output_shape=layer._output_shape,
        mask=layer.mask,
        arguments=layer.arguments,
        **{**keras.Layer.get_config(layer), **changes},
    )


def copy_of_base(model: keras.Model, norm: TrainedNorm | None = None) -> keras.Model:
    """Returns a trainable copy of a network with the same weights and nothing shared.

    Args:
        model: The network to copy; not changed.
        norm: How batch norm is trained; None keeps it in inference mode.
    """

    def settings_of(layer: keras.Layer) -> tuple[type[keras.Layer], dict[str, Any]]:
        if not is_batch_norm(layer):
            return type(layer), {"trainable": True}
        return norm.settings_of(layer) if norm else (type(layer), {"trainable": False})

    copy, _ = copy_layers(model, settings_of)
    copy_weights(model, copy)
    return copy


def bake_kernels(model: keras.Model) -> keras.Model:
    """Returns a copy of a model that has Keras' own layers in place of those with derived kernels or frozen statistics.

    Args:
        model: A model that shares no variables with its copy; it is not changed.
    """

    def settings_of(layer: keras.Layer) -> tuple[type[keras.Layer], dict[str, Any]]:
        if isinstance(layer, FrozenStatisticsBatchNormalization):
            return keras.layers.BatchNormalization, {}
        if not isinstance(layer, DerivedKernels):
            return type(layer), {}
        return next(kind for kind in type(layer).__mro__ if kind in KERNELS), {}

    baked, copies = copy_layers(model, settings_of)
    for copy, layer in copies:
        values = layer_weights(layer)
        if isinstance(layer, DerivedKernels):
            values = {**values, **{name: getattr(layer, name) for name in layer.kernel_names}}
        for name, variable in layer_weights(copy).items():
            variable.assign(values[name])
    finalize_layers(baked)
    return baked
