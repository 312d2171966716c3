"""Tutorials say what happens: their files are written, their commands run, and what is printed is what they show."""

import re
import runpy
import shlex
from pathlib import Path

import pytest

TUTORIALS = Path(__file__).parents[1] / "docs" / "tutorials"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
COMMANDS = {"own_data": 6}  # of usam, which a tutorial promises


def steps(page):
    """The commands of a page, each with the lines that it is said to print."""
    text = "".join(block for kind, block in BLOCK.findall(page) if kind == "console")
    commands = re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]
    return [(head, body.splitlines()) for head, _, body in (command.partition("\n") for command in commands)]


def assert_shown(shown, printed):
    """Lines follow each other as they are shown; `...` stands for any number of lines."""
    at, free = 0, False
    for line in shown:
        if line == "...":
            free = True
            continue
        if free:
            assert line in printed[at:], f"{line!r} is not printed"
            at = printed.index(line, at)
        else:
            assert printed[at : at + 1] == [line]
        at, free = at + 1, False
    assert free or printed[at:] == []


def write_files(page, folder):
    """Every block that begins with a comment naming a file."""
    for _, block in BLOCK.findall(page):
        if name := re.match(r"# ([\w.]+)\n", block):
            (folder / name[1]).write_text(block)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_tutorial_does_what_it_says(name, usam, tmp_path, monkeypatch):
    page = (TUTORIALS / f"{name}.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    write_files(page, tmp_path)
    asked = steps(page)
    assert sum(command.startswith("usam ") for command, _ in asked) == COMMANDS[name]
    for command, shown in asked:
        program, *arguments = shlex.split(command)
        if program == "python":
            runpy.run_path(arguments[0], run_name="__main__")
            continue
        assert program == "usam"
        status, out, err = usam(*arguments)
        assert status == 0, err
        assert_shown(shown, out.splitlines())


def test_every_tutorial_is_run():
    assert {page.stem for page in TUTORIALS.glob("*.md")} == set(COMMANDS)


@pytest.mark.parametrize("page", sorted(TUTORIALS.glob("*.md")), ids=lambda page: page.stem)
def test_links_of_a_tutorial_lead_somewhere(page):
    links = re.findall(r"\]\((?!https?:|#)([^)]*)\)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []
