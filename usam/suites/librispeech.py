"""LibriSpeech (Panayotov et al., 2015): English books read aloud."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from usam.readers import ManifestError
from usam.readers.json import text_lines
from usam.suites import Item, Suite


class LibriSpeech(Suite):
    """A folder a split, in it one a speaker and one a chapter, in this a clip an utterance, and `S-C.trans.txt`.

    Transcripts are capitals without marks; both texts go through Whisper's normaliser for English, as the papers on
    speech language models do. The corpus has no prompt.
    """

    splits = (
        "test-clean", "test-other", "dev-clean", "dev-other", "train-clean-100", "train-clean-360", "train-other-500",
    )  # fmt: skip
    task = "asr"
    source = "no official prompt; WER with Whisper's normaliser (Radford et al., 2022)"
    home = "https://www.openslr.org/12 (CC BY 4.0); the root is the folder LibriSpeech, which holds a folder a split"

    @property
    def metrics(self) -> Mapping[str, Any]:
        """Word error rate."""
        return {"wer": {"type": "wer", "normalizer": "english"}}

    def items(self, root: Path) -> Iterator[Item]:
        """An item a line of the transcripts."""
        folder = self.found(root, self.split, f"LibriSpeech/{self.split}")
        for file in sorted(folder.glob("*/*/*.trans.txt")):
            for number, line in text_lines(file):
                name, _, words = line.strip().partition(" ")
                place = f"{file}:{number}"
                if not words.strip():
                    raise ManifestError(f"{place}: an utterance and its words are expected, found {line.strip()!r:.80}")
                clip = (file.parent / f"{name}.flac").relative_to(root).as_posix()
                yield Item(place, name, (clip,), (words.strip(),))
