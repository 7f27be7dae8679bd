"""What a network costs, counted against numbers by hand, and which images are read to measure one."""

import collections

import keras
import numpy as np
import pytest
import tensorflow as tf

from piggyback_tf.data import DataError, Subset, make_dataset
from piggyback_tf.problems.classification import Classification
from piggyback_tf.problems.segmentation import Segmentation
from piggyback_tf.sequences.measure import measured_batches, multiply_adds
from tests.methods.toy import toy_tasks
from tests.training.test_segments import Rectangles

CONV, DEPTHWISE = keras.layers.Conv2D, keras.layers.DepthwiseConv2D


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (lambda: CONV(16, 3, padding="same", use_bias=False), 64 * 9 * 16 * 16),
        # Keras runs these in a function of its own.
        (lambda: CONV(16, 3, padding="same", use_bias=False, groups=4), 64 * 9 * 16 * 16 // 4),
        (lambda: CONV(16, 3, padding="same", use_bias=False, groups=16), 64 * 9 * 16),
        (lambda: DEPTHWISE(3, padding="same", use_bias=False), 64 * 9 * 16),
    ],
)
def test_a_convolution_costs_its_kernel_at_every_place(layer, expected):
    images = keras.Input((8, 8, 16))
    assert multiply_adds(keras.Model(images, layer()(images))) == expected
    assert not tf.config.functions_run_eagerly()


class Counting(Subset):
    """The images of another source; counts how often each is read."""

    def __init__(self, source):
        super().__init__(source, range(len(source)))
        self.reads = collections.Counter()

    def read(self, index):
        self.reads[index] += 1
        return super().read(index)


@pytest.mark.parametrize("augment", ["resize(40,56)", "central_crop(36)|resize(32,48)"])
def test_images_that_are_judged_as_they_are_in_the_source_are_decoded_once(augment):
    source = Counting(Rectangles(0, 7))
    problem = Segmentation(("ground", "rectangle"), (40, 56))
    found = list(measured_batches(problem, source, augment, batch_size=3, cache="none"))
    assert set(source.reads.values()) == {1} and len(source.reads) == 7
    expected = make_dataset(source, augment, batch_size=3, training=False, cache="none")
    place = 0
    for (images, targets, originals), (prepared, maps) in zip(found, expected, strict=True):
        assert np.array_equal(images, prepared) and np.array_equal(targets, maps)
        for i, original in enumerate(originals):
            image = source.read(place + i)
            assert original.size == image.shape[:2] and np.array_equal(original.target, image[..., 3])
        place += len(originals)
    assert place == 7


def test_images_that_cannot_be_prepared_are_named():
    source, problem = Rectangles(0, 3), Segmentation(("ground", "rectangle"), (40, 56))
    with pytest.raises(DataError, match="'rectangle 0'.*central_crop"):
        list(measured_batches(problem, source, "central_crop(90)", batch_size=3))
    with pytest.raises(DataError, match="random"):
        list(measured_batches(problem, source, "flip", batch_size=3))


def test_other_problems_get_no_originals():
    problem, source = Classification("abc", (12, 12)), toy_tasks()["spots"].test
    batches = list(measured_batches(problem, source, "resize(12,12)", batch_size=4, cache="none"))
    assert [(len(images), originals) for images, _, originals in batches] == [(4, ()), (4, ()), (1, ())]
