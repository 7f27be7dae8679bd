"""How many training images come through the input, beside today's best pipelines of tf.data written for the purpose.

    python benchmarks/input.py

Makes 1,000 JPEGs of 500x375 that compress like photographs, as a folder and as a data set of TensorFlow Datasets, and
reads them without a cache in batches of 32. `pillow` is this package with all pixels from Pillow, as every image came
before crops decoded no more than they look at. `native` is a pipeline with the same pixels, crops and random numbers,
but of tf.data alone; `native fast` is the usual one: a crop decoded with the fast transform, and resized without
antialiasing. Rounds alternate; the ratios are those of medians, of images a second and of the processor's time for an
image, which depends less on what else the machine does. Writes results/input.json.
"""

import functools
import io
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common import Results, in_new_process, markdown, parser, peak_mib

IMAGES, HEIGHT, WIDTH, CLASSES, BATCH, SIZE = 1000, 375, 500, 10, 32, 224
CROP = f"random_area_crop({SIZE})|flip"
RESIZED = f"resize(256)|{CROP}"
# Batches that are not timed: the start of a pipeline is measured by itself.
WARM_UP = 3
SMALL_FILES = 100_000


def photograph(number: int) -> bytes:
    """Returns a JPEG of about 0.57 bytes a pixel; the mean of ImageNet is 0.5."""
    import numpy as np
    from PIL import Image

    generator = np.random.default_rng(number)
    frequency = np.hypot(np.fft.fftfreq(HEIGHT)[:, None], np.fft.rfftfreq(WIDTH)[None])
    frequency[0, 0] = 1 / WIDTH
    shape = (3, *frequency.shape)
    spectrum = (generator.normal(size=shape) + 1j * generator.normal(size=shape)) * frequency**-1.1
    spectrum[:, 0, 0] = 0
    light, red, blue = (channel / channel.std() for channel in np.fft.irfft2(spectrum, (HEIGHT, WIDTH)))
    pixels = np.stack([128 + 50 * light + 20 * red, 128 + 50 * light, 128 + 50 * light + 20 * blue], -1)
    stream = io.BytesIO()
    Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(stream, "JPEG", quality=90)
    return stream.getvalue()


def make_folder(root: Path) -> Path:
    """Returns a folder of the photographs, made if it is not there."""
    if not root.exists():
        for number in range(IMAGES):
            path = root / "train" / f"class{number % CLASSES}" / f"{number:04}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(photograph(number))
    return root


def make_tfds(root: Path, folder: Path) -> Path:
    """Returns the `data_dir` of a data set of the same photographs, prepared if it is not there."""
    import tensorflow_datasets as tfds

    class Photographs(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = {"image": tfds.features.Image(), "label": tfds.features.ClassLabel(num_classes=CLASSES)}
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for path in sorted(folder.rglob("*.jpg")):
                yield path.name, {"image": str(path), "label": int(path.stem) % CLASSES}

    if not root.exists():
        Photographs(data_dir=str(root)).download_and_prepare()
    return root


def native(files: Any, augment: str, *, fast: bool = False) -> Any:
    """Returns a pipeline of tf.data alone; `files` are the contents of JPEGs, a dataset of strings."""
    import tensorflow as tf

    from piggyback_tf.data import parse_augment

    crop, flip = parse_augment(augment)[-2:]
    decode = functools.partial(tf.image.decode_and_crop_jpeg, channels=3)

    def prepare(number: Any, content: Any) -> Any:
        seeds = [tf.stack([tf.constant(7, tf.int64), number * 64 + place]) for place in range(2)]
        size = tf.image.extract_jpeg_shape(content)[:2]
        if augment == RESIZED and not fast:
            image = tf.image.decode_jpeg(content, channels=3, dct_method="INTEGER_ACCURATE")
            scale = 256 / tf.reduce_min(size)
            sides = tf.cast(tf.round(tf.cast(size, tf.float64) * scale), tf.int32)
            image = tf.cast(tf.round(tf.image.resize(image, sides, antialias=True)), tf.uint8)
            return flip.sample(crop.sample(image, seeds[0]), seeds[1])
        window = crop.window(size, seeds[0])
        if fast:
            image = tf.image.resize(decode(content, window), [SIZE, SIZE])
            return flip.sample(tf.cast(image, tf.uint8), seeds[1])
        # A pixel more on every side, for the smoothing of colours.
        first, last = tf.maximum(window[:2] - 1, 0), tf.minimum(window[:2] + window[2:] + 1, size)
        image = decode(content, tf.concat([first, last - first], 0), dct_method="INTEGER_ACCURATE")
        start = window[:2] - first
        image = image[start[0] : start[0] + window[2], start[1] : start[1] + window[3]]
        return flip.sample(crop.sample_window(image, size, seeds[0]), seeds[1])

    def finish(number: Any, content: Any) -> Any:
        return tf.ensure_shape(prepare(number, content), [SIZE, SIZE, 3]), number

    dataset = files.enumerate().map(finish, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    return dataset.batch(BATCH).prefetch(tf.data.AUTOTUNE)


def native_files(folder: Path) -> Any:
    """Returns the contents of the files in an order of their own, a dataset of strings."""
    import tensorflow as tf

    paths = sorted(str(path) for path in folder.rglob("*.jpg"))
    random.Random(0).shuffle(paths)
    return tf.data.Dataset.from_tensor_slices(paths).map(tf.io.read_file, num_parallel_calls=tf.data.AUTOTUNE)


def native_records(data_dir: Path) -> Any:
    """Returns the images of the records, shuffled in a buffer, a dataset of strings."""
    import tensorflow as tf

    records = tf.data.TFRecordDataset([str(path) for path in sorted(data_dir.rglob("*.tfrecord*"))])
    feature = {"image": tf.io.FixedLenFeature([], tf.string)}
    parsed = records.map(lambda record: tf.io.parse_single_example(record, feature)["image"], tf.data.AUTOTUNE)
    return parsed.shuffle(256, seed=0)


def alternate(ways: dict[str, Any], rounds: int) -> dict[str, Any]:
    """Reads each dataset once a round, in turn; returns medians of images a second and of milliseconds of processor."""
    rates: dict[str, list[float]] = {name: [] for name in ways}
    spent: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds + 1):
        for name in ways if turn % 2 else reversed(ways):
            batches, count = iter(ways[name]), 0
            for _ in range(WARM_UP):
                next(batches)
            start, processor = time.perf_counter(), time.process_time()
            for images, _ in batches:
                count += len(images)
            # The first round finds how many calls run in parallel.
            if turn:
                rates[name].append(count / (time.perf_counter() - start))
                spent[name].append(1000 * (time.process_time() - processor) / count)
    return {
        "rounds": rounds,
        "images_a_second": {name: statistics.median(values) for name, values in rates.items()},
        "processor_ms": {name: statistics.median(values) for name, values in spent.items()},
        "all_rates": rates,
        "load": os.getloadavg(),
    }


def own_ways(source: Any, augment: str) -> dict[str, Callable[[], Any]]:
    """Returns what makes the datasets of this package, of images without a cache."""
    import numpy as np

    from piggyback_tf.data import Subset, make_dataset

    class OnlyPixels(Subset):
        """Images that come decoded by Pillow, all of each."""

        def read(self, index: int) -> Any:
            return super().read(index)

    arguments = {"batch_size": BATCH, "training": True, "cache": "none"}
    pixels = OnlyPixels(source, np.arange(len(source)))
    return {
        "pillow": lambda: make_dataset(pixels, augment, **arguments),
        "exact": lambda: make_dataset(source, augment, **arguments),
        "fast": lambda: make_dataset(source, augment, input="fast", **arguments),
    }


def ways_of(source: Any, augment: str, files: Callable[[], Any]) -> dict[str, Any]:
    """Returns the datasets that are compared."""
    own = {name: make() for name, make in own_ways(source, augment).items()}
    return own | {"native": native(files(), augment), "native fast": native(files(), augment, fast=True)}


def check_pixels(source: Any) -> None:
    """Raises an error if the package's batches are not those of Pillow's pixels."""
    pillow, exact = (own_ways(source, CROP)[name]().take(4) for name in ("pillow", "exact"))
    for (images, _), (others, _) in zip(pillow, exact, strict=True):
        if not (images.numpy() == others.numpy()).all():
            raise ValueError("The pixels differ.")


def many_files(root: Path, way: str) -> None:
    """Prints seconds to the first batch of 100,000 small files, and MiB that they take."""
    import json

    import tensorflow as tf

    from piggyback_tf.data import load_data

    next(iter(tf.data.Dataset.range(4).batch(2)))  # TensorFlow is loaded before the clock starts.
    source = load_data(f"folder:{root}", val_fraction=0.01).train
    before, start = peak_mib(), time.perf_counter()
    next(iter(own_ways(source, CROP)[way]()))
    seconds = time.perf_counter() - start
    print(json.dumps({"seconds": seconds, "mib": peak_mib() - before}))


def make_small_files(root: Path) -> Path:
    """Returns a folder of 100,000 JPEGs of 32x32: links to a few, each of which may have only so many."""
    from PIL import Image

    if not root.exists():
        for number in range(SMALL_FILES):
            path = root / "train" / f"class{number % CLASSES}" / f"{number:06}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            if number < 100:
                Image.new("RGB", (32, 32), (number, 2 * number, 100)).save(path)
            else:
                first = number % 100
                os.link(root / "train" / f"class{first % CLASSES}" / f"{first:06}.jpg", path)
    return root


def order_of_records(source: Any) -> dict[str, Any]:
    """Returns milliseconds to read a record in random order and in blocks of eight neighbours, from the disk first."""
    import numpy as np

    generator = np.random.default_rng(0)
    blocks = np.arange(len(source)).reshape(-1, 8)
    orders = {"random": generator.permutation(len(source)), "blocks": generator.permutation(blocks).reshape(-1)}
    found: dict[str, list[float]] = {f"{name}, {place}": [] for name in orders for place in ("disk", "memory")}
    for _ in range(5):
        for name, order in orders.items():
            for path in {shard.path for shard in source.shards}:
                with Path(path).open("rb") as stream:
                    os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            for place in ("disk", "memory"):
                start = time.perf_counter()
                for index in order:
                    source.read_file(int(index))
                found[f"{name}, {place}"].append(1000 * (time.perf_counter() - start) / len(order))
    return {"ms_a_record": {name: statistics.median(values) for name, values in found.items()}}


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--rounds", type=int, default=8)
    arguments.add_argument(
        "--folder", type=Path, default=Path(tempfile.gettempdir()) / "piggyback_benchmarks" / "input"
    )
    arguments.add_argument("--first", nargs=2, metavar=("FOLDER", "WAY"), help="Used by the script itself.")
    options = arguments.parse_args()
    if options.first:
        many_files(Path(options.first[0]), options.first[1])
        return
    from piggyback_tf.data import load_data

    folder = make_folder(options.folder / "photographs")
    data_dir = make_tfds(options.folder / "tfds", folder)
    of_folder = load_data(f"folder:{folder}", val_fraction=0.01).train
    records = load_data("tfds:photographs", data_dir=str(data_dir), val_fraction=0.01)
    of_records, results, table = records.train, Results("input"), []
    check_pixels(of_folder)
    cases = {
        f"folder, {CROP}": (of_folder, CROP, lambda: native_files(folder)),
        f"tfds, {CROP}": (of_records, CROP, lambda: native_records(data_dir)),
        f"folder, {RESIZED}": (of_folder, RESIZED, lambda: native_files(folder)),
    }
    for name, case in cases.items():
        row = results.run(name, lambda case=case: alternate(ways_of(*case), options.rounds))
        for kind, unit in (("images_a_second", "images/s"), ("processor_ms", "ms of processor")):
            values = row[kind]
            ratios = [(1 if unit == "images/s" else -1, pair) for pair in (("exact", "pillow"), ("exact", "native"))]
            ratios.append((1 if unit == "images/s" else -1, ("fast", "native fast")))
            table.append(
                [
                    f"{name}, {unit}",
                    *(f"{values[way]:.3g}" for way in values),
                    *(f"{(values[a] / values[b]) ** sign:.2f}" for sign, (a, b) in ratios),
                ]
            )
    order = results.run("order of records", lambda: order_of_records(of_records._source))
    small = make_small_files(options.folder / "small")
    first = {
        way: results.run(f"first batch, {way}", lambda way=way: in_new_process(__file__, "--first", str(small), way))
        for way in ("pillow", "exact", "fast")
    }
    results.save()
    ways = ["pillow", "exact", "fast", "native", "native fast"]
    print(markdown(["", *ways, "exact / pillow", "exact / native", "fast / native fast"], table))
    print(order, first)


if __name__ == "__main__":
    main()
