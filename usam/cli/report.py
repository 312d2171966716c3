"""`usam report`: what runs, records and ablations hold, drawn on one page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from usam.cli._options import PluginOption


def report(
    folders: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN...",
            help="Folders: runs (train.output_dir), records of usam eval, outputs of usam ablate, or folders of these.",
        ),
    ],
    output: Annotated[Path, typer.Option(metavar="FILE", help="The page.")] = Path("report.html"),
    clip: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(
            metavar="FILE",
            help="A clip to draw routers and scores of, under each task; repeatable. Default: held-out rows.",
        ),
    ] = None,
    rows: Annotated[int, typer.Option(min=1, help="Held-out rows of each task that are drawn.")] = 2,
    no_model: Annotated[
        bool, typer.Option("--no-model", help="Load no model: neither routers within clips nor scores of frames.")
    ] = False,
    title: Annotated[str, typer.Option(help="The page's heading.")] = "Report",
    device: Annotated[
        str | None, typer.Option(help="For example cuda or cpu; default: the GPU if there is one.")
    ] = None,
    plugin: PluginOption = None,
) -> None:
    """Draw runs on one page of HTML that needs nothing else, and says in sentences what there is to see.

    Losses by part and task, experts by task, metrics while training; routers and kept frames within a few clips;
    seconds and tokens of the data, padding of batches; values of usam eval with their intervals; the bars of usam
    ablate. Several runs are overlaid. What a run lacks is said on the page. A run's records are those in its folder,
    and in eval/ there.
    """
    if no_model and clip:
        raise ValueError("--clip draws what a model does with a file, and --no-model loads none; leave one of them out")
    for file in clip or []:
        if not Path(file).is_file():
            raise ValueError(f"--clip {file}: no such file")

    import torch

    from usam.cli.generate import _device
    from usam.report.write import write_report

    where = _device(device) or ("cuda" if torch.cuda.is_available() else None)
    page = write_report(folders, output, title=title, files=clip or [], rows=rows, model=not no_model, device=where)
    print(page)
