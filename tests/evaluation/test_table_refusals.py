"""Tables of runs: which runs do not fit together, and which do though they differ."""

import json

import pytest

from piggyback_tf.evaluation.tables import TableError, read_benchmark
from tests.evaluation.run_folders import cells_of, errors, sequence, table_of, write_sequence, write_single


def _twice(folder):
    return [write_single(folder / name, "cubs", {"piggyback": top1}) for name, top1 in (("a", 20), ("b", 21))]


def _other_base(folder):
    return [
        write_single(folder / "a", "cubs", {"piggyback": 20}),
        write_single(folder / "b", "cubs", {"finetune": 20}, backbone="resnet50", base_hash="cd" * 32),
    ]


def _same_name_other_base(folder):
    return [
        write_single(folder / "a", "cubs", {"piggyback": 20}),
        write_single(folder / "b", "cubs", {"piggyback": 20}, base_hash="cd" * 32),
    ]


def _other_images(folder):
    return [
        write_single(folder / "a", "cubs", {"piggyback": 20}),
        write_single(folder / "b", "cubs", {"finetune": errors(20, images=401)}),
    ]


def _other_classes(folder):
    return [
        write_single(folder / "a", "cubs", {"piggyback": 20}),
        write_single(folder / "b", "cubs", {"finetune": 20}, classes=["x", "z"]),
    ]


def _unfinished(folder):
    run = write_single(folder / "a", "cubs", {"piggyback": 20})
    (folder / "a" / "metrics.json").unlink()
    return [run]


def _no_run(folder):
    return [str(folder)]


def _damaged(folder):
    run = write_single(folder / "a", "cubs", {"piggyback": 20})
    (folder / "a" / "metrics.json").write_text('{"task": ')
    return [run]


def _strange(folder):
    run = write_sequence(folder / "a", sequence("ewc", {"cubs": {"cubs": 1}}))
    metrics = json.loads((folder / "a" / "metrics.json").read_text())
    del metrics["steps"][0]["bytes"]
    (folder / "a" / "metrics.json").write_text(json.dumps(metrics))
    return [run]


def _given_twice(folder):
    run = write_single(folder / "a", "cubs", {"piggyback": 20})
    return [run, f"{folder}/./a"]


def _other_json(folder):
    (folder / "bank.json").write_text('{"machine": {}}')
    return [str(folder / "bank.json")]


def _other_methods(folder):
    return [write_sequence(folder / "a", sequence("ewc", {"cubs": {"cubs": 1}}))]


@pytest.mark.parametrize(
    ("layout", "make", "message"),
    [
        (
            "survey",
            _twice,
            "'.*a' and '.*b' both hold method piggyback on task 'cubs' with the same settings and seed 0",
        ),
        ("paper2", _twice, "both hold method piggyback on task 'cubs'"),
        ("paper6", _twice, "both hold method piggyback on task 'cubs'"),
        ("survey", _other_base, "one base; '.*a' is on vgg16, imagenet, .* and '.*b' on resnet50"),
        ("paper2", _other_base, "table of one network; .* --layout=paper4"),
        ("paper4", _same_name_other_base, "name the same base, vgg16, imagenet, and have different ones: abab.*cdcd"),
        ("paper2", _other_images, "'cubs' was measured on 400 images in '.*a' and on 401 in '.*b'"),
        ("survey", _other_classes, "'cubs' has other classes in '.*a' than in '.*b'"),
        ("survey", _unfinished, "'.*a' is not finished: there is no metrics.json"),
        ("survey", _no_run, "no folder of a run of train.py: there is no settings.json"),
        ("survey", _damaged, "metrics.json' is no JSON file"),
        ("survey", _strange, "'.*a' does not hold what train.py .* writes: KeyError"),
        ("survey", _given_twice, "/./a' is given twice"),
        ("survey", _other_json, "neither a folder of train.py nor a JSON file"),
        ("paper7", _other_methods, "Layout paper7 has the methods piggyback, and none of the runs"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, layout, make, message):
    with pytest.raises(TableError, match=message):
        table_of(layout, *make(tmp_path))


def test_random_bases_differ_by_seed_and_are_one(tmp_path):
    runs = [
        write_single(
            tmp_path / str(seed), "cubs", {"piggyback": 20 + seed}, weights="random", base_hash=digest, seed=seed
        )
        for seed, digest in ((0, "ab" * 32), (1, "cd" * 32))
    ]
    assert cells_of(table_of("survey", *runs))["piggyback/"]["cubs %"] == "20.50 ± 0.71"


def test_masks_in_both_orders_are_the_same_run(tmp_path):
    """Equal errors in another order: the method does not depend on it. Others are another result for the same seed."""
    orders = [{"a": {"a": 9}, "b": {"a": 9, "b": 8}}, {"b": {"b": 8}, "a": {"a": 9, "b": 8}}]
    runs = [write_sequence(tmp_path / str(place), sequence("piggyback", order)) for place, order in enumerate(orders)]
    assert cells_of(table_of("paper2", *runs))["a"]["Piggyback"] == "9.00"
    orders[1]["a"]["a"] = 10
    write_sequence(tmp_path / "1", sequence("piggyback", orders[1]))
    with pytest.raises(TableError, match="both hold method piggyback on task 'a'"):
        table_of("paper2", *runs)


@pytest.mark.parametrize("key", ["piggyback/0", "piggyback/forward/x"])
def test_keys_of_the_benchmark(key):
    with pytest.raises(TableError, match="a key is LABEL/ORDER/SEED"):
        read_benchmark({key: sequence("piggyback", {"a": {"a": 1}})})
