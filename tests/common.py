"""The checks that every masked network must pass, in tests and benchmarks alike."""

from pathlib import Path
from typing import Any

import keras
import numpy as np

from piggyback_tf.backbones import Backbone, finalize_layers, named_layers
from piggyback_tf.masking import mask, masked_weights, read_masks


def check_masked_network(base: Backbone, folder: Path) -> dict[str, Any]:
    """Masks a network and tries what masking promises.

    Args:
        base: The network, at any image size; its Normalization gets a mean and a variance, if they are weights.
        folder: Where a model may be saved.

    Returns:
        `"same_start"`: the masked output equals the base's bit for bit with constant init; `"base_unchanged"`: weights
        and trainable flags; `"only_masks_train"`: nothing else, also after `trainable = True`; `"round_trip"`: saved
        and loaded with masks on both sides of the threshold, outputs and masks are equal. And the numbers of
        `"masks"`, `"masked_weights"` and `"weights"`.
    """
    for _, layer in named_layers(base.model):
        # Some have them in their settings, as those of ConvNeXt do.
        if isinstance(layer, keras.layers.Normalization) and layer.input_mean is None:
            # With random weights they are 0 and 1, as in a copy that has lost them.
            layer.adapt_mean.assign(np.full(layer.adapt_mean.shape, 0.45))
            layer.adapt_variance.assign(np.full(layer.adapt_variance.shape, 0.22))
    finalize_layers(base.model)
    digest, flags = base.hash, [variable.trainable for variable in base.model.variables]
    generator = np.random.default_rng(0)
    images = generator.uniform(0, 255, (1, base.image_size, base.image_size, 3)).astype("float32")
    masked = mask(base.model)
    same_start = bool(np.array_equal(base.model(images), masked(images)))
    masked.trainable = True
    only_masks_train = all(variable.name.endswith("mask_real") for variable in masked.trainable_variables)
    for weight in masked_weights(masked).values():
        weight.mask_real.assign(generator.uniform(0, 2e-2, weight.mask_real.shape).astype("float32"))
    masked.save(folder / "masked.keras")
    loaded = keras.models.load_model(folder / "masked.keras")
    one, two = read_masks(masked), read_masks(loaded)
    round_trip = (
        bool(np.array_equal(masked(images), loaded(images)))
        and list(one) == list(two)
        and all(np.array_equal(one[path], two[path]) for path in one)
        and all(0 < one[path].mean() < 1 for path in one if one[path].size > 100)
    )
    return {
        "same_start": same_start,
        "base_unchanged": base.hash == digest and flags == [v.trainable for v in base.model.variables],
        "only_masks_train": only_masks_train and len(masked.trainable_variables) == len(one),
        "round_trip": round_trip,
        "masks": len(one),
        "masked_weights": sum(values.size for values in one.values()),
        "weights": base.model.count_params(),
    }
