"""Small image files that programs read in different ways, or that no server decodes."""

import struct

from PIL import Image

from tests.image_files import chunk, encoded_jpeg, png, random_samples, saved, smooth, with_segments


def odd_pngs():
    """Returns PNG files by name that programs read in different ways: a server refuses them, or agrees."""
    indices, colours = random_samples(3, 2), random_samples(2, 8)
    plte, grey = chunk(b"PLTE", bytes(range(12))), random_samples(0, 8)
    trns, damaged = chunk(b"tRNS", b"\0\x80"), bytearray(chunk(b"tRNS", b"\0\x80"))
    damaged[-1] ^= 1
    return {
        "two palettes": png(indices, 3, 2, before=[plte, chunk(b"PLTE", bytes(12))]),
        "transparency before the palette": png(indices, 3, 2, before=[trns, plte]),
        "two transparencies": png(indices, 3, 2, before=[plte, trns, chunk(b"tRNS", b"\xff\0")]),
        "more transparencies than colours": png(indices, 3, 2, before=[plte, chunk(b"tRNS", bytes(9))]),
        "empty transparency": png(indices, 3, 2, before=[plte, chunk(b"tRNS", b"")]),
        "a palette of five bytes": png(indices, 3, 2, before=[chunk(b"PLTE", bytes(5))]),
        "a palette too long": png(indices, 3, 2, before=[chunk(b"PLTE", bytes(range(30)))]),
        "no palette": png(indices, 3, 2),
        "transparency behind the image": png(indices, 3, 2, before=[plte], after=[trns]),
        "short transparency": png(colours, 2, 8, before=[chunk(b"tRNS", b"\0\1")]),
        "long transparency": png(grey, 0, 8, before=[chunk(b"tRNS", struct.pack(">3H", *[grey[0, 0, 0]] * 3))]),
        "transparency with upper bits": png(grey, 0, 8, before=[chunk(b"tRNS", bytes([1, grey[0, 0, 0]]))]),
        "transparency beside alpha": png(random_samples(6, 8), 6, 8, before=[chunk(b"tRNS", bytes(6))]),
        "damaged transparency": png(indices, 3, 2, before=[plte, bytes(damaged)]),
    }


def other_files():
    """Returns files by name that a server does not decode."""
    files = {}
    for kind, options in {"WEBP": {"lossless": True}, "GIF": {}, "BMP": {}, "TIFF": {}}.items():
        files[kind] = saved(Image.fromarray(smooth()), kind, **options)
    jpeg, flat = encoded_jpeg(smooth()), png(random_samples(2, 8), 2, 8)
    return files | {
        "nothing": b"",
        "a text": b"<html>not found</html>",
        "start of a JPEG": jpeg[:3],
        "a JPEG with a marker of none": with_segments(jpeg, (0x01, b"text")),
        "half a JPEG": jpeg[: len(jpeg) // 2],
        "start of a PNG": flat[:8],
        "header of a PNG": flat[:26],
        "half a PNG": flat[: len(flat) // 2],
        "a PNG of 20,000 texts": flat[:33] + chunk(b"tEXt", b"") * 20_000 + flat[33:],
    }
