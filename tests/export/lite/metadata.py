"""Reads LiteRT metadata by the places of fields in its published schema, without what wrote it."""

import struct

from ai_edge_litert import schema_py_generated as schema


class Table:
    """A table of a flatbuffer."""

    def __init__(self, data, place):
        self._data, self._place = data, place
        self._fields = place - self._number("<i", place)

    def _number(self, kind, place):
        return struct.unpack_from(kind, self._data, place)[0]

    def _offset(self, field):
        """Returns where a field is; None if it is not set."""
        place = 4 + 2 * field
        offset = self._number("<H", self._fields + place) if place < self._number("<H", self._fields) else 0
        return self._place + offset if offset else None

    def _target(self, field):
        place = self._offset(field)
        return None if place is None else place + self._number("<I", place)

    def byte(self, field):
        """Returns a number of one byte."""
        place = self._offset(field)
        return 0 if place is None else self._data[place]

    def table(self, field):
        """Returns a table."""
        return Table(self._data, self._target(field))

    def text(self, field):
        """Returns a string; an empty one if it is not set."""
        place = self._target(field)
        return "" if place is None else self._data[place + 4 : place + 4 + self._number("<I", place)].decode()

    def tables(self, field):
        """Returns a vector of tables."""
        place = self._target(field)
        places = range(place + 4, place + 4 + 4 * self._number("<I", place), 4) if place else ()
        return [Table(self._data, each + self._number("<I", each)) for each in places]

    def floats(self, field):
        """Returns a vector of numbers."""
        place = self._target(field)
        return list(struct.unpack_from(f"<{self._number('<I', place)}f", self._data, place + 4))


def read_metadata(content):
    """Returns the ModelMetadata in the content of a .tflite file."""
    model = schema.Model.GetRootAs(content)
    [buffer] = [
        model.Metadata(index).Buffer()
        for index in range(model.MetadataLength())
        if model.Metadata(index).Name() == b"TFLITE_METADATA"
    ]
    data = model.Buffers(buffer).DataAsNumpy().tobytes()
    assert data[4:8] == b"M001"
    return Table(data, struct.unpack_from("<I", data)[0])
