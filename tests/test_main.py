"""The commands on task packs."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from piggyback_tf.__main__ import main
from piggyback_tf.commands.answers import UsageError
from piggyback_tf.packs import TaskPack
from piggyback_tf.packs.codec import encode
from piggyback_tf.quiet import CHATTER
from tests.packs.helpers import make_pack, pack_of, trained_model
from tests.run_command import run_command

COMMANDS = [
    "evaluate",
    "predict",
    "inspect",
    "compare",
    "verify",
    "convert",
    "merge",
    "push",
    "pull",
    "table",
    "backbones",
]
CLASSES = ["cat", "dog", "emu"]


@pytest.fixture(name="pack")
def _pack(tmp_path):
    """The file of a pack on a base that can be loaded by its name, which no check before that can tell from good."""
    path = tmp_path / "birds.task.safetensors"
    make_pack(base_name="mobilenet_v2", base_weights="random", image_size=32, eval_augment="resize(32,32)").save(path)
    return path


@pytest.fixture(scope="module", name="backbone")
def _backbone():
    from piggyback_tf.backbones import load_backbone

    return load_backbone("shapesnet", weights="random", seed=3)


@pytest.fixture(scope="module", name="trained")
def _trained(tmp_path_factory, backbone):
    """A task of three classes on random weights: images in colours, and the model and file of a pack."""
    folder = tmp_path_factory.mktemp("trained")
    rng = np.random.default_rng(0)
    for split, count in (("train", 6), ("test", 4)):
        for label, name in enumerate(CLASSES):
            (folder / "data" / split / name).mkdir(parents=True)
            for index in range(count):
                pixels = rng.integers(0, 120, (32, 32, 3))
                pixels[..., label] += 130
                Image.fromarray(pixels.astype(np.uint8)).save(folder / "data" / split / name / f"{index}.png")
    model = trained_model(backbone)
    # A head that the three colours go apart on, with the classes in another order than in the folder.
    names = ["emu", "cat", "dog"]
    images = np.stack([np.full((32, 32, 3), 60, "float32")] * 3)
    for place, name in enumerate(names):
        images[place, ..., CLASSES.index(name)] += 130
    features = _features(model)(images)
    features = np.asarray(features) - np.mean(features, axis=0)
    kernel = features.T / (features**2).sum(axis=1)
    model.get_layer("head").kernel.assign(20 * kernel)
    model.get_layer("head").bias.assign(-20 * (np.mean(_features(model)(images), axis=0) @ kernel))
    pack = pack_of(model, backbone, task="colours")
    pack.class_names = names
    pack.settings = {"seed": 3, "val_fraction": 0.34}
    pack.errors = {"test": {"top1_error": 25.0, "top1_error_low": 9.0, "top1_error_high": 53.0, "images": 12}}
    pack.save(folder / "colours.task.safetensors")
    return folder, model


def _rows(output):
    return {name.strip(): value.strip() for name, _, value in (line.partition("  ") for line in output.splitlines())}


def _features(model):
    import keras

    return keras.Model(model.input, model.get_layer("head").input)


# -------------------------------------------------------------------------------------------------- without TensorFlow


@pytest.mark.parametrize("arguments", [["-h"], *([command, "--help"] for command in COMMANDS)])
def test_help_needs_no_tensorflow(arguments):
    status, lines, errors, loaded = run_command(*arguments)
    assert (status, errors, loaded) == (0, "", False)
    assert lines[0].startswith("usage: python -m piggyback_tf")


def test_inspect_needs_no_tensorflow(tmp_path, pack):
    make_pack("none", task="plain", errors={}, norm={}).save(tmp_path / "plain")
    make_pack("ternary", task="signs", norm={}).save(tmp_path / "signs")
    status, lines, errors, loaded = run_command("inspect", pack, tmp_path / "plain", tmp_path / "signs", "--layers")
    assert (status, errors, loaded) == (0, "", False)
    birds, plain, signs = (line.split("  ") for line in lines[2:5])
    birds, plain, signs = ([cell.strip() for cell in row if cell.strip()] for row in (birds, plain, signs))
    zeros = f"{100 * make_pack().zeros_total:.2f} %"
    size = f"{pack.stat().st_size / 1000:.1f} kB"
    assert birds == [
        "birds", "piggyback", "mobilenet_v2 (random)", "ab" * 6, "binary + norm", "3", "12.50 [3.50, 36.00]", size,
        "1.031", zeros,
    ]  # fmt: skip
    assert plain[4:7] == ["none", "3", "-"]
    assert plain[8:] == ["-", "-"]
    coded = encode(make_pack("ternary", norm={}).masks, "ternary").nbytes
    assert (signs[4], signs[8]) == ("ternary", f"{8 * coded / 163:.3f}")
    assert lines[6] == "birds:"
    assert lines[9].split()[:3] == ["conv/kernel", "3x3x3x5", "135"]
    assert "no masks" in lines


def test_inspect_prints_all_that_is_in_a_pack(tmp_path):
    path = tmp_path / "birds"
    test = {"top1_error": 12.5, "top1_error_low": 3.5, "top1_error_high": 36.0, "images": 1600}
    validation = {"top1_error": 20.0, "top5_error": 2.0, "top5_error_low": 1.0, "top5_error_high": 4.0, "images": 9}
    make_pack(
        errors={"test": test, "validation": validation},
        settings={"epochs": 3, "mask_init": "constant", "patterns": ["*"], "note": "tüvö", "data_dir": None},
        versions={"keras": "3.15.1", "numpy": "2.1.0"},
    ).save(path)
    status, lines, errors, loaded = run_command("inspect", "--details", path)
    assert (status, errors, loaded) == (0, "", False)
    assert lines[3:] == [
        "",
        f"{path}:",
        "  format version     3",
        "  task               birds",
        "  created            2026-01-02T03:04:05+00:00",
        "  method             piggyback",
        "  base               small",
        "  base weights       given",
        "  base hash          " + "ab" * 32,
        "  base structure     not recorded",
        "  preprocessing      x / 255",
        "  image size         8x8",
        "  eval augmentation  resize(8,8)",
        "  mask               binary, threshold 0.005",
        "  masked weights     163 in 2 variables",
        "  norm               2 variables of this task",
        "  head               kernel 4x3, bias 3, stored as float32",
        "  classes: 3",
        "    0 'wren', 1 'rook', 2 'tüvö'",
        "  errors % [95 % Wilson score interval]:",
        "    split                     top-1              top-5  images",
        "    ----------  -------------------  -----------------  ------",
        "    test        12.50 [3.50, 36.00]                  -   1,600",
        "    validation                20.00  2.00 [1.00, 4.00]       9",
        "  settings:",
        "    data_dir   null",
        "    epochs     3",
        '    mask_init  "constant"',
        '    note       "tüvö"',
        '    patterns   ["*"]',
        "  package versions:",
        "    keras  3.15.1",
        "    numpy  2.1.0",
    ]


def test_inspect_says_what_a_pack_does_not_hold(tmp_path, capsys):
    make_pack("none", norm={}, errors={}, settings={}, versions={}, eval_augment="").save(tmp_path / "plain")
    assert main(["inspect", "--details", str(tmp_path / "plain")]) == 0
    lines = capsys.readouterr().out.splitlines()
    for line in (
        "  eval augmentation  none",
        "  mask               none",
        "  masked weights     none",
        "  norm               that of the base",
        "  errors: none measured",
        "  settings: none",
        "  package versions: none",
    ):
        assert line in lines


def test_inspect_wraps_classes_between_names_and_shows_no_control_characters(tmp_path, capsys):
    names = [f"kind {index}, with a blank" for index in range(40)] + ["line\nend", "\x1b[31mred", "x" * 200]
    head = {"kernel": np.ones((4, len(names)), "float32"), "bias": np.zeros(len(names), "float32")}
    make_pack(class_names=names, head=head, preprocessing="x\n/ 255").save(tmp_path / "pack")
    assert main(["inspect", "--details", str(tmp_path / "pack")]) == 0
    lines = capsys.readouterr().out.splitlines()
    start = lines.index("  classes: 43") + 1
    listed = lines[start : lines.index("  errors % [95 % Wilson score interval]:")]
    assert " ".join(line.strip() for line in listed) == ", ".join(f"{i} {name!r}" for i, name in enumerate(names))
    assert all(len(line) <= 100 for line in listed[:-1])
    assert listed[-1] == f"    42 {'x' * 200!r}"
    # As full as they can be.
    assert all(len(line) > 60 for line in listed[:-2])
    assert "  preprocessing      'x\\n/ 255'" in lines


def test_both_lists_of_inspect_together(tmp_path, capsys):
    for task in ("birds", "fish"):
        make_pack(task=task).save(tmp_path / task)
    assert main(["inspect", "--details", "--layers", str(tmp_path / "birds"), str(tmp_path / "fish")]) == 0
    lines = capsys.readouterr().out.splitlines()
    places = [lines.index(line) for line in (f"{tmp_path}/birds:", "birds:", f"{tmp_path}/fish:", "fish:")]
    assert places == sorted(places)


def test_inspect_names_the_broken_and_shows_the_others(tmp_path, pack):
    (tmp_path / "broken").write_bytes(pack.read_bytes()[:-1])
    status, lines, errors, _ = run_command("inspect", tmp_path / "broken", pack, tmp_path / "nothing")
    assert status == 2
    assert len(lines) == 3
    assert lines[2].startswith("birds")
    assert [line.split(":")[0] for line in errors.splitlines()] == ["python -m piggyback_tf inspect"] * 2
    assert f"{str(tmp_path / 'broken')!r} should be" in errors
    assert f"{str(tmp_path / 'nothing')!r}: No such file or directory." in errors


def test_backbones_are_listed_by_pattern_without_tensorflow():
    assert run_command("backbones", "shapes*") == (0, ["shapesnet"], "", False)
    names = run_command("backbones")[1]
    assert {"shapesnet", "resnet50", "vgg16"} < set(names)


def test_names_that_the_terminal_cannot_show(tmp_path):
    make_pack(task="vögel", base_name="\x1b[31mred").save(tmp_path / "pack")
    status, lines, errors, _ = run_command("inspect", tmp_path / "pack", PYTHONIOENCODING="ascii")
    assert (status, errors) == (0, "")
    assert lines[2].startswith("v\\xf6gel  piggyback  '\\x1b[31mred (given)'  ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "Unknown command 'trian'. Did you mean 'train'? Valid: backbones, cache, compare, convert, "),
        (["evaluate", "PACK"], "The following arguments are required: --data"),
        (["evaluate", "PACK", "--dat=digits"], "The following arguments are required: --data"),
        (["evaluate", "PACK", "--data=digits", "--split=dev"], "invalid choice: 'dev'"),
        (["evaluate", "PACK", "--data=digits", "--batch_size=0"], "must be an integer of at least 1, not '0'"),
        (["evaluate", "nothing", "--data=digits"], "'nothing': No such file or directory."),
        (["evaluate", __file__, "--data=digits"], "is no task pack"),
        (["evaluate", "PACK", "--data=digit"], "Unknown data kind 'digit'. Did you mean 'digits'?"),
        (["evaluate", "PACK", "--data=folder:/nothing"], "/nothing"),
        (["evaluate", "PACK", "--data=digits"], "have 10 of 10 classes that task 'birds' does not know"),
        (["evaluate", "PACK", "--data=digits", "--split=validation"], "does not say how its validation images"),
        (["evaluate", "PACK", "--data=digits", "--backbone=mobilenet"], "does not know, such as"),
        (["evaluate", "PACK", "--data=digits", "--backbone=mobilnet"], "Unknown backbone 'mobilnet'. Did you mean"),
        (
            ["evaluate", "PACK", "--data=digits", "--weights=/nothing.h5"],
            "--weights=/nothing.h5: there is no such file",
        ),
        (["predict", "PACK"], "The following arguments are required: IMAGE"),
        (["predict", "PACK", "/nothing.png"], "There is no image file '/nothing.png'."),
        (["predict", "PACK", "/tmp/"], "'/tmp/' is a folder. Name the image files in it, such as /tmp/*."),
        (["predict", "PACK", __file__, "--top_k=x"], "must be an integer of at least 1, not 'x'"),
        (["inspect"], "The following arguments are required: PACK"),
        (["backbones", "nothing*"], "No backbone matches 'nothing*'. All: "),
    ],
)
def test_wrong_arguments_are_answered_before_tensorflow_is_loaded(pack, arguments, message):
    status, lines, errors, loaded = run_command(*(pack if argument == "PACK" else argument for argument in arguments))
    assert (status, lines, loaded) == (2, [], False)
    assert message in errors
    assert "Traceback" not in errors


@pytest.mark.parametrize(
    ("base", "message"),
    [
        (
            {"base_weights": "mine.weights.h5"},
            "weights from the file 'mine.weights.h5'; say where it is: --weights=PATH",
        ),
        ({"base_name": "my_net"}, "a base of its own that cannot be loaded by its name"),
    ],
)
def test_bases_that_a_pack_alone_cannot_find(tmp_path, capsys, base, message):
    make_pack(**{"base_name": "mobilenet_v2"} | base).save(tmp_path / "pack")
    for command in (["evaluate", "--data=digits"], ["predict", __file__]):
        assert main([command[0], str(tmp_path / "pack"), *command[1:]]) == 2
        assert message in capsys.readouterr().err


# ----------------------------------------------------------------------------------------------------- with TensorFlow


def test_evaluate(trained, capsys):
    folder, model = trained
    arguments = [str(folder / "colours.task.safetensors"), f"--data=folder:{folder / 'data'}"]
    assert main(["evaluate", *arguments, "--batch_size=5"]) == 0
    rows = _rows(capsys.readouterr().out)
    images = np.stack(
        [np.asarray(Image.open(folder / "data/test" / name / f"{i}.png")) for name in CLASSES for i in range(4)]
    )
    guesses = np.argmax(model(images, training=False), axis=1)
    expected = 100 * np.mean(guesses != np.repeat([1, 2, 0], 4))
    # Were the classes taken by place instead of by name, all would be wrong.
    assert expected < 40
    assert rows["task"] == "colours"
    assert rows["images"] == "12"
    assert rows["top-1 error %"].startswith(f"{expected:.2f} [")
    assert rows["as of training"] == "25.00 [9.00, 53.00]"
    assert "top-5 error %" not in rows
    # Of six images a class two were drawn for validation, as the pack's settings say.
    for split, count in (("train", "12"), ("validation", "6")):
        assert main(["evaluate", *arguments, f"--split={split}"]) == 0
        output = capsys.readouterr()
        assert (_rows(output.out)["images"], output.err) == (count, "")


def test_evaluate_says_so_if_images_looked_other_in_training(trained, capsys, tmp_path):
    folder, _ = trained
    pack = TaskPack.load(folder / "colours.task.safetensors")
    for versions in ({"keras": "3.15.1"}, {**pack.versions, "pixels": "1"}):
        dataclasses.replace(pack, versions=versions).save(tmp_path / "old")
        assert main(["evaluate", str(tmp_path / "old"), f"--data=folder:{folder / 'data'}"]) == 0
        output = capsys.readouterr()
        assert _rows(output.out)["images"] == "12"
        assert "Task 'colours' was trained when image files were decoded in another way" in output.err
        assert output.err.count("\n") == 1


def test_evaluate_names_broken_images_or_counts_them(trained, capsys, tmp_path):
    import shutil

    folder, _ = trained
    shutil.copytree(folder / "data", tmp_path / "data")
    broken = tmp_path / "data/test/dog/2.png"
    broken.write_bytes(broken.read_bytes()[:50])
    arguments = ["evaluate", str(folder / "colours.task.safetensors"), f"--data=folder:{tmp_path / 'data'}"]
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert str(broken) in error
    assert error.count("\n") == 1
    assert main([*arguments, "--skip_broken_images"]) == 0
    assert "11 (1 broken left out)" in capsys.readouterr().out


def test_predict(trained, capsys, tmp_path):
    folder, model = trained
    (tmp_path / "note.png").write_text("no image")
    images = [str(folder / "data/test" / name / "0.png") for name in CLASSES]
    # An image that is named again is answered again, within a batch and beyond it.
    images = [images[0], *images, images[0]]
    arguments = ["predict", str(folder / "colours.task.safetensors"), images[0], str(tmp_path / "note.png")]
    assert main([*arguments, *images[1:], "--top_k=2", "--batch_size=3"]) == 2
    output = capsys.readouterr()
    assert output.err.startswith(f"python -m piggyback_tf predict: Broken image {str(tmp_path / 'note.png')!r}")
    logits = model(np.stack([np.asarray(Image.open(path)) for path in images]), training=False)
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    lines = output.out.splitlines()
    assert lines[::3] == images
    for path, row in enumerate(probabilities):
        for place, line in zip(np.argsort(-row)[:2], lines[3 * path + 1 : 3 * path + 3], strict=True):
            assert line == f"  {100 * row[place]:6.2f} %  {['emu', 'cat', 'dog'][place]}"


def test_another_base_is_refused(trained, capsys):
    folder, _ = trained
    image = str(folder / "data/test/cat/0.png")
    arguments = ["predict", str(folder / "colours.task.safetensors"), image]
    assert main([*arguments, "--backbone=mobilenet"]) == 2
    assert "was trained on another base: 'shapesnet' with weights 'random' and hash" in capsys.readouterr().err
    (folder / "wrong.weights.h5").write_bytes(b"nothing")
    assert main([*arguments, f"--weights={folder / 'wrong.weights.h5'}"]) == 2
    error = capsys.readouterr().err
    assert "wrong.weights.h5" in error
    assert error.count("\n") == 1


def test_the_weights_of_a_file(trained, backbone, tmp_path, capsys):
    from piggyback_tf.backbones import load_backbone

    folder, _ = trained
    backbone.model.save(tmp_path / "base.keras")
    weights = tmp_path / "base.keras"
    assert load_backbone("shapesnet", weights=weights).hash == backbone.hash
    image = str(folder / "data/test/cat/0.png")
    assert main(["predict", str(folder / "colours.task.safetensors"), image, f"--weights={weights}"]) == 0
    assert image in capsys.readouterr().out


def test_tensorflow_is_quiet(trained):
    folder, _ = trained
    image = folder / "data/test/cat/0.png"
    status, lines, errors, loaded = run_command(
        "predict", folder / "colours.task.safetensors", image, TF_CPP_MIN_LOG_LEVEL="2"
    )
    assert (status, errors, loaded) == (0, "", True)
    assert lines[0] == str(image)
    assert len(lines) == 4


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("I0000 00:00:1795244842.370799    8144 port.cc:153] oneDNN custom operations are on.", False),
        ("WARNING: All log messages before absl::InitializeLog() is called are written to STDERR", False),
        ("E0000 00:00:1795244853.240388    8144 cuda_platform.cc:52] failed call to cuInit: INTERNAL", False),
        ("E0000 00:00:1795896143.524073 13919 util.cc:131] oneDNN supports DT_UINT8 only on platforms with", False),
        ("INFO: Created TensorFlow Lite XNNPACK delegate for CPU.", False),
        ("E0000 00:00:1795244853.240388    8144 other.cc:52] something is wrong", True),
        ("W0000 00:00:1795244853.240388    8144 gpu_device.cc:2342] Cannot dlopen some GPU libraries.", True),
        ("ImportError: libfoo.so", True),
    ],
)
def test_other_messages_of_tensorflow_are_shown(line, shown):
    assert (CHATTER.match(line) is None) == shown


def test_classes_are_the_same_if_their_names_look_the_same():
    from types import SimpleNamespace

    from piggyback_tf.commands.evaluate import _label_map

    here, mac = "h\u00e4user", "ha\u0308user"
    pack = make_pack(class_names=["cat", here, "dog"])
    data = SimpleNamespace(class_names=("cat", "dog", mac), spec="folder:photos")
    assert _label_map(data, pack).tolist() == [0, 2, 1]
    # Both in one pack: each is itself.
    pack = make_pack(class_names=["cat", here, mac])
    data.class_names = (here, mac)
    assert _label_map(data, pack).tolist() == [1, 2]
    data.class_names = ("cat", "house")
    with pytest.raises(UsageError, match="have 1 of 2 classes that task 'birds' does not know, such as 'house'"):
        _label_map(data, pack)
