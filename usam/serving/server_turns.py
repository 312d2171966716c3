"""One answer at a time; some requests wait for theirs, and the rest are told to come again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Event
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteria, StoppingCriteriaList

from usam.generate import Answerer, Reply
from usam.processor.audio import AudioError
from usam.serving.server_limits import Limits, Refused
from usam.serving.server_requests import Asked

Receive = Callable[[], Any]
BEGUN = object()  # stands before the first piece


class HungUp(Exception):
    """Nobody waits for the answer any more."""


class Turns:
    """A model that is asked by many.

    Args:
        answerer: the model; it answers in one thread, one request after the other.
        limits: of the server.
    """

    def __init__(self, answerer: Answerer, limits: Limits) -> None:
        self.answerer, self.limits = answerer, limits
        self._there = 0
        self._thread = ThreadPoolExecutor(1, "answers")

    @contextmanager
    def place(self) -> Iterator[None]:
        """A place for one request, from before its body is read until its answer is sent.

        Raises:
            Refused: all are taken.
        """
        if self._there > self.limits.waiting:
            told = f"one request is answered and {self.limits.waiting} wait; try again later"
            raise Refused(429, told, code="queue_full", again=1 + self.limits.waiting // 4)
        self._there += 1
        try:
            yield
        finally:
            self._there -= 1

    async def pieces(self, asked: Asked, receive: Receive) -> AsyncGenerator[str | Reply, None]:
        """The answer in pieces as they come, then the reply; when it is closed, nothing of it runs any more.

        Raises:
            Refused: the chat is too long or cannot be read, or its time is over.
            HungUp: the client is gone.
        """
        loop = asyncio.get_running_loop()
        come: asyncio.Queue[Any] = asyncio.Queue()
        left = Event()

        def put(item: Any) -> None:
            loop.call_soon_threadsafe(come.put_nowait, item)

        end = loop.time() + self.limits.timeout
        running = self._thread.submit(self._answer, asked, left, put)
        gone = asyncio.ensure_future(_gone(receive))
        begun = False
        try:
            while True:
                found = await self._next(come, gone, end - loop.time(), begun)
                if found is BEGUN:
                    begun = True
                elif isinstance(found, Reply):
                    if found.fault is not None:
                        raise _fault(asked, found.fault) from found.fault
                    yield found
                    return
                else:
                    yield found
        finally:
            left.set()
            gone.cancel()
            if not running.cancel():
                await asyncio.wait([asyncio.wrap_future(running)])

    async def _next(self, come: asyncio.Queue[Any], gone: asyncio.Future[None], seconds: float, begun: bool) -> Any:
        item = asyncio.ensure_future(come.get())
        await asyncio.wait((item, gone), timeout=max(seconds, 0), return_when=asyncio.FIRST_COMPLETED)
        if not item.done():
            item.cancel()
            if gone.done():
                raise HungUp
            if begun:
                told = (
                    f"the answer was not whole after {self.limits.timeout:g} s, and was stopped; ask for a shorter one"
                )
                raise Refused(504, told, code="timeout")
            told = f"others were answered for {self.limits.timeout:g} s; try again later"
            raise Refused(503, told, code="busy", again=1 + self.limits.waiting // 4)
        found = item.result()
        if isinstance(found, torch.OutOfMemoryError):
            raise Refused(503, "not enough memory for this request; send less", code="out_of_memory") from found
        if isinstance(found, Exception):
            raise found
        return found

    def _answer(self, asked: Asked, left: Event, put: Callable[[Any], None]) -> None:
        """In the model's thread: puts pieces, and at last the reply or an exception."""
        try:
            put(BEGUN)
            if asked.seed is not None:
                torch.manual_seed(asked.seed)
            watch = _Watch(left)
            criteria = StoppingCriteriaList([watch])
            pieces = self.answerer.stream(asked.chat, stopping_criteria=criteria, **asked.options)
            cut = until(pieces, asked.stop, lambda: watch.tokens)
            while True:
                try:
                    put(next(cut))
                except StopIteration as stop:
                    put(stop.value)
                    return
        except Exception as error:  # raised where the pieces are awaited
            put(error)

    def close(self) -> None:
        """Nobody is answered any more."""
        self._thread.shutdown(wait=False, cancel_futures=True)


def until(
    pieces: Generator[str, None, Reply], stop: Sequence[str], tokens: Callable[[], int] = int
) -> Generator[str, None, Reply]:
    """The pieces up to the first of the stop words, which is left out; generation ends with it.

    Args:
        pieces: of an answer.
        stop: words, none of them empty.
        tokens: how many there are by now.
    """
    held = ""
    while True:
        try:
            held += next(pieces)
        except StopIteration as end:
            if held:
                yield held
            reply: Reply = end.value
            return reply
        places = [held.find(word) for word in stop if word in held]
        if places:
            pieces.close()
            if held[: min(places)]:
                yield held[: min(places)]
            return Reply(tokens=tokens())
        begun = max((n for word in stop for n in range(1, len(word)) if held.endswith(word[:n])), default=0)
        if ready := held[: len(held) - begun]:
            yield ready
            held = held[len(ready) :]


class _Watch(StoppingCriteria):
    """Ends a generation whose client is gone, and counts its tokens."""

    def __init__(self, left: Event) -> None:
        self._left = left
        self.tokens = 0

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Tensor:
        self.tokens += 1
        return torch.full((len(input_ids),), self._left.is_set(), device=input_ids.device)


def _fault(asked: Asked, fault: Exception) -> Refused:
    """Why there is no answer to a chat: what its sound turned out to be, or its length."""
    if not isinstance(fault, AudioError):
        return Refused(400, str(fault), "messages", "invalid_value")
    params = [clip.param for clip in asked.clips]
    return Refused(400, f"{' or '.join(params)}: {fault}", params[0] if len(params) == 1 else None, "invalid_audio")


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
