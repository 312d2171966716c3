"""The cache of a run: its encoders' frames, from `data.cache`, and how it is filled without training."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from tqdm import tqdm
from transformers import TrainingArguments, set_seed

from usam.data.cache import CacheError, FeatureCache
from usam.data.collate import Skipped, check_share
from usam.data.manifest import Manifest, Sample
from usam.model.build import build_model
from usam.model.checkpoint import load, processor_beside
from usam.model.model import UsamForConditionalGeneration
from usam.processor.audio import AudioError
from usam.processor.chat import flatten
from usam.processor.processor import UsamProcessor
from usam.spec.page import SpecError
from usam.training.checks import DATA
from usam.training.run import Run, cache_of, check, samples_of


def built(run: Run, seed: int) -> tuple[UsamForConditionalGeneration, UsamProcessor]:
    """The model that a run starts with, and its processor.

    Each part draws from a generator that the seed and its place name, so that runs of one seed whose specs share a part
    start with it equal.
    """
    set_seed(seed)
    if run.start is None:
        return build_model(run.spec, seed=seed), UsamProcessor.from_spec(run.spec)
    return load(run.start, spec=run.spec, seed=seed), processor_beside(run.start, run.spec)


def of_run(run: Run, model: UsamForConditionalGeneration) -> FeatureCache | None:
    """What `data.cache` asks for; None without it.

    Raises:
        SpecError: the frames of an encoder cannot be stored.
    """
    options = cache_of(run.data)
    if options is None:
        return None
    try:
        return FeatureCache(options["folder"], model, dtype=options.get("dtype"), limit=options.get("limit"))
    except CacheError as error:
        raise SpecError(f"data.cache: {error}") from error


def build(
    run: Run, *, part: tuple[int, int] = (1, 1), batch: int = 8, device: str | None = None, quiet: bool = True
) -> tuple[FeatureCache, list[Skipped]]:
    """Store the frames of all clips of a run, its held-out ones too, but for those that are stored already.

    Args:
        run: one with `data.cache`.
        part: (2, 8) takes the second of every eight rows: eight processes, on one machine or several, fill one cache.
        batch: clips that are encoded together.
        device: of the encoders; None: a GPU if there is one and the run does not say `use_cpu`.
        quiet: without a progress bar.

    Returns:
        The cache, and the rows that cannot be read, where `data.bad_audio` is `skip`.

    Raises:
        SpecError: the run has no cache, or its frames cannot be stored.
        ManifestError, AudioError: rows that are wrong, clips that cannot be read.
        SavingError: the disk refuses; what was stored before is as it was.
    """
    check(run)
    if cache_of(run.data) is None:
        raise SpecError("data.cache: names no folder; write it into the run file, or --set data.cache=FOLDER")
    model, processor = built(run, run.train.get("seed", TrainingArguments.seed))
    cache = of_run(run, model)
    assert cache is not None
    if device is None:
        device = "cuda" if torch.cuda.is_available() and not run.train.get("use_cpu") else "cpu"
    model.model.encoders.to(device)
    data = {**DATA, **run.data}
    splits = [split for split in ("train", "eval") if data[split] is not None]
    mine = Manifest.joined([samples_of(run, split, need_answer=False) for split in splits])[part[0] - 1 :: part[1]]
    skipped: list[Skipped] = []
    with cache:
        heard: list[Any] = []
        for clip in _clips(mine, processor, data["bad_audio"], skipped, quiet):
            heard.append(clip)
            if len(heard) == batch:
                _fill(cache, processor, heard, device)
                heard = []
        if heard:
            _fill(cache, processor, heard, device)
    check_share(skipped, len(mine), data["bad_share"])
    return cache, skipped


def _clips(
    samples: Sequence[Sample], processor: UsamProcessor, policy: str, skipped: list[Skipped], quiet: bool
) -> Iterator[Any]:
    """The waveform of every clip, at the model's rate."""
    for sample in tqdm(samples, desc="encoding", unit="row", disable=quiet):
        clips = [clip for message in sample.messages for clip in flatten(message)[1]]
        try:
            yield from [processor.feature_extractor.fetch_audio(clip) for clip in clips]
        except AudioError as error:
            if policy != "skip":
                raise AudioError(f"{sample.origin}: {error}") from error
            skipped.append(Skipped(sample.origin, str(error)))


def _fill(cache: FeatureCache, processor: UsamProcessor, clips: list[Any], device: str) -> None:
    batch = processor.feature_extractor(clips, sampling_rate=cache.rate, return_tensors="pt")
    cache.fill(batch["input_values"].to(device), batch["input_values_mask"].to(device))


def part_of(environment: Mapping[str, str] = os.environ) -> tuple[int, int]:
    """Which part of how many this process is, under torchrun, accelerate launch or in a Slurm array; else (1, 1)."""
    if "RANK" in environment and "WORLD_SIZE" in environment:
        return int(environment["RANK"]) + 1, int(environment["WORLD_SIZE"])
    if "SLURM_ARRAY_TASK_ID" in environment:
        first = int(environment.get("SLURM_ARRAY_TASK_MIN", 0))
        return int(environment["SLURM_ARRAY_TASK_ID"]) - first + 1, int(environment["SLURM_ARRAY_TASK_COUNT"])
    return 1, 1
