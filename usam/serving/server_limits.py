"""What strangers may ask of the server, and how a refusal reads: as OpenAI's API writes its errors."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from starlette.responses import Response

CLOSING = (408, 413)  # statuses after which the rest of a request is not read


@dataclass(frozen=True)
class Limits:
    """Bounds of one request, and of all that are there at once: memory and time are bounded by them."""

    body: int = 25 * 2**20  # bytes of a request, as OpenAI's API has it; base64 makes four of three
    clips: int = 8
    seconds: float = 600.0  # of all clips of a request together
    rates: tuple[int, int] = (4000, 192_000)  # samples a second of a clip
    channels: int = 8
    tokens: int = 1024  # of an answer
    text: int = 100_000  # characters of all messages together
    messages: int = 256
    waiting: int = 16  # requests, beside the one that is answered; further ones are refused
    timeout: float = 120.0  # seconds until an answer is whole, waiting included
    reading: float = 30.0  # seconds until a request has come in, and until a client takes a piece of its answer


class Refused(Exception):
    """A request that has no answer.

    Args:
        status: of HTTP.
        message: what is wrong with it, and what to send instead.
        param: the part of it that is meant.
        code: the same for programs.
        again: seconds after which it may be tried again.
    """

    def __init__(
        self, status: int, message: str, param: str | None = None, code: str | None = None, again: int | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.param, self.code, self.again = status, param, code, again

    def body(self) -> dict[str, Any]:
        """As OpenAI's clients read it."""
        kind = "rate_limit_error" if self.status == 429 else "server_error"
        if self.status < 500 and self.status != 429:
            kind = "invalid_request_error"
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> Response:
        """The answer that says so."""
        headers = {} if self.again is None else {"Retry-After": str(self.again)}
        if self.status in CLOSING:
            headers["Connection"] = "close"
        return as_json(self.body(), self.status, headers)


def as_json(data: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """An answer in JSON; half characters that a client sent are escaped in it."""
    return Response(json.dumps(data), status, headers, "application/json")
