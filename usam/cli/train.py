"""`usam train`: train what a run file says."""

from __future__ import annotations

import os
import shlex
from typing import Annotated

import typer

from usam.cli._options import PluginOption, SetOption


def train(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A YAML file with 'model', 'data', 'train' and 'eval'.")],
    set_: SetOption = None,
    plugin: PluginOption = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the newest whole checkpoint in output_dir; begin without one.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Start anew in an output_dir that holds a run; removes its checkpoints.")
    ] = False,
) -> None:
    """Train a model; `train:` in the run file takes the arguments of transformers' Trainer, and `preset: paper` for the
    paper's. `groups:` gives parameters a learning rate of their own, `{projector: {learning_rate: 1e-3}}`.

    `data:` names manifests, `train` and `eval`, and says what happens to rows that cannot be learned from: `bad_audio`
    (stop, skip), `bad_share` (0.01) and `too_long` (stop, skip, truncate_answer). `train` may be a list of sources,
    maps of `file` and `weight`, drawn from in their shares, by a `temperature`, or a NeMo `input_cfg`. With `stream`
    rows are read as it trains, through a `shuffle_buffer`. `batch_seconds` and `batch_tokens` are a budget: batches of
    rows of about one length, as many as it has room for. `cache`, a folder, keeps what frozen encoders give: see
    `usam cache`. `augment` lists what changes the clips while training: `[speed, spec_augment]`.

    `eval:` says what is done with what is held out, beside its losses. `generate: {metrics: [wer], limit: 200}` answers
    rows of it at every evaluation and logs `eval_wer`, and `eval_wer_<task>`; train.metric_for_best_model may name it.
    `early_stopping: {patience: 3}` ends a run that gets no better. `canary: false` leaves out `eval_audio_gap`, which
    tells whether the model listens.
    """
    from usam.cli._errors import killed_reader
    from usam.training.checkpoints import advice
    from usam.training.rows import LISTED
    from usam.training.run import read_run
    from usam.training.start import output_dir
    from usam.training.start import train as start

    asked = read_run(run, *(set_ or []), plugins=plugin or [])
    try:
        folder = start(asked, resume=resume or None, overwrite=overwrite)
    except (KeyboardInterrupt, RuntimeError) as error:
        stopped = "interrupted" if isinstance(error, KeyboardInterrupt) else killed_reader(error)
        if stopped is None:
            raise
        options = [("--set", one) for one in set_ or []] + [("--plugin", str(one)) for one in plugin or []]
        command = shlex.join(["usam", "train", run, *(word for pair in options for word in pair)])
        typer.echo(f"\n{stopped}; {advice(output_dir(asked), command)}", err=True)
        raise typer.Exit(130 if isinstance(error, KeyboardInterrupt) else 2) from None
    if (folder / LISTED).is_file():
        count = (folder / LISTED).read_text(encoding="utf-8").count("\n")
        what = "1 row was" if count == 1 else f"{count:,} rows were"
        typer.echo(f"{what} skipped or cut: see {folder / LISTED}", err=True)
    if int(os.environ.get("RANK", 0)) == 0:
        print(f"saved in {folder}")
