"""Images with label maps, from folders and in the layout of PASCAL VOC: what is read, and what is refused."""

from pathlib import Path

import numpy as np
import pytest
import scipy.io
from PIL import Image

from piggyback_tf.data import DataError, DataProblems, Part, check_images, load_data, make_dataset
from piggyback_tf.data.geometry import VOID

SIZE = (24, 32)
# Of a palette; none of its colours is an index.
PALETTE = [3 * (7 * i % 80) for i in range(768)]


def pixels(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*SIZE, 3)).astype(np.uint8)


def classes_of(seed: int, classes: int = 3) -> np.ndarray:
    """Returns a label map of all classes, with some pixels of none."""
    labels = np.random.default_rng([seed, 1]).integers(0, classes, SIZE).astype(np.uint8)
    labels[:2, :3] = VOID
    return labels


def save(path: Path, array: np.ndarray, palette: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(array)
    if palette:
        image = Image.fromarray(array, "P")
        image.putpalette(PALETTE)
    image.save(path)


@pytest.fixture
def roads(tmp_path) -> Path:
    """Returns a folder of 4 images for training, 2 for validation, 2 for test, of 3 classes."""
    root, seed = tmp_path / "roads", 0
    for split, count in (("train", 4), ("val", 2), ("test", 2)):
        for _ in range(count):
            save(root / split / "images" / f"{seed}.png", pixels(seed))
            save(root / split / "labels" / f"{seed}.png", classes_of(seed), palette=seed % 2 == 1)
            seed += 1
    (root / "classes.txt").write_text("0 road\n1 tree\n2 sky and clouds\n255 void\n")
    return root


def make_voc(root: Path, train: str = "ab", val: str = "cd", test: str = "e") -> Path:
    """Writes the layout of PASCAL VOC; images are named by letters, and test images have no labels."""
    for name in train + val + test:
        save(root / f"JPEGImages/{name}.jpg", pixels(ord(name)))
    for name in train + val:
        save(root / f"SegmentationClass/{name}.png", classes_of(ord(name), 21), palette=True)
    lists = root / "ImageSets/Segmentation"
    lists.mkdir(parents=True)
    for split, names in (("train", train), ("val", val), ("test", test)):
        (lists / f"{split}.txt").write_text("".join(f"{name}\n" for name in names))
    return root


def test_images_come_with_their_label_maps(roads):
    data = load_data(f"segmentation:{roads}")
    assert data.target == "map" and data.class_names == ("road", "tree", "sky and clouds")
    assert [len(source) for source in data.splits.values()] == [4, 2, 2]
    for seed in range(4):
        raster = data.train.read(seed)
        assert np.array_equal(raster[..., :3], pixels(seed))
        # Every second one has a palette, whose colours are none of the indices.
        assert np.array_equal(raster[..., 3], classes_of(seed))


@pytest.mark.parametrize("cache", ["memory", "disk", "none"])
def test_batches(roads, tmp_path, cache):
    data = load_data(f"segmentation:{roads}")
    options = {"cache": cache, "cache_dir": str(tmp_path / "cache")}
    for _ in range(2):  # The second time from the cache.
        (images, labels), *others = make_dataset(
            data.test, "resize(24,32)", batch_size=2, training=False, **options
        ).as_numpy_iterator()
        assert not others and labels.dtype == np.uint8
        assert np.array_equal(images, [pixels(6), pixels(7)]) and np.array_equal(labels, [classes_of(6), classes_of(7)])
    augment = "resize(48,64)|random_crop(40,padding=4)|flip|color_jitter(0.2)"
    runs = [
        list(make_dataset(data.train, augment, batch_size=3, training=True, epochs=2, **options).as_numpy_iterator())
        for _ in range(2)
    ]
    for (images, labels), (again, labels_again) in zip(*runs, strict=True):
        assert images.shape[1:] == (40, 40, 3) and labels.shape[1:] == (40, 40)
        assert np.array_equal(images, again) and np.array_equal(labels, labels_again)
    # An epoch of its own is what it was among others.
    (second, *_) = make_dataset(
        data.train, augment, batch_size=3, training=True, epochs=2, initial_epoch=1, **options
    ).as_numpy_iterator()
    assert np.array_equal(second[1], runs[0][2][1])


def test_both_caches_and_none_give_the_same_label_maps(roads, tmp_path):
    data = load_data(f"segmentation:{roads}")
    found = [
        np.concatenate(
            [
                labels
                for _, labels in make_dataset(
                    data.train,
                    "resize(30,40)|random_scale(0.8,1.5)|random_crop(28,width=36)|rotate(20)",
                    batch_size=2,
                    training=True,
                    cache=cache,
                    cache_dir=str(tmp_path / "cache"),
                ).as_numpy_iterator()
            ]
        )
        for cache in ("memory", "disk", "none")
    ]
    assert np.array_equal(found[0], found[1]) and np.array_equal(found[0], found[2])
    assert set(np.unique(found[0])) == {0, 1, 2, VOID}


def test_without_a_validation_split_one_is_carved_out(roads):
    (roads / "val").rename(roads / "elsewhere")
    data = load_data(f"segmentation:{roads}", val_fraction=0.5)
    assert len(data.train) == 2 and len(data.validation) == 2
    keys = {source.key(i) for source in (data.train, data.validation) for i in range(2)}
    assert keys == {f"train/images/{i}.png" for i in range(4)}


def test_values_stand_for_classes(roads):
    for i in range(4):  # As Oxford-IIIT Pet and Cityscapes do: numbers that are not the classes.
        save(roads / f"train/labels/{i}.png", np.where(classes_of(i) == VOID, 9, classes_of(i) + 1).astype(np.uint8))
    data = load_data(f"segmentation:{roads}?values=1:0,2:1,3:2,9:255")
    assert np.array_equal(data.train.read(2)[..., 3], classes_of(2))
    data = load_data(f"segmentation:{roads}?values=3:1,*:255")
    assert np.array_equal(data.train.read(2)[..., 3], np.where(classes_of(2) == 2, 1, VOID))
    with pytest.raises(DataError, match=r"value 9 at 6 pixels, which stands for no class. Valid: those named"):
        load_data(f"segmentation:{roads}?values=1:0,2:1,3:2").train.read(0)


def test_a_channel_is_read_only_if_it_is_named(roads):
    save(roads / "train/labels/0.png", np.dstack([classes_of(0), pixels(5)[..., 1:]]))
    with pytest.raises(DataError, match=r"0\.png' has colours \(RGB\).*channel=R"):
        load_data(f"segmentation:{roads}").train.read(0)
    data = load_data(f"segmentation:{roads}?channel=R")
    assert np.array_equal(data.train.read(0)[..., 3], classes_of(0))
    with pytest.raises(DataError, match=r"1\.png' has no channel R"):
        data.train.read(1)


def test_the_layout_of_pascal_voc(tmp_path):
    data = load_data(f"segmentation:{make_voc(tmp_path / 'VOC2011')}", val_fraction=0.5)
    assert data.class_names[0] == "background" and data.class_names[20] == "tvmonitor" and len(data.class_names) == 21
    # Nobody has the labels of VOC's test images: its val is what results are of.
    assert [len(source) for source in data.splits.values()] == [1, 1, 2]
    assert [data.test.key(i) for i in range(2)] == ["JPEGImages/c.jpg", "JPEGImages/d.jpg"]
    assert np.array_equal(data.test.read(0)[..., 3], classes_of(ord("c"), 21))


def test_test_images_with_labels_are_the_test_split(tmp_path):
    root = make_voc(tmp_path / "VOC2007")
    save(root / "SegmentationClass/e.png", classes_of(1, 21), palette=True)
    data = load_data(f"segmentation:{root}")
    assert [len(source) for source in data.splits.values()] == [2, 2, 1]


def test_the_semantic_boundaries_dataset_is_trained_on_too(tmp_path):
    root, sbd = make_voc(tmp_path / "VOC2011"), tmp_path / "benchmark_RELEASE"
    for name in "bcx":  # One that VOC trains on, one of its val, and a new one.
        save(sbd / f"dataset/img/{name}.jpg", pixels(ord(name)))
        (sbd / "dataset/cls").mkdir(exist_ok=True)
        # As the dataset's files are made: a structure with the labels beside others.
        content = {"GTcls": {"Segmentation": classes_of(ord(name), 21), "CategoriesPresent": [1]}}
        scipy.io.savemat(sbd / f"dataset/cls/{name}.mat", content)
    (sbd / "dataset/train.txt").write_text("b\nc\nx\n")
    data = load_data(f"segmentation:{root}?sbd={sbd}", val_fraction=0.25)
    parts = (data.train, data.validation)
    there = {source.describe(i) for source in parts for i in range(len(source))}
    assert {Path(path).stem for path in there} == {"a", "b", "c", "x"}
    assert [data.test.key(i) for i in range(len(data.test))] == ["JPEGImages/d.jpg"]
    maps = {source.key(i): source.read(i)[..., 3] for source in parts for i in range(len(source))}
    assert np.array_equal(maps["../benchmark_RELEASE/dataset/img/x.jpg"], classes_of(ord("x"), 21))
    (sbd / "dataset/cls/x.mat").write_bytes(b"no such file")
    with pytest.raises(DataError, match=r"x\.mat' holds no GTcls.Segmentation"):
        [source.read(i) for source in parts for i in range(len(source))]


def wrong_value(roads: Path) -> str:
    save(roads / "train/labels/2.png", np.full(SIZE, 7, np.uint8))
    return r"2\.png' has the value 7 at 768 pixels, which stands for no class. Valid: 0 to 2, and 255"


def wrong_size(roads: Path) -> str:
    save(roads / "val/labels/4.png", classes_of(4)[:20])
    return r"4\.png' is 20 pixels high and 32 wide, but its image .*4\.png' is 24 high and 32 wide"


def lossy(roads: Path) -> str:
    Image.fromarray(classes_of(1)).save(roads / "train/labels/1.png", "JPEG")
    return r"1\.png' is in a format that may change numbers"


def damaged(roads: Path) -> str:
    file = roads / "test/labels/6.png"
    file.write_bytes(file.read_bytes()[:-40])
    return r"6\.png' is no image file"


@pytest.mark.parametrize("spoil", [wrong_value, wrong_size, lossy, damaged])
def test_a_bad_label_map_is_named_before_the_training(roads, tmp_path, spoil):
    sentence = spoil(roads)
    data = load_data(f"segmentation:{roads}")
    parts = [Part(source, "resize(24,32)") for source in data.splits.values()]
    with pytest.raises(DataProblems, match=sentence) as caught:
        check_images(parts, data.spec, cache_dir=str(tmp_path / "cache"))
    assert len(caught.value.problems) == 1
    spared = load_data(f"segmentation:{roads}", skip_broken_images=True, cache_dir=str(tmp_path / "cache"))
    assert sum(len(source) for source in spared.splits.values()) == 7


def test_images_and_label_maps_go_in_pairs(roads):
    (roads / "train/labels/1.png").unlink()
    (roads / "train/images/3.png").unlink()
    with pytest.raises(DataProblems) as caught:
        load_data(f"segmentation:{roads}")
    assert [problem.kind for problem in caught.value.problems] == ["no_label_map", "no_image_of_map"]
    assert "1.png" in str(caught.value) and "3.png" in str(caught.value)
    assert len(load_data(f"segmentation:{roads}", skip_broken_images=True).train) == 2


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("0 road\n2 tree\n", r"must be 0, 1, \.\.\. with each once"),
        ("0 road\n0 tree\n", r"must be 0, 1, \.\.\. with each once"),
        ("road\n", "names 1 class; a task needs two"),
        ("road\nroad\n", "the same name"),
    ],
)
def test_classes_that_make_no_sense_are_refused(roads, text, sentence):
    (roads / "classes.txt").write_text(text)
    with pytest.raises(DataError, match=sentence):
        load_data(f"segmentation:{roads}")


def test_classes_may_stand_without_numbers(roads):
    (roads / "classes.txt").write_text("road\ntree\n\nsky and clouds\n")
    assert load_data(f"segmentation:{roads}").class_names == ("road", "tree", "sky and clouds")


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ("segmentation:", "must name a folder, as in"),
        ("segmentation:{}/nowhere", "There is no folder"),
        ("segmentation:{}/train", r"There is no file .*classes.txt"),
        ("segmentation:{}?colour=R", r"Cannot read 'colour=R'.*values=, channel= and sbd="),
        ("segmentation:{}?channel=A", "is R, G or B, but was 'A'"),
        ("segmentation:{}?values=1-0", "Cannot read '1-0' of values="),
        ("segmentation:{}?values=1:7", "names class 7, but there are 3"),
        ("segmentation:{}?sbd=/x", "goes with the layout of PASCAL VOC"),
    ],
)
def test_specs_that_make_no_sense_are_refused(roads, spec, sentence):
    with pytest.raises(DataError, match=sentence):
        load_data(spec.format(roads))


def test_a_step_that_cannot_move_label_maps_is_refused_at_once(roads, monkeypatch):
    from piggyback_tf.data import operations

    monkeypatch.delattr(operations.Flip, "geometry")
    data = load_data(f"segmentation:{roads}")
    with pytest.raises(DataError, match=r"flip has no `geometry`"):
        make_dataset(data.train, "resize(24,32)|flip", batch_size=2, training=True)
