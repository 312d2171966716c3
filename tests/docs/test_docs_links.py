"""Every link and every picture of a page leads somewhere, and so does every anchor."""

import os
import re
import unicodedata
from pathlib import Path

import pytest
import written

import usam

LINK = re.compile(r"\]\((?![a-z]+:)([^)\s]*)\)")
PICTURE = re.compile(r'(?:src|srcset)="(?![a-z]+:)([^"]*)"')


def anchors(page):
    """Those of its headings, and those that are set."""
    headings = re.findall(r"^#+ (.+)$", written.FENCE.sub("", written.text(page)), re.MULTILINE)
    return {slug(heading) for heading in headings} | set(re.findall(r'(?:id|name)="([^"]+)"', written.text(page)))


def slug(heading):
    """As the site has it, which for plain headings is GitHub's."""
    plain = re.sub(r"\]\([^)]*\)|[`*]", "", heading)
    ascii_ = unicodedata.normalize("NFKD", plain).encode("ascii", "ignore").decode()
    return re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", ascii_).strip().lower())


def is_there(path):
    """In the repository, or, where a wheel is tested, in the package that is installed."""
    roots = [written.ROOT, Path(usam.__file__).parents[1]]
    return any((root / path).exists() for root in roots)


@pytest.mark.parametrize("page", written.pages(), ids=written.name)
def test_links_lead_somewhere(page):
    broken = []
    for link in LINK.findall(written.prose(page)) + PICTURE.findall(written.prose(page)):
        path, _, anchor = link.partition("#")
        target = Path(os.path.normpath(page.parent / path)) if path else page
        if not is_there(target.relative_to(written.ROOT)):
            broken.append(link)
        elif anchor and target.suffix == ".md" and anchor not in anchors(target):
            broken.append(f"{link}: no such heading; there are {', '.join(sorted(anchors(target)))}")
    assert broken == []


@pytest.mark.parametrize("page", written.pages(), ids=written.name)
def test_a_page_begins_with_its_title(page):
    assert written.text(page).startswith("# ")


def test_links_are_found_where_a_line_ends_within_them():
    assert LINK.findall("see [the\npage](a.md#b), [there](https://c.d) and ![it](e.svg)") == ["a.md#b", "e.svg"]


def test_a_heading_has_the_anchor_of_the_site():
    assert slug("What `base` does: [RFC](x)") == "what-base-does-rfc"
