"""What a network computes with its weights, as text and as a digest."""

import dataclasses
import functools
import inspect
import json
from pathlib import Path

import keras
import numpy as np
import pytest

from piggyback_tf.backbones import Backbone, Structure, list_backbones, load_backbone, named_variables, rename_layers
from piggyback_tf.backbones import layer_settings as rows
from piggyback_tf.backbones.registry import get_entry
from piggyback_tf.backbones.structure_record import ANSWERS, check_same_computation
from piggyback_tf.backbones.structure_text import model_structure, structure_text

layers = keras.layers
# Digests of all networks of the registry at their default image size, written with Keras 3.15.1; 3.12.0 gives the same.
DIGESTS = json.loads((Path(__file__).parent / "structures.json").read_text())
FAST = ("mobilenet_v2", "mobilenet_v3_small", "resnet50", "vgg16", "convnext_tiny", "shapesnet")


def digest_of(name):
    """Returns the digest of a network of the registry, built without memory for its weights."""
    entry = get_entry(name)
    with keras.StatelessScope(initialize_variables=False):
        model = entry.build(entry.image_size)
    rename_layers(model)
    return model_structure(model, entry.image_size)


@pytest.mark.parametrize("name", FAST)
def test_a_network_has_the_digest_that_it_had(name):
    assert digest_of(name) == Structure(DIGESTS[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(DIGESTS.keys() - set(FAST)))
def test_every_network_has_the_digest_that_it_had(name):
    assert digest_of(name) == Structure(DIGESTS[name])


def test_the_digest_of_every_network_is_committed():
    assert DIGESTS.keys() == set(list_backbones())
    assert len(set(DIGESTS.values())) == len(DIGESTS) == 48


def test_a_network_built_twice_has_one_structure():
    first = load_backbone("inception_v3", weights="random", image_size=75)
    second = load_backbone("inception_v3", weights="random", image_size=75, seed=1)
    assert first.structure == second.structure
    assert first.hash != second.hash


def network(
    pixels=layers.Rescaling, scale=1 / 127.5, conv=None, norm=None, act=None, pool=None, join=None, inputs=None
):
    """Returns a small network; what is given takes the place of a layer."""
    images = keras.Input((16, 16, 3)) if inputs is None else inputs
    x = pixels(scale, -1.0)(images)
    x = layers.Conv2D(**{"filters": 4, "kernel_size": 3, "name": "conv", "padding": "same"} | (conv or {}))(x)
    x = layers.BatchNormalization(**{"name": "bn"} | (norm or {}))(x)
    y = (act or layers.ReLU())(x)
    x = (join or layers.Add())([x, y])
    return keras.Model(images, (pool or layers.GlobalAveragePooling2D())(x), name="net")


SAME = {
    "names": {"act": layers.ReLU(name="another")},
    "initialisers": {"conv": {"kernel_initializer": "ones", "bias_initializer": "ones"}},
    "regularisers": {"conv": {"kernel_regularizer": "l2", "activity_regularizer": "l1"}},
    "trainable": {"conv": {"trainable": False}, "norm": {"trainable": False}},
    "dtype": {"conv": {"dtype": "mixed_bfloat16"}},
    "momentum": {"norm": {"momentum": 0.5}},
    "a whole number as it is": {"act": layers.ReLU(negative_slope=0)},
    "an axis from the end": {"norm": {"axis": 3}},
    "a list for a tuple": {"conv": {"strides": [1, 1]}},
    "images of any size": {"inputs": keras.Input((None, None, 3))},
}
OTHER = {
    "scaling": {"scale": 1 / 255},
    "no scaling": {"pixels": lambda *_: layers.Identity()},
    "strides": {"conv": {"strides": 2}},
    "padding": {"conv": {"padding": "valid"}},
    "dilation": {"conv": {"dilation_rate": 2}},
    "activation": {"conv": {"activation": "tanh"}},
    "another activation": {"conv": {"activation": "relu"}},
    "activation, a layer": {"conv": {"activation": layers.LeakyReLU(0.1)}},
    "epsilon": {"norm": {"epsilon": 2e-3}},
    "slope": {"act": layers.ReLU(negative_slope=0.1)},
    "highest value": {"act": layers.ReLU(max_value=6)},
    "another layer": {"act": layers.LeakyReLU(0.1)},
    "a function": {"act": layers.Activation("relu")},
    "pooling": {"pool": layers.GlobalMaxPooling2D()},
    "addition": {"join": layers.Subtract()},
    "order": {"join": lambda pair: layers.Subtract()(pair[::-1])},
    "graph": {"join": lambda pair: pair[1]},
    "operation": {"join": lambda pair: pair[0] + pair[1]},
    "images of whole numbers": {"inputs": keras.Input((16, 16, 3), dtype="uint8")},
}


@pytest.mark.parametrize("name", SAME)
def test_what_makes_no_difference(name):
    assert structure_text(network(**SAME[name])) == structure_text(network())


@functools.cache
def other_text(name):
    return structure_text(network(**OTHER[name]))


@pytest.mark.parametrize("name", OTHER)
def test_what_makes_a_difference(name):
    text, known = other_text(name)
    assert known
    assert text not in (structure_text(network())[0], *(other_text(key)[0] for key in OTHER if key != name))


@pytest.mark.parametrize(
    "operation", [lambda x: x * 2, lambda x: x * 3, lambda x: 2 - x, lambda x: x - 2, lambda x: -x]
)
def test_constants_of_operations_make_a_difference(operation):
    def text(function):
        return structure_text(network(join=lambda pair: layers.Add()([pair[0], function(pair[1])])))[0]

    assert text(operation) == text(operation)
    assert text(operation) not in [text(other) for other in (lambda x: x * 4, lambda x: 4 - x, lambda x: x + 0)]


def test_the_text_of_a_network():
    images = keras.Input((8, 8, 3))
    inner = keras.Sequential(
        [keras.Input((None, None, 3)), layers.Conv2D(2, 3, strides=2), layers.ReLU(6.0)], name="inner"
    )
    first, second = keras.ops.split(inner(images), 2, axis=-1)
    x = keras.ops.multiply(inner(images)[:, 0:3, ..., 0], first[..., 0] * 0.5 + second[..., 0])
    model = keras.Model(images, layers.Dense(3, name="fc")(layers.Flatten()(x)))
    conv = (
        "layers.Conv2D(strides=[2, 2], padding='valid', data_format='channels_last', dilation_rate=[1, 1], groups=1, "
    )
    conv = f"'inner/conv2d' {conv}activation=linear) [%0]"
    relu = "layers.ReLU(max_value=6, negative_slope=0, threshold=0)"
    text, known = structure_text(model)
    assert known
    assert text.splitlines() == [
        "0 = input 0 []",
        f"1 = {conv}",
        f"2 = {relu} [%1]",
        "3 = ops.GetItem() [%2, [None:None:None, 0:3:None, Ellipsis, 0]]",
        f"4 = {conv}",
        f"5 = {relu} [%4]",
        "6 = ops.Split(indices_or_sections=2, axis=-1) [%5]",
        "7 = ops.GetItem() [%6.0, [Ellipsis, 0]]",
        "8 = ops.Multiply() [%7, 0.5]",
        "9 = ops.GetItem() [%6.1, [Ellipsis, 0]]",
        "10 = ops.Add() [%8, %9]",
        "11 = ops.Multiply() [%3, %10]",
        "12 = layers.Flatten(data_format='channels_last') [%11]",
        "13 = 'fc' layers.Dense(activation=linear) [%12]",
        "output [%13]",
    ]


def test_a_copy_and_a_file_give_the_same_text(tmp_path):
    images = keras.Input((8, 8, 3))
    x = network(inputs=images, pool=layers.Identity())(images) + np.array([[1.0, 2.0, 3.0, 4.0]], "float32")
    x = keras.ops.pad(x[:, 1:], [[0, 0], [1, 0], [0, 0], [0, 0]])
    x = layers.MultiHeadAttention(2, 3)(x, x, use_causal_mask=True)
    x = layers.Dropout(0.5)(keras.ops.flip(x, axis=-1), training=False)
    model = keras.Model(images, layers.GlobalAveragePooling2D()(keras.ops.clip(x, 0, 6)))
    text, known = structure_text(model)
    assert known
    model.save(tmp_path / "model.keras")
    for copy in (keras.models.clone_model(model), keras.models.load_model(tmp_path / "model.keras")):
        rename_layers(copy)
        assert structure_text(copy) == (text, True)
    assert structure_text(keras.Model(model.inputs, model.outputs))[0] == text
    assert "use_causal_mask: True" in text and "[[1, 2, 3, 4]]" in text


def test_a_nested_model_counts_as_its_layers():
    images = keras.Input((16, 16, 3))
    plain = layers.GlobalMaxPooling2D()(layers.ReLU()(layers.Rescaling(2.0)(images)))
    stem = keras.Sequential([keras.Input((None, None, 3)), layers.Rescaling(2.0)])
    inner = keras.Input((16, 16, 3))
    nested = keras.Model(inner, layers.GlobalMaxPooling2D()(layers.ReLU()(stem(inner))))(images, training=False)
    sequential = keras.Sequential([images, stem, layers.ReLU(), layers.GlobalMaxPooling2D()])
    texts = [structure_text(model) for model in (keras.Model(images, plain), keras.Model(images, nested), sequential)]
    assert texts[0] == texts[1] == texts[2]


def test_layers_with_weights_are_told_apart_by_their_paths():
    def model(order):
        images = keras.Input((8, 8, 3))
        x = images
        convs = {name: layers.Conv2D(3, 3, name=name) for name in ("a", "b")}
        for name in order:
            x = convs[name](x)
        return keras.Model(images, layers.GlobalAveragePooling2D()(x))

    first, second = model("ab"), model("ba")
    second.set_weights([value for name in "ba" for value in first.get_layer(name).get_weights()])
    assert Backbone.from_model(first).hash == Backbone.from_model(second).hash
    assert structure_text(first) != structure_text(second)


class Doubled(layers.Layer):
    """A layer of somebody's own."""

    def call(self, inputs):
        return 2 * inputs


class Negated(keras.Model):
    """A functional model that computes something else than its graph."""

    def call(self, inputs, training=None, mask=None):
        return -super().call(inputs, training=training, mask=mask)


class OtherConv(layers.Conv2D):
    """A subclass, which may compute with its settings in ways of its own."""


def negated():
    images = keras.Input((16, 16, 3))
    return Negated(images, network(inputs=images).output)


UNKNOWN = {
    "Lambda": lambda: network(act=layers.Lambda(lambda x: x + 1)),
    "Doubled": lambda: network(act=Doubled()),
    "Activation": lambda: network(act=layers.Activation(lambda x: x + 1)),
    "OtherConv": lambda: network(act=OtherConv(4, 1, name="own")),
    "Negated": negated,
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_is_not_listed_is_unknown(name):
    model = UNKNOWN[name]()
    text, known = structure_text(model)
    assert not known
    assert sum(line.partition(" = ")[2].startswith("unknown ") for line in text.splitlines()) == 1
    assert f"{name} [%" in text
    structure = model_structure(model, 16)
    assert len(structure.answers) == ANSWERS and np.ptp(structure.answers) > 0
    assert structure.is_like(model_structure(model, 16))
    # As another machine might round.
    assert structure.is_like(Structure(structure.digest, tuple(1.00001 * number for number in structure.answers)))


def test_answers_stand_in_for_what_is_unknown():
    def structure(function, scale=1 / 127.5):
        model = network(act=layers.Lambda(function), scale=scale)
        rng = np.random.default_rng(0)
        model.set_weights([rng.random(value.shape).astype("float32") for value in model.get_weights()])
        return model_structure(model, 16)

    first = structure(lambda x: x * 0.5)
    assert first.is_like(structure(lambda y: y / 2))
    other = structure(lambda x: x * 0.51)
    assert first.digest == other.digest and not first.is_like(other)
    assert not first.is_like(structure(lambda x: x * 0.5, scale=1 / 127))
    with pytest.raises(ValueError, match=r"'t' is for a base with these weights .* \(other answers to two images\)"):
        check_same_computation("'t'", first, other)


def test_numbers_that_are_not_finite_are_answers():
    structure = model_structure(network(act=layers.Lambda(lambda x: x * np.inf)), 16)
    assert None in structure.answers
    assert structure.is_like(structure) and not structure.is_like(Structure(structure.digest, (1.0,) * ANSWERS))
    assert Structure.from_json(json.loads(json.dumps(structure.to_json()))) == structure


@pytest.mark.filterwarnings("ignore:Layer .* does not have a `quantize` method:UserWarning:keras")
@pytest.mark.parametrize("change", ["quantize", "lora"])
def test_a_layer_that_computes_with_more_than_its_kernel_is_unknown(change):
    model = keras.Sequential([keras.Input((8, 8, 3)), layers.GlobalMaxPooling2D(), layers.Dense(4, name="fc")])
    assert structure_text(model)[1]
    if change == "quantize":
        model.quantize("int8")
    else:
        model.get_layer("fc").enable_lora(2)
    assert not structure_text(model)[1]


def test_values_that_are_no_structure():
    good = Structure("ab" * 32, (1.0, None, *[0.5] * 14))
    assert Structure.from_json(good.to_json()) == good
    assert Structure.from_json({"task": "birds"}) is None
    for change in ({"base_structure": "AB" * 32}, {"base_structure": 7}, {"base_structure": None}):
        with pytest.raises(ValueError, match="64 hexadecimal digits"):
            Structure.from_json(good.to_json() | change)
    for answers in ([1.0] * 15, [True] * 16, [float("nan")] * 16, [10**400] * 16, "x" * 16, {}):
        with pytest.raises(ValueError, match="a list of 16 numbers or nulls"):
            Structure.from_json(good.to_json() | {"base_answers": answers})


# Arguments of constructors that a row may leave out: they do not change an answer, or the shapes of weights show them.
NO_SETTINGS = {
    *(
        "self",
        "args",
        "kwargs",
        "name",
        "dtype",
        "trainable",
        "seed",
        "rank",
        "pool_dimensions",
        "pool_mode",
        "filters",
    ),
    *(
        "units",
        "kernel_size",
        "use_bias",
        "bias_axes",
        "output_shape",
        "momentum",
        "renorm_momentum",
        "renorm_clipping",
    ),
    *("synchronized", "rate", "stddev", "noise_shape", "drop_path_rate", "dropout", "flash_attention", "l1", "l2"),
    *("init_values", "projection_dim"),
    # Seen by `changed_kernel`.
    *("lora_rank", "lora_alpha", "quantization_config", "gptq_unpacked_column_size"),
    # Of boxes beside images, and of augmentation that these layers share a base class with.
    *("factor", "bounding_box_format"),
}
ATTRIBUTES = {
    "mean": "input_mean",
    "variance": "input_variance",
    **{n: f"_{n}" for n in ("sliding_window", "use_gate")},
}


def _arguments(kind):
    for base in kind.__mro__:
        if base.__module__.startswith("keras.src.layers.layer") or not base.__module__.startswith("keras."):
            return
        if "__init__" in vars(base):
            yield from inspect.signature(base.__init__).parameters


def _listed():
    application = keras.src.applications
    for name in rows._LAYERS:
        homes = (keras.layers, application.convnext, application.inception_resnet_v2)
        yield next(getattr(home, name) for home in homes if hasattr(home, name)), rows._LAYERS[name].split()
    for name in rows._OPERATIONS:
        homes = (keras.src.ops.numpy, keras.src.ops.nn, keras.src.ops.image, keras.src.ops.core, keras.src.ops.math)
        yield next(getattr(home, name) for home in homes if hasattr(home, name)), rows._OPERATIONS[name].split()


def test_rows_name_all_settings_of_their_classes_and_no_others():
    forgotten, wrong = {}, {}
    for kind, settings in _listed():
        arguments = {ATTRIBUTES.get(name, name) for name in _arguments(kind)}
        ends = ("_initializer", "_regularizer", "_constraint")
        left_out = {name for name in arguments - NO_SETTINGS - set(settings) if not name.endswith(ends)}
        if left_out:
            forgotten[kind.__name__] = left_out
        functions = [value for base in kind.__mro__ for value in vars(base).values() if inspect.isfunction(value)]
        known = {name for function in functions for name in function.__code__.co_names}
        if missing := set(settings) - known - set(dir(kind)):
            wrong[kind.__name__] = missing
    assert not wrong
    assert forgotten == {f"SpatialDropout{n}D": {"data_format"} for n in (2, 3)}, "which is of training alone"


def test_a_pack_of_a_network_is_not_for_the_same_weights_without_its_scaling():
    backbone = load_backbone("mobilenet_v2", weights="random", image_size=32)
    bare = keras.applications.MobileNetV2(include_top=False, weights=None, pooling="avg", input_shape=(32, 32, 3))
    values = named_variables(backbone.model)
    for path, variable in named_variables(bare).items():
        variable.assign(values[path])
    other = Backbone.from_model(bare)
    assert other.hash == backbone.hash
    assert not other.structure.is_like(backbone.structure)
    assert dataclasses.replace(other, name="x", weights="y").structure == other.structure
