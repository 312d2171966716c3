"""Readers of installed packages are recognised too, and imported only where none of usam's own fits."""

import sys

import pytest

from usam.cli.doctor import examine
from usam.data.manifest import Manifest, ManifestError
from usam.readers import registry

BIRDS = '''
from usam.readers import Form, Layout

class Birds(Layout):
    """Rows of a bird watcher."""
    forms = (Form(("song", "bird")),)
    def said(self, row):
        return {"audio": row["song"], "prompt": "Which bird?", "answer": row["bird"]}
'''


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Installs a package `bird_watch` that offers the reader `birds`."""
    monkeypatch.syspath_prepend(tmp_path)

    def install(source=BIRDS):
        (tmp_path / "bird_watch.py").write_text(source)
        info = tmp_path / "bird_watch-2.1.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: bird-watch\nVersion: 2.1\n")
        (info / "entry_points.txt").write_text("[usam.readers]\nbirds = bird_watch:Birds\n")
        registry.refresh()

    yield install
    sys.modules.pop("bird_watch", None)
    monkeypatch.undo()
    registry.refresh()


ROW = {"song": "a.wav", "bird": "robin"}


def test_a_packages_format_is_recognised(install):
    install()
    assert Manifest.of([ROW])[0].answer == "robin"
    assert Manifest.of([ROW], reader="bird-watch:birds")[0].answer == "robin"


def test_it_is_not_imported_for_a_format_of_usams_own(install):
    install()
    Manifest.of([{"wav": "a.wav", "txt": "x"}], {"asr": "Transcribe."})
    assert "bird_watch" not in sys.modules


def test_its_format_is_the_nearest(install):
    install()
    with pytest.raises(ManifestError, match="nearest format is 'bird-watch:birds': it has 'place' too many"):
        Manifest.of([{**ROW, "place": "wood"}])


def test_one_that_fails_concerns_only_who_has_its_format(install):
    install("import no_such_module")
    assert Manifest.of([{"prompt": "x", "answer": "y"}])[0].answer == "y"
    with pytest.raises(ManifestError, match=r"nearest format is (.|\n)*not asked: .*'birds' of bird-watch 2.1 failed"):
        Manifest.of([{"conversation": [], "song": "a.wav"}])


def test_usam_list_and_the_doctor_know_it(install, usam):
    install()
    _, out, _ = usam("list")
    assert "\n  birds " in out.partition("usam.readers\n")[2]
    assert ("usam.readers", "birds", "bird-watch 2.1", "loads") in examine().rows
