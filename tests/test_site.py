"""The site is built without a warning, and every public name is on it."""

import html.parser
import importlib
import importlib.util
import os
import re
import subprocess
import sys
import urllib.parse
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def exported() -> dict[str, set[str]]:
    """Returns what each package exports, found by its files."""
    found = {}
    for path in sorted((ROOT / "piggyback_tf").rglob("__init__.py")):
        package = ".".join(path.parent.relative_to(ROOT).parts)
        if re.search(r"^__all__ = ", path.read_text(), re.M):
            found[package] = set(importlib.import_module(package).__all__)
    return found


EXPORTED = exported()


class Links(html.parser.HTMLParser):
    """Collects where the links of a page lead, and the anchors that it has."""

    def __init__(self, text: str):
        super().__init__()
        self.targets: set[str] = set()
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.anchors |= {found[name] for name in ("id", "name") if found.get(name)}
        if tag == "a" and found.get("href"):
            self.targets.add(found["href"])


def dead_links(site: Path) -> list[str]:
    """Returns the links between the files of a site that lead nowhere."""
    pages = {page: Links(page.read_text()) for page in site.rglob("*.html")}
    dead = []
    for page, links in pages.items():
        for target in links.targets:
            path, _, anchor = urllib.parse.unquote(target).partition("#")
            if re.match("[a-z]+:|/", path):
                continue
            file = (page.parent / path).resolve() if path else page
            if not file.exists() or (anchor and file in pages and anchor not in pages[file].anchors):
                dead.append(f"{page.relative_to(site)}: {target}")
    return sorted(dead)


class Headings(html.parser.HTMLParser):
    """Collects the headings of a page, and the names in links to other headings."""

    def __init__(self, text: str):
        super().__init__()
        self.found: set[str] = set()
        self._texts: list[str] | None = None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        if re.fullmatch("h[1-6]", tag) or (tag == "a" and "autorefs" in (dict(attrs).get("class") or "")):
            self._texts = []

    def handle_data(self, data):
        if self._texts is not None:
            self._texts.append(data.strip())

    def handle_endtag(self, tag):
        if self._texts is not None and re.fullmatch("h[1-6]|a", tag):
            # A heading ends with a link to itself.
            self.found.add("".join(self._texts).removesuffix("¶"))
            self._texts = None


def missing(package: str, found: set[str]) -> set[str]:
    """Returns the names that a page of a package has neither described nor led to."""
    return {name for name in EXPORTED[package] if not {f"{package}.{name}", name} & found}


@pytest.fixture(scope="module", name="site_pages")
def _site_pages():
    spec = importlib.util.spec_from_file_location("site_pages", ROOT / "tools" / "site_pages.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_packages_with_exports_are_found():
    assert {"piggyback_tf", "piggyback_tf.packs", "piggyback_tf.problems.heads"} <= set(EXPORTED)
    assert sum(map(len, EXPORTED.values())) > 150


def test_every_package_has_a_page_with_all_of_its_names(site_pages):
    pages = site_pages.api_pages()
    assert set(pages) == {site_pages.page_of(package) for package in EXPORTED}
    for package in EXPORTED:
        text = pages[site_pages.page_of(package)]
        found = {*re.findall(r"^      heading: (\S+)$", text, re.M), *re.findall(r"^- \[`(\w+)`\]", text, re.M)}
        assert missing(package, found) == set()


def test_links_lead_to_pages_of_the_site(site_pages):
    text = "[a](docs/litert.md#images) [b](CHANGELOG.md) [c](https://example.org/docs/x.md) [d](#here)"
    assert site_pages.site_links(text, "README.md") == (
        "[a](litert.md#images) [b](changelog.md) [c](https://example.org/docs/x.md) [d](#here)"
    )
    assert site_pages.site_links("[e](../../../docs/litert.md)", "export/edge/cpp/README.md") == "[e](litert.md)"
    assert site_pages.site_links("[f](../README.md) [g](serving.md)", "docs/a.md") == "[f](index.md) [g](serving.md)"


PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "export/edge/cpp/README.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_lists_are_lists_on_the_site_as_on_github(page):
    """MkDocs' Markdown needs four spaces for what is within an item, and an empty line before a list."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.M | re.S)
    marker = r"(?:[-*]|\d+\.) "
    assert not re.findall(rf"^ {{1,3}}{marker}.*", text, re.M)
    assert not re.findall(r"\n\n {1,3}\S.*", text)
    assert not re.findall(rf"^(?!\s|{marker}|\n).+\n{marker}.*", text, re.M)
    # After a paragraph that belongs to an item the next item needs one, too.
    assert not re.findall(rf"^ {{4}}(?!\s|{marker}|\|).+\n{marker}.*", text, re.M)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_lines_of_prose_end_at_120_characters(page):
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.M | re.S)
    assert [line for line in text.splitlines() if len(line) > 120 and not line.startswith(("|", "    "))] == []


@pytest.mark.slow
def test_it_is_built_without_a_warning(tmp_path, site_pages):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    repository = "https://example.org/somebody/piggyback_tf"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1"}
    environment["PIGGYBACK_REPOSITORY"] = repository
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "WARNING -" not in done.stderr
    for package in EXPORTED:
        page = tmp_path / "site" / Path(site_pages.page_of(package)).with_suffix(".html")
        assert missing(package, Headings(page.read_text()).found) == set()
    assert dead_links(tmp_path / "site") == []
    settings = (tmp_path / "site" / "api" / "settings.html").read_text()
    assert "Passes over the training images." in settings, "settings have no text"
    assert f'<a href="{repository}"' in (tmp_path / "site" / "commands.html").read_text()
    # No page asks another server for anything when it is opened.
    for page in (tmp_path / "site").rglob("*.html"):
        assert not re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="(?:https?:)?//[^"]+"', page.read_text()), page
