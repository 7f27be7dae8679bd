"""Packs and banks of tasks that find the class of each pixel, beside tasks of classes on the same base."""

import dataclasses

import keras
import numpy as np
import pytest

from piggyback_tf.backbones import load_backbone, named_variables
from piggyback_tf.data import DataError, at_own_size, parse_augment
from piggyback_tf.head_spec import HeadSpec
from piggyback_tf.masking import MaskConfig, mask, masked_weights
from piggyback_tf.packs import PackError, TaskBank, TaskPack
from piggyback_tf.problems import HeadStart, add_head, network_for
from tests.packs.helpers import forge, pack_of, trained_model, with_arrays

SPEC = HeadSpec("fpn", 5, 8, (40, 56))


@pytest.fixture(scope="module")
def backbone():
    return load_backbone("shapesnet", image_size=32)


@pytest.fixture(scope="module")
def model(backbone):
    return segments_model(backbone)


@pytest.fixture(scope="module")
def pack(model, backbone):
    return segments_pack(model, backbone)


def segments_model(backbone, seed=0, spec=SPEC, kind="binary"):
    """Returns a task's model as after a training: masks with zeros, a head with moved batch norm."""
    rng = np.random.default_rng(seed)
    network, endpoints = network_for(backbone, spec)
    masked = mask(network.model, MaskConfig(kind=kind))
    model = add_head(masked, spec, HeadStart(init="glorot", seed=seed), endpoints)
    for weight in masked_weights(model).values():
        weight.mask_real.assign(rng.uniform(-0.005, 0.03, weight.mask_real.shape))
    for path, variable in named_variables(model).items():
        if path.startswith("head/") and "_norm/" in path:
            variable.assign(variable + rng.random(variable.shape))
    return model


def segments_pack(model, backbone, task="roads", classes=5, eval_augment="resize(40,56)"):
    return TaskPack.from_model(
        model,
        task=task,
        class_names=["road", "tree", "car", "sky", "house"][:classes],
        backbone=backbone,
        method="piggyback",
        eval_augment=eval_augment,
        problem="map",
        created="2026-01-02T03:04:05+00:00",
    )


def images_of(shape, count=3):
    return np.random.default_rng(1).integers(0, 256, (count, *shape, 3)).astype(np.uint8)


def test_a_pack_holds_the_head_and_its_size(pack, tmp_path):
    assert pack.problem == "map" and pack.head_spec == SPEC
    assert pack.image_shape == (40, 56) and pack.image_size == 32
    assert {"logits/kernel", "lateral_0/kernel", "smooth_0_norm/moving_variance"} <= pack.head.keys()
    pack.save(tmp_path / "roads.task.safetensors")
    loaded = TaskPack.load(tmp_path / "roads.task.safetensors")
    assert loaded.content_digest() == pack.content_digest()
    assert loaded.head_spec == SPEC and loaded.problem == "map"
    assert all(np.array_equal(loaded.head[name], value) for name, value in pack.head.items())
    half = TaskPack.from_bytes(pack.astype("float16").to_bytes())
    assert len(half.to_bytes()) < len(pack.to_bytes())
    assert dataclasses.replace(pack, problem="other").content_digest() != pack.content_digest()


def test_a_bank_answers_as_the_trained_model_beside_tasks_of_classes(model, pack, backbone):
    shapes = pack_of(trained_model(backbone, classes=4), backbone, "shapes", 4)
    bank = TaskBank(backbone).add(shapes).add(pack)
    images = images_of((40, 56))
    logits = model.predict(images, verbose=0)
    labels = bank.predict(images, task="roads", batch_size=2)
    assert labels.dtype == np.uint8 and labels.shape == (3, 40, 56)
    assert np.array_equal(labels, logits.argmax(axis=-1)) and len(np.unique(labels)) > 1
    assert bank.predict(images[:0], task="roads").shape == (0, 40, 56)
    rows = bank.predict(images, task=["roads"] * 3)
    assert len(rows) == 3 and np.array_equal(rows[2], labels[2])
    # The task of classes is what it is in a bank of its own.
    small = images_of((32, 32))
    alone = TaskBank(backbone).add(shapes).predict(small, task="shapes")
    assert np.array_equal(bank.predict(small, task="shapes"), alone)
    assert bank.info("roads")["problem"] == "map" and bank.info("roads")["image_shape"] == (40, 56)
    with pytest.raises(ValueError, match="32x32 and 40x56 pixels"):
        bank.predict(small[:2], task=["shapes", "roads"])
    with pytest.raises(ValueError, match="finds no class of an image"):
        bank.top_k(images, task="roads")
    with pytest.raises(ValueError, match=r"an array \[N, 40, 56, 3\]"):
        bank.predict(small, task="roads")


def test_tasks_of_one_kind_share_a_trace(pack, backbone):
    bank = TaskBank(backbone).add(pack)
    before = bank._networks.traces
    bank.add(segments_pack(segments_model(backbone, seed=1), backbone, "other"))
    images = images_of((40, 56))
    assert not np.array_equal(bank.predict(images, task="other"), bank.predict(images, task="roads"))
    assert bank._networks.traces == before == 2


def test_held_compressed_they_are_the_same(pack, backbone):
    images = images_of((40, 56), 1)
    bank = TaskBank(backbone, hold="compressed", cache_bytes=0).add(pack)
    assert np.array_equal(bank.predict(images, "roads"), TaskBank(backbone).add(pack).predict(images, "roads"))


def test_it_goes_on_as_a_plain_keras_model(model, pack, backbone, tmp_path):
    plain = TaskBank(backbone).add(pack).to_keras("roads")
    plain.save(tmp_path / "roads.keras")
    images = images_of((40, 56))
    probabilities = keras.models.load_model(tmp_path / "roads.keras").predict(images, verbose=0)
    assert probabilities.shape == (3, 40, 56, 5)
    np.testing.assert_allclose(probabilities.sum(axis=-1), 1.0, atol=1e-5)
    expected = keras.ops.convert_to_numpy(keras.ops.softmax(model.predict(images, verbose=0)))
    np.testing.assert_allclose(probabilities, expected, atol=1e-5)
    assert not any("asked" in type(layer).__name__.lower() for layer in plain._flatten_layers())


def test_a_base_of_another_size_takes_it(pack):
    images = images_of((40, 56))
    other = load_backbone("shapesnet", image_size=48)
    labels = TaskBank(other).add(pack).predict(images, task="roads")
    assert np.array_equal(
        labels, TaskBank(load_backbone("shapesnet", image_size=32)).add(pack).predict(images, "roads")
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tensors": {"head/logits/bias": ...}}, "checksum is not that of its content"),
        ({"tensors": {"head/kernel": np.zeros((3, 5), "float32")}}, "checksum is not that of its content"),
        ({"tensors": {"head/../x": np.zeros(3, "float32")}}, "is no path of a weight"),
        ({"tensors": {"head/x": np.zeros((0, 3), "float32")}}, "has the tensor 'head/x' as 'F32'"),
        ({"head_spec": 3}, "head_spec must be a dict"),
        ({"head_spec": {"kind": "fpn", "classes": 4, "width": 8, "image_shape": [40, 56]}}, "The head has 4 classes"),
        ({"head_spec": {"kind": "fpn", "classes": 5, "image_shape": [40]}}, "head_spec is wrong"),
        ({"head_spec": ...}, "has no entry 'head_spec'"),
        ({"head_spec": None}, "lacks the tensor 'head/bias'"),
        ({"problem": ""}, "problem must be a text"),
    ],
)
def test_wrong_heads_are_refused(pack, change, message):
    with pytest.raises(PackError, match=message):
        TaskPack.from_bytes(forge(pack, **change))


def test_heads_that_do_not_fit_the_base_are_refused(pack, backbone):
    bank = TaskBank(backbone)
    smaller = {name: value for name, value in pack.head.items() if name != "logits/bias"}
    with pytest.raises(PackError, match="The head of task 'roads' has no 'logits/bias'"):
        bank.add(with_arrays(pack, head=smaller))
    wider = dict(pack.head) | {"logits/kernel": np.zeros((1, 1, 9, 5), np.float32)}
    with pytest.raises(PackError, match=r"has \[1, 1, 9, 5\] 'logits/kernel', and on this base its shape is"):
        bank.add(with_arrays(pack, head=wider))
    with pytest.raises(PackError, match="of the problem 'depth', and this version of piggyback_tf knows"):
        bank.add(dataclasses.replace(pack, problem="depth"))
    with pytest.raises(PackError, match="has a head that this base cannot take: .*'pyramid'"):
        bank.add(dataclasses.replace(pack, head_spec=dataclasses.replace(SPEC, kind="pyramid")))
    with pytest.raises(PackError, match="has a head that this base cannot take: .*no fully connected layers"):
        bank.add(dataclasses.replace(pack, head_spec=dataclasses.replace(SPEC, kind="fcn8")))
    assert not bank.names


def test_a_head_on_something_else_is_refused(backbone):
    network, endpoints = network_for(backbone, SPEC)
    model = add_head(mask(network.model, MaskConfig()), dataclasses.replace(SPEC, width=4), None, endpoints[1:])
    with pytest.raises(PackError, match=r"The model's head has \[1, 1, 96, 4\] 'lateral_0/kernel'"):
        segments_pack(model, backbone)


def test_label_maps_at_the_size_of_the_image():
    truth = np.random.default_rng(0).integers(0, 5, (80, 112)).astype(np.uint8)
    small = truth[1::2, 1::2]
    found = at_own_size(small, parse_augment("resize(40,56)"), (80, 112))
    assert np.array_equal(found, np.repeat(np.repeat(small, 2, 0), 2, 1))
    # What was cut off has the label of what is nearest.
    cut = at_own_size(small[:8, :8], parse_augment("central_crop(8)"), (10, 12))
    assert cut.shape == (10, 12) and np.array_equal(cut[1:9, 2:10], small[:8, :8])
    assert np.array_equal(cut[0], cut[1]) and np.array_equal(cut[:, 0], cut[:, 2])
    with pytest.raises(DataError, match="becomes 40x56, and this is a label map of 20x20"):
        at_own_size(truth[:20, :20], parse_augment("resize(40,56)"), (80, 112))
