"""A folder is saved whole or not at all."""

import errno
import os
import subprocess
import sys

import pytest

from usam import saving
from usam.saving import SavingError, whole, write_whole


def texts(folder):
    return {str(f.relative_to(folder)): f.read_text() for f in sorted(folder.rglob("*")) if f.is_file()}


def write(folder, text, replaces=(), names=("a", "b")):
    with whole(folder, replaces) as place:
        for name in names:
            (place / name).write_text(text)


@pytest.fixture(params=["exchanged", "moved"])
def place(request, tmp_path, monkeypatch):
    """A folder where the system exchanges two folders in one step, or cannot."""
    if request.param == "moved":

        def refuse(one, other):
            raise OSError(errno.ENOSYS, "not here")

        monkeypatch.setattr(saving, "_exchange", refuse)
    return tmp_path / "folder"


def test_what_is_written_is_there_in_the_end_and_nothing_else(place):
    write(place, "1")
    write(place, "2")
    assert texts(place) == {"a": "2", "b": "2"}
    assert os.listdir(place.parent) == ["folder"]


def test_what_else_is_in_the_folder_stays(place):
    (place / "deep").mkdir(parents=True)
    (place / "deep" / "c").write_text("0")
    (place / "old-1").write_text("0")
    write(place, "1", replaces=["old-*"])
    assert texts(place) == {"a": "1", "b": "1", "deep/c": "0"}


def test_a_failure_leaves_what_was_there(place):
    write(place, "1")
    with pytest.raises(TypeError):
        write(place, 2)
    assert texts(place) == {"a": "1", "b": "1"}
    assert os.listdir(place.parent) == ["folder"]


def test_saves_within_a_save_are_one(place):
    write(place, "1")
    with whole(place) as outer:
        with whole(outer) as inner:
            (inner / "a").write_text("2")
        assert texts(place)["a"] == "1"
    assert texts(place) == {"a": "2", "b": "1"}


def test_a_killed_save_leaves_what_was_there_and_the_next_one_cleans_up(place):
    write(place, "1")
    code = (
        "import os, sys; from usam.saving import whole\n"
        "with whole(sys.argv[1]) as staged:\n  (staged / 'a').write_text('2'); os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", code, place], check=False).returncode == -9
    assert texts(place) == {"a": "1", "b": "1"}
    assert len(os.listdir(place.parent)) == 2
    write(place, "3")
    assert os.listdir(place.parent) == ["folder"]
    assert texts(place) == {"a": "3", "b": "3"}


def test_a_link_to_a_folder_stays_a_link(place):
    write(place, "1")
    link = place.with_name("link")
    link.symlink_to(place)
    write(link, "2")
    assert link.is_symlink()
    assert texts(place) == {"a": "2", "b": "2"}


def test_a_folder_whose_parent_takes_nothing_new_is_written_from_inside(tmp_path, monkeypatch):
    folder = tmp_path / "mounted"
    write(folder, "1")
    monkeypatch.setattr(os.path, "ismount", lambda path: str(path) == str(folder))
    write(folder, "2", names=("a",))
    assert texts(folder) == {"a": "2", "b": "1"}
    assert sorted(os.listdir(folder)) == ["a", "b"]


def test_a_file_is_no_folder_to_save_in(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SavingError, match=r"file: could not be saved: is a file; name a folder"):
        write(tmp_path / "file", "1")


def test_a_small_file_is_whole_or_what_it_was(tmp_path):
    write_whole(tmp_path / "deep" / "a", "1")
    (tmp_path / "folder").mkdir()
    with pytest.raises(SavingError, match="folder: could not be saved"):
        write_whole(tmp_path / "folder", "1")
    assert sorted(os.listdir(tmp_path)) == ["deep", "folder"]
    assert texts(tmp_path) == {"deep/a": "1"}
