"""An index says where each row of a large manifest lies: offsets in a file that processes map and share.

It is kept in a folder `.NAME.usam` beside the manifest, or in the user's cache where that place cannot be written. What
is in there is derived, and may be removed at any time: what is stale, broken or of another version is made anew.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import struct
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from usam.readers import ManifestError, Placed, Source
from usam.readers.json import Json
from usam.readers.webdataset import Member
from usam.saving import SavingError, writing

logger = logging.getLogger(__name__)

FORMAT = 1
ROW = np.dtype([("offset", "<u8"), ("size", "<u8"), ("crc", "<u4"), ("place", "<u4")])
"""Where the bytes of a row are, their checksum, and its line; in a spool the checksum of what its place is called."""
PACK = struct.Struct("<QQII").pack

ALIGNED = 64
CHECKED = 8  # sets of options for which an index remembers that all rows are right
MEMBER = "usam:member"  # how a spool says a member of an archive

Rows = Callable[[], Iterable[Placed]]


class Index:
    """The places of all rows of a manifest: lines of the file itself, or of a spool that was written of it.

    A spool holds the rows of files that cannot be read from the middle (packed, CSV, arrays, tables) as lines of JSON.

    Args:
        path: the manifest.
        file: whose lines the rows are.
        rows: `ROW` of each.
        head: what the index was made of, as plain data.
        home: the folder it is kept in; None keeps it in memory.
    """

    def __init__(self, path: Path, file: Path, rows: NDArray[Any], head: dict[str, Any], home: Path | None) -> None:
        self.path, self.file, self.head, self.home = path, file, head, home
        self._rows: NDArray[Any] | None = rows
        self._open: Any = None

    def __getstate__(self) -> dict[str, Any]:
        """Without the rows, where another process can map them too."""
        return self.__dict__ | {"_open": None, "_rows": self._rows if self.home is None else None}

    def __len__(self) -> int:
        return int(self.head["rows"])

    @property
    def rows(self) -> NDArray[Any]:
        """`ROW` of each row."""
        if self._rows is None:
            assert self.home is not None
            found = get_array(self.home / "index", ROW, self.head["crc"])
            if found is None:
                raise ManifestError(f"{self.path}: its index was removed or made anew by another process; start again")
            self._rows = found[1]
        return self._rows

    @property
    def spooled(self) -> bool:
        """Whether the rows lie in a spool."""
        return self.file != self.path

    @property
    def hash(self) -> str:
        """SHA-256 of the manifest's bytes."""
        return str(self.head["hash"])

    def line(self, row: int) -> bytes | None:
        """The bytes of a row as they were when the index was made; None when they are others now."""
        where = self.rows[row]
        try:
            if self._open is None:
                self._open = self.file.open("rb", buffering=0)
            found = os.pread(self._open.fileno(), int(where["size"]), int(where["offset"]))
        except OSError:
            return None
        return found if zlib.crc32(found) == where["crc"] else None

    def keep(self, name: str, head: Mapping[str, Any], values: NDArray[Any]) -> None:
        """Keep values of all rows beside the index, where that can be."""
        if self.home is not None:
            try:
                put_array(self.home / name, head, values)
            except SavingError as error:
                logger.warning("%s", error)

    def kept(self, name: str, dtype: np.dtype[Any]) -> tuple[dict[str, Any], NDArray[Any]] | None:
        """What `keep` kept, mapped: of all rows, or None."""
        found = None if self.home is None else get_array(self.home / name, dtype)
        return found if found is not None and len(found[1]) == len(self) else None

    def checked(self, key: str) -> list[str] | None:
        """What was remembered of a set of options for which every row is right."""
        return cast("list[str] | None", self.head["checked"].get(key))

    def remember(self, key: str, what: list[str]) -> None:
        """Remember that every row is right with a set of options."""
        others = [(k, v) for k, v in self.head["checked"].items() if k != key]
        self.head["checked"] = {**dict(others[1 - CHECKED :]), key: what}
        self.keep("index", self.head, self.rows)


def known(path: Path, source: Source) -> Index | None:
    """The index that was made of a manifest as it is now; None when there is none."""
    for home in _homes(path):
        found = get_array(home / "index", ROW)
        if found is None:
            continue
        head, rows = found
        spool = head.get("spool")
        if head.get("format") != FORMAT or head.get("source") != _made_by(source):
            continue
        if spool is not None and (spool["name"] != str(path) or _size(home / "rows") != spool["size"]):
            continue
        now = stamp(path)
        if head["stamp"] != now:  # copied, or only touched
            if content(path) != head["hash"] or stamp(path) != now:
                continue
            head["stamp"] = now
        index = Index(path, path if spool is None else home / "rows", rows, head, home)
        if head["stamp"] != found[0]["stamp"]:
            index.keep("index", head, rows)
        return index
    return None


def build(path: Path, source: Source, rows: Rows) -> Index | None:
    """Make the index of a manifest, and its spool where it needs one.

    Args:
        path: the manifest.
        source: what opens it.
        rows: reads it from the start.

    Returns:
        None when rows hold what JSON cannot say, such as bytes of sound, or there is no place for a spool.

    Raises:
        ManifestError: it cannot be read, or changes meanwhile.
    """
    before = stamp(path)
    head = {"format": FORMAT, "source": _made_by(source), "stamp": before, "checked": {}, "spool": None}
    lines = _scan(path) if isinstance(source, Json) and source.by_lines() else None
    homes = _homes(path)
    if lines is not None:
        packed, head["hash"] = lines
    else:
        spooled = _spool(homes, rows)
        if spooled is None:
            return None
        packed, home, size = spooled
        homes, head["hash"], head["spool"] = [home], content(path), {"name": str(path), "size": size}
    if stamp(path) != before:
        raise ManifestError(f"{path}: changed while it was read; start again when it is written")
    found = np.frombuffer(packed, ROW)
    for home in homes:
        try:
            put_array(home / "index", head, found)
        except SavingError as error:
            logger.info("%s", error)
            continue
        mapped = get_array(home / "index", ROW)
        if mapped is not None:
            return Index(path, path if head["spool"] is None else home / "rows", mapped[1], mapped[0], home)
    if head["spool"] is not None:
        return None
    logger.warning("%s: no place for its index, so that every start reads all of it; set XDG_CACHE_HOME", path)
    return Index(path, path, found, {**head, "rows": len(found)}, None)


def _scan(path: Path) -> tuple[bytearray, str] | None:
    """`ROW` of each row, and the SHA-256; None when lines end in what only readers of text know."""
    offset, number, digest, packed = 0, 0, hashlib.sha256(), bytearray()
    try:
        with path.open("rb", buffering=1 << 16) as handle:
            for number, line in enumerate(handle, 1):
                size = len(line)
                if b"\r" in line and b"\r" in line.removesuffix(b"\r\n"):
                    return None
                if line[0] in b"{[" or not _blank(line):
                    packed += PACK(offset, size, zlib.crc32(line), number)
                digest.update(line)
                offset += size
    except OSError as error:
        raise ManifestError(f"{path}:{number + 1}: cannot be read: {error.strerror or error}") from error
    return packed, digest.hexdigest()


def _blank(line: bytes) -> bool:
    text = line.decode(errors="replace").removeprefix("\ufeff")
    return not text or text.isspace()


def _spool(homes: list[Path], rows: Rows) -> tuple[bytearray, Path, int] | None:
    """Write rows as lines of JSON: `ROW` of each, the folder, and the bytes written."""
    for home in homes:
        offset, packed = 0, bytearray()
        try:
            with writing(home / "rows") as handle:
                for origin, row in rows():
                    line = _said(origin, row)
                    handle.write(line)
                    packed += PACK(offset, len(line), zlib.crc32(line), place_of(origin))
                    offset += len(line)
        except SavingError as error:
            logger.info("%s", error)
            continue
        except _Unsayable:
            return None
        return packed, home, offset
    return None


class _Unsayable(Exception):
    """A row holds what JSON cannot say."""


def _said(origin: str, row: Any) -> bytes:
    what = [origin, None, str(row)] if isinstance(row, ValueError) else [origin, row]
    try:
        line = json.dumps(what, default=_member).encode() + b"\n"
    except (TypeError, ValueError, RecursionError) as error:
        raise _Unsayable from error
    if not isinstance(row, ValueError) and said(line) != (origin, row):
        raise _Unsayable
    return line


def said(line: bytes) -> Placed:
    """A row of a spool, with its place."""
    origin, row, *error = json.loads(line, object_hook=_from_member)
    return origin, ValueError(*error) if error else row


def place_of(origin: str) -> int:
    """What the index of a spool says of where a row stands."""
    return zlib.crc32(origin.encode(errors="surrogatepass"))


def _member(value: Any) -> Any:
    if isinstance(value, Member):
        return {MEMBER: [value.archive, value.offset, value.size, value.name]}
    raise TypeError(type(value).__name__)


def _from_member(found: dict[str, Any]) -> Any:
    return Member(*found[MEMBER]) if found.keys() == {MEMBER} else found


# Files of arrays


def put_array(file: Path, head: Mapping[str, Any], values: NDArray[Any]) -> None:
    """Write an array with what is to be said of it, whole or not at all.

    Raises:
        SavingError: no room, or no permission.
    """
    data = np.ascontiguousarray(values).view("u1").data
    about = {**head, "rows": len(values), "fields": values.dtype.descr, "crc": zlib.crc32(data)}
    line = json.dumps(about).encode()
    with writing(file) as handle:
        handle.write(line + b" " * (-(len(line) + 1) % ALIGNED) + b"\n")
        handle.write(data)


def get_array(
    file: Path, dtype: np.dtype[Any], checksum: int | None = None
) -> tuple[dict[str, Any], NDArray[Any]] | None:
    """What `put_array` wrote, mapped; None when there is no such file, or it is not whole.

    Args:
        file: the file.
        dtype: of its elements.
        checksum: of the array that is meant, whose bytes another process has compared with it.
    """
    try:
        with file.open("rb") as handle:
            head = json.loads(handle.readline())
            if json.loads(json.dumps(dtype.descr)) != head["fields"]:
                return None
            size = head["rows"] * dtype.itemsize
            if not size or os.fstat(handle.fileno()).st_size != handle.tell() + size:
                return None
            mapped = np.memmap(handle, dtype, "r", handle.tell(), (head["rows"],))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    values = mapped.view(np.ndarray)  # which gives its elements faster
    found = zlib.crc32(values.view("u1").data) if checksum is None else head["crc"]
    return (head, values) if found == (head["crc"] if checksum is None else checksum) else None


# What an index depends on


def _homes(path: Path) -> list[Path]:
    """Folders that may hold the index of a manifest: beside it, and in the user's cache."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    place = hashlib.sha256(os.path.realpath(path).encode(errors="surrogateescape")).hexdigest()[:16]
    beside = Path(os.path.abspath(path))
    return [beside.parent / f".{beside.name}.usam", cache / "usam" / "manifests" / f"{place}-{beside.name}"]


def stamp(path: Path) -> list[list[Any]]:
    """The files of a manifest with their sizes and times, which tell that it may have changed."""
    return [[str(f.relative_to(path)), *_seen(f)] for f in _files(path)]


def _seen(file: Path) -> tuple[int, int, int]:
    about = file.stat()
    return about.st_size, about.st_mtime_ns, about.st_ctime_ns


def content(path: Path) -> str:
    """SHA-256 of the bytes of a manifest: a file's, or all those of a folder."""
    digest = hashlib.sha256()
    for each in _files(path):
        with each.open("rb") as handle:
            hashlib.file_digest(handle, lambda: digest)
    return digest.hexdigest()


def _files(path: Path) -> Iterator[Path]:
    """A folder of Parquet, or a saved dataset, has several; what is kept beside manifests is none of them."""
    for each in sorted(path.rglob("*")) if path.is_dir() else [path]:
        kept = any(part.startswith(".") and part.endswith(".usam") for part in each.relative_to(path).parts)
        if not each.is_dir() and not kept:
            yield each


def _size(file: Path) -> int | None:
    return file.stat().st_size if file.is_file() else None


def _made_by(source: Source) -> str:
    return code_of(type(source).__module__, __name__)


def code_of(*modules: str) -> str:
    """A hash of what modules do: what they made or checked is made and checked anew when they change."""
    return hashlib.sha256("".join(map(_source_of, modules)).encode()).hexdigest()[:16]


@lru_cache
def _source_of(module: str) -> str:
    file = getattr(sys.modules.get(module), "__file__", None)
    return hashlib.sha256(Path(file).read_bytes()).hexdigest() if file is not None else module
