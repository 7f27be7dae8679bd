"""Masks to their coded form and back, and how short it is."""

import hashlib
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from piggyback_tf.packs import MaskBits
from piggyback_tf.packs.bits import MASK_VALUES, pack_bits, unpack_bits
from piggyback_tf.packs.codec import CODECS, check_layer, encode, layer_entry
from piggyback_tf.packs.partition import MAX_CLASSES, channel_view_shape, find_partition, whole_layer
from piggyback_tf.packs.zero_rates import ALWAYS, NEVER, RATE_ONE, RATES, rate_code
from tests.packs.helpers import channel_mask, structured_pack

ROOT = Path(__file__).parents[2]
KINDS = sorted(MASK_VALUES)
# One to five dimensions, depthwise [3, 3, C, 1] among them.
SHAPES = st.one_of(
    hnp.array_shapes(min_dims=1, max_dims=5, max_side=6),
    st.integers(1, 40).map(lambda channels: (3, 3, channels, 1)),
    st.integers(1, 300).map(lambda length: (length,)),
    st.tuples(st.integers(1, 60), st.integers(1, 60)),
)


def _bits_of(arrays, kind):
    return {f"layer{n}/kernel": MaskBits(array.shape, pack_bits(array, kind)) for n, array in enumerate(arrays)}


def _check_round_trip(arrays, kind, codec):
    encoded = encode(_bits_of(arrays, kind), kind, codec)
    assert [check_layer(layer_entry(layer)) for layer in encoded.layers] == list(encoded.layers)
    decoded = encoded.decode()
    for array, mask in zip(arrays, decoded.values(), strict=True):
        np.testing.assert_array_equal(unpack_bits(mask.packed, mask.shape, kind), array)
    return encoded


@given(kind=st.sampled_from(KINDS), codec=st.sampled_from(CODECS), data=st.data())
@settings(deadline=None)
def test_round_trip(kind, codec, data):
    shapes = data.draw(st.lists(SHAPES, min_size=1, max_size=4))
    # From layers that keep nothing over mixed ones to those that keep all.
    arrays = []
    for shape in shapes:
        rng = np.random.default_rng(data.draw(st.integers(0, 1 << 32)))
        chances = np.array(
            data.draw(st.sampled_from([(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 1), (1, 9, 2), (0, 3, 1)]))
        )
        chances = chances * [1, 1, kind == "ternary"] + [0, 1e-9, 0]
        arrays.append(rng.choice(np.array([0, 1, -1], np.int8), shape, p=chances / chances.sum()))
    _check_round_trip(arrays, kind, codec)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("kind", KINDS)
def test_round_trip_of_layers_with_something_special(kind, codec):
    structured = channel_mask((3, 3, 40, 70), kind)
    dead = structured.copy()
    # Whole channels that keep nothing, and others that keep everything.
    dead[:, :, :9], dead[..., 5:20], dead[:, :, 9:14] = 0, 0, 1
    arrays = [
        *(structured, dead, np.ones((3, 3, 64, 1), np.int8), np.zeros((1, 1, 50, 60), np.int8)),
        *(np.ones(1, np.int8), np.zeros(1, np.int8), np.eye(33, dtype=np.int8), channel_mask((5, 1, 1, 90), kind)),
    ]
    if kind == "ternary":
        arrays += [-np.ones((4, 5), np.int8), -np.abs(structured), np.where(dead == 0, 0, -1).astype(np.int8)]
    encoded = _check_round_trip(arrays, kind, codec)
    assert (codec == "best") == any(layer.classes != (1, 1) for layer in encoded.layers)


@given(kind=st.sampled_from(KINDS), shape=SHAPES, seed=st.integers(0, 1 << 32), spread=st.floats(0, 3))
@settings(deadline=None)
def test_the_best_codec_is_never_longer(kind, shape, seed, spread):
    masks = _bits_of([channel_mask(shape, kind, seed, spread)], kind)
    best, static, plain = (encode(masks, kind, codec).nbytes for codec in ("best", "static", "bits"))
    # The stream is made of words of four bytes, and ends in up to two of them that are not full.
    assert best <= static + 8
    assert best <= plain + 8
    assert static <= plain * (1 if kind == "binary" else math.log2(3) / 2) + 16


@pytest.mark.parametrize(
    ("value", "kind"), [(1, "binary"), (0, "binary"), (1, "ternary"), (0, "ternary"), (-1, "ternary")]
)
def test_a_layer_without_choice_costs_a_few_bytes(value, kind):
    masks = _bits_of([np.full((3, 3, 512, 512), value, np.int8)] * 5, kind)
    assert encode(masks, kind).nbytes <= 5 * 4


def _entropy(fraction):
    return -sum(p * math.log2(p) for p in (fraction, 1 - fraction) if p)


@pytest.mark.parametrize("kept", [0.9, 0.27, 0.05, 0.01, 3e-3])
def test_the_static_codec_reaches_the_entropy_of_independent_weights(kept):
    mask = (np.random.default_rng(0).random((3, 3, 256, 512)) < kept).astype(np.int8)
    bits = 8 * encode(_bits_of([mask], "binary"), "binary", "static").nbytes
    # A byte for the rate, and up to two words that are not full.
    assert 1 <= bits / (mask.size * _entropy(mask.mean())) < 1.0012 + 72 / bits


@pytest.mark.parametrize("shape", [(3, 3, 128, 128), (1, 1, 300, 500), (600, 400)])
def test_channels_that_differ_are_worth_it(shape):
    mask = channel_mask(shape)
    best, static = (encode(_bits_of([mask], "binary"), "binary", codec).nbytes for codec in ("best", "static"))
    assert static >= mask.size * _entropy(mask.mean()) / 8
    assert best < 0.75 * static


@pytest.mark.parametrize("shape", [(3, 3, 60, 90), (700, 30), (3, 3, 200, 1), (4000,)])
def test_the_length_is_known_before(shape):
    mask = channel_mask(shape)
    partition = find_partition(mask.reshape(channel_view_shape(shape)) != 0)
    encoded = encode(_bits_of([mask], "binary"), "binary")
    assert encoded.layers[0].classes == partition.rates.shape
    assert abs(8 * encoded.nbytes - partition.bits) <= 64 + 1e-3 * partition.bits


def test_zeros_that_are_common_cost_what_rare_ones_do():
    mask = channel_mask((3, 3, 60, 90)).reshape(9, 60, 90) != 0
    assert find_partition(~mask).bits == pytest.approx(find_partition(mask).bits, rel=0.01)


def test_a_partition_that_saves_nothing_is_not_made():
    mask = np.random.default_rng(0).random((3, 40, 50)) < 0.8
    partition = find_partition(mask)
    assert partition.rates.shape == (1, 1)
    assert partition.bits == whole_layer((3, 40, 50), int(mask.sum())).bits


def test_classes_that_are_known_are_found():
    rng = np.random.default_rng(0)
    rows, columns = np.arange(60) % 2, np.arange(81) % 3
    rng.shuffle(rows)
    rng.shuffle(columns)
    # Classes are told apart by how much they drop in all.
    chance = np.array([[0.05, 0.2, 0.4], [0.5, 0.7, 0.95]])[rows][:, columns]
    partition = find_partition(rng.random((9, 60, 81)) < chance)
    assert partition.rates.shape == (2, 3)
    for found, true in ((partition.inputs, rows), (partition.outputs, columns)):
        assert len({(int(a), int(b)) for a, b in zip(found, true, strict=True)}) == len(set(true)), "the same classes"


def test_rates():
    assert rate_code(np.array([0, 10, 5]), 10).tolist() == [NEVER, ALWAYS, 104]
    assert RATES[104] == RATE_ONE // 2
    assert RATES[[1, 15, 16, 17, 24, 103]].tolist() == [1, 15, 16, 18, 32, 30720]
    # Nothing that happens is impossible, and nothing that fails.
    assert RATES[rate_code(np.array([1, 10**7 - 1]), 10**7)].tolist() == [1, RATE_ONE - 1]
    assert rate_code(0, 0) == NEVER
    assert (RATES[1:] >= RATES[:-1]).all()
    assert (RATES + RATES[::-1] == RATE_ONE).all()


def _independent_bits(rates, coded):
    """Returns the bits of what happens at one rate and is coded at another."""
    return -(rates * np.log2(coded) + (1 - rates) * np.log2(1 - coded))


@pytest.mark.parametrize(("lowest", "highest", "most"), [(1e-4, 0.1, 6e-4), (0.1, 0.5, 1.1e-3), (1e-5, 1e-4, 9e-3)])
def test_a_rate_in_a_byte_costs_next_to_nothing(lowest, highest, most):
    low = np.geomspace(lowest, highest, 10**5)
    for rates in (low, 1 - low):
        coded = RATES[rate_code(rates * 1e12, 1e12)] / RATE_ONE
        assert (_independent_bits(rates, coded) < (1 + most) * _independent_bits(rates, rates)).all()
        # No other code would be shorter.
        for other in RATES[1:-1][:: len(RATES) // 5] / RATE_ONE:
            assert (_independent_bits(rates, coded) <= _independent_bits(rates, other) * (1 + 1e-9)).all()


def test_channels_of_kernels():
    views = [channel_view_shape(shape) for shape in [(7,), (7, 4), (3, 3, 8, 1), (3, 5, 8, 9), (2, 3, 4, 5, 6)]]
    assert views == [(1, 7, 1), (1, 7, 4), (9, 8, 1), (15, 8, 9), (24, 5, 6)]


def test_there_are_never_more_classes_than_channels():
    for shape in [(2, 2000), (3000, 3), (50, 20, 2, 7)]:
        partition = find_partition(channel_mask(shape, spread=4.0).reshape(channel_view_shape(shape)) != 0)
        for number, channels in zip(partition.rates.shape, shape[-2:], strict=True):
            assert number <= min(channels, MAX_CLASSES)


def test_the_same_masks_are_the_same_bytes_in_every_process():
    program = (
        "import hashlib\nfrom tests.packs.helpers import structured_pack\n"
        "print([hashlib.sha256(structured_pack(kind).to_bytes()).hexdigest() for kind in ('binary', 'ternary')])"
    )
    here = [hashlib.sha256(structured_pack(kind).to_bytes()).hexdigest() for kind in ("binary", "ternary")]
    for threads in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", program],
            capture_output=True,
            text=True,
            check=True,
            cwd=ROOT,
            env={**os.environ, "OPENBLAS_NUM_THREADS": threads, "PYTHONHASHSEED": threads},
        )
        assert done.stdout.strip() == str(here)


def test_other_codecs_are_refused():
    with pytest.raises(ValueError, match="`codec` must be one of best, static, bits. Received: codec='zip'"):
        encode({}, "binary", "zip")
