"""`usam web`: a page in the browser to try saved models on."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from usam.cli._options import PluginOption

LOOPBACK = ("127.0.0.1", "localhost", "::1")


def web(
    models: Annotated[list[str], typer.Argument(metavar="MODEL...", help="Saved folders, or hub ids.")],
    host: Annotated[
        str, typer.Option(help="Where it listens; 0.0.0.0 lets all who reach this machine ask.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes one that is free.")] = 7860,
    root_path: Annotated[
        str, typer.Option(metavar="/PATH", help="Under which a reverse proxy shows the page.", show_default=False)
    ] = "",
    share: Annotated[
        bool,
        typer.Option(
            "--share",
            help="Also on a public address, for a week: all that visitors send passes through the servers of Gradio's "
            "makers, and whoever has the address may ask.",
        ),
    ] = False,
    max_seconds: Annotated[float, typer.Option(min=0.1, help="Longest clip, in seconds.")] = 60.0,
    max_clips: Annotated[int, typer.Option(min=1, max=8, help="Clips of one question.")] = 4,
    max_megabytes: Annotated[int, typer.Option(min=1, help="Largest file.")] = 32,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 256,
    queue: Annotated[int, typer.Option(min=1, help="Questions that wait at most; further ones are refused.")] = 16,
    concurrency: Annotated[int, typer.Option(min=1, help="Questions that are answered at once.")] = 1,
    open_browser: Annotated[bool, typer.Option("--open", help="Open the page in this machine's browser.")] = False,
    device: Annotated[
        str | None, typer.Option(help="For example cuda or cpu; default: the GPU if there is one.")
    ] = None,
    plugin: PluginOption = None,
) -> None:
    """Show a page on which people ask saved models about sound, until Ctrl-C.

    Clips are uploaded or recorded; the answer comes piece by piece, beside the spectrogram with the frames that are
    kept, the router's weights and the time it took. Example clips are made when it starts. Nothing is sent elsewhere.
    """
    import importlib.util
    import signal
    from threading import Event

    from usam.registry import ComponentError
    from usam.weights import locate

    for package in ("gradio", "matplotlib"):
        if importlib.util.find_spec(package) is None:
            raise ComponentError(f"the page needs {package}, which is not installed: pip install 'usam[web]'")
    for model in models:
        locate(model)
    if root_path and (not root_path.startswith("/") or root_path.endswith("/")):
        raise ValueError(f"--root-path {root_path}: begins with / and does not end with it, such as /usam")

    import torch

    from usam.cli.generate import _device
    from usam.generate import Answerer
    from usam.serving.page import served
    from usam.serving.page_answers import Limits, Listener

    where = _device(device) or ("cuda" if torch.cuda.is_available() else None)
    limits = Limits(max_seconds, max_clips, max_megabytes, max_new_tokens)
    listeners = [
        Listener(name, Answerer.load(model, device_map=where), limits)
        for name, model in zip(_names(models), models, strict=True)
    ]
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what visitors uploaded is removed then, too
    told: dict[str, Any] = {"root_path": root_path, "share": share, "open_browser": open_browser}
    with served(listeners, host=host, port=port, queue=queue, concurrency=concurrency, **told) as url:
        try:
            print(f"{url}\nCtrl-C ends it.", flush=True)
            if host not in LOOPBACK:
                print("All who reach this machine may ask.", flush=True)
            Event().wait()
        except KeyboardInterrupt:
            print("ended", flush=True)


def _names(models: list[str]) -> list[str]:
    """What visitors know the models by: the last parts of their paths, as many as tell them apart."""
    parts = [[part for part in model.split("/") if part not in ("", ".", "..")] or [model] for model in models]
    most = max(map(len, parts))
    for count in range(1, most + 1):
        names = ["/".join(own[-count:]) for own in parts]
        if len(set(names)) == len(names):
            return names
    raise ValueError(f"a model is named twice in {' '.join(models)}: name each once")
