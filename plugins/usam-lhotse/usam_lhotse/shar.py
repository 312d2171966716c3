"""Shar folders: cuts in `cuts.000000.jsonl.gz`, their sound in `recording.000000.tar`, in the same order."""

from __future__ import annotations

import json
import os
import tarfile
import zlib
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path, PurePosixPath
from typing import Any

from usam.readers import ManifestError, Placed, Row, Source
from usam.readers.json import GZIP, Json
from usam.readers.webdataset import Member, check_end


class Shar(Source):
    """Sound stays in its archive until it is heard; in a gzipped archive it is read at once.

    Other fields (`features.000000.tar`, `target.000000.tar` ...) are not read: they are not what is heard.
    """

    @classmethod
    def opens(cls, source: Any) -> bool:
        """Folders that hold cuts in numbered files."""
        return isinstance(source, (str, os.PathLike)) and any(Path(source).glob("cuts.*.jsonl*"))

    @property
    def folder(self) -> str:
        """The folder itself."""
        return str(self.source)

    def rows(self) -> Iterator[Placed]:
        """Each cut with the line of its file, its recording filled in."""
        for cuts in sorted(Path(self.source).glob("cuts.*.jsonl*")):
            number = cuts.name.split(".")[1]
            found = sorted(Path(self.source).glob(f"recording.{number}.*"))
            if len(found) != 1:
                raise ManifestError(
                    f"{cuts}: its sound is looked for in one file recording.{number}.tar beside it, and there are "
                    f"{len(found)}; write them with cuts.to_shar(folder, {{'recording': 'flac'}})"
                )
            yield from _filled(cuts, found[0])


def _filled(cuts: Path, sound: Path) -> Iterator[Placed]:
    recordings = _recordings(sound) if ".tar" in sound.suffixes else _listed(sound)
    for placed, recording in zip_longest(Json(cuts).rows(), recordings):
        if placed is None or recording is None:
            raise ManifestError(f"{cuts}: has {'more' if recording is None else 'fewer'} cuts than {sound.name} has")
        origin, row = placed
        name, filled = recording
        if isinstance(row, dict):
            if str(row.get("id")) != name:
                raise ManifestError(f"{origin}: the cut '{row.get('id')}', but {sound.name} has '{name}' in its place")
            row = row if filled is None else {**row, "recording": filled}
        yield origin, row


def _recordings(file: Path) -> Iterator[tuple[str, Row | None]]:
    """The id of each cut with its recording, None where it has none: pairs of files, the second the first's map."""
    name = ""
    try:
        with file.open("rb") as raw:
            packed = raw.read(2) == GZIP
        with tarfile.open(file) as archive:
            members = iter(archive)
            for sound in members:
                name = sound.name
                held = next(members, None)
                if held is None:
                    raise ManifestError(f"{file}: breaks off after '{name}'; copy or write it again")
                whose = str(PurePosixPath(name).with_suffix(""))
                if held.name.endswith(".nometa"):
                    yield whose, None
                    continue
                recording = json.loads(_bytes(archive, held))
                data = _bytes(archive, sound) if packed else Member(
                    str(file), sound.offset_data, sound.size, f"{file}:{name}"
                )  # fmt: skip
                (source,) = recording["sources"]
                yield whose, {**recording, "sources": [{**source, "type": "memory", "source": data}]}
            check_end(archive)
    except ManifestError:
        raise
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise ManifestError(
            f"{file}: the archive breaks off after '{name}': {error}; copy or write it again"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise ManifestError(f"{file}: after '{name}' no recording of lhotse: {error}") from error


def _bytes(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    held = archive.extractfile(member)
    return b"" if held is None else held.read()


def _listed(file: Path) -> Iterator[tuple[str, Row | None]]:
    """Recordings in lines of JSON, which name their files."""
    for origin, row in Json(file).rows():
        if not isinstance(row, dict) or "cut_id" not in row:
            raise ManifestError(f"{origin}: expected a map with 'cut_id' and 'recording', found {row!r:.80}")
        yield str(row["cut_id"]), row.get("recording")
