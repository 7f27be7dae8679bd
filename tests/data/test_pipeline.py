import gc
import weakref

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from piggyback_tf.data import DataError, Source, load_data, make_dataset, surface_data_errors

FULL = "resize(20)|random_crop(16)|flip|rotate(10)|translate(2)|color_jitter(0.2)"


class ArraySource(Source):
    """Images in memory that count how often each is read."""

    def __init__(self, images: list[np.ndarray], image_size=None):
        self._images = images
        self.image_size = image_size
        self.reads = np.zeros(len(images), int)

    @property
    def labels(self) -> np.ndarray:
        return np.arange(len(self._images), dtype=np.int32)

    def read(self, index: int) -> np.ndarray:
        self.reads[index] += 1
        return self._images[index]

    def describe(self, index: int) -> str:
        return f"array #{index}"

    def key(self, index: int) -> str:
        return str(index)

    def fingerprint(self) -> str:
        return "".join(f"{hash(image.tobytes()):x}" for image in self._images)


@pytest.fixture
def source(picture) -> ArraySource:
    return ArraySource([picture(20 + i % 3, 24 + i % 5, i) for i in range(11)])


def collect(dataset) -> list[tuple[np.ndarray, np.ndarray]]:
    return [(images.numpy(), labels.numpy()) for images, labels in dataset]


def assert_same(first, second) -> None:
    assert len(first) == len(second)
    for (images, labels), (other_images, other_labels) in zip(first, second, strict=True):
        assert np.array_equal(labels, other_labels)
        assert np.array_equal(images, other_images)


@pytest.mark.parametrize("cache", ["memory", "disk", "none"])
@pytest.mark.parametrize(
    "augment", ["resize(16,16)", "resize(20)|central_crop(16)", FULL, "resize(16,16)|flip|resize(9,7)"]
)
def test_epochs_are_permutations_with_small_last_batches(source, augment, cache):
    dataset = make_dataset(source, augment, batch_size=4, training=True, epochs=3, seed=5, cache=cache)
    assert int(dataset.cardinality()) == 9
    size = (9, 7) if "9,7" in augment else (16, 16)
    assert dataset.element_spec[0].shape.as_list() == [None, *size, 3]
    assert dataset.element_spec[0].dtype == tf.uint8 and dataset.element_spec[1].dtype == tf.int32
    batches = collect(dataset)
    assert [len(labels) for _, labels in batches] == [4, 4, 3] * 3
    assert [len(images) for images, _ in batches] == [4, 4, 3] * 3
    epochs = [np.concatenate([labels for _, labels in batches[i : i + 3]]) for i in (0, 3, 6)]
    assert all(sorted(epoch) == list(range(11)) for epoch in epochs)
    assert not np.array_equal(epochs[0], epochs[1]) and not np.array_equal(epochs[1], epochs[2])
    if cache != "none":
        assert source.reads.max() <= 2  # once for the cache and once to estimate its size


@pytest.mark.parametrize("augment", ["resize(16,16)", FULL, "random_area_crop(12)|flip", "flip|resize(16,16)"])
def test_every_cache_gives_the_same_batches(source, augment):
    arguments = {"batch_size": 3, "training": True, "epochs": 2, "seed": 1}
    runs = [collect(make_dataset(source, augment, cache=cache, **arguments)) for cache in ("memory", "disk", "none")]
    again = collect(make_dataset(source, augment, cache="disk", **arguments))
    for run in [*runs[1:], again]:
        assert_same(run, runs[0])


@pytest.mark.parametrize("cache", ["memory", "none"])
def test_an_epoch_can_be_replayed_alone(source, cache):
    arguments = {"batch_size": 4, "training": True, "seed": 9, "cache": cache}
    whole = collect(make_dataset(source, FULL, epochs=4, **arguments))
    rest = collect(make_dataset(source, FULL, epochs=4, initial_epoch=2, **arguments))
    assert_same(rest, whole[6:])


def test_seed_epoch_and_place_decide_the_random_numbers(source):
    def images_by_label(augment="resize(16,16)|flip|rotate(20)|rotate(20)", **arguments):
        batches = collect(make_dataset(source, augment, batch_size=11, training=True, **arguments))[-1:]
        return {int(label): image for images, labels in batches for image, label in zip(images, labels, strict=True)}

    first = images_by_label(seed=0)
    for other in (images_by_label(seed=1), images_by_label(seed=0, epochs=2)):
        assert sum(not np.array_equal(first[i], other[i]) for i in range(11)) >= 10
    # Another batch size or order of the same images changes no image.
    small = collect(make_dataset(source, "resize(16,16)|flip|rotate(20)|rotate(20)", batch_size=2, training=True))
    for images, labels in small:
        for image, label in zip(images, labels, strict=True):
            assert np.array_equal(image, first[int(label)])
    # Two rotations by one and the same angle would turn the image back or double it; they draw apart.
    one = images_by_label("resize(16,16)|rotate(20)")
    two = images_by_label("resize(16,16)|flip|rotate(20)")
    assert any(not np.array_equal(one[i], two[i]) and not np.array_equal(one[i], two[i][:, ::-1]) for i in range(11))


@pytest.mark.parametrize("cache", ["memory", "disk", "none"])
def test_evaluation_keeps_the_order_and_the_pixels(source, cache):
    dataset = make_dataset(source, "central_crop(16)", batch_size=4, training=False, cache=cache)
    batches = collect(dataset)
    assert int(dataset.cardinality()) == 3
    assert np.concatenate([labels for _, labels in batches]).tolist() == list(range(11))
    for i, image in enumerate(np.concatenate([images for images, _ in batches])):
        top, left = ((side - 16) // 2 for side in source.read(i).shape[:2])
        assert np.array_equal(image, source.read(i)[top : top + 16, left : left + 16])


def test_batch_larger_than_the_source(source):
    batches = collect(make_dataset(source, "resize(8,8)|flip", batch_size=500, training=True, epochs=2))
    assert [len(labels) for _, labels in batches] == [11, 11]


@pytest.mark.parametrize("cache", ["memory", "none"])
def test_images_of_one_size_need_no_resize_and_others_do(picture, source, cache):
    same = ArraySource([picture(8, 9, i) for i in range(4)])
    images, _ = collect(make_dataset(same, "", batch_size=4, training=False, cache=cache))[0]
    assert np.array_equal(images, [same.read(i) for i in range(4)])
    assert collect(make_dataset(same, "flip", batch_size=4, training=True, cache=cache))[0][0].shape == (4, 8, 9, 3)
    with pytest.raises(DataError, match=r"end it with a crop or with resize\(height, width\)"), surface_data_errors():
        collect(make_dataset(source, "resize(16)|flip", batch_size=4, training=True, cache=cache))


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"training": False, "augment": "resize(8,8)|flip|rotate(3)"}, "Only training.*has flip, rotate\\(3\\)"),
        ({"training": False, "epochs": 2}, "epochs and initial_epoch are for training"),
        ({"cache": "ram"}, "`cache` must be one of auto, memory, disk, none"),
        ({"batch_size": 0}, "batch_size must be an integer of at least 1"),
        ({"epochs": 2, "initial_epoch": 2}, "initial_epoch must lie in 0 to epochs - 1 = 1, but is 2"),
        ({"seed": -1}, "seed must be an integer of at least 0"),
        ({"augment": "|".join(["flip"] * 65)}, "65 operations; at most 64"),
        ({"augment": "random_crop(21)"}, "random_crop\\(21\\) does not fit an image of height 20"),
        ({"augment": "central_crop(21)"}, "Image 'array #0': central_crop\\(21\\) does not fit"),
        ({"augment": "central_crop(21)", "cache": "none"}, "Image 'array #0': central_crop\\(21\\) does not fit"),
    ],
)
def test_wrong_arguments(source, arguments, message):
    arguments = {"augment": "resize(8,8)", "batch_size": 2, "training": True, **arguments}
    with pytest.raises(DataError, match=message):
        make_dataset(source, **arguments)


def test_arrays_are_no_source(picture):
    with pytest.raises(DataError, match=r"such as `data\.train`.*Received: tuple\. Arrays go to Keras' `fit`"):
        make_dataset((np.stack([picture(8, 8)]), [0]), "", batch_size=1, training=True)


def test_random_crop_that_a_later_image_is_too_small_for(picture):
    source = ArraySource([picture(32, 32), picture(32, 32), picture(12, 32)])
    with pytest.raises(DataError, match="height 12"):
        make_dataset(source, "random_crop(16)", batch_size=1, training=True, cache="memory")
    dataset = make_dataset(source, "random_crop(16)", batch_size=1, training=True, cache="none")
    message = r"^Image 'array #2': random_crop\(16\) does not fit.*height 12"
    with pytest.raises(DataError, match=message), surface_data_errors():
        collect(dataset)


def broken_folder(make_folder):
    root = make_folder(train={"a": 4, "b": 4}, val={"a": 1, "b": 1})
    path = root / "train/b/001.png"
    path.write_bytes(path.read_bytes()[:-100])
    return load_data(f"folder:{root}").train, path


@pytest.mark.parametrize("cache", ["auto", "memory", "disk"])
def test_broken_image_surfaces_while_the_cache_is_filled(make_folder, cache_dir, cache):
    source, path = broken_folder(make_folder)
    with pytest.raises(DataError, match=f"Broken image '{path}'"):
        make_dataset(source, "resize(8,8)|flip", batch_size=2, training=True, cache=cache)
    assert not [entry for entry in cache_dir.glob("*") if entry.is_dir()]


def test_broken_image_surfaces_without_a_cache_in_a_loop_and_in_fit(make_folder):
    source, path = broken_folder(make_folder)
    dataset = make_dataset(source, "resize(8,8)|flip", batch_size=2, training=True, cache="none")
    with pytest.raises(DataError, match=f"^Broken image '{path}': [^\n]*$"), surface_data_errors():
        collect(dataset)
    import keras

    model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Flatten(), keras.layers.Dense(2)])
    model.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True), jit_compile=False)
    with pytest.raises(DataError, match=f"^Broken image '{path}'"), surface_data_errors():
        model.fit(dataset, shuffle=False, verbose=0)


def test_other_errors_pass_unchanged():
    with pytest.raises(tf.errors.InvalidArgumentError), surface_data_errors():
        tf.debugging.assert_equal(1, 2)
    with pytest.raises(KeyError), surface_data_errors():
        raise KeyError("x")


def test_skipped_images_leave_no_gap(make_folder):
    root = make_folder(train={"a": 4, "b": 4}, val={"a": 1, "b": 1})
    (root / "train/b/001.png").write_bytes(b"x")
    source = load_data(f"folder:{root}", skip_broken_images=True).train
    labels = [labels for _, labels in collect(make_dataset(source, "resize(8,8)", batch_size=3, training=True))]
    assert sorted(np.concatenate(labels)) == [0] * 4 + [1] * 3


def test_memory_is_shared_between_datasets_and_given_back(picture):
    source = ArraySource([picture(20, 24, i) for i in range(6)])
    train = make_dataset(source, "resize(16,16)|flip", batch_size=2, training=True)
    other = make_dataset(source, "resize(16,16)", batch_size=2, training=False)
    assert source.reads.max() <= 2
    kept = weakref.ref(source._kept_images[1])
    collect(train), collect(other)
    del train, other, source
    gc.collect()
    assert kept() is None


def test_cached_pixels_are_not_written_to(source):
    make_dataset(source, "resize(20)|random_crop(16)", batch_size=2, training=True)
    before = source._kept_images[1].pixels.copy()
    collect(make_dataset(source, FULL, batch_size=2, training=True, epochs=3))
    assert np.array_equal(source._kept_images[1].pixels, before)


@pytest.mark.parametrize("cache", ["memory", "none"])
def test_iterators_and_derived_datasets_keep_the_images_alive(source, cache):
    def make():
        return make_dataset(source, "resize(16,16)|flip", batch_size=4, training=True, epochs=5, cache=cache)

    expected = [labels for _, labels in collect(make())]
    strategy = tf.distribute.MirroredStrategy(["CPU:0"])
    for derived in (iter(make()), make().map(lambda x, y: (x, y)), strategy.experimental_distribute_dataset(make())):
        source._kept_images = (None, None)
        gc.collect()
        seen = [labels.numpy() for _, labels in derived]
        assert all(np.array_equal(a, b) for a, b in zip(seen, expected, strict=True))


def test_a_mirrored_strategy_sees_the_same_batches(source):
    dataset = make_dataset(source, "resize(16,16)|flip", batch_size=4, training=True, epochs=2)
    strategy = tf.distribute.MirroredStrategy(["CPU:0"])
    seen = [labels.numpy() for _, labels in strategy.experimental_distribute_dataset(dataset)]
    expected = [labels for _, labels in collect(dataset)]
    assert all(np.array_equal(a, b) for a, b in zip(seen, expected, strict=True))


def test_images_on_disk_are_read_as_written(make_folder, picture):
    data = load_data(f"folder:{make_folder(train={'a': 3, 'b': 3})}")
    images, labels = collect(make_dataset(data.train, "resize(12,16)", batch_size=9, training=False, cache="disk"))[0]
    for i in range(len(data.train)):
        expected = Image.fromarray(data.train.read(i)).resize((16, 12), Image.Resampling.BILINEAR)
        assert np.array_equal(images[i], expected) and labels[i] == data.train.labels[i]
