"""Pages of the site that are made of other files; a hook of MkDocs (mkdocs.yml).

README, CONTRIBUTING and CHANGELOG stand outside of docs/, where GitHub looks for them. Each public package has a page
with all that it exports, so that a new name needs no page of its own.
"""

import importlib
import inspect
import os
import pkgutil
import re
from pathlib import Path
from typing import Any

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "piggyback_tf"
OUTSIDE = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "export/edge/cpp/README.md": "edge-cpp.md",
}


def public_packages() -> list[str]:
    """Returns the names of the packages that say what they export, the top one first."""
    top = importlib.import_module(PACKAGE)
    # The folder `export` beside it in a checkout exports no names.
    found = pkgutil.walk_packages([str(ROOT / PACKAGE)], f"{PACKAGE}.")
    packages = [top, *(importlib.import_module(each.name) for each in found if each.ispkg)]
    return [package.__name__ for package in packages if hasattr(package, "__all__")]


def page_of(package: str) -> str:
    """Returns the path of a package's page."""
    return f"api/{package.removeprefix(f'{PACKAGE}.')}.md"


def defined_in(package: str, name: str, tree: griffe.Module) -> str:
    """Returns the dotted path at which something that a package exports is defined.

    Args:
        package: The package's name.
        name: What it exports.
        tree: The top package, as griffe reads it.
    """
    value = getattr(importlib.import_module(package), name)
    if inspect.isclass(value) or inspect.isfunction(value):
        return f"{value.__module__}.{value.__qualname__}"
    found = tree[f"{package}.{name}".removeprefix(f"{PACKAGE}.")]
    return found.target_path if found.is_alias else found.path


def api_pages() -> dict[str, str]:
    """Returns the text of each package's page by its path."""
    tree: Any = griffe.load(PACKAGE, search_paths=[str(ROOT)])
    pages, documented = {}, {}
    for package in public_packages():
        module = importlib.import_module(package)
        own, others = [], []
        for name in sorted(module.__all__, key=lambda name: (name.isupper(), name.lower())):
            path = defined_in(package, name, tree)
            if path in documented:
                others.append(f"- [`{name}`][{documented[path]}]")
                continue
            documented[path] = path
            heading = f"{package}.{name}"
            own.append(f"::: {path}\n    options:\n      heading: {heading}\n      toc_label: {name}\n")
        text = [f"# {package}", inspect.getdoc(module) or "", *own]
        if others:
            text += ["## Also here", "\n".join(others)]
        pages[page_of(package)] = "\n\n".join(text) + "\n"
    return pages


def site_links(text: str, file: str) -> str:
    """Returns Markdown whose links lead to pages of the site.

    Args:
        text: The Markdown.
        file: The path of the file that it comes from, relative to the checkout.
    """

    def lead(match: re.Match[str]) -> str:
        path, hash_, anchor = match[1].partition("#")
        target = os.path.normpath(Path(file).parent / path)
        page = OUTSIDE.get(target) or target.removeprefix("docs/")
        # All pages that are written here, and all Markdown of docs/, lie on the top level of the site.
        return f"]({page}{hash_}{anchor})"

    return re.sub(r"\]\((?![a-z]+://|#)([^)\s]+)\)", lead, text)


def linked_files() -> set[str]:
    """Returns the files outside of docs/ to which its pages lead and that are no pages, relative to the checkout."""
    found = set()
    for page in (ROOT / "docs").rglob("*.md"):
        for path in re.findall(r"\]\((\.\./[^)\s#]+)\)", page.read_text()):
            found.add(os.path.relpath((page.parent / path).resolve(), ROOT))
    return {path for path in found if path not in OUTSIDE}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages, and the files to which pages lead."""
    for path in sorted(linked_files()):
        files.append(File.generated(config, path, abs_src_path=str(ROOT / path)))
    for name, page in OUTSIDE.items():
        files.append(File.generated(config, page, content=site_links((ROOT / name).read_text(), name)))
    for page, text in api_pages().items():
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Leads links out of docs/ to the pages that the site has of these files."""
    return markdown if page.file.generated_by else site_links(markdown, f"docs/{page.file.src_uri}")


def on_page_content(html: str, page: Page, **_: Any) -> str:
    """Leads links in notebooks, which are HTML already when MkDocs gets them, to pages of the site."""
    if not page.file.src_uri.endswith(".ipynb"):
        return html
    return re.sub(r'href="(?![a-z]+:)([^"#]+)\.(?:md|ipynb)(?=["#])', r'href="\1.html', html)
