"""Pages for the browser, made by tests and read by them."""

from html.parser import HTMLParser

import numpy as np

from piggyback_tf.data import load_data
from piggyback_tf.evaluation.answers import AnswerLog
from piggyback_tf.evaluation.page import read_subjects, write_page
from piggyback_tf.packs import TaskPack
from tests.evaluation.run_folders import errors

EVIL = "<script>alert('x')</script>"


class Page(HTMLParser):
    """What is in a page: elements with their attributes, and the text of its parts."""

    def __init__(self, path):
        super().__init__()
        self.elements, self.texts, self._skip = [], [], False
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self._skip = tag == "style"

    def handle_data(self, data):
        if not self._skip:
            self.texts.append(data)

    def of(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())


def load(path):
    return TaskPack.load(path), 1000


def page_of(folder, *sources, images=24):
    """Returns the page on some sources, and what `write_page` returned."""
    subjects = read_subjects([str(source) for source in sources], load)
    return written(folder, subjects, images)


def written(folder, subjects, images):
    told = write_page(folder / "page.html", subjects, images)
    return Page(folder / "page.html"), told, subjects


def write_answers(folder, spec, answers=(0, 0, 0, 0, 0, 0), task="birds", **more):
    """Writes answers beside a pack, as a run records them."""
    data = load_data(spec)
    log = AnswerLog("class", True)
    scores = np.full((6, 3), 0.1)
    scores[np.arange(6), answers] = np.linspace(0.5, 0.8, 6)
    log.note(data.test.labels, scores)
    wrong = 100 * float(np.mean(np.asarray(answers) != data.test.labels))
    log.write(folder / f"{task}.answers1.json.gz", data, "test", task=task, errors=errors(wrong, 6), **more)
    return data
