"""The code in the documentation works as it stands there."""

import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import constriction
import keras
import numpy as np
import pytest
from PIL import Image

import piggyback_tf as pb
from piggyback_tf.backbones import load_backbone
from piggyback_tf.backbones.registry import _BACKBONES, list_backbones
from piggyback_tf.data import AUGMENTATIONS, DATA_KINDS, Subset, data_kinds, load_data, make_dataset
from piggyback_tf.methods import METHODS
from piggyback_tf.packs import TaskBank, TaskPack
from piggyback_tf.packs.codec import CODECS
from piggyback_tf.problems import PROBLEMS
from piggyback_tf.settings import CONFIGS, RunConfig
from piggyback_tf.targets import TARGETS
from piggyback_tf.training import InputConfig, TrainConfig, train_task
from tests.packs.helpers import make_pack, structured_pack

ROOT = Path(__file__).resolve().parent.parent
REGISTRIES = (METHODS, CONFIGS, _BACKBONES, DATA_KINDS, AUGMENTATIONS, PROBLEMS)


def _code(file: str, heading: str) -> str:
    """Returns the Python blocks of one section of a document, each a file of its own, as one."""
    section = (ROOT / file).read_text().split(f"\n## {heading}\n")[1].split("\n## ")[0]
    blocks = re.findall(r"^```python\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    assert blocks
    return "".join(blocks)


@pytest.fixture(autouse=True)
def _registries():
    """What the examples register is gone afterwards."""
    # What is imported on first use must not look like an example.
    list_backbones()
    data_kinds()
    before, targets = [dict(registry._entries) for registry in REGISTRIES], dict(TARGETS)
    yield
    TARGETS.clear()
    TARGETS.update(targets)
    for registry, entries in zip(REGISTRIES, before, strict=True):
        registry._entries.clear()
        registry._entries.update(entries)


def _run(heading: str) -> None:
    # What one block imports from the file of another is in the same names already.
    code = _code("CONTRIBUTING.md", heading).replace("from piggyback_tf.settings.methods.norm_copy import", "# ")
    exec(compile(code, "CONTRIBUTING.md", "exec"), {"__name__": "example"})


def test_help_names_every_kind_of_data():
    (data,) = [field for field in dataclasses.fields(RunConfig) if field.name == "data"]
    assert [kind for kind in data_kinds() if f"{kind}:" not in data.metadata["help"] and kind != "digits"] == []


def test_the_example_of_a_method():
    _run("Adding a method")
    backbone = load_backbone("shapesnet", weights="random")
    method = METHODS["norm_copy"](METHODS["norm_copy"].Config(head_init="glorot"))
    model = method.build(backbone, 3)
    groups = method.groups(model)
    assert {name: len(members) for name, members in groups.items()} == {"norm": 16, "head": 2}
    for variable in groups["norm"]:
        variable.assign(variable + 1.0)
    pack = TaskPack.from_model(
        model,
        task="t",
        class_names=["a", "b", "c"],
        backbone=backbone,
        method="norm_copy",
        eval_augment="resize(32,32)",
    )
    assert (len(pack.norm), len(pack.masks)) == (32, 0)
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    expected = keras.ops.softmax(model(images, training=False))
    np.testing.assert_allclose(TaskBank(backbone).add(pack).predict(images, task="t"), expected, atol=1e-6)


def test_the_example_of_a_backbone():
    _run("Adding a backbone")
    backbone = load_backbone("twonet")
    assert (backbone.image_size, backbone.feature_dim, backbone.weights) == (32, 32, "random")
    assert METHODS["piggyback"]().build(backbone, 4).output_shape == (None, 4)


def test_the_examples_of_data_and_augmentation(tmp_path):
    _run("Adding a kind of data set")
    _run("Adding an augmentation")
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), dtype=np.uint8)
    np.savez(tmp_path / "some.npz", images=images, labels=np.arange(40) % 2)
    data = load_data(f"npz:{tmp_path / 'some.npz'}", val_fraction=0.25)
    assert (data.name, data.class_names, len(data.train), len(data.validation)) == ("some", ("0", "1"), 30, 10)
    batch, _ = next(iter(make_dataset(data.train, "grey|resize(16,16)|flip", batch_size=30, training=True)))
    assert batch.shape == (30, 16, 16, 3)
    assert np.ptp(batch.numpy(), axis=-1).max() == 0 < np.ptp(batch.numpy())
    with pytest.raises(ValueError, match="no file"):
        load_data("npz:nothing")


def test_the_example_of_a_problem(monkeypatch):
    monkeypatch.setattr(CONFIGS["piggyback"], "problems", CONFIGS["piggyback"].problems)
    code = _code("docs/problems.md", "Adding a problem")
    exec(compile(code, "problems.md", "exec"), {"__name__": "example"})
    backbone, data = load_backbone("shapesnet"), load_data("digits:0-4")
    data = dataclasses.replace(data, train=Subset(data.train, range(160)), target="rank")
    config = TrainConfig(epochs=1, batch_size=16, head_lr=0.02)
    inputs = InputConfig(augment_train="resize(32,32)", augment_eval="resize(32,32)")
    trained = train_task(METHODS["piggyback"](), backbone, data, config, inputs)
    assert trained.history["val_error"][0] < 30
    pack = TaskPack.from_model(
        trained.model,
        task="t",
        class_names=list(data.class_names),
        backbone=backbone,
        method="piggyback",
        eval_augment="resize(32,32)",
        problem="rank",
    )
    images, labels = next(iter(make_dataset(data.test, "resize(32,32)", batch_size=400, training=False)))
    found = TaskBank(backbone).add(pack).predict(images, task="t")
    error = trained.problem.measured(trained.problem.count(found, labels.numpy()))
    assert found.shape == labels.shape and error["rank_error_low"] < error["rank_error"] < 30
    with pytest.raises(ValueError, match="has a rank for each image, which method finetune does not learn: it has"):
        train_task(METHODS["finetune"](), backbone, data, config, inputs)


def test_the_table_of_methods_and_problems_is_true():
    text = (ROOT / "docs" / "problems.md").read_text()
    rows = [[cell.strip(" `") for cell in line.strip("|").split("|")] for line in text.splitlines() if "| " in line]
    table = {row[0]: dict(zip(PROBLEMS, row[1:], strict=True)) for row in rows if row[0] in CONFIGS}
    expected = {
        name: {
            problem: "yes" if problem in config.problems else config.why_not.get(problem, "not tried")
            for problem in PROBLEMS
        }
        for name, config in CONFIGS.items()
    }
    assert table == expected


@pytest.mark.parametrize("heading", ["fit, with callbacks", "GradientTape"])
def test_training_loops_of_ones_own(heading, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = _code("docs/own-loops.md", heading)
    assert '"resize(32,32)", 8\n' in code
    names = {"__name__": "example"}
    # Fewer epochs than a reader takes.
    exec(compile(code.replace('"resize(32,32)", 8\n', '"resize(32,32)", 2\n'), "own-loops.md", "exec"), names)
    data, pack = names["data"], names["pack"]
    assert (pack.task, pack.method, pack.mask_kind) == ("digits", "own", "binary")
    assert len(pack.masks) == 8
    assert 0 < pack.zeros_total < 0.5
    test = make_dataset(data.test, pack.eval_augment, batch_size=len(data.test), training=False)
    images, labels = next(iter(test))
    found = names["bank"].predict(images, task="digits")
    assert np.mean(np.argmax(found, axis=1) == labels) > 0.7
    # The pack is what was trained.
    logits = keras.ops.softmax(names["model"](images, training=False))
    np.testing.assert_allclose(found, logits, atol=1e-5)


def test_all_augmentations_are_explained():
    text = (ROOT / "docs" / "commands.md").read_text()
    assert [name for name in AUGMENTATIONS if f"\n| `{name}" not in text] == []


@pytest.mark.slow
def test_a_training_on_a_network_of_ones_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "example"}
    exec(
        compile(_code("docs/own-loops.md", "train, from Python, on a network of your own"), "own-loops.md", "exec"),
        names,
    )
    assert names["pack"].zeros_total > 0
    assert min(names["trained"].history["val_error"]) < 5
    assert names["bank"].names == ["digits"]


PACKS = {
    **{f"{kind} {codec}": (structured_pack(kind), codec) for kind in ("binary", "ternary") for codec in CODECS},
    "random": (make_pack("ternary"), "best"),
    "none": (make_pack("none"), "best"),
    "structure": (make_pack(base_structure="ef" * 32, base_answers=[0.5, None] * 8), "best"),
    "float16": (structured_pack(norm={}).astype("float16"), "best"),
}


@pytest.mark.parametrize("name", PACKS)
def test_a_pack_is_read_without_the_package(name, tmp_path):
    pack, codec = PACKS[name]
    pack.save(tmp_path / "birds.task.safetensors", codec)
    code = _code("docs/pack-format.md", "Reading a pack without this package")
    code += "\nassert not {'tensorflow', 'piggyback_tf'} & set(sys.modules)\n"
    code += "np.savez(sys.argv[2], **{path.replace('/', '.'): mask for path, mask in masks.items()})\n"
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "birds.task.safetensors"), str(tmp_path / "masks.npz")],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("birds on small abababababab\n")
    with np.load(tmp_path / "masks.npz") as masks:
        assert len(masks.files) == len(pack.masks)
        for path in pack.masks:
            np.testing.assert_array_equal(masks[path.replace("/", ".")], pack.mask(path))
            assert f"{path} {list(pack.mask(path).shape)} {pack.zeros[path]:.2%} zeros\n" in done.stdout


def test_the_entropy_coder_is_the_documented_one():
    names = {}
    exec(compile(_code("docs/pack-format.md", "Entropy coder"), "pack-format.md", "exec"), names)
    rng = np.random.default_rng(0)
    library = constriction.stream
    for keep, negate in [(1, 1), (65534, 65534), (3, 65000), *rng.integers(1, 65535, (60, 2)).tolist()]:
        # As the decoder takes them, one by one: values of two and of three kinds.
        binary = [(65536 - keep) * 65536, keep * 65536]
        ternary = [(65536 - keep) * 65536, keep * (65536 - negate), keep * negate]
        count, parts = int(rng.integers(0, 200)), []
        for shares in (binary, ternary):
            chances = np.array(shares) / 2.0**32
            model = library.model.Categorical(chances, perfect=False, lazy=False)
            parts.append((model, names["starts_of_values"](shares), rng.choice(len(shares), count, p=chances)))
        coder = library.stack.AnsCoder()
        for model, _, symbols in reversed(parts):
            coder.encode_reverse(symbols.astype(np.int32), model)
        reader = names["Ans"](coder.get_compressed())
        for _, starts, symbols in parts:
            assert [reader.decode(starts) for _ in symbols] == symbols.tolist()
        assert reader.is_empty()


def test_the_example_of_segments(tmp_path, monkeypatch):
    for split, count in (("train", 4), ("val", 2)):
        for kind in ("images", "labels"):
            (tmp_path / "roads" / split / kind).mkdir(parents=True)
        for number in range(count):
            labels = np.zeros((40, 56), np.uint8)
            labels[5 : 20 + number, 10:30] = 1
            Image.fromarray(labels).save(tmp_path / f"roads/{split}/labels/{number}.png")
            image = np.repeat(labels[..., None] * 200, 3, axis=2)
            Image.fromarray(image).save(tmp_path / f"roads/{split}/images/{number}.png")
    (tmp_path / "roads/classes.txt").write_text("0 ground\n1 road\n")
    monkeypatch.chdir(tmp_path)
    names = {}
    code = _code("docs/segmentation.md", "Training in Python").replace("epochs=20", "epochs=2")
    exec(compile(code, "segmentation.md", "exec"), names)
    assert names["trained"].model.output_shape == (None, 40, 56, 2)
    pack = pb.TaskPack.from_model(
        names["trained"].model,
        task="roads",
        class_names=["ground", "road"],
        backbone=names["backbone"],
        method="piggyback",
        eval_augment="resize(40,56)",
        problem="map",
    )
    (tmp_path / "runs/roads").mkdir(parents=True)
    pack.save(tmp_path / "runs/roads/roads.task.safetensors")
    names["images"] = np.zeros((2, 40, 56, 3), np.uint8)
    code = _code("docs/segmentation.md", "A bank with tasks of both kinds")
    code = code.replace('.add("runs/photos/photos.task.safetensors")', "").replace("resize(160,224)", "resize(40,56)")
    exec(compile(code, "segmentation.md", "exec"), names)
    assert names["labels"].shape == (2, 40, 56) and names["street"].shape == (720, 960)
