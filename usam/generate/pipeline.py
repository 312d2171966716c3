"""`usam.pipeline(model)`: whatever holds sound goes in, answers come out, with a progress bar."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from usam.generate import Answerer, Chat, Reply
from usam.generate.questions import Asker, Question
from usam.model.checkpoint import processor_beside
from usam.model.model import UsamForConditionalGeneration
from usam.processor.processor import UsamProcessor
from usam.readers import source_of


@dataclass(frozen=True)
class Answer:
    """What the model said to one question; `str(answer)` is its text."""

    question: Question
    text: str | None
    """None where there is no answer."""
    complete: bool
    """Whether it came to its end, and was not cut off."""
    error: Exception | None
    """Why there is no answer."""

    @classmethod
    def of(cls, question: Question, reply: Reply) -> Answer:
        """The answer that a reply is."""
        failed = reply.fault is not None
        return cls(question, None if failed else reply.text, reply.complete and not failed, reply.fault)

    def __str__(self) -> str:
        if self.text is None:
            raise ValueError(f"there is no answer to {self.fault}") from self.error
        return self.text

    @property
    def fault(self) -> str:
        """Why there is no answer, with the question's name before it; empty where there is one."""
        name, message = self.question.name, str(self.error or "")
        return message if message.startswith(f"{name}:") or not message else f"{name}: {message}"

    def to_dict(self) -> dict[str, Any]:
        """As a line of JSON has it."""
        if self.error is not None:
            return {**self.question.to_dict(), "error": str(self.error)}
        found = {**self.question.to_dict(), "answer": self.text, "complete": self.complete}
        return {**found, "references": list(self.question.references)} if self.question.references else found


class Pipeline:
    """Answers questions about sound, as `pipeline` makes it.

    Args:
        answerer: the loaded model.
        task, prompt: what is asked where a call does not say.
        batch_size: questions that are answered together.
        quiet: without a progress bar.
        options: of `generate`.
    """

    def __init__(
        self,
        answerer: Answerer,
        *,
        task: str | None = None,
        prompt: str | None = None,
        batch_size: int = 8,
        quiet: bool = False,
        **options: Any,
    ) -> None:
        self.answerer, self.batch_size, self.quiet, self.options = answerer, batch_size, quiet, options
        self.task, self.prompt = task, prompt
        if task is not None or prompt is not None:
            answerer.words(prompt, task)

    def __call__(
        self,
        given: Any,
        *,
        task: str | None = None,
        prompt: str | None = None,
        reader: str | None = None,
        audio_root: str | None = None,
        stream: bool = False,
        **options: Any,
    ) -> Any:
        """The answer to one thing, a list of answers to several, or an iterator of them to what comes from an iterator.

        One thing is a file of sound, a waveform (an array at the model's rate, a pair of one and its rate, bytes,
        whatever `Clip.of` reads), a row as manifests have them, such as `{"audio": [one, other], "prompt": "Which is
        louder?"}`, or a chat. Several are a folder, in which files of sound are looked for, a manifest of any format, a
        table or `datasets.Dataset`, and lists of all these. Rows are asked what they ask; a task or a prompt, of the
        call or of the pipeline, goes before that.

        Args:
            given: what is asked about.
            task: a task that the model has a prompt for.
            prompt: free words; `<audio>` in them says where a clip stands.
            reader, audio_root: of manifests, as `Manifest` takes them.
            stream: give the one answer as pieces of text, each as soon as it is generated.
            options: of `generate`, such as max_new_tokens; they go before the pipeline's.

        Raises:
            ValueError: the one thing cannot be answered, or nothing says what to ask. Of several, one that cannot is an
                answer with an `error`, and a warning.
        """
        if task is None and prompt is None:
            task, prompt = self.task, self.prompt
        asker = Asker(self.answerer, task=task, prompt=prompt, reader=reader, audio_root=audio_root)
        question = asker.single(given)
        if question is not None:
            if question.fault is not None:
                raise question.fault
            if stream:
                return self._pieces(question, options)
            (answer,) = self.answers([question], **options)
            if answer.error is not None:
                raise answer.error
            return answer
        if stream:
            raise ValueError("stream=True follows one answer; ask about one thing at a time")
        lazy = isinstance(given, Iterator)
        if not lazy and not isinstance(given, (list, tuple)) and not _is_folder(given):
            source_of(given, self.answerer.processor.prompts, reader)  # what nobody can read is no answer
        total = len(given) if isinstance(given, (list, tuple)) else None
        found = self._told(asker.several(given), total, options)
        return found if lazy else list(found)

    def answers(self, questions: Iterable[Question], **options: Any) -> Iterator[Answer]:
        """An answer to each question, in order, those that are too without one; see `Answerer.replies`."""
        waiting = deque[Question]()

        def chats() -> Iterator[Chat | Exception]:
            for question in questions:
                waiting.append(question)
                yield question.chat if question.chat is not None else question.fault or ValueError("nothing is asked")

        for reply in self.answerer.replies(chats(), **{"batch_size": self.batch_size, **self.options, **options}):
            yield Answer.of(waiting.popleft(), reply)

    def stream(self, question: Question, **options: Any) -> Generator[str, None, Answer]:
        """The answer to one question in pieces; returns the whole. One that cannot be asked has no pieces."""
        if question.chat is None:
            return Answer.of(question, Reply(fault=question.fault))
        reply = yield from self.answerer.stream(question.chat, **{**self.options, **options})
        return Answer.of(question, reply)

    def _pieces(self, question: Question, options: dict[str, Any]) -> Iterator[str]:
        answer = yield from self.stream(question, **options)
        if answer.error is not None:
            raise answer.error

    def _told(self, questions: Iterable[Question], total: int | None, options: dict[str, Any]) -> Iterator[Answer]:
        """With a bar, and a warning for what cannot be answered."""
        shown = tqdm(self.answers(questions, **options), "answering", total, unit="answer", disable=self.quiet)
        for answer in shown:
            if answer.error is not None:
                warnings.warn(answer.fault, stacklevel=3)
            yield answer


def pipeline(
    model: str | Path | UsamForConditionalGeneration | Answerer,
    task: str | None = None,
    *,
    prompt: str | None = None,
    processor: UsamProcessor | None = None,
    batch_size: int = 8,
    device: str | torch.device | None = None,
    quiet: bool = False,
    **options: Any,
) -> Pipeline:
    """What answers questions about sound: `usam.pipeline("runs/1")("a.wav")`; what it takes, `Pipeline.__call__` says.

    Args:
        model: a saved folder, a hub id, or a model that is loaded.
        task, prompt: what is asked where a call does not say; needless for a model of one task.
        processor: of a loaded model, where it is not that of its spec.
        batch_size: questions that are answered together.
        device: where the model runs; by default a GPU if there is one, and a loaded model where it is.
        quiet: without a progress bar.
        options: of transformers' `generate`, such as max_new_tokens and num_beams.

    Raises:
        ValueError: both a task and a prompt, or a task that the model does not know.
        ComponentError: there is no such model.
    """
    if isinstance(model, (str, Path)):
        where = device or ("cuda" if torch.cuda.is_available() else None)
        answerer = Answerer.load(model, device_map=where)
    elif isinstance(model, Answerer):
        answerer = model
    else:
        answerer = Answerer(model, processor or _processor_of(model))
    if processor is not None:
        answerer = Answerer(answerer.model, processor)
    if device is not None and not isinstance(model, (str, Path)):
        answerer.model.to(device)
    return Pipeline(answerer, task=task, prompt=prompt, batch_size=batch_size, quiet=quiet, **options)


def _processor_of(model: UsamForConditionalGeneration) -> UsamProcessor:
    """The processor saved beside a loaded model's weights; else that of its spec."""
    folder = Path(model.name_or_path or "")
    if (folder / "processor_config.json").is_file():
        return processor_beside(folder, model.config.parsed)
    return UsamProcessor.from_spec(model.config.parsed)


def _is_folder(given: Any) -> bool:
    return isinstance(given, (str, Path)) and Path(given).expanduser().is_dir()
