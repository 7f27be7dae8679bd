"""From a trained model to a pack to a bank: the same predictions, one base, many tasks."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from piggyback_tf.backbones import named_variables
from piggyback_tf.masking import read_masks
from piggyback_tf.packs import MaskBits, PackError, TaskBank
from tests.packs.helpers import (
    VARIANTS,
    pack_of,
    packs_of_all_kinds,
    renamed,
    small_backbone,
    trained_model,
    with_arrays,
)

IMAGES = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)


@pytest.fixture(scope="module", name="backbone")
def _backbone():
    return small_backbone()


@pytest.fixture(params=VARIANTS, name="variant")
def _variant(request):
    return VARIANTS[request.param]


def _probabilities(model, images=IMAGES):
    return tf.nn.softmax(model(images, training=False)).numpy()


def test_a_bank_predicts_what_the_trained_model_predicts(tmp_path, backbone, variant):
    model = trained_model(backbone, **variant)
    pack_of(model, backbone).save(tmp_path / "pack")
    before = backbone.hash
    bank = TaskBank(backbone).add(tmp_path / "pack")
    found = bank.predict(IMAGES, task="birds")
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, _probabilities(model), rtol=0, atol=1e-6)
    np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-6)
    assert backbone.hash == before
    # The test says something only if the masks, or batch norm, matter.
    bare = renamed(pack_of(trained_model(backbone, kind="none"), backbone), "bare")
    if variant != VARIANTS["classifier_only"]:
        assert np.abs(bank.add(bare).predict(IMAGES, task="bare") - found).max() > 1e-3


def test_a_pack_holds_the_masks_and_no_base_weights(backbone, variant):
    model = trained_model(backbone, **variant)
    pack = pack_of(model, backbone)
    masks = read_masks(model)
    assert list(pack.masks) == [path for path in named_variables(backbone.model) if path in masks]
    for path, mask in masks.items():
        np.testing.assert_array_equal(pack.mask(path), mask)
    norm = (
        {path: value for path, value in named_variables(model).items() if "batch_normalization" in path}
        if variant.get("norm")
        else {}
    )
    assert list(pack.norm) == list(norm)
    for path, value in norm.items():
        np.testing.assert_array_equal(pack.norm[path], value)
    assert pack.mask_kind == variant.get("kind", "binary")
    assert pack.threshold == (5e-3 if masks else None)
    assert pack.base_hash == backbone.hash
    stored = sum(mask.packed.nbytes for mask in pack.masks.values())
    planes = 2 if pack.mask_kind == "ternary" else 1
    assert stored <= planes * (sum(mask.size for mask in masks.values()) / 8 + len(masks))


def test_a_reloaded_model_gives_the_same_pack(tmp_path, backbone):
    model = trained_model(backbone, norm="task")
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert pack_of(loaded, backbone).to_bytes() == pack_of(model, backbone).to_bytes()


def test_changed_base_weights_are_not_left_out_in_silence(backbone):
    model = trained_model(backbone, kind="none")
    variables = named_variables(model)
    # A vector is held, and found again by the bank; a kernel is not held.
    variables["fc/bias"].assign(variables["fc/bias"] + 1)
    assert list(pack_of(model, backbone).parts) == ["vector/fc/bias"]
    variables["fc/kernel"].assign(variables["fc/kernel"] + 1)
    with pytest.raises(PackError, match="'fc/kernel' differs from the base's"):
        pack_of(model, backbone)


def test_a_model_without_a_head_or_of_another_base(backbone):
    with pytest.raises(PackError, match="no Dense layer named 'head'"):
        pack_of(backbone.model, backbone)
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.GlobalAveragePooling2D()(inputs)
    other = keras.Model(inputs, keras.layers.Dense(3, name="head")(x))
    with pytest.raises(PackError, match="lacks the base's weight 'conv2d/kernel'"):
        pack_of(other, backbone)


def test_one_trace_serves_all_tasks_and_batches(backbone):
    bank, models = TaskBank(backbone, cache_bytes=3000), {}
    for classes, variant in enumerate(VARIANTS.values(), start=2):
        models[classes] = trained_model(backbone, classes=classes, seed=classes, **variant)
        bank.add(pack_of(models[classes], backbone, task=f"task{classes}", classes=classes))
    for batch_size in (1, 2, 3, 32):
        for classes, model in models.items():
            found = bank.predict(IMAGES, task=f"task{classes}", batch_size=batch_size)
            assert found.shape == (5, classes)
            np.testing.assert_allclose(found, _probabilities(model), rtol=0, atol=1e-6)
    bank.predict(IMAGES, task=["task2", "task4", "task2", "task7", "task3"])
    assert bank._networks.traces == 1
    assert bank.predict(IMAGES[:0], task="task4").shape == (0, 4)


def test_a_folder_is_added_whole_or_not_at_all(tmp_path, backbone):
    packs = packs_of_all_kinds(backbone)
    for pack in packs:
        pack.save(tmp_path / f"{pack.task}.task.safetensors")
    (tmp_path / "notes.txt").write_text("no pack")
    (tmp_path / "sub").mkdir()
    bank = TaskBank(backbone).add(tmp_path)
    assert bank.names == sorted(VARIANTS)
    for pack in packs:
        expected = TaskBank(backbone).add(pack).predict(IMAGES, task=pack.task)
        np.testing.assert_array_equal(bank.predict(IMAGES, task=pack.task), expected)

    fresh = TaskBank(backbone)
    with pytest.raises(PackError, match="has no file"):
        fresh.add(tmp_path / "sub")
    packs[0].save(tmp_path / "twice.task.safetensors")
    with pytest.raises(PackError, match="two packs of a task named 'binary'"):
        fresh.add(tmp_path)
    (tmp_path / "twice.task.safetensors").write_bytes(b"damaged")
    with pytest.raises(PackError, match="twice.task.safetensors"):
        fresh.add(tmp_path)
    (tmp_path / "twice.task.safetensors").unlink()
    fresh.add(packs[-1])
    with pytest.raises(PackError, match="has a task named 'classifier_only' already"):
        fresh.add(str(tmp_path))
    assert fresh.names == ["classifier_only"]
    with pytest.raises(FileNotFoundError):
        fresh.add(tmp_path / "nothing")


def test_the_bank_keeps_its_own_copy(backbone):
    pack = pack_of(trained_model(backbone), backbone)
    bank = TaskBank(backbone).add(pack)
    expected = bank.predict(IMAGES, task="birds")
    pack.head["bias"] += 5
    for mask in pack.masks.values():
        mask.packed[:] = 0
    np.testing.assert_array_equal(bank.predict(IMAGES, task="birds"), expected)


def test_names_and_info(backbone):
    bank = TaskBank(backbone).add(pack_of(trained_model(backbone), backbone))
    assert bank.names == ["birds"]
    info = bank.info("birds")
    assert info["class_names"] == ["class 0", "class 1", "class 2"]
    assert 0 < info["zeros"] < 1
    assert info["bytes"] == bank.nbytes["tasks"]
    for call in (bank.info, bank.remove, lambda name: bank.predict(IMAGES, task=name)):
        with pytest.raises(ValueError, match="Unknown task 'bird'. Did you mean 'birds'"):
            call("bird")
    bank.remove("birds")
    assert bank.names == []


def test_packs_that_do_not_fit_are_refused(backbone):
    pack = pack_of(trained_model(backbone, norm="task"), backbone)
    bank = TaskBank(backbone).add(pack)
    with pytest.raises(PackError, match="has a task named 'birds' already"):
        bank.add(pack)
    other = small_backbone(seed=1)
    with pytest.raises(PackError, match="trained on another base") as error:
        TaskBank(other).add(pack)
    assert backbone.hash[:12] in str(error.value)
    assert other.hash[:12] in str(error.value)
    with pytest.raises(PackError, match="takes images of 8 pixels"):
        TaskBank(small_backbone(image_size=12)).add(pack)

    with pytest.raises(ValueError, match="`hold` must be one of packed, compressed. Received: hold='zipped'"):
        TaskBank(backbone, hold="zipped")
    for limit in (-1, 1.5, None, True):
        with pytest.raises(ValueError, match="cache_bytes must be an integer of at least 0"):
            TaskBank(backbone, cache_bytes=limit)


def test_packs_with_wrong_parts_are_refused(backbone):
    pack = pack_of(trained_model(backbone, norm="task"), backbone)
    fresh = TaskBank(backbone)
    bits = MaskBits((4, 2), np.zeros((1, 1), np.uint8))
    kernel = pack.head["kernel"]
    for field, value, message in (
        ("masks", {"conv2d_9/kernel": bits}, "for 'conv2d_9/kernel', which 'small' lacks"),
        ("masks", {"fc/kernel": bits}, r"of shape \[4, 2\] for 'fc/kernel', which has shape \[5, 9\]"),
        ("norm", {"fc/bias": np.zeros(9, "float32")}, "brings batch norm for 'fc/bias', which is none"),
        ("norm", {"batch_normalization/beta": np.zeros(9, "float32")}, r"which has shape \[6\]"),
        ("head", {"kernel": kernel[1:], "bias": pack.head["bias"]}, "takes 8 features, and 'small' gives 9"),
    ):
        wrong = with_arrays(renamed(pack, "wrong"), **{field: value})
        with pytest.raises(PackError, match=message):
            fresh.add(wrong)
    wrong = renamed(pack, "wrong")
    wrong.head["bias"] = np.zeros(7, "float32")
    with pytest.raises(PackError, match=r"a kernel \[F, 3\]"):
        fresh.add(wrong)
    assert fresh.names == []


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (IMAGES[0], r"an array \[N, 8, 8, 3\]"),
        ([IMAGES[0], IMAGES[0, :5]], r"an array \[N, 8, 8, 3\], which these cannot become"),
        (IMAGES[:, :7], r"shape \[5, 7, 8, 3\]"),
        (IMAGES[..., :1], r"an array \[N, 8, 8, 3\]"),
        (IMAGES.astype("str"), "must hold integers or floating point"),
        (IMAGES > 3, "must hold integers or floating point"),
        (IMAGES.astype("complex64"), "must hold integers or floating point"),
        (np.full((1, 8, 8, 3), np.nan, "float32"), r"values in \[0, 255\]"),
        (np.full((1, 8, 8, 3), -1), r"values in \[0, 255\]"),
        (np.full((1, 8, 8, 3), 255.5), r"values in \[0, 255\]"),
        (np.full((2, 8, 8, 3), 0.5, "float16"), r"float16, end at 0.5 as if they were scaled to \[0, 1\]; multiply"),
        (np.eye(24).reshape(3, 8, 8, 3), r"end at 1.0 as if they were scaled to \[0, 1\]"),
        # One in a batch of others.
        (np.stack([IMAGES[0], IMAGES[1] / 256]), r"image 1 of these, of type float.*as if they were scaled"),
    ],
)
def test_images_are_checked(backbone, images, message):
    bank = TaskBank(backbone).add(pack_of(trained_model(backbone), backbone))
    with pytest.raises(ValueError, match=message):
        bank.predict(images, task="birds")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda bank: bank.predict(IMAGES, task="birds", batch_size=0), "batch_size must be an integer of at least 1"),
        (lambda bank: bank.predict(IMAGES, task="birds", batch_size=2.5), "batch_size must be an integer"),
        (lambda bank: bank.predict(IMAGES, task=5), "task must be one name, or one for each image. Received: 5"),
        (lambda bank: bank.predict(IMAGES, task=["birds", 5]), "Unknown task '5'. Valid: birds"),
        (lambda bank: bank.info(["birds"]), "Unknown task .* Valid: birds"),
        (lambda bank: bank.add(5), "added as a TaskPack, a file, a URL or a folder. Received: 5"),
        (lambda bank: TaskBank(bank.backbone.model), "backbone must be a Backbone; Backbone.from_model makes one"),
    ],
)
def test_arguments_are_checked(backbone, call, message):
    bank = TaskBank(backbone).add(pack_of(trained_model(backbone), backbone))
    with pytest.raises(ValueError, match=message):
        call(bank)


def test_images_of_any_number_type_give_the_same(backbone):
    bank = TaskBank(backbone).add(pack_of(trained_model(backbone), backbone))
    expected = bank.predict(IMAGES, task="birds")
    for images in (IMAGES.astype("int64"), IMAGES.astype("float64"), tf.constant(IMAGES), IMAGES.tolist()):
        np.testing.assert_array_equal(bank.predict(images, task="birds"), expected)
