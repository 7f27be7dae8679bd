"""Batch norm whose gamma and beta are trained over frozen statistics."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from piggyback_tf.backbones import Backbone, model_hash, named_variables
from piggyback_tf.masking import mask
from piggyback_tf.methods import METHODS
from piggyback_tf.methods.base import NormConfig
from piggyback_tf.settings.methods.base import OptionalNormConfig
from piggyback_tf.surgery import FrozenStatisticsBatchNormalization, TrainedNorm
from tests.methods.toy import SIZE, toy_backbone

IMAGES = np.random.default_rng(0).uniform(0, 255, (8, SIZE, SIZE, 3)).astype(np.float32)
LABELS = np.arange(8) % 3
TRAINED = [name for name in METHODS if issubclass(METHODS[name].Config, NormConfig)]
# One of each way to hold kernels; the others run as slow tests.
QUICK = ("agem", "finetune", "hat", "lora", "norm_only", "piggyback")
SOMETIMES = [pytest.param(name, marks=[pytest.mark.slow] * (name not in QUICK)) for name in TRAINED]
OPTIONAL = [name for name in TRAINED if issubclass(METHODS[name].Config, OptionalNormConfig)]


class Louder(keras.layers.BatchNormalization):
    """A kind of batch norm that Keras does not have."""

    def call(self, inputs, training=None, mask=None):
        return 2 * super().call(inputs, training=training, mask=mask)


def test_frozen_statistics_compute_in_training_what_the_layer_does_in_inference():
    layer = keras.layers.BatchNormalization(name="norm")
    x = tf.random.stateless_normal([16, 4], (0, 1)) * 3 + 1
    layer.build(x.shape)
    layer.set_weights([np.random.default_rng(1).uniform(0.5, 2, 4) for _ in layer.get_weights()])
    copy = FrozenStatisticsBatchNormalization.from_config(layer.get_config())
    copy.build(x.shape)
    copy.set_weights(layer.get_weights())
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(copy(x, training=True) ** 2)
    np.testing.assert_array_equal(copy(x, training=True), layer(x, training=False))
    assert not np.allclose(layer(x, training=True), layer(x, training=False))
    assert [v.name for v in copy.trainable_variables] == ["gamma", "beta"]
    assert all(np.abs(g).max() > 0 for g in tape.gradient(loss, [v.value for v in copy.trainable_variables]))


def test_frozen_statistics_can_be_saved(tmp_path):
    model = keras.Sequential([keras.Input([4]), FrozenStatisticsBatchNormalization(name="norm")])
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    assert type(again.layers[0]) is FrozenStatisticsBatchNormalization


def _network(kind=keras.layers.BatchNormalization):
    images = keras.Input((SIZE, SIZE, 3))
    inner = keras.Sequential([keras.Input((None, None, 4)), keras.layers.Conv2D(4, 3), kind()], name="inner")
    x = inner(kind()(keras.layers.Conv2D(4, 3)(images)))
    return keras.Model(images, keras.layers.GlobalAveragePooling2D()(x))


def test_a_kind_of_batch_norm_that_is_not_keras_has_only_statistics_of_its_own():
    network = _network(Louder)
    with pytest.raises(ValueError, match="'frozen' can train Keras' own.*of class Louder. Use"):
        mask(network, norm="task")
    masked = mask(network, norm="task", norm_statistics="task")
    np.testing.assert_array_equal(masked(IMAGES, training=False), network(IMAGES, training=False))


@pytest.mark.parametrize("name", [name for name in TRAINED if not METHODS[name].makes_pack])
def test_layers_that_nobody_named_are_remembered_under_the_names_that_they_have_in_the_base(name):
    kind, own = METHODS[name], {"norm": "task"} if "norm" in METHODS[name].Config.__dataclass_fields__ else {}
    own["head_init"] = "glorot"
    _network()  # Keras numbers the layers of the next one on.
    backbone = Backbone.from_model(_network(), "unnamed")
    if name == "pnn":
        images = keras.Input((SIZE, SIZE, 3))
        x = keras.layers.BatchNormalization()(keras.layers.Conv2D(4, 3)(images))
        backbone = Backbone.from_model(keras.Model(images, keras.layers.GlobalAveragePooling2D()(x)), "unnamed")
    method = kind(kind.Config(**own), heads={"a": 3} if kind.Config.at_once else None)
    model = method.build(backbone, 3)
    memory = method.remember(model, backbone, "a", [(IMAGES, LABELS)])
    gammas = {path for path in named_variables(backbone.model) if path.endswith("batch_normalization/gamma")}
    assert gammas
    assert gammas <= {**memory.shared, **memory.of("a")}.keys()
    recalled = kind(method.config, memory).recall(backbone, "a")
    assert "piggyback_tf" not in json.dumps(recalled.get_config(), default=str)  # It loads without this package.
    np.testing.assert_array_equal(recalled(IMAGES, training=False), model(IMAGES, training=False))


@pytest.mark.parametrize("statistics", ["frozen", "task"])
@pytest.mark.parametrize("name", SOMETIMES)
def test_every_method_trains_batch_norm_with_the_statistics_that_it_is_told(name, statistics):
    backbone, kind = toy_backbone(), METHODS[name]
    own = {"norm": "task"} if "norm" in kind.Config.__dataclass_fields__ else {}
    heads = {"a": 3} if kind.Config.at_once else None
    method = kind(kind.Config(norm_statistics=statistics, **own), heads=heads)
    model = method.build(backbone, 3)
    for phase in range(len(method.phases(6))):
        model = method.begin_phase(model, phase)
    before = {path: v.numpy() for path, v in named_variables(model).items() if "_norm/" in path}
    assert len(before) >= 8
    logits = model.output
    logits = next(iter(logits.values())) if isinstance(logits, dict) else logits
    learner = keras.Model(model.input, logits)
    # As the package compiles it on a CPU.
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    learner.compile(keras.optimizers.SGD(0.1), loss, jit_compile=False)
    learner.fit(IMAGES, LABELS, batch_size=4, epochs=2, verbose=0)
    after = named_variables(model)
    changed = {path.rpartition("/")[2] for path, value in before.items() if not np.array_equal(after[path], value)}
    expected = {"gamma", "beta"} | ({"moving_mean", "moving_variance"} if statistics == "task" else set())
    assert changed == expected
    assert expected <= set(TrainedNorm(statistics).trained_weights)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"norm_statistics": "batch"}, "`norm_statistics` must be one of frozen, task"),
        ({"norm_momentum": 1.0}, r"`norm_momentum` must be in \[0, 1\)"),
    ],
)
@pytest.mark.parametrize("name", TRAINED)
def test_wrong_settings_are_refused(name, settings, message):
    with pytest.raises(ValueError, match=message):
        METHODS[name].Config(**settings)


def test_whether_batch_norm_is_trained_is_refused_in_one_sentence():
    backbone = toy_backbone()
    calls = {name: lambda name=name: METHODS[name].Config(norm="trained") for name in OPTIONAL}
    calls["mask"] = lambda: mask(backbone.model, norm="trained")
    assert calls.keys() >= {"mask", "piggyback", "finetune", "joint", "lwf", "ewc"}
    for call in calls.values():
        with pytest.raises(ValueError, match=r"^`norm` must be one of frozen, task. Received: norm='trained'.$"):
            call()


def test_a_network_without_batch_norm_has_none_to_train():
    images = keras.Input((SIZE, SIZE, 3))
    x = keras.layers.Conv2D(4, 3, name="conv")(images)
    net = keras.Model(images, keras.layers.GlobalAveragePooling2D()(x), name="bare")
    backbone = Backbone.from_model(net)
    for kind in (METHODS[name] for name in OPTIONAL):
        method = kind(kind.Config(norm="task"), heads={"a": 3} if kind.Config.at_once else None)
        with pytest.raises(
            ValueError, match="^Network 'bare' has no batch normalisation to train; use norm='frozen'.$"
        ):
            method.build(backbone, 3)


@pytest.mark.parametrize("method", SOMETIMES)
def test_the_statistics_of_renorm_follow_the_task_too(method):
    images = keras.Input((SIZE, SIZE, 3))
    x = keras.layers.Conv2D(4, 3, padding="same", name="conv")(images)
    x = keras.layers.BatchNormalization(renorm=True, name="norm")(x)
    net = keras.Model(images, keras.layers.GlobalAveragePooling2D()(keras.layers.ReLU()(x)), name="net")
    backbone = Backbone.from_model(net)
    kind = METHODS[method]
    settings = {"norm_statistics": "task"} | ({"norm": "task"} if method == "piggyback" else {})
    model = kind(kind.Config(**settings), heads={"a": 3} if kind.Config.at_once else None).build(backbone, 3)
    digest = backbone.hash
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True), jit_compile=False)
    model.train_on_batch(IMAGES, LABELS)
    assert model_hash(net) == digest
