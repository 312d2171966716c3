"""The command line: each command binds arguments to a function of the module that owns it."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

app = typer.Typer(
    name="usam",
    help="Compose, train and run audio language models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

SetOption = Annotated[
    Optional[list[str]],  # noqa: UP045  (typer reads this form)
    typer.Option("--set", metavar="KEY=VALUE", help="Override one option, e.g. --set llm.lora.r=16; repeatable."),
]
SpecArgument = Annotated[str, typer.Argument(metavar="SPEC", help="A bundled name, a YAML file or a saved folder.")]


def main() -> None:
    """Run the command line; what a user can mend is an error of one paragraph, without a traceback."""
    # Threads that wait by spinning make a step several times slower as soon as another process wants a core.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    from usam.registry import skip_malformed_files

    skip_malformed_files()
    try:
        app()
    except Exception as error:
        message = None if os.environ.get("USAM_TRACEBACK") else _for_its_user(error)
        if message is None:
            raise
        print(f"error: {message}", file=sys.stderr)
        raise SystemExit(2) from None


def _for_its_user(error: Exception) -> str | None:
    """What to print when a user can mend it; None for our own faults, whose traceback is wanted."""
    from usam.page import SpecError
    from usam.registry import ComponentError
    from usam.versions import UnsupportedVersion, suspects

    cause: BaseException = error
    while isinstance(cause, ComponentError) and cause.__cause__:
        cause = cause.__cause__
    outside = suspects(cause)
    how = "USAM_TRACEBACK=1 shows the traceback."
    if isinstance(error, (ComponentError, SpecError, ValueError, FloatingPointError, FileNotFoundError)):
        return f"{error}\n{how}" if outside else str(error)
    if isinstance(error, UnsupportedVersion):
        return f"{error}\n{how}"
    return "\n".join([f"{type(error).__name__}: {error}", *outside, how]) if outside else None


@app.command("list")
def list_components(
    check: Annotated[bool, typer.Option("--check", help="Load each component and say which fail.")] = False,
) -> None:
    """List every component that is installed; nothing is imported without --check."""
    from usam.registry import FAMILIES, discover, faults, why_not

    failed = 0
    for group in FAMILIES:
        print(group)
        entries = sorted(discover(group), key=lambda e: (e.name, e.provider))
        names = [entry.name for entry in entries]
        for entry in entries:
            name = str(entry) if names.count(entry.name) > 1 else entry.name
            note = ""
            if check:
                fault = why_not(group, str(entry))
                failed += fault is not None
                note = "  ok" if fault is None else f"  FAILS: {fault}"
            print(f"  {name:24} {entry.provider} {entry.version}{note}".rstrip())
    if misdeclared := faults():
        print("declared wrongly")
        for each in misdeclared:
            print(f"  {each} ({each.cure})")
    if check and (failed or misdeclared):
        raise typer.Exit(1)


@app.command()
def doctor() -> None:
    """Compare what is installed with what was tested, load every plugin, and say what to type where it is wrong."""
    from usam.doctor import examine

    found = examine()
    print(found)
    if found.wrong:
        raise typer.Exit(1)


@app.command()
def show(
    spec: SpecArgument,
    second: Annotated[str | None, typer.Argument(metavar="[SPEC2]", help="Show what differs in this one.")] = None,
    set_: SetOption = None,
) -> None:
    """Show what a spec file says of itself, the merged spec, every width, rate and count, and tokens per second."""
    from usam.show import difference, heading, table, text_table, tokens_line
    from usam.spec import load_spec

    first = load_spec(spec, *(set_ or []))
    if second is not None:
        print("\n".join(difference(first, load_spec(second, *(set_ or [])))) or "the specs are the same")
        return
    if said := heading(spec):
        print(f"{said}\n")
    print(first.to_yaml())
    print(text_table(table(first)))
    print()
    print(tokens_line(first))


@app.command()
def check(
    spec: SpecArgument,
    data: Annotated[str | None, typer.Argument(metavar="[DATA]", help="A manifest to try one batch of.")] = None,
    set_: SetOption = None,
    rows: Annotated[int, typer.Option(help="Rows of the batch that is shown.")] = 2,
) -> None:
    """Check a spec; with data, print one batch's exact text, audio spans and supervised tokens."""
    from usam.spec import load_spec

    checked = load_spec(spec, *(set_ or []))
    print(f"{spec}: the spec is sound")
    if data is None:
        return
    from usam.data.manifest import Manifest
    from usam.inspection import describe_batch
    from usam.processor import UsamProcessor

    manifest = Manifest(data, checked.prompts)
    print(f"{data}: {len(manifest)} rows")
    print(describe_batch(UsamProcessor.from_spec(checked), [manifest[i] for i in range(min(rows, len(manifest)))]))


@app.command()
def schema(
    out: Annotated[Path | None, typer.Option(help="File to write; default: standard output.")] = None,
) -> None:
    """Write the JSON schema of specs, installed plugins included, for editors to complete from."""
    from usam.schema import json_schema

    text = json.dumps(json_schema(), indent=2)
    if out is None:
        print(text)
    else:
        out.write_text(text + "\n", encoding="utf-8")
        print(f"wrote {out}")


@app.command()
def train(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A YAML file with 'model', 'data' and 'train'.")],
    set_: SetOption = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint in output_dir.")] = False,
) -> None:
    """Train a model; `train:` in the run file takes the arguments of transformers' Trainer."""
    from usam.train import read_run
    from usam.train import train as start

    folder = start(read_run(run, *(set_ or [])), resume=resume or None)
    print(f"saved in {folder}")


@app.command()
def generate(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A saved folder or hub id.")],
    audio: Annotated[Optional[list[str]], typer.Argument(metavar="[AUDIO]...", help="Audio files.")] = None,  # noqa: UP045
    prompt: Annotated[str | None, typer.Option(help="The instruction.")] = None,
    task: Annotated[str | None, typer.Option(help="A task of the model's 'prompts', instead of --prompt.")] = None,
    together: Annotated[bool, typer.Option("--together", help="One answer to all files, not one for each.")] = False,
    max_new_tokens: Annotated[int, typer.Option(help="Longest answer, in tokens.")] = 256,
    num_beams: Annotated[int, typer.Option(help="Beams; 1 is greedy.")] = 1,
    batch_size: Annotated[int, typer.Option(help="Files answered at once.")] = 8,
    device: Annotated[
        str | None, typer.Option(help="For example cuda or cpu; default: the GPU if there is one.")
    ] = None,
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


@app.command()
def export(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A saved folder or hub id.")],
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where the merged model goes.")],
    task: Annotated[
        str | None, typer.Option(help="Fix the projector for a task of the model's 'prompts'; no prompt_mask then.")
    ] = None,
) -> None:
    """Write one merged, self-contained folder: LoRA folded in, no losses, no base checkpoint needed."""
    from usam.hf import export as write

    write(model, folder, task)
    print(f"saved in {folder}")


@app.command()
def demo(
    folder: Annotated[Path, typer.Option(help="Where corpus, model and results go.")] = Path("runs/demo"),
    clips: Annotated[int, typer.Option(help="Training clips to speak.")] = 3000,
) -> None:
    """Speak a corpus, train the embedded model on it, and test it on unseen sentences and voices."""
    from usam.demo import run

    run(folder, clips)


if __name__ == "__main__":
    main()
