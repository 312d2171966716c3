"""`usam generate`: answer a prompt about audio files."""

from __future__ import annotations

from typing import Annotated, Any, Optional

import typer

from usam.cli._options import PluginOption


def generate(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A saved folder or hub id.")],
    audio: Annotated[Optional[list[str]], typer.Argument(metavar="[AUDIO]...", help="Audio files.")] = None,  # noqa: UP045
    prompt: Annotated[str | None, typer.Option(help="The instruction.")] = None,
    task: Annotated[str | None, typer.Option(help="A task of the model's 'prompts', instead of --prompt.")] = None,
    together: Annotated[bool, typer.Option("--together", help="One answer to all files, not one for each.")] = False,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 256,
    num_beams: Annotated[int, typer.Option(min=1, help="Beams; 1 is greedy.")] = 1,
    batch_size: Annotated[int, typer.Option(min=1, help="Files answered at once.")] = 8,
    device: Annotated[
        str | None, typer.Option(help="For example cuda or cpu; default: the GPU if there is one.")
    ] = None,
    plugin: PluginOption = None,
) -> None:
    """Answer a prompt about audio files; prints one line `file<TAB>answer` for each."""
    import torch

    from usam.generate import Answerer

    files = list(audio or [])
    answerer = Answerer.load(model, device_map=device or ("cuda" if torch.cuda.is_available() else None))
    if prompt is None and task is None and len(answerer.processor.prompts) == 1:
        task = next(iter(answerer.processor.prompts))
    groups: list[Any] = [files] if together or not files else list(files)
    chats = [answerer.ask(group, prompt, task) for group in groups]
    options = {"batch_size": batch_size, "max_new_tokens": max_new_tokens, "num_beams": num_beams}
    for group, answer in zip(groups, answerer.answer(chats, **options), strict=True):
        print(f"{group if isinstance(group, str) else ' '.join(group)}\t{answer}", flush=True)
