"""`usam show`: what a spec builds, or what a component is and which options it takes."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator
from typing import Annotated, Any

import typer

from usam.cli._options import PluginOption, SetOption


def show(
    spec: Annotated[
        str, typer.Argument(metavar="WHAT", help="A spec's bundled name, file or saved folder, or a component's name.")
    ],
    second: Annotated[str | None, typer.Argument(metavar="[SPEC2]", help="Show what differs in this spec.")] = None,
    set_: SetOption = None,
    plugin: PluginOption = None,
) -> None:
    """Show what a spec builds: every width, rate and count, and tokens per second; or a component and its options.

    A component is named as in a spec; `encoders.whisper` says which family is meant, `package:name` whose it is.
    A spec that has the name of a component goes first.
    """
    from usam.spec.page import SpecError
    from usam.spec.spec import find

    named = components(spec)
    try:
        as_text = spec.lstrip().startswith("{")
        file = None if as_text else find(spec)
    except SpecError as error:
        if not named:
            raise SpecError(f"{error}{_nor_a_component(spec)}") from error
        if second is not None or set_:
            what = "a second argument" if second is not None else "--set"
            raise SpecError(f"'{spec}' is a component, and {what} goes with specs: `usam show {spec}`") from error
        _show_components(spec, named)
        return
    _show_spec(spec, second, set_ or [], says_something=file is not None)
    for family, name in named if second is None else ():
        print(f"\n'{spec}' is also a component: usam show {family}.{name}")


def _show_spec(spec: str, second: str | None, overrides: list[str], *, says_something: bool) -> None:
    from usam.model.summary import difference, heading, table, text_table, tokens_line
    from usam.spec.page import SpecError
    from usam.spec.spec import load_spec

    first = load_spec(spec, *overrides)
    if second is not None:
        try:
            other = load_spec(second, *overrides)
        except SpecError as error:
            if not (family := components(second)):
                raise
            raise SpecError(f"{error}; it is a component: usam show {family[0][0]}.{family[0][1]}") from error
        print("\n".join(difference(first, other)) or "the specs are the same")
        return
    said = heading(spec) if says_something else ""
    if said:
        print(f"{said}\n")
    print(first.to_yaml())
    print(text_table(table(first)))
    print()
    print(tokens_line(first))


def components(asked: str) -> list[tuple[str, str]]:
    """(family, name) of each component that may be meant; importing none."""
    from usam.registry import discover

    families, name = _split(asked)
    names = {family: list(discover(f"usam.{family}")) for family in families}
    return [(family, name) for family in families if any(name in (e.name, str(e)) for e in names[family])]


def _split(asked: str) -> tuple[list[str], str]:
    """The families that `encoders.whisper` or `usam.encoders:whisper` may be of, and its name there."""
    from usam.registry import FAMILIES

    short = [
        family.removeprefix("usam.") for family in (*FAMILIES, "usam.metrics", "usam.suites")
    ]  # readers have no options
    known = {**{name: name for name in short}, "fusion": "fusions", "projector": "projectors"}
    bare = asked.removeprefix("usam.")
    for family, canonical in known.items():
        for separator in ".:":
            if bare.startswith(family + separator):
                return [canonical], bare.removeprefix(family + separator)
    return short, asked


def _nor_a_component(asked: str) -> str:
    from usam.registry import did_you_mean, discover

    families, name = _split(asked)
    hint = did_you_mean(name, {entry.name for family in families for entry in discover(f"usam.{family}")})
    if name == asked and not hint.startswith("did"):
        return ", nor is it a component (`usam list`)"
    return f"; it is no component either: {hint}"


def _show_components(asked: str, named: list[tuple[str, str]]) -> None:
    if len(named) > 1:
        each = " and ".join(f"{family}.{name}" for family, name in named)
        print(f"'{asked}' is the name of {len(named)} components: {each}\n")
    print("\n\n".join("\n".join(_component(*each)) for each in named))


def _component(family: str, name: str) -> Iterator[str]:
    from usam.spec.options import own_and_shared

    registry: Any = importlib.import_module(f"usam.{family}").registry
    entry, cls = registry.find(name), registry.get(name)
    yield f"{family}.{entry.name}, of {entry.provider} {entry.version}".rstrip()
    yield f"{cls.__module__}.{cls.__qualname__}, in {inspect.getsourcefile(cls)}"
    for said in dict.fromkeys(_prose(text) for text in (entry.describe(), cls.__doc__ or "")):
        if said:
            yield f"\n{said}"
    if family == "suites":
        yield f"\nsplits: {', '.join(cls.splits)}\nprompt and scoring: {cls.source}\nfiles: {cls.home}"
    own, shared = own_and_shared(cls.Config, registry.base.Config)
    yield "\noptions" if own else "\nno options of its own"
    yield from map(str, own)
    if shared:
        yield f"\noptions of every component in {family}"
    yield from map(str, shared)


def _prose(docstring: str) -> str:
    """A docstring without its list of arguments, which a spec does not give."""
    return inspect.cleandoc(docstring).partition("\n\nArgs:")[0].partition("\n\nRaises:")[0].strip()
