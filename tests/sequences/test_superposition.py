"""Masks in superposition: the gradient against differences, and tasks that only their masks tell apart."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from piggyback_tf.backbones import Backbone, named_variables
from piggyback_tf.masking import MASKED_LAYERS
from piggyback_tf.packs import MaskBits, PackError, TaskBank
from piggyback_tf.packs.bits import MASK_VALUES, pack_bits
from piggyback_tf.sequences.measure import measure_task_agnostic
from piggyback_tf.sequences.superposition import Superposition
from tests.methods.toy import SIZE, toy_backbone
from tests.packs.helpers import make_pack

CLASSES = {"one": 2, "two": 3, "three": 5}


def _pack(backbone, task, masks, kernel, *, norm=None, kind="binary"):
    features, classes = kernel.shape
    assert features == backbone.feature_dim
    return make_pack(
        kind,
        task=task,
        class_names=[f"{task}{number}" for number in range(classes)],
        base_hash=backbone.hash,
        image_size=backbone.image_size,
        masks={path: MaskBits(mask.shape, pack_bits(mask.astype(np.int8), kind)) for path, mask in masks.items()},
        mask_kind=kind if masks else "none",
        threshold=5e-3 if masks else None,
        norm=norm or {},
        head={"kernel": kernel.astype(np.float32), "bias": np.linspace(-0.3, 0.3, classes).astype(np.float32)},
    )


def _random_packs(backbone, kind, with_norm):
    rng, packs = np.random.default_rng(0), []
    kernels = {f"{layer.name}/kernel": layer.kernel for layer in backbone.model.layers if type(layer) in MASKED_LAYERS}
    for task, classes in CLASSES.items():
        masks = {path: rng.choice(MASK_VALUES[kind], kernel.shape) for path, kernel in kernels.items()}
        if task == "two":  # A task may leave layers out that others mask.
            del masks["dense/kernel"]
        norm = {
            path: (variable.numpy() * rng.uniform(0.5, 1.5, variable.shape)).astype(np.float32)
            for path, variable in named_variables(backbone.model).items()
            if with_norm and "norm/" in path
        }
        packs.append(_pack(backbone, task, masks, 20 * rng.normal(size=(10, classes)), norm=norm, kind=kind))
    return packs


def _entropy(backbone, packs, alphas, images):
    """The entropy of the superposed network's answer, with nothing of the package's own but masks and batch norm."""
    network = keras.models.clone_model(backbone.model)
    for path, variable in named_variables(network).items():
        value = named_variables(backbone.model)[path].numpy()
        parts = [pack.norm.get(path, value * pack.mask(path) if path in pack.masks else value) for pack in packs]
        # A variable that no task changes is none of the superposition's.
        changed = any(path in pack.masks or path in pack.norm for pack in packs)
        variable.assign(sum(a * part for a, part in zip(alphas, parts, strict=True)) if changed else value)
    features = network(images, training=False).numpy().astype(np.float64)
    logits = [
        features @ (a * pack.head["kernel"]) + a * pack.head["bias"] for a, pack in zip(alphas, packs, strict=True)
    ]
    probabilities = tf.nn.softmax(np.concatenate(logits, axis=1)).numpy()
    return -(probabilities * np.log(probabilities)).sum(axis=1) / np.log(sum(CLASSES.values()))


@pytest.mark.parametrize(("kind", "with_norm"), [("binary", False), ("ternary", True)])
def test_the_gradient_is_that_of_the_entropy(kind, with_norm):
    backbone = toy_backbone()
    packs = _random_packs(backbone, kind, with_norm)
    images = np.random.default_rng(1).uniform(0, 255, (5, SIZE, SIZE, 3)).astype(np.float32)
    found = Superposition(backbone, packs).gradient([images[:3], images[3:]])
    alphas, step = np.full(3, 1 / 3), 3e-3
    for number, direction in enumerate(np.eye(3)):
        ends = [_entropy(backbone, packs, alphas + sign * step * direction, images) for sign in (1, -1)]
        np.testing.assert_allclose(found[:, number], (ends[0] - ends[1]) / (2 * step), rtol=2e-2, atol=5e-4)
    # No image's gradient is the same along all tasks: there was something to compare.
    assert np.ptp(found, axis=1).min() > 1e-2
    assert backbone.hash == toy_backbone().hash


def _pixel_tasks():
    """A base that adds pixels 0 and 2, and 1 and 3; one task's mask keeps the first two, the other's the last two.

    The heads are the same: an image with one white pixel is of the task whose mask keeps that.
    """
    images = keras.Input((2, 2, 3))
    x = keras.layers.Rescaling(1 / 255)(images)
    x = keras.layers.Dense(2, use_bias=False, name="dense")(keras.layers.Flatten()(x))
    kernel = np.repeat(np.array([[1, 0], [0, 1], [1, 0], [0, 1]]), 3, axis=0) / 3
    model = keras.Model(images, x, name="pixels")
    model.get_layer("dense").kernel.assign(kernel)
    backbone = Backbone.from_model(model, image_size=2)
    first = np.repeat([1, 1, 0, 0], 3)[:, None] * np.ones((1, 2))
    masks = {"left": first, "right": 1 - first}
    return backbone, [_pack(backbone, task, {"dense/kernel": mask}, 8 * np.eye(2)) for task, mask in masks.items()]


def _pixels(white, labels):
    images = np.zeros((len(white), 4, 3), np.uint8)
    images[np.arange(len(white)), white] = 255
    return tf.data.Dataset.from_tensor_slices((images.reshape(-1, 2, 2, 3), np.int32(labels))).batch(3)


def test_tasks_are_told_apart_by_their_masks():
    backbone, packs = _pixel_tasks()
    bank = TaskBank(backbone)
    for pack in packs:
        bank.add(pack)
    batches = {
        # The last image is one of the other task.
        "left": _pixels([0, 1, 1, 2], [0, 1, 1, 0]),
        # The last image's class is wrong.
        "right": _pixels([2, 3, 2, 3, 3], [0, 1, 0, 1, 0]),
    }
    found = measure_task_agnostic(bank.to_keras, batches, backbone, packs, probabilities=True)
    by_task = {
        "left": {"task_id_accuracy": 75.0, "class_incremental_error": 25.0},
        "right": {"task_id_accuracy": 100.0, "class_incremental_error": 20.0},
    }
    expected = {"task_id_accuracy": 87.5, "class_incremental_error": 22.5, "by_task": by_task}
    assert found == {"entropy": expected, "gradient": expected}


@pytest.mark.parametrize("activation", ["softmax", None])
def test_entropy_is_that_of_probabilities(activation):
    """Of two tasks whose networks always answer the same, the one of more classes is the surer."""
    answers = {"two": np.log([0.05, 0.95]), "three": np.log([0.998, 0.001, 0.001])}

    def network(task):
        head = keras.layers.Dense(len(answers[task]), activation, kernel_initializer="zeros")
        model = keras.Sequential([keras.Input((2, 2, 3)), keras.layers.Flatten(), head])
        head.bias.assign(answers[task])
        return model

    batches = {task: _pixels([0, 1, 2, 3], [0, 0, 0, 0]) for task in answers}
    found = measure_task_agnostic(network, batches, toy_backbone(), [], probabilities=activation == "softmax")
    assert list(found) == ["entropy"]
    assert found["entropy"]["by_task"] == {
        "two": {"task_id_accuracy": 0.0, "class_incremental_error": 100.0},
        "three": {"task_id_accuracy": 100.0, "class_incremental_error": 0.0},
    }


def test_without_masks_there_is_no_superposition():
    backbone, packs = _pixel_tasks()
    plain = [_pack(backbone, pack.task, {}, pack.head["kernel"]) for pack in packs]
    with pytest.raises(ValueError, match="masks of two tasks or more. Received: 2 tasks, 0 with masks"):
        Superposition(backbone, plain)
    with pytest.raises(ValueError, match="Received: 1 tasks, 1 with masks"):
        Superposition(backbone, packs[:1])
    with pytest.raises(PackError, match="trained on another base"):
        Superposition(toy_backbone(), packs)
