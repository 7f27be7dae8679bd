"""From a trained Keras model to the arrays of a task pack."""

from collections.abc import Collection, Iterable
from typing import Any

import keras
import numpy as np

from piggyback_tf.backbones import Backbone
from piggyback_tf.backbones.paths import batch_norm_paths, is_container, named_layers, named_variables
from piggyback_tf.data import DataError, parse_augment
from piggyback_tf.data.augment import chain_size, check_draws_nothing, check_final_size
from piggyback_tf.head_spec import DENSE, HeadSpec
from piggyback_tf.masking import mask_config, masked_weights, read_masks
from piggyback_tf.packs.arrays import TaskArrays
from piggyback_tf.packs.base_fit import check_head_shapes
from piggyback_tf.packs.bits import MaskBits, pack_bits
from piggyback_tf.packs.container import PackError
from piggyback_tf.packs.parts import VECTOR, part_name
from piggyback_tf.problems import HEAD_NAME, HeadNetwork, is_head, read_spec
from piggyback_tf.surgery import DerivedKernels, PartlyTrainedBatchNormalization


def capture(model: keras.Model, backbone: Backbone) -> dict[str, Any]:
    """Returns what a task model adds to its base.

    Args:
        model: The layers of the base, masked or not, and on its features a Dense layer named `"head"`, or what
            `add_head` put on its endpoints. They may be a model within it, as in `Sequential([masked, head])`.
        backbone: The frozen base.

    Returns:
        The fields `arrays`, `head_spec` and `threshold` of a `TaskPack`.

    Raises:
        PackError: If the model has no such head, lacks weights of the base, changed others than batch norm and
            vectors such as biases, or has weights that a pack cannot hold.
    """
    if not (isinstance(model, keras.Model) and is_container(model) and model.built):
        raise PackError(
            f"A task is taken out of a functional or sequential Keras model that is built. Received: {model!r}."
        )
    if not isinstance(backbone, Backbone):
        raise PackError(
            f"backbone must be a Backbone; Backbone.from_model makes one of a Keras model. Received: {backbone!r}."
        )
    base = backbone.model
    base_variables = named_variables(base)
    whole, model = model, _unwrapped(model, base_variables)
    variables = named_variables(model)
    norm_layers, layers = batch_norm_paths(base), dict(named_layers(model))
    norm_changed, norm, parts = set(), {}, _learned_parts(model)
    for path, base_variable in base_variables.items():
        layer = path.rpartition("/")[0]
        if path not in variables:
            raise PackError(
                f"The model lacks the base's weight {path!r}, or has its layer under another name. A task's model is "
                "made of piggyback_tf.mask(backbone.model), or of the layers of backbone.model under their names."
            )
        # A masked model reads the base's storage, and there is nothing to compare.
        if variables[path].value is base_variable.value or _same(variables[path], base_variable):
            continue
        if isinstance(layers.get(layer), PartlyTrainedBatchNormalization):
            norm[path] = np.asarray(variables[path].numpy(), np.float32)
        elif layer in norm_layers:
            norm_changed.add(layer)
        elif len(base_variable.shape) == 1:
            parts[part_name(VECTOR, path)] = np.asarray(variables[path].numpy(), np.float32)
        else:
            raise PackError(f"The model's weight {path!r} differs from the base's, and a pack holds no base weights.")
    for path in base_variables:
        if path.rpartition("/")[0] in norm_changed:
            norm[path] = np.asarray(variables[path].numpy(), np.float32)
    spec, head = _head(whole, backbone)
    _check_nothing_else(whole, [*(variables[path] for path in base_variables), *head.values()])
    config = mask_config(model)
    found = read_masks(model)
    masks = {
        path: MaskBits(tuple(found[path].shape), pack_bits(found[path], config.kind))
        for path in base_variables
        if path in found
    }
    if left_out := sorted(found.keys() - masks.keys()):
        raise PackError(f"The model has a mask for {left_out[0]!r}, which is no weight of the base.")
    arrays = TaskArrays(
        mask_kind=config.kind if masks else "none",
        masks=masks,
        norm=norm,
        head={name: np.asarray(variable.numpy(), np.float32) for name, variable in head.items()},
        parts=parts,
    )
    return {"arrays": arrays, "head_spec": spec, "threshold": float(config.threshold) if masks else None}


def check_augment(augment: str, image_shape: tuple[int, int]) -> None:
    """Raises a `PackError` if an augmentation cannot give images of a size, as far as its text says so."""
    try:
        operations = parse_augment(augment)
        check_draws_nothing(operations, augment)
        check_final_size(augment, chain_size(operations, None), image_shape)
    except DataError as error:
        raise PackError(f"eval_augment: {error}") from error


def _unwrapped(model: keras.Model, paths: Collection[str]) -> keras.Model:
    """Returns the model within `model` that holds the base's weights under their paths, or `model` itself."""
    if named_variables(model).keys() >= set(paths):
        return model
    inner = (_unwrapped(layer, paths) for layer in model.layers if is_container(layer))
    return next((layer for layer in inner if named_variables(layer).keys() >= set(paths)), model)


def _head(model: keras.Model, backbone: Backbone) -> tuple[HeadSpec, dict[str, keras.Variable]]:
    """Returns which head a task has, and its variables by name.

    Raises:
        PackError: If there is none that gives logits, or it does not stand on the base.
    """
    named = {path: variable for path, variable in named_variables(model).items() if is_head(path)}
    found = {name.removeprefix(f"{HEAD_NAME}/"): variable for name, variable in named.items()}
    if not any(is_container(layer) and layer.name == HEAD_NAME for layer in model.layers):
        head = _dense_head(model)
        _check_features(head, backbone.feature_dim)
        return HeadSpec(DENSE, head.units), {name: getattr(head, name) for name in ("kernel", "bias")}
    try:
        spec = read_spec(model)
        expected = HeadNetwork(backbone, spec).head_shapes
    except ValueError as error:
        raise PackError(f"The model's head is none that a pack can hold: {error}") from error
    check_head_shapes({name: tuple(variable.shape) for name, variable in found.items()}, expected, "The model's head")
    return spec, found


def _dense_head(model: keras.Model) -> keras.layers.Dense:
    """Returns the Dense layer that is a task's head.

    Raises:
        PackError: If there is none that gives logits.
    """
    head = dict(named_layers(model)).get(HEAD_NAME)
    if not isinstance(head, keras.layers.Dense) or head.bias is None:
        raise PackError(
            f"The model has no Dense layer named {HEAD_NAME!r} with a bias: keras.layers.Dense(CLASSES, "
            f"name={HEAD_NAME!r}) on the base's features."
        )
    if head.activation not in (keras.activations.linear, keras.activations.softmax):
        raise PackError(
            f"The model's head has the activation {keras.activations.serialize(head.activation)!r}; the head of a pack "
            "gives logits, of which softmax makes probabilities."
        )
    return head


def _check_features(head: keras.layers.Dense, features: int) -> None:
    """Raises a `PackError` if a head does not stand on so many features."""
    if head.kernel.shape[0] != features:
        raise PackError(
            f"The model's head stands on {head.kernel.shape[0]} values, and the base has {features} features. Between "
            "them a pack holds nothing: it is the masks and batch norm of the base, and the head."
        )


def _check_nothing_else(model: keras.Model, held: Iterable[keras.Variable]) -> None:
    """Raises a `PackError` if a model has weights beside those that a pack, or its base, holds."""
    known = {id(variable) for variable in held} | {id(weight.mask_real) for weight in masked_weights(model).values()}
    known |= {id(variable) for layer in _derived_layers(model).values() for variable in layer.part_variables}
    if more := [path for path, variable in named_variables(model).items() if id(variable) not in known]:
        raise PackError(
            f"The model has the weight {more[0]!r}, which is none of the base and none of the head; a pack holds masks "
            "and batch norm of the base, and the head."
        )


def _derived_layers(model: keras.Model) -> dict[str, DerivedKernels]:
    return {path: layer for path, layer in named_layers(model) if isinstance(layer, DerivedKernels)}


def _learned_parts(model: keras.Model) -> dict[str, np.ndarray]:
    """Returns what the layers of a model have learned beside masks, by the names of `packs/parts.py`."""
    found = {}
    for path, layer in _derived_layers(model).items():
        for name, value in layer.learned_parts().items():
            role, _, weight = name.partition("/")
            found[part_name(role, f"{path}/{weight}")] = value
    return found


def _same(first: keras.Variable, second: keras.Variable) -> bool:
    first, second = first.numpy(), second.numpy()
    return first.shape == second.shape and first.dtype == second.dtype and first.tobytes() == second.tobytes()
