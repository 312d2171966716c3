"""Makes the site: gathers its pages in build/docs/pages, with links as it has them, and builds build/docs/site.

A page in the repository links to files as they lie there. In the site a plugin's README and the changelog are pages
too, a component's file has its place in the reference (docs/reference.py), and links lead to those; a link to any other
file outside docs/ becomes its text. Which page stands where is said by mkdocs.yml, and by nothing else.
"""

from __future__ import annotations

import argparse
import os
import posixpath
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import reference
import yaml

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "mkdocs.yml"
BUILDERS = ("zensical", "mkdocs")  # the first is the one of `make docs`

SHOWN = {  # what a page of the site is about, so that a link to it in the repository leads to that page
    "README.md": "index.md", "plugins": "plugins.md", "docs/reference.py": "reference/index.md",
    "usam/__init__.py": "reference/python.md", "usam/cli": "reference/command.md", "usam/specs": "reference/specs.md",
    "usam/spec/schema.py": "reference/spec.md", "usam/training/run.py": "reference/run.md",
}  # fmt: skip

FENCE = re.compile(r"(^```.*?^```[^\S\n]*$)", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\[\]]*\])*)\]\(([^()\s]+)\)")
PICTURE = re.compile(r'<picture>\s*<source [^>]*srcset="([^"]+)">\s*<img alt="([^"]*)" src="([^"]+)">\s*</picture>')


def gather() -> dict[str, str | Path]:
    """What the site is made of, by its path there: the text of a page, or another file."""
    found: dict[str, str | Path] = {}
    for path, file in sources().items():
        found[path] = linked(file, path) if file.suffix == ".md" else file
    return {**found, **reference.pages()}


def sources() -> dict[str, Path]:
    """Files of the repository by their path in the site."""
    docs = ROOT / "docs"
    kept = (".md", ".svg", ".png", ".css")
    found = {file.relative_to(docs).as_posix(): file for file in sorted(docs.rglob("*")) if file.suffix in kept}
    plugins = {f"plugins/{file.parent.name}.md": file for file in sorted(ROOT.glob("plugins/*/README.md"))}
    return {**found, **plugins, "changelog.md": ROOT / "CHANGELOG.md", "contributing.md": ROOT / "CONTRIBUTING.md"}


def places() -> dict[str, str]:
    """Where in the site a file or folder of the repository is shown, by its path there."""
    found = {file.relative_to(ROOT).as_posix(): path for path, file in sources().items()}
    found |= {file.rpartition("/")[0]: path for file, path in found.items() if file.endswith("/README.md")}
    for group in reference.GROUPS:
        folder = group.replace(".", "/")
        page = f"reference/{folder.rpartition('/')[2]}.md"
        found |= {f"{folder}/{name}.py": f"{page}#{name}" for name, _ in reference.built_in(group)} | {folder: page}
    return {**found, **SHOWN}


def linked(file: Path, path: str) -> str:
    """The text of a page, its links as the site has them; blocks of code are left alone."""
    known, here = places(), file.parent.relative_to(ROOT).as_posix()

    def link(found: re.Match[str]) -> str:
        mark, text, target = found.groups()
        name, _, anchor = target.partition("#")
        if re.match(r"[a-z]+:", target) or not name:
            return found[0]
        place = known.get(posixpath.normpath(f"{here}/{name}"))
        if place is None:
            return text
        place, _, section = place.partition("#")
        relative = posixpath.relpath(place, posixpath.dirname(path) or ".")
        return f"{mark}[{text}]({relative}{'#' if anchor or section else ''}{anchor or section})"

    def picture(found: re.Match[str]) -> str:
        dark, words, light = found.groups()
        return f"![{words}]({light}#only-light)\n![{words}]({dark}#only-dark)"

    parts = FENCE.split(file.read_text(encoding="utf-8"))
    return "".join(part if i % 2 else LINK.sub(link, PICTURE.sub(picture, part)) for i, part in enumerate(parts))


def navigation(entries: Any = None) -> Iterator[str]:
    """The pages that mkdocs.yml names, in its order."""
    for entry in yaml.safe_load(CONFIG.read_text(encoding="utf-8"))["nav"] if entries is None else entries:
        below = next(iter(entry.values())) if isinstance(entry, dict) else entry
        if isinstance(below, str):
            yield below
        else:
            yield from navigation(below)


def faults(paths: set[str]) -> list[str]:
    """What is wrong with the navigation: a page that it does not name, or a name that is no page."""
    named = list(navigation())
    twice = {name for name in named if named.count(name) > 1}
    return [
        *(f"{name}: mkdocs.yml does not name it in nav" for name in sorted(paths - {*named})),
        *(f"{name}: mkdocs.yml names it in nav, and there is no such page" for name in sorted({*named} - paths)),
        *(f"{name}: mkdocs.yml names it twice" for name in sorted(twice)),
    ]


def write(folder: Path) -> None:
    """Gather the pages in a folder that is made anew.

    Raises:
        SystemExit: the navigation does not fit the pages.
    """
    found = gather()
    if wrong := faults({path for path in found if path.endswith(".md")}):
        raise SystemExit("\n".join(wrong))
    shutil.rmtree(folder, ignore_errors=True)
    for path, content in found.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, Path):
            shutil.copyfile(content, folder / path)
        else:
            (folder / path).write_text(content, encoding="utf-8")


def main() -> None:
    """Gather the pages, and build them; any warning is an error."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--with", dest="builder", choices=BUILDERS, default=next(iter(BUILDERS)), help="What builds.")
    parser.add_argument("--into", type=Path, default=ROOT / "build" / "docs", help="Folder of `pages` and `site`.")
    asked = parser.parse_args()
    folder = asked.into.resolve()
    write(folder / "pages")
    shutil.rmtree(folder / "site", ignore_errors=True)
    # Paths in the file are taken from where it lies, and zensical takes no others.
    text = CONFIG.read_text(encoding="utf-8").replace("build/docs/", "")
    (folder / CONFIG.name).write_text(text, encoding="utf-8")
    env = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}  # an advertisement
    subprocess.run(
        [sys.executable, "-m", asked.builder, "build", "--clean", "--strict"], cwd=folder, env=env, check=True
    )
    print(f"built with {asked.builder}: {folder / 'site' / 'index.html'}")


if __name__ == "__main__":
    main()
