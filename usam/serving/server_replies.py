"""Answers in the shapes of OpenAI's API: whole, or as events."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator
from typing import Any

from usam.generate import Reply


class Completion:
    """A chat completion.

    Args:
        model: its name.
        usage: whether a stream ends with its tokens.
    """

    def __init__(self, model: str, usage: bool = False) -> None:
        self._model, self._usage = model, usage
        self._id, self._time = f"chatcmpl-{uuid.uuid4().hex}", int(time.time())

    def whole(self, text: str, reply: Reply) -> dict[str, Any]:
        """All of it."""
        message = {"role": "assistant", "content": text, "refusal": None}
        choice = {"index": 0, "message": message, "finish_reason": _reason(reply), "logprobs": None}
        return {**self._head("chat.completion"), "choices": [choice], "usage": _usage(reply)}

    def begin(self) -> Iterator[dict[str, Any]]:
        """What comes before the first piece."""
        yield self._chunk({"role": "assistant", "content": ""})

    def piece(self, text: str) -> dict[str, Any]:
        """A piece of it."""
        return self._chunk({"content": text})

    def end(self, text: str, reply: Reply) -> Iterator[dict[str, Any]]:
        """What comes after the last piece."""
        yield self._chunk({}, _reason(reply))
        if self._usage:
            yield {**self._head("chat.completion.chunk"), "choices": [], "usage": _usage(reply)}

    def _chunk(self, delta: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "finish_reason": reason, "logprobs": None}
        return {**self._head("chat.completion.chunk"), "choices": [choice]}

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self._id, "object": kind, "created": self._time, "model": self._model}


class Transcript:
    """A transcript."""

    def whole(self, text: str, reply: Reply) -> dict[str, Any]:
        """All of it."""
        return {"text": text, "usage": _used(reply)}

    def begin(self) -> Iterator[dict[str, Any]]:
        """What comes before the first piece."""
        return iter(())

    def piece(self, text: str) -> dict[str, Any]:
        """A piece of it."""
        return {"type": "transcript.text.delta", "delta": text}

    def end(self, text: str, reply: Reply) -> Iterator[dict[str, Any]]:
        """What comes after the last piece."""
        yield {"type": "transcript.text.done", "text": text, "usage": _used(reply)}


def event(data: Any) -> bytes:
    """One server-sent event."""
    return f"data: {json.dumps(data)}\n\n".encode()


DONE = b"data: [DONE]\n\n"


def _reason(reply: Reply) -> str:
    return "stop" if reply.complete else "length"


def _usage(reply: Reply) -> dict[str, int]:
    before, own = reply.asked, reply.tokens
    return {"prompt_tokens": before, "completion_tokens": own, "total_tokens": before + own}


def _used(reply: Reply) -> dict[str, Any]:
    before, own = reply.asked, reply.tokens
    return {"type": "tokens", "input_tokens": before, "output_tokens": own, "total_tokens": before + own}
