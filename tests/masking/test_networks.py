"""One network of each family of the registry, masked; `benchmarks/networks.py` does all of them."""

import pytest

from piggyback_tf.backbones import list_backbones, load_backbone
from piggyback_tf.backbones.registry import get_entry
from tests.common import check_masked_network

# The smallest of each family.
NETWORKS = (
    "convnext_tiny",
    "densenet121",
    "efficientnet_b0",
    "efficientnet_v2_b0",
    "efficientnet_v2_s",
    "inception_resnet_v2",
    "inception_v3",
    "mobilenet",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "nasnet_mobile",
    "resnet50",
    "resnet50_v2",
    "shapesnet",
    "vgg16_notop",
    "xception",
)


def test_each_family_has_its_network():
    families = {get_entry(name).family for name in list_backbones()}
    # VGG with its fully connected layers exists at 224 px only; the benchmark has it.
    assert {get_entry(name).family for name in NETWORKS} == families - {"vgg"}


# mobilenet, mobilenet_v2, resnet50 and vgg16_notop are quick enough to be tried each time.
SLOW = (
    *("convnext_tiny", "densenet121", "efficientnet_b0", "efficientnet_v2_b0", "efficientnet_v2_s"),
    *("inception_resnet_v2", "inception_v3", "mobilenet_v3_small", "nasnet_mobile", "resnet50_v2", "xception"),
)


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n in SLOW)) for n in NETWORKS])
def test_a_masked_network_keeps_its_promises(name, tmp_path):
    base = load_backbone(name, weights="random", image_size=get_entry(name).min_size)
    found = check_masked_network(base, tmp_path)
    assert found["same_start"]
    assert found["base_unchanged"]
    assert found["only_masks_train"]
    assert found["round_trip"]
    assert found["masked_weights"] > 0.8 * found["weights"]
