"""From a trained Keras model to the arrays of a task pack."""

from typing import Any

import keras
import numpy as np

from piggyback_tf.backbones.paths import batch_norm_paths, named_layers, named_variables
from piggyback_tf.heads import HEAD_NAME
from piggyback_tf.masking import mask_config, read_masks
from piggyback_tf.packs.bits import MaskBits, pack_bits
from piggyback_tf.packs.fileformat import PackError


def capture(model: keras.Model, base: keras.Model) -> dict[str, Any]:
    """Returns what a task model adds to its base.

    Args:
        model: The layers of `base`, masked or not, and a Dense layer named `"head"`.
        base: The frozen base.

    Returns:
        The fields `mask_kind`, `threshold`, `masks`, `norm` and `head` of a `TaskPack`.

    Raises:
        PackError: If the model has no such head, lacks weights of the base, or changed others than batch norm.
    """
    layers = dict(named_layers(model))
    head = layers.get(HEAD_NAME)
    if not isinstance(head, keras.layers.Dense) or head.bias is None:
        raise PackError(f"The model has no Dense layer named {HEAD_NAME!r} with a bias.")
    variables = named_variables(model)
    norm_layers = batch_norm_paths(base)
    norm_changed, norm = set(), {}
    base_variables = named_variables(base)
    for path, base_variable in base_variables.items():
        layer = path.rpartition("/")[0]
        if path not in variables:
            raise PackError(f"The model lacks the base's weight {path!r}; is it a model of another base?")
        # A masked model reads the base's storage, and there is nothing to compare.
        if variables[path].value is base_variable.value or _same(variables[path], base_variable):
            continue
        if layer not in norm_layers:
            raise PackError(f"The model's weight {path!r} differs from the base's, and a pack holds no base weights.")
        norm_changed.add(layer)
    for path in base_variables:
        if path.rpartition("/")[0] in norm_changed:
            norm[path] = np.asarray(variables[path].numpy(), np.float32)
    config = mask_config(model)
    found = read_masks(model)
    masks = {
        path: MaskBits(tuple(found[path].shape), pack_bits(found[path], config.kind))
        for path in base_variables
        if path in found
    }
    if left_out := sorted(found.keys() - masks.keys()):
        raise PackError(f"The model has a mask for {left_out[0]!r}, which is no weight of the base.")
    return {
        "mask_kind": config.kind if masks else "none",
        "threshold": float(config.threshold) if masks else None,
        "masks": masks,
        "norm": norm,
        "head": {name: np.asarray(getattr(head, name).numpy(), np.float32) for name in ("kernel", "bias")},
    }


def _same(first: keras.Variable, second: keras.Variable) -> bool:
    first, second = first.numpy(), second.numpy()
    return first.shape == second.shape and first.dtype == second.dtype and first.tobytes() == second.tobytes()
