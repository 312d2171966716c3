"""One way to answer: a model, its processor, and chats in; text out."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from queue import Queue
from threading import Event, Thread
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from usam.data.collate import with_sound
from usam.model.checkpoint import processor_beside
from usam.model.model import UsamForConditionalGeneration
from usam.processor.chat import Rendered
from usam.processor.feature_extractor import clips_of
from usam.processor.lengths import context_length, too_long
from usam.processor.processor import UsamProcessor
from usam.readers.usam import asked
from usam.registry import did_you_mean

Chat = Sequence[Mapping[str, Any]]
LONGEST = 256  # tokens of an answer, unless the caller says otherwise
AHEAD = 16  # batches that are read before the first is answered, so that chats of one length find each other
HELD = 1800  # seconds of audio that are held for it


@dataclass(frozen=True)
class Reply:
    """What came of one chat: an answer, or why there is none."""

    text: str = ""
    complete: bool = True  # False: cut off at max_new_tokens
    fault: Exception | None = None
    tokens: int = 0  # of the answer, with its end
    asked: int = 0  # tokens of the chat, audio included


@dataclass(frozen=True)
class _Read:
    """A chat that can be answered."""

    chat: Rendered
    length: tuple[int, int]  # tokens that its answer will have, and tokens before it
    seconds: float


class Answerer:
    """A loaded model that answers chats in batches.

    Args:
        model: the model, in eval mode.
        processor: its processor.
    """

    def __init__(self, model: UsamForConditionalGeneration, processor: UsamProcessor) -> None:
        self.model = model.eval()
        self.processor = processor

    @classmethod
    def load(cls, path: str | Path, **kwargs: Any) -> Answerer:
        """The model and processor in a saved folder; `kwargs` as `from_pretrained` takes them."""
        model = UsamForConditionalGeneration.from_pretrained(path, **kwargs)
        return cls(model, processor_beside(path, model.config.parsed))

    def ask(self, audio: Any = None, prompt: str | None = None, task: str | None = None) -> list[dict[str, Any]]:
        """The messages of one question about one or several clips, which stand where its `<audio>` tags do, else first.

        Raises:
            ValueError: neither or both of `prompt` and `task`, a task that the model does not know, or not as many tags
                in the prompt as clips.
        """
        words = self.words(prompt, task)
        clips = [] if audio is None else clips_of(audio)
        return [{"role": "user", "content": asked(words, clips)}]

    def words(self, prompt: str | None = None, task: str | None = None) -> str:
        """What is asked, in words; errors as `ask` has them."""
        if (prompt is None) == (task is None):
            raise ValueError(f"give either a prompt or a task; {self._tasks()}")
        if task is not None:
            if task not in self.processor.prompts:
                close = did_you_mean(task, self.processor.prompts)
                raise ValueError(f"this model has no prompt for task '{task}'; {close}")
            prompt = self.processor.prompts[task]
        return str(prompt)

    def _tasks(self) -> str:
        return f"tasks that this model knows: {', '.join(sorted(self.processor.prompts)) or 'none'}"

    def answer(self, chats: Iterable[Chat], *, batch_size: int = 8, **kwargs: Any) -> Iterator[str]:
        """One answer a chat, in order; `kwargs` as `replies` takes them.

        Raises:
            ValueError: a chat has no answer (`replies` goes on with the others); the answers before it were given.
        """
        for reply in self.replies(chats, batch_size=batch_size, **kwargs):
            if reply.fault is not None:
                raise reply.fault
            yield reply.text

    def replies(
        self,
        chats: Iterable[Chat | Exception],
        *,
        batch_size: int = 8,
        expected: Iterable[int] | None = None,
        ahead: int = AHEAD,
        **kwargs: Any,
    ) -> Iterator[Reply]:
        """One reply a chat, in order: a chat that cannot be read, or is too long, does not keep the others from theirs.

        Chats are read some batches ahead, and those of about one length are answered together, the longest first: less
        is padding, and fewer wait for the others' last word. Answers are those that each chat has alone.

        Args:
            chats: messages, each chat to be answered once; or in the place of one the reason why there is none.
            batch_size: chats that are answered together.
            expected: about how many tokens the answer to each chat will have, where that is known.
            ahead: batches whose chats are read, and sorted, before they are answered; 1 answers them as they come.
            kwargs: as transformers' `generate` takes them; greedy, and at most 256 new tokens, by default.

        Raises:
            ValueError: options under which not each chat has one answer.
        """
        for name, count in (("batch_size", batch_size), ("ahead", ahead)):
            if count < 1:
                raise ValueError(f"{name} is at least 1, found {count}")
        options = _options(kwargs)
        if expected is None:
            pairs: Iterator[tuple[Chat | Exception, int]] = ((chat, 0) for chat in chats)
        else:
            pairs = zip(chats, expected, strict=True)
        read = (self._read(chat, int(options["max_new_tokens"]), answer) for chat, answer in pairs)
        while some := list(_next(read, batch_size, ahead)):
            yield from self._sorted(some, batch_size, options)

    def stream(self, chat: Chat, **kwargs: Any) -> Generator[str, None, Reply]:
        """The answer to one chat in pieces, each as soon as it is generated; returns the reply.

        Pieces add up to the answer that `replies` gives; a chat that cannot be read, or is too long, has none. Who
        leaves off ends the generation with its next token.

        Args:
            chat: messages.
            kwargs: as `replies` takes them.

        Raises:
            ValueError: options under which a chat has no single answer to follow, such as beams.
        """
        options = _options(kwargs)
        if options.get("num_beams", 1) != 1:
            raise ValueError("which beam wins is known at the end alone: stream with num_beams=1")
        read = self._read(chat, int(options["max_new_tokens"]), 0)
        if isinstance(read, Reply):
            return read
        come: Queue[list[int] | Reply | BaseException] = Queue()
        left = Event()
        criteria = StoppingCriteriaList([*options.get("stopping_criteria", ()), _Left(left)])
        options |= {"streamer": _Tokens(come), "stopping_criteria": criteria}
        worker = Thread(target=self._generate, args=(read.chat, options, come), daemon=True)
        tokens, said = list[int](), ""
        worker.start()
        try:
            while isinstance(found := come.get(), list):
                tokens += found
                if (text := self.processor.lasting_text(tokens)).startswith(said) and text != said:
                    yield text[len(said) :]
                    said = text
        finally:
            left.set()
            worker.join()
        if isinstance(found, BaseException):
            raise found
        if rest := found.text[len(said) :]:
            yield rest
        return replace(found, asked=read.length[1])

    def _generate(self, chat: Rendered, options: Mapping[str, Any], come: Queue[Any]) -> None:
        try:
            come.put(self._answer([chat], options)[0])
        except BaseException as error:  # raised where the pieces are read
            come.put(error)

    def _sorted(self, some: Sequence[_Read | Reply], size: int, options: Mapping[str, Any]) -> Iterator[Reply]:
        """The replies in order, each given as soon as all before it are there."""
        replies = {i: one for i, one in enumerate(some) if isinstance(one, Reply)}
        chats = {i: one for i, one in enumerate(some) if isinstance(one, _Read)}
        order = sorted(chats, key=lambda i: chats[i].length, reverse=True) if len(chats) > size else list(chats)
        given = 0
        for first in range(0, max(len(order), 1), size):
            batch = order[first : first + size]
            found = self._answer([chats[i].chat for i in batch], options)
            replies |= {i: replace(one, asked=chats[i].length[1]) for i, one in zip(batch, found, strict=True)}
            while given in replies:
                yield replies.pop(given)
                given += 1

    def _read(self, chat: Chat | Exception, room: int, expected: int) -> _Read | Reply:
        """The chat as text and waveforms, or what is wrong with it: all of it before any work is done."""
        if isinstance(chat, Exception):
            return Reply(fault=chat)
        try:
            heard = with_sound(chat, self.processor.feature_extractor)
            rendered = self.processor.render(heard, add_generation_prompt=True)
            tokens, clips = self.processor.measure(rendered, _names(chat))
            context = context_length(self.model.config.text_config)
            if (message := too_long(context, tokens, clips, room)) is not None:
                return Reply(fault=ValueError(message))
        except (ValueError, OSError) as error:
            return Reply(fault=error)
        return _Read(rendered, (expected, tokens), sum(clip.seconds for clip in clips))

    @torch.no_grad()  # a tensor of inference mode that a module keeps would break a training that goes on
    def _answer(self, chats: Sequence[Rendered], options: Mapping[str, Any]) -> list[Reply]:
        if not chats:
            return []
        batch = self.processor.encode(chats).to(self.model.device)
        generated = self.model.generate(**batch, **options)
        if len(generated) != len(chats):
            raise ValueError(f"{len(generated)} answers for {len(chats)} chats; leave num_return_sequences at 1")
        ends = options.get("eos_token_id", self.model.generation_config.eos_token_id)
        ends = torch.tensor(ends if isinstance(ends, (list, tuple)) else [ends] if ends is not None else [])
        replies = []
        for row in generated[:, batch["input_ids"].shape[1] :].cpu():
            stops = torch.isin(row, ends).nonzero()
            complete = len(row) < options["max_new_tokens"] or len(stops) > 0
            tokens = int(stops[0]) + 1 if len(stops) else len(row)
            replies.append(Reply(self.processor.answer_text(row), complete, tokens=tokens))
        return replies


class _Tokens(BaseStreamer):
    """Hands the tokens of one answer on as they come."""

    def __init__(self, come: Queue[Any]) -> None:
        self._come = come
        self._begun = False

    def put(self, value: Tensor) -> None:
        """The prompt first, then what is generated."""
        if self._begun:
            self._come.put(value.reshape(-1).tolist())
        self._begun = True

    def end(self) -> None:
        """The reply follows."""


class _Left(StoppingCriteria):
    """Ends a generation to which nobody listens any more."""

    def __init__(self, left: Event) -> None:
        self._left = left

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Tensor:
        return torch.full((len(input_ids),), self._left.is_set(), device=input_ids.device)


def _options(given: Mapping[str, Any]) -> dict[str, Any]:
    """Options of `generate` under which a chat has one answer."""
    if "max_length" in given:
        raise ValueError("max_length would count the audio too; say max_new_tokens, the longest answer")
    if given.get("num_return_sequences", 1) != 1:
        raise ValueError("a chat has one answer here; for num_return_sequences call model.generate")
    return {"do_sample": False, "max_new_tokens": LONGEST, **given}


def _next(read: Iterator[_Read | Reply], size: int, ahead: int) -> Iterator[_Read | Reply]:
    """The next ones, so many batches of which can be answered; fewer, where they hold much audio."""
    found, seconds = 0, 0.0
    for one in read:
        yield one
        if isinstance(one, _Read):
            found, seconds = found + 1, seconds + one.seconds
            if found == size * ahead or (found % size == 0 and seconds > HELD):
                return


def _names(chat: Chat) -> list[str]:
    """What to call the clips of a chat: their files, else their numbers."""
    blocks = [block for message in chat if not isinstance(message["content"], str) for block in message["content"]]
    clips = [block for block in blocks if block["type"] != "text"]
    return [
        next((str(v) for k, v in clip.items() if k in ("audio", "path", "url") and isinstance(v, (str, Path))), str(i))
        for i, clip in enumerate(clips, 1)
    ]
