"""Files to images within the graph, as far as the first operations of an augmentation look at them.

`exact` decodes the part of a JPEG that a crop looks at, to the pixels that it has in `decode_image`. Files of which
that is not certain are decoded there. `fast` makes other pixels: crops and resizes are one, and libjpeg scales while it
decodes.
"""

import abc
import functools
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from piggyback_tf.data.augment import (
    CropOperation,
    Operation,
    RandomOperation,
    Size,
    chain_size,
    cut,
    steps_of,
)
from piggyback_tf.data.geometry import IDENTITY, composed
from piggyback_tf.data.images import DataError
from piggyback_tf.data.plain_jpeg import find_plain_jpeg
from piggyback_tf.data.sources import Source
from piggyback_tf.settings.inputs import EXACT

if TYPE_CHECKING:
    import tensorflow as tf

# Chrominance between two of its pixels depends on both, so that a part needs a pixel more on every side. A part that
# has fewer than three of them across is not smoothed at all.
_MARGIN, _LEAST = 1, (1, 16)
# What libjpeg divides both sides by while it decodes.
_RATIOS = (1, 2, 4, 8)
# Files that are fetched at a time.
FETCHED = 16
# Files that are looked at for one that is broken: more are not on their way through the graph.
_LOOKED_AT = 10_000
# All that decode for some dataset, for the sake of `explain`.
_decoders: "weakref.WeakSet[Decoder]" = weakref.WeakSet()


class Decoder(abc.ABC):
    """Decodes the files of a source within a graph, and does the first operations with it.

    Args:
        source: The images, which have files.
        operations: The operations from the file on.
        check: Called with the index of an image and its `(height, width)`; raises a `DataError` if it does not fit.

    Attributes:
        done: How many operations are done.
    """

    done: int
    # Type and shape of each of what `_moves_of` returns.
    _move_specs: tuple[tuple[str, list[int]], ...] = ()

    def __init__(self, source: Source, operations: list[Operation], check: Callable[[int, Size], None]):
        self._source, self._operations, self._check = source, operations, check
        # When each was last fetched for the graph, from 1 on: an error there does not say of which file it is.
        self._turns, self._turn = np.zeros(len(source), np.int64), 0
        _decoders.add(self)

    def fetch(self, indices: np.ndarray) -> tuple[np.ndarray, ...]:
        """Returns images as they come into the graph, several at a time, for each call from there takes a while.

        Args:
            indices: The images, int64 `(k,)`.

        Returns:
            JPEGs, bytes `(k,)`, of which those are empty that `read` is to decode; their heights and widths, int32
            `(k, 2)`; and what `_moves_of` adds.

        Raises:
            DataError: If a file cannot be read, or does not fit.
        """
        contents, sizes = np.full(len(indices), b"", object), np.ones((len(indices), 2), np.int32)
        moves: list[tuple[np.ndarray, ...]] = []
        self._turn = turn = self._turn + 1
        for place, index in enumerate(indices.tolist()):
            if (plain := find_plain_jpeg(self._source.read_file(index))) is None:
                moves.append(tuple(np.zeros(shape, dtype) for dtype, shape in self._move_specs))
                continue
            self._check(index, plain.size)
            contents[place], sizes[place] = plain
            moves.append(self._moves_of(*plain.size))
            self._turns[index] = turn
        return contents, sizes, *(np.stack(found) for found in zip(*moves, strict=True))

    def read(self, index: int) -> tuple[np.ndarray, ...]:
        """Returns the pixels of an image, uint8 `(height, width, 3)`, their height and width, and its moves.

        Raises:
            DataError: If it cannot be read, or does not fit.
        """
        pixels = self._source.read(int(index))
        size = pixels.shape[0], pixels.shape[1]
        self._check(int(index), size)
        return pixels, np.array(size, np.int32), *self._moves_of(*size)

    def fetch_in_graph(self, fetch: Callable, indices: "tf.Tensor") -> list["tf.Tensor"]:
        """Returns what `fetch` does, or what stands for it, within a graph."""
        import tensorflow as tf

        specs = [(tf.string, []), (tf.int32, [2]), *self._move_specs]
        fetched = tf.numpy_function(fetch, [indices], [dtype for dtype, _ in specs], stateful=False)
        shapes = ([indices.shape[0], *shape] for _, shape in specs)
        return [tf.ensure_shape(*pair) for pair in zip(fetched, shapes, strict=True)]

    def decode(
        self,
        read: Callable,
        index: "tf.Tensor",
        seed_of: Callable[[int], "tf.Tensor"],
        content: "tf.Tensor",
        *size_and_moves: "tf.Tensor",
    ) -> "tf.Tensor":
        """Returns an image after the first operations, uint8 `(height, width, 3)`, within a graph.

        Args:
            read: `read`, or what stands for it.
            index: The image, int64 `[]`.
            seed_of: Returns the seed of an operation by its place among all.
            content: A row of what `fetch_in_graph` returned, as are the others.
        """
        import tensorflow as tf

        def otherwise() -> list["tf.Tensor"]:
            specs = [(tf.uint8, [None, None, 3]), (tf.int32, [2]), *self._move_specs]
            found = tf.numpy_function(read, [index], [dtype for dtype, _ in specs], stateful=False)
            return [tf.ensure_shape(part, shape) for part, (_, shape) in zip(found, specs, strict=True)]

        is_jpeg = tf.strings.length(content) > 0
        pixels, *rest = tf.cond(is_jpeg, lambda: [tf.zeros([0, 0, 3], tf.uint8), *size_and_moves], otherwise)
        return self._decode(seed_of, content, tf.ensure_shape(pixels, [None, None, 3]), *rest)

    @abc.abstractmethod
    def _decode(self, seed_of: Callable, *fetched: "tf.Tensor") -> "tf.Tensor":
        """Returns the image of a JPEG, or of pixels where that is empty, its size, and its moves."""

    def _moves_of(self, height: int, width: int) -> tuple[np.ndarray, ...]:
        """Returns what else comes into the graph of an image of this size, its moves."""
        del height, width
        return ()

    def find_broken(self) -> DataError | None:
        """Returns what is wrong with the file that the graph failed to decode last; None if there is none."""
        import tensorflow as tf

        fetched = np.flatnonzero(self._turns)
        for index in fetched[np.argsort(-self._turns[fetched])].tolist()[:_LOOKED_AT]:
            try:
                plain = find_plain_jpeg(self._source.read_file(index))
                if plain is not None:
                    tf.io.decode_jpeg(plain.content, dct_method="INTEGER_ACCURATE")
            except tf.errors.OpError:
                name = self._source.describe(index)
            except DataError as error:
                return error
            else:
                continue
            try:
                self._source.read(index)
            except DataError as error:
                return error
            return DataError(
                f"TensorFlow cannot decode {name!r}, which Pillow reads. Write it anew, for example as PNG."
            )
        return None


class ExactDecoder(Decoder):
    """Decodes what the first operation, a crop, looks at."""

    done = 1

    def _decode(self, seed_of, content, pixels, size):
        crop, seed = cast(CropOperation, self._operations[0]), seed_of(0)
        window = crop.window(size, seed)
        return crop.sample_window(decode_window(content, pixels, size, window), size, seed)


class FastDecoder(Decoder):
    """Makes one of the first operations, as far as they only scale: up to the first that draws random numbers.

    Args:
        source, operations, check: As of `Decoder`.
    """

    def __init__(self, source: Source, operations: list[Operation], check: Callable[[int, Size], None]):
        super().__init__(source, operations, check)
        self._fixed: list[Operation] = []
        self._drawn: RandomOperation | None = None
        for operation in operations:
            if not operation.only_scales or self._drawn is not None:
                break
            if isinstance(operation, RandomOperation):
                self._drawn = operation
            else:
                self._fixed.append(operation)
        self.done = len(self._fixed) + (self._drawn is not None)
        if self._fixed:
            self._move_specs = ("float32", [2, 3]), ("int32", [2])

    def _moves_of(self, height: int, width: int) -> tuple[np.ndarray, ...]:
        """Returns the geometry of the fixed operations on an image, float32 `[2, 3]`, and the size after them."""
        size = height, width
        if not self._fixed:
            return ()
        geometry = functools.reduce(composed, steps_of(self._fixed, size)[0], IDENTITY)
        after = chain_size(self._fixed, size)
        return geometry.astype(np.float32), np.array(after, np.int32)

    def _decode(self, seed_of, content, pixels, size, *moves):
        import tensorflow as tf

        geometry, after = moves or (tf.eye(2, 3), size)
        scale, offset = tf.linalg.diag_part(geometry), geometry[:, 2]
        if self._drawn is not None:
            drawn = self._drawn.geometry(after, seed_of(len(self._fixed)))
            scale, offset = scale * tf.linalg.diag_part(drawn), offset + scale * drawn[:, 2]
            after = tf.constant(self._drawn.output_size(None))
        return decode_scaled(content, pixels, size, scale, offset, after)


def check_input(how: str, source: Source) -> None:
    """Raises a `DataError` if a source has no files that could be decoded in another way than exactly."""
    if how != EXACT and not source.has_files:
        raise DataError(
            f"input={how} decodes image files whose targets stay as they are: those of folder:, multilabel:, and of "
            f"tfds: with classes. These images are no such files; use input={EXACT}."
        )


def make_decoder(
    how: str, source: Source, operations: list[Operation], check: Callable[[int, Size], None]
) -> Decoder | None:
    """Returns what decodes the files of a source within the graph; None if nothing is gained by it.

    Args:
        how: `"exact"` or `"fast"`.
        source: The images.
        operations: The operations from the file on.
        check: As of `Decoder`.

    Raises:
        DataError: If the source has no files that could be decoded fast.
    """
    if how != EXACT:
        check_input(how, source)
        return FastDecoder(source, operations, check)
    crops = bool(operations) and isinstance(operations[0], CropOperation)
    return ExactDecoder(source, operations, check) if crops and source.has_files else None


def explain(error: Exception) -> DataError | None:
    """Returns what is wrong with the file whose JPEG could not be decoded in the graph; None of any other error."""
    explained = (decoder.find_broken() for decoder in list(_decoders)) if "Invalid JPEG data" in str(error) else ()
    return next((cause for cause in explained if cause is not None), None)


def decode_window(content: "tf.Tensor", pixels: "tf.Tensor", size: "tf.Tensor", window: "tf.Tensor") -> "tf.Tensor":
    """Returns a part of an image, with the pixels that it has in the whole one.

    Args:
        content: A JPEG, string `[]`, or no bytes.
        pixels: The image where there is no JPEG, uint8 `[height, width, 3]`.
        size: int32 `[2]`, height and width.
        window: int32 `[4]`, top, left, height and width of the part.
    """
    import tensorflow as tf

    def decode() -> "tf.Tensor":
        first = tf.maximum(tf.minimum(window[:2] - _MARGIN, size - _LEAST), 0)
        last = tf.minimum(tf.maximum(window[:2] + window[2:] + _MARGIN, first + _LEAST), size)
        # As in Pillow; TensorFlow's default is a faster transform that is off by a step here and there.
        image = tf.io.decode_and_crop_jpeg(
            content, tf.concat([first, last - first], 0), channels=3, dct_method="INTEGER_ACCURATE"
        )
        return cut(image, tf.concat([window[:2] - first, window[2:]], 0))

    return tf.cond(tf.strings.length(content) > 0, decode, lambda: cut(pixels, window))


def decode_scaled(
    content: "tf.Tensor",
    pixels: "tf.Tensor",
    size: "tf.Tensor",
    scale: "tf.Tensor",
    offset: "tf.Tensor",
    result: "tf.Tensor",
) -> "tf.Tensor":
    """Returns a part of an image, resized; its sides are whole pixels of what libjpeg scales the image to.

    Args:
        content, pixels, size: As of `decode_window`.
        scale: float32 `[2]`, pixels of the image for one of the result, down and across.
        offset: float32 `[2]`, where the part begins.
        result: int32 `[2]`, height and width of the result.

    Returns:
        uint8 `[height, width, 3]`. Bilinear; antialiased where more than three pixels come to one.
    """
    import tensorflow as tf

    sides = scale * tf.cast(result, tf.float32)
    is_jpeg = tf.strings.length(content) > 0
    # The largest that leaves as many pixels as the result has.
    steps = tf.reduce_sum(tf.cast(tf.reduce_min(scale) >= tf.constant(_RATIOS[1:], tf.float32), tf.int32))
    steps = tf.where(is_jpeg, steps, 0)
    ratio = tf.gather(tf.constant(_RATIOS), steps)
    whole = -(-size // ratio)
    first, last = (
        tf.cast(tf.round(place / tf.cast(ratio, tf.float32)), tf.int32) for place in (offset, offset + sides)
    )
    first = tf.clip_by_value(first, 0, whole - 1)
    window = tf.concat([first, tf.clip_by_value(last, first + 1, whole) - first], 0)

    def decode(ratio: int) -> "tf.Tensor":
        return tf.io.decode_and_crop_jpeg(
            content, window, channels=3, ratio=ratio, fancy_upscaling=False, dct_method="INTEGER_FAST"
        )

    ways: dict[int, Any] = {step: functools.partial(decode, ratio) for step, ratio in enumerate(_RATIOS)}
    part = tf.cond(is_jpeg, lambda: tf.switch_case(steps, ways), lambda: cut(pixels, window))
    part = tf.ensure_shape(part, [None, None, 3])
    coarse = tf.reduce_any(window[2:] > 3 * result)

    def resize(antialias: bool) -> "tf.Tensor":
        return tf.image.resize(part, result, antialias=antialias)

    resized = tf.cond(coarse, lambda: resize(True), lambda: resize(False))
    return tf.ensure_shape(tf.cast(resized + 0.5, tf.uint8), [None, None, 3])
