"""Label maps of TensorFlow Datasets: small ones with the features of three that people use."""

import io

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from piggyback_tf.data import DataError, load_data, make_dataset
from piggyback_tf.data.geometry import VOID

SIZE = (12, 16)


def pixels(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (*SIZE, 3)).astype(np.uint8)


def values(number: int, allowed: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng([number, 1]).choice(np.array(allowed, np.uint8), SIZE)


def png(array: np.ndarray) -> io.BytesIO:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    buffer.seek(0)
    return buffer


class _Maps(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(0, 6), "test": self._generate_examples(6, 8)}

    def _info(self):
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(self.features()))


class PbPetMasks(_Maps):
    """As `oxford_iiit_pet`: classes of images, and maps of 1 (pet), 2 (background), 3 (border)."""

    def features(self):
        return {
            "image": tfds.features.Image(),
            "label": tfds.features.ClassLabel(names=["cat", "dog"]),
            "segmentation_mask": tfds.features.Image(shape=(None, None, 1), use_colormap=True),
        }

    def _generate_examples(self, first, last):
        for i in range(first, last):
            mask = png(values(i, (1, 2, 3)))
            yield i, {"image": png(pixels(i)), "label": i % 2, "segmentation_mask": mask}


class PbStreets(_Maps):
    """As `cityscapes`: no feature is called image or label, and maps hold 34 ids, of which 19 count."""

    def features(self):
        return {
            "image_id": tfds.features.Text(),
            "image_left": tfds.features.Image(),
            "segmentation_label": tfds.features.Image(shape=(None, None, 1)),
        }

    def _generate_examples(self, first, last):
        for i in range(first, last):
            label = png(values(i, (0, 7, 8, 33)))
            yield i, {"image_id": str(i), "image_left": png(pixels(i)), "segmentation_label": label}


class PbScenes(_Maps):
    """As `scene_parse150`: maps in colours, whose red channel holds the class."""

    def features(self):
        return {"image": tfds.features.Image(), "annotation": tfds.features.Image()}

    def _generate_examples(self, first, last):
        for i in range(first, last):
            yield i, {"image": png(pixels(i)), "annotation": png(np.dstack([values(i, (0, 1, 2)), pixels(i)[..., 1:]]))}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Returns the data_dir of each prepared data set by its class."""
    found = {}
    for kind in (PbPetMasks, PbStreets, PbScenes):
        found[kind] = str(tmp_path_factory.mktemp(kind.name))
        kind(data_dir=found[kind]).download_and_prepare()
    return found


def by_number(source) -> dict[int, np.ndarray]:
    """Returns the label maps of a source by the number of the image."""
    rasters = [source.read(i) for i in range(len(source))]
    numbers = {pixels(i).tobytes(): i for i in range(8)}
    return {numbers[raster[..., :3].tobytes()]: raster[..., 3] for raster in rasters}


@pytest.mark.parametrize(
    ("kind", "query", "classes", "expected"),
    [
        (
            PbPetMasks,
            "label=segmentation_mask&classes=pet,background&values=1:0,2:1,3:255",
            ("pet", "background"),
            lambda i: np.select([values(i, (1, 2, 3)) == 1, values(i, (1, 2, 3)) == 2], [0, 1], VOID),
        ),
        (
            PbStreets,
            "image=image_left&label=segmentation_label&classes=road,sidewalk,bicycle&values=7:0,8:1,33:2,*:255",
            ("road", "sidewalk", "bicycle"),
            lambda i: np.select([values(i, (0, 7, 8, 33)) == v for v in (7, 8, 33)], [0, 1, 2], VOID),
        ),
        (
            PbScenes,
            "label=annotation[0]&classes=wall,sky,floor",
            ("wall", "sky", "floor"),
            lambda i: values(i, (0, 1, 2)),
        ),
    ],
)
def test_label_maps_of_known_data_sets(folders, tmp_path, kind, query, classes, expected):
    data = load_data(f"tfds:{kind.name}?{query}", data_dir=folders[kind], cache_dir=str(tmp_path))
    assert data.target == "map" and data.class_names == classes
    assert len(data.train) + len(data.validation) == 6 and len(data.test) == 2
    for source in data.splits.values():
        for number, labels in by_number(source).items():
            assert np.array_equal(labels, expected(number))
    ((images, labels),) = make_dataset(
        data.test, f"resize({SIZE[0]},{SIZE[1]})", batch_size=2, training=False
    ).as_numpy_iterator()
    assert images.shape == (2, *SIZE, 3) and labels.shape == (2, *SIZE) and labels.dtype == np.uint8


def test_one_data_set_has_several_tasks(folders, tmp_path):
    """What was found for one of them, and kept, is not taken for the other."""
    options = {"data_dir": folders[PbPetMasks], "cache_dir": str(tmp_path)}
    maps = load_data("tfds:pb_pet_masks?label=segmentation_mask&classes=a,b&values=1:0,*:1", **options)
    assert not maps.train.labels.any()
    species = load_data("tfds:pb_pet_masks", **options)
    assert species.target == "class" and species.class_names == ("cat", "dog")
    assert set(species.train.labels) == {0, 1} and species.train.read(0).shape == (*SIZE, 3)
    assert len({maps.test.fingerprint(), species.test.fingerprint()}) == 2


@pytest.mark.parametrize(
    ("kind", "query", "sentence"),
    [
        (PbStreets, "", r"must have the features 'image' \(Image\) and 'label' .*but has .*image_left \(Image\)"),
        (PbScenes, "label=annotation", "whose classes have no names. Give them: "),
        (PbScenes, "label=annotation&classes=a,b,c", r"has colours \(RGB\)"),
        (PbPetMasks, "label=segmentation_mask&classes=a,b&values=1:0,2:1", "the value 3 at .* no class. Valid: those"),
        (PbPetMasks, "label=segmentation_mask[1]&classes=a,b,c,d", "has no channel G"),
        (PbPetMasks, "values=1:0,2:1", "values in .* is for label maps, but 'label' is the class of an image"),
        (PbPetMasks, "label=label[0]", r"\[\] in .* is for label maps"),
        (PbPetMasks, "label=segmentation_mask&classes=a,b&values=1:2", "names class 2, but there are 2"),
        (PbPetMasks, "labels=segmentation_mask", "Cannot read 'labels=segmentation_mask'"),
    ],
)
def test_what_cannot_be_learned_is_refused(folders, tmp_path, kind, query, sentence):
    spec = f"tfds:{kind.name}?{query}" if query else f"tfds:{kind.name}"
    with pytest.raises(DataError, match=sentence):
        data = load_data(spec, data_dir=folders[kind], cache_dir=str(tmp_path))
        data.train.read(0)


def test_classes_of_a_file(folders, tmp_path):
    (tmp_path / "names.txt").write_text("wall\nsky\nfloor\n")
    spec = f"tfds:pb_scenes?label=annotation[0]&classes={tmp_path / 'names.txt'}"
    data = load_data(spec, data_dir=folders[PbScenes], cache_dir=str(tmp_path))
    assert data.class_names == ("wall", "sky", "floor")
