"""The command line: each command is a file here, and binds its arguments to what other rooms do."""

from __future__ import annotations

import os
import sys

import typer

from usam.cli import (
    ablate,
    cache,
    check,
    data,
    demo,
    doctor,
    estimate,
    export,
    generate,
    new,
    report,
    schema,
    serve,
    show,
    train,
    web,
)
from usam.cli import eval as eval_
from usam.cli import list as list_

app = typer.Typer(
    name="usam",
    help="Compose, train and run audio language models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("list")(list_.list_components)
for module in (
    show, check, estimate, schema, train, ablate, generate, eval_, serve, web, report, export, new, doctor, demo,
):  # fmt: skip
    app.command()(getattr(module, module.__name__.rpartition(".")[2]))
app.add_typer(data.data, name="data")
app.add_typer(cache.cache, name="cache")


def main() -> None:
    """Run the command line; what a user can mend is an error of one paragraph, without a traceback."""
    # Threads that wait by spinning make a step several times slower as soon as another process wants a core.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    from usam.registry import skip_malformed_files

    skip_malformed_files()
    try:
        app()
    except Exception as error:
        from usam.cli._errors import for_its_user

        message = None if os.environ.get("USAM_TRACEBACK") else for_its_user(error)
        if message is None:
            raise
        print(f"error: {message}", file=sys.stderr)
        raise SystemExit(2) from None
