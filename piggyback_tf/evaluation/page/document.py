"""The page: its parts in order, within one HTML file that needs no other and no network."""

import base64
import hashlib
import importlib.resources
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from piggyback_tf.evaluation.page import parts
from piggyback_tf.evaluation.page.images import wrong_images
from piggyback_tf.evaluation.page.markup import Markup, element, joined
from piggyback_tf.evaluation.page.subjects import Subjects
from piggyback_tf.files import write_atomically
from piggyback_tf.version import __version__

# How a page is told from the files of others, at its beginning.
MARK = '<meta name="generator" content="piggyback_tf report">'


def write_page(
    path: str | os.PathLike, subjects: Subjects, images: int = 24, data_dir: str | None = None
) -> dict[str, Any]:
    """Writes the page, whole or not at all.

    Args:
        path: The file.
        subjects: What it shows; at least one task.
        images: How many wrong images are shown of each task.
        data_dir: Where TensorFlow Datasets keeps its data sets; None for its own default.

    Returns:
        `"bytes"` of the file, and under `"tasks"` what it shows of each, as the command answers in JSON.

    Raises:
        OSError: If the file cannot be written.
    """
    galleries, shown = wrong_images(subjects, images, data_dir)
    sections = {
        "Results": parts.results(subjects),
        "Tasks in turn": parts.sequences(subjects),
        "Images it gets wrong": galleries,
        "Learning curves": parts.curves(subjects),
        "Zeros by layer": parts.zeros_by_layer(subjects),
        "Overlap of masks": parts.overlaps(subjects),
        "What is not known": parts.missing(subjects),
        "Details": parts.details(subjects),
    }
    page = _document(parts.title(subjects), {name: body for name, body in sections.items() if body}, subjects)
    data = page.encode()
    write_atomically(path, data)
    return {"bytes": len(data), "tasks": [parts.as_json(one, shown.get(one.label)) for one in subjects.tasks]}


def is_page(path: str | os.PathLike) -> bool:
    """Whether a file is a page that this package wrote."""
    with Path(path).open("rb") as stream:
        return MARK.encode() in stream.read(512)


def _document(title: str, sections: Mapping[str, Markup], subjects: Subjects) -> str:
    style = importlib.resources.files(__package__).joinpath("page.css").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    # Nothing but this style and the images within the page; no script, no network, no form.
    policy = f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    names = {name: f"s{number}" for number, name in enumerate(sections, start=1)}
    head = joined(
        element("meta", charset="utf-8"),
        Markup(MARK),
        element("meta", http_equiv="Content-Security-Policy", content=policy),
        element("meta", name_="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name_="color-scheme", content="light dark"),
        element("meta", name_="referrer", content="no-referrer"),
        # A browser asks for an icon otherwise.
        element("link", rel="icon", href="data:,"),
        element("title", title),
        element("style", Markup(style)),
    )
    links = [element("li", element("a", name, href=f"#{place}")) for name, place in names.items()]
    body = joined(
        element("header", element("h1", title), parts.introduction(subjects)),
        element("nav", element("ul", links), aria_label="Parts of this page"),
        element(
            "main",
            parts.problems(subjects),
            [
                element("section", element("h2", name, id=names[name]), content, aria_labelledby=names[name])
                for name, content in sections.items()
            ],
        ),
        element("footer", element("p", f"Made by piggyback_tf {__version__}. Errors are in percent.")),
    )
    html = element("html", element("head", head), element("body", body), lang="en")
    return f"<!doctype html>\n{html}\n"
