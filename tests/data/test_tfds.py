import builtins
import io
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from piggyback_tf.data import DataError, load_data, make_dataset
from piggyback_tf.data.example_proto import find_image_and_label

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
    assert data.test.describe(3) == "tfds:pb_pets test #3"


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


def test_nothing_of_the_test_split_is_read_before_it_is_used(prepare, monkeypatch):
    data_dir = prepare(PbPets)
    opened = []
    real = io.open
    # pathlib opens files through io.open.
    monkeypatch.setattr(io, "open", lambda path, *a, **k: opened.append(str(path)) or real(path, *a, **k))
    monkeypatch.setattr(builtins, "open", io.open)
    data = load_data("tfds:pb_pets?validation=validation&test=test", data_dir=data_dir, skip_broken_images=True)
    data.train.read(0), data.validation.read(0), len(data.train)
    assert any("pb_pets-train.tfrecord" in path for path in opened)
    assert not any("pb_pets-test.tfrecord" in path for path in opened)
    data.test.read(0)
    assert any("pb_pets-test.tfrecord" in path for path in opened)


def test_the_scan_is_remembered(prepare, cache_dir, monkeypatch):
    data_dir = prepare(PbPets)
    first = load_data("tfds:pb_pets", data_dir=data_dir)
    assert list(cache_dir.glob("records-*.npz"))
    monkeypatch.setattr("piggyback_tf.data.tfds_source._scan_tfrecord", None)
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
    with pytest.raises(DataError, match=r"'pb_text' must have the features 'image'.*has .*sentence \(Text\)"):
        load_data("tfds:pb_text", data_dir=str(tmp_path))


def test_classes_without_training_images(prepare, caplog):
    with pytest.raises(DataError, match="all of one class"):
        load_data("tfds:pb_one_class", data_dir=prepare(PbOneClass))
    data = load_data("tfds:pb_strange_test", data_dir=prepare(PbStrangeTest))
    assert "1 class(es) of tfds:pb_strange_test have no training images" in caplog.text
    with pytest.raises(DataError, match="test has images of class number 2, which no training image has"):
        _ = data.test.labels


@pytest.mark.parametrize("damage", ["missing", "short", "garbled"])
def test_damaged_files_are_named(tmp_path, damage):
    PbPets(data_dir=str(tmp_path)).download_and_prepare()
    (path,) = Path(tmp_path).rglob("*train.tfrecord*")
    if damage == "missing":
        path.unlink()
    elif damage == "short":
        path.write_bytes(path.read_bytes()[:-30])
    else:
        content = bytearray(path.read_bytes())
        (length,) = struct.unpack_from("<Q", content)
        content[12 : 12 + length] = b"\xff" * length
        path.write_bytes(content)
    with pytest.raises(DataError, match="File '.*train.tfrecord.*' of tfds:pb_pets"):
        load_data("tfds:pb_pets", data_dir=str(tmp_path))


@settings(deadline=None, max_examples=60)
@given(
    image=st.binary(max_size=300),
    label=st.integers(-(2**63), 2**63 - 1),
    others=st.dictionaries(st.text(max_size=8), st.one_of(st.binary(), st.floats(width=32), st.integers(-5, 500))),
)
def test_examples_are_read_as_tensorflow_reads_them(image, label, others):
    def feature(value):
        if isinstance(value, bytes):
            return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))
        if isinstance(value, float):
            return tf.train.Feature(float_list=tf.train.FloatList(value=[value]))
        return tf.train.Feature(int64_list=tf.train.Int64List(value=[value, 3]))

    features = {name: feature(value) for name, value in {**others, "image": image, "label": label}.items()}
    record = tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString()
    padded = b"\x01\x02" + record + b"\x03"
    start, end, found = find_image_and_label(padded, 2, 2 + len(record))
    assert padded[start:end] == image and found == label


@settings(deadline=None, max_examples=200)
@given(st.binary(max_size=80))
def test_other_bytes_are_refused_and_nothing_else_happens(record):
    with pytest.raises(ValueError, match="the record"):
        find_image_and_label(record, 0, len(record))
