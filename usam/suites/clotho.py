"""Clotho (Drossos et al., 2020): sounds of 15 to 30 seconds, five captions each."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from usam.suites import Item, rows
from usam.suites._captions import Captions
from usam.suites._files import text

CAPTIONS = tuple(f"caption_{number}" for number in range(1, 6))


class Clotho(Captions):
    """`clotho_captions_SPLIT.csv` with `file_name` and `caption_1` to `caption_5`, and the clips in a folder SPLIT."""

    splits = ("evaluation", "validation", "development")
    home = (
        "https://zenodo.org/records/4783391 (captions under Tampere University's licence, clips under Creative Commons "
        "of various kinds); the root holds clotho_captions_SPLIT.csv, and the unpacked clips in a folder SPLIT"
    )

    def items(self, root: Path) -> Iterator[Item]:
        """An item a file."""
        file = self.found(root, f"clotho_captions_{self.split}.csv")
        places = [self.split, f"clotho_audio_{self.split}", f"clotho_audio_{self.split}/{self.split}"]
        folder = self.found(root, *places).relative_to(root).as_posix()
        for place, row in rows(file, ("file_name", *CAPTIONS)):
            name = text(place, row, "file_name")
            yield Item(place, name, (f"{folder}/{name}",), tuple(text(place, row, key) for key in CAPTIONS))
