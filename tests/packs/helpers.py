"""A small base, tasks on it, and packs made of nothing but arrays."""

import dataclasses
import json
import zlib
from pathlib import Path

import numpy as np
from safetensors.numpy import load as load_tensors

from piggyback_tf.packs import BaseSpec, MaskBits, TaskArrays, TaskPack, container
from piggyback_tf.packs.bits import MASK_VALUES, pack_bits
from piggyback_tf.packs.partition import channel_view_shape

GOLDEN = Path(__file__).parent / "golden"
# Arguments of `trained_model` for each kind of task that a pack can hold.
VARIANTS = {
    "binary": {},
    "ternary": {"kind": "ternary"},
    "binary_norm": {"norm": "task"},
    "ternary_norm": {"kind": "ternary", "norm": "task"},
    "some_layers": {"include": ["conv2d", "fc"]},
    "classifier_only": {"kind": "none"},
}


def make_pack(kind="binary", seed=0, **changes):
    """Returns a pack that belongs to no network, made without TensorFlow."""
    rng = np.random.default_rng(seed)
    shapes = {"conv/kernel": (3, 3, 3, 5), "block/dense/kernel": (7, 4)}
    masks = {
        path: MaskBits(shape, pack_bits(rng.choice(MASK_VALUES[kind], shape).astype(np.int8), kind))
        for path, shape in (shapes.items() if kind != "none" else ())
    }
    fields = {
        "task": "birds",
        "class_names": ["wren", "rook", "tüvö"],
        "base_name": "small",
        "base_hash": "ab" * 32,
        "base_weights": "given",
        "method": "piggyback",
        "mask_kind": kind,
        "threshold": 5e-3 if masks else None,
        "masks": masks,
        "norm": {f"bn/{name}": rng.standard_normal(5).astype("float32") for name in ("gamma", "moving_variance")},
        "head": {"kernel": rng.standard_normal((4, 3)).astype("float32"), "bias": np.zeros(3, "float32")},
        "preprocessing": "x / 255",
        "image_size": 8,
        "eval_augment": "resize(8,8)",
        "settings": {"epochs": 3, "mask_lr": 1e-4, "patterns": ["*"]},
        "errors": {"test": {"top1_error": 12.5, "top1_error_low": 3.5, "top1_error_high": 36.0, "images": 16}},
        "versions": {"keras": "3.15.1"},
        "created": "2026-01-02T03:04:05+00:00",
    }
    fields |= changes
    names = ("mask_kind", "masks", "norm", "head", "parts")
    arrays = TaskArrays(**{name: fields.pop(name) for name in names if name in fields})
    return TaskPack(**{"arrays": arrays} | fields)


def parts_of_all_roles(seed=0):
    """Returns arrays of each role: for kernels and a bias of the base of `make_pack`."""
    rng = np.random.default_rng(seed)
    shapes = {
        "scale/conv/kernel": (1, 1, 1, 5),
        "vector/conv/bias": (5,),
        "down/block/dense/kernel": (7, 2),
        "up/block/dense/kernel": (2, 4),
    }
    return {name: rng.standard_normal(shape).astype("float32") for name, shape in shapes.items()}


def affine_parts(seed=0):
    """Returns what makes a mask of the base of `make_pack` affine, beside arrays of each other role."""
    numbers = np.random.default_rng(seed).standard_normal(4).astype("float32")
    return parts_of_all_roles(seed) | {"affine/block/dense/kernel": numbers}


def with_arrays(pack, **changes):
    """Returns a pack with other arrays."""
    return dataclasses.replace(pack, arrays=dataclasses.replace(pack.arrays, **changes))


def channel_mask(shape, kind="binary", seed=0, spread=2.0):
    """Returns a mask, int8, that drops about a fifth of the weights, and of some channels many more than of others."""
    rng = np.random.default_rng(seed)
    _, inputs, outputs = channel_view_shape(shape)
    level = np.add.outer(spread * rng.standard_normal(inputs), spread * rng.standard_normal(outputs)) - 1.5
    mask = (rng.random((*shape[:-2], inputs, outputs)) * (1 + np.exp(-level)) >= 1).astype(np.int8)
    if kind == "ternary":
        mask[rng.random(mask.shape) < 0.1] *= -1
    return mask.reshape(shape)


def structured_pack(kind="binary", seed=0, **changes):
    """Returns a pack with masks worth coding: channels that differ; layers that drop all, nothing, or at random."""
    rng = np.random.default_rng(seed)
    masks = {
        "conv/kernel": channel_mask((3, 3, 24, 40), kind, seed),
        "block/depthwise/kernel": channel_mask((3, 3, 40, 1), kind, seed),
        "fc/kernel": channel_mask((40, 30), kind, seed, spread=0),
        "random/kernel": rng.choice(MASK_VALUES[kind], (11, 13)).astype(np.int8),
        "whole/kernel": np.ones((9, 9), np.int8),
        "dead/kernel": np.zeros(7, np.int8),
    }
    bits = {path: MaskBits(mask.shape, pack_bits(mask, kind)) for path, mask in masks.items()}
    return make_pack("none", seed, **{"masks": bits, "mask_kind": kind, "threshold": 5e-3} | changes)


def rates_of(classes, kind):
    """Returns how many rates a coded layer has: of classes, of rectangles, of negated weights."""
    a, b = classes
    return (a - 1) + (b - 1) + a * b + (kind == "ternary")


def base_of(pack):
    """Returns the description of a base that a pack fits, with a weight more than the pack has masks for."""
    shapes = {path: mask.shape for path, mask in pack.masks.items()}
    shapes |= {path: value.shape for path, value in pack.norm.items()}
    if pack.parts:
        shapes |= {"conv/kernel": (3, 3, 3, 5), "block/dense/kernel": (7, 4), "conv/bias": (5,)}
    return BaseSpec(
        pack.base_name,
        pack.base_weights,
        pack.base_hash,
        pack.image_size,
        pack.head["kernel"].shape[0],
        shapes | {"other/kernel": (3, 3)},
        frozenset(pack.norm),
        pack.claims.structure,
    )


def forge(pack, tensors=None, index=None, **document):
    """Returns the bytes of a pack's file with other content.

    Args:
        pack: The pack, or the bytes of a file.
        tensors: Tensors to put in; `...` takes one out.
        index: A function of the index, which changes it or returns another one, or its bytes.
        **document: Entries of the description to put in; `...` takes one out.
    """
    data = pack if isinstance(pack, bytes) else pack.to_bytes()
    length = int.from_bytes(data[:8], "little")
    content = json.loads(json.loads(data[8 : 8 + length])["__metadata__"][container.METADATA_KEY])
    found = load_tensors(data)
    if index:
        entries = json.loads(zlib.decompress(found["index"].tobytes()))
        changed = index(entries)
        changed = entries if changed is None else changed
        if not isinstance(changed, bytes):
            changed = zlib.compress(container.canonical_json(changed).encode())
        found["index"] = np.frombuffer(changed, np.uint8)
    found = {name: value for name, value in {**found, **(tensors or {})}.items() if value is not ...}
    content = {key: value for key, value in {**content, **document}.items() if value is not ...}
    return container.to_bytes(content, found)


def small_backbone(seed=0, image_size=8):
    """Returns a base with every kind of layer that has a mask, with batch norm, and with a nested model."""
    import keras

    from piggyback_tf.backbones import Backbone, rename_layers

    keras.utils.set_random_seed(seed)
    layers = keras.layers
    inner = keras.Sequential(
        [keras.Input((None, None, 6)), layers.DepthwiseConv2D(3, padding="same"), layers.BatchNormalization()],
        name="inner",
    )
    inputs = keras.Input((image_size, image_size, 3))
    x = layers.Rescaling(1 / 127.5, offset=-1)(inputs)
    x = layers.Conv2D(6, 3, strides=2, padding="same")(x)
    x = layers.BatchNormalization(scale=False)(x)
    x = layers.ReLU()(inner(x)) + x
    x = layers.SeparableConv2D(6, 3, padding="same", activation="relu")(x)
    x = layers.Conv2DTranspose(5, 2, strides=2)(x)
    x = layers.GlobalAveragePooling2D()(x)
    model = keras.Model(inputs, layers.Dense(9, activation="tanh", name="fc")(x), name="small")
    rng = np.random.default_rng(seed)
    # As after a training: no bias is zero, no variance one.
    model.set_weights([w + 0.1 * rng.random(w.shape).astype("float32") for w in model.get_weights()])
    rename_layers(model)
    return Backbone.from_model(model)


def twin_of(backbone, scale=1 / 255):
    """Returns a base with the same weights that scales its images in another way."""
    import keras

    def copy(layer):
        changes = {"scale": scale} if isinstance(layer, keras.layers.Rescaling) else {}
        return layer.from_config(layer.get_config() | changes)

    model = keras.models.clone_model(backbone.model, clone_function=copy)
    model.set_weights(backbone.model.get_weights())
    return dataclasses.replace(backbone, model=model)


def trained_model(backbone, classes=3, kind="binary", norm="frozen", seed=0, include="*"):
    """Returns a task's model as after a training: masks with zeros, moved batch norm, a head."""
    import keras

    from piggyback_tf.masking import MaskConfig, mask, masked_weights
    from piggyback_tf.problems import HeadSpec, HeadStart, add_head

    rng = np.random.default_rng(seed)
    if kind == "none":
        features = keras.models.clone_model(backbone.model)
        features.set_weights(backbone.model.get_weights())
    else:
        features = mask(backbone.model, MaskConfig(kind=kind), norm=norm, include=include)
    model = add_head(features, HeadSpec("dense", classes), HeadStart(init="glorot", seed=seed))
    for weight in masked_weights(model).values():
        weight.mask_real.assign(rng.uniform(-0.02, 0.03, weight.mask_real.shape))
    if norm == "task":
        for layer in model._flatten_layers():
            if isinstance(layer, keras.layers.BatchNormalization):
                layer.set_weights([w + rng.random(w.shape).astype("float32") for w in layer.get_weights()])
    model.get_layer("head").bias.assign(rng.standard_normal(classes))
    return model


def pack_of(model, backbone, task="birds", classes=3):
    """Returns the pack of a model from `trained_model`."""
    return TaskPack.from_model(
        model,
        task=task,
        class_names=[f"class {index}" for index in range(classes)],
        backbone=backbone,
        method="piggyback",
        eval_augment=f"resize({backbone.image_size},{backbone.image_size})",
        created="2026-01-02T03:04:05+00:00",
    )


def renamed(pack, task):
    """Returns the same pack as another task."""
    return dataclasses.replace(pack, task=task)


def packs_of_all_kinds(backbone, some_layers=VARIANTS["some_layers"]["include"]):
    """Returns a pack of each variant with two, three, ... classes, named after it."""
    variants = VARIANTS | {"some_layers": {"include": some_layers}}
    return [
        pack_of(trained_model(backbone, classes=classes, seed=classes, **variant), backbone, name, classes)
        for classes, (name, variant) in enumerate(variants.items(), start=2)
    ]


def save_good_looking_pack(folder):
    """Writes a pack on a base that can be loaded by its name, which no check before that can tell from good."""
    path = folder / "birds.task.safetensors"
    make_pack(base_name="mobilenet_v2", base_weights="random", image_size=32, eval_augment="resize(32,32)").save(path)
    return path
