"""The page in a real browser: all parts are there, nothing is complained of, and nothing is asked of the network."""

import dataclasses
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from piggyback_tf.__main__ import main
from tests.evaluation.pages import page_of, write_answers
from tests.evaluation.test_page import write_run
from tests.packs.helpers import structured_pack

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
# Where the browser calls by itself, whatever it shows.
_ITS_OWN = re.compile(r"https?://([\w-]+\.)*(google|googleapis|gstatic)\.com[/:]")

pytestmark = pytest.mark.skipif(BROWSER is None, reason="needs chromium")


@dataclasses.dataclass
class Seen:
    """What a browser made of a page.

    Attributes:
        dom: The page as it is rendered.
        console: What was said in the console.
        requests: Addresses that were asked for, but those of the browser itself.
        picture: What it looks like, uint8 `[H, W, 3]`.
    """

    dom: str
    console: list[str]
    requests: set[str]
    picture: np.ndarray


def look(page: Path, folder: Path, width: int = 1000, height: int = 1600, *flags: str) -> Seen:
    """Returns what the browser makes of a page."""
    command = [BROWSER, "--headless", "--disable-gpu", "--hide-scrollbars", "--no-first-run", "--enable-logging=stderr"]
    command += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    # Root may make no sandbox, and a container no shared memory.
    command += [*(["--no-sandbox"] if os.geteuid() == 0 else []), "--disable-dev-shm-usage", *flags]
    command += [f"--user-data-dir={folder / 'profile'}", f"--window-size={width},{height}"]
    log, picture = folder / "net.json", folder / "picture.png"

    def run(*more: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [*command, *more, page.as_uri()], capture_output=True, text=True, timeout=120, check=True, cwd=folder
        )

    done = run(f"--log-net-log={log}", "--dump-dom")
    run(f"--screenshot={picture}")
    console = [line for line in done.stderr.splitlines() if ":CONSOLE" in line]
    found = set(re.findall(r'"url":"(https?://[^"]*)"', log.read_text(errors="replace")))
    with Image.open(picture) as image:
        pixels = np.asarray(image.convert("RGB"))
    return Seen(done.stdout, console, {url for url in found if not _ITS_OWN.match(url)}, pixels)


@pytest.fixture(name="page")
def _page(tmp_path):
    """A page with everything: a run of two methods, and two packs, one with answers to images."""
    folder = tmp_path / "packs"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for split in ("train", "val", "test"):
        for name in ("ant", "<script>alert(1)<|script>", "cat"):
            (tmp_path / "data" / split / name).mkdir(parents=True)
            for number in range(2):
                pixels = rng.integers(0, 255, (40, 60, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "data" / split / name / f"{number}.png")
    data = write_answers(folder, f"folder:{tmp_path / 'data'}")
    names = list(data.class_names)
    structured_pack(task="birds", class_names=names).save(folder / "birds.task.safetensors")
    structured_pack(seed=1, task="fish").save(folder / "fish.task.safetensors")
    page_of(tmp_path, write_run(tmp_path), folder)
    return tmp_path / "page.html"


def test_the_page_is_whole_and_asks_for_nothing(page, tmp_path):
    seen = look(page, tmp_path)
    assert seen.console == []
    assert seen.requests == set()
    assert "<!-- " not in seen.dom
    for caption in ("Errors and sizes", "Errors of each class", "Values by epoch", "Weights that a task does not use"):
        assert re.search(f"<caption>{caption}", seen.dom), caption
    assert seen.dom.count("<img") == 4
    assert "&lt;script&gt;alert(1)&lt;|script&gt;" in seen.dom
    assert "<script" not in seen.dom
    # The style counts: text is not Times on the page's edge, and the charts have their colour.
    assert (seen.picture[:, :19] == 255).all()
    assert np.any(np.all(np.abs(seen.picture.astype(int) - (0, 114, 178)) < 3, axis=2))


def test_dark_and_narrow(page, tmp_path):
    dark = look(page, tmp_path, 1000, 1600, "--blink-settings=preferredColorScheme=0").picture
    assert np.median(dark) < 40
    narrow = look(page, tmp_path, 500, 1600).picture
    assert narrow.shape[1] == 500
    # Nothing is wider than the page: what is, scrolls within its part.
    assert (narrow[:, -8:] == 255).all()


def test_this_test_would_see_what_a_page_asks_for(tmp_path):
    page = tmp_path / "bad.html"
    page.write_text(
        "<!doctype html><title>x</title><img src='http://127.0.0.1:9/x.png'><script>console.log(1)</script>"
    )
    seen = look(page, tmp_path)
    assert "http://127.0.0.1:9/x.png" in seen.requests
    assert len(seen.console) >= 1


def test_what_a_page_may_not_do_is_not_done(page, tmp_path):
    """Were something of others not escaped, the policy would keep it from the network, and the console would say so."""
    text = page.read_text()
    bad = "<img src='http://127.0.0.1:9/x.png'><script>document.title = 'taken'</script><p style='color:red'>x</p>"
    page.write_text(text.replace("<main>", f"<main>{bad}"))
    seen = look(page, tmp_path)
    assert seen.requests == set()
    assert len([line for line in seen.console if "Content Security Policy" in line]) == 3
    assert "<title>taken" not in seen.dom


@pytest.mark.slow
def test_the_page_of_a_real_training(tmp_path, capsys):
    arguments = ["--data=digits", "--backbone=shapesnet", "--epochs=2", "--baseline=classifier_only", "--verbose=0"]
    from tests.forked import run_forked

    done = run_forked("train.py", *arguments, f"--output_dir={tmp_path / 'run'}")
    assert done.returncode == 0, done.stderr
    assert main(["report", str(tmp_path / "run"), f"--output={tmp_path / 'page.html'}", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    seen = look(tmp_path / "page.html", tmp_path)
    assert (seen.console, seen.requests) == ([], set())
    assert seen.dom.count("<img") == sum(one["shown_images"] for one in answer["tasks"]) > 0
    for one in answer["tasks"]:
        test = one["errors"]["test"]
        assert one["wrong_images"] == round(test["top1_error"] * test["images"] / 100)
        assert one["missing"] == []
