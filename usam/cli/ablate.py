"""`usam ablate`: train variations of a run side by side, and write one table of what each is worth."""

from __future__ import annotations

from typing import Annotated

import typer

from usam.cli._options import PluginOption


def ablate(
    file: Annotated[
        str, typer.Argument(metavar="FILE", help="A YAML file with 'base', 'vary' or 'grid', and 'seeds'.")
    ],
    jobs: Annotated[int, typer.Option(min=1, help="Runs at a time; they share the cores.")] = 1,
    slurm: Annotated[
        str | None,
        typer.Option(
            metavar="KEY=VALUE,...",
            help="Submit all runs with submitit: timeout_min=240,slurm_partition=gpu,gpus_per_node=1.",
        ),
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Train this variation alone; repeatable.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List the runs, what each changes, and what is done already.")
    ] = False,
    table: Annotated[bool, typer.Option("--table", help="Train nothing; write the tables and figures anew.")] = False,
    records: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER",
            help="Keep what each run found in small files here, and make no run anew that has its file.",
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Train anew, and remove, runs that were made of something else.")
    ] = False,
    plugin: PluginOption = None,
) -> None:
    """Train every variation of a run with every seed, and compare them.

    `base:` names a run file, or `run:` holds one. `vary:` gives names to what is changed: an override
    (`model.projector.0.experts=8`), a patch (`{model: {encoders: {mert: null}}}`, `{model: other.yaml}`), or a list of
    them. `grid:` makes products, `{projector: {linear: ..., mlp: ...}, loss: {...}}`. `seeds: [0, 1, 2]`;
    `budget: {steps: 1000}` (or `epochs`, `audio_hours`), equal for all; `metrics: [wer, bleu]`; `against:`, the
    variation that the others are compared with; `output:`, a folder.

    Runs of one seed see the same batches in the same order, and parts that they share start equal. What is done is not
    done again; killed at any time, the same command goes on. `table.md`, `.csv`, `.tex`, `.json` and a figure for each
    metric come into the output folder. The status is 1 if a run failed.
    """
    from usam.evaluation.ablate import DONE, FAILED, chosen, slurm_options, state
    from usam.evaluation.ablate import ablate as run
    from usam.evaluation.grid import read_ablation
    from usam.evaluation.table import table as tabulated
    from usam.evaluation.writing import draw, markdown, write
    from usam.registry import ComponentError

    asked = read_ablation(file, plugin or [], records)
    cells = chosen(asked, only or [])
    if dry_run:
        states = [state(cell) for cell in cells]
        for cell, now in zip(cells, states, strict=True):
            print(f"{cell.name}: {', '.join(cell.variation.overrides) or 'as it is'} ({now})")
        print(f"{sum(now.kind == DONE for now in states)} of {len(cells)} runs are done; budget: {asked.budget}")
        return
    if not table:
        options = None if slurm is None else slurm_options(slurm)
        told = lambda line: typer.echo(line, err=True)  # noqa: E731
        run(asked, jobs=jobs, slurm=options, only=only or [], overwrite=overwrite, say=told)
    found = tabulated(asked)
    files = write(found, asked.output)
    try:
        files += draw(found, asked.output)
    except ComponentError as error:
        typer.echo(f"no figures: {error}", err=True)
    print(markdown(found), end="")
    typer.echo(f"written: {', '.join(map(str, files))}", err=True)
    failed = [cell for cell in asked.cells if state(cell).kind == FAILED]
    for cell in failed:
        typer.echo(f"{cell.name}: failed; see {cell.log}", err=True)
    if failed:
        raise typer.Exit(1)
