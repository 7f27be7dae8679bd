"""Images of any number of classes: tables, splits, and what is wrong with them."""

import numpy as np
import pytest
from PIL import Image

from piggyback_tf.data import DataError, Renumbered, describe_images, load_data, make_dataset
from piggyback_tf.data.joined import join_tasks
from piggyback_tf.data.sources import stratified_split

ROWS = {"a.png": (1, 0, 1), "more/b.png": (0, 0, 0), "c.png": (0, 1, 0), "d.png": (1, 1, 1), "e.png": (1, 0, 0)}


def write(root, split, rows, header="image,cat,dog,tree"):
    """Writes a table, and for each image a file whose first pixel says which classes it is of."""
    for name, row in rows.items():
        path = root / split / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8, 3), np.array(row) * 200, np.uint8)).save(path)
    lines = [header, *(",".join([name, *map(str, row)]) for name, row in rows.items())]
    (root / split / "labels.csv").write_text("\n".join(lines) + "\n")


@pytest.fixture(name="root")
def _root(tmp_path):
    for split in ("train", "val", "test"):
        write(tmp_path / "scenes", split, ROWS)
    return tmp_path / "scenes"


def test_tables_are_read(root):
    data = load_data(f"multilabel:{root}")
    assert (data.target, data.name, data.class_names) == ("multilabel", "scenes", ("cat", "dog", "tree"))
    for source in (data.train, data.validation, data.test):
        assert source.labels.dtype == np.int32 and source.labels.tolist() == [list(row) for row in ROWS.values()]
        for index, row in enumerate(ROWS.values()):
            assert (source.read(index)[0, 0] / 200).tolist() == list(row)
    assert data.train.key(1) == "train/more/b.png"
    assert describe_images(data, "scenes").startswith(
        "scenes, 3 classes: train 5 images (cat: 3, dog: 2, tree: 2); validation 5"
    )
    with pytest.raises(DataError, match="of several classes cannot be learned as one"):
        join_tasks({"a": data, "b": data}).train.labels  # noqa: B018


def test_batches_hold_the_labels_of_their_images(root):
    data = load_data(f"multilabel:{root}")
    for images, labels in make_dataset(data.train, "resize(8,8)|flip", batch_size=2, training=True, epochs=2):
        assert labels.dtype == "int32" and np.array_equal(images[:, 0, 0] // 200, labels)


def test_classes_in_another_order_are_the_same(root, tmp_path):
    source = Renumbered(load_data(f"multilabel:{root}").test, np.array([2, 0, 3]), 5)
    assert source.labels.tolist()[0] == [0, 0, 1, 1, 0] and source.labels.shape == (5, 5)


def test_a_split_is_drawn_by_the_rarest_class_of_each_image(root):
    rows = {f"{place}.png": (1, int(place < 4), int(place in (0, 5))) for place in range(24)}
    write(root, "train", rows)
    source = load_data(f"multilabel:{root}").train
    rest, drawn = stratified_split(source, 0.25, 0)
    # Of 2 with trees, 3 others with dogs, and 19 with a cat alone.
    assert source.labels[drawn].tolist().count([1, 0, 0]) == 5 and len(drawn) == 7
    assert source.labels[drawn, 2].sum() == 1 and sorted([*rest, *drawn]) == list(range(24))
    assert [list(part) for part in stratified_split(source, 0.25, 0)] == [list(rest), list(drawn)]
    (root / "val" / "labels.csv").unlink()
    data = load_data(f"multilabel:{root}", val_fraction=0.25)
    assert data.validation.labels.tolist() == source.labels[drawn].tolist()


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "has no images"),
        ("image,cat,dog,tree\n", "has no images"),
        ("file,cat,dog,tree\na.png,1,0,1\n", "has the line 'file,cat,dog,tree'. It begins with 'image,CLASS,CLASS'"),
        ("image,cat\na.png,1\n", "has the line 'image,cat'. It begins"),
        ("image,cat,dog,tree\na.png,1,0\n", "has the line 'a.png,1,0'"),
        ("image,cat,dog,tree\na.png,1,0,2\n", "has the line 'a.png,1,0,2'"),
        ("image,cat,dog,tree\na.png,1,0,1\na.png,1,0,1\n", "has the line 'a.png,1,0,1'.*another image"),
        (
            "image,cat,dog,bird\na.png,1,0,1\n",
            r"name different classes: \[\('cat', 'dog', 'bird'\), \('cat', 'dog', 'tree'",
        ),
        ('image,cat,dog,tree\n"a.png,1,0,1\n', "cannot be read: unexpected end of data"),
        (b"image,\xff\n", "cannot be read: 'utf-8' codec"),
    ],
)
def test_wrong_tables_are_named(root, text, sentence):
    path = root / "val" / "labels.csv"
    path.write_bytes(text) if isinstance(text, bytes) else path.write_text(text)
    with pytest.raises(DataError, match=sentence) as found:
        load_data(f"multilabel:{root}")
    assert "scenes" in str(found.value)


def test_what_is_not_there_is_named(root, tmp_path):
    with pytest.raises(DataError, match="There is no folder '.*none'"):
        load_data(f"multilabel:{tmp_path}/none")
    with pytest.raises(DataError, match="There is no table '.*train/labels.csv'"):
        load_data(f"multilabel:{tmp_path}")
    with pytest.raises(DataError, match="Name a path"):
        load_data("multilabel:")
    (root / "train" / "a.png").unlink()
    with pytest.raises(DataError, match=r"train/a\.png' cannot be read"):
        load_data(f"multilabel:{root}").train.read(0)
