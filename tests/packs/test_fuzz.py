"""Wrong files are refused with a sentence, or open to what they held: within seconds, and without much memory."""

import functools
import json
import re
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from piggyback_tf.packs import PackError, TaskPack, format2_to_6
from tests.packs.forgeries import FORGERIES, Parts, forge_file
from tests.packs.helpers import base_of, forge, rates_of, structured_pack
from tests.packs.mutate import EDITS, MOST_MEMORY, damage, find_fault, honest_memory, open_file, samples


@functools.cache
def _samples():
    return samples()


@functools.cache
def _measured(number):
    """Returns the bytes of memory that opening a good file takes, with its base."""
    sample = _samples()[number]
    open_file(sample.data, sample.base)  # The first time, modules are imported.
    opening = open_file(sample.data, sample.base, traced=True)
    assert opening.pack.content_digest() == sample.digest
    return opening.memory


def _check(number, data, digests):
    """Opens a wrong file with a base and without; returns whether both refuse it."""
    sample = _samples()[number]
    known = open_file(data, sample.base, traced=True)
    unknown = open_file(data, None)
    limit = MOST_MEMORY * honest_memory(sample, _measured(number), data)
    assert find_fault(known, digests, sample.base, limit) is None
    assert find_fault(unknown, digests, None, 0) is None
    return known.pack is None and unknown.pack is None


NUMBERS = st.integers(0, len(samples()) - 1)


@given(
    number=NUMBERS,
    other=NUMBERS,
    edits=st.lists(
        st.tuples(st.sampled_from(sorted(EDITS)), st.integers(0, 1 << 20), st.integers(0, 1 << 20)),
        min_size=1,
        max_size=4,
    ),
)
@settings(max_examples=250, deadline=None)
def test_damaged_files(number, other, edits):
    sample, donor = _samples()[number], _samples()[other]
    _check(number, damage(sample.data, edits, donor.data), {sample.digest, donor.digest})


@pytest.mark.parametrize("edit", sorted(EDITS))
def test_damaged_files_of_every_kind(edit):
    rng = Random(edit)
    refused = 0
    for number, sample in enumerate(_samples()):
        for _ in range(3):
            edits = [(edit, rng.randrange(1 << 20), rng.randrange(1 << 20))]
            donor = rng.choice(_samples())
            refused += _check(number, damage(sample.data, edits, donor.data), {sample.digest, donor.digest})
    assert refused > 2 * len(_samples())


@pytest.mark.parametrize("forgery", sorted(FORGERIES))
def test_forged_files(forgery):
    rng = Random(forgery)
    refused = 0
    for number, sample in enumerate(_samples()):
        for _ in range(3):
            refused += _check(number, forge_file(sample.data, forgery, rng), None)
    assert refused > len(_samples())


def test_a_signed_forgery_that_agrees_with_itself_is_a_pack():
    sample = _samples()[0]
    parts = Parts.of(sample.data)
    parts.index["norm"].reverse()
    with pytest.raises(PackError, match="its checksum is not that of its content"):
        TaskPack.from_bytes(parts.to_bytes())
    parts.sign()
    opening = open_file(parts.to_bytes(), sample.base)
    assert find_fault(opening, None, sample.base, 0) is None
    assert find_fault(opening, {sample.digest}, sample.base, 0) == "opens to other content"


@pytest.mark.parametrize("weights", [10**12, format2_to_6.MAX_WEIGHTS + 1])
@pytest.mark.parametrize("codec", ["ans", "bits"])
def test_a_small_file_with_a_large_claim_is_refused_at_once(weights, codec):
    def claim(index):
        shape = [1, 1, 10**6, 10**6] if weights == 10**12 else [weights]
        index["masks"] = [{"path": "conv/kernel", "shape": shape, "zeros": 0, "codec": codec}]

    pack = structured_pack()
    data = forge(pack, index=claim, tensors={"masks/rates": np.full(1, 200, "uint8")})
    for base in (None, base_of(pack)):
        opening = open_file(data, base, traced=True)
        assert isinstance(opening.error, PackError)
        assert opening.seconds < 0.2
        assert opening.memory < 300_000


def test_a_long_header_is_refused_before_it_is_read(tmp_path):
    path = tmp_path / "pack"
    path.write_bytes((50_000_000).to_bytes(8, "little"))
    with path.open("r+b") as stream:
        stream.truncate(1 << 30)
    with pytest.raises(PackError, match="has a header of 50,000,000 bytes, and a task pack's has at most"):
        TaskPack.load(path)


def test_a_file_of_terabytes_is_not_read(tmp_path):
    parts = Parts.of(structured_pack().to_bytes())
    # Offsets are not looked at before the length of the file is.
    parts.header = lambda text: re.sub(r'("masks/bits":{"dtype":"U8","shape":)\[\d+]', r"\1[1000000000000]", text)
    path = tmp_path / "pack"
    path.write_bytes(parts.to_bytes())
    with path.open("r+b") as stream:
        stream.truncate(path.stat().st_size + 10**12 - parts.tensors["masks/bits"].size)
    with pytest.raises(PackError, match="bytes long, and a task pack has at most 2,147,483,648"):
        TaskPack.load(path)


def test_a_pack_with_a_description_too_long_to_be_read_is_not_written():
    pack = structured_pack(settings={"notes": "x" * (1 << 22)})
    with pytest.raises(PackError, match="The description of the task takes .* bytes; at most 4,194,304 can be read"):
        pack.to_bytes()
    assert len(structured_pack(settings={"notes": "x" * (1 << 20)}).to_bytes()) > 1 << 20


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task": "../../x"}, "no slashes"),
        ({"task": "a\x1b[2J"}, "no control characters"),
        ({"class_names": ["a", "b", "\ud800"]}, "surrogates not allowed"),
        ({"image_size": 10**400}, "image_size must be"),
        ({"threshold": 10**400}, "threshold must be a finite number"),
        ({"settings": {"x": json.loads("[" * 40 + "]" * 40)}}, "nested too deeply"),
        ({"errors": {"test": {"top1_error": "12"}}}, "which are numbers"),
        ({"base_name": "x" * 10**5}, "its checksum is not"),
        ({"index": lambda index: index["masks"][0].update(path="../../x")}, "'../../x' is no path of a weight"),
        ({"index": lambda index: index["masks"][0].update(path="/etc/passwd")}, "is no path of a weight"),
        ({"index": lambda index: index["masks"][0].update(path="C:\\x")}, "is no path of a weight"),
        ({"index": lambda index: index["masks"][0].update(path="a\0b")}, "is no path of a weight"),
        ({"index": lambda index: index["masks"][0].update(path="bn/gamma")}, "has a mask, and is a variable of batch"),
        ({"index": lambda index: index["masks"][0].update(shape=[10**4000] * 3)}, "no shape of a weight"),
        ({"index": lambda index: index["masks"][0].update(shape=[1] * 9)}, "no shape of a weight"),
        (
            {"index": lambda index: index["masks"][3].update(classes=[11, 2], codec="ans")},
            "take more bits than they can save",
        ),
        ({"index": lambda index: index["masks"][3].update(classes=[2, 1])}, "has classes that it should not have"),
        ({"index": lambda index: index["masks"][1].update(classes=[1, 1])}, "has classes that it should not have"),
        ({"tensors": {"masks/stream": np.zeros(4, "uint32")}}, "end in a zero, which the coder never writes"),
        ({"tensors": {"masks/stream": ...}}, "another number of zeros"),
        ({"tensors": {"masks/stream": np.full(900, 2**32 - 1, "uint32")}}, "is coded than|number of zeros"),
        (
            {"tensors": {"masks/rates": np.zeros(1 << 19, "uint8")}},
            "not as uint8 a vector of at most 262,144",
        ),
    ],
)
def test_what_is_wrong_is_said(change, message):
    with pytest.raises(PackError, match=message) as error:
        TaskPack.from_bytes(forge(structured_pack(), **change))
    assert len(str(error.value)) < 500


@pytest.mark.parametrize("rate", [0, 1, 2, 128, 253, 254, 255])
@pytest.mark.parametrize("kind", ["binary", "ternary"])
def test_no_stream_makes_the_coder_fail(rate, kind):
    pack = structured_pack(kind)
    rng = np.random.default_rng(rate)
    for words in (0, 1, 2, 3, 500):
        stream = rng.integers(1, 1 << 32, words, dtype=np.uint32)
        rates = np.full(sum(rates_of(layer.get("classes", [1, 1]), kind) for layer in _coded(pack)), rate, np.uint8)
        data = forge(pack, tensors={"masks/stream": stream, "masks/rates": rates})
        assert find_fault(open_file(data, None), set(), None, 0) is None


def _coded(pack):
    found = []
    forge(pack, index=lambda index: found.extend(entry for entry in index["masks"] if entry["codec"] == "ans"))
    return found
