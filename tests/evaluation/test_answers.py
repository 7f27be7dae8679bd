"""Answers to single images: what is noted while errors are counted, and the file."""

import gzip
import json

import numpy as np
import pytest

from piggyback_tf.data import Source, TaskData
from piggyback_tf.evaluation import answers as module
from piggyback_tf.evaluation import evaluate
from piggyback_tf.evaluation.answers import AnswerLog, AnswersError, read_answers
from piggyback_tf.file_names import ANSWERS_SUFFIX, PACK_SUFFIX

LABELS = np.array([0, 1, 2, 1], np.int32)
LOGITS = np.array([[3.0, 1.0, 0.0], [2.0, 2.0, 0.0], [0.0, 0.0, 5.0], [0.0, 4.0, 0.0]])


class Named(Source):
    """Images without pixels; the name of the third is not in UTF-8, and the last file is gone."""

    @property
    def labels(self):
        return LABELS

    def read(self, index):
        raise NotImplementedError

    def describe(self, index):
        return self.key(index)

    def key(self, index):
        return ["a/1.png", "b/<2>.png", "c/\udce9.png", "b/4.png"][index]

    def fingerprint(self):
        return ""

    def stored_bytes(self, index):
        if index == 3:
            raise module.DataError("It is gone.")
        return 10 + index


DATA = TaskData("folder:x", "x", ("ant", "bee", "cat"), Named(), Named(), Named())


def _write(path, log, errors):
    log.write(path, DATA, "test", task="insects", errors=errors, after="later")


def _noted(path, probabilities=False, scores=LOGITS):
    log = AnswerLog("class", probabilities)
    for part in (slice(0, 3), slice(3, 4)):
        log.note(LABELS[part], scores[part])
    _write(path, log, evaluate(lambda images: scores[images], [(slice(0, 4), LABELS)]))
    return path


def test_what_is_counted_is_what_is_kept(tmp_path):
    found = read_answers(_noted(tmp_path / "answers"))
    assert (found.kind, found.by, found.task, found.after) == ("class", "train", "insects", "later")
    assert (found.data, found.split, found.class_names) == ("folder:x", "test", ["ant", "bee", "cat"])
    assert found.images == ["a/1.png", "b/<2>.png", "c/\udce9.png", "b/4.png"]
    assert found.sizes == [10, 11, 12, None]
    assert found.columns["truth"] == LABELS.tolist()
    # Of equal answers the first counts, as for the errors.
    assert found.columns["answer"] == [0, 0, 2, 1]
    wrong = np.not_equal(found.columns["truth"], found.columns["answer"])
    assert found.errors["top1_error"] == 100 * np.mean(wrong) == 25.0
    powers = np.exp(LOGITS)
    expected = (powers / powers.sum(axis=1, keepdims=True))[np.arange(4), LABELS]
    np.testing.assert_allclose(found.columns["truth_probability"], expected, atol=1e-4)
    assert found.columns["probability"][1] == found.columns["truth_probability"][1]


def test_probabilities_are_taken_as_they_are(tmp_path):
    scores = np.array([[0.5, 0.3, 0.2]] * 4)
    found = read_answers(_noted(tmp_path / "answers", True, scores))
    assert found.columns["probability"] == [0.5] * 4
    assert found.columns["truth_probability"] == [0.5, 0.3, 0.2, 0.3]


def test_equal_answers_are_equal_files_and_small(tmp_path):
    assert _noted(tmp_path / "one").read_bytes() == _noted(tmp_path / "other").read_bytes()


def test_nothing_is_kept_of_a_kind_that_nobody_knows_or_of_too_many_images(tmp_path, monkeypatch):
    log = AnswerLog("depth", False)
    log.note(LABELS, LOGITS)
    _write(tmp_path / "answers", log, {"error": 1.0})
    monkeypatch.setattr(module, "MOST_IMAGES", 3)
    _noted(tmp_path / "answers")
    assert not (tmp_path / "answers").exists()


def test_the_name_fits_wherever_that_of_a_pack_does():
    """Whether a pack can be written under the name of a task is found out before its training."""
    assert len(ANSWERS_SUFFIX) <= len(PACK_SUFFIX)


CHANGES = {
    "of a later version": ({"format": 2}, "has format 2, and this version of piggyback_tf reads 1"),
    "short": ({"truth": [0]}, "a list is short"),
    "strange class": ({"answer": [0, 1, 2, 3]}, "answer: one is none of its classes"),
    "strange probability": ({"probability": [0, 0, 0, 2.0]}, "probability: one is none"),
    "no texts": ({"images": [1, 2, 3, 4]}, "a name is no text"),
    "no list": ({"images": 5}, "damaged or holds no answers"),
    "no object": (None, "damaged or holds no answers"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_other_files_are_refused_in_a_sentence(name, tmp_path):
    changes, sentence = CHANGES[name]
    path = _noted(tmp_path / "answers")
    found = json.loads(gzip.decompress(path.read_bytes()))
    path.write_bytes(gzip.compress(json.dumps([] if changes is None else found | changes).encode()))
    with pytest.raises(AnswersError, match=sentence):
        read_answers(path)


@pytest.mark.parametrize("length", [0, 1, 30, -1])
def test_a_part_of_a_file_is_refused(length, tmp_path):
    path = _noted(tmp_path / "answers")
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(AnswersError, match="is damaged"):
        read_answers(path)


def test_a_file_that_unpacks_to_gigabytes_is_not_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_LARGEST", 100)
    with pytest.raises(AnswersError, match="holds more than 100 bytes"):
        read_answers(_noted(tmp_path / "answers"))
