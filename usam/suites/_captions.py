"""What benchmarks of captions share: their task has no official prompt, and every caption of a clip is right."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from usam.suites import Suite


class Captions(Suite):
    """Clips and what people wrote of them."""

    task = "aac"
    source = "no official prompt; the metrics that papers on captions report, as pycocoevalcap has them"

    @property
    def metrics(self) -> Mapping[str, Any]:
        """Those that need no Java."""
        return {
            "bleu_1": {"type": "coco_bleu", "order": 1},
            "bleu_4": {"type": "coco_bleu", "order": 4},
            "rouge_l": {"type": "coco_rouge_l"},
            "cider_d": {"type": "cider_d"},
        }

    @property
    def not_computed(self) -> str:
        """What needs Java, or files that must be fetched."""
        return (
            "METEOR, SPICE, SPIDEr and FENSE need Java or files of their own: where these are, "
            "usam eval --rescore FOLDER --metrics meteor,spice,spider"
        )
