"""Boxes of TensorFlow Datasets: small ones with the features of COCO and of PASCAL VOC."""

import io

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from piggyback_tf.data import DataError, DataProblems, Part, check_images, load_data, make_dataset
from tests.data.painted import paint

SIZE = (20, 40)
# Parts of height and width: ymin, xmin, ymax, xmax, class, ignored.
BOXES = [
    [[0.1, 0.25, 0.5, 0.75, 0, 0], [0.5, 0.0, 1.0, 0.5, 2, 1]],
    [],
    [[0.0, 0.0, 1.0, 1.0, 1, 0]],
    [[0.25, 0.5, 0.75, 0.75, 2, 0]],
]
NAMES = ("cell", "cat", "dog")


def pixels(number: int) -> np.ndarray:
    own = np.array(BOXES[number % 4]).reshape(-1, 6) * [20, 40, 20, 40, 1, 1]
    return paint(own, SIZE) | np.uint8(number)


def png(array: np.ndarray, quarter_turns: int = 0) -> io.BytesIO:
    buffer = io.BytesIO()
    exif = Image.Exif()
    if quarter_turns:
        exif[0x0112] = 6
    Image.fromarray(array).save(buffer, "PNG", exif=exif)
    buffer.seek(0)
    return buffer


class _Boxes(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")
    flag, name_of_label, bbox_format = "is_crowd", "label", "REL_YXYX"
    # Images of the splits train, validation and test; the last one has no boxes.
    splits = {"train": range(8), "validation": range(8, 10), "test": range(10, 12)}

    def _info(self):
        box = {
            "bbox": tfds.features.BBoxFeature(bbox_format=self.bbox_format),
            self.name_of_label: tfds.features.ClassLabel(names=NAMES),
            self.flag: np.bool_,
        }
        features = {"image": tfds.features.Image(), "objects": tfds.features.Sequence(box)}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(split) for split in self.splits}

    def boxes_of(self, number, split):
        return [] if split == "test" else BOXES[number % 4]

    def _generate_examples(self, split):
        for number in self.splits[split]:
            boxes = [
                {
                    "bbox": tfds.features.BBox(*(float(edge) for edge in edges)),
                    self.name_of_label: int(label),
                    self.flag: bool(ignored),
                }
                for *edges, label, ignored in self.boxes_of(number, split)
            ]
            yield number, {"image": png(pixels(number)), "objects": boxes}


class PbCocoBoxes(_Boxes):
    """As `coco`: crowds, and test images without boxes."""


class PbVocBoxes(_Boxes):
    """As `voc`: what is difficult, and test images with boxes; one image has one that is empty."""

    flag, name_of_label = "is_difficult", "kind"

    def boxes_of(self, number, split):
        return [[0.5, 0.2, 0.5, 0.4, 0, 0]] * 5 if number == 10 else BOXES[number % 4]


class PbOtherBoxes(_Boxes):
    """Boxes in another form, and an image that is stored lying on its side."""

    bbox_format = "REL_XYXY"


class PbTurned(_Boxes):
    """An image that is stored lying on its side."""

    def _generate_examples(self, split):
        for number, example in super()._generate_examples(split):
            yield number, example | {"image": png(pixels(number), quarter_turns=int(number == 3))}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    """Returns the data_dir of all of them."""
    found = str(tmp_path_factory.mktemp("boxes"))
    for kind in (PbCocoBoxes, PbVocBoxes, PbOtherBoxes, PbTurned):
        kind(data_dir=found).download_and_prepare()
    return found


def expected(number: int) -> list[list[float]]:
    return [[t * 20, l * 40, b * 20, r * 40, *rest] for t, l, b, r, *rest in BOXES[number % 4]]  # noqa: E741


def test_boxes_as_in_coco(folder, tmp_path):
    for _ in range(2):  # The second time from what a scan kept.
        data = load_data("tfds:pb_coco_boxes?boxes=objects", data_dir=folder, cache_dir=str(tmp_path))
        assert data.target == "boxes" and data.class_names == NAMES
        # Of its test images nobody knows the boxes: its validation images are in their place.
        assert len(data.train) + len(data.validation) == 8 and len(data.test) == 2
        for source in data.splits.values():
            assert source.has_boxes and source.boxes.most == 2
            for index in range(len(source)):
                # Where nothing is painted a picture has its number.
                number = int(source.read(index).min())
                assert np.allclose(source.boxes.of(index), np.array(expected(number)).reshape(-1, 6), atol=1e-4)
                assert source.boxes.size(index) == SIZE
    ((images, boxes), *_) = make_dataset(data.test, "resize(40,80)", batch_size=2, training=False).as_numpy_iterator()
    assert images.shape == (2, 40, 80, 3) and boxes.shape == (2, 2, 6)
    everything = [own.tolist() for own in (data.train.boxes.rows, data.validation.boxes.rows)]
    assert len(everything[0]) + len(everything[1]) == 8 and sum(row[5] for part in everything for row in part) == 2


def test_boxes_as_in_voc_and_what_is_wrong_with_them(folder):
    spec = "tfds:pb_voc_boxes?boxes=objects&label=kind"
    data = load_data(spec, data_dir=folder)
    assert [len(source) for source in data.splits.values()] == [8, 2, 2]
    assert {source.boxes.most for source in data.splits.values()} == {5}, "of all splits"
    with pytest.raises(DataProblems, match=r"test #0' cannot be used: object 0 is 0 high and 8 wide; .*; and 2 more"):
        check_images([Part(source, "resize(8,8)") for source in data.splits.values()], spec)
    whole = load_data(spec, data_dir=folder, skip_broken_images=True)
    assert len(whole.test) == 1 and len(whole.test.boxes) == 1 and len(whole.train.boxes) == 8


def test_boxes_of_an_image_that_lies_on_its_side_are_refused(folder):
    data = load_data("tfds:pb_turned?boxes=objects", data_dir=folder)
    with pytest.raises(DataProblems, match="for a height of 20 and a width of 40, but it is 40 high and 20 wide"):
        check_images([Part(source, "resize(8,8)") for source in data.splits.values()], "turned")


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("pb_coco_boxes", r"'image' \(Image\) and 'label' .*but has .*objects \(Sequence\)"),
        ("pb_coco_boxes?boxes=things", r"and 'things', a sequence .*but has .*objects \(Sequence\).*in 'things' none"),
        ("pb_coco_boxes?boxes=image", "a sequence with 'bbox'"),
        ("pb_voc_boxes?boxes=objects", r"and 'label' \(ClassLabel\) in it, .*in 'objects' .*kind \(ClassLabel\)"),
        ("pb_coco_boxes?boxes=objects&values=1:0", "values= in .* is for label maps, not for boxes"),
        ("pb_other_boxes?boxes=objects", "in the form REL_XYXY; those in REL_YXYX can be used"),
        ("pb_coco_boxes?boxes=objects&train=test", "have no boxes"),
    ],
)
def test_what_cannot_be_learned_is_refused(folder, name, sentence):
    with pytest.raises(DataError, match=sentence):
        load_data(f"tfds:{name}", data_dir=folder)
