"""The API: a saved model answers over HTTP as OpenAI's clients ask, within limits."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager, suppress
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from usam.generate import Answerer, Reply
from usam.registry import did_you_mean
from usam.serving.server_limits import CLOSING, Limits, Refused, as_json
from usam.serving.server_replies import DONE, Completion, Transcript, event
from usam.serving.server_requests import ASR, Asked, asked_chat, asked_transcript
from usam.serving.server_sound import check_clips
from usam.serving.server_turns import HungUp, Turns

CONNECTIONS = 1000  # open at once; what waits beyond the queue is told so, which takes a connection too
GRACE = 5  # seconds that answers have to end when the server is stopped, and refused requests to be sent
ROUTES = ("/v1/chat/completions", "/v1/audio/transcriptions", "/v1/models", "/health")


def api(answerer: Answerer, name: str, limits: Limits | None = None) -> Starlette:
    """The application.

    Args:
        answerer: the model; the longest clip that its processor takes is set to the limit.
        name: what clients call the model.
        limits: of what they may ask.

    Raises:
        ValueError: the model answers with beams, which cannot be told piece by piece or stopped in time.
    """
    limits = limits or Limits()
    if (beams := getattr(answerer.model.generation_config, "num_beams", None) or 1) != 1:
        raise ValueError(f"the model's generation_config has num_beams={beams}; served models answer with 1: set it")
    answerer.processor.feature_extractor.max_seconds = limits.seconds
    turns = Turns(answerer, limits)
    about = {"id": name, "object": "model", "created": 0, "owned_by": "usam"}

    async def completions(request: Request) -> tuple[Asked, Any]:
        if not request.headers.get("content-type", "").lower().startswith("application/json"):
            raise Refused(415, "expected JSON, Content-Type: application/json")
        asked = await asyncio.to_thread(asked_chat, await _body(request, limits), name, limits)
        return asked, Completion(name, asked.usage)

    async def transcriptions(request: Request) -> tuple[Asked, Any]:
        prompts = answerer.processor.prompts
        if ASR not in prompts:
            told = f"this model has no prompt for the task '{ASR}', and so transcribes nothing; "
            raise Refused(
                400, f"{told}{did_you_mean(ASR, prompts)}; ask it by /v1/chat/completions", "model", "no_task"
            )
        body = await _body(request, limits)
        return await asked_transcript(request, body, name, prompts[ASR], limits), Transcript()

    async def models(request: Request) -> Response:
        wanted = request.path_params.get("name")
        if wanted is None:
            return as_json({"object": "list", "data": [about]})
        if wanted != name:
            raise Refused(404, f"there is no model '{wanted[:100]}' here; it has '{name}'", "model", "model_not_found")
        return as_json(about)

    async def health(request: Request) -> Response:
        return as_json({"status": "ok"})

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        turns.close()

    return Starlette(
        routes=[
            Route("/v1/chat/completions", _Answered(turns, completions), methods=["POST"]),
            Route("/v1/audio/transcriptions", _Answered(turns, transcriptions), methods=["POST"]),
            Route("/v1/models", models),
            Route("/v1/models/{name:path}", models),
            Route("/health", health),
        ],
        exception_handlers={Refused: _refused, HTTPException: _no_route, ClientDisconnect: _nobody, Exception: _failed},
        middleware=[Middleware(_Drained, limits)],
        lifespan=lifespan,
    )


class _Drained:
    """Takes in what is left of a request that is refused, and keeps nothing: who is still sending reads no answer."""

    def __init__(self, app: Any, limits: Limits) -> None:
        self.app, self.limits = app, limits

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        whole, left = scope["type"] != "http", self.limits.body

        async def taken() -> Any:
            nonlocal whole
            message = await receive()
            whole = whole or not message.get("more_body")
            return message

        async def told(message: Any) -> None:
            nonlocal left
            if message.get("status", 200) >= 400 and message["status"] not in CLOSING:
                with suppress(TimeoutError):
                    async with asyncio.timeout(GRACE):
                        while not whole and left > 0:
                            left -= len((await taken()).get("body", b""))
            await send(message)

        await self.app(scope, taken, told)


async def _body(request: Request, limits: Limits) -> bytes:
    """All of a request's body, which is no longer than the limit whatever its header says."""
    too_large = Refused(413, f"at most {limits.body:,} bytes are taken in a request; send less", code="too_large")
    declared = request.headers.get("content-length", "0")
    if not declared.isdigit() or int(declared[:20]) > limits.body:
        raise too_large
    found = bytearray()
    try:
        async with asyncio.timeout(limits.reading):
            async for chunk in request.stream():
                found += chunk
                if len(found) > limits.body:
                    raise too_large
    except TimeoutError as error:
        raise Refused(408, f"the request did not come within {limits.reading:g} s", code="timeout") from error
    return bytes(found)


class _Answered:
    """A route whose requests have their turn, and whose answers are whole or come as events."""

    def __init__(self, turns: Turns, read: Callable[[Request], Awaitable[tuple[Asked, Any]]]) -> None:
        self.turns, self.read = turns, read

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        with self.turns.place():
            asked, shape = await self.read(Request(scope, receive))
            rate = self.turns.answerer.processor.feature_extractor.sampling_rate
            await asyncio.to_thread(check_clips, asked.clips, rate, self.turns.limits)
            try:
                async with aclosing(self.turns.pieces(asked, receive)) as pieces:
                    if asked.stream:
                        await self._events(pieces, shape, send)
                    else:
                        await self._whole(pieces, shape, asked, scope, receive, send)
            except (HungUp, OSError):  # there is nobody to tell
                return

    async def _whole(self, pieces: Any, shape: Any, asked: Asked, scope: Any, receive: Any, send: Any) -> None:
        text = ""
        async for piece in pieces:
            if isinstance(piece, Reply):
                plain = asked.shape == "text"
                done = PlainTextResponse(text) if plain else as_json(shape.whole(text, piece))
                await done(scope, receive, send)
                return
            text += piece

    async def _events(self, pieces: Any, shape: Any, send: Any) -> None:
        """As server-sent events; what goes wrong before the first piece has its own status, after it an event."""
        text, piece = "", await anext(pieces)
        headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-store")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for one in shape.begin():
            await self._send(send, event(one))
        try:
            while not isinstance(piece, Reply):
                text += piece
                await self._send(send, event(shape.piece(piece)))
                piece = await anext(pieces)
            for one in shape.end(text, piece):
                await self._send(send, event(one))
            await self._send(send, DONE)
        except Refused as error:
            await self._send(send, event(error.body()))
        await send({"type": "http.response.body", "body": b""})

    async def _send(self, send: Any, data: bytes) -> None:
        """Raises HungUp when the client does not take it."""
        try:
            async with asyncio.timeout(self.turns.limits.reading):
                await send({"type": "http.response.body", "body": data, "more_body": True})
        except TimeoutError as error:
            raise HungUp from error


async def _refused(request: Request, error: Any) -> Response:
    response: Response = error.response()
    return response


async def _no_route(request: Request, error: Any) -> Response:
    path = request.url.path[:100]
    if error.status_code == 405:
        return Refused(405, f"{request.method} is not answered at {path}", code="method_not_allowed").response()
    told = f"nothing is served at {path}; there are {', '.join(ROUTES)}"
    return Refused(error.status_code, told, code="not_found").response()


async def _nobody(request: Request, error: Any) -> Response:
    return Response(status_code=400)


async def _failed(request: Request, error: Any) -> Response:
    return Refused(500, "the server failed at this request; its log says how", code="internal_error").response()


def bound(app: Any, host: str, port: int) -> tuple[uvicorn.Server, socket.socket]:
    """A server that is to be run with the socket, whose port is then known.

    Args:
        app: the application.
        host: an address of this machine.
        port: 0 for any that is free.

    Raises:
        OSError: the address cannot be had.
    """
    config = uvicorn.Config(
        app,
        host,
        port,
        http="h11",
        ws="none",
        log_level="warning",
        server_header=False,
        limit_concurrency=CONNECTIONS,
        timeout_graceful_shutdown=GRACE,
    )
    kind = socket.AF_INET6 if ":" in host else socket.AF_INET
    held = socket.socket(kind)
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        held.bind((host, port))
    except OSError as error:
        held.close()
        raise OSError(f"{host}:{port} cannot be had ({error.strerror}); name another --port, or 0 for any") from error
    return uvicorn.Server(config), held
