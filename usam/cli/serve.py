"""`usam serve`: a saved model answers over HTTP as OpenAI's clients ask."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Annotated

import typer

from usam.cli._options import PluginOption

NEEDS = ("starlette", "uvicorn", "python_multipart")


def serve(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A saved folder or hub id.")],
    host: Annotated[str, typer.Option(help="Address to listen at; 0.0.0.0 for other machines too.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 for any that is free.")] = 8000,
    name: Annotated[
        str | None, typer.Option(help="What clients call the model; default: its folder's.", show_default=False)
    ] = None,
    max_body: Annotated[float, typer.Option(min=0.01, help="Largest request, in MiB.")] = 25,
    max_clips: Annotated[int, typer.Option(min=1, help="Clips in a request.")] = 8,
    max_seconds: Annotated[float, typer.Option(min=0.1, help="Audio in a request, all clips together.")] = 600,
    min_rate: Annotated[int, typer.Option(min=1000, help="Lowest sample rate of a clip.")] = 4000,
    max_rate: Annotated[int, typer.Option(min=1, max=1_000_000, help="Highest sample rate of a clip.")] = 192_000,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer that may be asked for.")] = 1024,
    max_text: Annotated[int, typer.Option(min=1, help="Characters of text in a request.")] = 100_000,
    queue: Annotated[int, typer.Option(min=0, help="Requests that may wait while one is answered.")] = 16,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds until an answer is whole, waiting included.")] = 120,
    read_timeout: Annotated[float, typer.Option(min=0.1, help="Seconds until a request has come in.")] = 30,
    device: Annotated[
        str | None, typer.Option(help="For example cuda or cpu; default: the GPU if there is one.", show_default=False)
    ] = None,
    plugin: PluginOption = None,
) -> None:
    """Serve a model: /v1/chat/completions with input_audio, /v1/audio/transcriptions, whole or streamed."""
    missing = [package for package in NEEDS if importlib.util.find_spec(package) is None]
    if missing:
        raise ValueError(f"{missing[0].replace('_', '-')} is not installed: pip install 'usam[serve]'")
    if min_rate > max_rate:
        raise ValueError(f"--min-rate {min_rate} is above --max-rate {max_rate}")
    import torch

    from usam.generate import Answerer
    from usam.serving.server import api, bound
    from usam.serving.server_limits import Limits

    limits = Limits(
        body=int(max_body * 2**20),
        clips=max_clips,
        seconds=max_seconds,
        rates=(min_rate, max_rate),
        tokens=max_tokens,
        text=max_text,
        waiting=queue,
        timeout=timeout,
        reading=read_timeout,
    )
    server, held = bound(None, host, port)  # before the model is loaded, which takes long
    with held:
        called = name or Path(model).resolve().name
        answerer = Answerer.load(model, device_map=device or ("cuda" if torch.cuda.is_available() else None))
        server.config.app = api(answerer, called, limits)
        at = f"[{host}]" if ":" in host else host
        print(f"'{called}' is served at http://{at}:{held.getsockname()[1]}/v1", flush=True)
        server.run(sockets=[held])
