"""Masks in the order of the flat vector."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from export.lite.weights import Network
from export.servable.layout import Section, WeightLayout
from export.servable.network import split_section, unpack_kernels, unpack_vector
from piggyback_tf.backbones import Backbone, named_variables
from piggyback_tf.packs import MaskBits, PackError
from piggyback_tf.packs.base_fit import BaseSpec
from piggyback_tf.packs.bits import pack_bits
from tests.packs.helpers import with_arrays


def test_unpacked_kernels_are_the_masked_ones_to_the_bit(small):
    layout = WeightLayout.of(small.backbone)
    arrays = {path: variable.numpy() for path, variable in named_variables(small.backbone.model).items()}
    flat = layout.kernels.flatten(arrays)
    assert len(flat) == 8 * layout.mask_bytes
    for pack in small.packs:
        planes = layout.pack_mask(pack)
        assert planes.shape == (2 if pack.mask_kind == "ternary" else 1, layout.mask_bytes)
        found = unpack_kernels(layout.kernels, tf.constant(flat), tf.constant(planes))
        assert found.keys() == layout.kernels.shapes.keys() >= pack.masks.keys()
        again = split_section(layout.kernels, unpack_vector(layout.kernels, tf.constant(flat), tf.constant(planes)))
        for path, kernel in found.items():
            mask = pack.mask(path) if path in pack.masks else np.ones(kernel.shape, np.int8)
            # Dropped weights are +0.0, in bits.
            expected = np.where(mask == 0, np.float32(0), mask * arrays[path])
            assert kernel.numpy().tobytes() == expected.astype(np.float32).tobytes(), path
            assert again[path].numpy().tobytes() == kernel.numpy().tobytes(), path


def test_every_weight_begins_at_a_multiple_of_64_bytes_and_is_in_one_section(small):
    layout = WeightLayout.of(small.backbone)
    sections = (layout.kernels, layout.norm, layout.rest)
    paths = [path for section in sections for path in section.shapes]
    assert sorted(paths) == sorted(named_variables(small.backbone.model))
    assert all(start % 16 == 0 for section in sections for _, _, start in section.items())
    assert layout.mask_bytes % 64 == 0
    assert WeightLayout.from_json(layout.to_json()) == layout


@pytest.mark.parametrize("rows", [1, 2, None])
def test_bits_are_planar_within_each_kernel(rows):
    section = Section({"a": (512,), "b": (2, 500)}, 512)
    planes = np.zeros((rows or 1, 3 * 64), np.uint8)
    planes[0, 3], planes[0, 64 + 5] = 0b100, 0b11
    planes[1:, 64 + 5] = 0b10
    unpack = tf.function(lambda planes: unpack_kernels(section, tf.ones([3 * 512]), planes))
    found = unpack.get_concrete_function(tf.TensorSpec([rows, 3 * 64], tf.uint8))(planes)
    assert np.flatnonzero(found["a"]).tolist() == [2 * 64 + 3]
    assert np.flatnonzero(found["b"]).tolist() == [5, 128 + 5]
    assert found["b"].numpy().reshape(-1)[[5, 128 + 5]].tolist() == [1, -1 if rows == 2 else 1]


def test_a_mask_of_a_weight_that_no_export_masks_is_refused(small):
    layout, pack = WeightLayout.of(small.backbone), small.packs[0]
    path, shape = next(iter(layout.norm.shapes.items()))
    bits = MaskBits(shape, pack_bits(np.ones(shape, np.int8), "binary"))
    with pytest.raises(PackError, match="is no kernel of this base that can be masked. These can: "):
        layout.pack_mask(with_arrays(pack, masks={**pack.masks, path: bits}))


class Gain(keras.layers.BatchNormalization):
    """Batch norm of somebody's own, without statistics."""

    def build(self, input_shape):
        self.gamma = self.add_weight(shape=input_shape[-1:], initializer="ones", name="gamma")

    def call(self, inputs, training=None, mask=None):
        return inputs * self.gamma


def test_a_base_has_the_same_weights_for_tasks_in_packs_and_exports():
    images = keras.Input((8, 8, 3))
    x = keras.layers.BatchNormalization(name="norm")(keras.layers.SeparableConv2D(4, 3, name="conv")(images))
    x = Gain(name="gain")(keras.layers.GlobalAveragePooling2D()(x))
    backbone = Backbone.from_model(keras.Model(images, x, name="base"))
    spec, layout, network = BaseSpec.of(backbone), WeightLayout.of(backbone), Network.of(backbone)
    assert spec.maskable == layout.kernels.shapes.keys() == network.kernels.keys()
    assert spec.maskable == {"conv/depthwise_kernel", "conv/pointwise_kernel"}
    assert spec.norm_paths == layout.norm.shapes.keys() and "gain/gamma" in spec.norm_paths
    # Of LiteRT's model it is a part like any other layer: nothing is known of how it computes.
    assert network.norms.keys() == {"norm"}
