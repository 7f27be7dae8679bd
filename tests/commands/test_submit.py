"""The command `submit`: what it writes for the server of the Visual Decathlon, and what it refuses before any work."""

import dataclasses
import json
import shutil
import zipfile

import numpy as np
import pytest

from piggyback_tf.__main__ import main
from piggyback_tf.data import decode_image, parse_augment
from piggyback_tf.data.augment import apply_operations
from piggyback_tf.evaluation.decathlon import BASE_DOMAIN, DOMAINS
from piggyback_tf.packs import TaskBank
from tests.decathlon_kit import prepare_domains, write_devkit
from tests.evaluation.run_folders import write_single
from tests.packs.helpers import make_pack, pack_of, trained_model
from tests.run_command import run_command

FEW = {"train": 4, "val": 2, "test": 5}


@pytest.fixture(scope="module", name="kit")
def _kit(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kit")
    return write_devkit(folder, FEW)


def _refusal(capsys, *arguments):
    assert main(["submit", *map(str, arguments)]) == 2
    return capsys.readouterr().err


def test_sets_that_are_missing_are_named_without_tensorflow(kit, tmp_path):
    for task in ("dtd", "svhn"):
        make_pack(task=task).save(tmp_path / f"{task}.task.safetensors")
    status, lines, errors, loaded = run_command("submit", tmp_path, f"--devkit={kit}", "--json")
    assert (status, loaded) == (2, False)
    missing = ", ".join(domain for domain in DOMAINS if domain not in ("dtd", "svhn"))
    assert json.loads("\n".join(lines)) == {"error": f"A submission has answers for ten sets; missing are {missing}."}
    assert missing in errors


def test_what_is_no_ten_tasks_is_refused(kit, tmp_path, capsys):
    packs = tmp_path / "packs"
    packs.mkdir()
    for task in DOMAINS:
        make_pack(task=task).save(packs / f"{task}.task.safetensors")
    again = tmp_path / "again"
    make_pack(task="dtd").save(again)
    assert "Task 'dtd' is there twice" in _refusal(capsys, packs, again, f"--devkit={kit}")
    make_pack(task="birds").save(again)
    assert "The decathlon has no set 'birds'. Valid: imagenet12," in _refusal(capsys, packs, again, f"--devkit={kit}")
    assert "There is no imagenet12_train.json in" in _refusal(capsys, packs, f"--devkit={tmp_path}")
    run = write_single(tmp_path / "run", "dtd", {"finetune": 50.0})
    assert "has no packs: method finetune makes none" in _refusal(capsys, run, f"--devkit={kit}")
    assert "is no run" in _refusal(capsys, kit, f"--devkit={kit}")
    assert "this is a URL" in _refusal(capsys, packs, f"--devkit={kit}", "--output=s3://a/b.zip")
    assert "there is no folder" in _refusal(capsys, packs, f"--devkit={kit}", f"--output={tmp_path}/no/results.zip")
    # The packs are of a network that nobody knows.
    assert "was trained on 'small', a base of its own" in _refusal(capsys, packs, f"--devkit={kit}")


@pytest.fixture(scope="module", name="prepared")
def _prepared(kit):
    data_dir = kit.parent / "tfds"
    prepare_domains(kit.parent, data_dir)
    return data_dir


@pytest.fixture(scope="module", name="backbone")
def _backbone():
    from piggyback_tf.backbones import load_backbone

    return load_backbone("shapesnet")


@pytest.fixture(scope="module", name="packs")
def _packs(prepared, backbone, tmp_path_factory):
    """A folder with a pack of each set on a small base, masks at random."""
    folder = tmp_path_factory.mktemp("packs")
    for seed, domain in enumerate(DOMAINS):
        images, names = _test_images(domain, prepared)
        kind = "none" if domain == BASE_DOMAIN else "binary"
        model = trained_model(backbone, classes=len(names), seed=seed, kind=kind)
        # The kit has two categories of each set; both are the answer to some images.
        bias = np.where(np.arange(len(names)) < 2, 0, -1e9)
        model.get_layer("head").bias.assign(bias)
        scores = model.predict_on_batch(np.stack(list(images.values())))
        bias[1] = np.median(scores[:, 0] - scores[:, 1])
        model.get_layer("head").bias.assign(bias)
        # The names of the classes are those of the builder.
        pack = dataclasses.replace(pack_of(model, backbone, task=domain, classes=len(names)), class_names=names)
        pack.save(folder / f"{domain}.task.safetensors")
    return folder


def _test_images(domain, data_dir):
    """Returns the prepared test images of a set by name, and the names of its classes."""
    import tensorflow_datasets as tfds

    builder = tfds.builder(f"visual_domain_decathlon/{domain}", data_dir=str(data_dir))
    examples = builder.as_dataset(split="test", decoders={"image": tfds.decode.SkipDecoding()}).as_numpy_iterator()
    prepare = parse_augment("resize(32,32)")
    images = {
        example["name"].decode(): apply_operations(prepare, decode_image(example["image"], "an image"))
        for example in examples
    }
    return images, builder.info.features["label"].names


def _rows(path):
    with zipfile.ZipFile(path) as archive:
        assert archive.namelist() == ["results.json"]
        return json.loads(archive.read("results.json"))


@pytest.mark.slow
def test_answers_have_the_numbers_of_the_kit(kit, prepared, packs, backbone, tmp_path, capsys):
    output = tmp_path / "results.zip"
    asked = ["submit", str(packs), f"--devkit={kit}", f"--data_dir={prepared}", f"--output={output}", "--json"]
    assert main(asked) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["answers"], told["bytes"]) == (10 * FEW["test"], output.stat().st_size)
    assert [each["task"] for each in told["sets"]] == list(DOMAINS)
    found = {row["image_id"]: row["category_id"] for row in _rows(output)}
    assert len(found) == 10 * FEW["test"]
    answers = set()
    for domain in ("dtd", BASE_DOMAIN, "vgg-flowers"):
        annotations = kit / "annotations"
        listed = json.loads((annotations / f"{domain}_test_stripped.json").read_text())["images"]
        categories = json.loads((annotations / f"{domain}_train.json").read_text())["categories"]
        ids = {image["file_name"].removeprefix("data/"): image["id"] for image in listed}
        bank = TaskBank(backbone).add(packs / f"{domain}.task.safetensors")
        images, _ = _test_images(domain, prepared)
        assert set(images) == set(ids)
        for name, image in images.items():
            place = int(bank.predict([image], task=domain)[0].argmax())
            answers.add((domain, place))
            assert found[ids[name]] == categories[place]["id"]
    # Otherwise the order of classes and of images would not matter.
    assert len(answers) == 6


@pytest.mark.slow
def test_a_kit_with_other_images_is_refused(kit, prepared, packs, tmp_path, capsys):
    other = write_devkit(tmp_path / "other", FEW | {"test": 6})
    output = tmp_path / "results.zip"
    said = _refusal(capsys, packs, f"--devkit={other}", f"--data_dir={prepared}", f"--output={output}")
    assert "Of imagenet12 1 test images have no answer: 'decathlon-1.0-data/imagenet12/test/000005.jpg'" in said
    assert not output.exists()


@pytest.mark.slow
def test_a_task_with_other_classes_is_refused(kit, prepared, packs, tmp_path, capsys):
    folder = shutil.copytree(packs, tmp_path / "packs")
    make_pack(task="dtd", base_name="shapesnet", base_weights="shipped", image_size=32).save(
        folder / "dtd.task.safetensors"
    )
    said = _refusal(capsys, folder, f"--devkit={kit}", f"--data_dir={prepared}")
    assert "Task 'dtd' was not trained on the decathlon's set: it has 3 classes" in said
