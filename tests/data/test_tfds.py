import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from PIL import Image

from piggyback_tf.data import DataError, load_data, make_dataset
from piggyback_tf.data.record_files import READERS

SIZES = {"train": 14, "validation": 6, "test": 8}


def jpeg(number: int) -> bytes:
    buffer = io.BytesIO()
    y, x = np.mgrid[: 20 + number % 3, :24]
    Image.fromarray(np.stack([x * 10, y * 10, x * 0 + number * 8], axis=-1).astype(np.uint8)).save(buffer, "JPEG")
    return buffer.getvalue()


class PbBase(tfds.core.GeneratorBasedBuilder):
    """Shared by the small data sets of these tests."""

    VERSION = tfds.core.Version("1.0.0")
    sizes = SIZES

    def _info(self):
        features = {"image": tfds.features.Image(), "label": tfds.features.ClassLabel(names=["cat", "dog"])}
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict({"file_name": tfds.features.Text(), **features})
        )

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(split) for split in self.sizes}

    def _generate_examples(self, split):
        for i in range(self.sizes[split]):
            number = i + 14 * (split != "train") + 6 * (split == "test")
            yield i, {"file_name": str(number), "image": io.BytesIO(jpeg(number)), "label": self.label(split, i)}

    def label(self, split, i):
        return i % 2


class PbPets(PbBase):
    pass


class PbTrainOnly(PbBase):
    sizes = {"train": 20}


class PbNoTest(PbBase):
    sizes = {"train": 14, "validation": 6}


class PbSecretTest(PbBase):
    def label(self, split, i):
        return -1 if split == "test" else i % 2


class PbOneClass(PbBase):
    def label(self, split, i):
        return 0


class PbStrangeTest(PbBase):
    sizes = {"train": 6, "validation": 4, "test": 5}

    def _info(self):
        features = {"image": tfds.features.Image(), "label": tfds.features.ClassLabel(names=["cat", "dog", "eel"])}
        features["file_name"] = tfds.features.Text()
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def label(self, split, i):
        return i % 3 if split == "test" else i % 2


class PbBroken(PbBase):
    def _generate_examples(self, split):
        for key, example in super()._generate_examples(split):
            if example["file_name"] in ("3", "20"):
                example["image"] = io.BytesIO(jpeg(0)[:200])
            yield key, example


class PbFixedSize(PbBase):
    sizes = {"train": 8, "test": 4}

    def _info(self):
        features = {"image": tfds.features.Image(shape=(4, 5, 1)), "label": tfds.features.ClassLabel(num_classes=2)}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _generate_examples(self, split):
        for i in range(self.sizes[split]):
            yield i, {"image": np.full((4, 5, 1), i, np.uint8), "label": i % 2}


class PbText(PbBase):
    def _info(self):
        features = {"sentence": tfds.features.Text(), "label": tfds.features.ClassLabel(num_classes=2)}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))


class PbFarAway(PbBase):
    def _split_generators(self, dl_manager):
        # Port 9 of this machine answers nobody.
        dl_manager.download("http://127.0.0.1:9/pets.zip")
        return {}


@pytest.fixture(scope="module")
def prepare(tmp_path_factory):
    """Returns a function that prepares a data set once and returns its data_dir."""
    prepared = {}

    def make(builder_class, file_format="tfrecord"):
        key = builder_class.name, file_format
        if key not in prepared:
            prepared[key] = str(tmp_path_factory.mktemp(f"{builder_class.name}_{file_format}"))
            builder = builder_class(data_dir=prepared[key], file_format=file_format)
            builder.download_and_prepare()
        return prepared[key]

    return make


FORMATS = [
    "tfrecord",
    pytest.param(
        "array_record",
        marks=pytest.mark.skipif(
            subprocess.run([sys.executable, "-c", "import array_record"], capture_output=True).returncode != 0,
            reason="the package array_record does not exist for this platform",
        ),
    ),
]


def numbers(source) -> list[int]:
    """Tells the images of PbPets apart by their blue channel."""
    return [round(float(source.read(i)[..., 2].mean()) / 8) for i in range(len(source))]


@pytest.mark.parametrize("file_format", FORMATS)
def test_images_and_labels_are_those_of_tfds(prepare, file_format):
    data_dir = prepare(PbPets, file_format)
    data = load_data("tfds:pb_pets", data_dir=data_dir)
    assert data.name == "pb_pets" and data.class_names == ("cat", "dog")
    assert [len(data.train), len(data.validation), len(data.test)] == [14, 6, 8]
    assert numbers(data.train) != sorted(numbers(data.train)) and sorted(numbers(data.train)) == list(range(14))
    assert sorted(numbers(data.validation)) == list(range(14, 20)) and sorted(numbers(data.test)) == list(range(20, 28))
    for source, split in ((data.train, "train"), (data.test, "test")):
        if file_format == "tfrecord":
            examples = list(tfds.builder("pb_pets", data_dir=data_dir).as_dataset(split=split).as_numpy_iterator())
        else:
            examples = list(tfds.builder("pb_pets", data_dir=data_dir).as_data_source(split=split))
        assert source.labels.tolist() == [example["label"] for example in examples]
        for i, example in enumerate(examples):
            # Two JPEG decoders round differently.
            assert np.abs(source.read(i).astype(int) - example["image"].astype(int)).max() <= 3
            number = int(example["file_name"])
            assert source.has_files and source.read_file(i) == jpeg(number)
    assert data.test.describe(3) == "tfds:pb_pets test #3"


def test_crops_of_records_are_those_of_the_whole_images(prepare, monkeypatch):
    source = load_data("tfds:pb_pets", data_dir=prepare(PbPets)).train
    arguments = {"batch_size": 14, "training": True, "cache": "none"}
    (images, _), *_ = make_dataset(source, "random_area_crop(16)", **arguments)
    monkeypatch.setattr(source, "has_files", False)
    (others, _), *_ = make_dataset(source, "random_area_crop(16)", **arguments)
    assert np.array_equal(images, others)


def test_the_file_of_a_damaged_record_is_refused_in_a_sentence(prepare, monkeypatch):
    source = load_data("tfds:pb_pets", data_dir=prepare(PbPets)).train
    for record in (b"no record", b""):
        monkeypatch.setattr(source, "_read_record", lambda index, record=record: record)
        with pytest.raises(DataError, match="holds no image and label"):
            source.read_file(0)


@pytest.mark.parametrize("file_format", FORMATS)
def test_split_expressions(prepare, file_format):
    data_dir = prepare(PbPets, file_format)
    both = load_data("tfds:pb_pets?train=train+validation&test=test", data_dir=data_dir, val_fraction=0.2)
    assert [len(both.train), len(both.validation), len(both.test)] == [16, 4, 8]
    assert sorted(numbers(both.train) + numbers(both.validation)) == list(range(20))
    names = {both.train.describe(i) for i in range(16)} | {both.validation.describe(i) for i in range(4)}
    assert {"tfds:pb_pets train #13", "tfds:pb_pets validation #0"} < names and len(names) == 20

    sliced = load_data("tfds:pb_pets?train=train[:8]&validation=train[8:]&test=validation", data_dir=data_dir)
    whole = load_data("tfds:pb_pets", data_dir=data_dir)
    assert numbers(sliced.train) + numbers(sliced.validation) == numbers(whole.train)
    assert numbers(sliced.test) == numbers(whole.validation)
    assert sliced.validation.describe(0) == "tfds:pb_pets train[8:] #0"


def test_carving_without_validation_and_without_test(prepare):
    data = load_data("tfds:pb_train_only", data_dir=prepare(PbTrainOnly))
    assert [len(data.train), len(data.validation), data.test] == [18, 2, None]
    data = load_data("tfds:pb_no_test", data_dir=prepare(PbNoTest))
    assert [len(data.train), len(data.validation), len(data.test)] == [12, 2, 6]
    assert sorted(numbers(data.test)) == list(range(14, 20))
    data = load_data("tfds:pb_no_test?validation=validation", data_dir=prepare(PbNoTest))
    assert [len(data.train), len(data.validation), data.test] == [14, 6, None]


def test_a_test_split_without_labels_is_not_used(prepare):
    data = load_data("tfds:pb_secret_test", data_dir=prepare(PbSecretTest))
    assert [len(data.train), len(data.validation), len(data.test)] == [12, 2, 6]
    assert sorted(numbers(data.test)) == list(range(14, 20))
    data = load_data("tfds:pb_secret_test?test=test", data_dir=prepare(PbSecretTest))
    with pytest.raises(DataError, match="tfds:pb_secret_test test has images without a label"):
        _ = data.test.labels


def test_nothing_of_the_test_split_is_read_before_it_is_used(tmp_path):
    PbPets(data_dir=str(tmp_path)).download_and_prepare()
    (path,) = Path(tmp_path).rglob("*test.tfrecord*")
    # Whoever reads it is told so.
    path.write_bytes(bytes(path.stat().st_size))
    spec = "tfds:pb_pets?validation=validation&test=test"
    data = load_data(spec, data_dir=str(tmp_path), skip_broken_images=True)
    data.train.read(0), data.validation.read(0), len(data.train)
    with pytest.raises(DataError, match="test.tfrecord.* is damaged"):
        data.test.read(0)


def test_the_scan_is_remembered(prepare, cache_dir, monkeypatch):
    data_dir = prepare(PbPets)
    first = load_data("tfds:pb_pets", data_dir=data_dir)
    assert list(cache_dir.glob("records-*.npz"))
    monkeypatch.setattr(READERS["tfrecord"], "scan", None)
    second = load_data("tfds:pb_pets?test=test&validation=validation", data_dir=data_dir)
    assert second.train.labels.tolist() == first.train.labels.tolist()
    assert numbers(second.train) == numbers(first.train)


def test_images_of_one_size_make_a_dataset_without_a_resize(prepare):
    data = load_data("tfds:pb_fixed_size", data_dir=prepare(PbFixedSize))
    assert data.train.image_size == (4, 5) and data.class_names == ("0", "1")
    images, labels = next(iter(make_dataset(data.test, "", batch_size=4, training=False)))
    assert images.shape == (4, 4, 5, 3) and labels.shape == (4,)
    assert sorted(images.numpy()[:, 0, 0, 0]) == [0, 1, 2, 3]


@pytest.mark.parametrize("file_format", FORMATS)
def test_broken_images_are_named_or_skipped(prepare, file_format):
    data_dir = prepare(PbBroken, file_format)
    data = load_data("tfds:pb_broken", data_dir=data_dir)
    with pytest.raises(DataError, match="Broken image 'tfds:pb_broken train #\\d+'"):
        make_dataset(data.train, "resize(8,8)", batch_size=2, training=True)
    data = load_data("tfds:pb_broken", data_dir=data_dir, skip_broken_images=True)
    assert len(data.train) == 13 and len(data.train.skipped) == 1
    assert len(data.test) == 7 and data.test.skipped[0].startswith("tfds:pb_broken test #")


@pytest.mark.slow
def test_data_set_known_only_by_its_files(prepare, tmp_path):
    # As on a machine that has the folder but not the code that made it.
    code = "import sys; from piggyback_tf.data import load_data; "
    code += f"d = load_data('tfds:pb_pets', data_dir={prepare(PbPets)!r}); print(len(d.train), d.class_names)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.stdout.strip() == "14 ('cat', 'dog')", result.stderr


@pytest.mark.parametrize(
    "spec, message",
    [
        ("tfds:", "must name a data set"),
        ("tfds:pb_pets?train", "Cannot read 'train' in the data spec .* Behind the \\? stand train="),
        ("tfds:pb_pets?dev=train", "Cannot read 'dev=train'"),
        ("tfds:pb_pets?train=a&train=b", "Cannot read 'train=b'"),
        ("tfds:pb_pets?train=trian", "no split 'trian', asked for in .* Splits: .*train"),
        ("tfds:pb_pets?train=train[:999%%]", "no split 'train\\[:999%%\\]'"),
        ("tfds:pb_pets?train=train&test=train[5:]", "the test and the train splits share 9 images"),
        ("tfds:pb_pets?validation=train[:3]", "the validation and the train splits share 3 images"),
        ("tfds:pb_pets?validation=test[:3]&test=test", "the validation and the test splits share 3 images"),
        ("tfds:pb_pets?train=train[:8]+train[5:10]", r"The parts of 'train\[:8\]\+train\[5:10\]'.*have 3 images"),
        ("tfds:pb_pets?train=train[:50%]+train[25%:75%]", "have [34] images in common"),
        ("tfds:pb_pets?train=train+validation+train", "have 14 images in common; each image may be in one of them"),
        ("tfds:pb_pets?test=test+test[2:3]", "The parts of 'test.* have 1 image in common"),
        ("tfds:pb_pets:9.9.9", "TensorFlow Datasets cannot open 'pb_pets:9.9.9'|no 'pb_pets:9.9.9'"),
    ],
)
def test_wrong_specs(prepare, spec, message):
    with pytest.raises(DataError, match=message):
        load_data(spec, data_dir=prepare(PbPets))


def test_unknown_name_gets_close_matches_and_not_the_catalogue(tmp_path):
    with pytest.raises(DataError) as caught:
        load_data("tfds:oxford_flower102", data_dir=str(tmp_path))
    message = str(caught.value)
    assert "Unknown data set of TensorFlow Datasets 'oxford_flower102'. Did you mean 'oxford_flowers102'" in message
    assert len(message) < 400
    with pytest.raises(DataError, match="Unknown data set .*catalog") as caught:
        load_data("tfds:qqqqqqqqqqqq", data_dir=str(tmp_path))
    assert "mnist" not in str(caught.value)


def test_close_matches_include_what_is_prepared(prepare):
    data_dir = prepare(PbPets)
    with pytest.raises(DataError, match="Did you mean 'pb_pets'"):
        load_data("tfds:pb_petz", data_dir=data_dir)


def test_unprepared_and_no_network(tmp_path, monkeypatch, caplog):
    # It would go on trying for minutes.
    monkeypatch.setattr("tensorflow_datasets.core.download.downloader.MAX_RETRIES", 0)
    with pytest.raises(DataError) as caught:
        load_data("tfds:pb_far_away", data_dir=str(tmp_path))
    message = str(caught.value)
    assert f"'pb_far_away' is not prepared in {tmp_path} and could not be downloaded" in message
    assert "is downloaded now" in caplog.text
    assert "download_and_prepare()" in message and "--data_dir=FOLDER" in message


def test_features_that_are_not_images_and_labels(tmp_path):
    # Said before anything is downloaded.
    with pytest.raises(DataError, match=r"'tfds:pb_text' must have the features 'image'.*has .*sentence \(Text\)"):
        load_data("tfds:pb_text", data_dir=str(tmp_path))


def test_classes_without_training_images(prepare, caplog):
    with pytest.raises(DataError, match="all of one class"):
        load_data("tfds:pb_one_class", data_dir=prepare(PbOneClass))
    data = load_data("tfds:pb_strange_test", data_dir=prepare(PbStrangeTest))
    assert "1 class(es) of tfds:pb_strange_test have no training images" in caplog.text
    with pytest.raises(DataError, match="test has images of class number 2, which no training image has"):
        _ = data.test.labels


def _shard(folder, file_format, split="train") -> Path:
    (path,) = Path(folder).rglob(f"*{split}.{file_format}*")
    return path


@pytest.mark.parametrize("damage", ["missing", "short", "one record less", "garbled", "garbled in the end"])
@pytest.mark.parametrize("file_format", FORMATS)
def test_damaged_files_are_named(tmp_path, file_format, damage):
    PbPets(data_dir=str(tmp_path), file_format=file_format).download_and_prepare()
    path = _shard(tmp_path, file_format)
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    elif damage == "short":
        path.write_bytes(content[:-30])
    elif damage == "one record less":
        path.write_bytes(_shard(tmp_path, file_format, "validation").read_bytes())
    else:
        start = 100 if damage == "garbled" else content.rindex(b"label")
        path.write_bytes(content[:start] + b"\xff" * 20 + content[start + 20 :])
    with pytest.raises(DataError, match=f"File '.*train.{file_format}.*' of tfds:pb_pets (is damaged|cannot be read)"):
        load_data("tfds:pb_pets", data_dir=str(tmp_path))


@pytest.mark.parametrize("file_format", FORMATS)
@pytest.mark.parametrize("part", ["label", "image"])
def test_one_bit_is_enough(tmp_path, file_format, part):
    """It changes a label or a pixel, and nothing that could be seen."""
    PbPets(data_dir=str(tmp_path), file_format=file_format).download_and_prepare()
    path = _shard(tmp_path, file_format)
    content = bytearray(path.read_bytes())
    if part == "label":
        # The value is the last byte of an entry: {1: "label", 2: {3: {1: value}}}.
        place = content.index(b"label") + 5 + 6
        assert content[place - 1] == 1 and content[place] in (0, 1)
    else:
        place = content.index(b"\xff\xd9") - 3
    content[place] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"File '.*train.{file_format}.*' of tfds:pb_pets is damaged"):
        load_data("tfds:pb_pets", data_dir=str(tmp_path))


@pytest.mark.parametrize("file_format", FORMATS)
def test_a_bit_that_is_lost_after_the_scan(tmp_path, file_format):
    PbPets(data_dir=str(tmp_path), file_format=file_format).download_and_prepare()
    path = _shard(tmp_path, file_format)
    load_data("tfds:pb_pets", data_dir=str(tmp_path))
    content, status = bytearray(path.read_bytes()), path.stat()
    content[content.index(b"\xff\xd9") - 3] ^= 1
    path.write_bytes(content)
    # A disk that loses a bit does not write down when.
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    data = load_data("tfds:pb_pets", data_dir=str(tmp_path))
    with pytest.raises(DataError, match=f"File '.*train.{file_format}.*' of tfds:pb_pets is damaged"):
        numbers(data.train)


def test_what_an_older_scan_found_is_not_believed(tmp_path, cache_dir, monkeypatch):
    """Older ones compared no checksums."""
    PbPets(data_dir=str(tmp_path)).download_and_prepare()
    keys = []
    monkeypatch.setattr(
        "piggyback_tf.data.tfds_source.digest", lambda *parts: keys.append(parts) or f"{len(keys):032d}"
    )
    load_data("tfds:pb_pets", data_dir=str(tmp_path))
    kinds = {parts[0] for parts in keys}
    assert "records 2" in kinds and "records 1" not in kinds


def test_records_of_other_features(tmp_path):
    PbPets(data_dir=str(tmp_path)).download_and_prepare()
    path = _shard(tmp_path, "tfrecord")
    record = tf.train.Example(features=tf.train.Features(feature={"image": tf.train.Feature()})).SerializeToString()
    with tf.io.TFRecordWriter(str(path)) as writer:
        for _ in range(14):
            writer.write(record)
    with pytest.raises(DataError, match="train.tfrecord.*' of tfds:pb_pets is damaged: a record in it holds no image"):
        load_data("tfds:pb_pets", data_dir=str(tmp_path))
