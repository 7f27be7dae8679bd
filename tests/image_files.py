"""Small image files of every kind that programs read in different ways, with the pixels that their formats define.

Written byte by byte where Pillow could not write them, so that what is expected comes from the formats and not from a
decoder.
"""

import io
import itertools
import struct
import zlib
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageCms

SIZE = 8
PNG_START = b"\x89PNG\r\n\x1a\n"
CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
NAMES = {0: "grey", 2: "colour", 3: "palette", 4: "grey and alpha", 6: "colour and alpha"}
ADAM7 = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))
TURNS = {
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
    8: np.rot90,
}
P3 = ((0.5151, 0.2412, -0.0011), (0.2920, 0.6922, 0.0419), (0.1571, 0.0666, 0.7841))
SRGB = ((0.43607, 0.22249, 0.01392), (0.38515, 0.71687, 0.09708), (0.14307, 0.06061, 0.71410))
SRGB_CURVE = b"para\0\0\0\0\0\3\0\0" + b"".join(
    struct.pack(">i", round(65536 * x)) for x in (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
)


class File(NamedTuple):
    """A file.

    Attributes:
        data: Its bytes.
        pixels: uint8 `[SIZE, SIZE, 3]`; None if it is not said.
        tolerance: By how much a decoder may be off.
    """

    data: bytes
    pixels: np.ndarray | None = None
    tolerance: int = 0


def chunk(kind, content):
    """Returns a chunk of a PNG."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(samples, colour, depth, *, interlaced=False, before=(), after=()):
    """Returns a PNG.

    Args:
        samples: Integers `[height, width, channels]`.
        colour: Its kind of colour.
        depth: Bits of a sample.
        interlaced: Whether it is written in seven passes.
        before: Chunks before the image.
        after: Chunks behind it.
    """
    height, width = samples.shape[:2]
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, int(interlaced))
    passes = [samples[y::dy, x::dx] for y, x, dy, dx in ADAM7] if interlaced else [samples]
    rows = b"".join(b"\0" + _pack(row, depth) for part in passes if part.size for row in part)
    body = [chunk(b"IHDR", header), *before, chunk(b"IDAT", zlib.compress(rows)), *after, chunk(b"IEND", b"")]
    return PNG_START + b"".join(body)


def _pack(row, depth):
    values = row.reshape(-1).astype(">u2")
    if depth == 16:
        return values.tobytes()
    bits = np.unpackbits(values.astype(np.uint8)[:, None], axis=1)[:, 8 - depth :]
    return np.packbits(bits).tobytes()


def exif(orientation, *, big=True, kind=3, count=1, entries=1, cut=0):
    """Returns a TIFF structure whose last entry of `entries` is the orientation, without its last `cut` bytes."""
    order = ">" if big else "<"
    value = struct.pack(order + {1: "B", 3: "H", 4: "I"}[kind], orientation).ljust(4, b"\0")
    camera = struct.pack(order + "HHI", 0x010F, 2, 2) + b"x\0\0\0"
    entry = struct.pack(order + "HHI", 0x0112, kind, count) + value
    found = (b"MM\0*" if big else b"II*\0") + struct.pack(order + "IH", 8, entries) + camera * (entries - 1) + entry
    found += bytes(4)
    return found[: len(found) - cut]


def profile(primaries=P3, curve=2.2, *, space=b"RGB ", extra=()):
    """Returns a colour profile of three primaries and a curve, which is a gamma, a table or the bytes of its tag."""

    def fixed(values):
        return b"XYZ \0\0\0\0" + b"".join(struct.pack(">i", round(65536 * value)) for value in values)

    if isinstance(curve, float):
        curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(256 * curve)) + b"\0\0"
    elif isinstance(curve, np.ndarray):
        curve = b"curv\0\0\0\0" + struct.pack(">I", len(curve)) + np.round(65535 * curve).astype(">u2").tobytes()
    name = b"made here\0"
    tags = {
        b"desc": b"desc\0\0\0\0" + struct.pack(">I", len(name)) + name + bytes(78),
        b"cprt": b"text\0\0\0\0none\0",
        b"wtpt": fixed((0.9642, 1.0, 0.8249)),
        **dict(zip((b"rXYZ", b"gXYZ", b"bXYZ"), map(fixed, primaries), strict=True)),
        **dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve),
        **dict(extra),
    }
    table, body, start = struct.pack(">I", len(tags)), b"", 132 + 12 * len(tags)
    for tag, data in tags.items():
        table += tag + struct.pack(">II", start + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    head = struct.pack(">I4x4s4s4s4s", start + len(body), b"\2\x40\0\0", b"mntr", space, b"XYZ ")
    head += struct.pack(">6H4s", 2020, 1, 1, 0, 0, 0, b"acsp") + bytes(28) + fixed((0.9642, 1.0, 0.8249))[8:]
    return head.ljust(128, b"\0") + table + body


def profile_chunk(content):
    """Returns the chunk of a PNG's colour profile."""
    return chunk(b"iCCP", b"a name\0\0" + zlib.compress(content))


def shown(pixels, content):
    """Returns what a viewer shows of pixels with a colour profile."""
    source, srgb = ImageCms.ImageCmsProfile(io.BytesIO(content)), ImageCms.createProfile("sRGB")
    return np.asarray(ImageCms.profileToProfile(Image.fromarray(pixels), source, srgb))


def _rng(*numbers):
    return np.random.default_rng(numbers)


def random_samples(colour, depth):
    shape = (SIZE, SIZE, CHANNELS[colour])
    return _rng(colour, depth).integers(0, 1 << depth, shape)


def _bytes_of(samples, depth):
    """Returns samples as bytes: of 16 bits the upper byte, of fewer than 8 scaled."""
    return (samples >> 8 if depth == 16 else samples * (255 // ((1 << depth) - 1))).astype(np.uint8)


def _on_white(colours, alpha):
    alpha = alpha[..., None] / 255
    return np.round(colours * alpha + 255 * (1 - alpha)).astype(np.uint8)


def _expected(samples, colour, depth, palette, hidden):
    """Returns pixels as the PNG specification has them, 16-bit grey rounded, and whether they are rounded elsewhere."""
    if colour == 3:
        colours, alpha = palette[samples[..., 0]], np.full((256,), 255)
        alpha[: len(hidden or b"")] = list(hidden or b"")
        alpha = alpha[samples[..., 0]]
    elif colour in (0, 2):
        colours = _bytes_of(samples, depth)
        if (colour, depth) == (0, 16):
            colours = np.round(samples / 257).astype(np.uint8)
        gone = np.zeros(samples.shape[:2], bool) if hidden is None else (samples == np.array(hidden)).all(axis=2)
        alpha = np.where(gone, 0, 255)
    else:
        colours, alpha = np.split(_bytes_of(samples, depth), [-1], axis=2)
        alpha = alpha[..., 0]
    colours = np.broadcast_to(colours, (SIZE, SIZE, 3))
    return _on_white(colours, alpha), int(((alpha > 0) & (alpha < 255)).any())


def _transparencies(colour, depth, samples):
    """Returns by name what may be transparent, as `_expected` takes it and as the chunk has it."""
    found = {"opaque": (None, None)}
    if colour == 3:
        count = 1 << depth
        levels = bytes(_rng(7, depth).integers(0, 256, count, dtype=np.uint8))
        for name, alpha in {"one hidden": b"\xff\0", "first hidden": b"\0", "all levels": levels}.items():
            found[name] = (alpha[:count], alpha[:count])
    elif colour in (0, 2):
        # One that occurs, and one that does not: the upper byte is that of another pixel.
        there = samples[2, 3].tolist()
        missing = [(value ^ 1) for value in samples[4, 4].tolist()]
        for name, value in {"a colour": there, "another colour": missing}.items():
            found[name] = (value, struct.pack(f">{len(value)}H", *value))
    return found


def pngs():
    """Returns PNG files by name: all kinds of colour, depths and transparencies, plain and interlaced."""
    files = {}
    for colour, depths in DEPTHS.items():
        for depth, interlaced in itertools.product(depths, (False, True)):
            samples = random_samples(colour, depth)
            palette = _rng(9, depth).integers(0, 256, (1 << depth, 3), dtype=np.uint8)
            plte = [chunk(b"PLTE", palette.tobytes())] if colour == 3 else []
            for name, (hidden, content) in _transparencies(colour, depth, samples).items():
                before = plte + ([] if content is None else [chunk(b"tRNS", content)])
                data = png(samples, colour, depth, interlaced=interlaced, before=before)
                pixels = _expected(samples, colour, depth, palette, hidden)
                title = f"PNG {NAMES[colour]}, {depth} bits, {name}{', interlaced' if interlaced else ''}"
                files[title] = File(data, *pixels)
    for depth, count in ((1, 1), (2, 3), (4, 5), (8, 100)):
        # A palette that lacks colours which occur: they are black.
        samples, few = random_samples(3, depth), _rng(1).integers(1, 256, (count, 3), dtype=np.uint8)
        pixels = np.vstack([few, np.zeros((256 - count, 3), np.uint8)])[samples[..., 0]]
        data = png(samples, 3, depth, before=[chunk(b"PLTE", few.tobytes())])
        files[f"PNG palette of {count} colours, {depth} bits"] = File(data, pixels)
    frames = [Image.fromarray(random_samples(2, 8).astype(np.uint8)), Image.fromarray(smooth())]
    for first_alone in (False, True):
        data = saved(frames[0], "PNG", save_all=True, append_images=frames[1:] * 2, default_image=first_alone)
        files[f"PNG animated{', with an image of its own' if first_alone else ''}"] = File(data, np.asarray(frames[0]))
    return files


def turned_files():
    """Returns JPEG and PNG files by name whose EXIF data are usual, unusual or damaged."""
    usual = {f"{number}": (exif(number), number) for number in TURNS}
    usual |= {f"{number} little-endian": (exif(number, big=False), number) for number in (3, 6)}
    unusual = {
        "32 bits": (exif(6, kind=4), 6),
        "32 bits, little-endian": (exif(6, big=False, kind=4), 6),
        "8 bits": (exif(6, kind=1), 1),
        "8 bits, little-endian": (exif(6, big=False, kind=1), 1),
        "two numbers": (exif(6, count=2), 1),
        "0": (exif(0), 1),
        "9": (exif(9), 1),
        "70000": (exif(65536 + 6, kind=4), 1),
        "third entry": (exif(8, entries=3), 8),
        "cut behind": (exif(8, cut=4), 8),
        "cut within": (exif(8, cut=5), 1),
        "cut within the second": (exif(8, entries=2, cut=9), 1),
        "more entries than there are": (exif(8)[:9] + b"\xff" + exif(8)[10:], 8),
        "far away": (b"MM\0*\x7f\xff\xff\xff" + exif(8)[8:], 1),
        "before the start": (b"MM\0*\xff\xff\xff\xfa" + exif(8)[8:], 1),
        "no TIFF": (b"XX" + exif(8)[2:], 1),
        "empty": (b"", 1),
        # With what stands before those of a JPEG already.
        "begun once more": (b"Exif\0\0" + exif(6), 6),
        "begun twice more": (b"Exif\0\0" * 2 + exif(6), 1),
    }
    samples = random_samples(2, 8)
    stored = samples.astype(np.uint8)
    jpeg = encoded_jpeg(smooth())
    files = {}
    for name, (data, number) in (usual | unusual).items():
        files[f"JPEG turned: {name}"] = File(with_segments(jpeg, (0xE1, b"Exif\0\0" + data)))
        part = [chunk(b"eXIf", data)]
        files[f"PNG turned: {name}"] = File(png(samples, 2, 8, before=part), TURNS[number](stored))
    behind = [chunk(b"eXIf", exif(6))]
    text = b"<x tiff:Orientation='6' tiff:Orientation=\"6\"/>"
    xmp = chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + text)
    files |= {
        "PNG turned behind the image": File(png(samples, 2, 8, after=behind), TURNS[6](stored)),
        "PNG turned twice": File(png(samples, 2, 8, before=[chunk(b"eXIf", exif(3))], after=behind), TURNS[3](stored)),
        "PNG turned by XMP": File(png(samples, 2, 8, before=[xmp]), stored),
        "PNG of 16-bit grey turned": File(
            png(random_samples(0, 16), 0, 16, before=behind),
            TURNS[6](_expected(random_samples(0, 16), 0, 16, None, None)[0]),
        ),
        "JPEG with a cut segment of Adobe": File(with_segments(jpeg, (0xEE, b"Adobe\0"))),
        "JPEG turned by XMP": File(with_segments(jpeg, (0xE1, b"http://ns.adobe.com/xap/1.0/\0" + text))),
        "JPEG turned twice": File(with_segments(jpeg, *[(0xE1, b"Exif\0\0" + exif(number)) for number in (1, 6)])),
        "JPEG turned behind what is no marker": File(
            jpeg[:2] + b"\xff\xfe\0\3x" + b"\0text\xff\0" + with_segments(jpeg, (0xE1, b"Exif\0\0" + exif(6)))[2:]
        ),
        "JPEG turned, filled": File(jpeg[:2] + b"\xff\xff" + with_segments(jpeg, (0xE1, b"Exif\0\0" + exif(6)))[2:]),
    }
    return files


def smooth(channels=3):
    small = _rng(3, channels).integers(0, 256, (3, 3, channels), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize((SIZE, SIZE), Image.Resampling.BICUBIC))


def saved(image, kind, **options):
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def encoded_jpeg(pixels, mode=None, **options):
    image = Image.fromarray(pixels)
    return saved(image if mode is None else image.convert(mode), "JPEG", **options)


def with_segments(jpeg, *segments):
    """Returns a JPEG with more segments, each a marker's second byte and a content, before its others."""
    more = (bytes([0xFF, marker]) + struct.pack(">H", len(content) + 2) + content for marker, content in segments)
    return jpeg[:2] + b"".join(more) + jpeg[2:]


def jpegs():
    """Returns JPEG files by name, without those of CMYK."""
    files = {f"JPEG sampled {kind}": encoded_jpeg(smooth(), subsampling=kind, quality=90) for kind in (0, 1, 2)}
    second = {"save_all": True, "append_images": [Image.fromarray(smooth())]}
    files |= {
        "JPEG of two images": saved(Image.fromarray(255 - smooth()), "MPO", **second),
        "JPEG progressive": encoded_jpeg(smooth(), progressive=True),
        "JPEG grey": encoded_jpeg(smooth(), "L"),
        # What other programs stumble over: parts of a profile without numbers, more than 255, and texts of any kind.
        "JPEG grey, profile without a number": with_segments(encoded_jpeg(smooth(), "L"), (0xE2, b"ICC_PROFILE\0")),
        "JPEG grey, 300 profiles": with_segments(encoded_jpeg(smooth(), "L"), *[(0xE2, b"ICC_PROFILE\0\1\1")] * 300),
        "JPEG with damaged texts": with_segments(
            encoded_jpeg(smooth()), (0xE2, b"MPF\0"), (0xED, b"Photoshop 3.0\0"), (0xFE, b"")
        ),
        "JPEG of RGB": encoded_jpeg(smooth(), keep_rgb=True),
    }
    return {name: File(data) for name, data in files.items()}


def cmyk_jpegs():
    """Returns CMYK JPEG files by name: those of Adobe are stored inverted."""
    adobe = encoded_jpeg(smooth(), "CMYK", quality=95)
    start = adobe.index(b"\xff\xee")
    # The last byte of Adobe's segment says that the first three channels are luminance and chrominance.
    return {
        "JPEG CMYK of Adobe": File(adobe),
        "JPEG CMYK as YCCK": File(adobe[: start + 15] + b"\2" + adobe[start + 16 :]),
        "JPEG CMYK": File(adobe[:start] + adobe[start + 16 :]),
    }


def profiled_files():
    """Returns files by name with colour profiles, and whether a server may refuse them."""
    levels = np.linspace(0, 1, 1024)
    table = np.where(levels <= 0.04045, levels / 12.92, ((levels + 0.055) / 1.055) ** 2.4)
    same = {
        "sRGB by formula": profile(SRGB, SRGB_CURVE),
        "sRGB by table": profile(SRGB, table),
        "sRGB of Little CMS": ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(),
        "grey": profile(space=b"GRAY"),
    }
    others = {
        "Display P3": profile(P3, SRGB_CURVE),
        "P3 with a gamma": profile(),
        "sRGB with a gamma of 1.8": profile(SRGB, 1.8),
        "linear": profile(SRGB, 1.0),
        "with swapped primaries": profile(SRGB[::-1], SRGB_CURVE),
    }
    unread = {"cut off": profile()[:300], "of zeros": bytes(1 << 21), "short": b"no profile", "empty": b""}
    samples, stored = random_samples(2, 8), random_samples(2, 8).astype(np.uint8)
    palette = _rng(4).integers(0, 256, (16, 3), dtype=np.uint8)
    indices = random_samples(3, 4)
    jpeg = encoded_jpeg(smooth())
    files = {}
    for name, content in (same | others | unread).items():
        after = shown(stored, content) if name in others else stored
        colours = shown(palette[None], content)[0] if name in others else palette
        refused = name in others or name == "cut off"
        part = [profile_chunk(content)]
        files[f"PNG {name}"] = File(png(samples, 2, 8, before=part), after), refused
        plte = [chunk(b"PLTE", palette.tobytes())]
        files[f"PNG palette {name}"] = (
            File(png(indices, 3, 4, before=[*part, *plte]), colours[indices[..., 0]]),
            refused,
        )
        grey = random_samples(0, 8)
        files[f"PNG grey {name}"] = File(png(grey, 0, 8, before=part), np.repeat(grey, 3, 2).astype(np.uint8)), False
        files[f"JPEG {name}"] = File(with_segments(jpeg, (0xE2, b"ICC_PROFILE\0\1\1" + content[:60000]))), refused
    parts = [
        (0xE2, b"ICC_PROFILE\0" + bytes([i, 2]) + part) for i, part in ((2, profile()[300:]), (1, profile()[:300]))
    ]
    files["JPEG P3 in two parts"] = File(with_segments(jpeg, *parts)), True
    files["JPEG P3 of which a part is missing"] = File(with_segments(jpeg, parts[0])), True
    return files
