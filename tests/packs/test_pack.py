"""Task packs as files: what they hold, and what is refused."""

import contextlib
import dataclasses
import os
import stat
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load as load_safetensors
from safetensors.numpy import save as save_safetensors

from piggyback_tf.packs import BaseSpec, MaskBits, PackError, TaskPack, container
from tests.packs.helpers import GOLDEN, forge, make_pack

ROOT = Path(__file__).parents[2]
KINDS = ("binary", "ternary", "none")


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_gives_back_the_pack(tmp_path, kind):
    pack, path = make_pack(kind), tmp_path / "birds.task.safetensors"
    pack.save(path)
    loaded = TaskPack.load(path)
    assert loaded.content_digest() == pack.content_digest()
    assert loaded.to_bytes() == pack.to_bytes() == path.read_bytes()
    assert pack.format_version == loaded.format_version == 4
    assert list(loaded.masks) == list(pack.masks), "the order of the layers is kept"
    assert loaded.class_names == ["wren", "rook", "tüvö"]
    assert loaded.settings == pack.settings
    assert loaded.errors == pack.errors
    assert loaded.created == pack.created
    for mask in pack.masks:
        np.testing.assert_array_equal(loaded.mask(mask), pack.mask(mask))
    np.testing.assert_array_equal(loaded.head["kernel"], pack.head["kernel"])
    np.testing.assert_array_equal(loaded.norm["bn/gamma"], pack.norm["bn/gamma"])


def test_zeros_are_counted():
    pack = make_pack()
    expected = {path: float((pack.mask(path) == 0).mean()) for path in pack.masks}
    assert pack.zeros == pytest.approx(expected)
    zeros = sum(int((pack.mask(path) == 0).sum()) for path in pack.masks)
    assert pack.zeros_total == pytest.approx(zeros / (135 + 28))
    assert pack.masked_weights == 135 + 28
    assert make_pack("none").zeros_total == 0


def test_bytes_are_the_same_in_every_process_but_for_the_date():
    program = "from tests.packs.helpers import make_pack; import sys; sys.stdout.buffer.write(make_pack().to_bytes())"
    runs = [
        subprocess.run(
            [sys.executable, "-c", program],
            capture_output=True,
            check=True,
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2")
    ]
    assert runs[0] == runs[1] == make_pack().to_bytes()
    later = make_pack(created="2027-01-02T03:04:05+00:00")
    assert later.content_digest() == make_pack().content_digest()
    assert later.to_bytes() == make_pack().to_bytes().replace(b"2026-01-02", b"2027-01-02")


@pytest.mark.parametrize("change", [{"task": "fish"}, {"seed": 1}, {"threshold": 4e-3}, {"settings": {}}])
def test_the_digest_covers_the_content(change):
    assert make_pack(**change).content_digest() != make_pack().content_digest()


def test_reading_a_pack_does_not_load_tensorflow(tmp_path):
    make_pack().save(tmp_path / "pack")
    program = (
        "import sys; import piggyback_tf as pb; pb.TaskPack.load(sys.argv[1]).mask('conv/kernel'); "
        "print([name for name in ('tensorflow', 'keras') if name in sys.modules])"
    )
    run = subprocess.run(
        [sys.executable, "-c", program, tmp_path / "pack"], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert run.stdout.strip() == "[]"


def test_the_library_reads_the_file_too(tmp_path):
    make_pack().save(tmp_path / "pack")
    tensors = load_safetensors((tmp_path / "pack").read_bytes())
    # Half of the weights are dropped at random: nothing is smaller than their bits.
    assert set(tensors) == {"head/bias", "head/kernel", "index", "masks/bits", "norm"}


def test_saving_is_atomic(tmp_path, monkeypatch):
    path = tmp_path / "pack"
    make_pack().save(path)
    before = path.read_bytes()
    assert stat.S_IMODE(path.stat().st_mode) & stat.S_IRUSR

    def full(_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            make_pack(seed=1).save(path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["pack"]


def test_saving_checks_what_was_changed_since(tmp_path):
    pack = make_pack()
    pack.head["bias"][0] = np.nan
    with pytest.raises(PackError, match="'head/bias' holds NaN"):
        pack.save(tmp_path / "pack")
    assert not (tmp_path / "pack").exists()


def test_settings_are_what_a_file_makes_of_them():
    pack = make_pack(settings={"size": (1, 2), "rate": np.float64(0.5), "steps": np.int32(3)})
    assert pack.settings == {"size": [1, 2], "rate": 0.5, "steps": 3}
    for value in ({1, 2}, float("nan"), object()):
        with pytest.raises(PackError, match="settings cannot be written as JSON"):
            make_pack(settings={"x": value})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task": ""}, "task must be a text"),
        ({"task": "a/b"}, "no slashes"),
        ({"class_names": ["a", "b"]}, r"a kernel \[F, 2\]"),
        ({"class_names": ["a", "b", "a"]}, "different from one another"),
        ({"class_names": "abc"}, "list of texts"),
        ({"base_hash": None}, "base_hash must be a text"),
        ({"mask_kind": "dense"}, "mask_kind must be one of"),
        ({"mask_kind": "none"}, "one without has none"),
        ({"mask_kind": "ternary"}, "mask of 'conv/kernel' is wrong"),
        ({"threshold": None}, "one without has none"),
        ({"threshold": float("inf")}, "threshold must be a finite number"),
        ({"masks": {"a": MaskBits((9,), np.zeros((1, 1), np.uint8))}}, r"uint8 \[1, 2\] when packed"),
        ({"masks": {"a": MaskBits((), np.zeros((1, 1), np.uint8))}}, "no shape of a weight"),
        ({"norm": {"bn/gamma": np.zeros(3)}}, "'bn/gamma' must be float32"),
        ({"norm": {"bn/gamma": np.array([np.inf], "float32")}}, "'bn/gamma' holds NaN or infinite"),
        ({"head": {"kernel": np.zeros((4, 3), "float32")}}, "must hold 'kernel' and 'bias'"),
        ({"image_size": 0}, "image_size must be"),
        ({"image_size": True}, "image_size must be"),
        ({"eval_augment": None}, "eval_augment must be"),
        ({"errors": {"test": 3}}, "errors must map"),
        ({"settings": [1]}, "settings must be a dict"),
        ({"created": "yesterday"}, "created must be a date"),
        ({"format_version": 7}, "format_version must be 1 to 6"),
        ({"base_structure": "ab"}, "base_structure must be a SHA-256 as 64 hexadecimal digits"),
        ({"base_answers": [0.5] * 16}, "base_structure must be a SHA-256 as 64 hexadecimal digits, or null without"),
        ({"base_structure": "ab" * 32, "base_answers": [0.5]}, "a list of 16 numbers or nulls"),
        ({"dtype": "int8"}, "dtype must be one of float32, float16"),
        ({"dtype": "float16"}, "see TaskPack.astype"),
    ],
)
def test_parts_that_do_not_fit_are_refused(change, message):
    with pytest.raises(PackError, match=message):
        make_pack(**change)


def test_a_mask_that_is_not_there():
    with pytest.raises(KeyError, match="no mask for 'fc/kernel'"):
        make_pack().mask("fc/kernel")


@pytest.mark.parametrize("kind", KINDS)
def test_every_damaged_byte_is_harmless_or_found(kind):
    pack = make_pack(kind)
    data, digest = pack.to_bytes(), pack.content_digest()
    rng = np.random.default_rng(0)
    harmless = 0
    for position in range(len(data)):
        damaged = bytearray(data)
        # A single bit at every third place, any other byte elsewhere.
        damaged[position] ^= 1 << rng.integers(8) if position % 3 == 0 else rng.integers(1, 256)
        try:
            loaded = TaskPack.from_bytes(bytes(damaged))
        except PackError as error:
            assert str(error).startswith("The file 'bytes' ")
        else:
            harmless += 1
            assert loaded.content_digest() == digest
    # Blanks that fill the header up, and digits of the date.
    assert harmless < 40


def test_every_cut_and_every_addition_is_found():
    data = make_pack().to_bytes()
    for length in [*range(200), *range(200, len(data), 7), len(data) - 1]:
        with pytest.raises(PackError):
            TaskPack.from_bytes(data[:length])
    for length in (1, 8, 1000):
        with pytest.raises(PackError, match="cut off or damaged"):
            TaskPack.from_bytes(data + b"\0" * length)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "no task pack, or only a part of one"),
        (b"\x89PNG\r\n\x1a\n" + bytes(1000), "no task pack"),
        (np.random.default_rng(0).bytes(5000), "no task pack"),
        (b"\x10" + bytes(7) + b"[" * 16 + bytes(9), "header is not a JSON object"),
        ((200_000).to_bytes(8, "little") + b"[" * 200_000, "header is not a JSON object"),
        ((2).to_bytes(8, "little") + b"[]", "not a JSON object"),
        ((1 << 63).to_bytes(8, "little") + bytes(90), "no task pack"),
        (save_safetensors({"a": np.zeros(3, "float32")}), "does not describe a task"),
        (save_safetensors({"a": np.zeros(3, "float32")}, {"format": "pt"}), "does not describe a task"),
        (save_safetensors({}, {container.METADATA_KEY: "{"}), "description of the task is not a JSON object"),
        (save_safetensors({}, {container.METADATA_KEY: "{}"}), "format version None"),
        (save_safetensors({}, {container.METADATA_KEY: '{"format_version": 1, "x": NaN}'}), "is not a JSON object"),
    ],
)
def test_foreign_files_are_refused(tmp_path, data, message):
    (tmp_path / "file").write_bytes(data)
    with pytest.raises(PackError, match=message):
        TaskPack.load(tmp_path / "file")


def _mask_entry(**changes):
    """Returns a change of the index: other values in the entry of the first mask."""

    def change(index):
        index["masks"][0].update(changes)

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 7}, "format version 7, and this version of piggyback_tf reads up to 6"),
        ({"format_version": 5}, "does not list masks and batch norm, and parts, or more"),
        ({"format_version": True}, "which is no version"),
        ({"task": ...}, "has no entry 'task'"),
        ({"base_structure": ...}, "has no entry 'base_structure'"),
        ({"base_structure": "cd" * 32}, "checksum is not that of its content"),
        ({"base_structure": 7}, "base_structure must be a SHA-256"),
        ({"format_version": 2}, "an entry 'base_answers' that is not part"),
        ({"licence": "?"}, "an entry 'licence' that is not part"),
        ({"mask_kind": "quaternary"}, "mask_kind must be one of none, binary, ternary. Received: 'quaternary'"),
        ({"mask_kind": ["binary"]}, "mask_kind must be a text"),
        ({"mask_kind": "none"}, "its index lists 2 masks"),
        ({"mask_kind": "ternary"}, "fewer packed bits than the index says"),
        ({"dtype": "float64"}, "dtype must be one of float32, float16"),
        ({"dtype": "float16"}, r"has the tensor 'head/kernel' as 'F32' \[4, 3\]"),
        ({"class_names": 7}, "class_names must be a list of texts"),
        ({"class_names": ["a", "a", "b"]}, "different from one another"),
        ({"class_names": ["a"]}, r"has the tensor 'head/kernel' as 'F32' \[4, 3\]"),
        ({"image_size": -8}, "image_size must be"),
        ({"created": 7}, "created must be a date"),
        ({"settings": 5}, "settings must be a dict"),
        ({"task": "rooks"}, "checksum is not that of its content"),
        ({"index": lambda index: {}}, "does not list masks and batch norm"),
        ({"index": lambda index: b"not compressed"}, "index cannot be read"),
        ({"index": lambda index: zlib.compress(b"[" * 100_000)}, "index cannot be read"),
        ({"index": lambda index: zlib.compress(bytes(1 << 24))}, "cut off, too long"),
        ({"index": lambda index: zlib.compress(b"{}") + b"more"}, "followed by something else"),
        ({"index": lambda index: index["masks"].append(index["masks"][0])}, "lists a weight twice"),
        ({"index": lambda index: index["norm"].append(index["norm"][0])}, "lists a weight twice"),
        ({"index": lambda index: index["norm"].__delitem__(-1)}, "more or fewer numbers of batch norm"),
        ({"index": lambda index: index["norm"][0].update(shape=[-5])}, "no shape of a weight"),
        ({"index": lambda index: index["norm"][0].update(path=5)}, "index of batch norm is wrong"),
        ({"index": lambda index: index["masks"].__delitem__(-1)}, "More is coded than the index says"),
        ({"index": _mask_entry(path="other/kernel")}, "checksum is not that of its content"),
        ({"index": _mask_entry(path=None)}, "an entry without a path"),
        ({"index": _mask_entry(shape=[3, 3, 3, -5])}, "no shape of a weight"),
        ({"index": _mask_entry(shape=[9, 3, 5])}, "checksum is not that of its content"),
        ({"index": _mask_entry(shape=[10**6, 10**6])}, "are read from a file of its size only when the base is given"),
        ({"index": _mask_entry(zeros=1)}, "another number of zeros"),
        ({"index": _mask_entry(zeros=136)}, "136 is no number of zeros"),
        ({"index": _mask_entry(codec="zip")}, "an unknown codec"),
        ({"index": _mask_entry(classes=[4, 1], codec="ans")}, "3 channels cannot be in 4 classes"),
        ({"index": _mask_entry(codec="ans")}, "fewer rates than the index says"),
        ({"tensors": {"evil": np.zeros(3, "float32")}}, "should not hold the tensor 'evil'"),
        ({"tensors": {"index": ...}}, "lacks the tensor 'index'"),
        ({"tensors": {"masks/bits": ...}}, "fewer packed bits than the index says"),
        ({"tensors": {"masks/bits": np.zeros([3, 7], "uint8")}}, "not as uint8 a vector"),
        ({"tensors": {"masks/stream": np.ones(9, "uint32")}}, "More is coded than the index says"),
        ({"tensors": {"masks/rates": np.zeros(1, "uint8")}}, "More is coded than the index says"),
        ({"tensors": {"head/bias": np.zeros(3, "float64")}}, "has the tensor 'head/bias' as 'F64'"),
        ({"tensors": {"head/bias": np.array([0, np.nan, 0], "float32")}}, "'head/bias' holds NaN"),
        ({"tensors": {"head/kernel": np.ones((4, 3), "float32")}}, "checksum is not that of its content"),
        ({"tensors": {"masks/bits": np.full(21, 255, "uint8")}}, "another number of zeros|behind the last weight"),
    ],
)
def test_wrong_content_is_refused(change, message):
    with pytest.raises(PackError, match=message) as error:
        TaskPack.from_bytes(forge(make_pack(), **change), "some.task.safetensors")
    assert "'some.task.safetensors'" in str(error.value)


def test_a_wrong_checksum_is_found():
    data = make_pack().to_bytes()
    assert b"wren" in data
    with pytest.raises(PackError, match="its checksum is not that of its content"):
        TaskPack.from_bytes(data.replace(b"wren", b"kite"))


def test_a_large_foreign_file_is_not_read(tmp_path):
    # A sparse file of a terabyte: reading it would not end well.
    path = tmp_path / "model.safetensors"
    path.write_bytes(save_safetensors({"a": np.zeros(3, "float32")}))
    os.truncate(path, 1 << 40)
    with pytest.raises(PackError, match="does not describe a task"):
        TaskPack.load(path)
    path.write_bytes(make_pack().to_bytes())
    os.truncate(path, 1 << 40)
    with pytest.raises(PackError, match="cut off or damaged"):
        TaskPack.load(path)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError):
        TaskPack.load(tmp_path / "nothing")
    with pytest.raises(OSError, match="Is a directory"):
        TaskPack.load(tmp_path)


# Files that were written once and never again, and the digest of what they hold. In version 2: one rate a layer;
# channel classes and all codecs of layers, ternary and binary; no masks; float16. In version 3: a base with structure,
# one with answers, too, and one of which neither is known. In version 5: factors of low rank; ternary masks with parts
# of each role but one, in float16. In version 6: the same with affine masks.
GOLDEN_FILES = {
    "binary.v1": "8ef2843cb10a5af682e31ed16c493cbe074e1eb49c40e549784db15d0787680c",
    "ternary.v1": "755008d4191211c545617c274fb330e2e6e900e4006d7f8097358a0945e8a939",
    "none.v1": "4874f01340d05367861921a8c0f229e9a7633ade2439a2f113e9c016fb381d7f",
    "binary.v2": "8ef2843cb10a5af682e31ed16c493cbe074e1eb49c40e549784db15d0787680c",
    "ternary.v2": "805b49cf63649ccee897f959bbb3a8c0711869d2b3878f2b45d6fcc6a1a6c83a",
    "none.v2": "4874f01340d05367861921a8c0f229e9a7633ade2439a2f113e9c016fb381d7f",
    "classes.v2": "be5384fee4f3459ef45444ab0c29ba7d3a99985d1e56bc78651b47f349f2fc32",
    "float16.v2": "13d53011a733cdf74b17b240ff9aa18ffef8d4bc56b065fc607a5df0419c0133",
    "binary.v3": "ad8597a703852586283552d45e1eacd18bab7bcb6556365cfe6a5db257c96894",
    "ternary.v3": "dd78f81bf865293e8585bd378afc9bbc6bd0b73546aed2abdd48d5791a6b4c57",
    "none.v3": "4874f01340d05367861921a8c0f229e9a7633ade2439a2f113e9c016fb381d7f",
    "binary.v4": "8ef2843cb10a5af682e31ed16c493cbe074e1eb49c40e549784db15d0787680c",
    "segments.v4": "dfd865ea75e314363acce1a41e7bc1e79a8dfb4c396422922c5af623a81c802e",
    "low_rank.v5": "a3097d3c646abb6adce48f3ef8313bbf7cb948bc7b2f03060dc23773175e9a3f",
    "parts.v5": "b06a0e34ec01d8dc2c3744a5b213b79b8c549b0c8dbf4608af0aed5c1437d70b",
    "affine.v6": "0ff56a20d7efc1f5ffdf8e95f419710801b9c4bf243f8ef8a668bc4b67daae93",
}


def test_every_version_has_golden_files():
    assert {f"{path.name.split('.task')[0]}" for path in GOLDEN.iterdir()} == GOLDEN_FILES.keys()
    versions = {TaskPack.load(path).format_version for path in GOLDEN.iterdir()}
    assert versions == set(range(1, container.FORMAT_VERSION + 1))
    lines = []
    forge(
        (GOLDEN / "classes.v2.task.safetensors").read_bytes(),
        index=lambda index: lines.extend((line["codec"], line.get("classes", [1, 1])) for line in index["masks"]),
    )
    assert {("ans", 24), ("ans", 1), ("bits", 1)} == {(codec, a * b) for codec, (a, b) in lines}


@pytest.mark.parametrize("name", GOLDEN_FILES)
def test_files_of_older_versions_open_for_ever(name):
    path = GOLDEN / f"{name}.task.safetensors"
    pack = TaskPack.load(path)
    assert pack.format_version == int(name[-1])
    assert pack.content_digest() == GOLDEN_FILES[name]
    assert TaskPack.from_bytes(pack.to_bytes()).format_version == max(4, pack.format_version)
    damaged = bytearray(path.read_bytes())
    for position in range(0, len(damaged), 11):
        damaged[position] ^= 4
        with contextlib.suppress(PackError):
            assert TaskPack.from_bytes(bytes(damaged)).content_digest() == pack.content_digest()
        damaged[position] ^= 4


def test_a_base_is_compared_before_memory_is_taken():
    pack = make_pack()
    shapes = {path: mask.shape for path, mask in pack.masks.items()} | {"bn/gamma": (5,), "bn/moving_variance": (5,)}
    base = BaseSpec("small", "given", pack.base_hash, 8, 4, shapes, frozenset(["bn/gamma", "bn/moving_variance"]))
    assert TaskPack.from_bytes(pack.to_bytes(), base=base).content_digest() == pack.content_digest()
    claim = _mask_entry(shape=[10**6, 10**6], codec="ans", zeros=0)
    with pytest.raises(PackError, match=r"mask or batch norm of shape \[1000000, 1000000\] for 'conv/kernel'"):
        TaskPack.from_bytes(forge(pack, index=claim), base=base)
    for change, message in [
        ({"hash": "cd" * 32}, "trained on another base"),
        ({"image_size": 9}, "takes images of 8 pixels"),
        ({"features": 5}, "The head of task 'birds' takes 4 features"),
        ({"shapes": {**shapes, "conv/kernel": (3, 3, 5, 3)}}, "mask or batch norm of shape"),
        ({"shapes": {}}, "which 'small' lacks"),
        ({"norm_paths": frozenset()}, "which is none in 'small'"),
    ]:
        with pytest.raises(PackError, match=message):
            TaskPack.from_bytes(pack.to_bytes(), base=dataclasses.replace(base, **change))
