"""Several tasks as one: images, labels and names stay those of the tasks."""

import numpy as np
import pytest

from piggyback_tf.data import DataError, Subset, TaskData, load_data, make_dataset
from piggyback_tf.data.joined import Joined, join_tasks


@pytest.fixture(name="tasks")
def _tasks(make_folder) -> dict[str, TaskData]:
    pets = make_folder("pets", train={"cat": 3, "dog": 2}, test={"cat": 1, "dog": 1})
    cars = make_folder("cars", 20, 20, train={"bus": 2, "cab": 3, "van": 2}, test={"bus": 1, "cab": 1, "van": 1})
    return {"pets": load_data(f"folder:{pets}"), "cars": load_data(f"folder:{cars}"), "digits": load_data("digits")}


def test_every_image_keeps_its_pixels_its_name_and_its_class(tasks):
    joined = join_tasks(tasks)
    for split in ("train", "validation"):
        found, index = getattr(joined, split), 0
        for task, data in tasks.items():
            source = getattr(data, split)
            for place in range(min(len(source), 20)):
                assert np.array_equal(found.read(index + place), source.read(place))
                assert found.describe(index + place) == source.describe(place)
                expected = f"{task}/{data.class_names[source.labels[place]]}"
                assert joined.class_names[found.labels[index + place]] == expected
            index += len(source)
        assert len(found) == index
        assert found.labels.dtype == np.int32
        with pytest.raises(IndexError):
            found.read(index)


def test_names_and_splits(tasks):
    joined = join_tasks(tasks)
    assert joined.class_names[:6] == ("pets/cat", "pets/dog", "cars/bus", "cars/cab", "cars/van", "digits/0")
    assert len(joined.class_names) == 15
    assert joined.name == "pets+cars+digits"
    assert joined.spec == "+".join(data.spec for data in tasks.values())
    assert joined.test is None


def test_keys_differ_even_if_a_source_is_there_twice(tasks):
    source = tasks["digits"].validation
    twice = Joined([source, source], [0, 10])
    keys = [twice.key(index) for index in range(len(twice))]
    assert len(set(keys)) == 2 * len(source)
    assert [key.partition("/")[2] for key in keys[: len(source)]] == [source.key(i) for i in range(len(source))]


def test_the_fingerprint_follows_images_and_order(tasks):
    pets, cars = tasks["pets"].train, tasks["cars"].train
    fingerprint = Joined([pets, cars], [0, 2]).fingerprint()
    assert fingerprint == Joined([pets, cars], [0, 2]).fingerprint()
    assert fingerprint != Joined([cars, pets], [0, 3]).fingerprint()
    assert fingerprint != Joined([pets, Subset(cars, range(len(cars) - 1))], [0, 2]).fingerprint()


def test_the_size_is_known_where_all_have_it(tasks):
    digits = tasks["digits"]
    assert Joined([digits.train, digits.validation], [0, 0]).image_size == (8, 8)
    assert Joined([digits.train, tasks["pets"].train], [0, 10]).image_size is None


def test_broken_images_are_those_of_all_and_none_is_read_before_it_is_used(make_folder):
    folders = [make_folder(name, train={"a": 3, "b": 3}, test={"a": 1, "b": 1}) for name in ("one", "two")]
    for folder in folders:
        (folder / "train" / "a" / "000.png").write_bytes(b"no image")
    joined = join_tasks({folder.name: load_data(f"folder:{folder}", skip_broken_images=True) for folder in folders})
    for folder in folders:
        (folder / "train" / "a" / "001.png").write_bytes(b"no image")
    source = joined.train
    skipped = {path for split in (source, joined.validation) for path in split.skipped}
    assert skipped == {str(folder / "train" / "a" / name) for folder in folders for name in ("000.png", "001.png")}
    for index in range(len(source)):
        source.read(index)


@pytest.mark.parametrize("cache", ["memory", "none"])
def test_batches_of_images_of_several_sizes(tasks, cache):
    few = {task: data for task, data in tasks.items() if task != "digits"}
    source = join_tasks(few).train
    batches = make_dataset(source, "resize(8,8)", batch_size=4, training=False, cache=cache)
    labels = np.concatenate([labels for _, labels in batches])
    assert labels.tolist() == source.labels.tolist()
    assert np.unique(labels).tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(DataError, match="different sizes|height and width"):
        list(make_dataset(source, "flip", batch_size=4, training=True, cache="memory"))
