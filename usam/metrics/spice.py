"""SPICE (Anderson et al., 2016): F1 of the objects, attributes and relations that texts name, by its Java program."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from usam.metrics._captions import Captions, Words
from usam.metrics._java import PACKAGE, jar, java, run
from usam.metrics._mean import Mean
from usam.registry import ComponentError

JARS = ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar")
ZIP = "https://nlp.stanford.edu/software/stanford-corenlp-full-2015-12-09.zip"


class Spice(Captions, Mean):
    """The mean F1 of what the scene graphs of answer and references say: 1 is perfect.

    It needs Java, pycocoevalcap, and two files of Stanford CoreNLP that are not in it; nothing is downloaded. SPICE is
    of 2016 and was written for Java 8.
    """

    class Config(Captions.Config):
        """Options of SPICE."""

        tokenizer: Literal["ptb_like", "ptb_java"] = "ptb_java"
        """What makes words of texts: `ptb_java` is COCO's own, `ptb_like` follows its rules."""

    unit = "share of what is said, F1"
    bounds = (0.0, 1.0)
    packages = (PACKAGE,)

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self._java, self._jar = java("SPICE"), jar("SPICE", "spice", "spice-1.0.jar")
        folder = self._jar.parent / "lib"
        if missing := [name for name in JARS if not (folder / name).is_file()]:
            raise ComponentError(
                f"SPICE: {' and '.join(missing)} of Stanford CoreNLP 3.6.0 are missing: take them out of {ZIP} and put "
                f"them into {folder}"
            )

    def counts(self, samples: Sequence[tuple[Words, list[Words]]]) -> Sequence[Sequence[float]]:
        """The score, and one sample."""
        asked = [
            {"image_id": place, "test": " ".join(said), "refs": [" ".join(words) for words in right]}
            for place, (said, right) in enumerate(samples)
        ]
        with tempfile.TemporaryDirectory() as folder:
            given, made = Path(folder, "in.json"), Path(folder, "out.json")
            given.write_text(json.dumps(asked), encoding="utf-8")
            program = [self._java, "-Dfile.encoding=UTF-8", "-Xmx8G", "-jar", str(self._jar)]
            run([*program, str(given), "-out", str(made), "-silent"], folder=self._jar.parent)
            found = {item["image_id"]: float(item["scores"]["All"]["f"]) for item in json.loads(made.read_text())}
        if wrong := [place for place in range(len(samples)) if not math.isfinite(found.get(place, math.nan))]:
            raise RuntimeError(
                f"SPICE gave no score for {len(wrong)} of {len(samples)} samples; the first is {wrong[0]}"
            )
        return [(found[place], 1.0) for place in range(len(samples))]
