"""CoVoST 2 (Wang et al., 2020): Common Voice's sentences, translated."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from usam.registry import did_you_mean
from usam.spec.page import SpecError
from usam.suites import Item, Suite, SuiteConfig
from usam.suites._files import plain_tsv

BOTH_WAYS = ["ar", "ca", "cy", "de", "et", "fa", "id", "ja", "lv", "mn", "sl", "sv-SE", "ta", "tr", "zh-CN"]
INTO_ENGLISH = [*BOTH_WAYS, "es", "fr", "it", "nl", "pt", "ru"]
PAIRS = [*(f"en_{language}" for language in BOTH_WAYS), *(f"{language}_en" for language in INTO_ENGLISH)]
CHARACTERS = {"zh-CN": "zh", "ja": "char"}  # sacrebleu's way to part what has no spaces


class CoVoST2(Suite):
    """`covost_v2.PAIR.tsv` with `path`, `translation` and `split`, beside Common Voice's folder `clips`.

    Where `get_covost_splits.py` has made `covost_v2.PAIR.SPLIT.tsv`, that is read. Neither holds quotes: a tab parts
    cells, and a backslash keeps the character behind it.
    """

    class Config(SuiteConfig):
        """Options of CoVoST 2."""

        pair: str = "en_zh-CN"
        """The language that is spoken, and the one that it is translated into, as the files are called."""

    splits = ("test", "dev", "train")
    task = "s2tt"
    source = "no official prompt; scoring: BLEU by sacrebleu (Wang et al., 2020, arXiv 2007.10310)"
    home = (
        "https://github.com/facebookresearch/covost (CC0), and Common Voice 4 (CC0) for the clips; the root holds "
        "covost_v2.PAIR.tsv and the folder clips, or LANGUAGE/clips"
    )

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        if config.pair not in PAIRS:
            raise SpecError(f"pair: CoVoST 2 has no '{config.pair}'; {did_you_mean(config.pair, PAIRS)}")

    @property
    def metrics(self) -> Mapping[str, Any]:
        """BLEU, by characters into Chinese and Japanese."""
        tokenize = CHARACTERS.get(self.config.pair.partition("_")[2], "13a")
        return {"bleu": {"type": "bleu", "tokenize": tokenize}, "chrf": {"type": "chrf"}}

    def items(self, root: Path) -> Iterator[Item]:
        """An item a sentence."""
        pair = self.config.pair
        file = self.found(root, f"covost_v2.{pair}.{self.split}.tsv", f"covost_v2.{pair}.tsv")
        places = ["clips", f"{pair.partition('_')[0]}/clips"]
        folder = self.found(root, *places).relative_to(root).as_posix()
        whole = file.name == f"covost_v2.{pair}.tsv"
        for place, row in plain_tsv(file, ("path", "translation", "split") if whole else ("path", "translation")):
            # The training split has two names; dev and test have one.
            if whole and row["split"] != self.split and (self.split, row["split"]) != ("train", "train_covost"):
                continue
            sentence = {"sentence": row["sentence"]} if "sentence" in row else {}
            yield Item(place, row["path"], (f"{folder}/{row['path']}",), (row["translation"],), columns=sentence)
