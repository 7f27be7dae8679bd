"""A graph lets no profile pass that training converts colours from."""

import struct

import numpy as np
import pytest
import tensorflow as tf

from export.servable.profiles import UNREAD, keep_pixels
from piggyback_tf.data.images import colour_conversion
from tests.image_files import P3, SRGB, SRGB_CURVE, profile


def _formula(number, *parameters):
    values = b"".join(struct.pack(">i", round(65536 * value)) for value in parameters)
    return b"para\0\0\0\0" + struct.pack(">H", number) + b"\0\0" + values


@pytest.fixture(scope="module", name="kept")
def _kept():
    """A function that says which profiles a graph lets pass."""
    graph = tf.function(
        lambda profiles: keep_pixels(profiles, tf.fill(tf.shape(profiles), False)),
        input_signature=[tf.TensorSpec([None], tf.string)],
        autograph=False,
    )
    return lambda profiles: graph(tf.constant(profiles)).numpy().tolist()


def test_what_a_graph_lets_pass_keeps_its_pixels_in_training(kept):
    rng, profiles = np.random.default_rng(0), []
    levels = np.linspace(0, 1, 700)
    linear = np.where(levels <= 0.04045, levels / 12.92, ((levels + 0.055) / 1.055) ** 2.4)
    for size in np.geomspace(1e-5, 1e-1, 60):
        noise = size * rng.standard_normal((3, 3))
        profiles += [
            profile(np.array(SRGB) + noise / 10, SRGB_CURVE),
            profile(SRGB, linear ** (1 + size * rng.choice([-1, 1]))),
            profile(SRGB, _formula(3, 2.4 + size, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)),
            profile(SRGB, np.clip(linear + size / 10 * rng.standard_normal(700).cumsum() / 30, 0, 1)),
        ]
    passed = kept(profiles)
    unchanged = [colour_conversion(content, "RGB") is None for content in profiles]
    assert not [i for i, (graph, training) in enumerate(zip(passed, unchanged, strict=True)) if graph and not training]
    # Both are seen on both sides of the limit, and it is nearly the same for both.
    assert 80 < sum(passed) <= sum(unchanged) < 220
    assert sum(unchanged) - sum(passed) < 30


def test_kinds_of_curves(kept):
    rest = 2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045
    profiles = {
        "formula 3": (SRGB_CURVE, True),
        "formula 4": (_formula(4, *rest, 0, 0), True),
        "formula 4 with an offset": (_formula(4, *rest, 0.02, 0), False),
        "formula 0": (_formula(0, 2.2), False),
        # What it says is linear, and so are tables of two values.
        "formula 0 of 1": (_formula(0, 1), False),
        "table of two": (np.array([0.0, 1.0]), False),
        "no numbers": (b"curv\0\0\0\0\0\0\0\0", False),
        "formula 2": (_formula(2, *rest), False),
        "more numbers than there are": (b"curv\0\0\0\0\x7f\xff\xff\xff", False),
        "a negative count": (b"curv\0\0\0\0\xff\xff\xff\xff", False),
        "another kind": (b"text\0\0\0\0none\0\0\0\0", False),
    }
    assert kept([profile(SRGB, curve) for curve, _ in profiles.values()]) == [good for _, good in profiles.values()]


def test_other_profiles(kept):
    good = profile(SRGB, SRGB_CURVE)
    profiles = {
        "none": (b"", True),
        "unread": (UNREAD, False),
        "a table beside": (profile(SRGB, SRGB_CURVE, extra={b"A2B0": bytes(32)}.items()), False),
        "another space of connection": (good[:20] + b"Lab " + good[24:], False),
        "grey": (profile(SRGB, 2.2, space=b"GRAY"), True),
        "cut off": (good[:200], False),
        "a head alone": (good[:128], False),
        "no tags": (good[:128] + bytes(4), False),
        "a negative number of tags": (good[:128] + b"\xff\xff\xff\xff" + good[132:], False),
        "too many tags": (good[:128] + b"\0\0\1\0" + good[132:], False),
        "wide": (profile(P3, SRGB_CURVE), False),
    }
    assert kept([content for content, _ in profiles.values()]) == [expected for _, expected in profiles.values()]
