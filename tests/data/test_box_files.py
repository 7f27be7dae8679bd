"""Images with boxes in the layouts of COCO and PASCAL VOC: what is read, and what is refused."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from piggyback_tf.data import (
    DataError,
    DataProblems,
    Part,
    check_images,
    describe_images,
    load_data,
    make_dataset,
    original_batches,
)
from piggyback_tf.data.joined import join_tasks
from piggyback_tf.data.voc import voc_original
from piggyback_tf.training.same_base_and_data import describe_data
from tests.data.painted import paint

SIZE = (30, 40)
NAMES = ("cell", "cat", "dog")
# Of each image by its name: its boxes, at whole pixels, the number of the class, and whether it is ignored.
IMAGES = {
    "train": {
        "a": [[2, 3, 12, 20, 0, 0], [15, 21, 30, 40, 2, 1]],
        "b": [[0, 0, 30, 40, 1, 0]],
        "c": [[5, 5, 6, 6, 2, 0], [8, 8, 20, 12, 1, 0], [21, 2, 25, 39, 0, 0]],
        "n": [],
    },
    "val": {"d": [[1, 1, 9, 9, 1, 0]]},
    "test": {"e": [[3, 4, 29, 39, 0, 0]], "f": [[10, 10, 20, 20, 2, 0]]},
}


def save(path: Path, boxes, size=SIZE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(paint(np.array(boxes).reshape(-1, 6), size)).save(path)


def coco_of(images, first: int = 1) -> dict:
    """Returns the annotations of images; ids of categories are not numbers of classes, and not in their order."""
    content = {"images": [], "annotations": [], "categories": []}
    for name, number in (("dog", 90), ("cell", 7), ("cat", 18)):
        content["categories"].append({"id": number, "name": name})
    for number, (name, boxes) in enumerate(images.items(), start=first):
        content["images"].append({"id": number, "file_name": f"{name}.png", "height": SIZE[0], "width": SIZE[1]})
        for top, left, bottom, right, label, ignored in boxes:
            annotation = {"id": len(content["annotations"]) + 1, "image_id": number, "iscrowd": ignored}
            annotation["category_id"] = {"cell": 7, "cat": 18, "dog": 90}[NAMES[label]]
            content["annotations"].append(annotation | {"bbox": [left, top, right - left, bottom - top]})
    return content


def xml_of(boxes) -> str:
    objects = "".join(
        f"<object><name>{NAMES[label]}</name><difficult>{ignored}</difficult><bndbox><xmin>{left + 1}</xmin>"
        f"<ymin>{top + 1}</ymin><xmax>{right}</xmax><ymax>{bottom}</ymax></bndbox>"
        # A part of a person has a box of its own, which is none of the data set's.
        "<part><name>hand</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox></part></object>"
        for top, left, bottom, right, label, ignored in boxes
    )
    size = f"<size><width>{SIZE[1]}</width><height>{SIZE[0]}</height><depth>3</depth></size>"
    return f"<annotation><filename>x.jpg</filename>{size}{objects}</annotation>"


@pytest.fixture
def coco(tmp_path) -> Path:
    root = tmp_path / "coco"
    for split, images in IMAGES.items():
        for name, boxes in images.items():
            save(root / split / f"{name}.png", boxes)
        (root / "annotations").mkdir(exist_ok=True)
        (root / f"annotations/instances_{split}.json").write_text(json.dumps(coco_of(images)))
    return root


@pytest.fixture
def voc(tmp_path) -> Path:
    root = tmp_path / "voc"
    for split, images in IMAGES.items():
        for name, boxes in images.items():
            save(root / f"JPEGImages/{name}.png", boxes)
            (root / "Annotations").mkdir(exist_ok=True)
            (root / f"Annotations/{name}.xml").write_text(xml_of(boxes))
        (root / "ImageSets/Main").mkdir(parents=True, exist_ok=True)
        (root / f"ImageSets/Main/{split}.txt").write_text("".join(f"{name}\n" for name in images))
    (root / "classes.txt").write_text("\n".join(NAMES))
    return root


def change(root: Path, edit, split: str = "train") -> None:
    """Changes the annotations of a split."""
    file = root / f"annotations/instances_{split}.json"
    content = json.loads(file.read_text())
    edit(content)
    file.write_text(json.dumps(content))


def boxes_of(source) -> dict[str, list]:
    return {Path(source.key(i)).stem: source.boxes.of(i).tolist() for i in range(len(source))}


@pytest.mark.parametrize("kind", ["coco", "voc"])
def test_images_come_with_their_boxes(kind, request):
    root = request.getfixturevalue(kind)
    data = load_data(f"{kind}:{root}")
    assert data.target == "boxes" and data.class_names == NAMES and data.name == kind
    for split, (_, source) in zip(IMAGES, data.splits.items(), strict=True):
        assert boxes_of(source) == IMAGES[split]
        assert source.boxes.most == 3, "of the whole data set"
        assert source.boxes.sizes.tolist() == [list(SIZE)] * len(source)
        for index in range(len(source)):
            assert np.array_equal(source.read(index), paint(source.boxes.of(index), SIZE))
    assert data.train.labels.tolist() == [[1, 0, 1], [0, 1, 0], [1, 1, 1], [0, 0, 0]]
    assert describe_images(data, "pets") == (
        "pets, 3 classes of boxes, at most 3 in an image: train 4 images with 6 boxes (2 of each class), 1 of them to "
        "be ignored, 1 image without any; validation 1 image with 1 box (cell: 0, cat: 1, dog: 0); test 2 images "
        "with 2 boxes (cell: 1, cat: 0, dog: 1)."
    )
    ((images, boxes), *_) = make_dataset(data.test, "resize(60,80)", batch_size=2, training=False).as_numpy_iterator()
    assert images.shape == (2, 60, 80, 3)
    assert boxes.tolist() == [
        [[6, 8, 58, 78, 0, 0], *[[0, 0, 0, 0, -1, 0]] * 2],
        [[20, 20, 40, 40, 2, 0], *[[0, 0, 0, 0, -1, 0]] * 2],
    ]


def test_both_readers_give_the_same_of_real_images(realdata):
    found = [load_data(f"{kind}:{realdata / 'bccd'}") for kind in ("coco", "voc")]
    assert found[0].class_names == found[1].class_names == ("RBC", "WBC", "Platelets")
    for split, counts in (
        ("train", (2381, 214, 209)),
        ("validation", (967, 87, 83)),
        ("test", (805, 71, 69)),
    ):
        one, other = (data.splits[split] for data in found)
        assert [one.key(i) for i in range(len(one))] == [other.key(i) for i in range(len(other))]
        assert one.known_targets() == other.known_targets()
        assert tuple(np.bincount(one.boxes.rows[:, 4].astype(int))) == counts
        assert one.boxes.most == 30
    check_images([Part(found[0].test, "resize(64,64)")], "bccd")
    (_, boxes, originals), *_ = original_batches(found[1].validation, "resize(120,160)", batch_size=2)
    # BloodImage_00000 has a white cell at xmin 130, ymin 88, xmax 246, ymax 188.
    assert originals[0].target[0].tolist() == [87, 129, 188, 246, 1, 0] and originals[0].size == (240, 320)
    assert boxes[0, 0].tolist() == [43.5, 64.5, 94, 123, 1, 0]


@pytest.mark.parametrize(
    ("moves", "query"),
    [
        ([("train", "train2017"), ("annotations/instances_train.json", "annotations/instances_train2017.json")], ""),
        ([("train", "images/train"), ("val", "images/val"), ("test", "images/test")], ""),
        ([("annotations", "coco")], ""),
        ([("annotations", "labels")], "?annotations=labels"),
        ([("annotations/instances_train.json", "train/_annotations.coco.json"),
          ("annotations/instances_val.json", "val/_annotations.coco.json"), ("val", "valid"),
          ("annotations/instances_test.json", "test/_annotations.coco.json")], ""),
    ],
)  # fmt: skip
def test_layouts_of_coco(coco, moves, query):
    for before, after in moves:
        (coco / after).parent.mkdir(exist_ok=True)
        (coco / before).rename(coco / after)
    data = load_data(f"coco:{coco}{query}")
    assert [boxes_of(source) for source in data.splits.values()] == list(IMAGES.values())
    for source in data.splits.values():
        source.read(0)


@pytest.mark.parametrize("folder", ["images", "JPEGImages", "."])
def test_images_of_all_splits_may_be_in_one_folder(coco, folder):
    for split in IMAGES:
        for file in list((coco / split).iterdir()):
            (coco / folder).mkdir(exist_ok=True)
            file.rename(coco / folder / file.name)
        (coco / split).rmdir()
    data = load_data(f"coco:{coco}")
    assert [boxes_of(source) for source in data.splits.values()] == list(IMAGES.values())
    (coco / folder / "more").mkdir()
    with pytest.raises(DataProblems, match=r"7 images that are not there, but have annotations"):
        load_data(f"coco:{coco}?images={folder}/more")


def test_without_a_validation_split_one_is_carved_out(coco):
    (coco / "annotations/instances_val.json").unlink()
    data = load_data(f"coco:{coco}", val_fraction=0.5)
    assert {**boxes_of(data.train), **boxes_of(data.validation)} == IMAGES["train"]
    assert len(data.validation) == 1 and data.validation.boxes.most == 3 and data.validation.has_boxes


def test_boxes_of_one_image_are_those_of_its_data_set(voc):
    data = load_data(f"voc:{voc}")
    for place in range(len(data.train)):
        path = voc / data.train.key(place)
        original = voc_original(path, data.class_names)
        assert original.size == SIZE and np.array_equal(original.target, data.train.boxes.of(place))
    path = voc / "JPEGImages/b.png"
    assert voc_original(voc / "elsewhere" / path.name, data.class_names) is None
    with pytest.raises(DataError, match="is of a class that is none of 1"):
        voc_original(path, ["horse"])
    save(path, [], (5, 6))
    with pytest.raises(DataError, match="it is 5 high and 6 wide"):
        voc_original(path, data.class_names)
    (voc / f"Annotations/{path.stem}.xml").unlink()
    assert voc_original(path, data.class_names) is None


def test_voc_without_labels_of_its_test_images(voc):
    for name in IMAGES["test"]:
        (voc / f"Annotations/{name}.xml").unlink()
    data = load_data(f"voc:{voc}", val_fraction=0.5)
    assert boxes_of(data.test) == IMAGES["val"] and len(data.train) + len(data.validation) == 4


def test_voc_without_a_list_of_classes(voc):
    (voc / "classes.txt").unlink()
    assert load_data(f"voc:{voc}").class_names == ("cat", "cell", "dog")


def test_one_class_is_enough(voc):
    (voc / "classes.txt").write_text("thing\n")
    for file in (voc / "Annotations").iterdir():
        text = file.read_text()
        for name in NAMES:
            text = text.replace(f"<name>{name}<", "<name>thing<")
        file.write_text(text)
    data = load_data(f"voc:{voc}")
    assert data.class_names == ("thing",) and describe_images(data, "t").startswith("t, 1 class of boxes, at most 3 in")


def spoil_coco(root: Path) -> dict[str, str]:
    """Puts a fault of every kind into the training images; returns what is said of each file."""
    good, names = [4.0, 4.0, 8.0, 8.0], "opqrstuvwxyz"
    faults = {
        "o": ([38, 4, 8, 8], r"annotation \d+ \('cat'\) reaches from 4 to 12 down and from 38 to 46 across, outside"),
        "p": ([4, 4, 0, 8], r"annotation \d+ \('cat'\) is 8 high and 0 wide"),
        "q": ([4, 4, 8, -2], "is -2 high and 8 wide"),
        "r": ([4, float("nan"), 8, 8], "has a number that is not finite"),
        "s": ([4, 4, 8], r"has the bbox \[4, 4, 8\], which is no four numbers"),
        "t": (good, "is of category 5, which has no name"),
        "u": (good, "annotation 1 is there twice"),
        "v": (good, "its id 1 is another image's, too"),
        "w": (good, "its height and width must be whole numbers"),
        "x": ([-0.5, 4, 8, 26.5], None),
        "y": (good, r"are for a height of 30 and a width of 40, but it is 20 high and 25 wide"),
        "z": (good, "has iscrowd=2; it is 0 or 1"),
    }

    def edit(content):
        for number, (name, (box, _)) in enumerate(faults.items(), start=100):
            size = {"height": SIZE[0], "width": SIZE[1]} if name != "w" else {"height": "30"}
            content["images"].append({"id": 1 if name == "v" else number, "file_name": f"{name}.png", **size})
            annotation = {"id": 1 if name == "u" else number, "image_id": number, "bbox": box, "category_id": 18}
            if name == "t":
                annotation["category_id"] = 5
            if name == "z":
                annotation["iscrowd"] = 2
            content["annotations"] += [annotation] * (name != "v")
            save(root / f"train/{name}.png", [], (20, 25) if name == "y" else SIZE)
        content["images"].append({"id": 300, "file_name": "gone.png", "height": 30, "width": 40})
        content["annotations"].append({"id": 301, "image_id": 999, "bbox": good, "category_id": 18})
        content["categories"].append({"id": 5})

    change(root, edit)
    assert set(names) == set(faults)
    told = {f"train/{name}.png": said for name, (_, said) in faults.items() if said}
    told["train/gone.png"] = "has annotations, but is not there"
    told["annotations/instances_train.json"] = "Category 5 has no name that is a text|Annotation 301 is of image 999"
    return {str(root / name): said for name, said in told.items()} | {str(root / "train/a.png"): "its id 1 is another"}


def spoil_voc(root: Path) -> dict[str, str]:
    """As `spoil_coco`."""
    good = xml_of([[4, 4, 12, 12, 1, 0]])
    faults = {
        "o": (good.replace("<xmax>12<", "<xmax>44<"), r"object 1 \('cat'\) reaches .* across, outside of the image"),
        "p": (good.replace("<xmax>12<", "<xmax>4<"), r"object 1 \('cat'\) is 8 high and 0 wide"),
        "q": (good.replace("<xmax>12<", "<xmax>2<"), "is 8 high and -2 wide"),
        "r": (good.replace("<xmax>12<", "<xmax>nan<"), "has a number that is not finite"),
        "s": (good.replace("<xmax>12</xmax>", "", 1), r"object 1 \('cat'\) has no four numbers in <bndbox>"),
        "t": (
            good.replace("<name>cat<", "<name>cow<"),
            r"object 1 \('cow'\) is of a class that is none of 3 \(ce",
        ),
        "u": (good.replace("<name>cat<", "<name> <"), "object 1 has no name"),
        "v": (good[:-30], r"file '.*v\.xml' is damaged, or no XML"),
        "w": (good.replace("<height>30</height>", ""), "has no height and width of at least 1 in <size>"),
        # Counted from 0, as some tools do: a pixel too far.
        "x": (good.replace("<xmin>5<", "<xmin>0<"), None),
        "y": (good, r"are for a height of 30 and a width of 40, but it is 20 high and 25 wide"),
        "z": (good.replace("<difficult>0<", "<difficult>no<"), "has 'no' in <difficult>; it is 0 or 1"),
    }
    for name, (text, _) in faults.items():
        (root / f"Annotations/{name}.xml").write_text(text)
        save(root / f"JPEGImages/{name}.png", [], (20, 25) if name == "y" else SIZE)
    (root / "Annotations/gone.xml").write_text(good)
    save(root / "JPEGImages/bare.png", [])
    with (root / "ImageSets/Main/train.txt").open("a") as stream:
        stream.write("".join(f"{name}\n" for name in [*faults, "gone", "bare", "b"]))
    told = {f"JPEGImages/{name}.png": said for name, (_, said) in faults.items() if said}
    told |= {"JPEGImages/gone.jpg": "has annotations, but is not there", "JPEGImages/bare.png": "has no file"}
    return {str(root / name): said for name, said in (told | {"JPEGImages/b.png": "is in one list twice"}).items()}


@pytest.mark.parametrize(("kind", "spoil"), [("coco", spoil_coco), ("voc", spoil_voc)])
def test_all_that_is_wrong_is_told_at_once(kind, spoil, request):
    root = request.getfixturevalue(kind)
    expected = spoil(root)
    data = load_data(f"{kind}:{root}", raise_problems=False)
    listed = [problem for found in data.problems.values() for problem in found]
    with pytest.raises(DataProblems) as caught:
        check_images([Part(source, "resize(32,32)") for source in data.splits.values()], data.spec, listed=listed)
    found = {}
    for problem in caught.value.problems:
        found.setdefault(problem.place, []).append(problem.sentence)
    assert found.keys() == expected.keys()
    for place, said in expected.items():
        for sentence, pattern in zip(found[place], said.split("|"), strict=True):
            assert re.search(pattern, sentence), sentence
            assert place in sentence
    # Those that can be used are, and nothing else.
    whole = load_data(f"{kind}:{root}", skip_broken_images=True)
    left = boxes_of(whole.train)
    assert left.keys() == ({"a", "b", "c", "n", "x"} - ({"a"} if kind == "coco" else set()))
    assert {problem.place for problem in whole.train.left_out} == expected.keys()
    ((_, boxes), *_) = make_dataset(whole.train, "resize(30,40)", batch_size=8, training=False).as_numpy_iterator()
    edges = boxes[list(left).index("x"), 0, :4]
    assert edges.min() == 0 and edges[2] <= 30, "what rounding put outside is cut"


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("{", "instances_train.json' is damaged, or no JSON"),
        ("[]", "has no list 'images', so that"),
        ('{"images": [], "annotations": 3, "categories": []}', "has no list 'annotations'"),
        ('{"images": [], "annotations": [], "categories": []}', "has no category with an id and a name"),
        ('{"images": [], "annotations": [], "categories": [{"id": 1, "name": "a"}]}', "has no training image"),
    ],
)
def test_files_that_are_none_of_coco(coco, content, sentence):
    (coco / "annotations/instances_train.json").write_text(content)
    with pytest.raises(DataError, match=sentence):
        load_data(f"coco:{coco}")


def test_odd_entries_are_named(coco):
    def edit(content):
        content["images"] += [7, {"id": 50}, {"id": [1], "file_name": "./b.png", "height": 30, "width": 40}]
        content["images"].append({"id": 51, "file_name": "\ud800.png"})
        content["categories"].append({"id": 92, "name": "\ud800"})
        content["annotations"] += ["x", {"image_id": {}}, {"id": 60, "image_id": 2, "category_id": "7"}]
        content["annotations"] += [{"id": 61, "image_id": 2, "category_id": 7, "bbox": [1, 1, 10**400, 2]}]
        content["categories"] += [{"id": "x", "name": "bird"}, {"id": 90, "name": "bird"}, {"id": 91, "name": "dog"}]

    change(coco, edit)
    with pytest.raises(DataProblems) as caught:
        load_data(f"coco:{coco}")
    text = "\n".join(problem.sentence for problem in caught.value.problems)
    for said in (
        "Entry 4 of 'images' is no object",
        "Image 50 has no file_name that is a text",
        "Image 51 has no file_name",
        "Category 92 has no name",
        "b.png' cannot be used: it is listed twice; annotation 60 is of category '7', which has no name; annotation 61",
        "Entry 6 of 'annotations' is no object",
        "The annotation at place 6 is of image {}",
        "Category 'bird' has the id 'x', which is no whole number",
        "Category 90 is there twice",
        "Two categories have the name 'dog'",
    ):
        assert said in text, text


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ("coco:", r"must name a folder, as in 'coco:"),
        ("coco:{coco}/nowhere", "There is no folder"),
        ("coco:{voc}", "has no annotations of training images. The layout"),
        ("coco:{coco}?labels=x", "Behind the [?] may stand annotations= and images=, each at most once"),
        ("coco:{coco}?images=x", "There is no folder"),
        ("voc:{coco}", "train.txt' names no images. The layout"),
        ("voc:{voc}?sbd=x", "Behind the [?] stands nothing for this kind of data"),
        ("segmentation:{voc}", r"names no images.*For boxes write voc:"),
    ],
)
def test_specs_that_make_no_sense_are_refused(coco, voc, spec, sentence):
    with pytest.raises(DataError, match=sentence):
        load_data(spec.format(coco=coco, voc=voc))


def test_label_maps_of_voc_are_those_of_another_kind(voc):
    (voc / "ImageSets/Main").rename(voc / "ImageSets/Segmentation")
    with pytest.raises(DataError, match=r"names no images.*For label maps write segmentation:"):
        load_data(f"voc:{voc}")


def test_an_image_is_in_one_split(coco, voc):
    with (voc / "ImageSets/Main/test.txt").open("a") as stream:
        stream.write("c\n")
    with pytest.raises(DataError, match=r"the train and the test splits share images, for example 'JPEGImages/c\.png'"):
        load_data(f"voc:{voc}")
    change(coco, lambda content: content["annotations"].clear())
    with pytest.raises(DataError, match="has no box in any training image"):
        load_data(f"coco:{coco}")


def test_headers_alone_are_looked_at_if_that_is_wanted(coco):
    (coco / "train/b.png").write_bytes(b"")
    data = load_data(f"coco:{coco}")
    with pytest.raises(DataProblems, match=r"b\.png': the file is empty"):
        check_images([Part(source, "resize(8,8)") for source in data.splits.values()], "boxes", check="headers")


def test_two_files_of_one_split_are_refused(coco):
    (coco / "annotations/instances_train2014.json").write_text("{}")
    with pytest.raises(
        DataError, match=r"instances_train\.json' and .*instances_train2014\.json' are both annotations"
    ):
        load_data(f"coco:{coco}")


def test_a_changed_box_is_another_data_set(coco):
    before = load_data(f"coco:{coco}")
    change(coco, lambda content: content["annotations"][0].update(bbox=[3, 2, 16, 10]))
    after = load_data(f"coco:{coco}")
    assert before.train.labels.tolist() == after.train.labels.tolist()
    assert before.train.fingerprint() != after.train.fingerprint()
    # A run does not go on with it.
    found, again = describe_data(before), describe_data(after)
    assert {name for name in found if found[name] != again[name]} == {"train_digest"}
    assert describe_data(load_data(f"coco:{coco}")) == again


def test_boxes_of_several_tasks_are_no_task(coco):
    data = load_data(f"coco:{coco}")
    with pytest.raises(DataError, match="label maps or boxes cannot be learned as one"):
        join_tasks({"a": data, "b": data})
