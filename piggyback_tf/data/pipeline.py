"""From a source to batches: caching, augmentation, shuffling, all by index.

Nothing here has a state that moves on from batch to batch. The order of an epoch is a function of
(seed, epoch), and the random numbers of an operation are one of (seed, epoch, index of the image,
place of the operation in the augmentation string). So an epoch can be replayed alone, and training
that starts again at an epoch sees what it would have seen.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from piggyback_tf.data.augment import (
    DeterministicOperation,
    Operation,
    RandomOperation,
    Size,
    check_draws_nothing,
    check_moves,
    leading_deterministic,
    parse_augment,
)
from piggyback_tf.data.boxes import COLUMNS, PreparedBoxes
from piggyback_tf.data.cache import CachedImages, decode_all
from piggyback_tf.data.decoding import FETCHED, Decoder, make_decoder
from piggyback_tf.data.geometry import warp_map
from piggyback_tf.data.graph_calls import surface_data_errors, weakly
from piggyback_tf.data.images import DataError
from piggyback_tf.data.look import ReadAndPrepare
from piggyback_tf.data.prepared import CacheOptions, prepare, size_check
from piggyback_tf.data.sources import Original, Source
from piggyback_tf.settings.inputs import EXACT, INPUTS
from piggyback_tf.settings.records import check_choice, check_integer

if TYPE_CHECKING:
    import tensorflow as tf

# More operations than this in one augmentation string would share random numbers.
MAX_OPERATIONS = 64


def make_dataset(
    source: Source,
    augment: str,
    *,
    batch_size: int,
    training: bool,
    seed: int = 0,
    epochs: int = 1,
    initial_epoch: int = 0,
    rows: range | None = None,
    input: str = EXACT,
    cache: str = "auto",
    cache_limit_mb: int = 2048,
    cache_disk_limit_mb: int = 20480,
    cache_dir: str | None = None,
) -> "tf.data.Dataset":
    """Makes a dataset of batches.

    The result of the deterministic operations at the start of `augment` is computed once per image and cached.
    With a cache, all images are decoded before this function returns, so that a broken one is an ordinary
    `DataError`; without one, it comes up while the dataset is read, and `surface_data_errors` makes it one.

    Args:
        source: The images.
        augment: The augmentation string. All images must leave it with the same size.
        batch_size: Images a batch; the last batch of an epoch may be smaller.
        training: Whether to shuffle. If not, the images come once, in the order of the source, and
            `augment` may have no random operations.
        seed: Decides the orders and every random number.
        epochs: Epochs `initial_epoch` to `epochs - 1` follow one another; for training only.
        initial_epoch: The first epoch, counted from 0.
        rows: Which images of every batch are read, such as the second half; `None` for all. A last batch that is
            smaller is filled up with images from the start of the epoch.
        input: How files become pixels. `"exact"`: as in `decode_image` and the operations. `"fast"`, for training only:
            with slightly other pixels and in less time; such images are decoded anew in every epoch, and not cached.
        cache: `"memory"`, `"disk"`, `"none"`, or `"auto"`: in memory up to the limit, on disk if
            there is room beyond it, otherwise none, which is logged. `"existing"` uses what is cached, and caches
            nothing.
        cache_limit_mb: What `"auto"` may take of the memory, in MiB, together with all other images that the process
            has cached in memory, such as those of other splits.
        cache_disk_limit_mb: What `"auto"` may take of the disk, in MiB, together with all that is in the folder.
            Entries that were not used for longest make room; `"disk"` makes room, too, but may take more.
        cache_dir: The folder of disk caches; `None` for the user's. Entries serve every later run on the same files.

    Returns:
        Batches `(images, labels)`; their number is known. Images are uint8 `(batch, height, width, 3)`, RGB. Labels are
            int32 `(batch,)` or `(batch, classes)`, as the source has them, label maps uint8 `(batch, height, width)`,
            boxes float32 `(batch, most, 6)` in pixels of these images, of which `targets_of` in `boxes.py` says more.

    Raises:
        DataError: If an argument is wrong, or the images cannot be read or do not fit the operations.
    """
    if not isinstance(source, Source):
        raise DataError(
            "make_dataset reads the images of a split, such as `data.train` of `data = load_data(...)`. Received: "
            f"{type(source).__name__}. Arrays go to Keras' `fit` as they are: RGB images with values from 0 to 255."
        )
    operations = parse_augment(augment)
    _check_arguments(augment, operations, batch_size, training, seed, epochs, initial_epoch)
    if rows is not None and not (rows.step == 1 and 0 <= rows.start < rows.stop <= batch_size):
        raise DataError(f"rows must be a range within the {batch_size} images of a batch, but is {rows}.")
    if source.moves_targets:
        check_moves(operations)
    check_choice("input", input, INPUTS, DataError)
    if input != EXACT and not training:
        raise DataError(f"input={input} is for training; without training the pixels are those of decode_image.")
    options = CacheOptions("none" if input != EXACT else cache, cache_limit_mb, cache_disk_limit_mb, cache_dir)
    prepared, place = prepare(source, operations, augment, options), leading_deterministic(operations)
    count, decoder = len(source), None
    # What was cached, or is resized by Pillow first, comes as pixels.
    if input != EXACT or (prepared.images is None and place == 0):
        check = size_check(source, operations, prepared.size, augment)
        decoder, place = make_decoder(input, source, operations, check), 0
    plan = _Plan(
        labels=source.labels,
        batch_size=batch_size,
        rows=rows,
        seed=seed,
        first=initial_epoch if training else 0,
        last=epochs if training else 1,
        order=(lambda epoch: _epoch_order(count, seed, epoch))
        if training
        else (lambda epoch: np.arange(count, dtype=np.int64)),
        images=prepared.images,
        read=prepared.read,
        decoder=decoder,
        operations=operations[place:],
        place=place,
        size=prepared.size,
        has_maps=source.has_maps,
        boxes=PreparedBoxes(source.boxes, operations[:place]) if source.has_boxes else None,
        most=source.boxes.most if source.has_boxes else 0,
    )
    return _build(plan)


def stream_batches(source: Source, augment: str, *, batch_size: int, **cache: Any) -> Iterator[tuple[Any, Any]]:
    """Yields the batches of `make_dataset` without training; nothing is read or cached before the first is asked for.

    Args:
        source: The images.
        augment: The augmentation string.
        batch_size: Images a batch.
        **cache: What `make_dataset` takes of caches.

    Raises:
        DataError: As `make_dataset`, and if an image cannot be read.
    """
    with surface_data_errors():
        yield from make_dataset(source, augment, batch_size=batch_size, training=False, **cache)


def original_batches(
    source: Source, augment: str, *, batch_size: int
) -> Iterator[tuple[np.ndarray, np.ndarray, list[Original]]]:
    """Yields the batches of `make_dataset` without training, with the targets as they are in the source.

    Every image is decoded once, by several threads, and nothing is cached.

    Args:
        source: The images.
        augment: The augmentation string.
        batch_size: Images a batch.

    Yields:
        Images and labels as of `make_dataset`, and what is to be found in the images at their own size.

    Raises:
        DataError: As `make_dataset`, and if an image cannot be read.
    """
    operations = parse_augment(augment)
    _check_arguments(augment, operations, batch_size, False, 0, 1, 0)
    if source.moves_targets:
        check_moves(operations)
    reader, count = ReadAndPrepare(source, operations), len(source)

    prepared_boxes = PreparedBoxes(source.boxes, operations) if source.has_boxes else None

    def read(first: int, place: int) -> tuple[Original, np.ndarray]:
        image = source.read(first + place)
        return source.original(first + place, image), reader.prepare(image, first + place)

    for start in range(0, count, batch_size):
        found = list(decode_all(functools.partial(read, start), min(batch_size, count - start)))
        images = np.stack([prepared for _, prepared in found])
        indices = range(start, start + len(found))
        targets = images[..., 3] if prepared_boxes is None else prepared_boxes.batch(indices)
        yield images[..., :3], targets, [original for original, _ in found]


@dataclasses.dataclass(frozen=True)
class _Plan:
    """What `make_dataset` has settled before it needs TensorFlow.

    Attributes:
        labels: The class of every image.
        batch_size: Images a batch.
        rows: Which of them are read; all if None.
        seed: The seed of the random operations.
        first: The first epoch.
        last: The epoch after the last.
        order: Returns the order of the images in an epoch.
        images: The cached images, or `None`.
        read: Returns an image by its index, as it is before `operations`.
        decoder: Decodes files to images within the graph, in place of `read`; None if it is not used.
        operations: The operations that are left to do in every epoch.
        place: The place of the first of them in the augmentation string.
        size: The `(height, width)` of all images after them.
        has_maps: Whether `images` and `read` have a label map as a fourth channel.
        boxes: The boxes after the operations before `operations`; None if there are none.
        most: How many boxes an image has at most.
    """

    labels: np.ndarray
    batch_size: int
    rows: range | None
    seed: int
    first: int
    last: int
    order: Callable[[int], np.ndarray]
    images: CachedImages | None
    read: Callable[[int], np.ndarray]
    decoder: Decoder | None
    operations: list[Operation]
    place: int
    size: Size
    has_maps: bool
    boxes: PreparedBoxes | None
    most: int

    def gather(self, indices: np.ndarray) -> np.ndarray:
        """Returns cached images of one size."""
        return self.images.gather(indices)

    def fetch(self, indices: np.ndarray) -> tuple[np.ndarray, ...]:
        """Returns what of files comes into the graph; see `Decoder.fetch`."""
        return self.decoder.fetch(indices)

    def decode(self, index: int) -> tuple[np.ndarray, ...]:
        """Returns an image that the graph does not decode; see `Decoder.read`."""
        return self.decoder.read(index)

    def move(self, indices: np.ndarray, moves: np.ndarray, sizes: np.ndarray) -> np.ndarray:
        """Returns the boxes of some images; see `PreparedBoxes.batch`."""
        return self.boxes.batch(indices, moves, sizes)


def _check_arguments(augment, operations, batch_size, training, seed, epochs, initial_epoch) -> None:
    check_integer("batch_size", batch_size, 1, error=DataError)
    check_integer("seed", seed, 0, error=DataError)
    if len(operations) > MAX_OPERATIONS:
        raise DataError(f"The augmentation has {len(operations)} operations; at most {MAX_OPERATIONS} are possible.")
    if training and not 0 <= initial_epoch < epochs:
        raise DataError(f"initial_epoch must lie in 0 to epochs - 1 = {epochs - 1}, but is {initial_epoch}.")
    if not training:
        check_draws_nothing(operations, augment)
        if (epochs, initial_epoch) != (1, 0):
            raise DataError("epochs and initial_epoch are for training; without training the images come once.")


def _epoch_order(count: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, int(epoch)]).permutation(count)


def _epoch_key(seed: int, epoch: int) -> int:
    # The 1 keeps the key apart from the order's generator, which starts from the same two numbers.
    return int(np.random.SeedSequence([seed, epoch, 1]).generate_state(1, np.uint64).astype(np.int64)[0])


def _build(plan: _Plan):
    import tensorflow as tf

    count = len(plan.labels)
    # A batch larger than the source is the whole source.
    whole = plan.batch_size if plan.rows else min(plan.batch_size, count)
    rows, steps = plan.rows or range(whole), -(-count // whole)
    batch_size = len(rows)
    with tf.device("CPU:0"):
        labels = tf.constant(plan.labels, tf.int32)
        keys = tf.constant([_epoch_key(plan.seed, epoch) for epoch in range(plan.first, plan.last)], tf.int64)

    order_of, gather_images, read_image, fetch_files, decode_file, move_boxes = (
        weakly(plan, name) for name in ("order", "gather", "read", "fetch", "decode", "move")
    )
    decoder = plan.decoder
    size, operations, first, first_place = plan.size, plan.operations, plan.first, plan.place
    gathered_size = plan.images.image_size if plan.images is not None else None
    has_maps, channels = plan.has_maps, 4 if plan.has_maps else 3
    has_boxes, most, has_rows = plan.boxes is not None, plan.most, plan.rows is not None
    # What happens to a target that moves with its image: a geometry, and the size after it, of each operation.
    nothing = tf.zeros([0, 2, 3]), tf.zeros([0, 2], tf.int32)

    def elements(epoch):
        order = tf.ensure_shape(tf.numpy_function(order_of, [epoch], tf.int64, stateful=False), [count])
        # The last batch of an epoch is filled up, lest it run into the next, and cut back at the end.
        place = tf.reshape(tf.reshape(tf.range(steps * whole), [steps, whole])[:, rows.start : rows.stop], [-1])
        # Rows of several readers are cut where they are put together.
        valid = tf.logical_or(place < count, has_rows)
        return tf.data.Dataset.from_tensor_slices(
            (tf.fill([steps * batch_size], epoch), tf.gather(order, place % count), valid)
        )

    def gather(epoch, index, valid):
        images = tf.numpy_function(gather_images, [index], tf.uint8, stateful=False)
        return epoch, index, valid, tf.ensure_shape(images, [batch_size, *gathered_size, channels])

    def read(epoch, index, valid):
        image = tf.numpy_function(read_image, [index], tf.uint8, stateful=False)
        return epoch, index, valid, tf.ensure_shape(image, [None, None, channels])

    def seed_of(epoch, index, place):
        return tf.stack([keys[epoch - first], index * MAX_OPERATIONS + place])

    def fetch(epoch, index, valid):
        return epoch, index, valid, *decoder.fetch_in_graph(fetch_files, index)

    def decode(epoch, index, valid, *fetched):
        image = decoder.decode(decode_file, index, functools.partial(seed_of, epoch, index), *fetched)
        return augment(epoch, index, valid, image, decoder.done)

    def augment(epoch, index, valid, image, done=0):
        image, label_map, moves, sizes = image[..., :3], image[..., 3:], [], []
        for place, operation in enumerate(operations[done:], start=first_place + done):
            seed = seed_of(epoch, index, place)
            if has_maps or has_boxes:
                moves.append(_geometry(operation, tf.shape(image)[:2], seed))
            if isinstance(operation, RandomOperation):
                image = operation.sample(image, seed)
            else:
                assert isinstance(operation, DeterministicOperation)
                image = tf.numpy_function(operation.apply, [image], tf.uint8, stateful=False)
                image = tf.ensure_shape(image, [None, None, 3])
            sizes.append(tf.shape(image)[:2])
        steps = (tf.stack(moves), tf.stack(sizes)) if moves else nothing
        if has_maps and moves:
            # Once for all operations, as every time moves a label by up to half a pixel.
            label_map = tf.numpy_function(warp_map, [label_map[..., 0], *steps], tf.uint8, stateful=False)[..., None]
        if has_maps:
            image = tf.concat([image, label_map], -1)
        return epoch, index, valid, tf.ensure_shape(image, [*size, channels]), *(steps if has_boxes else ())

    def finish(epoch, index, valid, images, *steps):
        number = tf.reduce_sum(tf.cast(valid, tf.int32))
        images = tf.ensure_shape(images[:number], [None, *size, channels])
        if has_maps:
            return images[..., :3], images[..., 3]
        if has_boxes:
            moves, sizes = steps or (tf.repeat(part[None], batch_size, axis=0) for part in nothing)
            arguments = [index[:number], moves[:number], sizes[:number]]
            boxes = tf.numpy_function(move_boxes, arguments, tf.float32, stateful=False)
            return images, tf.ensure_shape(boxes, [None, most, COLUMNS])
        return images, tf.gather(labels, index[: tf.shape(images)[0]])

    parallel = {"num_parallel_calls": tf.data.AUTOTUNE, "deterministic": True}
    dataset = tf.data.Dataset.range(first, plan.last).flat_map(elements)
    if gathered_size is not None:
        # Images of one size are fetched a batch at a time, which is far cheaper than one by one.
        dataset = dataset.batch(batch_size, drop_remainder=True).map(gather, **parallel)
        if operations:
            dataset = dataset.unbatch().map(augment, **parallel).batch(batch_size, drop_remainder=True)
    elif decoder is not None:
        dataset = dataset.batch(FETCHED).map(fetch, **parallel).unbatch()
        dataset = dataset.map(decode, **parallel).batch(batch_size, drop_remainder=True)
    else:
        dataset = dataset.map(read, **parallel).map(augment, **parallel).batch(batch_size, drop_remainder=True)
    dataset = dataset.map(finish, **parallel)
    dataset = dataset.apply(tf.data.experimental.assert_cardinality(steps * (plan.last - first)))
    options = tf.data.Options()
    options.deterministic = True
    dataset = dataset.with_options(options).prefetch(tf.data.AUTOTUNE)
    dataset._plan = plan
    return dataset


def _geometry(operation: Operation, size, seed):
    """Returns how an operation moves an image of a size, a float32 tensor `[2, 3]`."""
    import tensorflow as tf

    if isinstance(operation, RandomOperation):
        return operation.geometry(size, seed)
    assert isinstance(operation, DeterministicOperation)
    found = tf.numpy_function(
        lambda size: operation.geometry((int(size[0]), int(size[1]))).astype(np.float32),
        [size],
        tf.float32,
        stateful=False,
    )
    return tf.ensure_shape(found, [2, 3])
