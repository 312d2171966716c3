"""What a visitor asks is read within limits and answered in pieces; what cannot be is said in a sentence."""

from __future__ import annotations

import hashlib
import traceback
import warnings
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import perf_counter
from typing import Any

from usam.generate import Answerer, Chat, Reply
from usam.processor.audio import AudioWarning, Waveform, open_audio, read_audio
from usam.readers import Sample
from usam.readers.usam import TAG
from usam.report.clips import Look, has_parts, seen

OWN_WORDS = "own words"  # what a question is called that is no task of the model
SHORT = 48  # characters of a file's name that are repeated


@dataclass(frozen=True)
class Limits:
    """What a visitor may ask for."""

    seconds: float = 60.0  # of each clip
    clips: int = 4  # of one question
    megabytes: int = 32  # of each file
    tokens: int = 256  # of an answer
    letters: int = 2000  # of a prompt


class Refused(ValueError):
    """A question that is not asked; the message is for the visitor."""


@dataclass(frozen=True)
class Known:
    """What is true of an example."""

    answers: tuple[str, ...]
    events: Sequence[Mapping[str, Any]] = ()


@dataclass(frozen=True)
class Clip:
    """Sound that a visitor gave, read within the limits."""

    wave: Waveform
    seconds: float
    known: Known | None = None


@dataclass(frozen=True)
class Timing:
    """Of one answer, in seconds."""

    audio: float
    first: float | None
    """Until its first piece; None of one that has none."""
    total: float
    tokens: int


@dataclass(frozen=True)
class Told:
    """What can be shown at one moment."""

    text: str = ""
    fault: str = ""
    """Why there is no answer."""
    notes: tuple[str, ...] = ()
    timing: Timing | None = None
    """None until the answer has come to its end."""
    looks: tuple[Look, ...] = ()
    reference: str = ""
    """The right answer to an example."""


@dataclass
class Listener:
    """A model that strangers may ask.

    Args:
        name: what they know it by.
        answerer: the model with its processor.
        limits: what they may ask for.
        known: what is true of clips, by the SHA-256 of their files.
    """

    name: str
    answerer: Answerer
    limits: Limits = field(default_factory=Limits)
    known: Mapping[str, Known] = field(default_factory=dict)

    @property
    def prompts(self) -> dict[str, str]:
        """Instructions by task."""
        return dict(self.answerer.processor.prompts)

    @property
    def rate(self) -> int:
        """Samples a second that the model hears."""
        return int(self.answerer.processor.feature_extractor.sampling_rate)

    def told(self, files: Sequence[str | None], prompt: str) -> Iterator[Told]:
        """The answer as it comes, and at the end what the model did with each clip.

        Nothing is raised: what is wrong with a question is the `fault` of the last one told; what is wrong with us is
        printed with its traceback, and the visitor is told so.
        """
        said = Told()
        try:
            words = self._words(prompt)
            clips = self._clips([file for file in files if file])
            _check_tags(words, len(clips))
            chat = self.answerer.ask([{"array": c.wave, "sampling_rate": self.rate} for c in clips], words)
            for said in self._answered(chat, clips):
                yield said
            if said.fault == "" and said.timing is not None:
                yield self._looked(said, chat, clips, words)
        except (ValueError, OSError) as error:
            yield replace(said, fault=_sentence(error))
        except Exception:  # whatever it is, the page goes on with the next question
            traceback.print_exc()
            ours = "This failed on the server, and not by your question; its terminal says why. Ask another one."
            yield replace(said, fault=ours)

    def _words(self, prompt: str) -> str:
        words = prompt.strip()
        if not words:
            raise Refused("Choose a task, or write what you want to know.")
        if len(words) > self.limits.letters:
            raise Refused(f"The prompt has {len(words):,} characters; at most {self.limits.letters:,} are taken.")
        return words

    def _clips(self, files: Sequence[str]) -> list[Clip]:
        if not files:
            raise Refused("Give a clip first: upload a file, record one, or take an example.")
        if len(files) > self.limits.clips:
            raise Refused(f"These are {len(files)} clips; at most {self.limits.clips} are taken.")
        return [self._clip(Path(file)) for file in files]

    def _clip(self, file: Path) -> Clip:
        """The sound in a file: what is too long is refused before it is decoded."""
        name = file.name if len(file.name) <= SHORT else f"{file.name[: SHORT - 12]}...{file.name[-9:]}"
        if not file.is_file():
            raise Refused(f"{name}: is no longer here; give it again.")
        if file.stat().st_size > self.limits.megabytes * 1_000_000:
            raise Refused(f"{name}: is larger than {self.limits.megabytes} MB.")
        content = file.read_bytes()
        source = {"path": name, "bytes": content}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", AudioWarning)  # a header that says too little: all of it is read
            with open_audio(source, self.rate) as sound:
                seconds = sound.frames / sound.rate
            if seconds > self.limits.seconds:
                raise Refused(
                    f"{name}: is {_long(seconds)} long, and at most {self.limits.seconds:g} s are taken; cut it."
                )
            wave = read_audio(source, self.rate, max_seconds=self.limits.seconds)
        return Clip(wave, seconds, self.known.get(hashlib.sha256(content).hexdigest()))

    def _answered(self, chat: Chat, clips: Sequence[Clip]) -> Generator[Told, None, None]:
        begun, first, text = perf_counter(), None, ""
        pieces = self.answerer.stream(chat, max_new_tokens=self.limits.tokens)
        try:
            while True:
                text += next(pieces)
                first = first or perf_counter() - begun
                yield Told(text)
        except StopIteration as stop:
            reply: Reply = stop.value
        finally:
            pieces.close()
        if reply.fault is not None:
            raise reply.fault
        total, audio = perf_counter() - begun, sum(clip.seconds for clip in clips)
        notes = [] if reply.text.strip() else ["The model answered nothing."]
        if not reply.complete:
            notes.append(f"The answer was cut off at {self.limits.tokens} tokens.")
        reference = clips[0].known.answers[0] if len(clips) == 1 and clips[0].known else ""
        yield Told(reply.text, "", tuple(notes), Timing(audio, first, total, reply.tokens), (), reference)

    def _looked(self, said: Told, chat: Chat, clips: Sequence[Clip], words: str) -> Told:
        """The same with what the model did with each clip, as far as it can be seen."""
        task = next((task for task, own in self.prompts.items() if own == words), OWN_WORDS)
        names = ["clip"] if len(clips) == 1 else [f"clip {i}" for i in range(1, len(clips) + 1)]
        events = [clip.known.events if clip.known else () for clip in clips]
        plain = [
            Look(name, task, said.text, True, clip.wave, self.rate, own)
            for name, clip, own in zip(names, clips, events, strict=True)
        ]
        if not said.text.strip() or not has_parts(self.answerer.model):
            return replace(said, looks=tuple(plain))
        sample = Sample("question", (*chat, {"role": "assistant", "content": said.text}))
        looks = [
            replace(one, routed=found.routed, scored=found.scored)
            for one, found in zip(plain, seen(self.answerer, [sample], own=True), strict=True)
        ]
        return replace(said, looks=tuple(looks))


def _check_tags(words: str, clips: int) -> None:
    """Refuse words that say where clips stand, and not of each."""
    tags = len(TAG.findall(words))
    if tags not in (0, clips):
        raise Refused(f"The question has <audio> {tags} times, and clips are {clips}: as many, or none.")


def _long(seconds: float) -> str:
    """A duration as people say it."""
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} minutes" if seconds < 7200 else f"{seconds / 3600:.1f} hours"


def _sentence(error: Exception) -> str:
    """The error on one line that ends as a sentence does."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if text.endswith((".", "!", "?")) else f"{text}."
