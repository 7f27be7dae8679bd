"""Every method on VGG-16, ResNet-50, MobileNetV2 and the network that ships with the package."""

import functools

import keras
import numpy as np
import pytest

from piggyback_tf.backbones import Backbone, load_backbone
from piggyback_tf.methods import METHODS, Memory
from tests.methods.learning import noise_images

NETWORKS = {
    "vgg16_notop": {"weights": "random", "image_size": 32},
    "resnet50": {"weights": "random", "image_size": 32},
    "mobilenet_v2": {"weights": "random", "image_size": 32},
    "shapesnet": {},
}


# Networks on which a method learns, where it does not on all: with batch norm, without, or chains of layers.
ONLY_ON = {"norm_only": {"resnet50", "mobilenet_v2", "shapesnet"}, "ssf": {"vgg16_notop"}, "den": {"vgg16_notop"}}
PAIRS = [(name, network) for name in METHODS for network in NETWORKS if network in ONLY_ON.get(name, NETWORKS)]


@functools.cache
def _backbone(network: str) -> Backbone:
    return load_backbone(network, **NETWORKS[network])


@pytest.mark.slow
@pytest.mark.parametrize(("method", "network"), PAIRS)
def test_two_tasks_are_learned_and_the_base_is_not(method, network):
    backbone, kind, memory = _backbone(network), METHODS[method], Memory()
    digest, images, labels = backbone.hash, noise_images(backbone.image_size, 6), np.arange(6) % 3
    for number, task in enumerate(("one", "two")):
        # With a head of zeros a single step would be the head's alone.
        config = kind.Config(head_init="glorot")
        learner = kind(config, heads={task: 3}) if kind.Config.at_once else kind(config, memory)
        model = learner.build(backbone, 3, seed=number)
        learner.begin_training(model)
        for phase in range(len(learner.phases(4))):
            model = learner.begin_phase(model, phase)
            # Plain steps, with which no method moves what it holds.
            loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
            model.compile(keras.optimizers.SGD(1e-3), loss, jit_compile=False)
            before = {id(variable): variable.numpy() for variable in model.trainable_variables}
            model.train_on_batch(images, labels)
            assert any(not np.array_equal(before[id(v)], v.numpy()) for v in model.trainable_variables)
        assert set(learner.groups(model)) <= {"mask", "head", "norm", "weights", "adapter"}
        if kind.makes_pack:
            continue
        memory = learner.remember(model, backbone, task, [(images, labels)])
        recalled = kind(memory=memory).recall(backbone, task)
        expected = np.asarray(model(images, training=False))[:, :3]
        np.testing.assert_allclose(recalled(images, training=False), expected, rtol=1e-4, atol=1e-4)
    assert backbone.hash == digest
