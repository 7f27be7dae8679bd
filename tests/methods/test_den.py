"""DEN: which units a task trains, which it adds, which become two, and what old tasks keep of their answers."""

import keras
import numpy as np
import pytest

from piggyback_tf.backbones import Backbone, load_backbone, named_variables
from piggyback_tf.methods import METHODS, Memory
from piggyback_tf.methods.den import CLOSED, FROZEN, TRAINED, growth_of, selected_layers
from piggyback_tf.methods.parts.chains import Units, moved, read_chain
from piggyback_tf.settings.methods.den import DENConfig
from tests.methods.learning import answers, noise_images
from tests.methods.toy import SIZE, toy_backbone

DEN = METHODS["den"]
LAYERS = ("first_conv", "second_conv", "third_conv", "dense")
layers = keras.layers


@pytest.fixture(scope="module", name="backbone")
def _backbone():
    return toy_backbone(chain=True)


def _begun(backbone, memory, config, loss, phases=3):
    """Returns the method and its network in one of the phases, with a validation loss after retraining."""
    method = DEN(config, memory)
    model = method.build(backbone, 3)
    head = model.get_layer("head").kernel
    head.assign(np.random.default_rng(5).normal(size=head.shape))
    for phase in range(phases if memory.tasks else 1):
        if phase == 2:
            growth_of(model).loss.assign(loss)
        model = method.begin_phase(model, phase)
    return method, model


def _shaken(model, size=0.05, seed=0):
    """Stands for a training: moves all that is trained, some units more than others."""
    rng = np.random.default_rng(seed)
    states = {f"{path}/kernel": layer.connections for path, layer in selected_layers(model).items()}
    states |= {f"{path}/bias": layer.biases for path, layer in selected_layers(model).items()}
    for path, variable in named_variables(model).items():
        if variable.trainable:
            factor = size * rng.uniform(size=variable.shape[-1]) * rng.standard_normal(variable.shape)
            if path in states:
                factor *= np.asarray(states[path]) == TRAINED
            variable.assign(variable + factor.astype(np.float32))


def _learn(backbone, memory, config=None, loss=1.0, seed=0, phases=3, size=0.05):
    method, model = _begun(backbone, memory, config, loss, phases)
    _shaken(model, size, seed)
    return method.remember(model, backbone, f"task{len(memory.tasks) + 1}", []), answers(model)


@pytest.fixture(scope="module", name="first")
def _first(backbone):
    return _learn(backbone, Memory())


def test_a_task_answers_as_it_was_trained_whatever_becomes_of_its_units(backbone, first):
    memory, _ = first
    for seed, split in ((1, 0.05), (2, 0.1)):
        # Retrained units move in one, new ones come in the other.
        phases, loss = (2, 0.0) if seed == 1 else (3, 1.0)
        config = DENConfig(den_split=split, den_units=3, den_connect=0.0)
        memory, found = _learn(backbone, memory, config, loss, seed, phases)
        network = DEN(None, memory).recall(backbone, memory.tasks[-1])
        np.testing.assert_allclose(answers(network), found, rtol=1e-4, atol=1e-4)
        assert all(type(layer).__module__.startswith("keras.") for layer in network.layers)
    units = Units.read(read_chain(backbone.model), memory.shared)
    deaths = np.concatenate([*units.death.values()])
    births = np.concatenate([*units.birth.values()])
    assert (deaths == 2).sum() > 2 and (deaths == 0).sum() > 10, "some became two"
    assert (births == 2).sum() == (deaths == 2).sum() and (births == 3).sum() == 4 * 3
    assert memory.nbytes > first[0].nbytes


def test_where_all_that_moved_becomes_two_old_answers_stay_bit_for_bit(backbone, first):
    memory, before = first[0], {}
    for seed in (1, 2):
        for task in memory.tasks:
            before[task] = answers(DEN(None, memory).recall(backbone, task))
        config = DENConfig(den_split=0.0, den_units=2, den_connect=0.0)
        memory, _ = _learn(backbone, memory, config, 1.0 if seed == 2 else 0.0, seed)
        for task, expected in before.items():
            assert np.array_equal(answers(DEN(None, memory).recall(backbone, task)), expected), (task, seed)
    assert (memory.shared["dense/birth"] == 2).any()


def test_weights_of_old_tasks_drift_no_further_than_the_split_allows(backbone, first):
    old = DEN(None, first[0]).recall(backbone, "task1")
    drifts, sizes = [], []
    for split in (1e9, 0.1, 0.03):
        config = DENConfig(den_split=split, den_units=0, den_connect=0.0)
        memory, _ = _learn(backbone, first[0], config, 0.0, seed=3)
        units = Units.read(read_chain(backbone.model), first[0].shared)
        network = DEN(None, memory).recall(backbone, "task1")
        far = moved(units, 2, {path: variable.numpy() for path, variable in named_variables(network).items()})
        furthest = max(way.max() for way in far.values())
        assert 0 < furthest <= split
        drifts.append(np.abs(answers(network) - answers(old)).mean())
        sizes.append(memory.nbytes)
    assert drifts[0] > drifts[1] > drifts[2] > 0
    assert sizes[0] < sizes[1] < sizes[2], "which takes room"


def test_only_what_the_head_uses_is_trained(backbone, first):
    """A path of single connections through the network, by hand."""
    method = DEN(DENConfig(den_connect=0.5, den_units=2), first[0])
    model = method.build(backbone, 3)
    chain = selected_layers(model)
    way = {"first_conv": 1, "second_conv": 4, "third_conv": 7, "dense": 2}
    for norm in ("first_norm", "second_norm"):
        model.get_layer(norm).beta.assign(np.full(10, 3.0))  # Lest a unit of the way is dead.
    before = 0
    for name, unit in way.items():
        kernel = chain[name]._kernel.numpy()
        kernel[...] = np.where(np.abs(kernel) > 0.02, np.sign(kernel) * 0.02, kernel)
        if name != "first_conv":
            kernel[..., before, unit] = 1.0
        chain[name]._kernel.assign(kernel)
        before = unit
    head = np.zeros((12, 3), np.float32)
    head[2] = 1.0
    model.get_layer("head").kernel.assign(head)
    model = method.begin_phase(method.begin_phase(model, 0), 1)
    for name, unit in way.items():
        found = np.argwhere(np.asarray(chain[name].connections) == TRAINED)
        expected = (
            [[channel, 1] for channel in range(3)]
            if name == "first_conv"
            else [[way[LAYERS[LAYERS.index(name) - 1]], unit]]
        )
        if name == "first_conv":  # Of images, the channels that are strong enough.
            assert {*map(tuple, found)} <= {*map(tuple, expected)} and len(found)
        else:
            assert found.tolist() == expected, name
        assert np.flatnonzero(np.asarray(chain[name].biases) == TRAINED).tolist() == [unit]
    # A step of training moves these and the head, and nothing else.
    model.compile(
        keras.optimizers.SGD(1.0), keras.losses.SparseCategoricalCrossentropy(from_logits=True), jit_compile=False
    )
    values = {path: variable.numpy() for path, variable in named_variables(model).items()}
    model.train_on_batch(noise_images(SIZE), np.arange(8) % 3)
    for name, layer in chain.items():
        change = named_variables(model)[f"{name}/kernel"].numpy() != values[f"{name}/kernel"]
        allowed = np.asarray(layer.connections) == TRAINED
        assert not (change & ~allowed).any() and (change & allowed).any(), name


def test_new_units_come_where_the_loss_is_high_and_are_trained_alone(backbone, first):
    config = DENConfig(den_loss=0.2, den_units=2)
    _, low = _begun(backbone, first[0], config, 0.19)
    _, high = _begun(backbone, first[0], config, 0.21)
    for name, old in zip(LAYERS, (8, 8, 12, 10), strict=True):
        closed, opened = (np.asarray(selected_layers(model)[name].connections) for model in (low, high))
        assert (closed[:, old:] == CLOSED).all() and not selected_layers(low)[name].new_units().any()
        new = np.zeros(opened.shape, bool)
        new[:, old:] = True
        if name != "first_conv":
            new[-2:] = True
        assert np.array_equal(opened == TRAINED, new) and (opened[~new] == FROZEN).all()
        assert selected_layers(high)[name].new_units().sum() == 2
    # They change nothing before they are trained.
    _, before = _begun(backbone, first[0], config, 0.21, phases=1)
    head = before.get_layer("head").kernel
    for model in (before, high):
        kernel = head.numpy()
        kernel[10:] = 0
        model.get_layer("head").kernel.assign(kernel)
    np.testing.assert_allclose(answers(high), answers(before), rtol=1e-5, atol=1e-5)


def test_a_new_unit_that_shrinks_to_nothing_is_removed_and_nothing_else_shrinks(backbone, first):
    method, model = _begun(backbone, first[0], DENConfig(den_units=2, den_split=1e9), 1.0)
    for name, layer in selected_layers(model).items():
        kernel, bias = layer._kernel.numpy(), None if layer._bias is None else layer._bias.numpy()
        size = kernel[..., 0].size
        kernel[..., -1] *= 0.01 * np.sqrt(size) / np.linalg.norm(kernel[..., -1])
        kernel[..., -2] *= 2 * np.sqrt(size) / np.linalg.norm(kernel[..., -2])
        layer._kernel.assign(kernel)
        if bias is not None:
            layer._bias.assign(np.ones_like(bias))
        layer.shrink(0.5)
        after = layer._kernel.numpy()
        assert np.array_equal(after[..., :-2], kernel[..., :-2])
        np.testing.assert_allclose(after[..., -2], kernel[..., -2] * 0.75, rtol=1e-5)
        assert not after[..., -1].any(), name
        assert layer._bias is None or layer._bias.numpy()[-2:].tolist() == [1.0, 0.0]
    expected = answers(model)
    memory = method.remember(model, backbone, "two", [])
    assert [int((memory.shared[f"{name}/birth"] == 2).sum()) for name in LAYERS] == [1, 1, 1, 1]
    np.testing.assert_allclose(answers(DEN(None, memory).recall(backbone, "two")), expected, rtol=1e-4, atol=1e-4)


def test_the_head_of_a_new_task_is_kept_sparse(backbone, first):
    method, model = _begun(backbone, first[0], DENConfig(den_sparsity=0.5), 1.0, phases=1)
    optimizer = keras.optimizers.SGD(0.1, name="head")
    model.compile(keras.optimizers.MultiOptimizer(lambda variable: optimizer), "mse", jit_compile=False)
    model.optimizer.build(model.trainable_variables)
    (callback,) = method.callbacks(model)
    callback.set_model(model)
    before = model.get_layer("head").kernel.numpy()
    callback.on_train_batch_end(0)
    after = model.get_layer("head").kernel.numpy()
    small = np.abs(before) <= 0.05
    assert not after[small].any() and 0 < small.sum() < small.size
    np.testing.assert_allclose(after[~small], before[~small] - 0.05 * np.sign(before[~small]), rtol=1e-5)
    # Later it learns without a price, and the loss that decides about new units is that of retraining.
    callback.on_test_end({"loss": 0.4})
    assert np.isinf(growth_of(model).loss)
    method.begin_phase(model, 1)
    callback.on_train_batch_end(0)
    assert np.array_equal(model.get_layer("head").kernel, after)
    callback.on_test_end({"loss": 0.3})
    assert float(growth_of(model).loss) == pytest.approx(0.3)


def _chain(*between):
    images = keras.Input((SIZE, SIZE, 3))
    x = layers.Conv2D(4, 3, name="conv")(images)
    for layer in between:
        x = layer(x)
    x = x if len(x.shape) == 2 else layers.GlobalAveragePooling2D(name="pool")(x)
    return Backbone.from_model(keras.Model(images, x, name="net"))


@pytest.mark.parametrize(
    ("between", "where"),
    [
        ((layers.DepthwiseConv2D(3, name="deep"),), "'deep' is of class DepthwiseConv2D"),
        ((layers.Flatten(name="flat"), layers.Dense(3)), "'flat' is of class Flatten"),
        ((layers.LayerNormalization(name="norm"),), "'norm' is of class LayerNormalization"),
        ((layers.Activation("sigmoid", name="act"),), "'act' is of class Activation"),
        ((layers.Conv2D(4, 3, groups=2, name="parts"),), "'parts' has groups"),
        ((layers.Conv2D(4, 3, activation="softmax", name="soft"),), "the activation of 'soft'"),
    ],
)
def test_what_is_no_chain_is_refused(between, where):
    backbone = _chain(*between)
    for call in (lambda: DEN().check_room(backbone, 2), lambda: DEN().build(backbone, 3)):
        with pytest.raises(ValueError, match=f"chains of Dense and Conv2D.*{where}"):
            call()


def test_residual_networks_are_refused_and_chains_are_not():
    with pytest.raises(ValueError, match="at 'block1_add' this network is no chain"):
        DEN().check_room(load_backbone("shapesnet"), 2)
    DEN().check_room(_chain(layers.BatchNormalization(), layers.ReLU(), layers.MaxPooling2D()), 2)
    with pytest.raises(ValueError, match="at most 255 tasks"):
        DEN().check_room(_chain(), 256)


def test_phases_share_out_the_epochs(first):
    later = DEN(None, first[0])
    assert [later.phases(epochs) for epochs in (3, 5, 30)] == [(1, 1, 1), (1, 2, 2), (6, 12, 12)]
    assert DEN().phases(5) == (5,)
    with pytest.raises(ValueError, match="at least 3 epochs.*epochs=2"):
        DEN().phases(2)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, -0.5) for name in ("den_sparsity", "den_loss", "den_group", "den_split")),
        ("den_connect", 1.5),
        ("den_units", -1),
    ],
)
def test_settings_out_of_range_are_refused(name, value):
    with pytest.raises(ValueError, match=f"{name}.*{name}={value}"):
        DENConfig(**{name: value})
