"""From a network to a masked network in one call."""

import dataclasses
import fnmatch
from collections.abc import Sequence

import keras
import numpy as np

from piggyback_tf.backbones import Backbone
from piggyback_tf.backbones.layer_settings import changed_kernel
from piggyback_tf.backbones.paths import copy_weights, is_batch_norm, is_container, named_layers, named_variables
from piggyback_tf.masking.layers import MASKED_LAYERS, MaskedLayer
from piggyback_tf.settings.masks import MaskConfig
from piggyback_tf.settings.methods.base import check_norm
from piggyback_tf.surgery import TrainedNorm, check_has_batch_norm, copy_layers, foreign_kernels, share_variables

# So many layers a message names.
_NAMED = 10


@dataclasses.dataclass(frozen=True)
class MaskedWeight:
    """One masked weight of a model: its layer, the name of the weight in it, and its real-valued mask."""

    layer: MaskedLayer
    weight: str
    mask_real: keras.Variable

    def read(self) -> np.ndarray:
        """Returns the thresholded mask as an int8 array of the kernel's shape."""
        return self.layer.masks()[self.weight]


def mask(
    model: keras.Model,
    config: MaskConfig | None = None,
    *,
    include: str | Sequence[str] = "*",
    exclude: str | Sequence[str] = (),
    norm: str = "frozen",
    norm_statistics: str = "frozen",
    norm_momentum: float = 0.9,
) -> keras.Model:
    """Returns a masked model that shares the variables of `model`.

    Every Dense, Conv2D, DepthwiseConv2D, SeparableConv2D and Conv2DTranspose is replaced by its masked layer, nested
    models included. Nothing of the base is trainable in the result, and `model` stays as it was, its trainable flags
    too. With `init="constant"` the masked model computes at first what `model` computes, bit for bit.

    Args:
        model: A built functional or sequential model.
        config: The masks' settings; `MaskConfig()` if None.
        include: Shell pattern or patterns of canonical layer paths; the layers that get a mask.
        exclude: Pattern or patterns of layers that get none although `include` matches.
        norm: `"frozen"` keeps batch norm as in the base, in inference mode. `"task"` gives every batch norm layer
            variables of its own, starting at the base's, trained with the masks.
        norm_statistics: With `norm="task"`, `"frozen"` trains gamma and beta, and `"task"` lets mean and variance
            follow the task's batches, too (section 5.3 of the paper).
        norm_momentum: Momentum of the statistics with `norm_statistics="task"`. The 0.99 or 0.999 of most pretrained
            networks never catch up on a small data set.

    Returns:
        A model of the same structure with masked layers under their canonical names.

    Raises:
        ValueError: If the model is neither functional nor sequential or is not built, if a layer that `include`
            matches has weights of a kind that cannot be masked, is quantised or has LoRA enabled, if a pattern matches
            nothing, if there is no batch norm to train, or if a setting is not valid.
    """
    config = MaskConfig() if config is None else config
    if not isinstance(config, MaskConfig):
        raise ValueError(f"`config` must be a piggyback_tf.MaskConfig. Received: {config!r}.")
    trained_norm = TrainedNorm(norm_statistics, norm_momentum)
    check_norm(norm)
    _check_model(model)
    paths = {id(layer): path for path, layer in named_layers(model)}
    chosen = _choose_layers(model, _as_patterns(include), _as_patterns(exclude))
    if norm == "task":
        check_has_batch_norm(model)

    def settings_of(layer: keras.Layer) -> tuple[type[keras.Layer], dict]:
        if id(layer) in chosen:
            # Keras users freeze a base with `trainable = False`; its masks are to be learned all the same.
            return MASKED_LAYERS[type(layer)], {"mask": dataclasses.asdict(config), "trainable": True}
        if norm == "task" and is_batch_norm(layer):
            return trained_norm.settings_of(layer)
        return type(layer), {"trainable": False}

    masked, copies = copy_layers(model, settings_of)
    for copy, layer in copies:
        if norm == "task" and is_batch_norm(layer):
            copy_weights(layer, copy)
            continue
        share_variables(copy, layer)
        if isinstance(copy, MaskedLayer):
            copy.initialise_masks(paths[id(layer)])
    return masked


def share(model: keras.Model) -> keras.Model:
    """Returns a model of the same structure over the same variables, in which nothing is trainable.

    Args:
        model: A built functional or sequential model; not changed.

    Raises:
        ValueError: If the model is neither functional nor sequential, is masked already, or is not built.
    """
    _check_model(model)
    shared, copies = copy_layers(model, lambda layer: (type(layer), {"trainable": False}))
    for copy, layer in copies:
        share_variables(copy, layer)
    return shared


def masked_weights(model: keras.Model) -> dict[str, MaskedWeight]:
    """Returns the masked weights of a model by canonical path, such as `"conv1/kernel"`, in layer order."""
    found = {}
    for path, layer in named_layers(model):
        if isinstance(layer, MaskedLayer):
            for weight, mask_real in layer.mask_variables.items():
                found[f"{path}/{weight}"] = MaskedWeight(layer, weight, mask_real)
    return found


def maskable_weights(model: keras.Model) -> dict[str, keras.Layer]:
    """Returns the weights of a network that can have a mask: by canonical path, in layer order, the weight's layer."""
    weights = named_variables(model)
    return {
        f"{path}/{weight}": layer
        for path, layer in named_layers(model)
        if type(layer) in MASKED_LAYERS and not changed_kernel(layer)
        for weight in MASKED_LAYERS[type(layer)].MASKED_WEIGHTS
        if f"{path}/{weight}" in weights
    }


def read_masks(model: keras.Model) -> dict[str, np.ndarray]:
    """Returns the thresholded masks of a masked model.

    Returns:
        A dict from the weight's canonical path to an int8 array of the kernel's shape, with values {0, 1} for binary
        and {-1, 0, 1} for ternary masks.
    """
    return {path: weight.read() for path, weight in masked_weights(model).items()}


def mask_config(model: keras.Model) -> MaskConfig | None:
    """Returns the settings of a model's masks, or None if it has no masked layer."""
    weights = masked_weights(model)
    return next(iter(weights.values())).layer.mask_config if weights else None


def _as_patterns(patterns: str | Sequence[str]) -> tuple[str, ...]:
    return (patterns,) if isinstance(patterns, str) else tuple(patterns)


def _check_model(model: keras.Model) -> None:
    if isinstance(model, str):
        raise ValueError(
            f"A Keras model is masked, not its name: {model!r}. Load it first, as in "
            f"piggyback_tf.mask(piggyback_tf.load_backbone({model!r}).model)."
        )
    if isinstance(model, Backbone):
        raise ValueError(f"A Keras model is masked; that of backbone {model.name!r} is its attribute `model`.")
    if not isinstance(model, keras.Layer):
        raise ValueError(f"Only a Keras model can be masked. Received: {model!r}.")
    if not is_container(model):
        raise ValueError(
            f"Only functional and sequential models can be masked; {type(model).__name__} {model.name!r} is neither."
        )
    if not model.built:
        raise ValueError(f"Model {model.name!r} is not built. Give it an Input layer or call it once.")
    masked = [path for path, layer in named_layers(model) if isinstance(layer, MaskedLayer)]
    if masked:
        raise ValueError(f"Model {model.name!r} is masked already, for example its layer {masked[0]!r}.")


def _choose_layers(model: keras.Model, include: tuple[str, ...], exclude: tuple[str, ...]) -> set[int]:
    """Returns the ids of the layers to mask; names the layers that are asked for and cannot be."""
    layers = dict(named_layers(model))
    for pattern in (*include, *exclude):
        if not fnmatch.filter(layers, pattern):
            maskable = [path for path, layer in layers.items() if type(layer) in MASKED_LAYERS]
            raise ValueError(
                f"No layer of model {model.name!r} matches the pattern {pattern!r}. Of the {len(maskable)} that can be "
                f"masked the first are {maskable[:_NAMED]}; `summary(expand_nested=True)` shows all."
            )

    def matches(path: str, patterns: tuple[str, ...]) -> bool:
        return any(fnmatch.fnmatchcase(path, pattern) for pattern in patterns)

    wanted = {path: layer for path, layer in layers.items() if matches(path, include) and not matches(path, exclude)}
    if foreign := foreign_kernels(wanted, MASKED_LAYERS):
        raise ValueError(
            f"These layers have kernels of a kind that cannot be masked: {foreign}. Masks exist for "
            f"{', '.join(kind.__name__ for kind in MASKED_LAYERS)}; leave other layers out with `exclude`."
        )
    chosen = {id(layer) for layer in wanted.values() if type(layer) in MASKED_LAYERS}
    if not any(type(layer) in MASKED_LAYERS for layer in layers.values()):
        raise ValueError(
            f"Model {model.name!r} has no layer with a kernel that can be masked; masks exist for "
            f"{', '.join(kind.__name__ for kind in MASKED_LAYERS)}."
        )
    if not chosen:
        raise ValueError(f"No layer of model {model.name!r} that can be masked matches {include} without {exclude}.")
    return chosen
