"""What of Gradio's server is open to visitors: what the page itself asks for, and nothing of any size."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

OPEN = re.compile(
    r"/|/(config|theme\.css|favicon\.ico|manifest\.json|robots\.txt)/?|/(assets|static|svelte)/.*"
    r"|/gradio_api/(startup-events|app_id|info|upload|upload_progress|cancel|reset|theme\.css|queue/join|queue/data)/?"
    r"|/gradio_api/(heartbeat|run)/\w+/?"
    r"|/gradio_api/file=(?![A-Za-z][A-Za-z0-9+.-]+:).+"  # of an address the server would fetch what is there
)
ADDRESS = re.compile(r"\s*[A-Za-z][A-Za-z0-9+.-]+:")
SPEECH = 1_000_000  # bytes of a request that carries no file
AROUND = 100_000  # bytes of an upload beside its file
FULL = 2_000_000_000  # bytes of all that visitors have uploaded
KEPT = 3600  # seconds for which a visitor's file is kept
POLICY = (
    "default-src 'self' data: blob: 'unsafe-inline' 'unsafe-eval'; connect-src 'self' data: blob:; "
    "object-src 'none'; form-action 'self'"
)
HEADERS = {
    b"content-security-policy": POLICY.encode(),  # the browser, too, asks nobody else for anything
    b"x-content-type-options": b"nosniff",
    b"referrer-policy": b"no-referrer",
}


class Door:
    """ASGI middleware that answers all that the page does not need with 404, 400, 413 or 507.

    Args:
        app: behind it.
        folder: where uploads lie.
        largest: bytes of a file.
    """

    def __init__(self, app: Any, folder: Path, largest: int) -> None:
        self.app, self.folder, self.largest = app, folder, largest

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        if scope["type"] != "http":
            return
        path = str(scope["path"]).removeprefix(str(scope.get("root_path") or "")) or "/"
        if not OPEN.fullmatch(path):
            await _refuse(send, 404, "There is nothing here.")
            return
        uploads = re.fullmatch(r"/gradio_api/upload/?", path) is not None
        room = self.largest + AROUND if uploads else SPEECH
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if not declared.isdigit() or int(declared) > room:
            await _refuse(send, 413, f"This is too large: {room:,} bytes are taken at most.")
            return
        if uploads and _size(self.folder) > FULL:
            await _refuse(send, 507, "There is no room for another file now; try again in an hour.")
            return
        if scope["method"] == "POST" and not uploads:
            body = await _whole(receive, room)
            if body is None or _names_address(body):
                await _refuse(send, 400, "This is no question that the page asks.")
                return
            receive = _again(body, receive)
        await self.app(scope, _counted(receive, room), _guarded(send))


def sweep(folder: Path, age: float = KEPT) -> None:
    """Remove files that have lain in the folder for so many seconds."""
    before = time.time() - age
    for file in folder.rglob("*"):
        try:
            if file.is_file() and file.stat().st_mtime < before:
                file.unlink()
        except FileNotFoundError:  # removed meanwhile
            continue


def _size(folder: Path) -> int:
    total = 0
    for file in folder.rglob("*"):
        try:
            total += file.stat().st_size
        except FileNotFoundError:
            continue
    return total


async def _whole(receive: Receive, room: int) -> bytes | None:
    """The body; None of one that is too large, or whose sender has left."""
    body = b""
    while True:
        message = await receive()
        body += bytes(message.get("body", b""))
        if message["type"] == "http.disconnect" or len(body) > room:
            return None
        if not message.get("more_body", False):
            return body


def _names_address(body: bytes) -> bool:
    """Whether a request names a file on a network, which Gradio would fetch; or is no JSON."""
    try:
        waiting = [json.loads(body or b"{}")]
    except (ValueError, RecursionError):
        return True
    while waiting:
        found = waiting.pop()
        if isinstance(found, dict):
            if ADDRESS.match(str(found.get("path") or "")):
                return True
            waiting += found.values()
        elif isinstance(found, list):
            waiting += found
    return False


def _again(body: bytes, receive: Receive) -> Receive:
    """The body once more, then what comes after it."""
    given = False

    async def read() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return read


def _counted(receive: Receive, room: int) -> Receive:
    """What comes, until it is too much: then its sender is gone, for whoever reads."""
    left = room

    async def read() -> Message:
        nonlocal left
        message = await receive()
        left -= len(message.get("body", b""))
        return message if left >= 0 else {"type": "http.disconnect"}

    return read


def _guarded(send: Send) -> Send:
    async def write(message: Message) -> None:
        if message["type"] == "http.response.start":
            kept = [pair for pair in message.get("headers", []) if pair[0].lower() not in HEADERS]
            message = {**message, "headers": [*kept, *HEADERS.items()]}
        await send(message)

    return write


async def _refuse(send: Send, status: int, text: str) -> None:
    body = text.encode()
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": [*headers, *HEADERS.items()]})
    await send({"type": "http.response.body", "body": body})
