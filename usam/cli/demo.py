"""`usam demo`: the main job on the embedded default."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def demo(
    folder: Annotated[Path, typer.Option(help="Where world, models and results go.")] = Path("runs/demo"),
    seed: Annotated[int, typer.Option(min=0, help="Of the world and of the model.")] = 0,
    prepare: Annotated[
        bool, typer.Option("--prepare", help="Only write the world, and run.yaml to train on it.")
    ] = False,
) -> None:
    """Train the paper's composition in miniature on speech, sounds and music, and test what it hears.

    It may be run again in its folder: world and features are used again, the model is trained anew.
    """
    if prepare:
        from usam.demo import recipe

        print(recipe.prepare(folder, seed=seed).run_file)
        return
    from usam.demo.show import run

    run(folder, seed=seed)
