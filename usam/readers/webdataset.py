"""WebDataset: a tar archive in which files of one name make a sample: sound, `.json` and `.txt`."""

from __future__ import annotations

import json
import os
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from usam.readers import ManifestError, Placed, Row, Source
from usam.readers.json import GZIP

SOUND = ("wav", "flac", "mp3", "ogg", "opus", "m4a", "aac", "aiff")
TEXT = ("txt", "text")


@dataclass(frozen=True, slots=True)
class Member:
    """Bytes within an archive, read when they are asked for."""

    archive: str
    offset: int
    size: int
    name: str

    def read(self) -> bytes:
        """All of it."""
        with open(self.archive, "rb") as file:
            file.seek(self.offset)
            return file.read(self.size)


class WebDataset(Source):
    """Sound is `audio`, `.txt` is `text`, the keys of `.json` stand beside them, and the name is the `id`.

    Sound stays in the archive until it is heard; in a gzipped archive it is read at once.
    """

    @classmethod
    def opens(cls, source: Any) -> bool:
        """Files that end in .tar, .tar.gz or .tgz."""
        name = str(source).lower() if isinstance(source, (str, os.PathLike)) else ""
        return name.endswith((".tar", ".tar.gz", ".tgz")) and Path(source).is_file()

    def rows(self) -> Iterator[Placed]:
        """Each sample with the name of its files."""
        file = str(self.source)
        name, parts = "", dict[str, Any]()
        try:
            with open(file, "rb") as raw:
                packed = raw.read(2) == GZIP
            with tarfile.open(file) as archive:
                for member in archive:
                    if not member.isfile():
                        continue
                    stem, dot, kind = os.path.basename(member.name).partition(".")
                    if not stem or not dot:
                        raise ManifestError(
                            f"{file}: {member.name}: files in it are named sample.kind, such as 0001.wav"
                        )
                    path = os.path.join(os.path.dirname(member.name), stem)
                    if path != name and parts:
                        yield f"{file}:{name}", _row(name, parts)
                        parts = {}
                    name, kind = path, kind.lower()
                    if kind in parts:
                        raise ManifestError(f"{file}: {member.name} stands in it twice")
                    if kind in SOUND and not packed:
                        parts[kind] = Member(file, member.offset_data, member.size, f"{file}:{member.name}")
                    else:
                        held = archive.extractfile(member)
                        parts[kind] = b"" if held is None else held.read()
                check_end(archive)
        except FileNotFoundError as error:
            raise ManifestError(f"{file}: no such archive") from error
        except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
            raise ManifestError(
                f"{file}: the archive breaks off after '{name}': {error}; copy or pack it again"
            ) from error
        if parts:
            yield f"{file}:{name}", _row(name, parts)


def check_end(archive: tarfile.TarFile) -> None:
    """Raise TarError where an archive stops before its end, for which tarfile takes any block that is no header."""
    if archive.fileobj is not None:
        archive.fileobj.seek(archive.offset)
        if archive.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError("neither a file nor the archive's end follows")
        while archive.fileobj.read(1 << 16):  # what is packed has its sum at the end
            pass


def _row(name: str, parts: dict[str, Any]) -> Row | ValueError:
    row: Row = {}
    try:
        if "json" in parts:
            row = json.loads(parts.pop("json"))
            if not isinstance(row, dict):
                return ValueError(f"its .json holds {row!r:.60}; expected a map")
        for kind, part in parts.items():
            key = "audio" if kind in SOUND else "text" if kind in TEXT else None
            if key is None:
                return ValueError(f"'.{kind}' is neither sound ({', '.join(SOUND)}) nor .json nor .txt")
            if key in row:
                return ValueError(f"it has '{key}' twice: in .{kind}, and in .json or another file")
            row[key] = part if key == "audio" else part.decode("utf-8").removesuffix("\n")
    except (ValueError, RecursionError) as error:
        return ValueError(f"its .json or .txt cannot be read: {error}")
    return row if "id" in row or "key" in row else {"id": name, **row}
