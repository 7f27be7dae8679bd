"""Hard attention to the task: gates, their gradient, and the weights that earlier tasks need."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from piggyback_tf.backbones import Backbone, load_backbone, named_layers, named_variables
from piggyback_tf.methods import METHODS, Memory
from piggyback_tf.methods.hat import Annealing, HATConfig, LearnedGates, attention, held_layers, held_units
from piggyback_tf.methods.parts.units import UnitGraph
from piggyback_tf.training import train_task
from tests.methods.learning import answers, check_old_tasks_stay, learn, noise_images
from tests.methods.toy import SIZE, toy_backbone, toy_settings, toy_tasks

HAT = METHODS["hat"]
layers = keras.layers


def _backbone(body, channels=3):
    """Returns a backbone of 8x8 images whose batch norms do not keep zeros."""
    keras.utils.set_random_seed(0)
    images = keras.Input((8, 8, channels), name="images")
    model = keras.Model(images, body(images), name="net")
    for path, variable in named_variables(model).items():
        if path.endswith(("/beta", "/moving_mean", "/bias")):
            variable.assign(np.random.default_rng(1).uniform(0.5, 1.0, variable.shape))
    return Backbone.from_model(model)


def _many_kinds(x):
    """Depthwise and grouped convolutions, a fork, a concatenation, a norm behind it, and a dense layer."""
    x = layers.ReLU(6.0, name="stem_relu")(
        layers.BatchNormalization(name="stem_norm")(layers.Conv2D(6, 3, name="stem")(x))
    )
    y = layers.DepthwiseConv2D(3, depth_multiplier=2, activation="relu", name="depthwise")(layers.ZeroPadding2D(1)(x))
    y = layers.Conv2D(6, 3, groups=3, padding="same", name="grouped")(y)
    y = layers.Activation("tanh", name="tanh")(layers.Add(name="add")([x, y]))
    z = layers.Conv2D(4, 1, activation="sigmoid", name="fork")(y)
    y = layers.Concatenate(name="concat")([layers.MaxPooling2D(name="pool")(y), layers.AveragePooling2D(2)(z)])
    y = layers.Conv2D(5, 1, name="normed")(layers.BatchNormalization(name="late_norm")(y))
    y = layers.Dropout(0.5)(layers.Flatten(name="flatten")(y))
    return layers.Dense(7, activation="elu", name="dense")(y)


def _with_random_gates(backbone, classes=3):
    """Returns the memory of a task that has about half of all units open."""
    model = HAT(HATConfig(head_init="glorot")).build(backbone, classes)
    rng = np.random.default_rng(2)
    for _, layer in named_layers(model):
        if isinstance(layer, LearnedGates):
            layer.embedding.assign(rng.uniform(-1, 1, layer.embedding.shape))
    return HAT().remember(model, backbone, "old", [])


@pytest.mark.parametrize("network", [toy_backbone, lambda: _backbone(_many_kinds)])
def test_old_tasks_answer_bit_for_bit_the_same(network, tmp_path):
    check_old_tasks_stay(HAT, network(), tmp_path / "memory")


@pytest.mark.parametrize(
    "network",
    [
        lambda: _backbone(_many_kinds),
        *(
            pytest.param(lambda name=name: load_backbone(name, weights="random", image_size=32), marks=pytest.mark.slow)
            for name in ("vgg16_notop", "resnet50", "mobilenet_v2", "shapesnet", "densenet121", "efficientnet_b0")
        ),
    ],
)
def test_whatever_is_not_held_an_old_task_does_not_see(network):
    backbone = network()
    memory = _with_random_gates(backbone)
    before = answers(HAT(None, memory).recall(backbone, "old"))
    model = HAT(HATConfig(head_init="glorot"), memory).build(backbone, 2)
    rng, free = np.random.default_rng(3), 0
    for layer in held_layers(model).values():
        held = np.broadcast_to(np.logical_and(*layer.held_weights()), layer._kernel.shape)
        layer._kernel.assign(np.where(held, layer._kernel, rng.standard_normal(held.shape)))
        if layer._bias is not None:
            layer._bias.assign(np.where(layer.held, layer._bias, rng.standard_normal(layer.held.shape)))
        free += np.count_nonzero(~held)
    memory = HAT(None, memory).remember(model, backbone, "new", [])
    assert free > 0.5 * sum(np.prod(layer._kernel.shape) for layer in held_layers(model).values())
    np.testing.assert_allclose(answers(HAT(None, memory).recall(backbone, "old")), before, rtol=0, atol=1e-6)
    assert not np.allclose(answers(HAT(None, memory).recall(backbone, "new"))[:, :2], before[:, :2], atol=1e-3)


def test_where_gates_stand_and_zeros_stay():
    graph = UnitGraph(_backbone(_many_kinds).model)
    assert graph.gate_of == {
        "stem_relu": "stem",
        "depthwise": "depthwise",
        "grouped": "grouped",
        "fork": "fork",
        "normed": "normed",
        "dense": "dense",
    }
    live = {path: np.arange(units) % 2 == 1 for path, units in graph.units.items()}
    live["grouped"] = np.array([1, 0, 0, 0, 0, 0], bool)
    found = {path: "".join(str(int(one)) for one in channels) for path, channels in graph.live_inputs(live).items()}
    assert found == {
        "stem": "111",  # The images.
        "depthwise": "010101",
        "grouped": "010101010101",
        "fork": "110101",  # Of the sum: those of either.
        "normed": "1111111111",  # Batch norm behind a concatenation makes numbers of zeros.
        "dense": "01010" * 9,
    }


def test_zeros_stay_through_residual_blocks_and_concatenations():
    def body(x):
        x = layers.ReLU(name="relu")(layers.Conv2D(4, 3, name="one")(x))
        y = layers.BatchNormalization(name="norm")(layers.Conv2D(4, 3, padding="same", name="two")(x))
        x = layers.ReLU()(layers.Add()([x, y]))
        x = layers.Concatenate()([x, layers.Conv2D(2, 1, name="three")(x)])
        x = layers.Conv2D(3, 3, name="four")(layers.LeakyReLU()(x))
        x = layers.Conv2D(2, 1, name="five")(layers.Activation("softplus")(layers.ZeroPadding2D(1)(x)))
        return layers.GlobalAveragePooling2D()(x)

    graph = UnitGraph(_backbone(body).model)
    assert graph.gate_of == {"relu": "one", "norm": "two", "three": "three", "four": "four", "five": "five"}
    live = {"one": [1, 0, 0, 0], "two": [0, 1, 0, 0], "three": [0, 1], "four": [0, 0, 0], "five": [0, 0]}
    found = graph.live_inputs({path: np.array(units, bool) for path, units in live.items()})
    assert found["two"].tolist() == [True, False, False, False]
    assert found["three"].tolist() == [True, True, False, False]
    assert found["four"].tolist() == [True, True, False, False, False, True]
    assert found["five"].all()  # softplus(0) is not 0.


def test_gradients_follow_equation_2(tmp_path):
    backbone = toy_backbone()
    memory, _ = learn(HAT(), backbone, "one", tmp_path / "memory")
    after, _ = learn(HAT(None, memory), backbone, "two", tmp_path / "memory")
    graph = UnitGraph(backbone.model)
    held = held_units(memory, graph)
    changed = {path: memory.shared[path] != after.shared[path] for path in memory.shared}
    second, third, dense = (held[path].astype(float) for path in ("second_conv", "third_conv", "dense"))
    first = held["first_conv"].astype(float)
    # Behind the addition, a channel is 0 where both inputs are.
    for path, unit, source in (
        ("second_conv", second, first),
        ("third_conv", third, np.maximum(first, second)),
        ("dense", dense, third),
    ):
        factor = 1 - np.minimum(unit[None, :], source[:, None])
        assert 0 < factor.mean() < 1
        assert not changed[f"{path}/kernel"][..., factor == 0].any(), path
        assert changed[f"{path}/kernel"][..., factor == 1].any(), path
    for path, unit in (("third_conv", third), ("dense", dense)):
        assert not changed[f"{path}/bias"][unit == 1].any()
        assert changed[f"{path}/bias"][unit == 0].any()
    assert not any(array.any() for path, array in changed.items() if "_norm/" in path)


@pytest.mark.parametrize("steepness", [1 / 400, 0.5, 8.0, 400.0])
def test_gradient_of_gates_is_compensated(steepness):
    embedding = np.concatenate([np.linspace(-6, 6, 41), [-0.13, -0.12, 0.0, 0.12, 0.13]])
    upstream = np.random.default_rng(0).standard_normal(embedding.shape)
    with tf.GradientTape() as tape:
        variable = tf.Variable(embedding, dtype=tf.float32)
        gates = attention(variable, tf.constant(steepness), tf.constant(400.0))
        total = tf.reduce_sum(gates * upstream.astype(np.float32))
    exponent = steepness * embedding
    np.testing.assert_allclose(gates, 0.5 + 0.5 * np.tanh(exponent / 2), atol=1e-6)
    # q' = s_max (cosh(s e) + 1) / (s (cosh(e) + 1)) q, where q has the derivative of the sigmoid.
    slope = steepness * np.exp(-np.abs(exponent)) / (1 + np.exp(-np.abs(exponent))) ** 2
    compensation = 400 * (np.cosh(np.clip(exponent, -50, 50)) + 1) / (steepness * (np.cosh(embedding) + 1))
    np.testing.assert_allclose(tape.gradient(total, variable), upstream * slope * compensation, rtol=1e-4, atol=1e-20)


def test_gates_end_open_or_closed():
    backbone, settings = toy_backbone(), toy_settings("hat")
    method = HAT()
    model = train_task(method, backbone, toy_tasks()["spots"], settings.train, settings.inputs).model
    embeddings = {path: layer.embedding for path, layer in named_layers(model) if isinstance(layer, LearnedGates)}
    steepness = next(layer.steepness for _, layer in named_layers(model) if isinstance(layer, LearnedGates))
    gates = np.concatenate([attention(e.value, steepness.value(), tf.constant(400.0)) for e in embeddings.values()])
    assert gates.size == 38
    assert (np.minimum(gates, 1 - gates) < 0.01).all()
    assert 0.2 < (gates > 0.5).mean() < 0.8
    # Which is why it makes no difference that gates are exactly 0 or 1 outside of training.
    images = noise_images(SIZE)
    np.testing.assert_allclose(model(images, training=True), model(images, training=False), atol=1e-2)


@pytest.mark.parametrize(("steps", "expected"), [(5, [0.25, 1.1875, 2.125, 3.0625, 4.0]), (1, [4.0])])
def test_gates_grow_steeper_in_each_epoch(steps, expected):
    steepness = tf.Variable(0.0)
    annealing = Annealing(steepness, 4.0)
    annealing.set_params({"steps": steps})
    found = []
    for batch in range(steps):
        annealing.on_train_batch_begin(batch)
        found.append(float(steepness))
    assert found == expected


def test_loss_counts_the_gates_that_no_earlier_task_has_open(tmp_path):
    backbone = toy_backbone()
    memory, _ = learn(HAT(), backbone, "one", tmp_path / "memory")
    for before in (Memory(), memory):
        model = HAT(HATConfig(hat_lambda=0.5), before).build(backbone, 2)
        model(noise_images(SIZE), training=True)
        held = held_units(before, UnitGraph(backbone.model))
        closing = count = 0.0
        for path, units in held.items():
            gates = 0.5 + 0.5 * np.tanh(200.0 * model.get_layer(f"{path}_gates").embedding.numpy())
            closing, count = closing + gates[~units].sum(), count + np.count_nonzero(~units)
        np.testing.assert_allclose(sum(float(loss) for loss in model.losses), 0.5 * closing / count, rtol=1e-5)
        model(noise_images(SIZE), training=False)
        assert not model.losses


def test_a_larger_lambda_leaves_more_units_to_later_tasks():
    backbone, opened = toy_backbone(), []
    images = noise_images(SIZE)
    for weight in (0.0, 20.0, 100.0):
        model = HAT(HATConfig(hat_lambda=weight, head_init="glorot")).build(backbone, 2)
        gates = [layer for _, layer in named_layers(model) if isinstance(layer, LearnedGates)]
        gates[0].steepness.assign(1.0)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.SGD(1e-3), loss, jit_compile=False)
        for _ in range(8):
            model.train_on_batch(images, np.arange(len(images)) % 2)
        opened.append(sum(np.count_nonzero(layer.embedding.numpy() > 0) for layer in gates))
    assert opened[0] > opened[1] > opened[2]


def test_embeddings_follow_the_seed_and_stay_within_6():
    backbone = toy_backbone()

    def embeddings(seed, **settings):
        model = HAT(HATConfig(**settings)).feature_model(backbone, seed)
        found = [layer.embedding for _, layer in named_layers(model) if isinstance(layer, LearnedGates)]
        return found, np.concatenate(found)

    variables, start = embeddings(0)
    assert np.array_equal(start, embeddings(0)[1])
    assert not np.array_equal(start, embeddings(1)[1])
    assert abs(start.mean()) < 0.5 < start.std() < 1.5
    np.testing.assert_allclose(embeddings(0, hat_mean=3.0)[1], start + 3, rtol=1e-5)
    keras.optimizers.SGD(1.0).apply([tf.fill(variables[0].shape, 50.0)], [variables[0]])
    assert np.array_equal(variables[0], np.full(8, -6.0))


def test_gates_are_learned_as_adapters_and_batch_norm_never():
    backbone = toy_backbone()
    model = HAT().build(backbone, 3)
    groups = {group: {v.path for v in members} for group, members in HAT().groups(model).items()}
    kernels = ("first_conv", "second_conv", "third_conv", "dense")
    assert groups == {
        "adapter": {f"{path}_gates/embedding" for path in kernels},
        "weights": {f"{path}/kernel" for path in kernels} | {"third_conv/bias", "dense/bias"},
        "head": {"head/kernel", "head/bias"},
    }
    assert np.array_equal(model.get_layer("first_conv").kernel, backbone.model.get_layer("first_conv").kernel)


def test_weights_that_earlier_tasks_need_and_that_changed_are_refused(tmp_path):
    backbone = toy_backbone()
    memory, _ = learn(HAT(), backbone, "one", tmp_path / "memory")
    method = HAT(None, memory)
    model = method.build(backbone, 2)
    kernel = model.get_layer("dense")._kernel
    kernel.assign(kernel * 0.99)
    with pytest.raises(ValueError, match="changed 'dense/kernel' where earlier tasks need it; train without weight"):
        method.remember(model, backbone, "two", [])


def _twice(x):
    conv = layers.Conv2D(3, 3, padding="same", name="shared")
    return layers.GlobalAveragePooling2D()(conv(conv(x)))


def _nested(x):
    inner = keras.Sequential([keras.Input((8, 8, 3)), layers.Conv2D(4, 3)], name="inner")
    return layers.GlobalAveragePooling2D()(inner(x))


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (lambda x: layers.GlobalMaxPooling2D()(layers.SeparableConv2D(4, 3, name="apart")(x)), r"apart \(Separable"),
        (
            lambda x: layers.Dense(4, activation="softmax", name="shares")(layers.Flatten()(x)),
            "units of layer 'shares'",
        ),
        (_twice, "'shared' occurs 2 times"),
        (_nested, "nested models, such as 'inner'"),
    ],
)
def test_networks_without_a_place_for_gates_are_refused(body, sentence):
    with pytest.raises(ValueError, match=sentence):
        HAT().build(_backbone(body), 2)


@pytest.mark.parametrize("settings", [{"hat_smax": 0.5}, {"hat_lambda": -1.0}, {"hat_mean": 7.0}])
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(ValueError, match=f"`{next(iter(settings))}` must"):
        HATConfig(**settings)
