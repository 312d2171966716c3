"""AudioCaps (Kim et al., 2019): ten seconds of AudioSet's clips; five captions each in validation and test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from usam.suites import Item, SuiteConfig, rows
from usam.suites._captions import Captions
from usam.suites._files import filled, naming, text, whole

PATTERNS = ("{youtube_id}_{start_time}", "{youtube_id}", "Y{youtube_id}", "{audiocap_id}")


class AudioCaps(Captions):
    """`SPLIT.csv` with `audiocap_id`, `youtube_id`, `start_time` and `caption`, a line a caption; and the clips.

    They are on YouTube, and some of them no longer: `missing: skip` leaves these out. Who fetches them names them as
    they like, so that the folders and names in use are tried, or `clips` says it.
    """

    class Config(SuiteConfig):
        """Options of AudioCaps."""

        clips: str | None = None
        """How clips are called below the root, such as `wavs/{youtube_id}_{start_time}.flac`, of any of the columns
        (`audiocap_id` is that of the clip's first caption); null: whichever of the usual ways finds most of them."""

    splits = ("test", "val", "train")
    home = (
        "https://github.com/cdjkim/audiocaps (see its LICENSE; clips are YouTube's); the root holds SPLIT.csv, and the "
        "clips in a folder SPLIT, audio or wavs"
    )

    def items(self, root: Path) -> Iterator[Item]:
        """An item a clip, with all its captions."""
        file = self.found(root, f"{self.split}.csv", f"dataset/{self.split}.csv")
        clips: dict[tuple[str, int], dict[str, Any]] = {}
        captions: dict[tuple[str, int], list[str]] = {}
        places: dict[tuple[str, int], str] = {}
        for place, row in rows(file, ("audiocap_id", "youtube_id", "start_time", "caption")):
            key = text(place, row, "youtube_id"), whole(place, row, "start_time")
            number = text(place, row, "audiocap_id")
            clips.setdefault(key, {"youtube_id": key[0], "start_time": key[1], "audiocap_id": number})
            places.setdefault(key, place)
            captions.setdefault(key, []).append(text(place, row, "caption"))
        if not clips:
            return
        folders = [self.split, f"audio/{self.split}", f"wavs/{self.split}", "audio", "wavs", "."]
        called = self.config.clips or naming(root, folders, PATTERNS, list(clips.values()), self.home)
        for key, clip in clips.items():
            name = f"{clip['youtube_id']}_{clip['start_time']}"
            yield Item(places[key], name, (filled(called, clip),), tuple(captions[key]))
