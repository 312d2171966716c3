"""`usam generate`: answer a prompt about audio files."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Annotated, Any, Optional

import typer

from usam.cli._options import PluginOption


def generate(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A saved folder or hub id.")],
    audio: Annotated[Optional[list[str]], typer.Argument(metavar="[AUDIO]...", help="Audio files.")] = None,  # noqa: UP045
    prompt: Annotated[str | None, typer.Option(help="The instruction.")] = None,
    task: Annotated[
        str | None, typer.Option(help="A task of the model's 'prompts', instead of --prompt; needless if it has one.")
    ] = None,
    together: Annotated[bool, typer.Option("--together", help="One answer to all files, not one for each.")] = False,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 256,
    num_beams: Annotated[int, typer.Option(min=1, help="Beams; 1 is greedy.")] = 1,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Files answered at once; default: 8.", show_default=False)
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="For example cuda or cpu; default: the GPU if there is one.")
    ] = None,
    template_option: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="A variable of the chat template; repeatable.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON instead: a map of 'audio' (files), 'answer' and 'complete'.")
    ] = False,
    plugin: PluginOption = None,
) -> None:
    r"""Answer a prompt about audio files; prints one line `file<TAB>answer` for each.

    A line break, tab or backslash in a name or an answer is printed as \n, \t, \\, as in JSON. A file that cannot be
    answered is named on stderr, the others are answered, and the status is 1; an answer that is cut off is noted there.
    """
    files = list(audio or [])
    if prompt is not None and task is not None:
        raise ValueError("give either --prompt or --task, not both")
    if together and batch_size is not None:
        raise ValueError("--batch-size does nothing with --together, which asks one question about all files")

    import torch

    from usam.generate import Answerer
    from usam.spec.spec import load_spec
    from usam.weights import locate

    locate(model)
    if not files:
        raise ValueError("name at least one audio file: usam generate MODEL a.wav b.wav --task TASK")
    answerer = Answerer.load(model, device_map=_device(device) or ("cuda" if torch.cuda.is_available() else None))
    if template_option:
        patches = [f"llm.template_options.{option}" for option in template_option]
        answerer.processor = answerer.processor.with_spec(load_spec(answerer.model.config.parsed, *patches))
    if prompt is None and task is None and len(answerer.processor.prompts) == 1:
        task = next(iter(answerer.processor.prompts))
    groups = [files] if together else [[file] for file in files]
    chats = [answerer.ask(group, prompt, task) for group in groups]
    options: dict[str, Any] = {"batch_size": batch_size or 8, "max_new_tokens": max_new_tokens, "num_beams": num_beams}
    failed = 0
    for group, reply in zip(groups, answerer.replies(chats, **options), strict=True):
        name = " ".join(group)
        if reply.fault is not None:
            failed += 1
            message = str(reply.fault)
            told = message if message.startswith(f"{name}:") else f"{name}: {message}"
            print(f"error: {_line(told)}", file=sys.stderr, flush=True)
            continue
        if not reply.complete:
            cut = f"the answer was cut off at {max_new_tokens} tokens; --max-new-tokens allows more"
            print(f"note: {_line(name)}: {cut}", file=sys.stderr, flush=True)
        if as_json:
            print(json.dumps({"audio": group, "answer": reply.text, "complete": reply.complete}), flush=True)
        else:
            print(f"{_line(name)}\t{_line(reply.text)}", flush=True)
    if failed:
        _say_how_many(groups, failed)
        raise typer.Exit(1)


def _say_how_many(groups: Sequence[Sequence[str]], failed: int) -> None:
    if len(groups) > 1:
        print(f"{failed} of {len(groups)} files were not answered", file=sys.stderr)


def _device(device: str | None) -> str | None:
    """The device itself, or an error that says why nothing can run there."""
    import torch

    if device is not None and device != "auto":
        try:
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:
            raise ValueError(f"--device {device}: {str(error).splitlines()[0]}") from error
    return device


BREAKS = {ord(c): json.dumps(c)[1:-1] for c in "\\\t\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"}


def _line(text: str) -> str:
    """Text that stays on one line of any output, in one field of it."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    return text.translate(BREAKS).encode(encoding, "backslashreplace").decode(encoding)
