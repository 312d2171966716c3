"""FENSE (Zhou et al., 2022): how alike captions are in meaning, less where an answer is no fluent sentence."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import normalize

from usam.metrics import MetricConfig, Statistics, checked
from usam.metrics._mean import Mean
from usam.registry import ComponentError
from usam.spec.page import SpecError

NEEDED = {
    "sentences": "a folder with the Sentence-BERT model that texts are compared by; FENSE's is "
    "https://huggingface.co/sentence-transformers/paraphrase-TinyBERT-L6-v2",
    "errors": "the file of the error detector, "
    "https://github.com/blmoistawinde/fense/releases/download/V0.1/echecker_clotho_audiocaps_base.ckpt",
    "encoder": "a folder with config and tokenizer of the model that the detector was made from, as the file's "
    "`model_type` names it: https://huggingface.co/bert-base-uncased",
}
LONGEST = 64  # tokens that the detector sees
BATCH = 64


class Fense(Mean):
    """The mean cosine of an answer's and its references' embeddings; a tenth of it where the detector finds an error.

    Both models are read from files that are named and never downloaded, and run on the CPU in float64, so that what
    stands beside a text in a batch changes nothing. Of several references the cosine is the mean.
    """

    class Config(MetricConfig):
        """Options of FENSE."""

        sentences: str | None = None
        """Folder of a Sentence-BERT model with mean pooling, such as paraphrase-TinyBERT-L6-v2."""
        errors: str | None = None
        """File of the error detector, such as echecker_clotho_audiocaps_base.ckpt."""
        encoder: str | None = None
        """Folder with config.json and the tokenizer of the model that the detector was made from."""
        threshold: float = Field(0.9, ge=0, le=1)
        """How probable an error must be."""
        penalty: float = Field(0.9, ge=0, le=1)
        """The share of the score that an error costs."""

    higher_is_better = True
    unit = "cosine"
    bounds = (-1.0, 1.0)
    packages = ("transformers",)

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        wanting = [f"{key}: {what}" for key, what in NEEDED.items() if not _there(getattr(config, key))]
        if wanting:
            raise ComponentError("FENSE lacks files; name where they lie on this machine: " + "; ".join(wanting))
        self._embed = _embedder(Path(config.sentences).expanduser())
        self._doubt = _detector(Path(config.errors).expanduser(), Path(config.encoder).expanduser())

    @property
    def id(self) -> str:
        """Of the models their folder's or file's name, and a hash of their weights."""
        found = super().id
        for key in NEEDED:
            path = Path(getattr(self.config, key)).expanduser()
            found = found.replace(f"{key}:{getattr(self.config, key)}", f"{key}:{path.name}@{_hash(path)}")
        return found

    def __getstate__(self) -> dict[str, Any]:
        return {"config": self.config}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.__init__(state["config"])  # type: ignore[misc]

    def over(
        self,
        predictions: Sequence[str],
        references: Sequence[Sequence[str] | str],
        ids: Sequence[Any] | None = None,
        extra: Sequence[Mapping[str, Any]] | None = None,
    ) -> Statistics:
        """The statistics of each sample: (samples, counts); arguments and errors as `Metric.over` has them."""
        pairs = checked(predictions, references, ids)
        known = self._embed([text for answer, right in pairs for text in (answer, *right)])
        wrong = self._doubt([answer for answer, _ in pairs])
        found = []
        for answer, right in pairs:
            alike = float(np.mean(sorted(float(known[answer] @ known[text]) for text in right)))
            error = float(wrong[answer]) > self.config.threshold
            found.append((alike * (1 - self.config.penalty * error), float(error), 1.0))
        return np.array(found, dtype=np.float64)

    def statistics(self, prediction: str, references: Sequence[str]) -> Sequence[float]:
        """The score, whether the answer has an error, and one sample."""
        alone: list[float] = self.over([prediction], [references])[0].tolist()
        return alone

    def details(self, statistics: Statistics) -> dict[str, float]:
        """`errors`: the share of answers with an error."""
        return {"errors": float(statistics[:, 1].mean())}


def _there(path: str | None) -> bool:
    return path is not None and Path(path).expanduser().exists()


def _hash(path: Path) -> str:
    """Of a file, or of the files of a folder that say what a model is."""
    files = [path] if path.is_file() else sorted(path.rglob("*"))
    found = hashlib.sha256()
    for file in files:
        if file.is_file() and (path.is_file() or file.suffix in (".json", ".txt", ".safetensors", ".bin", ".model")):
            found.update(file.read_bytes())
    return found.hexdigest()[:8]


Model = Callable[[Sequence[str]], dict[str, Tensor]]


def _embedder(folder: Path) -> Model:
    """Unit vectors of texts: the mean of the last layer over a text's tokens."""
    from transformers import AutoModel

    pooling = folder / "1_Pooling" / "config.json"
    if not pooling.is_file() or not json.loads(pooling.read_text()).get("pooling_mode_mean_tokens"):
        raise SpecError(f"sentences: {pooling} does not say `pooling_mode_mean_tokens: true`; FENSE's models have it")
    limits = folder / "sentence_bert_config.json"
    longest = json.loads(limits.read_text()).get("max_seq_length", 128) if limits.is_file() else 128
    model = AutoModel.from_pretrained(folder, local_files_only=True).double().eval()
    return _texts(folder, longest, lambda **inputs: normalize(model(**inputs).last_hidden_state.mean(1), dim=-1))


def _detector(file: Path, folder: Path) -> Model:
    """How probable it is that each text has an error."""
    from transformers import AutoConfig, AutoModel

    held = torch.load(file, map_location="cpu", weights_only=True)
    if missing := {"model_type", "num_classes", "state_dict"} - set(held):
        raise SpecError(f"errors: {file} is no error detector of FENSE: it lacks {', '.join(sorted(missing))}")
    encoder = AutoModel.from_config(AutoConfig.from_pretrained(folder, local_files_only=True))
    head = torch.nn.Linear(encoder.config.hidden_size, held["num_classes"])
    whole = torch.nn.ModuleDict({"encoder": encoder, "clf": head})
    states = {key: value for key, value in held["state_dict"].items() if not key.endswith("position_ids")}
    try:
        whole.load_state_dict(states)
    except RuntimeError as error:
        raise SpecError(
            f"encoder: {folder} is not {held['model_type']}, which {file} was made from: {error}"
        ) from error
    whole.double().eval()
    return _texts(folder, LONGEST, lambda **inputs: head(encoder(**inputs).last_hidden_state[:, 0])[:, -1].sigmoid())


def _texts(folder: Path, longest: int, model: Callable[..., Tensor]) -> Model:
    """What a model says of each text; texts of equal length are run together, so that nothing is padded."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)

    def run(texts: Sequence[str]) -> dict[str, Tensor]:
        by_length: dict[int, list[tuple[str, list[int]]]] = defaultdict(list)
        for text in dict.fromkeys(texts):
            tokens = tokenizer(text, truncation=True, max_length=longest)["input_ids"]
            by_length[len(tokens)].append((text, tokens))
        found = {}
        for group in by_length.values():
            for start in range(0, len(group), BATCH):
                batch = group[start : start + BATCH]
                with torch.no_grad():
                    said = model(input_ids=torch.tensor([tokens for _, tokens in batch]))
                found.update({text: value for (text, _), value in zip(batch, said, strict=True)})
        return found

    return run
