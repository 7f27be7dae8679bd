"""The images of a source as they are after the operations that are the same in every epoch: cached, or read anew."""

import dataclasses
import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from absl import logging

from piggyback_tf.data.augment import Operation, Size, chain_size, leading_deterministic
from piggyback_tf.data.cache import CachedImages, bytes_in_memory, cache_folder, cache_in_memory
from piggyback_tf.data.disk_cache import cache_on_disk, make_room, open_disk_cache
from piggyback_tf.data.images import PIXELS_VERSION, DataError
from piggyback_tf.data.look import Look, ReadAndPrepare, UnfitImageError, WithoutBroken, all_images, look_at
from piggyback_tf.data.sources import Source, digest
from piggyback_tf.settings.inputs import CACHES
from piggyback_tf.settings.records import check_choice

# The size of a cache is estimated from this many images, spread over the source.
PROBES = 16


@dataclasses.dataclass(frozen=True)
class CacheOptions:
    """What may be cached where; see `make_dataset`."""

    cache: str = "auto"
    cache_limit_mb: int = 2048
    cache_disk_limit_mb: int = 20480
    cache_dir: str | None = None

    def __post_init__(self):
        check_choice("cache", self.cache, CACHES, DataError)

    @property
    def folder(self) -> Path:
        """The cache folder."""
        return cache_folder(self.cache_dir)


@dataclasses.dataclass(frozen=True)
class Prepared:
    """Images after the deterministic operations at the start of an augmentation.

    Attributes:
        images: The cached images; None if each is read when it is needed.
        read: Returns an image by its index.
        size: The `(height, width)` of all images after all operations.
    """

    images: CachedImages | None
    read: Callable[[int], np.ndarray]
    size: Size


def prepare(
    source: Source,
    operations: list[Operation],
    augment: str,
    options: CacheOptions,
) -> Prepared:
    """Prepares the images of a source.

    Args:
        source: The images.
        operations: All operations of the augmentation.
        augment: The augmentation, for errors.
        options: What may be cached where.

    Raises:
        DataError: If images that are cached cannot be read, or the images do not fit the operations.
    """
    if not len(all_images(source)):
        raise DataError("There are no images to make batches of.")
    prefix = leading_deterministic(operations)
    suffix = operations[prefix:]
    reader = ReadAndPrepare(source, operations[:prefix])
    images = cache_images(reader, options)
    if images is None:
        # Images of a folder may have one size even if the operations do not see to it: the first says which, and
        # every other is checked against it when it is read.
        size = chain_size(suffix, reader(0).shape[:2])
        return Prepared(None, _checked(reader, size_check(source, suffix, size, augment)), size)
    return Prepared(images, images.read, common_size(images.shapes, suffix, augment))


def common_size(sizes: np.ndarray, operations: list[Operation], augment: str) -> Size:
    """Returns the `(height, width)` that all images have after some operations.

    Args:
        sizes: `(height, width)` of the images before, of shape `(n, 2)`.
        operations: The operations.
        augment: The whole augmentation, for the error.

    Raises:
        DataError: If they do not fit, or do not get one size.
    """
    found = {chain_size(operations, (int(height), int(width))) for height, width in np.unique(sizes, axis=0)}
    if len(found) > 1:
        raise DataError(
            f"After the augmentation {augment!r} the images have different sizes and do not fit into one batch; "
            f"end it with a crop or with resize(height, width)."
        )
    return found.pop()


def size_check(source: Source, operations: list[Operation], final: Size, augment: str) -> Callable[[int, Size], None]:
    """Returns a function that refuses images which some operations could not bring to the final size.

    Args:
        source: The images.
        operations: The operations.
        final: `(height, width)` after them.
        augment: The whole augmentation, for the error.

    Returns:
        Takes the index of an image and its `(height, width)`, and raises an `UnfitImageError` if it does not fit.
    """

    def check(index: int, size: Size) -> None:
        try:
            found = chain_size(operations, size)
        except DataError as error:
            raise UnfitImageError(f"Image {source.describe(index)!r}: {error}") from None
        if found != final:
            raise UnfitImageError(
                f"Image {source.describe(index)!r} leaves the augmentation {augment!r} with a height and width of "
                f"{found} where the first image has {final}; end it with a crop or with resize(height, width)."
            )

    return check


def _checked(reader: ReadAndPrepare, check: Callable[[int, Size], None]) -> Callable[[int], np.ndarray]:
    """Returns a reader whose images are checked."""

    def read(index: int) -> np.ndarray:
        image = reader(index)
        check(int(index), image.shape[:2])
        return image

    return read


def cache_images(
    reader: ReadAndPrepare, options: CacheOptions, progress: Callable[[], Any] = lambda: None
) -> CachedImages | None:
    """Returns all images of a source after some operations, or `None` to read them anew each time.

    Args:
        reader: Reads and prepares the images.
        options: What may be cached where.
        progress: Called after each image that is decoded.

    Raises:
        DataProblems: If an image cannot be used, and is not left out.
        DataError: If images cannot be cached where they must be.
    """
    cache = options.cache
    if cache == "none":
        return None
    source, steps = reader.source, "|".join(operation.source for operation in reader.operations)
    if cache != "disk":
        # The last images cached in memory stay with their source, for the next dataset with the same operations.
        kept_steps, kept = source._kept_images
        if kept_steps == steps:
            return kept
        # Those of other operations go first, lest both be held at once.
        if cache != "existing":
            kept, source._kept_images = None, (None, None)

    raw = all_images(source)
    count, what = len(raw), f"{len(raw)} images" + (f" after {steps}" if steps else "")

    def entry(source: Source) -> Path:
        return options.folder / f"images-{digest(PIXELS_VERSION, PIL.__version__, source.fingerprint(), steps)[:32]}"

    if cache == "existing":
        return open_disk_cache(entry(source), source.channels)
    estimate = _estimate(ReadAndPrepare(raw, reader.operations), count)
    images = look_at(reader, options.cache_dir, progress)
    if cache == "memory" or (cache == "auto" and _fits_in_memory(estimate, options.cache_limit_mb << 20)):
        logging.debug("Caching %s in memory, about %.0f MiB.", what, estimate / 2**20)
        cached = cache_in_memory(images, estimate, source.channels)
        source._kept_images = steps, cached
        return cached

    folder, limit, most = entry(raw), options.cache_disk_limit_mb << 20, None
    about = {"images": count, "operations": steps, "first": raw.describe(0), "last": raw.describe(count - 1)}
    if (found := open_disk_cache(folder, source.channels)) is not None:
        if raw is not source and isinstance(source, WithoutBroken):  # Only images that are whole were ever cached.
            source.settle(Look(np.zeros((count, 2), np.int32), {}))
        return found
    try:
        room = make_room(options.folder, estimate, max(limit, estimate) if cache == "disk" else limit)
        if cache == "auto":
            most = room
            if estimate > room:
                raise OSError(
                    f"about {estimate / 2**20:.1f} MiB are needed and {room / 2**20:.1f} MiB are left of the disk and "
                    f"of cache_disk_limit_mb={options.cache_disk_limit_mb}"
                )
        logging.debug("Caching %s on disk in %s, about %.0f MiB.", what, folder, estimate / 2**20)
        return cache_on_disk(images, folder, about, channels=source.channels, final=lambda: entry(source), most=most)
    except OSError as error:
        if cache == "disk":
            raise DataError(f"Cannot cache {what} in {str(folder)!r}: {error}.") from error
        logging.warning("No cache for %s, which are decoded anew in every epoch: %s: %s.", what, folder, error)
        return None


def _fits_in_memory(size: int, limit: int) -> bool:
    """Returns whether so many bytes more stay within the limit, which counts all images cached in memory."""
    if size > limit:
        return False
    if size + bytes_in_memory() > limit:
        # Images that nothing uses any more may be left in a cycle of references; they are in nobody's way.
        gc.collect()
    return size + bytes_in_memory() <= limit


def _estimate(reader: ReadAndPrepare, count: int) -> int:
    """Returns about how many bytes all images take; exactly so if their size is known."""
    size = reader.known_size()
    if size is not None:
        return size[0] * size[1] * reader.source.channels * count
    sizes = []
    for index in np.unique(np.linspace(0, count - 1, PROBES).astype(int)):
        try:
            sizes.append(reader(index).size)
        except DataError:  # Told with all others when all are read.
            continue
    return int(np.mean(sizes or [1]) * count) + 1
