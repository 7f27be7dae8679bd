"""Images in a graph have the bytes that the data package gives them."""

import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from export.servable import decode
from export.servable.decode import decode_batch, decode_files, restore
from export.servable.headers import read_headers
from export.servable.preparation import check_preparation, parse_preparation, way_back
from piggyback_tf.data import DataError, decode_image, parse_augment
from piggyback_tf.data.augment import geometry_back
from tests.export.helpers import encode, picture

RNG = np.random.default_rng(0)
NOISE = RNG.integers(0, 256, (40, 50, 4), dtype=np.uint8)


def _with_orientation(orientation):
    exif = Image.Exif()
    exif[0x010F], exif[0x0112] = "a camera", orientation
    return encode(picture(60, 91), "JPEG", exif=exif)


def _deep_grey():
    stream = io.BytesIO()
    Image.fromarray(RNG.integers(0, 65536, (30, 40)).astype(np.uint16)).save(stream, "PNG")
    return stream.getvalue()


FILES = {
    **{f"JPEG {kind}": encode(picture(133, 201), "JPEG", subsampling=kind) for kind in (0, 1, 2)},
    "progressive": encode(picture(100, 151), "JPEG", progressive=True),
    "grey JPEG": encode(picture(64, 77), "JPEG", "L"),
    **{f"orientation {number}": _with_orientation(number) for number in range(1, 9)},
    "PNG": encode(picture(150, 99), "PNG"),
    "transparent": encode(NOISE, "PNG"),
    "transparent grey": encode(NOISE, "PNG", "LA"),
    "palette": encode(picture(60, 60), "PNG", "P"),
    "transparent palette": encode(picture(60, 60), "PNG", "P", transparency=3),
    "black and white": encode(picture(60, 60), "PNG", "1"),
    "16-bit grey": _deep_grey(),
    "small": encode(picture(5, 3), "PNG"),
    "tall": encode(picture(300, 40), "PNG"),
}


@tf.function(input_signature=[tf.TensorSpec([None], tf.string)], autograph=False)
def _decode(files):
    headers = read_headers(files)
    return headers.kind, headers.orientation, *decode_files(files, headers, tf.range(tf.size(files)))


AUGMENTS = (
    "",
    "resize(48,48)",
    "resize(53)|central_crop(48)",
    "resize(200)|resize(48,48)",
    "resize(300)|central_crop(48)",
)


def _graph():
    """Returns `decode_batch` as it is exported, with all ways of preparing images in one graph: tracing takes long."""
    specs = [tf.TensorSpec([None], tf.string), tf.TensorSpec([None], tf.int32)]
    return tf.function(lambda files, ways: decode_batch(files, ways, AUGMENTS, (48, 48)), specs, autograph=False)


@pytest.fixture(scope="module", name="graph")
def _whole_graph():
    return _graph()


def _prepared(graph, files, *augments):
    """Returns images and which are good, of files prepared in one way, or each in its own."""
    ways = [AUGMENTS.index(augment) for augment in augments]
    return graph(tf.constant(files), tf.constant(ways * (len(files) // len(ways))))


def test_files_are_decoded_to_the_same_bytes():
    kind, orientation, rows, contents = _decode(tf.constant(list(FILES.values())))
    assert sorted(rows.numpy()) == list(range(len(FILES)))
    for row, content in zip(rows.numpy(), contents, strict=True):
        name, data = list(FILES.items())[row]
        found = restore(content, kind[row], orientation[row])
        np.testing.assert_array_equal(found, decode_image(data, name), err_msg=name)


@pytest.mark.parametrize("augment", ["resize(48,48)", "resize(53)|central_crop(48)", "resize(200)|resize(48,48)"])
def test_images_are_prepared_to_the_same_bytes(graph, augment):
    images, good = _prepared(graph, list(FILES.values()), augment)
    assert good.numpy().all()
    for name, data, found in zip(FILES, FILES.values(), images.numpy(), strict=True):
        image = decode_image(data, name)
        for operation in parse_augment(augment):
            image = operation.apply(image)
        np.testing.assert_array_equal(found, image, err_msg=name)


@pytest.mark.parametrize("limited", [False, True])
def test_more_files_than_are_decoded_at_a_time(graph, limited, monkeypatch):
    """Each is at its place, whichever chunk it is in; a broken one flags itself only."""
    rng = np.random.default_rng(3)
    images = rng.integers(0, 256, (71, 48, 48, 3), dtype=np.uint8)
    augments = [AUGMENTS[0]] * 71
    if limited:
        # Five of these have as many pixels as are decoded at a time, and of small ones eight are as many files.
        monkeypatch.setattr(decode, "_FILES", 8)
        monkeypatch.setattr(decode, "_PIXELS", 12_000)
        graph = _graph()
        augments[30:60] = [AUGMENTS[1]] * 30
    small = {row: rng.integers(0, 256, (9, 9, 3), dtype=np.uint8) for row in range(71) if augments[row]}
    contents = [encode(small.get(row, image), "PNG") for row, image in enumerate(images)]
    for row, image in small.items():
        images[row] = parse_augment(augments[row])[0].apply(image)
    for broken in (3, 33, 70):
        contents[broken] = contents[broken][:100]
    found, good = _prepared(graph, contents, *augments)
    assert np.flatnonzero(~good.numpy()).tolist() == [3, 33, 70]
    images[[3, 33, 70]] = 0
    np.testing.assert_array_equal(found, images)


def test_each_image_is_prepared_in_its_own_way_and_must_have_the_size(graph):
    files = [encode(picture(48, 48), "PNG"), encode(picture(60, 80), "PNG")] * 2
    images, good = _prepared(graph, files, "", "", "resize(48,48)", "resize(48,48)")
    assert good.numpy().tolist() == [True, False, True, True]
    np.testing.assert_array_equal(images[0], picture(48, 48))
    assert not images[1].numpy().any()


def test_an_image_that_would_become_too_large_is_flagged(graph):
    # Of 200 bytes as a file; 17 GB if the shorter side became 300 pixels.
    strip = encode(np.zeros((1, 65000, 3), np.uint8), "PNG")
    images, good = _prepared(graph, [strip, FILES["PNG"]], "resize(300)|central_crop(48)")
    assert good.numpy().tolist() == [False, True]
    assert not images[0].numpy().any()


@pytest.mark.parametrize(
    "augment, message",
    [
        ("resize(48,48)|flip", "'flip' in the augmentation .* cannot be exported"),
        ("resize(48,50)", "gives images of 48x50 pixels, and the base takes 48x48"),
        ("shrink(3)", "shrink"),
    ],
)
def test_other_operations_are_refused(augment, message):
    with pytest.raises(DataError, match=message):
        check_preparation(augment, (48, 48))


@pytest.mark.parametrize("sides", [(80, 112), (61, 97), (300, 75)])
@pytest.mark.parametrize(
    "augment", ["", "resize(40,56)", "resize(60)|central_crop(48)", "central_crop(33)|resize(50,20)|central_crop(7)"]
)
def test_the_way_back_is_that_of_the_operations(augment, sides):
    operations = parse_preparation(augment)
    scale, offset = (part.numpy() for part in way_back(tf.constant(sides), operations))
    expected, _ = geometry_back(operations, sides)
    # To the bit: the middle of a pixel may be at the edge of another.
    assert scale.tolist() == [expected[0, 0], expected[1, 1]]
    np.testing.assert_array_equal(offset, expected[:, 2])
