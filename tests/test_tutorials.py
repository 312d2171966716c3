"""Tutorials say what happens: their files are written, their commands run, and what is printed is what they show."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import processes
import pytest

ROOT = Path(__file__).parents[1]
TUTORIALS = ROOT / "docs" / "tutorials"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
COMMANDS = {  # of usam, which a tutorial promises
    "own_data": 6,
    "compose": 6,
    "add_a_loss": 4,
    "long_audio": 5,
    "ablate": 4,
    "publish_a_plugin": 6,
    "several_gpus": 4,
    "serve": 3,
}
SLOW = {*COMMANDS} - {"own_data", "long_audio"}  # those that take more than a few seconds
NEEDS = {"serve": ("openai", "python_multipart", "starlette", "uvicorn")}  # packages that usam does without


def steps(page):
    """The commands of a page, each with the lines that it is said to print."""
    text = "".join(block for kind, block in BLOCK.findall(page) if kind == "console")
    commands = re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]
    return [(head, body.splitlines()) for head, _, body in (command.partition("\n") for command in commands)]


def assert_shown(shown, printed):
    """Lines follow each other as they are shown; `...` stands for any lines, and within one for any characters."""
    at, free = 0, False
    for line in shown:
        if line == "...":
            free = True
            continue
        pattern = re.compile(".*".join(map(re.escape, line.split("..."))))
        found = [i for i, other in enumerate(printed[at:], at) if pattern.fullmatch(other.rstrip())]
        assert found, f"{line!r} is not printed; left are {printed[at:]}"
        assert free or found[0] == at, f"before {line!r} comes {printed[at]!r}"
        at, free = found[0] + 1, False
    assert free or printed[at:] == []


def write_files(page, folder):
    """Every block that begins with a comment naming a file."""
    for _, block in BLOCK.findall(page):
        if name := re.match(r"# ([\w./-]+\.\w+)\n", block):
            (folder / name[1]).parent.mkdir(parents=True, exist_ok=True)
            (folder / name[1]).write_text(block)


def changed(folder, arguments, monkeypatch):
    """`pip install` of a folder, without the network, into a place that is on the path of what follows; or its end."""
    asked, *options, package = arguments
    assert set(options) <= {"--quiet", "--yes"}
    site = folder / "site-packages"
    if asked == "uninstall":
        assert list(site.glob(f"{package.replace('-', '_')}-*.dist-info"))
        shutil.rmtree(site)  # pip removes nothing outside its own environment
        return ""
    assert asked == "install"
    offline = ["--no-index", "--no-deps", "--no-build-isolation", "--disable-pip-version-check"]
    package = package.partition("[")[0]
    subprocess.run([sys.executable, "-m", "pip", "-q", "install", *offline, "--target", site, package], check=True)
    monkeypatch.syspath_prepend(site)
    return ""


@pytest.fixture
def started():
    """Processes behind the shell, which end with the tutorial."""
    behind = []
    yield behind
    for process in behind:
        process.terminate()
        process.join()


def begun(command):
    """The process of `COMMAND > NAME.out &`, which has printed a line."""
    command, file = re.fullmatch(r"(.*) > (\w+\.out) &", command).groups()
    program, *arguments = shlex.split(command)
    out = Path(file).absolute()
    process = processes.start(out.parent, *arguments, name=out.stem, program=program)
    while not (out.is_file() and out.read_text().endswith("\n")):
        process.join(0.1)
        assert process.is_alive(), out.with_suffix(".err").read_text()
    return process


def said_by(command, folder, monkeypatch, started):
    """Standard output of a command that ends well; of `COMMAND || echo status $?` all that it says."""
    if command.endswith(" &"):
        started.append(begun(command))
        return ""
    command, fails, _ = command.partition(" || echo status $?")
    program, *arguments = shlex.split(command)
    if program == "pip":
        return changed(folder, arguments, monkeypatch)
    if program == "torchrun":
        assert arguments[:2] == ["--standalone", "--nproc_per_node"]
        assert arguments[3:5] == ["-m", "usam.cli"]
        processes.ranks(folder, *arguments[5:], count=int(arguments[2]))
        return (folder / "rank0.out").read_text()
    status, out, err = processes.command(folder, program, *arguments)
    if fails:
        return f"{out}{err}status {status}\n"
    assert status == 0, out + err
    return out


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in COMMANDS]
)
def test_a_tutorial_does_what_it_says(name, tmp_path, monkeypatch, started):
    for package in NEEDS.get(name, ()):
        pytest.importorskip(package, reason=f"{package} is not installed")
    page = (TUTORIALS / f"{name}.md").read_text(encoding="utf-8")
    work, said = tmp_path / "work", tmp_path / "said"
    work.mkdir()
    said.mkdir()
    monkeypatch.chdir(work)
    write_files(page, work)
    asked = steps(page)
    assert sum(bool(re.match(r"usam |torchrun .* -m usam\.cli ", command)) for command, _ in asked) == COMMANDS[name]
    for command, shown in asked:
        assert_shown(shown, said_by(command, said, monkeypatch, started).splitlines())


def test_every_tutorial_is_run():
    assert {page.stem for page in TUTORIALS.glob("*.md")} == set(COMMANDS)


@pytest.mark.parametrize("page", sorted(TUTORIALS.glob("*.md")), ids=lambda page: page.stem)
def test_links_of_a_tutorial_lead_somewhere(page):
    links = re.findall(r"\]\((?!https?:|#)([^)]*)\)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link.partition("#")[0]).exists()] == []
