"""Networks as torchvision has them, on weights that timm wrote: they compute what PyTorch computes.

Needs what requirements-oracle.txt names, in this environment. The weights are random, since nothing is downloaded.
"""

import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from piggyback_tf.backbones import load_backbone
from tests.backbones.test_tensor_weights import MISTAKES

SCRIPT = Path(__file__).with_name("timm_weights.py")
# Ours by timm's, and which of the mistakes can be made with them.
NETWORKS = {
    "vgg16": ("vgg16_torch", ("flattening", "channels")),
    "vgg16_bn": ("vgg16_bn", ("epsilon", "flattening", "channels")),
    "resnet50": ("resnet50_torch", ("epsilon", "stride", "channels")),
    "densenet121": ("densenet121_torch", ("epsilon", "channels")),
}
if not all(map(importlib.util.find_spec, ("torch", "timm"))):
    pytest.skip("needs torch and timm", allow_module_level=True)
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", name="written")
def _written(tmp_path_factory):
    """A function that returns the folder of weights, images and features of a network."""
    folders = {}

    def written(architecture: str) -> Path:
        if architecture not in folders:
            folders[architecture] = tmp_path_factory.mktemp(architecture)
            subprocess.run([sys.executable, SCRIPT, architecture, folders[architecture]], check=True)
        return folders[architecture]

    return written


def _difference(name: str, folder: Path) -> float:
    """Returns the largest difference of features, as a part of the largest of them."""
    with np.load(folder / "oracle.npz") as oracle:
        images, expected = oracle["images"], oracle["features"]
    backbone = load_backbone(name, weights=folder / "model.safetensors")
    assert backbone.preprocessing == "torch: (x / 255 - (0.45, 0.5, 0.41)) / (0.2, 0.25, 0.3)"
    assert np.ptp(expected, axis=0).max() > 0.1 * np.abs(expected).max()
    return float(np.abs(np.asarray(backbone.model(images)) - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("architecture", NETWORKS)
def test_features_are_those_of_timm(architecture, written):
    assert _difference(NETWORKS[architecture][0], written(architecture)) < 1e-4


@pytest.mark.parametrize(
    ("architecture", "mistake"), [(name, mistake) for name, (_, found) in NETWORKS.items() for mistake in found]
)
def test_what_keras_does_otherwise_would_be_seen_with_timm(architecture, mistake, written, monkeypatch):
    MISTAKES[mistake][0](monkeypatch)
    assert _difference(NETWORKS[architecture][0], written(architecture)) > 1e-4
