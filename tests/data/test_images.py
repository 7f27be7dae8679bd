import io

import numpy as np
import pytest
from PIL import Image

from piggyback_tf.data import BrokenImageError, DataError, decode_image, read_image


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


def test_32_bit_integers_within_and_beyond_16_bits():
    within = Image.fromarray(np.full((4, 4), 65535, np.int32))
    assert decode_image(encode(within, "TIFF"), "x").min() == 255
    with pytest.raises(BrokenImageError, match="'scan.tif'.*100000, and 16-bit grey ends at 65535"):
        decode_image(encode(Image.fromarray(np.full((4, 4), 100000, np.int32)), "TIFF"), "scan.tif")


def test_floating_point_is_refused():
    with pytest.raises(BrokenImageError, match="floating-point"):
        decode_image(encode(Image.fromarray(np.zeros((4, 4), np.float32)), "TIFF"), "x")


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
