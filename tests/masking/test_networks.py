"""One network of each family of the registry, masked; `benchmarks/networks.py` does all of them."""

import pytest

from piggyback_tf.backbones import Backbone, list_backbones, load_backbone
from piggyback_tf.backbones.networks.torchvision import build_torch_vgg
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
    "densenet121_torch",
    "resnet50",
    "resnet50_torch",
    "resnet50_v2",
    "shapesnet",
    "vgg16_notop",
    "wrn28_4",
    "xception",
)


def test_each_family_has_its_network():
    families = {get_entry(name).family for name in list_backbones()}
    # VGG with its fully connected layers exists at 224 px only; the benchmark has it, and a narrow one is below.
    assert {get_entry(name).family for name in NETWORKS} == families - {"vgg", "torch_vgg", "torch_vgg_bn"}


# mobilenet, mobilenet_v2, vgg16_notop and wrn28_4 are quick enough to be tried each time.
SLOW = (
    *(
        "convnext_tiny",
        "densenet121",
        "densenet121_torch",
        "resnet50_torch",
        "efficientnet_b0",
        "efficientnet_v2_b0",
        "efficientnet_v2_s",
    ),
    *("inception_resnet_v2", "inception_v3", "mobilenet_v3_small", "nasnet_mobile", "resnet50", "resnet50_v2"),
    "xception",
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


@pytest.mark.parametrize("batch_norm", [False, True])
def test_a_narrow_vgg_as_torchvision_has_it_keeps_its_promises(batch_norm, tmp_path):
    model = build_torch_vgg(64, name="narrow", batch_norm=batch_norm, widths=(4, 6, 8, 10, 12), features=16)
    found = check_masked_network(Backbone.from_model(model), tmp_path)
    assert all(found[promise] for promise in ("same_start", "base_unchanged", "only_masks_train", "round_trip"))
    # 13 convolutions, fc1 and fc2; biases and batch norm have no masks.
    assert found["masks"] == 15
