import dataclasses
import subprocess
import sys

import numpy as np
import pytest

from piggyback_tf.data import DATA_KINDS, TARGETS, DataError, data_kinds, load_data, register_data
from piggyback_tf.data.sources import carve_validation
from piggyback_tf.data.specs import possible_targets


def test_kinds_and_errors_of_the_spec():
    assert data_kinds() == ["coco", "digits", "folder", "multilabel", "segmentation", "tfds", "voc"]
    with pytest.raises(DataError, match="Unknown data kind 'folders'. Did you mean 'folder'.*segmentation, tfds"):
        load_data("folders:/data")
    for path in ("/data/cats", "~/cats", "./cats", "data/cats:old"):
        with pytest.raises(DataError, match=f"'{path}' has no kind. For the images .* write 'folder:{path}'"):
            load_data(path)
    with pytest.raises(DataError, match="val_fraction must lie between 0 and 1.*1.0"):
        load_data("digits", val_fraction=1.0)


def test_a_folder_that_is_there_is_recognised_by_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cats").mkdir()
    with pytest.raises(DataError, match="write 'folder:cats'"):
        load_data("cats")


@pytest.mark.parametrize(
    ("spec", "data_dir", "message"),
    [
        ("gs://bucket/cats", None, "'gs://bucket/cats' is a URL. Copy the images to this machine"),
        ("folder:gs://bucket/cats", None, "folder:gs://bucket/cats: this is a URL, and only files and folders of this"),
        ("tfds:pb_none", "gs://tfds-data/datasets", "--data_dir=gs://tfds-data/datasets: this is a URL"),
        ("tfds:pb_none", "", "--data_dir= is empty"),
        ("tfds:pb_none", "{}/none", "There is no folder '{}/none', which --data_dir names for data set 'pb_none'"),
    ],
)
def test_what_is_no_folder_of_this_machine_is_named(spec, data_dir, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=message.format(tmp_path)):
        load_data(spec, data_dir=data_dir and data_dir.format(tmp_path))
    assert not [path for path in tmp_path.iterdir() if path.name != "piggyback_cache"]


def test_a_new_kind_registers_itself():
    @register_data("half_of_digits")
    def load(request):
        assert request.argument == "x:y"
        return load_data("digits", seed=request.seed)

    try:
        assert load_data("half_of_digits:x:y", seed=2).name == "digits"
    finally:
        del DATA_KINDS._entries["half_of_digits"]
    with pytest.raises(ValueError, match="'digits' is registered already"):
        register_data("digits")(load)


def test_importing_the_data_package_does_not_load_tensorflow():
    code = "import sys, piggyback_tf.data as d; d.data_kinds(); d.parse_augment('flip'); d.load_data('digits'); "
    code += "sys.exit(any(m in sys.modules for m in ('tensorflow', 'keras', 'tensorflow_datasets')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_digits():
    data = load_data("digits")
    assert data.class_names == tuple("0123456789") and data.name == "digits"
    sizes = [len(data.train), len(data.validation), len(data.test)]
    assert sizes == [1295, 143, 359]
    for source in (data.train, data.validation, data.test):
        counts = np.bincount(source.labels, minlength=10)
        assert counts.max() - counts.min() <= 0.1 * counts.max() + 1
    keys = [{source.key(i) for i in range(len(source))} for source in (data.train, data.validation, data.test)]
    assert len(keys[0] | keys[1] | keys[2]) == 1797
    image = data.train.read(0)
    assert image.shape == (8, 8, 3) and image.dtype == np.uint8
    assert image.min() == 0 and max(data.train.read(i).max() for i in range(5)) == 255
    assert (image == image[..., :1]).all()
    assert data.train.describe(0).startswith("digits #")


def test_some_of_the_digits():
    data, whole = load_data("digits:5-7"), load_data("digits")
    assert (data.name, data.class_names) == ("digits_5-7", ("5", "6", "7"))
    for split in ("train", "validation", "test"):
        part, source = getattr(data, split), getattr(whole, split)
        expected = {source.key(i): label - 5 for i, label in enumerate(source.labels) if 5 <= label <= 7}
        assert {part.key(i): label for i, label in enumerate(part.labels)} == expected
    for spec in ("digits:7", "digits:7-7", "digits:8-3", "digits:0-10", "digits:0-4 "):
        with pytest.raises(DataError, match=f"in a row as in 'digits:0-4', but was '{spec}'"):
            load_data(spec)


def test_digits_test_split_does_not_depend_on_the_seed():
    one, two = load_data("digits", seed=1), load_data("digits", seed=2)
    assert [one.test.key(i) for i in range(len(one.test))] == [two.test.key(i) for i in range(len(two.test))]
    assert one.validation.fingerprint() != two.validation.fingerprint()
    assert one.train.fingerprint() == load_data("digits", seed=1).train.fingerprint()


def test_no_validation_can_be_carved_out_of_single_images(make_folder):
    with pytest.raises(DataError, match="no class has more than one image"):
        load_data(f"folder:{make_folder(train={'a': 1, 'b': 1})}")
    train, validation = carve_validation(load_data("digits").train, 0.999, 0, "digits")
    assert len(np.unique(train.labels)) == len(np.unique(validation.labels)) == 10


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (("a", "b", "a"), "'a' is there twice"),
        # The letter with its accent, and the letter and the accent: both look the same.
        (("caf\u00e9", "tea", "cafe\u0301"), r"'caf\\xe9' and 'cafe\\u0301'"),
    ],
)
def test_classes_of_one_name_are_refused(names, said, make_folder):
    @register_data("three_classes")
    def load(request):
        return dataclasses.replace(load_data("digits:0-2"), spec=request.spec, class_names=names)

    try:
        with pytest.raises(DataError, match=f"Classes of 'three_classes' have the same name: .*{said}"):
            load_data("three_classes")
    finally:
        del DATA_KINDS._entries["three_classes"]
    if len(set(names)) == 3:
        with pytest.raises(DataError, match="have the same name"):
            load_data(f"folder:{make_folder(train=dict.fromkeys(names, 2))}")


def test_whatever_kind_leaves_broken_images_out(make_folder):
    root = make_folder(train={"a": 3, "b": 3}, test={"a": 1})
    (root / "train/a/000.png").write_bytes(b"")

    @register_data("other_folder")
    def load(request):
        return load_data(f"folder:{root}")

    try:
        data = load_data("other_folder", skip_broken_images=True)
    finally:
        del DATA_KINDS._entries["other_folder"]
    assert [*data.train.skipped, *data.validation.skipped] == [str(root / "train/a/000.png")]


def test_kinds_say_what_there_can_be_to_find():
    assert possible_targets("folder:x") == possible_targets("digits:0-4") == ("class",)
    assert possible_targets("segmentation:x?values=1:0") == ("map",)
    assert possible_targets("multilabel:x") == ("multilabel",)
    assert "map" in possible_targets("tfds:x") and set(possible_targets("nothing:x")) == set(TARGETS)

    @register_data("unsaid")
    def load(request):
        raise NotImplementedError

    try:
        assert set(possible_targets("unsaid:")) == set(TARGETS)
    finally:
        del DATA_KINDS._entries["unsaid"]
