"""When something sounds in a clip of the miniature world, frame by frame."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray


def sounding(meta: Mapping[str, Any], rate: float, frames: int, name: str | None = None) -> NDArray[np.bool_]:
    """Whether anything sounds at the middle of each frame.

    Args:
        meta: of a row; `sample.extra["meta"]` of a `Sample`.
        rate: frames a second; the first begins with the clip.
        frames: how many.
        name: of the one event that is meant, such as "dog"; None means any.

    Returns:
        One boolean a frame. Between the strokes of a thing, or the ticks of a clock, nothing does.
    """
    middles = (np.arange(frames) + 0.5) / rate
    found = np.zeros(frames, dtype=bool)
    for event in meta["events"]:
        if name is None or event["name"] == name:
            for onset, offset in event.get("spans", [(event["onset"], event["offset"])]):
                found |= (onset <= middles) & (middles < offset)
    return found
