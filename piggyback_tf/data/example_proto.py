"""Finds the image and the label in a serialised `tf.train.Example` without parsing the whole of it.

A scan for the labels of a large data set then touches a few bytes a record instead of every image.
The wire format: a message is a row of fields, each a varint key (number << 3 | type) and a value.
An Example is {1: Features}, Features is {1: entry, 1: entry, ...}, an entry {1: name, 2: Feature},
a Feature {1: BytesList} or {3: Int64List}, and both lists are {1: value}.
"""

from collections.abc import Iterator

VARINT, FIXED_64, BYTES, FIXED_32 = 0, 1, 2, 5


def find_image_and_label(buffer, start: int, end: int) -> tuple[int, int, int]:
    """Finds the features `image`, one byte string, and `label`, one integer.

    Args:
        buffer: Bytes, or anything that is indexed like them, such as a mapped file.
        start: Where the Example starts.
        end: The place after its end.

    Returns:
        Where the image's bytes start, the place after their end, and the label.

    Raises:
        ValueError: If the bytes are no such Example.
    """
    image = label = None
    for features in _submessages(buffer, start, end, 1):
        for entry in _submessages(buffer, *features, 1):
            names = list(_submessages(buffer, *entry, 1))
            name = bytes(buffer[slice(*names[-1])]) if names else b""
            for feature in _submessages(buffer, *entry, 2):
                if name == b"image":
                    for values in _submessages(buffer, *feature, 1):
                        image = next(_submessages(buffer, *values, 1), None)
                elif name == b"label":
                    for values in _submessages(buffer, *feature, 3):
                        label = _first_integer(buffer, *values)
    if image is None or label is None:
        raise ValueError("the record has no image or no label")
    return *image, label


def _submessages(buffer, start: int, end: int, number: int) -> Iterator[tuple[int, int]]:
    for found, kind, value_start, value_end in _fields(buffer, start, end):
        if found == number and kind == BYTES:
            yield value_start, value_end


def _first_integer(buffer, start: int, end: int) -> int | None:
    for number, kind, value_start, value_end in _fields(buffer, start, end):
        if number == 1 and kind in (VARINT, BYTES) and value_start < value_end:
            # Packed or not, the value is a varint; negative numbers are stored modulo 2**64.
            value, _ = _varint(buffer, value_start, value_end)
            return value - (1 << 64) if value >= 1 << 63 else value
    return None


def _fields(buffer, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Yields (field number, wire type, start of the value, end of the value)."""
    while start < end:
        key, start = _varint(buffer, start, end)
        kind = key & 7
        if kind == VARINT:
            stop = _varint(buffer, start, end)[1]
        elif kind == BYTES:
            length, start = _varint(buffer, start, end)
            stop = start + length
        elif kind in (FIXED_64, FIXED_32):
            stop = start + (8 if kind == FIXED_64 else 4)
        else:
            raise ValueError(f"the record has a field of the unknown wire type {kind}")
        if stop > end:
            raise ValueError("the record ends within a field")
        yield key >> 3, kind, start, stop
        start = stop


def _varint(buffer, start: int, end: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if start >= end:
            break
        byte = buffer[start]
        start += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, start
    raise ValueError("the record has a number without an end")
