"""JSON: one map a line, an array of maps, or one map with an 'annotation'; gzipped or not."""

from __future__ import annotations

import gzip
import io
import json
import os
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, cast

from usam.readers import ManifestError, Placed, Source

GZIP = b"\x1f\x8b"
OTHERS = {  # what a manifest is taken for now and then, by its first bytes
    b"\xff\xfe": "UTF-16; write it as UTF-8: iconv -f UTF-16 -t UTF-8",
    b"\xfe\xff": "UTF-16; write it as UTF-8: iconv -f UTF-16 -t UTF-8",
    b"\0\0\xfe\xff": "UTF-32; write it as UTF-8: iconv -f UTF-32 -t UTF-8",
    b"PK\3\4": "a zip archive; unpack it, or pack it with gzip",
    b"BZh": "packed with bzip2; unpack it, or pack it with gzip",
    b"\xfd7zX": "packed with xz; unpack it, or pack it with gzip",
    b"\x28\xb5\x2f\xfd": "packed with zstd; unpack it, or pack it with gzip",
    b"PAR1": "a Parquet file; give it a name that ends in .parquet",
    b"ARROW1": "an Arrow file; write it as Parquet, or save the dataset with save_to_disk",
    b"RIFF": "a WAV file; a manifest names such files",
    b"fLaC": "a FLAC file; a manifest names such files",
}


def text_lines(file: Path) -> Iterator[tuple[int, str]]:
    """The lines of a file of text, gzipped or not, with their numbers from 1; ManifestError where it is none."""
    number = 0
    try:
        with file.open("rb") as raw:
            handle = gzip.GzipFile(fileobj=raw) if raw.peek(2)[:2] == GZIP else raw
            head = handle.peek(6)[:6]
            for magic, what in OTHERS.items():
                if head.startswith(magic):
                    raise ManifestError(f"{file}:1: {what}")
            if b"\0" in head:
                raise ManifestError(f"{file}:1: holds zero bytes, as UTF-16 and UTF-32 do; write it as UTF-8")
            text = io.TextIOWrapper(cast(IO[bytes], handle), encoding="utf-8", errors="surrogateescape")
            for number, line in enumerate(text, 1):
                if not line.isascii():
                    line = _utf8(line, f"{file}:{number}").removeprefix("\ufeff")  # files with a mark may be joined
                yield number, line
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ManifestError(f"{file}:{number + 1}: gzip breaks off here ({error}); copy or pack it again") from error
    except OSError as error:
        raise ManifestError(f"{file}: cannot be read: {error.strerror or error}") from error


def _utf8(line: str, origin: str) -> str:
    try:
        line.encode()
    except UnicodeEncodeError as error:  # a byte that was no UTF-8 has become a surrogate
        byte = ord(line[error.start]) - 0xDC00
        raise ManifestError(
            f"{origin}: not UTF-8: byte 0x{byte:02x} at character {error.start + 1}; if the file is Latin-1 or "
            "Windows-1252, write it as UTF-8: iconv -f WINDOWS-1252 -t UTF-8"
        ) from error
    return line


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = [key for key in found if keys.count(key) > 1]
        raise ValueError(f"the key '{twice[0]}' stands twice in one map")
    return found


_DECODER = json.JSONDecoder(object_pairs_hook=_once)


DOCUMENT = re.compile(r'\s*(?:\{\s*"annotation"\s*:\s*)?\[')  # what an array begins with, SALMONN's included


class Json(Source):
    """Files of JSON, UTF-8 with or without a byte order mark, gzipped or not.

    A line is a map, or a chat: a list of messages. An array may be written over many lines.
    """

    @classmethod
    def opens(cls, source: Any) -> bool:
        """Any file that no other reader claims."""
        return isinstance(source, (str, os.PathLike)) and Path(source).is_file()

    def rows(self) -> Iterator[Placed]:
        """Each row with its line; in an array also with its number, for several may stand on a line."""
        file = Path(self.source)
        name = str(file)
        lines = text_lines(file)
        for number, line in lines:
            if line.isspace():
                continue
            if _begins_a_document(line):
                yield from _document(file, number, line + "".join(line for _, line in lines))
                return
            yield f"{name}:{number}", _value(line)
            break
        decode = _DECODER.decode
        for number, line in lines:
            if not line.isspace():
                try:
                    yield f"{name}:{number}", decode(line)
                except (ValueError, RecursionError):
                    yield f"{name}:{number}", _value(line)

    def by_lines(self) -> bool:
        """Whether each row is a line of the file as it lies there: not packed, and no array."""
        file = Path(self.source)
        with file.open("rb") as handle:
            if handle.read(2) == GZIP:
                return False
        first = next((line for _, line in text_lines(file) if not line.isspace()), "")
        return not _begins_a_document(first)

    @staticmethod
    def value(line: bytes, origin: str) -> Any:
        """What a line of the file holds, as `rows` gives it."""
        try:
            text = line.decode()
        except UnicodeDecodeError:
            text = _utf8(line.decode(errors="surrogateescape"), origin)
        text = text.removeprefix("\ufeff")
        try:
            return _DECODER.decode(text)
        except (ValueError, RecursionError):
            return _value(text)


def _value(line: str) -> Any:
    """What a line holds, or the ValueError that tells why there is nothing."""
    try:
        return _DECODER.decode(line)
    except json.JSONDecodeError as error:
        return ValueError(f"not JSON: {error}{_meant(line.strip())}")
    except ValueError as error:
        return error
    except RecursionError:
        return ValueError("maps or lists are nested too deeply")


def _meant(line: str) -> str:
    """What a line that is no JSON was meant to be, as a hint."""
    if line in ("[", "{"):
        return "; one JSON map a line is expected, each on one line"
    if line.startswith("{'"):
        return "; this is how Python prints a map: write it with json.dumps"
    if line.startswith("{") and line.endswith(","):
        return "; maps that stand on lines of their own have no commas between them"
    if not line.startswith(("{", "[")):
        return "; one JSON map a line is expected; tables are named .csv or .tsv"
    return ""


def is_chat(value: Any) -> bool:
    """Whether it is a list of messages."""
    return isinstance(value, list) and bool(value) and all(isinstance(m, dict) and "role" in m for m in value)


def _begins_a_document(line: str) -> bool:
    """Whether the first line of a file begins an array, and is no row itself."""
    if line.strip() == "{":
        return True
    if not DOCUMENT.match(line):
        return False
    value = _value(line)
    if isinstance(value, list):
        return not is_chat(value) and all(isinstance(item, (dict, list)) for item in value)
    return not isinstance(value, ValueError) or "nested" not in str(value)


def _document(file: Path, first: int, text: str) -> Iterator[Placed]:
    """The items of an array that is written over several lines, or on one."""
    begins = DOCUMENT.match(text)
    if begins is None:
        yield f"{file}:{first}", _value("{")
        return
    at, line, counted = begins.end(), first, 0
    messages: list[Any] = []
    for number in range(1, len(text) + 1):
        at = _past_space(text, at)
        if text[at : at + 1] == "]" and number == 1:
            break
        line, counted = line + text.count("\n", counted, at), at
        origin = f"{file}:{line}, row {number}"
        try:
            value, at = _DECODER.raw_decode(text, at)
        except (ValueError, RecursionError) as error:
            what = "maps or lists are nested too deeply" if isinstance(error, RecursionError) else error
            hint = "; behind the last row stands a comma too many" if text[at : at + 1] == "]" else ""
            raise ManifestError(f"{origin}: not JSON: {what}{hint}") from error
        if is_chat([value]) and len(messages) == number - 1:  # the array is one chat
            messages.append(value)
        else:
            yield origin, value
        at = _past_space(text, at)
        if text[at : at + 1] != ",":
            break
        at += 1
    if text[at : at + 1] != "]" or text[at + 1 :].strip() != ("}" if "{" in begins[0] else ""):
        line += text.count("\n", counted, at)
        found = (
            repr(text[at : at + 20]) if text[at:].strip() else "nothing: the file breaks off; copy or write it again"
        )
        raise ManifestError(f"{file}:{line}: not JSON: the array ends neither here nor in ',', but in {found}")
    if messages:
        yield f"{file}:{first}", messages


def _past_space(text: str, at: int) -> int:
    while text[at : at + 1].isspace():
        at += 1
    return at
