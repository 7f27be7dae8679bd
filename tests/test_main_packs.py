"""The commands that compare, check, convert and merge packs, and packs that are given by URLs."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from piggyback_tf.__main__ import main
from piggyback_tf.packs import TaskBank, TaskPack
from piggyback_tf.packs.compare import MaskOverlap, compare_masks
from piggyback_tf.remote import read_bytes, write_bytes
from tests.packs.helpers import make_pack, pack_of, renamed, trained_model, with_arrays
from tests.run_command import run_command

GOLDEN = Path(__file__).parent / "packs" / "golden"


@pytest.fixture(name="memory")
def _memory():
    """The address of a folder that is no local one, and empty."""
    yield "memory://packs"
    MemoryFileSystem.store.clear()


@pytest.fixture(scope="module", name="backbone")
def _backbone():
    from piggyback_tf.backbones import load_backbone

    return load_backbone("shapesnet", weights="random", seed=5)


@pytest.fixture(scope="module", name="trained")
def _trained(tmp_path_factory, backbone):
    """The model and the file of a task on a base that can be loaded by its name."""
    model = trained_model(backbone, norm="task")
    pack = pack_of(model, backbone)
    pack.settings = {"seed": 5}
    path = tmp_path_factory.mktemp("trained") / "birds.task.safetensors"
    pack.save(path)
    return model, path


def _cells(line):
    return [cell.strip() for cell in line.split("  ") if cell.strip()]


# --------------------------------------------------------------------------------------------------------- inspect


def test_inspect_as_json(tmp_path):
    pack = make_pack("ternary", settings={"seed": 3, "note": "tüvö"})
    pack.save(tmp_path / "signs", codec="bits")
    make_pack("none", norm={}, errors={}).save(tmp_path / "plain")
    (tmp_path / "broken").write_bytes(b"no pack")
    paths = [tmp_path / name for name in ("signs", "plain", "broken")]
    status, lines, errors, loaded = run_command("inspect", "--json", "--layers", *paths)
    assert (status, loaded) == (2, False)
    assert errors.count("\n") == 1
    signs, plain = json.loads("\n".join(lines))
    # The list of keys in docs/commands.md.
    assert signs == {
        "file": str(tmp_path / "signs"),
        "bytes": (tmp_path / "signs").stat().st_size,
        "format_version": 4,
        "content_digest": pack.content_digest(),
        "task": "birds",
        "classes": ["wren", "rook", "tüvö"],
        "created": "2026-01-02T03:04:05+00:00",
        "method": "piggyback",
        "base": {"name": "small", "weights": "given", "hash": "ab" * 32, "structure": None, "answers": None},
        "problem": "class",
        "image_shape": [8, 8],
        "head": {"kind": "dense", "classes": 3},
        "image_size": 8,
        "preprocessing": "x / 255",
        "eval_augment": "resize(8,8)",
        "mask": {
            "kind": "ternary",
            "threshold": 5e-3,
            "weights": 163,
            "zeros": pack.zeros_total,
            "bytes": 42,
            "bits_per_weight": 8 * 42 / 163,
        },
        "norm_variables": 2,
        "parts": [],
        "features": 4,
        "dtype": "float32",
        "errors": {"test": {"top1_error": 12.5, "top1_error_low": 3.5, "top1_error_high": 36.0, "images": 16}},
        "settings": {"seed": 3, "note": "tüvö"},
        "versions": {"keras": "3.15.1"},
        "layers": [
            {"path": "conv/kernel", "shape": [3, 3, 3, 5], "weights": 135, "zeros": pack.zeros["conv/kernel"]},
            {"path": "block/dense/kernel", "shape": [7, 4], "weights": 28, "zeros": pack.zeros["block/dense/kernel"]},
        ],
    }
    assert plain["mask"] == {
        "kind": "none", "threshold": None, "weights": 0, "zeros": None, "bytes": 0, "bits_per_weight": None
    }  # fmt: skip
    assert plain.keys() == signs.keys()
    documented = (Path(__file__).parents[1] / "docs" / "commands.md").read_text()
    for key in [*signs, *signs["mask"]]:
        assert f"`{key}`" in documented


def test_inspect_as_json_without_layers(capsys):
    assert main(["inspect", "--json", str(GOLDEN / "binary.v1.task.safetensors")]) == 0
    (pack,) = json.loads(capsys.readouterr().out)
    assert "layers" not in pack
    assert pack["format_version"] == 1
    assert (pack["mask"]["bytes"], pack["mask"]["weights"]) == (21, 163)


# --------------------------------------------------------------------------------------------------------- compare


def test_compare(tmp_path):
    a, b = make_pack("ternary"), make_pack("ternary", seed=1, task="fish")
    a.save(tmp_path / "a")
    b.save(tmp_path / "b")
    status, lines, errors, loaded = run_command("compare", tmp_path / "a", tmp_path / "b")
    assert (status, errors, loaded) == (0, "", False)
    assert lines[:2] == [f"A  birds  {tmp_path / 'a'}", f"B  fish  {tmp_path / 'b'}"]
    overlaps = compare_masks(a, b)
    overlaps["all"] = MaskOverlap.total(overlaps.values())
    assert [line.split()[0] for line in lines[5:8]] == list(overlaps)
    for line, (path, overlap) in zip(lines[5:8], overlaps.items(), strict=True):
        zeros = (1 - np.array([overlap.both + overlap.only_a, overlap.both + overlap.only_b]) / overlap.weights) * 100
        others = [overlap.neither / overlap.weights, overlap.agreement, overlap.zeros_jaccard]
        others.append(overlap.opposite / overlap.weights)
        numbers = [*zeros, *(100 * value for value in others)]
        assert _cells(line) == [path, str(overlap.weights), *(f"{number:.2f}" for number in numbers)]


def test_compare_what_has_no_masks_or_another_base(tmp_path, capsys):
    for name, pack in {
        "plain": make_pack("none", norm={}),
        "birds": make_pack(),
        "other": make_pack(base_hash="cd" * 32),
    }.items():
        pack.save(tmp_path / name)
    assert main(["compare", str(tmp_path / "plain"), str(tmp_path / "plain")]) == 0
    assert "Neither task has masks." in capsys.readouterr().out
    assert main(["compare", str(tmp_path / "birds"), str(tmp_path / "birds")]) == 0
    output = capsys.readouterr().out
    assert "negated" not in output
    assert _cells(output.splitlines()[-4])[-2:] == ["100.00", "100.00"]
    assert main(["compare", str(tmp_path / "birds"), str(tmp_path / "other")]) == 2
    error = capsys.readouterr().err
    assert "masks can be compared on one base only" in error
    assert error.count("\n") == 1


# --------------------------------------------------------------------------------------------------------- convert


@pytest.mark.parametrize("kind", ["binary", "ternary", "none"])
def test_convert_an_older_version(tmp_path, kind):
    old, new = GOLDEN / f"{kind}.v1.task.safetensors", tmp_path / "new"
    status, lines, errors, loaded = run_command("convert", old, "--output", new)
    assert (status, errors, loaded) == (0, "", False)
    sizes = [path.stat().st_size for path in (old, new)]
    assert lines == [
        f"{old}: {sizes[0]:,} bytes, format version 1, float32",
        f"{new}: {sizes[1]:,} bytes, format version 4, float32, codec best ({100 * sizes[1] / sizes[0]:.1f} %)",
    ]
    assert TaskPack.load(new).content_digest() == TaskPack.load(old).content_digest()
    assert TaskPack.load(new).format_version == 4


def test_convert_codec_and_float16(tmp_path, capsys):
    pack, path = make_pack("ternary"), tmp_path / "pack"
    pack.save(path)
    # In place, as the file is written whole or not at all.
    assert main(["convert", str(path), f"--output={path}", "--codec=static", "--float16", "--overwrite"]) == 0
    assert "The errors in the pack are those that were measured before rounding." in capsys.readouterr().out
    converted = TaskPack.load(path)
    assert path.read_bytes() == pack.astype("float16").to_bytes("static")
    assert converted.dtype == "float16"
    np.testing.assert_allclose(converted.head["kernel"], pack.head["kernel"], rtol=1e-3)
    assert not np.array_equal(converted.head["kernel"], pack.head["kernel"])
    for name in pack.masks:
        np.testing.assert_array_equal(converted.mask(name), pack.mask(name))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["convert", "PACK"], "The following arguments are required: --output"),
        (["convert", "PACK", "--output=x", "--codec=zip"], "Argument --codec: invalid choice: 'zip' (choose from"),
        (["convert", "PACK", "--output=/nothing/x"], "--output=/nothing/x: there is no folder '/nothing'."),
        (["convert", "PACK", "--output=/tmp"], "--output=/tmp: this is a folder; name a file in it."),
        (["convert", "PACK", "--output="], "--output= is empty, perhaps of a variable that is not set. Name a file."),
        (["merge", "PACK", "--output=PIPE"], "/pipe.keras' cannot be written: it is a device, a pipe or a socket"),
        (["convert", "PACK", "--output=~/none/x"], "/none/x: there is no folder '/"),
        (["convert", "PACK", "--output=gs3://b/x"], "'gs3://b/x': Unknown protocol 'gs3'. Did you mean"),
        (["compare", "PACK"], "The following arguments are required: PACK"),
        (["verify"], "The following arguments are required: PACK"),
        (["verify", "PACK", "--backbone=shapenet"], "Unknown backbone 'shapenet'. Did you mean 'shapesnet'"),
        (["verify", "PACK", "--weights=/nothing.h5"], "--weights=/nothing.h5: there is no such file"),
        (["verify", "/nothing"], "'/nothing': No such file or directory."),
        (["merge", "PACK", "--output=model.h5"], "--output=model.h5: the name of a Keras model must end in .keras."),
        (["merge", "PACK", "--output=/nothing/model.keras"], "there is no folder '/nothing'"),
        (["merge", "/nothing", "--output=/tmp/model.keras"], "'/nothing': No such file or directory."),
        (["push", "PACK"], "The following arguments are required: --repo"),
        (["push", "/nothing", "--repo=a/b"], "'/nothing': No such file or directory."),
        (["push", "PACK", "PACK", "--repo=a/b"], "Two of the packs are of a task named 'birds'"),
        (["push", "PACK", "--repo=birds"], "'birds' is no name of a repository, which is OWNER/NAME."),
        (["pull"], "The following arguments are required: --repo"),
        (["pull", "--repo=a/b/c"], "'a/b/c' is no name of a repository, which is OWNER/NAME"),
        (["pull", "--repo=a/b", f"--output_dir={__file__}"], "this is no folder."),
        (["pull", "--repo=a/b", "--output_dir="], "--output_dir= is empty, perhaps of a variable that is not set."),
        (
            ["table", "PACK", "--layout=survey", "--output="],
            "--output= is empty, perhaps of a variable that is not set.",
        ),
        (["verify", "PACK", "--weights=~/none.h5"], f"--weights={Path.home()}/none.h5: there is no such file"),
        (["inspect", "gs3://b/x"], "'gs3://b/x': Unknown protocol 'gs3'. Did you mean"),
    ],
)
def test_wrong_arguments_are_answered_before_tensorflow_is_loaded(tmp_path, arguments, message):
    path = tmp_path / "birds.task.safetensors"
    make_pack(base_name="shapesnet", base_weights="shipped", image_size=32).save(path)
    os.mkfifo(tmp_path / "pipe.keras")
    arguments = [
        argument.replace("PACK", str(path)).replace("PIPE", str(tmp_path / "pipe.keras")) for argument in arguments
    ]
    status, lines, errors, loaded = run_command(*arguments)
    assert (status, lines, loaded) == (2, [], False)
    assert message in errors
    assert "Traceback" not in errors


# ----------------------------------------------------------------------------------------------------------- verify


def test_verify(trained, backbone, tmp_path, capsys):
    _, path = trained
    pack = TaskPack.load(path)
    broken, misfit = tmp_path / "broken", tmp_path / "misfit"
    broken.write_bytes(path.read_bytes()[:-1])
    renamed(pack, "misfit").save(misfit)
    assert main(["verify", str(path), str(misfit)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:4] == [
        f"{path}:",
        f"  file    whole: {path.stat().st_size:,} bytes, format version 4, checksum as computed",
        f"  base    shapesnet (random) has the hash that the pack names, {backbone.hash[:12]}..., and computes the "
        "same",
        f"  shapes  fit: {len(pack.masks)} masks, {len(pack.norm)} variables of batch norm, and a head, "
        f"kernel {backbone.feature_dim}x3, bias 3",
    ]
    assert lines[4] == f"{misfit}:"
    # Another base, a file that is cut off, and a mask for a weight that the base does not have.
    moved = {f"x{name}" if place == 0 else name: mask for place, (name, mask) in enumerate(pack.masks.items())}
    pack = with_arrays(pack, masks=moved)
    pack.save(misfit)
    assert main(["verify", str(broken), str(misfit), str(path)]) == 1
    output = capsys.readouterr()
    assert output.out.splitlines()[0] == f"{path}:"
    assert len(output.out.splitlines()) == 4
    cut, lacks = output.err.splitlines()
    assert cut.startswith(f"python -m piggyback_tf verify: The file {str(broken)!r} should be")
    assert lacks.startswith(
        f"python -m piggyback_tf verify: {str(misfit)!r}: Task 'birds' has a mask or batch norm for"
    )
    assert main(["verify", str(path), "--weights=shipped"]) == 1
    assert "was trained on another base: 'shapesnet' with weights 'random'" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------------------ merge


def test_merge(trained, tmp_path, capsys):
    import keras

    model, path = trained
    output = tmp_path / "model.keras"
    assert main(["merge", str(path), f"--output={output}"]) == 0
    text = capsys.readouterr().out
    assert f"keras.models.load_model({str(output)!r})" in text
    assert [file.name for file in tmp_path.iterdir()] == ["model.keras"]
    images = np.random.default_rng(0).uniform(0, 255, (3, 32, 32, 3)).astype("float32")
    expected = keras.ops.softmax(model(images, training=False))
    np.testing.assert_allclose(keras.models.load_model(output)(images), expected, atol=1e-6)


# ------------------------------------------------------------------------------------------------------------- URLs


def test_every_command_takes_urls(trained, backbone, memory, tmp_path, capsys):
    import keras

    _, path = trained
    url, weights = f"{memory}/birds.task.safetensors", f"{memory}/base.keras"
    write_bytes(url, path.read_bytes())
    backbone.model.save(tmp_path / "base.keras")
    write_bytes(weights, (tmp_path / "base.keras").read_bytes())
    image = keras.utils.array_to_img(np.full((32, 32, 3), 90))
    image.save(tmp_path / "grey.png")
    write_bytes(f"{memory}/grey.png", (tmp_path / "grey.png").read_bytes())
    for command in (
        ["inspect", url],
        ["compare", url, str(path)],
        ["convert", url, f"--output={memory}/small"],
        ["verify", url, f"--weights={weights}"],
        ["merge", url, f"--output={memory}/model.keras"],
        ["predict", url, f"{memory}/grey.png", "--top_k=1"],
    ):
        assert main(command) == 0, capsys.readouterr().err
    output = capsys.readouterr()
    assert output.err == ""
    assert output.out.splitlines()[-2] == f"{memory}/grey.png"
    assert TaskPack.from_bytes(read_bytes(f"{memory}/small")).content_digest() == TaskPack.load(path).content_digest()
    (tmp_path / "model.keras").write_bytes(read_bytes(f"{memory}/model.keras"))
    assert keras.models.load_model(tmp_path / "model.keras").output_shape == (None, 3)
    # What is not there is named, and so is its address.
    for command in (
        ["inspect", f"{memory}/nothing"],
        ["verify", url, f"--weights={memory}/nothing.keras"],
        ["predict", url, f"{memory}/nothing.png"],
    ):
        assert main(command) == 2
        assert f"There is no file '{memory}/nothing" in capsys.readouterr().err
    write_bytes(weights, b"nothing")
    assert main(["verify", url, f"--weights={weights}"]) == 2
    assert f"Weights file {weights!r}" in capsys.readouterr().err


def test_the_bank_takes_urls(trained, backbone, memory):
    write_bytes(f"{memory}/birds.task.safetensors", trained[1].read_bytes())
    assert TaskBank(backbone).add(f"{memory}/birds.task.safetensors").names == ["birds"]


def test_what_a_pack_says_reaches_no_terminal_as_a_command(tmp_path, capsys):
    path = tmp_path / "pack"
    pack = make_pack(settings={"seed": [1]}, base_name="shapesnet", base_weights="random", image_size=32)
    masks = {f"{name}\x9b1m": mask for name, mask in pack.masks.items()}
    with_arrays(pack, masks=masks).save(path)
    assert main(["inspect", "--layers", str(path)]) == 0
    assert main(["compare", str(path), str(path)]) == 0
    assert "\x9b" not in capsys.readouterr().out
    assert main(["verify", str(path)]) == 2
    assert "a seed that is no integer: [1]" in capsys.readouterr().err
