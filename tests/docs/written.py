"""What is written: the pages of the repository, their blocks of code, and the commands in them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
FENCE = re.compile(r"^(```+)([^\n`]*)\n(.*?)^\1[^\S\n]*$", re.DOTALL | re.MULTILINE)
SHELL = ("", "console", "bash", "sh", "shell")
ENDS = ("|", "||", "&&", ";", "&", ">", ">>", "2>", "<")  # of a command in a line


@dataclass(frozen=True)
class Block:
    """A fenced block: where it begins, its language, its text, and the page that it stands in."""

    page: Path
    line: int
    kind: str
    text: str

    def __str__(self) -> str:
        return f"{name(self.page)}:{self.line}"


def pages() -> list[Path]:
    """Every page that is written by hand or by a script of the repository."""
    loose = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
    return [*loose, *sorted((ROOT / "docs").rglob("*.md")), *sorted(ROOT.glob("plugins/*/README.md"))]


def name(page: Path) -> str:
    """Its path in the repository."""
    return page.relative_to(ROOT).as_posix()


@cache
def text(page: Path) -> str:
    """What stands in it."""
    return page.read_text(encoding="utf-8")


def blocks(*kinds: str) -> list[Block]:
    """The blocks of some languages, in all pages."""
    return [block for page in pages() for block in blocks_of(page) if block.kind in kinds]


def blocks_of(page: Path) -> Iterator[Block]:
    """The blocks of a page."""
    for found in FENCE.finditer(text(page)):
        words = found[2].split()
        yield Block(page, text(page)[: found.start()].count("\n") + 1, words[0] if words else "", found[3])


def prose(page: Path) -> str:
    """A page without its blocks and its code."""
    return re.sub(r"`[^`\n]*`", "", FENCE.sub("", text(page)))


def commands() -> list[tuple[str, list[str]]]:
    """Every command of usam in the blocks, with its place: the words behind `usam`."""
    found = []
    for block in blocks(*SHELL):
        for line in _lines(block):
            found += [(str(block), words) for words in _calls(line)]
    return found


def mentions() -> list[tuple[str, list[str]]]:
    """Every command of usam that is named in a sentence; its arguments may be left out there."""
    spans = [
        (name(page), span.replace("\n", " "))
        for page in pages()
        for span in re.findall(r"(?<!`)`(usam [^`]*)`", FENCE.sub("", text(page)))
    ]
    return [(place, words) for place, span in spans for words in _calls(span)]


def _lines(block: Block) -> Iterator[str]:
    """The commands of a block, continued lines joined; with prompts, only what stands behind one."""
    lines = re.sub(r"\\\n\s*", " ", block.text).splitlines()
    prompted = [line[2:] for line in lines if line.startswith("$ ")]
    yield from prompted or ([] if block.kind == "console" else lines)


def _calls(line: str) -> Iterator[list[str]]:
    try:
        words = shlex.split(line, comments=True)
    except ValueError:  # an apostrophe: a sentence, and no command
        return
    while words:
        end = next((i for i, word in enumerate(words) if word in ENDS), len(words))
        call, words = words[:end], words[end + 1 :]
        start = next((i for i, word in enumerate(call) if word == "usam.cli" and call[i - 1] == "-m"), None)
        if start is None and "install" not in call:
            start = next((i for i, word in enumerate(call) if word == "usam" and not call[i - 1].startswith("-")), None)
        if start is not None:
            yield call[start + 1 :]
