"""A saved model answers whole files, and its answers are scored: `usam eval MODEL DATA`."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from usam import __version__
from usam.config import UsamConfig
from usam.data.manifest import Manifest, ManifestError, Sample
from usam.data.reading import asking
from usam.evaluation.journal import Journal, Processes
from usam.evaluation.record import FORMAT, RECORD, Record, RecordError, check_ids
from usam.generate import LONGEST, Answerer
from usam.metrics import Metric
from usam.model.checkpoint import processor_beside, read_usam_config
from usam.model.model import UsamForConditionalGeneration
from usam.processor.audio import AudioError
from usam.processor.lengths import context_length
from usam.processor.processor import UsamProcessor
from usam.providers import providers
from usam.registry import ComponentError, did_you_mean
from usam.training.held_out import check_options, check_room, drawn, named, turns
from usam.training.routing import UNNAMED
from usam.training.rows import measured
from usam.weights import Source, locate

BAD_AUDIO = ("stop", "skip")


def evaluate(
    model: str | Path,
    data: str | Path | Sequence[str | Path],
    *,
    metrics: str | Sequence[Any] | Mapping[str, Any] | None = "wer",
    task: str | None = None,
    prompt: str | None = None,
    limit: int | None = None,
    max_new_tokens: int = LONGEST,
    options: Mapping[str, Any] | None = None,
    batch_size: int = 8,
    seed: int = 0,
    output: str | Path | None = None,
    reader: str | None = None,
    audio_root: str | Path | None = None,
    bad_audio: str = "stop",
    draws: int = 1000,
    by: Sequence[str] = (),
    beside: Mapping[str, Any] | None = None,
    device: str | None = None,
    quiet: bool = True,
) -> Record:
    """Answer the rows of manifests, score the answers, and write the record of it.

    Rows are answered in batches of about one length. Every batch of answers is on the disk before the next is begun, so
    that a killed evaluation goes on with the same call. Under torchrun or accelerate launch processes share the rows,
    each of them gives the record, and the first one writes it.

    Args:
        model: a saved folder or hub id.
        data: manifests of any format that is read, whose rows have answers.
        metrics: a name, a list of names and of `{type: name, option: value}`, or a map that names each itself; None
            scores nothing, and then rows need no answers.
        task: rows of this task alone.
        prompt: asked of every row, instead of what it asks itself.
        limit: the most rows, drawn by `seed`.
        max_new_tokens: the longest answer.
        options: of transformers' `generate`, such as `num_beams`; without them it is greedy.
        batch_size: rows that a process answers together.
        seed: what rows and resamples are drawn with, and answers where they are sampled.
        output: the record's folder; by default one in `eval/` that is named by the model and by what is asked.
        reader, audio_root: as `Manifest` takes them.
        bad_audio: `stop` ends it where a clip cannot be read, `skip` leaves such rows out and says so.
        draws: resamples of the intervals.
        by: columns (`x_...`) by whose values each metric is taken too; one that holds a list counts for each of its
            values.
        beside: what else the record says, by key; `notes` are printed below its table.
        device: where the model runs; by default a GPU if there is one.
        quiet: without a progress bar.

    Raises:
        RecordError: two rows of one id, no row that can be answered, or `output` holds another evaluation.
        ManifestError: a row is wrong, has no answer to compare with, or cannot be answered.
        ComponentError, SpecError: there is no such model or metric, or an option is wrong.
    """
    if bad_audio not in BAD_AUDIO:
        raise ValueError(f"bad_audio: {bad_audio!r} is neither {' nor '.join(BAD_AUDIO)}")
    for name, count in (("limit", limit), ("batch_size", batch_size), ("max_new_tokens", max_new_tokens)):
        if count is not None and count < 1:
            raise ValueError(f"{name}: at least 1, found {count}")
    measures = {} if metrics is None else named([metrics] if isinstance(metrics, str) else metrics)
    if not measures and metrics is not None:
        raise ValueError("metrics: name at least one, such as wer")
    decoding = {"max_new_tokens": max_new_tokens, "do_sample": False, **(options or {})}
    check_options(options or {})
    processes = Processes()
    source, config, processor = _opened(model)
    files = [data] if isinstance(data, (str, Path)) else list(data)
    manifest = Manifest(files, processor.prompts, reader=reader, audio_root=audio_root)
    rows = _rows(manifest, processor, task, prompt, limit, seed, scored=metrics is not None)
    _check_columns(rows.samples, measures)
    lengths = measured(rows.samples, processor, quiet=quiet or processes.rank > 0)
    check_room(rows.samples, lengths, context_length(config.text_config), max_new_tokens, "max_new_tokens")
    asked = {
        "model": source.provenance()["sha256"],
        "spec": _digest(config.parsed.to_dict()),
        "data": manifest.hashes,
        "rows": {"task": task, "prompt": prompt, "limit": limit, "count": len(rows.ids), "seed": seed},
        "ids": _digest(rows.ids),
        "prompts": _digest(rows.prompts),
        "decoding": decoding,
        "bad_audio": bad_audio,
    }
    folder = Path(output) if output is not None else Path("eval") / f"{_name(model)}-{_digest(asked)[:8]}"
    with processes.together():
        journal = Journal(folder, asked, processes.rank)
        if (folder / RECORD).is_file():
            return _finished(folder, measures, draws, seed, processes)
        done = {place: line for own in processes.gathered(journal.read()) for place, line in own.items()}
        todo = [
            (number, turn)
            for number, turn in enumerate(turns(lengths, batch_size))
            if not all(place in done for place in turn)
        ]
        mine = todo[processes.rank :: processes.count]
        device = device or (f"cuda:{processes.local_rank}" if torch.cuda.is_available() else None)
        if mine:
            whole = UsamForConditionalGeneration.from_pretrained(model, device_map=device)
            answerer = Answerer(whole, processor)
            shown = tqdm(mine, desc="answering", unit="batch", disable=quiet or processes.rank > 0)
            with closing(journal):
                for number, turn in shown:
                    torch.manual_seed(seed + number)
                    journal.add(_answered(answerer, rows, turn, bad_audio, decoding))
        for found in processes.gathered(journal.read()):
            done |= found
        about = {
            "format": FORMAT,
            "asked": asked,
            "model": {**source.provenance(), "provenance": config.provenance},
            "spec": config.parsed.to_dict(),
            "template": processor.chat_template,
            "data": [
                {"file": str(file), "sha256": digest, "rows": len(part)}
                for file, digest, part in zip(_names(manifest), manifest.hashes, manifest.parts, strict=True)
            ],
            "reader": reader,
            "audio_root": None if audio_root is None else str(audio_root),
            **_counts(rows, done),
            "versions": _versions(config),
            "machine": _machine(device, processes.count),
            "time": _time(done, batch_size),
            "by": list(by),
            **(beside or {}),
        }
        answers = [_line(rows, place, done[place]) for place in range(len(rows.ids)) if "fault" not in done[place]]
        if not answers:
            why = next(iter(about["skipped"]))["why"]
            raise RecordError(f"none of {len(rows.ids):,} rows could be answered; the first: {why}")
        record = Record(about, answers, folder).scored(measures, draws=draws, seed=seed)
        if processes.rank == 0:
            record.write(folder)
        processes.gathered(None)  # nobody leaves before it is written
        return record


def _opened(model: str | Path) -> tuple[Source, UsamConfig, UsamProcessor]:
    source = locate(str(model))
    config = read_usam_config(source.folder)
    if config.spec is None:
        raise ComponentError(f"{model}: not a model that usam saved, so that it cannot be evaluated")
    return source, config, processor_beside(model, config.parsed)


def _name(model: str | Path) -> str:
    return Path(os.path.abspath(Path(model).expanduser())).name if Path(model).exists() else Path(model).name


def _finished(folder: Path, metrics: Mapping[str, Metric], draws: int, seed: int, processes: Processes) -> Record:
    """The record that is there, scored by these metrics too."""
    record = Record.read(folder).scored(metrics, draws=draws, seed=seed)
    processes.gathered(None)  # all have read it
    return record.write(folder) if processes.rank == 0 else record


# Rows


@dataclass(frozen=True)
class _Rows:
    """What is answered."""

    samples: Sequence[Sample]
    ids: list[Any]
    prompts: list[str]  # as rendered


def _rows(
    manifest: Manifest,
    processor: UsamProcessor,
    task: str | None,
    prompt: str | None,
    limit: int | None,
    seed: int,
    *,
    scored: bool,
) -> _Rows:
    if task is not None:
        tasks = [sample.task or UNNAMED for sample in manifest]
        if task not in tasks:
            raise ManifestError(f"no row has the task '{task}'; {did_you_mean(task, sorted(set(tasks)))}")
        manifest = manifest.select(np.flatnonzero(np.array(tasks) == task))
    manifest = manifest.select(drawn(len(manifest), limit, seed))
    samples: Sequence[Sample] = manifest
    if prompt is not None:
        samples = [asking(sample, prompt) for sample in manifest]
    ids, prompts, origins, without = [], [], [], []
    shortened = _shortened(manifest)
    for sample in samples:
        origins.append(sample.origin)
        ids.append(sample.id if sample.id is not None else shortened(sample.origin))
        try:
            prompts.append(processor.render(sample.question, add_generation_prompt=True).text)
        except ValueError as error:
            raise ManifestError(f"{sample.origin}: {error}") from error
        if scored and not sample.references:
            without.append(sample.origin)
    if without:
        raise ManifestError(
            f"{without[0]}: has no answer to compare with, as {len(without):,} of {len(samples):,} rows have none; "
            "write 'answer'"
        )
    check_ids(ids, origins)
    return _Rows(samples, ids, prompts)


def _names(manifest: Manifest) -> list[Path]:
    return [Path(part.path) for part in manifest.parts if part.path is not None]


def _shortened(manifest: Manifest) -> Any:
    """file:line without the file's folder, where that is enough: so rows have the same ids wherever the files lie."""
    names = _names(manifest)
    shared = Counter(path.name for path in names)
    short = {str(path): path.name for path in names if shared[path.name] == 1}

    def shortened(origin: str) -> str:
        long = next((path for path in short if origin.startswith(path)), None)
        return origin if long is None else short[long] + origin.removeprefix(long)

    return shortened


def _check_columns(samples: Sequence[Sample], metrics: Mapping[str, Metric]) -> None:
    """Refuse rows that a metric cannot measure, whatever is answered, before anything is.

    Raises:
        ManifestError: names the row, and the column that it lacks or what is wrong in it.
    """
    for metric in metrics.values():
        if not metric.columns:
            continue
        extra, origins = [sample.extra for sample in samples], [sample.origin for sample in samples]
        try:
            metric.over([""] * len(samples), [sample.references for sample in samples], origins, extra)
        except ValueError as error:
            raise ManifestError(str(error)) from error


# Answers


def _answered(
    answerer: Answerer, rows: _Rows, turn: Sequence[int], bad_audio: str, decoding: Mapping[str, Any]
) -> Iterator[dict[str, Any]]:
    """The answers to one batch of rows, as the journal has them."""
    start = time.perf_counter()
    chats = [rows.samples[place].question for place in turn]
    replies = list(answerer.replies(chats, batch_size=len(turn), ahead=1, **decoding))
    seconds = (time.perf_counter() - start) / len(turn)
    for place, reply in zip(turn, replies, strict=True):
        if reply.fault is None:
            said = {"prediction": reply.text, "complete": reply.complete, "tokens": reply.tokens}
            yield {"place": place, **said, "seconds": seconds}
            continue
        if bad_audio == "stop" or not isinstance(reply.fault, (AudioError, OSError)):
            remedy = "; --bad-audio skip leaves such rows out" * isinstance(reply.fault, (AudioError, OSError))
            raise ManifestError(f"{rows.samples[place].origin}: {reply.fault}{remedy}") from reply.fault
        yield {"place": place, "fault": str(reply.fault), "seconds": seconds}


def _line(rows: _Rows, place: int, found: Mapping[str, Any]) -> dict[str, Any]:
    """An answer, as the record has it."""
    sample = rows.samples[place]
    return {
        "id": rows.ids[place],
        "row": sample.origin,
        "task": sample.task,
        "prompt": rows.prompts[place],
        **{key: found[key] for key in ("prediction", "complete", "tokens")},
        "references": list(sample.references),
        "extra": {key: value for key, value in sample.extra.items() if _is_plain(value)},
    }


def _is_plain(value: Any) -> bool:
    """Whether JSON holds it: a record has no sound."""
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return False
    return True


# What the record says


def _counts(rows: _Rows, done: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
    skipped = [
        {"id": rows.ids[place], "row": rows.samples[place].origin, "why": found["fault"]}
        for place, found in sorted(done.items())
        if "fault" in found
    ]
    cut_off = sum(not found.get("complete", True) for found in done.values())
    return {"answered": len(done) - len(skipped), "cut_off": cut_off, "skipped": skipped}


def _time(done: Mapping[int, Mapping[str, Any]], batch_size: int) -> dict[str, Any]:
    """What answering took, summed over processes; a killed process' time counts until its last batch."""
    seconds, tokens = (sum(found.get(key, 0) for found in done.values()) for key in ("seconds", "tokens"))
    return {
        "seconds": seconds,
        "tokens": tokens,
        "tokens_per_second": tokens / seconds,
        "rows_per_second": len(done) / seconds,
        "batch_size": batch_size,
    }


def _versions(config: UsamConfig) -> dict[str, Any]:
    packages = ("torch", "transformers", "peft", "tokenizers", "numpy")
    return {"usam": __version__, **{name: metadata.version(name) for name in packages}, **providers(config.parsed)}


def _machine(device: str | None, processes: int) -> dict[str, Any]:
    cuda = device is not None and torch.device(device).type == "cuda"
    return {
        "system": platform.platform(),
        "python": sys.version.split()[0],
        "device": torch.cuda.get_device_name(device) if cuda else (device or "cpu"),
        "cpus": os.cpu_count(),
        "processes": processes,
    }


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()
