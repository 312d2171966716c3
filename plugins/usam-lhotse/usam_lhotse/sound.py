"""The sound of a cut as lhotse makes it, when it is asked for."""

from __future__ import annotations

import copy
import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import soundfile

from usam.processor.audio import AudioError


@dataclass(frozen=True)
class Sound:
    """A cut that is mixed, augmented, or of several files: an open file for usam, WAV of 32-bit floats.

    Args:
        cut: the cut as lhotse writes it.
        paths: where the files that it names are.
    """

    cut: Mapping[str, Any]
    paths: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """What errors call it."""
        return f"the cut {self.cut['id']}"

    def read(self) -> bytes:
        """All of it; AudioError where lhotse fails."""
        from lhotse.cut.set import deserialize_cut

        try:
            cut = deserialize_cut(self._placed(copy.deepcopy(self.cut)))
            samples = cut.load_audio()
        except Exception as error:  # of any kind: a missing package, a short file, a wrong manifest
            why = str(error).partition("\n")[0] or type(error).__name__
            raise AudioError(f"{self.name}: lhotse cannot load it: {why}") from error
        file = io.BytesIO()
        soundfile.write(file, samples.T, cut.sampling_rate, format="WAV", subtype="FLOAT")
        return file.getvalue()

    def _placed(self, thing: Any) -> Any:
        """The cut with its files where they are, and what lies in archives read."""
        if isinstance(thing, dict):
            if {"type", "channels", "source"} <= thing.keys():
                source = thing["source"]
                if hasattr(source, "read"):
                    return {**thing, "source": source.read()}
                return {**thing, "source": self.paths.get(source, source)}
            return {key: self._placed(value) for key, value in thing.items()}
        return [self._placed(item) for item in thing] if isinstance(thing, list) else thing
