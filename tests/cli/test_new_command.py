"""`usam new` writes a package whose component is found by its entry point and keeps every promise."""

import os
import re
import sys
import tomllib

import pytest

from usam.cli.new import FAMILIES, TEMPLATES
from usam.providers import registry_of

QUICK = ("metric", "reader", "augmentation", "suite", "loss")
EACH = [pytest.param(family, marks=[] if family in QUICK else [pytest.mark.slow]) for family in FAMILIES]


@pytest.fixture
def write(usam, tmp_path, monkeypatch):
    """Writes a package and puts it on the path as pip would, without a copy; returns its folder and its metadata."""
    monkeypatch.syspath_prepend(tmp_path)
    written = []

    def write(family, name="birdsong"):
        status, out, err = usam("new", family, name, "--into", tmp_path)
        assert status == 0, err
        folder = tmp_path / f"usam-{name.replace('_', '-')}"
        assert f"wrote {folder}" in out
        project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
        ((group, points),) = project["entry-points"].items()
        info = tmp_path / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
            f"Summary: {project['description']}\n"
        )
        lines = "".join(f"{point} = {target}\n" for point, target in points.items())
        (info / "entry_points.txt").write_text(f"[{group}]\n{lines}")
        monkeypatch.syspath_prepend(folder)
        registry_of(group).refresh()
        written.append(group)
        return folder, project

    yield write
    monkeypatch.undo()
    for name, module in list(sys.modules.items()):  # the next package has a test of the same name
        if str(getattr(module, "__file__", None)).startswith(str(tmp_path)):
            del sys.modules[name]
    for group in written:
        registry_of(group).refresh()


@pytest.mark.parametrize("family", EACH)
def test_its_own_test_passes_at_once(family, write):
    folder, _ = write(family)
    alone = ["-p", "no:cacheprovider", "-p", "no:xdist", "-c", os.devnull, f"--rootdir={folder}"]
    assert pytest.main(["-q", *alone, "--import-mode=importlib", str(folder / "tests")]) == pytest.ExitCode.OK


@pytest.mark.parametrize("family", FAMILIES)
def test_it_is_listed_with_its_package(family, write, usam):
    write(family, "my_own")
    lines = usam("list")[1].splitlines()
    (line,) = [line for line in lines if line.split()[:1] == ["my_own"]]
    assert line.split()[1:3] == ["usam-my-own", "0.1.0"]
    assert FAMILIES[family].kind in line.lower()


def test_every_family_that_packages_may_offer_can_be_written():
    from usam.registry import GROUPS

    assert {f"usam.{family.group}" for family in FAMILIES.values()} == set(GROUPS)


def test_a_template_leaves_nothing_to_fill_in(write):
    folder, _ = write("encoder")
    texts = [file.read_text() for file in folder.rglob("*") if file.suffix in (".py", ".toml", ".md")]
    assert len(texts) == 4
    assert not [text for text in texts if "$" in text]


def test_the_templates_go_with_the_package():
    assert {file.suffix for file in TEMPLATES.iterdir()} == {".txt"}  # no module of usam's


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("My-Encoder", "such as 'my_encoder'"),
        ("BirdSong", "such as 'bird_song'"),
        ("2nd", "write lower case letters first, then letters, digits and single '_', such as 'my_encoder'"),
        ("a__b", "such as 'a_b'"),
        ("end_", "such as 'end'"),
        ("../up", "such as 'up'"),
        ("naïve", "such as 'na_ve'"),
        ("", "such as 'my_encoder'"),
        ("usam_birds", "begins with usam- by itself: write .* such as 'birds'"),
        ("whisper", "usam has an encoder 'whisper' of its own"),
    ],
)
def test_a_name_that_cannot_be_one_is_refused_with_one_that_can(name, said, usam, tmp_path):
    status, _, err = usam("new", "encoder", name, "--into", tmp_path)
    assert status == 2
    assert re.search(said, err)
    assert not list(tmp_path.iterdir())


def test_a_name_of_another_family_is_free(write):
    write("metric", "whisper")


def test_a_name_of_an_installed_package_is_refused(write, usam, tmp_path):
    write("metric")
    _, _, err = usam("new", "metric", "birdsong", "--into", tmp_path / "other")
    assert "usam-birdsong 0.1.0, which is installed, offers a metric 'birdsong': take another name" in err
    _, _, err = usam("new", "encoder", "birdsong", "--into", tmp_path / "other")
    assert "a module 'usam_birdsong' is installed" in err


def test_nothing_is_overwritten(usam, tmp_path):
    (tmp_path / "usam-birdsong").mkdir()
    status, _, err = usam("new", "encoder", "birdsong", "--into", tmp_path)
    assert status == 2
    assert "is there already, and nothing was written" in err
    assert not list((tmp_path / "usam-birdsong").iterdir())


def test_a_family_that_there_is_not_is_refused(usam):
    status, _, err = usam("new", "encoders", "birdsong")
    assert status == 2
    assert "there is no family 'encoders'; did you mean 'encoder'?" in err
