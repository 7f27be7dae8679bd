"""Files of records, tfrecord and array_record: all records of a run in turn, with their checksums, or one of them."""

import abc
import dataclasses
import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from piggyback_tf.foreign_text import reason


@dataclasses.dataclass(frozen=True)
class Shard:
    """A run of records in one file: those from `skip` up to `skip + take`, of a split expression's `part`."""

    part: str
    path: str
    skip: int
    take: int

    def overlap(self, other: "Shard") -> int:
        """Returns how many records are in both."""
        if self.path != other.path:
            return 0
        return max(0, min(self.skip + self.take, other.skip + other.take) - max(self.skip, other.skip))


class RecordReader(abc.ABC):
    """Reads the files of one format; several threads may read at once."""

    @abc.abstractmethod
    def scan(self, shard: Shard) -> Iterator[tuple[int, bytes]]:
        """Yields the place of every record and its content, which has the checksum that it was written with.

        Raises:
            OSError: If the file cannot be read.
            ValueError: If the file is damaged, or ends before the run does.
        """

    @abc.abstractmethod
    def read(self, shard: Shard, place: int, size: int) -> bytes:
        """Returns one record by the place that `scan` gave, and its size in bytes.

        Raises:
            OSError, ValueError: As `scan`.
        """


class TfRecordReader(RecordReader):
    """Reads tfrecord files. The place of a record is where its content starts in the file."""

    def scan(self, shard: Shard) -> Iterator[tuple[int, bytes]]:
        import tensorflow as tf

        # TensorFlow's own reader compares both checksums of a record. Around the content are its length, uint64, that
        # number's checksum, uint32, and the content's, uint32.
        records, place = tf.data.TFRecordDataset(shard.path).as_numpy_iterator(), 12
        for number in range(shard.skip + shard.take):
            try:
                record = next(records)
            except StopIteration:
                raise ValueError(
                    f"it ends after {number} records, where {shard.skip + shard.take} were expected"
                ) from None
            except tf.errors.OpError as error:
                # TensorFlow puts the name of the operation around the sentence.
                said = re.sub(r"\{\{.*?\}\}|\[Op:.*", "", error.message).strip().rstrip(".")
                raise ValueError(f"record {number} does not have its checksum, or is cut off ({said})") from error
            if number >= shard.skip:
                yield place, record
            place += len(record) + 16

    def read(self, shard: Shard, place: int, size: int) -> bytes:
        with Path(shard.path).open("rb") as stream:
            stream.seek(place)
            return stream.read(size)


class ArrayRecordReader(RecordReader):
    """Reads array_record files, which compare a checksum whenever they are read. A place counts from `skip` on."""

    def __init__(self):
        self._open: dict[Shard, Any] = {}

    def scan(self, shard: Shard) -> Iterator[tuple[int, bytes]]:
        for place in range(shard.take):
            yield place, self.read(shard, place, 0)

    def read(self, shard: Shard, place: int, size: int) -> bytes:
        del size
        try:
            if shard not in self._open:
                # tfds itself reads array_record through this package, and declares it where it exists.
                from array_record.python.array_record_data_source import ArrayRecordDataSource

                self._open[shard] = ArrayRecordDataSource(f"{shard.path}[{shard.skip}:{shard.skip + shard.take}]")
            return self._open[shard][place]
        except (RuntimeError, IndexError) as error:
            # All that the library finds in a file is a RuntimeError.
            raise ValueError(reason(error)) from error


READERS: dict[str, type[RecordReader]] = {"tfrecord": TfRecordReader, "array_record": ArrayRecordReader}


def shared_records(first: list[Shard], second: list[Shard]) -> int:
    """Returns how many records two lists of shards have in common."""
    return sum(a.overlap(b) for a, b in itertools.product(first, second))
