"""Deep Adaptation Networks: which filters are combined, and how."""

import keras
import numpy as np
import pytest

from piggyback_tf.backbones import Backbone, load_backbone, named_layers, named_variables
from piggyback_tf.methods import METHODS
from piggyback_tf.methods.dan import DANConfig, MixedKernel
from piggyback_tf.surgery import BaseVariable
from tests.methods.learning import check_old_tasks_stay, learn, noise_images
from tests.methods.toy import SIZE, toy_backbone

DAN = METHODS["dan"]


@pytest.fixture(scope="module", name="backbone")
def _backbone():
    return toy_backbone()


def _mobile():
    """Returns a backbone with an expansion, a depthwise convolution and a projection over a first convolution."""
    keras.utils.set_random_seed(0)
    layers = keras.layers
    images = keras.Input((8, 8, 3))
    x = layers.Conv2D(5, 3, use_bias=False, name="stem")(images)
    x = layers.BatchNormalization(name="norm")(x)
    x = layers.Conv2D(20, 1, name="expand")(x)
    x = layers.DepthwiseConv2D(3, name="depthwise")(x)
    x = layers.Conv2D(6, 1, name="project")(x)
    x = layers.Conv2D(6, 1, use_bias=False, name="square")(x)
    x = layers.DepthwiseConv2D(3, padding="same", name="narrow")(layers.Conv2D(2, 1, name="reduce")(x))
    return Backbone.from_model(keras.Model(images, layers.GlobalAveragePooling2D()(x), name="mobile"))


@pytest.mark.parametrize("network", [toy_backbone, _mobile])
def test_identity_is_the_base_bit_for_bit(network):
    backbone = network()
    digest, images = backbone.hash, noise_images(backbone.image_size)
    model = DAN(DANConfig(dan_noise=0.0)).feature_model(backbone, 0)
    assert np.array_equal(model(images, training=False), backbone.model(images, training=False))
    assert backbone.hash == digest


def test_noise_is_small_on_the_diagonal_and_follows_the_seed(backbone):
    def mixing(seed):
        return keras.ops.convert_to_numpy(DAN().feature_model(backbone, seed).get_layer("third_conv")._mixing)

    noise = mixing(0)
    assert noise.shape == (12, 12)
    assert np.count_nonzero(noise) == np.count_nonzero(np.diag(noise)) == 12
    assert 0.4 / 12 < np.std(np.diag(noise)) < 1.6 / 12
    assert np.array_equal(noise, mixing(0))
    assert not np.array_equal(noise, mixing(1))


def test_filters_are_combined_by_d():
    backbone = _mobile()
    model = DAN(DANConfig(dan_noise=0.0)).feature_model(backbone, 0)
    rng, found = np.random.default_rng(0), set()
    for path, layer in named_layers(model):
        if isinstance(layer, MixedKernel):
            found.add(path)
            kernel = np.asarray(backbone.model.get_layer(path).kernel)
            filters = kernel.reshape(-1, layer._mixing.shape[0]).T  # W, with a filter in each row.
            d = rng.standard_normal(layer._mixing.shape).astype(np.float32)
            layer._mixing.assign(d - np.eye(len(d), dtype=np.float32))
            np.testing.assert_allclose(layer.kernel, (d @ filters).T.reshape(kernel.shape), rtol=1e-3, atol=1e-4)
    assert found == {"stem", "project", "reduce", "narrow"}


def test_where_d_would_be_larger_than_the_kernel_the_task_has_a_kernel(tmp_path):
    backbone = _mobile()
    memory, _ = learn(DAN(), backbone, "one", tmp_path / "memory")
    own = {path: array.shape for path, array in memory.of("one").items() if not path.startswith(("norm", "head"))}
    assert own == {
        "stem/mixing": (5, 5),
        "expand/kernel": (1, 1, 5, 20),
        "expand/bias": (20,),
        "depthwise/kernel": (3, 3, 20, 1),
        "depthwise/bias": (20,),
        "project/mixing": (6, 6),
        "project/bias": (6,),
        "square/kernel": (1, 1, 6, 6),
        "reduce/mixing": (2, 2),
        "reduce/bias": (2,),
        "narrow/mixing": (2, 2),
        "narrow/bias": (2,),
    }


def test_kernels_are_the_base_and_biases_and_batch_norm_the_task(backbone):
    model = DAN(DANConfig(head_init="glorot")).build(backbone, 3)
    groups = {group: {v.path for v in members} for group, members in DAN().groups(model).items()}
    assert groups == {
        "adapter": {
            *(f"{layer}/mixing" for layer in ("first_conv", "second_conv", "third_conv", "dense")),
            "third_conv/bias",
            "dense/bias",
        },
        "norm": {f"{layer}_norm/{part}" for layer in ("first", "second") for part in ("gamma", "beta")},
        "head": {"head/kernel", "head/bias"},
    }
    kernels = {path: v for path, v in named_variables(model).items() if path.endswith("/kernel") and "head" not in path}
    assert len(kernels) == 4
    assert all(isinstance(variable, BaseVariable) for variable in kernels.values())
    images = noise_images(SIZE)
    assert np.array_equal(model(images, training=True), model(images, training=False))
    model = DAN(DANConfig(norm_statistics="task", head_init="glorot")).build(backbone, 3)
    assert not np.allclose(model(images, training=True), model(images, training=False), atol=1e-3)


def test_old_tasks_answer_bit_for_bit_the_same(backbone, tmp_path):
    memory = check_old_tasks_stay(DAN, backbone, tmp_path / "memory")
    assert not memory.shared
    network = DAN(None, memory).recall(backbone, "two")
    assert not any(isinstance(layer, MixedKernel) for _, layer in named_layers(network))


def test_adds_an_eighth_to_vgg16():
    # The paper: typically 13 %.
    backbone = load_backbone("vgg16_notop", weights="random", image_size=32)
    own = sum(variable.value.shape.num_elements() for variable in DAN().feature_model(backbone, 0).trainable_variables)
    assert 0.12 < own / backbone.model.count_params() < 0.13


def test_what_cannot_be_combined_is_refused():
    images = keras.Input((8, 8, 3))
    x = keras.layers.SeparableConv2D(4, 3, name="apart")(images)
    backbone = Backbone.from_model(keras.Model(images, keras.layers.GlobalAveragePooling2D()(x), name="net"))
    with pytest.raises(ValueError, match=r"apart \(SeparableConv2D\).*Dense, Conv2D, DepthwiseConv2D"):
        DAN().build(backbone, 2)
    with pytest.raises(ValueError, match="must not be negative"):
        DANConfig(dan_noise=-1.0)
