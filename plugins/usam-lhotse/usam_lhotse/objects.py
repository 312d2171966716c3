"""CutSet objects, eager or lazy, and single cuts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from usam.readers import ManifestError, Placed, Source

ADDED = ("shard_origin", "shar_epoch")  # by lhotse, while it reads


class Objects(Source):
    """Each cut of a CutSet is a row; paths are relative to the working directory, as lhotse has it."""

    @classmethod
    def opens(cls, source: Any) -> bool:
        """Objects of the package."""
        return type(source).__module__.partition(".")[0] == "lhotse"

    def rows(self) -> Iterator[Placed]:
        """Each cut with its number from 0."""
        from lhotse import CutSet
        from lhotse.cut import Cut

        name = type(self.source).__name__
        if not isinstance(self.source, (CutSet, Cut)):
            raise ManifestError(
                f"a {name} holds no cuts; make them of it: CutSet.from_manifests(recordings, supervisions)"
            )
        for number, cut in enumerate([self.source] if isinstance(self.source, Cut) else self.source):
            origin = f"{name}, row {number}"
            if not isinstance(cut, Cut):
                yield origin, ValueError(f"a {type(cut).__name__} is no cut")
                continue
            row: dict[str, Any] = cut.to_dict()
            if row.get("custom"):
                row["custom"] = {key: value for key, value in row["custom"].items() if key not in ADDED}
            yield origin, row
