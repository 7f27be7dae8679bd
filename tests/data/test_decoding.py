"""Files that the graph decodes have the pixels of `decode_image`; all others, and all that is wrong, go to Pillow."""

import gc
import io
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from piggyback_tf.data import (
    BrokenImageError,
    DataError,
    Renumbered,
    Subset,
    decode_image,
    load_data,
    make_dataset,
    parse_augment,
    surface_data_errors,
)
from piggyback_tf.data.decoding import decode_window, make_decoder
from piggyback_tf.data.joined import Joined
from piggyback_tf.data.plain_jpeg import find_plain_jpeg
from tests.image_files import (
    cmyk_jpegs,
    encoded_jpeg,
    exif,
    jpegs,
    pngs,
    profiled_files,
    turned_files,
    with_segments,
)
from tests.odd_image_files import odd_pngs, other_files

SAMPLINGS = {"4:4:4": 0, "4:2:2": 1, "4:2:0": 2}


def noise(height, width, seed=0):
    return np.random.default_rng([seed, height, width]).integers(0, 256, (height, width, 3), dtype=np.uint8)


def resampled(jpeg, size, sampling):
    """Returns a JPEG whose blocks stand for another size and sampling, of as many blocks in each group."""
    start = jpeg.index(b"\xff\xc0")
    sides = b"".join(side.to_bytes(2, "big") for side in size)
    return jpeg[: start + 5] + sides + jpeg[start + 9 : start + 11] + bytes([sampling]) + jpeg[start + 12 :]


def plain_jpegs():
    """Returns JPEGs by name that differ in how they are coded, and that the graph decodes."""
    files = {}
    for name, kind in SAMPLINGS.items():
        for size in ((1, 1), (8, 8), (16, 9), (37, 53), (33, 34)):
            for restarts in (0, 2):
                options = {"subsampling": kind, "quality": 85, "restart_marker_blocks": restarts}
                files[f"{name} {size} {restarts}"] = encoded_jpeg(noise(*size), **options)
    files["4:4:0"] = resampled(encoded_jpeg(noise(32, 64), subsampling=1), (64, 32), 0x12)
    # What is missing is grey, for everybody.
    files["cut, with an end"] = encoded_jpeg(noise(40, 30))[:1000] + b"\xff\xd9"
    files["optimised"] = encoded_jpeg(noise(20, 30), optimize=True, quality=40)
    files["grey"] = encoded_jpeg(noise(20, 30), "L")
    files["RGB"] = encoded_jpeg(noise(20, 30), keep_rgb=True)
    files["a comment"] = with_segments(encoded_jpeg(noise(20, 30)), (0xFE, b"made by hand"))
    files["upright"] = with_segments(encoded_jpeg(noise(20, 30)), (0xE1, b"Exif\0\0" + exif(1)))
    return files


def other_jpegs():
    """Returns JPEGs by name of which the graph is not certain, or that it cannot read."""
    whole = encoded_jpeg(noise(40, 30), quality=90)
    scan = whole.index(b"\xff\xda")
    return {
        "progressive": encoded_jpeg(noise(20, 30), progressive=True),
        "4:1:1": resampled(encoded_jpeg(noise(32, 32), subsampling=2), (16, 64), 0x41),
        "turned": with_segments(whole, (0xE1, b"Exif\0\0" + exif(6))),
        "cut off": whole[: len(whole) // 2],
        "without an end": whole[:-2],
        "with a tail": whole + b"tail",
        "an end in the middle": whole[: scan + 100] + b"\xff\xd9" + whole[scan + 102 :],
        "a cut JFIF": with_segments(whole, (0xE0, b"JFIF\0\1")),
    }


def all_files():
    """Returns files of all kinds by name."""
    files = {name: file.data for part in (jpegs, pngs, cmyk_jpegs, turned_files) for name, file in part().items()}
    files |= {name: file.data for name, (file, _) in profiled_files().items()}
    return files | plain_jpegs() | other_jpegs() | odd_pngs() | other_files()


@tf.function(
    input_signature=[
        tf.TensorSpec([], tf.string),
        tf.TensorSpec([None, None, 3], tf.uint8),
        tf.TensorSpec([2], tf.int32),
        tf.TensorSpec([4], tf.int32),
    ]
)
def window_of(content, pixels, size, window):
    return decode_window(content, pixels, size, window)


def windows(height, width, count, seed=0):
    """Yields parts of an image: the whole, its edges of one pixel, and some at random, half of them small."""
    yield 0, 0, height, width
    for top, left in ((0, 0), (height - 1, 0), (0, width - 1), (height - 1, width - 1)):
        yield top, left, 1, 1
        yield 0, left, height, 1
        yield top, 0, 1, width
    generator = np.random.default_rng(seed)
    for number in range(count):
        sides = [int(generator.integers(1, (min(side, 6) if number % 2 else side) + 1)) for side in (height, width)]
        start = [int(generator.integers(0, side - part + 1)) for side, part in zip((height, width), sides, strict=True)]
        yield *start, *sides


def test_every_part_has_the_pixels_that_it_has_in_the_whole_image():
    files = all_files()
    decoded = {}
    for name, data in files.items():
        if (plain := find_plain_jpeg(data)) is None:
            continue
        expected = decode_image(data, name)
        decoded[name] = plain
        assert plain.size == expected.shape[:2], name
        for top, left, height, width in windows(*plain.size, 16 if max(plain.size) > 8 else 4):
            found = window_of(plain.content, np.zeros((0, 0, 3), np.uint8), plain.size, (top, left, height, width))
            assert np.array_equal(found, expected[top : top + height, left : left + width]), (name, top, left)
    # Those that are to be fast are, and those that others decode otherwise are not.
    assert {*plain_jpegs()} <= {*decoded} and not {*decoded} & {*other_jpegs()}
    assert not any("CMYK" in name or "PNG" in name for name in decoded)
    assert "JPEG sRGB of Little CMS" in decoded and "JPEG Display P3" not in decoded


def test_damaged_jpegs_have_the_same_pixels_or_the_same_error():
    """Of bits that are flipped in the code, libjpeg makes the same of a part as of the whole."""
    generator = np.random.default_rng(0)
    seen = {"same": 0, "both fail": 0}
    for number in range(90):
        options = {"subsampling": number % 3, "quality": 80, "restart_marker_blocks": number % 2 * 3}
        data = bytearray(encoded_jpeg(noise(30, 40, number), **options))
        scan = data.index(b"\xff\xda")
        place = int(generator.integers(20, scan) if number % 3 == 0 else generator.integers(scan + 14, len(data) - 2))
        data[place] ^= 1 << int(generator.integers(8))
        if (plain := find_plain_jpeg(bytes(data))) is None:
            continue
        try:
            expected = decode_image(bytes(data), "damaged")
        except BrokenImageError:
            with pytest.raises(tf.errors.InvalidArgumentError):
                window_of(plain.content, np.zeros((0, 0, 3), np.uint8), plain.size, (0, 0, *plain.size))
            seen["both fail"] += 1
            continue
        for top, left, height, width in windows(*plain.size, 6, number):
            found = window_of(plain.content, np.zeros((0, 0, 3), np.uint8), plain.size, (top, left, height, width))
            assert np.array_equal(found, expected[top : top + height, left : left + width]), number
        seen["same"] += 1
    assert seen["same"] > 35 and seen["both fail"] > 0


class OnlyPixels(Subset):
    """The same images, decoded by `read` alone, as before there was another way."""

    def read(self, index):
        return super().read(index)


@pytest.fixture(name="photos")
def _photos(tmp_path):
    """Returns a folder of files that the graph decodes, and of some that it does not."""
    kinds = [{}, {"subsampling": 0}, {"progressive": True}, {"restart_marker_blocks": 2}, {"quality": 30}]
    files = [encoded_jpeg(noise(40 + number, 50 - number), **kinds[number % 5]) for number in range(8)]
    files.append(with_segments(files[0], (0xE1, b"Exif\0\0" + exif(6))))
    files.append(encoded_jpeg(noise(45, 36), "CMYK"))
    for name, data in (("a.png", "PNG"), ("b.webp", "WEBP")):
        stream = io.BytesIO()
        Image.fromarray(noise(41, 47)).save(stream, data)
        files.append((name, stream.getvalue()))
    for number, file in enumerate(files):
        name, data = (f"{number:02}.jpg", file) if isinstance(file, bytes) else file
        path = tmp_path / "photos" / "train" / ("cat", "dog")[number % 2] / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return tmp_path / "photos"


def sources(photos):
    source = load_data(f"folder:{photos}", val_fraction=0.2).train
    return source, OnlyPixels(source, np.arange(len(source)))


def collect(source, augment, **arguments):
    arguments = {"batch_size": 4, "training": True, "epochs": 2, "seed": 3, "cache": "none"} | arguments
    return [(images.numpy(), labels.numpy()) for images, labels in make_dataset(source, augment, **arguments)]


def assert_same(first, second):
    assert len(first) == len(second)
    for (images, labels), (other_images, other_labels) in zip(first, second, strict=True):
        assert np.array_equal(labels, other_labels) and np.array_equal(images, other_images)


@pytest.mark.parametrize(
    "augment",
    [
        "random_area_crop(16,0.001)|flip|color_jitter(0.2)",
        "random_crop(30)|flip|resize(20,24)",
        "random_crop(8,30)",
    ],
)
def test_batches_are_those_of_images_that_pillow_decodes(photos, augment):
    source, pixels = sources(photos)
    assert source.has_files and not pixels.has_files
    dataset = make_dataset(source, augment, batch_size=4, training=True, cache="none")
    assert dataset._plan.decoder is not None
    assert dataset.element_spec[0].shape.as_list()[1:] == list(collect(source, augment)[0][0].shape[1:])
    assert_same(collect(source, augment), collect(pixels, augment))
    # Cached images are whole, and give the same.
    assert_same(collect(source, augment), collect(source, augment, cache="memory"))


def test_images_that_are_resized_first_or_of_which_all_counts_are_decoded_by_pillow(photos):
    source, pixels = sources(photos)
    for augment in ("resize(30)|random_area_crop(24)|flip", "flip|resize(20,20)", "random_scale(1,2)|random_crop(20)"):
        assert make_dataset(source, augment, batch_size=4, training=True, cache="none")._plan.decoder is None
        assert_same(collect(source, augment), collect(pixels, augment))


@pytest.mark.parametrize("input", ["exact", "fast"])
def test_an_epoch_can_be_replayed_alone(photos, input):
    source, _ = sources(photos)
    arguments = {"augment": "random_area_crop(24)|flip", "epochs": 4, "input": input}
    whole = collect(source, **arguments)
    assert_same(collect(source, initial_epoch=2, **arguments), whole[len(whole) // 2 :])
    assert_same(collect(source, **arguments), whole)
    assert not np.array_equal(whole[0][0], collect(source, seed=4, **arguments)[0][0])


def test_sources_of_sources_have_their_files(photos):
    source, _ = sources(photos)
    whole = [source.read(index) for index in range(len(source))]
    renumbered = Renumbered(source, np.array([1, 0]))
    joined = Joined([source, renumbered], [0, 2])
    left = load_data(f"folder:{photos}", skip_broken_images=True, val_fraction=0.2).train
    for found, first in ((Subset(source, [2, 1]), 2), (renumbered, 0), (joined, 0), (left, 0)):
        assert found.has_files
        assert np.array_equal(decode_image(found.read_file(0), "first"), whole[first])
    assert not Joined([source, load_data("digits").train], [0, 2]).has_files
    with pytest.raises(NotImplementedError, match="has no files"):
        load_data("digits").train.read_file(0)


def test_what_is_wrong_with_a_file_is_told_with_its_name(photos):
    source, _ = sources(photos)
    names = [source.describe(index) for index in range(len(source))]
    # Not the first, which is looked at before.
    path = next(name for name in names[1:] if find_plain_jpeg(source.read_file(names.index(name))))
    data = Path(path).read_bytes()
    table = data.index(b"\xff\xc4")
    # A code with more words than there are of one bit, which TensorFlow's decoder stumbles over; and a cut file.
    damaged = data[: table + 5] + b"\xff" + data[table + 6 :]
    assert find_plain_jpeg(damaged) is not None and find_plain_jpeg(data[:-40]) is None
    for content in (damaged, data[:-40]):
        Path(path).write_bytes(content)
        with pytest.raises(DataError, match=f"^Broken image '{path}': [^\n]*$"), surface_data_errors():
            collect(source, "random_area_crop(24)")
    Path(path).write_bytes(encoded_jpeg(noise(20, 20)))
    with pytest.raises(DataError, match=rf"^Image '{path}': random_crop\(30\) does not fit"), surface_data_errors():
        collect(source, "random_crop(30)")


def test_decoders_go_with_their_datasets(photos):
    from piggyback_tf.data import decoding

    source, _ = sources(photos)
    gc.collect()
    before = len(decoding._decoders)
    for input in ("exact", "fast"):
        collect(source, "random_area_crop(24)", input=input)
    gc.collect()
    assert len(decoding._decoders) <= before


FAST = [
    "random_area_crop(24)|flip",
    "resize(30)|random_area_crop(24)",
    "resize(30)|central_crop(24)|flip",
    "resize(9,7)",
]


@pytest.mark.parametrize("augment", [*FAST, "flip|resize(20,20)", "resize(30)|random_crop(24,2)"])
def test_fast_images_look_like_the_exact_ones(tmp_path, picture, augment):
    for name, size in {"a": (96, 128), "b": (33, 40), "c": (300, 210)}.items():
        for kind in ("jpg", "png"):
            path = tmp_path / "smooth" / "train" / name / f"0.{kind}"
            path.parent.mkdir(parents=True, exist_ok=True)
            y, x = np.mgrid[: size[0], : size[1]]
            ramps = [255 * y / size[0], 255 * x / size[1], 128 + 80 * np.sin(4 * (y / size[0] + x / size[1]))]
            Image.fromarray(np.stack(ramps, -1).astype(np.uint8)).save(
                path, **({"quality": 95} if kind == "jpg" else {})
            )
    source = load_data(f"folder:{tmp_path / 'smooth'}", val_fraction=0.2).train
    exact, fast = (collect(source, augment, input=input) for input in ("exact", "fast"))
    for (images, labels), (other, other_labels) in zip(exact, fast, strict=True):
        assert np.array_equal(labels, other_labels) and images.shape == other.shape
        difference = np.abs(images.astype(int) - other.astype(int))
        # By up to half a pixel of the image, whose colours change by up to 8 from one of the result's to the next.
        assert difference.mean() < 4 and difference.max() <= 40
    assert any(not np.array_equal(images, other) for (images, _), (other, _) in zip(exact, fast, strict=True))


def test_fast_decodes_no_more_than_it_needs():
    """Each side of a large photo is divided by eight while it is decoded, and its pixels are means."""
    pixels = np.kron(np.arange(64).reshape(8, 8, 1) * 4, np.ones((40, 40, 3))).astype(np.uint8)

    class OneFile(Subset):
        has_files = True

        def __init__(self):
            self.has_files = True

        def __len__(self):
            return 1

        def read_file(self, index):
            return encoded_jpeg(pixels, quality=100)

    decoder = make_decoder("fast", OneFile(), parse_augment("resize(40,40)"), lambda index, size: None)
    content, size, *moves = (part[0] for part in decoder.fetch(np.array([0])))
    found = decoder._decode(None, *map(tf.constant, (content, np.zeros((0, 0, 3), np.uint8), size, *moves)))
    expected = np.asarray(Image.fromarray(pixels).reduce(8))
    assert np.abs(found.numpy().astype(int) - expected).max() <= 2


def test_fast_is_for_training_images_in_files(photos):
    source, pixels = sources(photos)
    for arguments, message in (
        ({"training": False, "epochs": 1}, "input=fast is for training"),
        ({"input": "quick"}, "`input` must be one of exact, fast"),
    ):
        with pytest.raises(DataError, match=message):
            collect(source, "resize(20,20)", **({"input": "fast"} | arguments))
    for other in (pixels, load_data("digits").train):
        with pytest.raises(DataError, match="These images are no such files; use input=exact"):
            collect(other, "resize(20,20)", input="fast")


def test_fast_images_are_not_cached(photos, cache_dir):
    source, _ = sources(photos)
    for cache in ("disk", "memory"):
        dataset = make_dataset(source, "resize(20,20)", batch_size=4, training=True, input="fast", cache=cache)
        assert dataset._plan.images is None and source._kept_images == (None, None)
    assert not list(cache_dir.glob("images-*"))
