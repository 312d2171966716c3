"""`usam train`: train what a run file says."""

from __future__ import annotations

import shlex
from typing import Annotated

import typer

from usam.cli._options import PluginOption, SetOption


def train(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A YAML file with 'model', 'data' and 'train'.")],
    set_: SetOption = None,
    plugin: PluginOption = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the newest whole checkpoint in output_dir; begin without one.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Start anew in an output_dir that holds a run; removes its checkpoints.")
    ] = False,
) -> None:
    """Train a model; `train:` in the run file takes the arguments of transformers' Trainer.

    `data:` names manifests, `train` and `eval`, and says what happens to rows that cannot be learned from: `bad_audio`
    (stop, skip), `bad_share` (0.01) and `too_long` (stop, skip, truncate_answer). `train` may be a list of sources,
    maps of `file` and `weight`, drawn from in their shares, by a `temperature`, or a NeMo `input_cfg`. With `stream`
    rows are read as it trains, through a `shuffle_buffer`. `batch_seconds`
    and `batch_tokens` are a budget: batches of rows of about one length, as many as it has room for. `cache`, a folder,
    keeps what frozen encoders give: see `usam cache`.
    """
    from usam.training.checkpoints import advice
    from usam.training.rows import LISTED
    from usam.training.run import read_run
    from usam.training.start import output_dir
    from usam.training.start import train as start

    asked = read_run(run, *(set_ or []), plugins=plugin or [])
    try:
        folder = start(asked, resume=resume or None, overwrite=overwrite)
    except KeyboardInterrupt:
        options = [("--set", one) for one in set_ or []] + [("--plugin", str(one)) for one in plugin or []]
        command = shlex.join(["usam", "train", run, *(word for pair in options for word in pair)])
        typer.echo(f"\ninterrupted; {advice(output_dir(asked), command)}", err=True)
        raise typer.Exit(130) from None
    if (folder / LISTED).is_file():
        count = (folder / LISTED).read_text(encoding="utf-8").count("\n")
        what = "1 row was" if count == 1 else f"{count:,} rows were"
        typer.echo(f"{what} skipped or cut: see {folder / LISTED}", err=True)
    print(f"saved in {folder}")
