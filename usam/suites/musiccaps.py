"""MusicCaps (Agostinelli et al., 2023): ten seconds of AudioSet's music, described by musicians."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from usam.suites import Item, SuiteConfig, rows
from usam.suites._captions import Captions
from usam.suites._files import filled, naming, text, whole

PATTERNS = ("[{ytid}]-[{start_s}-{end_s}]", "{ytid}", "{ytid}_{start_s}_{end_s}", "{ytid}_{start_s}")


class MusicCaps(Captions):
    """`musiccaps-public.csv` with `ytid`, `start_s`, `end_s` and `caption`, and a folder of clips.

    The split `eval` is what AudioSet evaluates on (`is_audioset_eval`). Clips are on YouTube, and some of them no
    longer: `missing: skip` leaves these out.
    """

    class Config(SuiteConfig):
        """Options of MusicCaps."""

        clips: str | None = None
        """How clips are called below the root, such as `wavs/{ytid}.wav`, of `ytid`, `start_s` and `end_s`; null:
        whichever of the usual ways finds most of them."""

    splits = ("eval", "train", "all")
    task = "mc"
    home = (
        "https://huggingface.co/datasets/google/MusicCaps (CC BY-SA 4.0; clips are YouTube's); the root holds "
        "musiccaps-public.csv, and the clips in a folder audio, audios, wavs, music_data or wav"
    )

    def items(self, root: Path) -> Iterator[Item]:
        """An item a clip."""
        file = self.found(root, "musiccaps-public.csv")
        items = []
        for place, row in rows(file, ("ytid", "start_s", "end_s", "caption", "is_audioset_eval")):
            if self.split == "all" or (str(row["is_audioset_eval"]).lower() == "true") == (self.split == "eval"):
                times = {key: whole(place, row, key) for key in ("start_s", "end_s")}
                clip = {"ytid": text(place, row, "ytid"), **times}
                items.append((place, clip, text(place, row, "caption")))
        if not items:
            return
        folders = ["audio", "audios", "wavs", "wav", "music_data", "."]
        called = self.config.clips or naming(root, folders, PATTERNS, [clip for _, clip, _ in items], self.home)
        for place, clip, caption in items:
            yield Item(place, str(clip["ytid"]), (filled(called, clip),), (caption,))
