"""PackNet: who owns which weight, and what that promises."""

import os

import keras
import numpy as np
import pytest
import tensorflow as tf

from piggyback_tf.backbones import Backbone, named_layers, named_variables
from piggyback_tf.methods import METHODS, Memory
from piggyback_tf.methods.packnet import PackNetConfig, polynomial_decay
from piggyback_tf.methods.parts.owned_weights import count_of_part, free_weights, owned_weights
from piggyback_tf.training import train_task
from tests.methods.learning import check_old_tasks_stay, noise_images
from tests.methods.toy import SIZE, toy_backbone, toy_settings, toy_tasks

PackNet = METHODS["packnet"]
KERNELS = ("first_conv/kernel", "second_conv/kernel", "third_conv/kernel", "dense/kernel")


@pytest.fixture(scope="module", name="backbone")
def _backbone():
    return toy_backbone()


def _learn(memory, backbone, config, seed=0):
    """Stands for a training: moves every weight that is trainable, and prunes in between."""
    method, rng = PackNet(config, memory), np.random.default_rng(seed)
    model = method.build(backbone, 2)
    method.begin_training(model)
    for phase in range(len(method.phases(2))):
        method.begin_phase(model, phase)
        for weight in owned_weights(model).values():
            moved = 0.1 * rng.standard_normal(weight.kernel.shape).astype(np.float32)
            own = np.asarray(weight.owner) == weight.task
            weight.kernel.assign(np.where(own, np.asarray(weight.kernel) + moved, np.asarray(weight.kernel)))
    return method.remember(model, backbone, f"task{len(memory.tasks) + 1}", [])


def test_free_weights_fall_as_configured_and_are_never_overdrawn(backbone):
    config = PackNetConfig(packnet_prune_first=0.5, packnet_prune=0.9)
    sizes = {path: variable.value.shape.num_elements() for path, variable in named_variables(backbone.model).items()}
    memory, free = Memory(), {path: sizes[path] for path in KERNELS}
    for task in range(1, 4):
        memory = _learn(memory, backbone, config, seed=task)
        free = {path: count // 2 if task == 1 else 9 * count // 10 for path, count in free.items()}
        assert free_weights(memory) == free
        for path in KERNELS:
            owner = memory.shared[f"{path}_owner"]
            assert owner.dtype == np.uint8
            assert owner.max() == task
            assert np.all((memory.shared[path] != 0) == (owner != 0))
    # The last one takes all that is left, and nothing is left for another one.
    memory = _learn(memory, backbone, PackNetConfig(packnet_prune=0.0))
    assert set(free_weights(memory).values()) == {0}
    with pytest.raises(ValueError, match="No weight of 'first_conv/kernel' is free for task 5"):
        PackNet(config, memory).build(backbone, 2)


def test_too_many_tasks_are_refused_before_the_first_as_they_would_be_later(backbone):
    config, memory, tasks = PackNetConfig(packnet_prune=0.1), Memory(), 0
    with pytest.raises(ValueError, match="No weight of .* is free for task [2-9]:") as later:
        while True:
            memory = _learn(memory, backbone, config)
            tasks += 1
    PackNet(config).check_room(backbone, tasks)
    with pytest.raises(ValueError) as before:
        PackNet(config).check_room(backbone, tasks + 1)
    assert str(before.value) == str(later.value)
    layers = (keras.layers.Flatten(), keras.layers.Dense(20))
    large = Backbone.from_model(keras.Sequential([keras.Input((SIZE, SIZE, 3)), *layers]), "large")
    slow = PackNet(PackNetConfig(packnet_prune=0.9999))
    slow.check_room(large, 255)
    with pytest.raises(ValueError, match="at most 255 tasks"):
        slow.check_room(large, 256)


def test_sharing_takes_one_byte_a_weight_beside_the_network(backbone):
    memory = _learn(_learn(Memory(), backbone, PackNetConfig()), backbone, PackNetConfig())
    kernels = sum(memory.shared[path].size for path in KERNELS)
    heads = sum(array.nbytes for arrays in memory.own.values() for array in arrays.values())
    assert memory.nbytes == backbone.nbytes + kernels + heads
    assert all(set(arrays) == {"head/kernel", "head/bias"} for arrays in memory.own.values())


def test_the_base_is_pruned_by_magnitude_before_the_first_task(backbone):
    method = PackNet()
    assert method.phases(6) == (6,)
    model = method.feature_model(backbone, 0)
    assert np.array_equal(model(noise_images(SIZE)), backbone.model(noise_images(SIZE)))
    method.begin_training(model)
    base = named_variables(backbone.model)
    for path, weight in owned_weights(model).items():
        size, kept = np.abs(np.asarray(base[path])), np.asarray(weight.owner) == 1
        assert np.count_nonzero(kept) == -(-size.size // 2)
        assert size[kept].min() >= size[~kept].max()
        found = dict(named_layers(model))[path.removesuffix("/kernel")].kernel
        assert np.array_equal(found, np.where(kept, base[path], 0))


def test_later_tasks_prune_their_own_weights_alone(backbone):
    memory = _learn(Memory(), backbone, PackNetConfig())
    method = PackNet(None, memory)
    assert method.phases(30) == (20, 10)
    model = method.feature_model(backbone, 0)
    trained = {variable.path for variable in model.trainable_variables}
    assert trained == set(KERNELS)
    images = noise_images(SIZE)
    assert np.array_equal(model(images, training=True), model(images, training=False))  # Batch norm is frozen, too.
    rng, weights = np.random.default_rng(0), owned_weights(model)
    first = {path: np.asarray(weight.owner) == 1 for path, weight in weights.items()}
    for path, weight in weights.items():
        assert np.all(np.asarray(weight.kernel)[~first[path]] == 0)
        weight.kernel.assign(np.where(first[path], weight.kernel, rng.standard_normal(first[path].shape)))
    method.begin_phase(model, 1)
    for path, weight in weights.items():
        size, owner = np.abs(np.asarray(weight.kernel)), np.asarray(weight.owner)
        assert np.array_equal(owner == 1, first[path])
        assert size[owner == 2].min() >= size[owner == 0].max()


def test_old_tasks_answer_bit_for_bit_the_same(backbone, tmp_path):
    memory = check_old_tasks_stay(PackNet, backbone, tmp_path / "memory")
    for path in KERNELS:
        owner = memory.shared[f"{path}_owner"]
        assert all(np.any(memory.shared[path][owner == task]) for task in (1, 2, 3))


def test_what_changed_earlier_tasks_is_refused(backbone):
    memory = _learn(Memory(), backbone, PackNetConfig())
    for path in ("dense/kernel", "first_norm/gamma"):
        method = PackNet(None, memory)
        model = method.build(backbone, 2)
        variable = named_variables(model)[path]
        variable.assign(variable * 0.99)  # As weight decay would do.
        with pytest.raises(ValueError, match=f"changed '{path}', which belongs to earlier tasks"):
            method.remember(model, backbone, "two", [])


def test_gradual_pruning_follows_the_polynomial(backbone):
    method = PackNet(PackNetConfig(packnet_schedule="gradual", packnet_parts=4))
    assert method.phases(6) == (4, 2)
    model, free = method.build(backbone, 2), []
    model.compile("adam", "mse", jit_compile=False)
    model.optimizer.build(model.trainable_variables)
    weight = owned_weights(model)["dense/kernel"]

    class Record(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            free.append(np.count_nonzero(np.asarray(weight.owner) == 0) / 120)

    data = tf.data.Dataset.from_tensors((noise_images(SIZE), np.zeros((8, 2), np.float32))).repeat(4)
    method.begin_phase(model, 0)
    steps = [*method.callbacks(model), Record()]
    model.fit(data, epochs=2, steps_per_epoch=4, shuffle=False, callbacks=steps, verbose=0)
    expected = [0.5 * (1 - (1 - step / 8) ** 3) for step in (0, 2, 2, 4, 4, 6, 6, 8)]
    np.testing.assert_allclose(free, expected, atol=1 / 120)
    method.begin_phase(model, 1)
    assert np.count_nonzero(np.asarray(weight.owner) == 0) == 60


def test_the_polynomial_of_model_optimization_leaves_the_environment_alone(monkeypatch):
    for value in (None, "0"):
        monkeypatch.delenv("TF_USE_LEGACY_KERAS", raising=False)
        if value is not None:
            monkeypatch.setenv("TF_USE_LEGACY_KERAS", value)
        schedule = polynomial_decay(0.75, steps=100, every=10)
        assert os.environ.get("TF_USE_LEGACY_KERAS") == value
    found = [(bool(prune), float(sparsity)) for prune, sparsity in map(schedule, (0, 45, 50, 100))]
    assert found == [(True, 0.0), (False, pytest.approx(0.75 * (1 - 0.55**3))), (True, 0.65625), (True, 0.75)]


@pytest.mark.slow
def test_gradual_pruning_goes_on_as_if_never_broken_off(tmp_path, monkeypatch):
    from piggyback_tf.training.backup import BackupAndRestore

    settings, data = toy_settings("packnet"), toy_tasks()["spots"]
    config = PackNetConfig(packnet_schedule="gradual", packnet_parts=4)

    def train(folder=None):
        trained = train_task(PackNet(config), toy_backbone(), data, settings.train, settings.inputs, state_dir=folder)
        return [keras.ops.convert_to_numpy(variable) for variable in trained.model.weights]

    expected, save = train(), BackupAndRestore._save

    def break_off(self):
        save(self)
        raise KeyboardInterrupt

    monkeypatch.setattr(BackupAndRestore, "_save", break_off)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path)
    monkeypatch.setattr(BackupAndRestore, "_save", save)
    assert all(np.array_equal(one, two) for one, two in zip(expected, train(tmp_path), strict=True))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"packnet_schedule": "slow"}, "one_shot, gradual"),
        ({"packnet_prune": 1.0}, r"`packnet_prune` must be in \[0, 1\)"),
        ({"packnet_prune_first": -0.1}, r"`packnet_prune_first` must be in \[0, 1\)"),
        ({"packnet_retrain": 1.0}, r"`packnet_retrain` must be in \(0, 1\)"),
        ({"packnet_parts": 0}, "at least 1"),
    ],
)
def test_wrong_settings_name_the_right_ones(settings, message):
    with pytest.raises(ValueError, match=message):
        PackNetConfig(**settings)


def test_parts_are_those_of_the_decimal_number():
    assert [count_of_part(0.29, 100), count_of_part(0.75, 7), count_of_part(0.999, 1)] == [29, 5, 0]


def test_what_cannot_be_learned_is_refused_before_training(backbone):
    with pytest.raises(ValueError, match="at least 2 epochs"):
        PackNet().phases(1)
    head = {"head/kernel": np.zeros((10, 2)), "head/bias": np.zeros(2)}
    with pytest.raises(ValueError, match="at most 255 tasks"):
        PackNet(None, Memory(own={str(task): head for task in range(255)})).build(backbone, 2)
    with pytest.raises(ValueError, match="does not fit the network"):
        PackNet(None, Memory(own={"one": head}, shared={"conv/kernel": np.zeros(3)})).build(backbone, 2)
    images = keras.Input((8, 8, 3))
    x = keras.layers.EinsumDense("bhwc,cd->bhwd", (None, None, 4), name="mix")(images)
    other = Backbone.from_model(keras.Model(images, keras.layers.GlobalAveragePooling2D()(x)))
    with pytest.raises(ValueError, match=r"mix \(EinsumDense\)"):
        PackNet().build(other, 2)
