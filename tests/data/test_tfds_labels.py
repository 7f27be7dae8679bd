"""Images of any number of classes in TensorFlow Datasets."""

import io

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from piggyback_tf.data import DataError, load_data, make_dataset

CLASSES = ("beach", "people", "sunset")


def bits(number: int) -> np.ndarray:
    """Returns of which classes an image is: of all, of some, and of none."""
    return np.array([number >> place & 1 for place in range(len(CLASSES))], np.uint8)


def image(number: int) -> np.ndarray:
    return np.full((8, 10, 3), 10 * number, np.uint8)


class PbTags(tfds.core.GeneratorBasedBuilder):
    """The same labels in all forms, and some that are none."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {
            "image": tfds.features.Image(encoding_format="png"),
            "tags": tfds.features.Sequence(tfds.features.ClassLabel(names=CLASSES)),
            "vector": tfds.features.Tensor(shape=(3,), dtype=np.bool_),
            "sequence": tfds.features.Sequence(np.int64, length=3),
            "scores": tfds.features.Tensor(shape=(3,), dtype=np.float32),
            "ratings": tfds.features.Tensor(shape=(3,), dtype=np.int64),
            "numbers": tfds.features.Sequence(np.int64),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(0, 16), "test": self._generate_examples(16, 24)}

    def _generate_examples(self, first, last):
        for number in range(first, last):
            stream, found = io.BytesIO(), bits(number)
            Image.fromarray(image(number)).save(stream, "PNG")
            stream.seek(0)
            yield (
                number,
                {
                    "image": stream,
                    "tags": [name for name, bit in zip(CLASSES, found, strict=True) if bit],
                    "vector": found.astype(bool),
                    "sequence": found.astype(np.int64),
                    "scores": found.astype(np.float32),
                    "ratings": 5 * found.astype(np.int64),
                    "numbers": np.flatnonzero(found),
                },
            )


@pytest.fixture(scope="module", name="folder")
def _folder(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("tags"))
    PbTags(data_dir=folder).download_and_prepare()
    return folder


@pytest.mark.parametrize(
    "query", ["label=tags"] + [f"label={n}&classes=sea,crowd,dusk" for n in ("vector", "sequence")]
)
def test_labels_are_those_of_each_image(folder, tmp_path, query):
    for _ in range(2):  # The second time what a scan found is in the cache.
        data = load_data(f"tfds:pb_tags?{query}", data_dir=folder, cache_dir=str(tmp_path))
        assert data.target == "multilabel"
        assert data.class_names == (CLASSES if query == "label=tags" else ("sea", "crowd", "dusk"))
        assert (len(data.train) + len(data.validation), len(data.test)) == (16, 8)
        for source in data.splits.values():
            assert source.labels.dtype == np.int32 and source.labels.shape == (len(source), 3)
            for place, labels in enumerate(source.labels):
                number = source.read(place)[0, 0, 0] // 10
                assert np.array_equal(source.read(place), image(number)) and np.array_equal(labels, bits(number))
    ((images, labels),) = make_dataset(data.test, "resize(8,8)", batch_size=8, training=False).as_numpy_iterator()
    assert np.array_equal(labels, [bits(number) for number in images[:, 0, 0, 0].astype(int) // 10])


@pytest.mark.parametrize(
    ("query", "sentence"),
    [
        ("label=tags&classes=a,b,c", "classes in 'tfds:pb_tags.*' is for label maps, but 'tags' names its classes its"),
        ("label=tags&values=0:1", "values in .* is for label maps, but 'tags' names its classes itself"),
        ("label=vector", "has labels, whose classes have no names. Give them: .classes=NAME,NAME"),
        ("label=vector&classes=a,b", "names 2 classes, and 'vector' has 0 or 1 for 3"),
        ("label=vector&classes=a,b,c&values=0:1", "values in .* is for label maps, but 'vector' is 0 or 1 for each cl"),
        ("label=scores&classes=a,b,c", r"must have the features .* or a vector of 0 and 1 .*scores \(Tensor\)"),
        ("label=numbers&classes=a,b,c", r"must have the features .* a sequence of ClassLabel or a vector .* but has"),
        ("label=ratings&classes=a,b,c", "is damaged: a record in it has 5 for a class, and 0 or 1 says whether"),
    ],
)
def test_what_says_no_classes_is_refused(folder, tmp_path, query, sentence):
    with pytest.raises(DataError, match=sentence):
        load_data(f"tfds:pb_tags?{query}", data_dir=folder, cache_dir=str(tmp_path))
