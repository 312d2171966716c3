"""`usam train`: train what a run file says."""

from __future__ import annotations

from typing import Annotated

import typer

from usam.cli._options import PluginOption, SetOption


def train(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A YAML file with 'model', 'data' and 'train'.")],
    set_: SetOption = None,
    plugin: PluginOption = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint in output_dir.")] = False,
) -> None:
    """Train a model; `train:` in the run file takes the arguments of transformers' Trainer."""
    from usam.training.run import read_run
    from usam.training.trainer import train as start

    folder = start(read_run(run, *(set_ or []), plugins=plugin or []), resume=resume or None)
    print(f"saved in {folder}")
