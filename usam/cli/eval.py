"""`usam eval`: a model's answers to whole files scored, two such records compared, or one scored by other metrics."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, Optional

import typer

from usam.cli._options import PluginOption

# What means something only where a model answers.
ASKING = (
    "model", "data", "task", "prompt", "limit", "batch_size", "max_new_tokens", "num_beams", "output", "reader",
    "audio_root", "bad_audio", "device", "root", "split", "missing",
)  # fmt: skip


def eval(
    context: typer.Context,
    model: Annotated[Optional[str], typer.Argument(metavar="[MODEL]", help="A saved folder or hub id.")] = None,  # noqa: UP045
    data: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Argument(
            metavar="[DATA]...",
            help="Manifests of any format that is read, whose rows have answers; or with --root one benchmark.",
        ),
    ] = None,
    root: Annotated[
        str | None,
        typer.Option(metavar="FOLDER", help="Where the benchmark lies, as downloaded: DATA is its name (`usam list`)."),
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="Of the benchmark; default: the one that is usually reported.")
    ] = None,
    missing: Annotated[
        Optional[Literal["stop", "skip"]],  # noqa: UP045
        typer.Option(
            help="What an item of a benchmark does whose clip is not there: skip leaves it out. Default: stop."
        ),
    ] = None,
    metrics: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES",
            help="Such as wer,bleu; with options in YAML: 'wer, {type: bleu, tokenize: zh}'. Default: wer, or the "
            "benchmark's own.",
        ),
    ] = None,
    task: Annotated[str | None, typer.Option(help="Rows of this task alone.")] = None,
    prompt: Annotated[str | None, typer.Option(help="Asked of every row, instead of what it asks itself.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="The most rows, drawn by --seed.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows that a process answers together.")] = 8,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 256,
    num_beams: Annotated[int, typer.Option(min=1, help="Beams; 1 is greedy.")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="What rows and resamples are drawn with.")] = 0,
    draws: Annotated[int, typer.Option(min=1, help="Resamples of intervals and tests.")] = 1000,
    output: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER",
            help="Where the record goes; default: in eval/, named by the model and what is asked.",
            show_default=False,
        ),
    ] = None,
    reader: Annotated[
        str | None, typer.Option(help="The format of the data, where it shall not be recognised; see `usam list`.")
    ] = None,
    audio_root: Annotated[
        str | None, typer.Option(help="What {audio_root} at the beginning of paths in the data stands for.")
    ] = None,
    bad_audio: Annotated[
        Literal["stop", "skip"], typer.Option(help="What a clip does that cannot be read: skip leaves its row out.")
    ] = "stop",
    device: Annotated[
        str | None, typer.Option(help="For example cuda or cpu; default: the GPU if there is one.")
    ] = None,
    compare: Annotated[
        Optional[tuple[str, str]],  # noqa: UP045
        typer.Option("--compare", metavar="A B", help="Two folders: which record is better, and how sure that is."),
    ] = None,
    rescore: Annotated[
        str | None, typer.Option("--rescore", metavar="FOLDER", help="Score a record's answers by --metrics as well.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead, without the answers.")] = False,
    plugin: PluginOption = None,
) -> None:
    """Answer the rows of manifests, score the answers, and write a record of everything; or compare two records.

    Killed at any moment, the same command goes on. torchrun -m usam.cli eval and accelerate launch -m usam.cli eval
    share the rows among processes. A record is eval.json (what was asked of which model, values with their intervals)
    and answers.jsonl (every answer as it came, with its scores).
    """
    if compare and rescore:
        raise ValueError("--compare and --rescore are two questions; ask one at a time")
    if compare or rescore:
        _refuse("--compare" if compare else "--rescore", context)
    if compare:
        from usam.evaluation.compare import compare as compared

        found = compared(*compare, _named(metrics) if metrics is not None else None, draws=draws, seed=seed)
        print(json.dumps(found.to_dict(), indent=2, ensure_ascii=False) if as_json else found.table())
        return
    if rescore:
        from usam.evaluation.record import Record

        if metrics is None:
            raise ValueError("--rescore: say by which --metrics, such as --metrics wer,bleu")
        _tell(Record.read(rescore).scored(_named(metrics), draws=draws, seed=seed).write(rescore), as_json)
        return
    if not model or not data:
        raise ValueError("name a model and at least one manifest: usam eval MODEL test.jsonl --metrics wer")

    from usam.cli.generate import _device
    from usam.evaluation.benchmark import benchmark, check_is_data
    from usam.evaluation.evaluate import evaluate

    asked: dict[str, Any] = {"task": task, "prompt": prompt, "limit": limit, "batch_size": batch_size}
    asked |= {"max_new_tokens": max_new_tokens, "output": output}
    if root is not None:
        _refuse("--root", context, ("reader", "audio_root"), "reads a benchmark's own files")
        own = None if metrics is None else _nodes(metrics)
        answer = partial(benchmark, model, _benchmark(data), root, split=split, missing=missing, metrics=own)
    else:
        _refuse("a manifest", context, ("split", "missing"), "is no benchmark, of which --root says where it lies")
        check_is_data(data)
        asked |= {"reader": reader, "audio_root": audio_root}
        answer = partial(evaluate, model, data, metrics=_nodes("wer" if metrics is None else metrics))
    record = answer(
        options={"num_beams": num_beams} if num_beams > 1 else {},
        bad_audio=bad_audio,
        seed=seed,
        draws=draws,
        device=_device(device),
        quiet=not sys.stderr.isatty(),
        **asked,
    )
    if int(os.environ.get("RANK", 0)) == 0:
        for row in record.about["skipped"]:
            print(f"note: {row['row']}: skipped: {row['why']}", file=sys.stderr)
        _tell(record, as_json)


def _refuse(
    other: str, context: typer.Context, names: Sequence[str] = ASKING, why: str = "reads answers that are there"
) -> None:
    """Nothing that is given is ignored."""
    said = [name for name in names if context.params[name] is not None and _is_said(context, name)]
    if said:
        told = ", ".join(name.upper() if name in ("model", "data") else f"--{name.replace('_', '-')}" for name in said)
        raise ValueError(f"{other} {why}; leave out {told}")


def _benchmark(data: Sequence[str]) -> Any:
    """The one benchmark that is named, `mmau`, or `{type: covost2, pair: en_zh-CN}`."""
    from usam.spec.page import Places, parse_yaml

    (node, *others) = parse_yaml(f"[{','.join(data)}]", "DATA", Places())
    if others:
        raise ValueError(f"--root is where one benchmark lies, and {len(others) + 1} are named; ask for each by itself")
    return node


def _is_said(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name != "DEFAULT"


def _tell(record: Any, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"folder": str(record.folder), **record.about}, indent=2, ensure_ascii=False))
        return
    print(record.table())
    print(Path(record.folder) / "eval.json")


def _nodes(text: str) -> Any:
    """Names of metrics, `{type: name, option: value}`, and `name: {type: ..., ...}`, which gives it one of its own."""
    from usam.spec.page import Places, parse_yaml

    nodes = parse_yaml(f"[{text}]", "--metrics", Places())
    if not any(isinstance(node, dict) and "type" not in node for node in nodes):
        return nodes
    found: dict[str, Any] = {}
    for node in nodes:
        name, options = (node, None) if isinstance(node, str) else (node.get("type"), node)
        if name is None:
            name, options = next(iter(node.items()))
        if name in found:
            raise ValueError(f"--metrics: '{name}' stands here twice; write NAME: {{type: {name}, ...}}")
        found[name] = options
    return found


def _named(text: str) -> Any:
    from usam.training.held_out import named

    return named(_nodes(text), ("--metrics",))
