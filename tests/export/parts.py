"""A base with all kinds of kernels, and tasks on it that change it in each way that a pack can hold."""

import types

import keras
import numpy as np

from piggyback_tf.backbones import Backbone, named_variables
from piggyback_tf.masking import maskable_weights
from piggyback_tf.packs import TaskBank
from tests.packs.helpers import pack_of, renamed, trained_model, with_arrays

SIZE = 12
IMAGES = np.random.default_rng(3).integers(0, 256, (4, SIZE, SIZE, 3), dtype=np.uint8)
# By the name of a task: the kind of its masks, and what it has of each kernel, and of each vector.
WAYS = {
    "plain": ("binary", ()),
    "low_rank": ("none", ("down",)),
    "scales": ("none", ("scale", "vector")),
    "biases": ("none", ("vector",)),
    "affine": ("binary", ("affine",)),
    "ternary": ("ternary", ("affine",)),
    "all": ("binary", ("affine", "scale", "down", "vector")),
    "ternary_all": ("ternary", ("affine", "scale", "down", "vector")),
}


def base() -> Backbone:
    """Returns a base of narrow layers: with biases, with batch norm, with both and with neither."""
    keras.utils.set_random_seed(11)
    images = keras.Input((SIZE, SIZE, 3), name="images")
    x = keras.layers.Rescaling(1 / 127.5, offset=-1.0)(images)
    x = keras.layers.Conv2D(16, 3, strides=2, padding="same", activation="relu", name="conv")(x)
    x = keras.layers.DepthwiseConv2D(3, padding="same", depth_multiplier=2, use_bias=False, name="depthwise")(x)
    x = keras.layers.BatchNormalization(name="first_norm")(x)
    x = keras.layers.ReLU()(x)
    x = keras.layers.Conv2DTranspose(12, 2, strides=2, name="transposed")(x)
    x = keras.layers.BatchNormalization(name="second_norm")(x)
    x = keras.layers.ReLU()(x)
    x = keras.layers.SeparableConv2D(96, 3, strides=2, depth_multiplier=1, use_bias=False, name="separable")(x)
    x = keras.layers.ReLU()(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    x = keras.layers.Dense(12, activation="relu", name="fc")(x)
    model = keras.Model(images, x, name="parts")
    rng = np.random.default_rng(2)
    for path, variable in named_variables(model).items():
        if len(variable.shape) == 1:
            noise = 0.2 * rng.standard_normal(variable.shape)
            variable.assign(1 + abs(noise) if path.endswith(("gamma", "variance")) else noise)
    return Backbone.from_model(model)


def task(backbone, name):
    """Returns the pack of one of `WAYS`."""
    rng = np.random.default_rng(len(name))
    kind, roles = WAYS[name]
    pack = renamed(pack_of(trained_model(backbone, kind=kind, seed=len(name)), backbone), name)
    parts, variables = {}, named_variables(backbone.model)
    for path, layer in maskable_weights(backbone.model).items():
        shape, value = tuple(variables[path].shape), variables[path].numpy()
        depthwise = isinstance(layer, keras.layers.DepthwiseConv2D) or "depthwise" in path
        if "affine" in roles:
            scale = np.abs(value).mean()
            numbers = np.array([0.1, 0.05 * scale, 0.1 * scale, 0.8]) * rng.uniform(0.5, 1.5, 4)
            parts[f"affine/{path}"] = numbers
        if "scale" in roles:
            axes = {-1} if not depthwise else {-2, -1}
            axes = {-2} if isinstance(layer, keras.layers.Conv2DTranspose) else axes
            sides = [side if axis - len(shape) in axes else 1 for axis, side in enumerate(shape)]
            parts[f"scale/{path}"] = rng.uniform(0.7, 1.3, sides)
        if "down" in roles and not depthwise:
            rank = 2 if path.startswith("conv") else 1
            parts[f"down/{path}"] = 0.3 * rng.standard_normal((*shape[:-1], rank))
            parts[f"up/{path}"] = 0.3 * rng.standard_normal((rank, shape[-1]))
    if "vector" in roles:
        for path in ("conv/bias", "transposed/bias", "fc/bias"):
            parts[f"vector/{path}"] = variables[path].numpy() + 0.3 * rng.standard_normal(variables[path].shape)
    return with_arrays(pack, parts={part: value.astype(np.float32) for part, value in parts.items()})


def base_and_tasks(names=tuple(WAYS)):
    """Returns the base, the packs of tasks by name, and a bank with them."""
    backbone = base()
    packs = {name: task(backbone, name) for name in names}
    bank = TaskBank(backbone)
    for pack in packs.values():
        bank.add(pack)
    return types.SimpleNamespace(backbone=backbone, packs=packs, bank=bank)
