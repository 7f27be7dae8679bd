"""The Visual Decathlon: score, parameters, the published table, and answers for its server."""

import json
import math
import re
import zipfile

import pytest

from piggyback_tf.evaluation.decathlon import (
    DOMAINS,
    LARGEST_ERRORS,
    PUBLISHED,
    DecathlonError,
    decathlon_score,
    domain_points,
    relative_parameters,
    write_submission,
)
from piggyback_tf.evaluation.tables import TableError
from tests.evaluation.run_folders import cells_of, errors, table_of, write_single
from tests.packs.helpers import make_pack

# Of the published accuracies, which are rounded.
TOTALS = {"Piggyback": 2840.2, "DAN": 2852.5, "Finetune": 2500.0, "Scratch": 1626.7, "Feature": 545.4}
# Classes of the nine sets beside ImageNet, and kernels of the Wide ResNet of depth 28 and factor 4.
CLASSES = {"aircraft": 100, "cifar100": 100, "daimlerpedcls": 2, "dtd": 47, "gtsrb": 43} | {
    "vgg-flowers": 102, "omniglot": 1623, "svhn": 10, "ucf101": 101
}  # fmt: skip
KERNELS, FEATURES = 5_839_280, 256


@pytest.mark.parametrize("row", PUBLISHED, ids=lambda row: row.title)
def test_the_score_of_published_accuracies_is_the_published_score(row):
    found = decathlon_score(row.errors)
    assert abs(found - row.score) < 3
    assert found == pytest.approx(TOTALS.get(row.title, found), abs=0.05)


def test_points_of_a_set():
    assert LARGEST_ERRORS["svhn"] == pytest.approx(2 * 3.45)
    assert domain_points("svhn", 0) == 1000
    assert domain_points("svhn", 3.45) == pytest.approx(250)
    assert domain_points("svhn", 6.91) == domain_points("svhn", 50) == 0
    with pytest.raises(DecathlonError, match="no set 'mnist'. Valid: imagenet12, aircraft"):
        domain_points("mnist", 3)
    for error in (-1, 101, float("nan")):
        with pytest.raises(DecathlonError, match="from 0 to 100. Received for dtd"):
            domain_points("dtd", error)
    with pytest.raises(DecathlonError, match="missing are imagenet12, aircraft"):
        decathlon_score({"svhn": 1.0})


def test_parameters_are_counted_as_the_paper_does():
    masked = dict.fromkeys(CLASSES, KERNELS)
    heads = {name: (FEATURES + 1) * classes for name, classes in CLASSES.items()}
    assert round(relative_parameters(KERNELS, masked), 2) == 1.28
    assert round(relative_parameters(KERNELS, masked, heads), 2) == 1.37


def test_paper8(tmp_path):
    accuracies = dict(zip(DOMAINS, PUBLISHED[-1].accuracies, strict=True))
    runs = [
        write_single(tmp_path / name, name, {"piggyback": 100 - accuracy})
        for name, accuracy in accuracies.items()
        if name != "imagenet12"
    ]
    runs.append(write_single(tmp_path / "base", "imagenet12", {"classifier_only": 100 - 57.69}))
    runs.append(write_single(tmp_path / "seed", "dtd", {"piggyback": errors(100 - 58.45)}, seed=1))
    table = table_of("paper8", *runs)
    cells = cells_of(table)
    assert list(table.header) == ["method", "parameters", "with heads", *DOMAINS.values(), "score"]
    published = cells["Piggyback (published)"]
    assert (published["parameters"], published["with heads"], published["score"]) == ("1.28", "", "2,838")
    assert published["UCF"] == "47.48" and cells["Finetune (published)"]["score"] == "2,500"
    own = cells["Piggyback"]
    assert own["ImNet"] == "57.69" and own["DTD"] == "57.95 ± 0.71" and own["Airc"] == "65.29"
    assert own["score"] == f"{decathlon_score({n: 100 - a for n, a in (accuracies | {'dtd': 57.95}).items()}):,.0f}"
    pack = make_pack(task="dtd")
    masked = sum(math.prod(mask.shape) for mask in pack.masks.values())
    heads = 9 * sum(value.size for value in pack.head.values())
    assert (own["parameters"], own["with heads"]) == ("1.28", f"{1 + 9 / 32 + heads / masked:.2f}")
    # Without all ten sets there is no score.
    assert cells["Classifier Only"]["score"] == "" and cells["Classifier Only"]["parameters"] == "1.00"
    assert any("published for fine-tuning" in " ".join(note.split()) for note in table.notes)


def test_paper8_refuses_runs_of_other_tasks(tmp_path):
    with pytest.raises(
        TableError, match="Layout paper8 has the methods .* and the tasks imagenet12, .* none of the runs"
    ):
        table_of("paper8", write_single(tmp_path / "cubs", "cubs", {"piggyback": 20.0}))
    table = table_of(
        "paper8",
        write_single(tmp_path / "cubs", "cubs", {"piggyback": 20.0}),
        write_single(tmp_path / "dtd", "dtd", {"finetune": 50.0}),
    )
    assert "No sets of the decathlon: cubs." in table.notes
    assert cells_of(table)["Individual Networks"]["parameters"] == "2.00"


@pytest.fixture(name="kit")
def _kit(tmp_path):
    """A development kit of two test images and two classes a set; returns its folder and answers to it."""
    folder, answers = tmp_path / "decathlon-1.0" / "annotations", {}
    folder.mkdir(parents=True)
    for place, name in enumerate(DOMAINS, start=1):
        files = [f"decathlon-1.0-data/{name}/test/{number:06}.jpg" for number in (1, 2)]
        images = [{"id": 10_000_000 * place + n, "file_name": f"data/{file}"} for n, file in enumerate(files)]
        categories = [{"id": 100_000 * place + n, "name": f"{n}"} for n in (7, 8)]
        (folder / f"{name}_test_stripped.json").write_text(json.dumps({"images": images}))
        (folder / f"{name}_train.json").write_text(
            json.dumps({"images": [], "annotations": [], "categories": categories})
        )
        answers[name] = {files[0]: 1, files[1]: 0}
    return folder.parent, answers


def test_a_submission_has_the_numbers_of_the_kit(kit, tmp_path):
    folder, answers = kit
    assert write_submission(tmp_path / "results.zip", folder, answers) == 20
    with zipfile.ZipFile(tmp_path / "results.zip") as archive:
        assert archive.namelist() == ["results.json"]
        rows = json.loads(archive.read("results.json"))
    assert rows[:3] == [
        {"image_id": 10_000_000, "category_id": 100_008},
        {"image_id": 10_000_001, "category_id": 100_007},
        {"image_id": 20_000_000, "category_id": 200_008},
    ]
    assert len({row["image_id"] for row in rows}) == 20
    write_submission(tmp_path / "again.zip", folder / "annotations", answers)
    assert (tmp_path / "again.zip").read_bytes() == (tmp_path / "results.zip").read_bytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda answers: answers.pop("svhn"), "answers for ten sets; missing are svhn."),
        (
            lambda answers: answers["dtd"].popitem(),
            "Of dtd 1 test images have no answer: 'decathlon-1.0-data/dtd/test/",
        ),
        (lambda answers: answers["dtd"].update(x=0), "Of dtd 1 answers are for no test image: 'x'."),
        (
            lambda answers: answers["dtd"].update(dict.fromkeys(answers["dtd"], 2)),
            "dtd has classes 0 to 1. Received for",
        ),
        (lambda answers: answers["dtd"].update(dict.fromkeys(answers["dtd"], True)), "Received for .*: True."),
    ],
)
def test_a_submission_that_would_be_refused_is_not_written(change, message, kit, tmp_path):
    folder, answers = kit
    change(answers)
    with pytest.raises(DecathlonError, match=message):
        write_submission(tmp_path / "results.zip", folder, answers)
    assert not (tmp_path / "results.zip").exists()


def test_files_of_the_kit_that_are_none(kit, tmp_path):
    folder, answers = kit
    (folder / "annotations" / "ucf101_train.json").write_text('{"categories": [{}]}')
    with pytest.raises(DecathlonError, match=re.escape("ucf101_train.json' is no file of the development kit")):
        write_submission(tmp_path / "results.zip", folder, answers)
    (folder / "annotations" / "ucf101_train.json").unlink()
    with pytest.raises(DecathlonError, match="There is no ucf101_train.json in .* decathlon-1.0-devkit.tar.gz"):
        write_submission(tmp_path / "results.zip", folder, answers)
