"""What a task changes of its base beside masks and batch norm: in files, on a base, in a bank."""

import dataclasses

import keras
import numpy as np
import pytest

from piggyback_tf.backbones import named_variables
from piggyback_tf.packs import PackError, TaskBank, TaskPack
from piggyback_tf.packs.held_task import HeldTask
from piggyback_tf.packs.materialise import BaseTensors
from piggyback_tf.packs.parts import composed_kernel, count_parts, split_name
from tests.packs.helpers import (
    affine_parts,
    base_of,
    forge,
    make_pack,
    pack_of,
    parts_of_all_roles,
    renamed,
    small_backbone,
    trained_model,
    with_arrays,
)

IMAGES = np.random.default_rng(1).integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)


def _pack(kind="binary", **changes):
    return make_pack(kind, **{"parts": parts_of_all_roles()} | changes)


def _expected(kernel, parts, path, mask=None):
    """Returns the kernel of a task, as the format says it: one product after another, in float32."""
    rows = kernel.reshape(-1, kernel.shape[-1]).astype(np.float32)
    if f"affine/{path}" in parts:
        k0, k1, k2, k3 = parts[f"affine/{path}"]
        m = mask.reshape(rows.shape).astype(np.float32)
        rows = rows * (k0 + k3 * m) + (k1 + k2 * m)
    if f"scale/{path}" in parts:
        rows = rows * np.broadcast_to(parts[f"scale/{path}"], kernel.shape).reshape(rows.shape)
    if f"down/{path}" in parts:
        a, b = parts[f"down/{path}"].reshape(len(rows), -1), parts[f"up/{path}"]
        added = np.zeros(rows.shape, np.float32)
        for i in range(rows.shape[0]):
            for j in range(rows.shape[1]):
                total = a[i, 0] * b[0, j]
                for k in range(1, len(b)):
                    total = np.float32(total + np.float32(a[i, k] * b[k, j]))
                added[i, j] = total
        rows = rows + added
    return rows.reshape(kernel.shape)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_a_kernel_is_made_in_a_fixed_order(rank):
    rng = np.random.default_rng(rank)
    kernel = rng.standard_normal((2, 3, 4, 5)).astype("float32")
    parts = {
        "down/c/kernel": rng.standard_normal((2, 3, 4, rank)).astype("float32"),
        "up/c/kernel": rng.standard_normal((rank, 5)).astype("float32"),
        "scale/c/kernel": rng.standard_normal((1, 1, 4, 1)).astype("float32"),
    }
    assert composed_kernel(kernel, parts, "c/kernel").tobytes() == _expected(kernel, parts, "c/kernel").tobytes()
    assert composed_kernel(kernel, parts, "d/kernel").tobytes() == kernel.tobytes()
    parts["up/c/kernel"][:] = 0
    del parts["scale/c/kernel"]
    assert composed_kernel(kernel, parts, "c/kernel").tobytes() == kernel.tobytes()


@pytest.mark.parametrize("kind", ["binary", "ternary"])
def test_an_affine_mask_is_a_sum_of_four(kind):
    pack = _pack(kind, parts=affine_parts())
    rng, path = np.random.default_rng(0), "block/dense/kernel"
    kernel = rng.standard_normal((7, 4)).astype("float32")
    mask, parts = pack.mask(path), {f"affine/{path}": pack.parts[f"affine/{path}"]}
    k0, k1, k2, k3 = parts[f"affine/{path}"].astype(np.float64)
    found = composed_kernel(kernel, parts, path, mask)
    np.testing.assert_allclose(found, k0 * kernel + k1 + (k2 + k3 * kernel) * mask, rtol=1e-5, atol=1e-6)
    # With the numbers that they start with, the mask is the plain one.
    plain = {f"affine/{path}": np.array([0, 0, 0, 1], "float32")}
    np.testing.assert_array_equal(composed_kernel(kernel, plain, path, mask), kernel * mask)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64"])
@pytest.mark.parametrize("hold", ["packed", "compressed"])
@pytest.mark.parametrize(
    ("kind", "affine"), [("binary", False), ("ternary", False), ("none", False), ("binary", True), ("ternary", True)]
)
def test_a_task_on_variables_of_any_dtype(kind, hold, dtype, affine):
    rng, pack = np.random.default_rng(0), _pack(kind, parts=affine_parts() if affine else parts_of_all_roles())
    shapes = {"conv/kernel": (3, 3, 3, 5), "conv/bias": (5,), "block/dense/kernel": (7, 4), "other/kernel": (3, 3)}
    shapes |= {path: value.shape for path, value in pack.norm.items()}
    variables = {path: keras.Variable(rng.standard_normal(shape), dtype=dtype) for path, shape in shapes.items()}
    tensors = BaseTensors(variables).materialise(HeldTask.of(pack, hold))
    for (path, variable), tensor in zip(variables.items(), tensors.weights, strict=True):
        own = np.asarray(variable.value)
        expected = own
        if path.endswith("kernel"):
            mask = pack.mask(path) if path in pack.masks else None
            plain = mask is None or f"affine/{path}" in pack.parts
            masked = own if plain else np.where(mask == 0, 0, mask * own)
            wide = _expected(masked.astype(np.float64 if dtype == "float64" else np.float32), pack.parts, path, mask)
            if dtype == "float64":
                np.testing.assert_allclose(np.asarray(tensor), wide, rtol=1e-4, atol=1e-5)
                continue
            expected = wide.astype(own.dtype)
        elif path == "conv/bias":
            expected = pack.parts["vector/conv/bias"].astype(own.dtype)
        else:
            expected = pack.norm[path].astype(own.dtype)
        assert np.asarray(tensor).tobytes() == expected.tobytes(), path


def test_a_file_gives_back_the_parts():
    for pack in (_pack(), _pack("none", norm={}), _pack("ternary").astype("float16")):
        data = pack.to_bytes()
        loaded = TaskPack.from_bytes(data, base=base_of(pack))
        assert loaded.format_version == pack.format_version == pack.saved_version == 5
        assert loaded.to_bytes() == data
        assert loaded.content_digest() == pack.content_digest()
        assert list(loaded.parts) == list(pack.parts)
        for name, value in pack.parts.items():
            np.testing.assert_array_equal(loaded.parts[name], value)
    affine = _pack(parts=affine_parts())
    data = affine.to_bytes()
    loaded = TaskPack.from_bytes(data, base=base_of(affine))
    assert loaded.format_version == affine.saved_version == 6
    assert loaded.to_bytes() == data and list(loaded.parts) == list(affine.parts)
    # Without parts, it is what older programs read; and its digest is that of before.
    plain = with_arrays(_pack(), parts={})
    assert plain.saved_version == make_pack().format_version == 4
    assert plain.content_digest() == make_pack().content_digest()
    assert dataclasses.replace(plain, format_version=None).to_bytes() == make_pack().to_bytes()


def test_half_precision_halves_them():
    pack = _pack("none", norm={})
    numbers = sum(value.size for value in pack.parts.values()) + sum(value.size for value in pack.head.values())
    half = pack.astype("float16")
    assert abs(len(pack.to_bytes()) - len(half.to_bytes()) - 2 * numbers) <= 16
    value = pack.parts["up/block/dense/kernel"]
    np.testing.assert_array_equal(half.parts["up/block/dense/kernel"], value.astype("float16").astype("float32"))
    value[0, 0] = 1e6
    with pytest.raises(PackError, match="'up/block/dense/kernel' holds 1000000.0, which is too large for float16"):
        pack.astype("float16")


def _without(name):
    return {key: value for key, value in parts_of_all_roles().items() if key != name}


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"tilt/conv/kernel": np.ones(3, "float32")}, "'tilt/conv/kernel' begins with none of scale, down, up, vector"),
        ({"vector/../x": np.ones(3, "float32")}, "no path of a weight"),
        (_without("up/block/dense/kernel"), "has one factor of what is added to it"),
        (_without("down/block/dense/kernel"), "has one factor of what is added to it"),
        ({"affine/fc/kernel": np.ones(4, "float32")}, "'fc/kernel' has what makes a mask affine, and no mask"),
        ({"affine/conv/kernel": np.ones(3, "float32")}, r"'conv/kernel' affine must be four numbers. Received: .3."),
        ({"vector/conv/bias": np.ones((5, 1), "float32")}, "must be a vector"),
        ({"vector/conv/kernel": np.ones(5, "float32")}, "changed in two ways"),
        ({"vector/bn/gamma": np.ones(5, "float32")}, "'bn/gamma' is changed in two ways"),
        ({"scale/bn/gamma": np.ones(5, "float32")}, "'bn/gamma' is changed in two ways"),
        ({"vector/a": np.ones(5, "float32"), "scale/a": np.ones(5, "float32")}, "as a whole, and changed as a kernel"),
        ({"vector/conv/bias": np.ones(5)}, "'vector/conv/bias' must be float32"),
        ({"vector/conv/bias": np.full(5, np.nan, "float32")}, "'vector/conv/bias' holds NaN"),
        (
            {"down/fc/kernel": np.ones((3, 4), "float32"), "up/fc/kernel": np.ones((4, 9), "float32")},
            "r of at most the smaller side",
        ),
        (
            {"down/fc/kernel": np.ones((3, 2), "float32"), "up/fc/kernel": np.ones((1, 9), "float32")},
            r"Received: \[3, 2\] and \[1, 9\]",
        ),
    ],
)
def test_parts_that_do_not_fit_are_refused(parts, message):
    with pytest.raises(PackError, match=message):
        _pack(parts=parts)


def _line(place, **changes):
    """Returns a change of the index: other values in the entry of a part."""
    return lambda index: index["parts"][place].update(changes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"index": lambda index: index.__delitem__("parts")}, "does not list masks and batch norm, and parts"),
        ({"index": lambda index: index.update(parts=[])}, "lists no parts"),
        ({"index": lambda index: index.update(parts={})}, "does not list masks and batch norm, and parts"),
        ({"format_version": 6}, "makes masks affine if it is of version 6, and then alone"),
        ({"index": _line(0, role="affine", shape=[4])}, "makes masks affine if it is of version 6, and then alone"),
        ({"format_version": 4}, "should not hold the tensor 'parts'|does not list masks and batch norm"),
        ({"index": _line(0, role="tilt")}, "a part of the role 'tilt'"),
        ({"index": _line(0, role="scale/conv", path="kernel")}, "a part of the role 'scale/conv'"),
        ({"index": _line(0, role=None)}, "its index of parts is wrong"),
        ({"index": _line(0, path=3)}, "its index of parts is wrong"),
        ({"index": _line(0, more=3)}, "its index of parts is wrong"),
        ({"index": _line(0, shape="5")}, "its index is wrong at 'conv/kernel'"),
        ({"index": _line(0, shape=[-5])}, "no shape of a weight"),
        ({"index": _line(0, shape=[1, 1, 1, 6])}, "more or fewer numbers of its parts than its index lists"),
        ({"index": _line(0, shape=[1 << 30] * 8)}, "more or fewer numbers of its parts"),
        ({"index": _line(0, shape=[1, 1, 5, 1])}, "checksum is not that of its content"),
        ({"index": lambda index: index["parts"].append(index["parts"][0])}, "lists a weight twice"),
        ({"index": lambda index: index["parts"].__delitem__(-1)}, "has one factor"),
        ({"tensors": {"parts": ...}}, "more or fewer numbers of its parts"),
        ({"tensors": {"parts": np.zeros(32, "float16")}}, "has the tensor 'parts' as 'F16'"),
        ({"tensors": {"parts": np.zeros(32, "float32")}}, "checksum is not that of its content"),
    ],
)
def test_wrong_content_is_refused(change, message):
    with pytest.raises(PackError, match=message) as error:
        TaskPack.from_bytes(forge(_pack(), **change), "some.task.safetensors")
    assert "'some.task.safetensors'" in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shapes": {"block/dense/kernel": None}}, "Task 'birds' changes 'block/dense/kernel', which 'small' lacks"),
        ({"shapes": {"block/dense/kernel": (7, 5)}}, "'up' of shape .2, 4. for 'block/dense/kernel', which has shape"),
        ({"shapes": {"block/dense/kernel": (8, 4)}}, "'down' of shape .7, 2. for 'block/dense/kernel', which has"),
        ({"shapes": {"conv/kernel": (3, 3, 3, 6)}}, "'scale' of shape .1, 1, 1, 5. for 'conv/kernel', which has shape"),
        ({"shapes": {"conv/bias": (6,)}}, "'vector' of shape .5. for 'conv/bias', which has shape .6."),
        ({"norm_paths": frozenset(["conv/bias"])}, "a variable of batch norm in 'small', as if it were none"),
        ({"maskable": frozenset(["conv/kernel"])}, "changes the kernel 'block/dense/kernel', and 'small' would not"),
    ],
)
def test_another_base_is_refused(changes, message):
    pack = _pack("none", norm={})
    base = base_of(pack)
    assert TaskPack.from_bytes(pack.to_bytes(), base=base).parts
    if "shapes" in changes:
        shapes = {**base.shapes, **changes["shapes"]}
        changes = {"shapes": {path: shape for path, shape in shapes.items() if shape}}
    with pytest.raises(PackError, match=message):
        TaskPack.from_bytes(pack.to_bytes(), base=dataclasses.replace(base, **changes))


@pytest.fixture(scope="module", name="backbone")
def _backbone():
    return small_backbone()


def _changed(backbone, kind="none"):
    """Returns a pack that changes a kernel, a bias and, beside its masks, scales channels."""
    rng = np.random.default_rng(5)
    pack = pack_of(trained_model(backbone, kind=kind), backbone)
    shapes = {path: variable.shape for path, variable in named_variables(backbone.model).items()}
    parts = {
        "down/conv2d/kernel": rng.standard_normal((*shapes["conv2d/kernel"][:-1], 2)),
        "up/conv2d/kernel": rng.standard_normal((2, shapes["conv2d/kernel"][-1])),
        "scale/conv2d/kernel": rng.standard_normal((1, 1, 1, shapes["conv2d/kernel"][-1])),
        "vector/fc/bias": rng.standard_normal(shapes["fc/bias"]),
    }
    return with_arrays(pack, parts={name: value.astype("float32") for name, value in parts.items()})


@pytest.mark.parametrize("hold", ["packed", "compressed"])
@pytest.mark.parametrize("kind", ["none", "binary"])
def test_a_bank_has_them_beside_tasks_with_masks(backbone, kind, hold):
    plain = renamed(pack_of(trained_model(backbone, seed=3), backbone), "masks")
    alone = TaskBank(backbone, hold=hold).add(plain).predict(IMAGES, "masks")
    pack = _changed(backbone, kind)
    bank = TaskBank(backbone, hold=hold, cache_bytes=0).add(plain).add(pack)
    np.testing.assert_array_equal(bank.predict(IMAGES, "masks"), alone)
    found = bank.predict(IMAGES, task=["birds", "masks"] * 3)
    np.testing.assert_array_equal(np.stack(found[::2]), bank.predict(IMAGES[::2], "birds"))
    np.testing.assert_array_equal(np.stack(found[1::2]), bank.predict(IMAGES[1::2], "masks"))
    merged = bank.to_keras("birds")
    np.testing.assert_allclose(merged(IMAGES), bank.predict(IMAGES, "birds"), rtol=0, atol=1e-6)
    values, base = (
        {path: v.numpy() for path, v in named_variables(model).items()} for model in (merged, backbone.model)
    )
    kernel = base["conv2d/kernel"] * (pack.mask("conv2d/kernel") if pack.masks else 1)
    expected = _expected(kernel.astype("float32"), pack.parts, "conv2d/kernel")
    np.testing.assert_array_equal(values["conv2d/kernel"], expected)
    np.testing.assert_array_equal(values["fc/bias"], pack.parts["vector/fc/bias"])
    without = TaskBank(backbone).add(with_arrays(pack, parts={})).predict(IMAGES, "birds")
    assert np.abs(without - bank.predict(IMAGES, "birds")).max() > 1e-3


def test_a_vector_that_a_loop_of_ones_own_changed_is_held(backbone):
    model = trained_model(backbone, kind="none")
    model.get_layer("fc").bias.assign(np.arange(9.0))
    pack = pack_of(model, backbone)
    assert list(pack.parts) == ["vector/fc/bias"]
    np.testing.assert_array_equal(pack.parts["vector/fc/bias"], np.arange(9.0, dtype="float32"))
    model.get_layer("fc").kernel.assign(np.zeros(model.get_layer("fc").kernel.shape))
    with pytest.raises(PackError, match="'fc/kernel' differs from the base's, and a pack holds no base weights"):
        pack_of(model, backbone)


def test_they_are_told_of_in_words():
    assert count_parts(parts_of_all_roles()) == {
        "scales of channels": (1, 5),
        "vectors": (1, 5),
        "low rank": (1, 22),
    }
    assert split_name("down/a/b") == ("down", "a/b")
