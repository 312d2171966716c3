"""`usam estimate`: what a training will take, before anything is downloaded or trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from usam.cli._options import PluginOption, SetOption


def estimate(
    spec: Annotated[
        str, typer.Argument(metavar="SPEC", help="A bundled name, a YAML file or a saved folder; or a run file.")
    ],
    data: Annotated[
        list[str] | None, typer.Argument(metavar="[DATA]...", help="Manifests, whose lengths are taken.")
    ] = None,
    set_: SetOption = None,
    plugin: PluginOption = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Rows of a batch; default: 8.", show_default=False)
    ] = None,
    batch_seconds: Annotated[float | None, typer.Option(min=0.1, help="Budget: seconds of audio in a batch.")] = None,
    batch_tokens: Annotated[int | None, typer.Option(min=1, help="Budget: tokens in a batch.")] = None,
    seconds: Annotated[
        float | None, typer.Option(min=0.01, help="Of a clip, without DATA; default: 10.", show_default=False)
    ] = None,
    answer_tokens: Annotated[
        int | None, typer.Option(min=1, help="Of an answer, without DATA; default: 20.", show_default=False)
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="Of all weights: float32, bfloat16 or float16.")] = None,
    bf16: Annotated[bool, typer.Option("--bf16", help="Products in bfloat16, as train.bf16 says.")] = False,
    optimizer: Annotated[str | None, typer.Option(help="As train.optim names it.")] = None,
    gradient_checkpointing: Annotated[
        bool, typer.Option("--gradient-checkpointing", help="Compute states again instead of keeping them.")
    ] = False,
    device: Annotated[list[str] | None, typer.Option(help="a100, h100, h200, ...; repeatable; default: h100.")] = None,
    devices: Annotated[int, typer.Option(min=1, help="How many of them.")] = 1,
    tflops: Annotated[float | None, typer.Option(min=0.001, help="10^12 operations a second, of another one.")] = None,
    mfu: Annotated[float, typer.Option(min=0.001, max=1, help="Share of these that training reaches.")] = 0.35,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead, bytes and operations.")] = False,
) -> None:
    """Estimate parameters, memory, operations and epochs a day, without memory and without weights.

    One step is followed on the meta device, where tensors have shapes alone: that tells what is alive at once and, by
    torch's formulas, how many floating point operations are done. A run file says itself what it trains on, and how;
    options go before it. Frozen weights that would come from a source count as float32, those of the language model in
    the dtype of its `arch`, else bfloat16.
    """
    from usam.training.estimate import estimate as estimated
    from usam.training.estimate import speed_of, text

    rate = {name: speed_of(name, None, mfu, devices) for name in (device or ([] if tflops else ["h100"]))}
    if tflops:
        rate["tflops"] = speed_of(None, tflops, mfu, devices)
    whole, plan, source = _read(spec, set_ or [], data)
    if source is not None and (seconds or answer_tokens):
        raise ValueError("--seconds and --answer-tokens stand for data that is not there; leave them out, or the data")
    changed = {"seconds": seconds, "answer_tokens": answer_tokens, "batch_size": batch_size}
    how = _how(dtype, bf16, optimizer, gradient_checkpointing)
    found = estimated(whole, _changed(plan, changed, how, batch_seconds, batch_tokens), source)
    if as_json:
        days = {
            name: {"hours": found.hours_a_day(flops), "epochs": found.epochs_a_day(flops), "flops": flops}
            for name, (flops, _) in rate.items()
        }
        print(json.dumps({**found.to_dict(), "a_day": days}, indent=2))
        return
    print(text(found, {told: flops for flops, told in rate.values()}, mfu, devices))


def _read(spec: str, overrides: list[str], data: list[str] | None) -> tuple[Any, Any, Any]:
    """The spec, the plan, and what the lengths are taken from."""
    from usam.spec.page import Places, parse_yaml
    from usam.spec.spec import load_spec
    from usam.training.estimate import Plan, plan_of
    from usam.training.run import PARTS, read_run

    path = Path(spec)
    tree = parse_yaml(path.read_text(encoding="utf-8"), spec, Places()) if path.is_file() else None
    if isinstance(tree, dict) and "model" in tree and set(tree) <= set(PARTS):
        run = read_run(path, *overrides)
        return run.spec, plan_of(run), data or run
    return load_spec(spec, *overrides), Plan(), data or None


def _how(dtype: str | None, bf16: bool, optimizer: str | None, checkpointing: bool) -> dict[str, Any]:
    import torch

    from usam.component import DTYPES
    from usam.registry import did_you_mean

    if dtype is not None and dtype not in DTYPES:
        raise ValueError(f"--dtype {dtype}: {did_you_mean(dtype, DTYPES)}")
    given = {
        "dtype": DTYPES[dtype] if dtype else None,
        "autocast": torch.bfloat16 if bf16 else None,
        "optimizer": optimizer,
        "checkpointing": checkpointing or None,
    }
    return {name: value for name, value in given.items() if value is not None}


def _changed(
    plan: Any, changed: dict[str, Any], how: dict[str, Any], batch_seconds: float | None, batch_tokens: int | None
) -> Any:
    from dataclasses import replace

    from usam.data.sampling import Budget

    given = {name: value for name, value in changed.items() if value is not None}
    if batch_seconds is not None or batch_tokens is not None:
        given["budget"] = Budget(batch_seconds, batch_tokens, changed["batch_size"])
    elif plan.budget is not None and changed["batch_size"] is not None:
        given["budget"] = replace(plan.budget, rows=changed["batch_size"])
    return replace(plan, **given, how=replace(plan.how, **how))
