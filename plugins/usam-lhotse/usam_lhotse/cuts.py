"""A cut is a clip, and what its supervisions say is the answer."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any

from usam.processor.clip import Clip, is_free
from usam.readers import Form, Layout, Row, text
from usam_lhotse.sound import Sound

KINDS = ("MonoCut", "MultiCut", "MixedCut", "Cut")  # `Cut` is a MonoCut before lhotse 0.8
ASKED = ("prompt", "context", "question")
SAID = ("language", "speaker", "gender")  # of a supervision
BESIDE = 0.5  # seconds by which a supervision may stand out of its cut: ends of speech are rarely marked exactly
ELSEWHERE = {
    "command": "is a command, which would be run: write its sound to a file, with cuts.save_audios(folder)",
    "url": "is an address: nothing is fetched from a network; download the file, or cuts.save_audios(folder)",
    "shar": "lies in a Shar archive: give the folder, not the file of its cuts",
}


class Cuts(Layout):
    """A cut of one file is read by usam itself; one that is mixed, augmented, or of several files by lhotse.

    Several supervisions make one answer, in the order in which they begin. `prompt`, `context` or `question` of
    `custom` is what is asked, without one it is the task 'asr'.
    """

    forms = (
        Form(("id", "start", "duration", "channel", "supervisions", "type"), ("recording", "features", "custom")),
        Form(("id", "tracks", "type"), ("transforms",)),
        Form(
            ("id", "duration", "sampling_rate", "feat_value", "type"),
            ("num_samples", "num_frames", "num_features", "frame_shift", "video", "custom"),
        ),
    )

    def said(self, row: Any) -> Row:
        """A row with the cut's id, its clip, and what was said in it."""
        if row["type"] == "PaddingCut":
            raise ValueError("a PaddingCut is silence, and nothing was said in it: leave it out")
        if row["type"] not in KINDS:
            raise ValueError(f"'type' is one of {', '.join(KINDS)}; found {row['type']!r:.80}")
        cuts = list(_parts(row))
        custom = _together([cut.get("custom") or {} for _, cut in cuts])
        told = sorted(
            ({**said, "start": said["start"] + offset} for offset, cut in cuts for said in _supervisions(cut)),
            key=lambda said: said["start"],
        )
        asked = {key: custom.pop(key) for key in ASKED if custom.get(key) is not None}
        if len(asked) > 1:
            named = " and ".join(f"'{key}'" for key in asked)
            raise ValueError(f"{named} of 'custom' all say what is asked: keep one of them")
        own = {"id": row["id"], **self._clip(row, cuts)}
        if asked:
            (own["prompt"],) = asked.values()
        if custom.get("task") is not None or not asked:
            own["task"] = custom.pop("task", None) or "asr"
        texts = [text(said, "text") for said in told if said.get("text") is not None]
        if custom.get("answer") is not None:
            if texts:
                raise ValueError("'answer' of 'custom' and the supervisions' 'text' both say the answer: keep one")
            own["answer"] = custom.pop("answer")
        elif texts:
            own["answer"] = " ".join(texts)
        own |= {_free(key): value for key, value in custom.items()}
        heard = [{**{key: said[key] for key in SAID if key in said}, **(said.get("custom") or {})} for said in told]
        for key, value in _together(heard).items():
            name = _free(key)
            own[name if name not in own else f"x_supervision_{key}"] = value
        return own

    def _clip(self, row: Row, cuts: list[tuple[float, Row]]) -> Row:
        """The cut's sound and the part of it, as keys of a row."""
        for source in sources([cut.get("recording") for _, cut in cuts], row.get("transforms")):
            if source["type"] in ELSEWHERE:
                raise ValueError(f"the recording {source['source']!r:.80} {ELSEWHERE[source['type']]}")
        for _, cut in cuts:
            if cut["type"] != "PaddingCut" and not cut.get("recording"):
                raise ValueError("the cut has no recording: usam hears sound, and reads no features that were stored")
        recording = row.get("recording") or {}
        own = recording.get("sources") or []
        if row["type"] == "MixedCut" or recording.get("transforms") or len(own) != 1:
            return {"audio": self._sound(row)}
        (source,) = own
        there, heard = source["channels"], row["channel"]
        heard = heard if isinstance(heard, list) else [heard]
        if not set(heard) <= set(there):
            raise ValueError(f"'channel' is {row['channel']}, and the recording has {there}")
        if 1 < len(heard) < len(there):
            return {"audio": self._sound(row)}
        part = {"channel": there.index(heard[0])} if len(heard) < len(there) else {}
        if row["start"] or row["duration"] != recording.get("duration"):
            part |= {"start": row["start"], "duration": row["duration"]}
        return {"audio": source["source"], **part}

    def _sound(self, row: Row) -> Sound:
        """The sound that lhotse makes, its paths beside the manifest, as all paths are."""
        file = isinstance(self.source, (str, os.PathLike))
        folder = str(self.source if Path(self.source).is_dir() else Path(self.source).parent) if file else ""
        paths = {}
        for source in sources(row):
            if source["type"] == "file":
                if "{audio_root}" in source["source"]:
                    raise ValueError(f"{source['source']}: lhotse loads this cut, which knows no {{audio_root}}")
                paths[source["source"]] = str(Clip.of(source["source"], folder).source)
        return Sound(row, paths)


def sources(*things: Any) -> Iterator[Row]:
    """Every source of sound in a cut, in the noise and the rooms of its transforms too; not those in `custom`."""
    for thing in things:
        if isinstance(thing, Mapping):
            if {"type", "channels", "source"} <= thing.keys():
                yield dict(thing)
            else:
                yield from sources(*(value for key, value in thing.items() if key not in ("custom", "supervisions")))
        elif isinstance(thing, (list, tuple)):
            yield from sources(*thing)


def _parts(row: Row) -> Iterator[tuple[float, Row]]:
    """The cuts that are heard in a cut, each with its offset in seconds."""
    if "tracks" not in row:
        _check(row)
        yield 0.0, row
        return
    if not isinstance(row["tracks"], list) or not row["tracks"]:
        raise ValueError(f"'tracks' is a list of maps with a 'cut', found {row['tracks']!r:.120}")
    for track in row["tracks"]:
        if not isinstance(track, Mapping) or not isinstance(track.get("cut"), Mapping):
            raise ValueError(f"'tracks' is a list of maps with a 'cut', one of them is {track!r:.120}")
        offset = track.get("offset", 0.0)
        if not _is(offset, Real):
            raise ValueError(f"'offset' of a track is in seconds, found {offset!r:.80}")
        if not track.get("mute"):
            for inner, part in _parts({"type": track.get("type", "MonoCut"), **track["cut"]}):
                yield offset + inner, part


def _is(value: Any, kind: Any) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def _check(cut: Row) -> None:
    """Raise ValueError where a cut is not of the shape that lhotse gives it."""
    _shaped(cut, {"id": str, "duration": Real}, {"custom": Mapping, "recording": Mapping}, "a cut")
    if cut["type"] == "PaddingCut":
        return
    _shaped(cut, {"start": Real, "channel": (int, list), "supervisions": list}, {}, "a cut")
    _numbered(cut["channel"] if isinstance(cut["channel"], list) else [cut["channel"]], cut)
    for said in cut["supervisions"]:
        _shaped(said, {"id": str, "start": Real, "duration": Real}, {"custom": Mapping}, "a supervision")
    if cut.get("recording"):
        recording = cut["recording"]
        _shaped(recording, {"id": str, "sources": list}, {"duration": Real, "transforms": list}, "a recording")
        for source in recording["sources"]:
            _shaped(source, {"type": str, "channels": list}, {}, "a source")
            _numbered(source["channels"], source)
            data, file = source.get("source"), source["type"] == "file"
            if source["type"] not in ("file", "memory", *ELSEWHERE) or (file and not isinstance(data, str)):
                raise ValueError(f"a source is of a type (file, memory ...) and names its sound, found {source!r:.120}")
            if source["type"] == "memory" and not (isinstance(data, bytes) or hasattr(data, "read")):
                raise ValueError(f"a source of 'memory' holds bytes, found {data!r:.80}")


def _numbered(channels: list[Any], where: Mapping[str, Any]) -> None:
    if not channels or not all(_is(channel, int) for channel in channels):
        raise ValueError(f"channels are whole numbers, one at least, found {channels!r:.80} in {where!r:.120}")


def _shaped(given: Any, needs: Mapping[str, Any], may: Mapping[str, Any], what: str) -> None:
    if not isinstance(given, Mapping):
        raise ValueError(f"{what} is a map, found {given!r:.80}")
    for key, kind in {**needs, **may}.items():
        if not _is(given.get(key), kind) and (key in needs or given.get(key) is not None):
            raise ValueError(f"{what} has '{key}' of another kind than lhotse's: {given.get(key)!r:.80}")


def _supervisions(cut: Row) -> list[Row]:
    """The supervisions of a cut, each whole in it."""
    found = cut.get("supervisions") or []
    for said in found:
        end = said["start"] + said["duration"]
        if said.get("text") and (said["start"] < -BESIDE or end > cut["duration"] + BESIDE):
            raise ValueError(
                f"the supervision '{said['id']}' reaches from {said['start']:g} to {end:g} s, and the cut from 0 to "
                f"{cut['duration']:g} s: its text is not all heard; cut with keep_excessive_supervisions=False"
            )
    return list(found)


def _together(maps: Sequence[Mapping[str, Any]]) -> Row:
    """Several maps as one: what all that have a key agree on, else a list with the value of each."""
    together: Row = {}
    for key in dict.fromkeys(key for one in maps for key in one):
        values = [one[key] for one in maps if key in one]
        alike = all(value == values[0] for value in values)
        together[key] = values[0] if alike else [one.get(key) for one in maps]
    return together


def _free(key: str) -> str:
    return key if is_free(key) else f"x_{key}"
