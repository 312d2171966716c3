"""Speech: sentences in a neural voice, by Flite and by eSpeak NG, and human clips with the real Whisper's own words."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import soundfile
import soxr
from numpy.typing import NDArray
from tqdm import tqdm

from usam.saving import write_whole
from usam_real.labels import Labeller, is_sure, worded
from usam_real.sentences import said, sentences, shared
from usam_real.voices import RATE, ESpeak, Flite, Neural, Voice

# Clips by part and voice. `ctc` and `train` are both for training, for one stage each, and share no sentence; human
# clips for training are in `ctc`, whatever the stage.
SIZES = {
    "ctc": {"neural": 800, "flite": 3400, "espeak": 400},
    "train": {"neural": 500, "flite": 900, "espeak": 50},
    "dev": {"neural": 40, "espeak": 20},
    "test": {"neural": 50, "espeak": 30},
}
HUMAN = {"test": 100, "dev": 40}  # the rest is for training
LEAST = {"held out": -0.5, "training": -1.0}  # mean log probability of the tokens of a label that is kept
PERTURBED = (0.9, 1.1)  # speeds that human clips for training are played at too (Ko et al., 2015)
SHORTEST, LONGEST = 0.4, 10.0  # seconds of a human clip
NARROW = 8000  # Hz, samples of a telephone exchange
FAINT = 0.01  # the greatest sample of a human clip that holds nothing
SPEEDS = (0.85, 1.2)
PITCHES = {"neural": (0.9, 1.3), "flite": (0.88, 1.15), "espeak": (0.9, 1.3)}
LICENCES = {"neural": "CC0-1.0", "flite": "Flite's, MIT-style", "espeak": "CC0-1.0", "human": "CC-BY-SA-3.0"}
BATCH = 8  # clips that are labelled together

Maker = Callable[[], Any]


class Job(NamedTuple):
    """A sentence to be said into a file."""

    file: Path
    voice: str
    text: str
    speed: float
    pitch: float
    narrow: bool  # as a telephone exchange has it, which the human clips are from


def write_speech(
    fetched: Path,
    place: Path,
    *,
    size: float = 1.0,
    seed: int = 0,
    voices: Mapping[str, Maker] | None = None,
    labeller: Maker | None = None,
    processes: int | None = None,
) -> None:
    """Write `PART.jsonl` for ctc, train, dev and test, and `PART-VOICE.jsonl` for each voice, beside their clips.

    Stopped at any moment, the next call goes on: a clip or a label that is there is not made again. The manifests come
    last, and `recipe.json` after them.

    Args:
        fetched: what `fetch` filled.
        place: where to; of another recipe what is there is removed first.
        size: how many clips, as a share of `SIZES` and of the human ones.
        seed: another one draws other sentences, and other human clips for the test.
        voices: makers of voices, by name; otherwise the neural one, Flite's and eSpeak NG.
        labeller: maker of what labels human clips; otherwise the real Whisper.
        processes: that speak and label; otherwise one for each of at most two processors.

    Raises:
        FileNotFoundError: something was not fetched.
        ImportError: a package is missing; says which.
        ValueError: there are too few sentences or human clips.
    """
    recipe = recipe_of(size, seed)
    _begin(place, recipe)
    voices = voices or {
        "neural": partial(Neural, fetched / "models/voice-joe"),
        "flite": partial(Flite, fetched / "models/voices-flite"),
        "espeak": ESpeak,
    }
    labeller = labeller or partial(Labeller, fetched / "models/whisper-tiny.en")
    processes = processes or min(2, os.cpu_count() or 1)
    jobs = _jobs(fetched, place, size, seed)
    missing = [job for part in jobs.values() for job, _ in part if not job.file.exists()]
    for _ in tqdm(_each(_say, _Voices(voices), missing, processes), "speech", len(missing), disable=None):
        pass
    labels = _labelled(fetched / "sounds/asterisk", place / "labels.jsonl", labeller, size, seed, processes)
    human = _split(labels, size, seed)
    kept = {clip for clips in human.values() for clip, _ in clips}
    print(
        f"human clips: {len(labels)}, of which {len(kept)} are used: " + _counted({k: len(v) for k, v in human.items()})
    )
    for part in SIZES:
        rows = [_spoken_row(job, text, place) for job, text in jobs[part]]
        rows += [_human_row(str(clip), text) for clip, text in human[part]]
        if part not in HUMAN:
            rows += [
                _human_row(_played(clip, speed, place).relative_to(place).as_posix(), text, speed)
                for speed in PERTURBED
                for clip, text in human[part]
            ]
        rows = [{**row, "task": "asr", "id": f"speech-{part}-{i:05d}"} for i, row in enumerate(rows, start=1)]
        _write(place / f"{part}.jsonl", rows)
        for voice in sorted({row["x_voice"] for row in rows}):
            _write(place / f"{part}-{voice}.jsonl", [row for row in rows if row["x_voice"] == voice])
    write_whole(place / "recipe.json", json.dumps(recipe) + "\n")


def recipe_of(size: float, seed: int) -> dict[str, Any]:
    """What the clips are made by, as plain data: what was made by another is not taken for the same."""
    said = {"clips": SIZES, "speeds": SPEEDS, "pitches": PITCHES, "narrow": NARROW}
    human = {"human": HUMAN, "least": LEAST, "perturbed": PERTURBED}
    return dict(json.loads(json.dumps({"size": size, "seed": seed, **said, **human})))


def _begin(place: Path, recipe: Mapping[str, Any]) -> None:
    """Keep what was begun by the same recipe, and nothing else."""
    begun = place / "begun.json"
    if begun.is_file() and json.loads(begun.read_text(encoding="utf-8")) == recipe:
        return
    shutil.rmtree(place, ignore_errors=True)
    write_whole(begun, json.dumps(recipe) + "\n")


def _jobs(fetched: Path, place: Path, size: float, seed: int) -> dict[str, list[tuple[Job, str]]]:
    """By part, what is said into which file, and what its answer is."""
    texts, words = fetched / "texts/fortunes", fetched / "texts/words/american-english"
    for needed in (texts, words):
        if not needed.exists():
            raise FileNotFoundError(f"{needed} is not there; run `python -m usam_real fetch` first")
    counts = {f"{p}/{v}": max(1, round(size * n)) for p, voices in SIZES.items() for v, n in voices.items()}
    jobs: dict[str, list[tuple[Job, str]]] = {part: [] for part in SIZES}
    for name, pairs in shared(sentences(texts, words), counts, seed).items():
        part, voice = name.split("/")
        for i, (answer, written) in enumerate(pairs, start=1):
            draw = random.Random(f"{seed}:{name}:{i}")
            file, speed, pitch = place / name / f"{i:05d}.flac", draw.uniform(*SPEEDS), draw.uniform(*PITCHES[voice])
            jobs[part].append((Job(file, voice, written, speed, pitch, narrow=i % 2 == 0), answer))
    return jobs


class _Voices(NamedTuple):
    """Makes each voice when it is first needed."""

    makers: Mapping[str, Maker]

    def __call__(self) -> Callable[[str], Voice]:
        made: dict[str, Voice] = {}

        def voice(name: str) -> Voice:
            if name not in made:
                made[name] = self.makers[name]()
            return made[name]

        return voice


def _say(voice: Callable[[str], Voice], job: Job) -> None:
    wave = voice(job.voice).say(job.text, job.speed, job.pitch)
    if job.narrow:
        wave = soxr.resample(soxr.resample(wave, RATE, NARROW), NARROW, RATE)
    _saved(job.file, wave)


def _saved(file: Path, wave: NDArray[Any]) -> None:
    """A clip at 16 kHz, there whole or not."""
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f".{file.name}")
    soundfile.write(part, wave.clip(-1, 1), RATE, subtype="PCM_16", format="FLAC")
    os.replace(part, file)


def _label(labeller: Any, files: Sequence[Path]) -> list[tuple[Path, str, float]]:
    return [(file, text, log) for file, (text, log) in zip(files, labeller.label(files), strict=True)]


def _labelled(
    source: Path, journal: Path, labeller: Maker, size: float, seed: int, processes: int
) -> list[tuple[Path, str, float]]:
    """Human clips with their labels, from the journal where they are in it already."""
    if not source.is_dir():
        raise FileNotFoundError(f"{source} is not there; run `python -m usam_real fetch` first")
    source = source.resolve()
    clips = [file for file in sorted(source.rglob("*.wav")) if _speaks(file)]
    random.Random(f"{seed}:human").shuffle(clips)
    clips = clips[: max(12, round(size * len(clips)))]
    names = {file: file.relative_to(source).as_posix() for file in clips}
    known = _journal(journal)
    missing = [file for file in clips if names[file] not in known]
    batches = [missing[i : i + BATCH] for i in range(0, len(missing), BATCH)]
    with journal.open("a", encoding="utf-8") as log:
        for found in tqdm(_each(_label, labeller, batches, processes), "labels", len(batches), disable=None):
            for file, text, sure in found:
                log.write(json.dumps({"clip": names[file], "text": text, "log": sure}) + "\n")
                known[names[file]] = text, sure
            log.flush()
    return [(file, *known[name]) for file, name in names.items()]


def _speaks(clip: Path) -> bool:
    """Whether a clip is of a length to be used, and no silence."""
    if not SHORTEST <= soundfile.info(clip).duration <= LONGEST:
        return False
    return float(abs(soundfile.read(clip, dtype="float32")[0]).max()) >= FAINT


def _journal(file: Path) -> dict[str, tuple[str, float]]:
    """What was labelled before; a last line that a kill has cut off is taken away."""
    if not file.is_file():
        return {}
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
    whole = [line for line in lines if line.endswith("\n")]
    if len(whole) < len(lines):
        write_whole(file, "".join(whole))
    rows = [json.loads(line) for line in whole]
    return {row["clip"]: (row["text"], row["log"]) for row in rows}


def _split(labels: Iterable[tuple[Path, str, float]], size: float, seed: int) -> dict[str, list[tuple[Path, str]]]:
    """Human clips by part; what is said in a clip of the test or of dev is said in no clip of training.

    Training also has clips whose labels would not be sure enough for these two.
    """
    usable = [
        (file, said(words), log)
        for file, text, log in labels
        if is_sure(words := worded(text), log, min(LEAST.values()))
    ]
    sure = [clip for clip in usable if clip[2] >= LEAST["held out"]]
    held = {part: max(2, round(size * count)) for part, count in HUMAN.items()}
    if len(sure) <= sum(held.values()):
        raise ValueError(f"{len(sure)} human clips have a sure label; more than {sum(held.values())} are needed")
    found = {"test": sure[: held["test"]]}
    found["dev"] = _others(sure, found["test"])[: held["dev"]]
    rest = _others(usable, found["test"] + found["dev"])
    found |= {"ctc": rest, "train": []}
    return {part: [(file, text) for file, text, _ in clips] for part, clips in found.items()}


def _others(
    clips: list[tuple[Path, str, float]], taken: list[tuple[Path, str, float]]
) -> list[tuple[Path, str, float]]:
    """Clips in which is said what is said in none of those that are taken."""
    heard = {text for _, text, _ in taken}
    return [clip for clip in clips if clip[1] not in heard]


def _played(clip: Path, speed: float, place: Path) -> Path:
    """A clip played faster or slower, its pitch with it."""
    file = place / "human" / f"{speed:g}" / f"{clip.parent.name}-{clip.stem}.flac"
    if not file.exists():
        wave, rate = soundfile.read(clip, dtype="float32", always_2d=True)
        _saved(file, soxr.resample(wave.mean(1), rate * speed, RATE))
    return file


def _spoken_row(job: Job, answer: str, place: Path) -> dict[str, Any]:
    audio = job.file.relative_to(place).as_posix()
    who = {"x_voice": job.voice, "x_label": "text", "x_licence": LICENCES[job.voice]}
    return {"audio": audio, "answer": answer, "x_speed": round(job.speed, 3), "x_narrow": job.narrow, **who}


def _human_row(audio: str, answer: str, speed: float = 1.0) -> dict[str, Any]:
    who = {"x_voice": "human", "x_label": "whisper-tiny.en", "x_licence": LICENCES["human"]}
    return {"audio": audio, "answer": answer, "x_speed": speed, **who}


def _write(file: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    write_whole(file, "".join(json.dumps(row) + "\n" for row in rows))


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in Counter(counts).items())


def _each(work: Callable[[Any, Any], Any], maker: Maker, jobs: Sequence[Any], processes: int) -> Iterator[Any]:
    """What `work(tool, job)` gives for each job, in any order; each process makes its tool once."""
    if not jobs:
        return
    if processes == 1:
        tool = maker()
        yield from (work(tool, job) for job in jobs)
        return
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), _end_with_parent) as pool:
        running = [pool.submit(_Work(work, maker), job) for job in jobs]
        try:
            yield from (done.result() for done in as_completed(running))
        finally:
            pool.shutdown(cancel_futures=True)


def _end_with_parent() -> None:
    """A process of a pool would wait forever for the next job of one that was killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


_tool: list[Any] = []  # of this process


class _Work(NamedTuple):
    """Makes the tool for the first job, in a process that goes on with the next."""

    work: Callable[[Any, Any], Any]
    maker: Maker

    def __call__(self, job: Any) -> Any:
        if not _tool:
            _tool.append(self.maker())
        return self.work(_tool[0], job)
