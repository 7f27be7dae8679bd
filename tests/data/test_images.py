import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from piggyback_tf.data import BrokenImageError, DataError, decode_image, load_data, read_image
from piggyback_tf.data.images import EXTENSIONS
from tests import image_files


def encode(image: Image.Image, file_format: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def grey_of(rgb: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(rgb).convert("L"))


def assert_close(image: np.ndarray, expected: np.ndarray, tolerance: float) -> None:
    assert image.dtype == np.uint8
    assert image.shape == expected.shape
    assert np.abs(image.astype(int) - expected.astype(int)).max() <= tolerance


@pytest.mark.parametrize("file_format", ["PNG", "BMP", "TIFF", "WEBP"])
def test_lossless_rgb_is_kept(picture, file_format):
    options = {"lossless": True} if file_format == "WEBP" else {}
    assert_close(decode_image(encode(Image.fromarray(picture()), file_format, **options), "x"), picture(), 0)


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "TIFF"])
def test_grey(picture, file_format):
    grey = grey_of(picture())
    image = decode_image(encode(Image.fromarray(grey), file_format), "x")
    assert_close(image, np.repeat(grey[..., None], 3, axis=-1), 6 if file_format == "JPEG" else 0)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_is_white(picture, mode):
    alpha = np.zeros((24, 32), np.uint8)
    alpha[:, 8:16], alpha[:, 16:] = 128, 255
    # What is under full transparency is black, which must not show.
    rgb = picture() * (alpha > 0)[..., None]
    image = Image.fromarray(rgb).convert(mode)
    image.putalpha(Image.fromarray(alpha))
    opaque = rgb if mode == "RGBA" else np.repeat(grey_of(rgb)[..., None], 3, axis=-1)
    share = alpha[..., None] / 255
    assert_close(decode_image(encode(image, "PNG"), "x"), np.round(opaque * share + 255 * (1 - share)), 1)


@pytest.mark.parametrize("file_format", ["PNG", "GIF"])
def test_transparent_palette_colour_is_white(file_format):
    image = Image.new("P", (4, 4), 1)
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((0, 0), 0)
    decoded = decode_image(encode(image, file_format, transparency=0), "x")
    assert decoded[0, 0].tolist() == [255, 255, 255]
    assert decoded[1, 1].tolist() == [200, 100, 50]


def test_transparent_colour_of_rgb_and_grey_png_is_white():
    rgb = Image.new("RGB", (3, 3), (1, 2, 3))
    rgb.putpixel((1, 1), (9, 9, 9))
    decoded = decode_image(encode(rgb, "PNG", transparency=(1, 2, 3)), "x")
    assert decoded[0, 0].tolist() == [255] * 3 and decoded[1, 1].tolist() == [9] * 3
    grey = Image.new("L", (3, 3), 7)
    assert decode_image(encode(grey, "PNG", transparency=7), "x").min() == 255


def without_adobe_marker(jpeg: bytes) -> bytes:
    start = jpeg.index(b"\xff\xee")
    length = int.from_bytes(jpeg[start + 2 : start + 4], "big")
    return jpeg[:start] + jpeg[start + 2 + length :]


@pytest.mark.parametrize("kind", ["tiff", "adobe_jpeg", "plain_jpeg"])
def test_cmyk(picture, kind):
    cmyk = Image.fromarray(picture()).convert("CMYK")
    if kind == "tiff":
        data = encode(cmyk, "TIFF")
    elif kind == "adobe_jpeg":
        # Pillow writes Adobe's convention: inverted, and with its marker.
        data = encode(cmyk, "JPEG", quality=100)
    else:
        inverted = Image.fromarray(255 - np.asarray(cmyk), mode="CMYK")
        data = without_adobe_marker(encode(inverted, "JPEG", quality=100))
    assert Image.open(io.BytesIO(data)).mode == "CMYK"
    assert_close(decode_image(data, "x"), picture(), 4)


@pytest.mark.parametrize("file_format", ["PNG", "TIFF"])
def test_16_bit_grey_is_scaled_by_its_range(file_format):
    values = np.linspace(0, 65535, 256).round().astype(np.uint16).reshape(16, 16)
    expected = np.repeat(np.arange(256).reshape(16, 16, 1), 3, axis=-1)
    assert_close(decode_image(encode(Image.fromarray(values), file_format), "x"), expected, 0)


def test_dark_16_bit_grey_stays_dark():
    values = np.full((4, 4), 300, np.uint16)
    assert decode_image(encode(Image.fromarray(values), "PNG"), "x").max() == 1


def test_transparent_16_bit_grey_is_white():
    values = np.array([[300, 301], [40000, 300]], np.uint16)
    decoded = decode_image(encode(Image.fromarray(values), "PNG", transparency=300), "x")
    np.testing.assert_array_equal(decoded[..., 1], [[255, 1], [156, 255]])


def tiff(samples: np.ndarray, *, bits: int, white_is_zero: bool = False, sample_format: int = 1, big: bool = False):
    """Returns a grey TIFF with the bytes of an array, in one strip."""
    order, rows = ">" if big else "<", np.packbits(samples, axis=-1) if bits == 1 else samples
    tags = {256: samples.shape[1], 257: samples.shape[0], 258: bits, 259: 1, 262: int(not white_is_zero), 277: 1}
    tags |= {273: 8 + 2 + 12 * 10 + 4, 278: samples.shape[0], 279: rows.nbytes, 339: sample_format}
    entries = b"".join(struct.pack(f"{order}HHII", tag, 4, 1, tags[tag]) for tag in sorted(tags))
    head = (b"MM\0*" if big else b"II*\0") + struct.pack(f"{order}IH", 8, len(tags))
    return head + entries + bytes(4) + rows.astype(rows.dtype.newbyteorder(order)).tobytes()


@pytest.mark.parametrize("white_is_zero", [False, True])
@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("bits", [1, 8, 16])
def test_grey_tiffs_are_as_they_say(bits, big, white_is_zero):
    dtype = np.uint16 if bits == 16 else np.uint8
    samples = np.random.default_rng(0).integers(0, 1 << bits, (8, 8)).astype(dtype)
    data = tiff(samples, bits=bits, big=big, white_is_zero=white_is_zero)
    expected = np.round(samples * (255 / ((1 << bits) - 1))).astype(np.uint8)
    if bits == 16 and big and white_is_zero:
        with pytest.raises(BrokenImageError, match="no image format"):
            decode_image(data, "x")
        return
    expected = np.repeat(255 - expected[..., None] if white_is_zero else expected[..., None], 3, axis=-1)
    np.testing.assert_array_equal(decode_image(data, "x"), expected)


def test_grey_tiff_of_12_bits_ends_at_4095():
    # Two samples in three bytes, the upper bits first.
    data = tiff(np.array([[0xFF, 0xF0, 0x00, 0x80, 0x0F, 0xFF]], np.uint8), bits=12)
    data = data.replace(struct.pack("<HHII", 256, 4, 1, 6), struct.pack("<HHII", 256, 4, 1, 4))
    assert decode_image(data, "x")[0, :, 0].tolist() == [255, 0, 128, 255]


@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.int32, np.uint32])
@pytest.mark.parametrize("big", [False, True])
def test_grey_tiffs_of_unknown_range_are_refused(dtype, big):
    dtype = np.dtype(dtype)
    samples = np.arange(64).astype(dtype).reshape(8, 8)
    data = tiff(samples, bits=8 * dtype.itemsize, sample_format=2 if dtype.kind == "i" else 1, big=big)
    with pytest.raises(BrokenImageError, match="'scan.tif'.*(signed|of 32 bits|no image format)"):
        decode_image(data, "scan.tif")


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "TIFF", "WEBP"])
def test_colours_of_a_wide_profile_are_converted(picture, file_format):
    options = {"PNG": {}, "JPEG": {"quality": 100, "subsampling": 0}, "TIFF": {}, "WEBP": {"lossless": True}}[
        file_format
    ]
    image = Image.fromarray(picture())
    plain = decode_image(encode(image, file_format, **options), "x")
    converted = decode_image(encode(image, file_format, icc_profile=image_files.profile(), **options), "x")
    np.testing.assert_array_equal(converted, image_files.shown(plain, image_files.profile()))
    assert np.abs(converted.astype(int) - plain).max() > 20
    srgb = image_files.profile(image_files.SRGB, image_files.SRGB_CURVE)
    np.testing.assert_array_equal(decode_image(encode(image, file_format, icc_profile=srgb, **options), "x"), plain)


def test_colours_of_a_long_profile_are_converted(picture):
    # Longer than Pillow takes in a PNG.
    content = image_files.profile(extra={b"junk": bytes(2 << 20)}.items())
    decoded = decode_image(encode(Image.fromarray(picture()), "PNG", icc_profile=content), "x")
    np.testing.assert_array_equal(decoded, image_files.shown(picture(), image_files.profile()))


def test_a_profile_in_parts_counts_if_all_are_there(picture):
    jpeg, wide = encode(Image.fromarray(picture()), "JPEG"), image_files.profile()
    plain = decode_image(jpeg, "x")

    def decode(*parts):
        segments = [(0xE2, b"ICC_PROFILE\0" + bytes([number, count]) + part) for number, count, part in parts]
        return decode_image(image_files.with_segments(jpeg, *segments), "x")

    halves = (2, 2, wide[300:]), (1, 2, wide[:300])
    np.testing.assert_array_equal(decode(*halves), image_files.shown(plain, wide))
    for parts in (halves[:1], halves[1:], [(1, 2, wide)], [(2, 2, wide), (2, 2, wide)], [(1, 1, wide), (1, 1, wide)]):
        np.testing.assert_array_equal(decode(*parts), plain)


def test_colours_under_transparency_are_converted_too(picture):
    image = Image.fromarray(np.dstack([picture(), np.full((24, 32), 255, np.uint8)]))
    image.putpixel((0, 0), (9, 9, 9, 0))
    decoded = decode_image(encode(image, "PNG", icc_profile=image_files.profile()), "x")
    expected = image_files.shown(picture(), image_files.profile())
    assert decoded[0, 0].tolist() == [255] * 3
    np.testing.assert_array_equal(decoded[1:], expected[1:])


@pytest.mark.parametrize("kind", ["grey", "CMYK"])
def test_profiles_of_other_colours_do_not_count(picture, kind):
    image = Image.fromarray(picture()).convert("L" if kind == "grey" else "CMYK")
    plain, profiled = (encode(image, "JPEG", icc_profile=profile) for profile in (None, image_files.profile()))
    np.testing.assert_array_equal(decode_image(plain, "x"), decode_image(profiled, "x"))


@pytest.mark.parametrize("kind", [b"zTXt", b"iTXt", b"iCCP"])
def test_long_texts_and_profiles_do_not_break_a_png(picture, kind):
    # More than Pillow takes.
    content = {b"zTXt": b"Raw\0\0", b"iTXt": b"XML:com.adobe.xmp\0\1\0\0\0", b"iCCP": b"icc\0\0"}[kind]
    chunk = image_files.chunk(kind, content + zlib.compress(bytes(2 << 20)))
    plain = encode(Image.fromarray(picture()), "PNG")
    np.testing.assert_array_equal(decode_image(plain[:33] + chunk + plain[33:], "x"), picture())


@pytest.mark.parametrize(
    ("file_format", "options", "tolerance"),
    [("AVIF", {"quality": 100, "subsampling": "4:4:4"}, 3), ("JPEG2000", {}, 0), ("PPM", {}, 0), ("DIB", {}, 0)],
)
def test_a_format_that_one_image_may_have_a_folder_may_have_too(picture, tmp_path, file_format, options, tolerance):
    endings = [ending for ending, kind in Image.registered_extensions().items() if kind == file_format]
    for split, name in ((split, name) for split in ("train/a", "train/b") for name in range(2)):
        path = tmp_path / split / f"{name}{endings[0]}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(Image.fromarray(picture()), file_format, **options))
    source = load_data(f"folder:{tmp_path}").train
    assert_close(source.read(0), picture(), tolerance)
    assert_close(read_image(tmp_path / "train/a" / f"0{endings[0]}"), picture(), tolerance)


def test_every_ending_of_a_format_is_one_of_an_image():
    """Of those in which people keep images; that of a folder is told by its endings, that of one image by its bytes."""
    kinds = {Image.registered_extensions()[f".{ending}"] for ending in EXTENSIONS}
    assert kinds >= {"AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP"}
    endings = {ending for ending, kind in Image.registered_extensions().items() if kind in kinds}
    # Floating point numbers have no range.
    assert endings - {".pfm"} == {f".{ending}" for ending in EXTENSIONS}
    text = (Path(__file__).parents[2] / "docs" / "commands.md").read_text()
    assert [ending for ending in EXTENSIONS if f"`.{ending}`" not in text] == []


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_of_avif(picture, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 100, "subsampling": "4:4:4"}
    # The first, since the other one takes the orientation out of its EXIF data.
    expected = decode_image(encode(Image.fromarray(picture()), "PNG", exif=exif), "x")
    found = decode_image(encode(Image.fromarray(picture()), "AVIF", exif=exif, **options), "x")
    assert_close(found, expected, 3)


def test_floating_point_is_refused():
    with pytest.raises(BrokenImageError) as caught:
        decode_image(encode(Image.fromarray(np.zeros((4, 4), np.float32)), "TIFF"), "x")
    said = "Image 'x' cannot be used: its pixels are floating-point numbers, whose range is not known."
    assert (caught.value.kind, str(caught.value)) == ("no_range", said)


def test_one_bit():
    bits = np.eye(8, dtype=bool)
    expected = np.repeat((bits * 255)[..., None], 3, axis=-1)
    assert_close(decode_image(encode(Image.fromarray(bits), "PNG"), "x"), expected, 0)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(picture, orientation):
    # How a camera that was held so stores the picture: the inverse of what a viewer does.
    stored = {
        1: lambda a: a,
        2: np.fliplr,
        3: lambda a: np.rot90(a, 2),
        4: np.flipud,
        5: lambda a: a.swapaxes(0, 1),
        6: np.rot90,
        7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
        8: lambda a: np.rot90(a, -1),
    }[orientation](picture())
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(Image.fromarray(np.ascontiguousarray(stored)), "PNG", exif=exif)
    assert_close(decode_image(data, "x"), picture(), 0)


def test_exif_orientation_of_cmyk_and_16_bit(picture):
    exif = Image.Exif()
    exif[0x0112] = 6
    cmyk = Image.fromarray(np.ascontiguousarray(np.rot90(picture()))).convert("CMYK")
    assert_close(decode_image(encode(cmyk, "JPEG", quality=100, exif=exif), "x"), picture(), 4)
    values = (grey_of(picture()).astype(np.uint16) * 257).copy()
    deep = Image.fromarray(np.ascontiguousarray(np.rot90(values)))
    expected = np.repeat(grey_of(picture())[..., None], 3, axis=-1)
    assert_close(decode_image(encode(deep, "PNG", exif=exif), "x"), expected, 0)


@pytest.mark.parametrize("file_format", ["GIF", "WEBP"])
def test_first_frame_of_an_animation(file_format):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ((250, 0, 0), (0, 0, 250))]
    data = encode(frames[0], file_format, save_all=True, append_images=frames[1:], duration=50, lossless=True)
    assert_close(decode_image(data, "x"), np.full((8, 8, 3), (250, 0, 0), np.uint8), 1)


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP"])
def test_truncated_file_is_broken(tmp_path, file_format):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    path = tmp_path / "half.img"
    data = encode(Image.fromarray(noise), file_format)
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(BrokenImageError, match="Broken image .*half.img"):
        read_image(path)


@pytest.mark.parametrize("content, reason", [(b"", "empty"), (b"<html>not found</html>", "no image format")])
def test_no_image_at_all(tmp_path, content, reason):
    path = tmp_path / "page.jpg"
    path.write_bytes(content)
    with pytest.raises(BrokenImageError, match=f"page.jpg.*{reason}"):
        read_image(path)


def test_missing_file_is_not_a_broken_image(tmp_path):
    with pytest.raises(DataError, match="gone.jpg.*No such file") as caught:
        read_image(tmp_path / "gone.jpg")
    assert not isinstance(caught.value, BrokenImageError)
