"""`usam demo`: the main job on the embedded default."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def demo(
    folder: Annotated[Path, typer.Option(help="Where corpus, model and results go.")] = Path("runs/demo"),
    clips: Annotated[int, typer.Option(min=1, help="Training clips to speak.")] = 3000,
) -> None:
    """Speak a corpus, train the embedded model on it, and test it on unseen sentences and voices."""
    from usam.training.demo import run

    run(folder, clips)
