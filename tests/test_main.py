"""The commands on task packs."""

import dataclasses
import gzip
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from piggyback_tf.__main__ import main
from piggyback_tf.commands.answers import UsageError
from piggyback_tf.evaluation.answers import ANSWERS, read_answers
from piggyback_tf.packs import TaskPack
from piggyback_tf.quiet import CHATTER
from tests.packs.helpers import make_pack, pack_of, save_good_looking_pack, trained_model
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
    "report",
    "backbones",
]
CLASSES = ["cat", "dog", "emu"]


@pytest.fixture(name="pack")
def _pack(tmp_path):
    return save_good_looking_pack(tmp_path)


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
        (["predict", "PACK", "/nothing.png", "/none.png"], "none of these files: '/nothing.png', '/none.png'."),
        (["predict", "PACK", "/proc/self/attr"], "The folder '/proc/self/attr' has no image files."),
        (["predict", "PACK", "/photos/Thumbs.db"], "There are no images among '/photos/Thumbs.db'."),
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


def test_evaluate_keeps_answers_for_the_report(trained, capsys, tmp_path, monkeypatch):
    folder, _ = trained
    pack = shutil.copy(folder / "colours.task.safetensors", tmp_path)
    data = f"--data=folder:{folder / 'data'}"
    assert main(["evaluate", pack, data, "--answers", "--json"]) == 0
    measured = json.loads(capsys.readouterr().out)
    assert measured["answers"] == str(tmp_path / "colours.answers1.json.gz")
    found = read_answers(tmp_path / "colours.answers1.json.gz")
    assert (found.by, found.task, found.class_names) == ("evaluate", "colours", ["emu", "cat", "dog"])
    # In the pack's order of classes, which is not that of the folder.
    assert found.columns["truth"] == [1] * 4 + [2] * 4 + [0] * 4
    wrong = np.not_equal(found.columns["truth"], found.columns["answer"])
    assert 100 * wrong.mean() == pytest.approx(measured["top1_error"])
    page = str(tmp_path / "page.html")
    assert main(["report", pack, f"--output={page}", "--json"]) == 0
    (one,) = json.loads(capsys.readouterr().out)["tasks"]
    assert (one["wrong_images"], one["shown_images"]) == (wrong.sum(), wrong.sum())
    with monkeypatch.context() as without:
        without.delitem(ANSWERS._entries, "class")
        assert main(["evaluate", pack, data, "--answers"]) == 2
        assert "of which no answers are recorded in this version" in capsys.readouterr().err
    # Those of a run stay, and those of before are written anew.
    assert main(["evaluate", pack, data, "--answers"]) == 0
    path = tmp_path / "colours.answers1.json.gz"
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()).replace(b'"by":"evaluate"', b'"by":"train"')))
    capsys.readouterr()
    assert main(["evaluate", pack, data, "--answers"]) == 2
    assert "has the answers that the run of the pack recorded" in capsys.readouterr().err


def test_photos_in_heic_in_a_folder_are_not_passed_over(trained, capsys, tmp_path):
    folder, _ = trained
    shutil.copy(folder / "data/test/dog/2.png", tmp_path / "a.png")
    (tmp_path / "IMG_1.HEIC").write_bytes(b"\0\0\0\x18ftypheic" + bytes(12))
    assert main(["predict", str(folder / "colours.task.safetensors"), str(tmp_path)]) == 2
    said = "".join(capsys.readouterr())
    assert "a.png" in said and "IMG_1.HEIC" in said and "it is a photo in HEIC" in said


@pytest.mark.parametrize("command", ["merge", "convert"])
def test_a_file_is_replaced_only_if_asked(command, trained, tmp_path, capsys):
    folder, _ = trained
    output = tmp_path / "precious.keras"
    output.write_bytes(b"mine")
    arguments = [command, str(folder / "colours.task.safetensors"), f"--output={output}"]
    assert main(arguments) == 2
    assert "this file is there already" in capsys.readouterr().err
    assert output.read_bytes() == b"mine"
    assert main([*arguments, "--overwrite"]) == 0
    assert output.stat().st_size > 4


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


def test_evaluate_names_all_broken_images_of_its_split_and_no_other(trained, capsys, tmp_path):
    folder, _ = trained
    shutil.copytree(folder / "data", tmp_path / "data")
    arguments = ["evaluate", str(folder / "colours.task.safetensors"), f"--data=folder:{tmp_path / 'data'}"]
    # What lies among the training images neither stops it nor hides what is wrong with the test images.
    (tmp_path / "data/train/dog/notes.pdf").write_text("x")
    assert main(arguments) == 0
    assert capsys.readouterr().err == ""
    broken = [tmp_path / "data/test/dog/2.png", tmp_path / "data/test/emu/0.png"]
    for path in broken:
        path.write_bytes(path.read_bytes()[:50])
    for also in ([], [tmp_path / "data/test/cat/movie.mp4"]):
        for path in also:
            path.write_text("x")
        assert main(arguments) == 2
        output = capsys.readouterr()
        assert f"{2 + len(also)} files of folder:{tmp_path / 'data'} cannot be used" in output.err
        assert all(str(path) in output.err for path in [*broken, *also])
        assert ("notes.pdf" in output.err, output.out) == (False, "")
    assert main([*arguments, "--skip_broken_images"]) == 0
    assert "10 (3 broken left out)" in capsys.readouterr().out


def test_evaluate_says_that_images_are_not_those_of_the_training(trained, capsys, tmp_path):
    folder, _ = trained
    shutil.copytree(folder / "data", tmp_path / "data")
    pack = shutil.copy(folder / "colours.task.safetensors", tmp_path)
    arguments = ["evaluate", pack, f"--data=folder:{tmp_path / 'data'}"]
    # As a run leaves it.
    assert main([*arguments, "--answers"]) == 0
    answers = tmp_path / "colours.answers1.json.gz"
    content = gzip.decompress(answers.read_bytes())
    image = tmp_path / "data/test/dog/2.png"
    image.write_bytes(image.read_bytes() + b"more")
    for by, said in (("evaluate", ""), ("train", "1 of 12 have other names, or other sizes in bytes.")):
        answers.write_bytes(gzip.compress(content.replace(b'"by":"evaluate"', f'"by":"{by}"'.encode())))
        capsys.readouterr()
        assert main(arguments) == 0
        assert capsys.readouterr().err.endswith(f"test images that the training measured: {said}\n" if said else "")
    image.unlink()
    assert main(arguments) == 0
    assert "test images that the training measured: there were 12, and now there are 11." in capsys.readouterr().err


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


def test_predict_takes_what_a_pattern_of_the_shell_names(trained, capsys, tmp_path):
    folder, _ = trained
    photos, pack = tmp_path / "photos", str(folder / "colours.task.safetensors")
    (photos / "@eaDir").mkdir(parents=True)
    (photos / "more" / "@eaDir").mkdir(parents=True)
    source = folder / "data/test/cat/0.png"
    images = [photos / "a.png", photos / "more" / "b.png"]
    for path in (*images, photos / "more" / "@eaDir" / "b.png"):
        path.write_bytes(source.read_bytes())
    (photos / "Thumbs.db").write_bytes(b"no image")
    (photos / "more" / "notes.txt").write_text("no image")
    for named in (sorted(photos.iterdir()), [photos]):
        assert main(["predict", pack, *map(str, named), "--top_k=1"]) == 0
        output = capsys.readouterr()
        assert output.out.splitlines()[::2] == list(map(str, images))
        # What is named itself is left out with a word.
        assert [line.partition(": ")[2].partition(" is")[0] for line in output.err.splitlines()] == [
            repr(str(path)) for path in named if path.name in ("@eaDir", "Thumbs.db")
        ]
    # A file that is not there costs the others no answer.
    named = [str(images[0]), str(tmp_path / "none.png"), str(images[1])]
    assert main(["predict", pack, *named, "--json"]) == 2
    output = capsys.readouterr()
    answers = json.loads(output.out)
    assert [answer["image"] for answer in answers] == named
    assert answers[1] == {"image": named[1], "error": f"There is no image file {named[1]!r}."}
    assert answers[0]["classes"] == answers[2]["classes"] != []
    assert answers[1]["error"] in output.err


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

    from piggyback_tf.commands.evaluate import _class_numbers

    here, mac = "h\u00e4user", "ha\u0308user"
    pack = make_pack(class_names=["cat", here, "dog"])
    data = SimpleNamespace(class_names=("cat", "dog", mac), spec="folder:photos")
    assert _class_numbers(data, pack).tolist() == [0, 2, 1]
    # Both in one pack: each is itself.
    pack = make_pack(class_names=["cat", here, mac])
    data.class_names = (here, mac)
    assert _class_numbers(data, pack).tolist() == [1, 2]
    data.class_names = ("cat", "house")
    with pytest.raises(UsageError, match="have 1 of 2 classes that task 'birds' does not know, such as 'house'"):
        _class_numbers(data, pack)
