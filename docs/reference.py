"""The reference, made of the code: every component and option, Python name, command, key of a spec and bundled spec.

`pages()` gives the text of each page by its path in the site; the site is made of them anew each time, so that none is
kept in the repository and none can be out of date.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import re
import textwrap
import typing
from collections.abc import Iterable, Iterator
from itertools import dropwhile
from pathlib import Path
from typing import Any

import typer
from pydantic import BaseModel

import usam
from usam.evaluation.grid import KEYS as ABLATION
from usam.model.summary import heading
from usam.registry import GROUPS
from usam.spec.options import Option, options, own_and_shared
from usam.spec.patch import MAPS, SINGLES
from usam.spec.schema import json_schema
from usam.spec.spec import SPECS, Config, Spec
from usam.training.checks import CACHE, DATA, POLICIES
from usam.training.held_out import EarlyStopping, Evaluation, Generate
from usam.training.presets import PRESETS
from usam.training.run import PARTS, Run

ESCAPE = "\\"
CODE = re.compile(r"(`[^`]*`)")
SECTION = re.compile(r"^(Args|Returns|Yields|Raises|Attributes):$")


# What a key of `data` takes, and means in short; the docstring of `Run.data`, which stands above the table, says more.
DATA_KEYS = {
    "train": ("a manifest, a map, or a list of them (needed)", "What is learned from."),
    "eval": ("as `train`", "What is held out."),
    "temperature": ("number > 0", "How far the sources' shares are drawn together; 1 draws by size."),
    "reader": ("[a reader](readers.md)", "The format, where it shall not be recognised."),
    "audio_root": ("folder", "What `{audio_root}` at the beginning of paths stands for."),
    "bad_audio": (f"`{' | '.join(POLICIES['bad_audio'])}`", "What happens to a clip that cannot be read."),
    "bad_share": ("share from 0 to 1", "The share of the rows that may be skipped so."),
    "stream": ("bool", "Rows are read while the run trains."),
    "shuffle_buffer": ("int >= 1", "Rows that a stream holds to shuffle them; without it 1000."),
    "too_long": (f"`{' | '.join(POLICIES['too_long'])}`", "What happens to a row beyond the context or the budget."),
    "batch_seconds": ("number > 0", "Budget: seconds of audio in a batch, padding included."),
    "batch_tokens": ("int > 0", "Budget: tokens in a batch, padding included."),
    "cache": ("folder, or a map", "Keeps what frozen encoders give for a clip."),
    "augment": ("list of [augmentations](augmentations.md)", "Changes clips while training."),
}
CACHE_KEYS = {
    "folder": ("folder (needed)", "Where frames are kept."),
    "dtype": ("`float16 | bfloat16`", "Halves what is stored; without it frames are kept bit for bit."),
    "limit": ("number > 0", "GiB; at the limit nothing more is stored."),
}


def pages() -> dict[str, str]:
    """Text by path: `reference/encoders.md` and the others."""
    families = {f"reference/{group.rpartition('.')[2]}.md": family(group) for group in GROUPS}
    others = {"python": python(), "command": command(), "spec": spec(), "run": run(), "specs": specs()}
    return {
        "reference/index.md": index(),
        **families,
        **{f"reference/{name}.md": text for name, text in others.items()},
    }


def index() -> str:
    """What the reference has."""
    rows = []
    for group in GROUPS:
        name = group.rpartition(".")[2]
        links = ", ".join(f"[`{each}`]({name}.md#{each})" for each, _ in built_in(group))
        rows.append(f"| [{name}]({name}.md) | {links} |")
    return page(
        "# Reference",
        "All of it is written by `docs/reference.py` from the code of this version, so that it says what the code "
        "does. `usam list` and `usam show NAME` tell the same in a terminal, installed plugins included.",
        "| family | components |\n|---|---|\n" + "\n".join(rows),
        "Beside the components: [the public names in Python](python.md), [the command line](command.md), "
        "[what a spec may say](spec.md), [what a run file may say](run.md), and [the bundled specs](specs.md).",
    )


def family(group: str) -> str:
    """The page of a family: its contract, what all of it have, and each component."""
    module = importlib.import_module(group)
    base = module.registry.base
    parts = [f"# {group.rpartition('.')[2]}", docstring(module)]
    parts += ["## The contract", f"`{base.__module__}.{base.__qualname__}`", docstring(base), *methods(base)]
    if shared := list(options(base.Config)) if hasattr(base, "Config") else []:
        parts += ["## Options of all", table(shared)]
    for name, cls in built_in(group):
        parts += component(name, cls, base)
    return page(*parts)


def built_in(group: str) -> list[tuple[str, type[Any]]]:
    """The components of a family that come with usam, by name."""
    registry = importlib.import_module(group).registry
    return [(entry.name, registry.get(str(entry))) for entry in registry.entries() if entry.provider == "usam"]


def component(name: str, cls: type[Any], base: type[Any]) -> Iterator[str]:
    """What it is and after whom, its options, and what its methods take and give."""
    yield f"## {name} {{ #{name} }}"
    yield f"`{cls.__module__}.{cls.__qualname__}`"
    said = [docstring(inspect.getmodule(cls)), docstring(cls) if cls.__doc__ else ""]
    yield from dict.fromkeys(filter(None, said))
    if hasattr(cls, "splits"):
        yield f"Splits: {', '.join(f'`{split}`' for split in cls.splits)}."
        yield f"Prompt and scoring: {prose(cls.source)}."
        yield f"Files: {prose(cls.home)}."
    if hasattr(cls, "unit"):
        least, most = cls.bounds
        better = "Higher" if cls.higher_is_better else "Lower"
        yield f"{better} is better; from {least:g} to {most:g}; a value of 1: {prose(cls.unit)}."
    if hasattr(cls, "Config"):
        own, _ = own_and_shared(cls.Config, base.Config)
        yield table(own) if own else "No options of its own."
    yield from methods(cls)


def methods(cls: type[Any]) -> Iterator[str]:
    """The public methods that a class itself has and says something of, each with its arguments."""
    for name, value in vars(cls).items():
        function = value.__func__ if isinstance(value, (classmethod, staticmethod)) else value
        is_public = not name.startswith("_") or name == "__call__"
        if is_public and inspect.isfunction(function) and function.__doc__:
            yield f"```python\n{signature(name, function)}\n```"
            yield docstring(function)
        elif is_public and isinstance(value, property) and value.fget is not None and value.__doc__:
            yield f"```python\n{name}: {said_type(inspect.signature(value.fget).return_annotation)}\n```"
            yield docstring(value)


def python() -> str:
    """The public names."""
    parts = ["# Python", "What `from usam import ...` gives. Everything else may change from one version to the next."]
    for name in usam.__all__:
        value = getattr(usam, name)
        parts += [f"## `{name}` {{ #{name.strip('_').lower()} }}"]
        if isinstance(value, str):
            parts += [f"The version that is installed: `{value}` here."]
            continue
        parts += [f"```python\n{signature(name, value)}\n```", docstring(value)]
        if isinstance(value, type):
            if issubclass(value, Config) and (found := list(options(value))):
                parts += [table(found)]
            elif dataclasses.is_dataclass(value):
                parts += [fields(value)]
            parts += methods(value)
    return page(*parts)


def command() -> str:
    """Each command with its arguments and options."""
    from usam.cli import app

    parts = ["# Command line", "`usam COMMAND -h` says the same in a terminal."]
    for path, each in commands(typer.main.get_command(app), ("usam",)):
        given = [parameter for parameter in each.params if parameter.name != "help"]
        arguments = [argument_name(parameter) for parameter in given if is_argument(parameter)]
        call = " ".join([*path, *arguments, *["[OPTIONS]"][: len(given) - len(arguments)]])
        parts += [f"## {' '.join(path)}", docstring(each.callback), f"```\n{call}\n```"]
        hints = typing.get_type_hints(inspect.unwrap(each.callback))
        rows = [_argument(parameter, hints.get(parameter.name)) for parameter in given]
        if rows:
            parts += ["| argument | takes | default | meaning |\n|---|---|---|---|\n" + "\n".join(rows)]
    return page(*parts)


def commands(group: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command below a group, with the words that call it."""
    for name, each in group.commands.items():
        if hasattr(each, "commands"):
            yield from commands(each, (*path, name))
        else:
            yield (*path, name), each


def is_argument(parameter: Any) -> bool:
    """Whether it is given by its place, and not by a name."""
    return not parameter.opts[0].startswith("-")


def argument_name(parameter: Any) -> str:
    """As the line of usage has it."""
    name = parameter.metavar or parameter.name.upper()
    return name if parameter.required or name.startswith("[") else f"[{name}]"


def _argument(parameter: Any, annotation: Any) -> str:
    flag = getattr(parameter, "is_flag", False)
    named = [argument_name(parameter)] if is_argument(parameter) else [*parameter.opts, *parameter.secondary_opts]
    takes = "" if flag or is_argument(parameter) else parameter.metavar or _kind(annotation)
    start = parameter.default
    default = "on" if start is True else str(start) if isinstance(start, (str, int, float, Path)) and not flag else ""
    row = (", ".join(map(code, named)), code(takes), code(default), prose(parameter.help or ""))
    return f"| {' | '.join(map(cell, row))} |"


def _kind(annotation: Any) -> str:
    """The innermost type, as `-h` writes it."""
    inner = [each for each in typing.get_args(annotation) if each is not type(None)]
    if inner and typing.get_origin(annotation) is not typing.Literal:
        return _kind(inner[0])
    kinds = {int: "INTEGER", float: "FLOAT", str: "TEXT", Path: "PATH"}
    return kinds.get(annotation) or " | ".join(map(str, inner or annotation))


def spec() -> str:
    """The keys of a spec, from its schema."""
    schema = json_schema()
    rows = [
        f"| `{key}` | {cell(_takes(key))} | {cell(prose(value.get('description', '')))} |"
        for key, value in schema["properties"].items()
    ]
    first, *rest = inspect.cleandoc(importlib.import_module("usam.spec.spec").__doc__ or "").split("\n\n")
    return page(
        "# What a spec may say",
        prose(first),
        *map(prose, rest),
        "| key | takes | meaning |\n|---|---|---|\n" + "\n".join(rows),
        f"A component is its name, or a map of `type` and its options. Without a `base`, `fusion` is "
        f"`{Spec.DEFAULTS['fusion']['type']}` and the only loss `{', '.join(Spec.DEFAULTS['losses'])}`.",
        "`usam schema --out usam.schema.json` writes the JSON schema with every component that is installed. In an "
        "editor with YAML's language server, such as VS Code with its YAML extension, this first line completes names "
        "and options and underlines what is wrong:",
        "```yaml\n# yaml-language-server: $schema=usam.schema.json\n```",
    )


def _takes(key: str) -> str:
    group = {**MAPS, **SINGLES, "projector": "usam.projectors"}.get(key)
    if group is None:
        return {"usam": "int", "prompts": "map of texts"}.get(key, "text")
    folder = group.rpartition(".")[2]
    how = {"encoders": "map of names to", "losses": "map of names to", "projector": "list of"}.get(key, "one of")
    return f"{how} [{folder}]({folder}.md)"


def run() -> str:
    """The keys of a run file."""
    said = field_docstrings(Run)
    meant = DATA_KEYS | {f"cache.{key}": CACHE_KEYS[key] for key in CACHE}
    rows = [
        f"| `data.{key}` | {cell(meant[key][0])} | {_value(DATA.get(key))} | {cell(meant[key][1])} |"
        for key in (*DATA, *(f"cache.{key}" for key in CACHE))
    ]
    evaluation = [
        *options_of(Evaluation, "eval."),
        *options_of(Generate, "eval.generate."),
        *options_of(EarlyStopping, "eval.early_stopping."),
    ]
    presets = [f"| `{name}` | {', '.join(f'`{k}: {v}`' for k, v in args.items())} |" for name, args in PRESETS.items()]
    return page(
        "# What a run file may say",
        docstring(importlib.import_module("usam.training.run")),
        f"Its parts are {', '.join(f'`{part}`' for part in PARTS)}; `model` and `data.train` are needed. `usam train` "
        "reads it, and `usam data`, `usam cache` and `usam estimate` too.",
        "## model, start, plugins",
        "`model` is a bundled spec, a file, a saved folder, or a whole [spec](spec.md). `start` is the folder of a "
        "saved model whose weights the run begins with. `plugins` are files that register components.",
        "## data",
        prose(said["data"]),
        "| key | takes | default | meaning |\n|---|---|---|---|\n" + "\n".join(rows),
        "## train",
        prose(said["train"]),
        "| preset | arguments |\n|---|---|\n" + "\n".join(presets),
        "## groups",
        prose(said["groups"]),
        "## eval",
        prose(said["eval"]),
        table(evaluation),
        "## Ablation files",
        f"`usam ablate` reads a file of {', '.join(f'`{key}`' for key in ABLATION)}: "
        "[the page of ablations](../ablate.md) says what each means.",
    )


def _value(value: Any) -> str:
    return "" if value is None else f"`{value}`"


def specs() -> str:
    """The bundled specs, as they are written."""
    parts = [
        "# Bundled specs",
        "Each name stands where a spec may stand: `usam show NAME`, `model: NAME`, `base: NAME`. "
        "[The zoo](../zoo.md) compares the published ones with their sources.",
    ]
    for file in sorted(SPECS.rglob("*.yaml")):
        text = file.read_text(encoding="utf-8")
        body = "\n".join(dropwhile(lambda line: line.startswith("#"), text.splitlines()))
        parts += [f"## {file.stem} {{ #{file.stem} }}", prose(heading(file.stem)), f"```yaml\n{body.strip()}\n```"]
    return page(*parts)


def options_of(model: type[BaseModel], prefix: str) -> list[Option]:
    """The options of a part of a run file."""
    found = list(options(model, prefix))  # type: ignore[arg-type]
    maps = re.compile(r"\b(Generate|EarlyStopping)\b")
    return [dataclasses.replace(each, type=maps.sub("map of the options below", each.type)) for each in found]


def table(found: Iterable[Option]) -> str:
    """Options, one a row."""
    rows = [
        f"| `{o.name}` | {cell(code(o.type))} | {cell(code(o.default))} | {cell(prose(o.description))} |" for o in found
    ]
    return "| option | type | default | meaning |\n|---|---|---|---|\n" + "\n".join(rows)


def fields(cls: type[Any]) -> str:
    """The fields of a dataclass, with what stands below or behind each."""
    said = field_docstrings(cls)
    rows = [
        f"| `{each.name}` | {cell(code(said_type(each.type)))} | {cell(prose(said.get(each.name, '')))} |"
        for each in dataclasses.fields(cls)
    ]
    return "| field | type | meaning |\n|---|---|---|\n" + "\n".join(rows)


def field_docstrings(cls: type[Any]) -> dict[str, str]:
    """What a class says of its fields: in a string below one, or in a comment on its line."""
    source = textwrap.dedent(inspect.getsource(cls))
    body, lines = ast.parse(source).body[0].body, source.splitlines()  # type: ignore[attr-defined]
    found = {}
    for here, after in zip(body, [*body[1:], None], strict=True):
        if isinstance(here, ast.AnnAssign) and isinstance(here.target, ast.Name):
            line = lines[(here.end_lineno or 0) - 1]
            found[here.target.id] = line.partition("  # ")[2]
            if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
                found[here.target.id] = inspect.cleandoc(str(after.value.value))
    return found


def signature(name: str, value: Any) -> str:
    """`name(argument: type = default) -> type`, one argument a line where it is long."""
    if isinstance(value, type) and issubclass(value, BaseModel):
        return f"class {name}"
    try:
        found = inspect.signature(value)
    except ValueError:
        return name
    kept = [each for each in found.parameters.values() if each.name not in ("self", "cls")]
    arguments = [str(each.replace(annotation=each.annotation)).replace("'", "") for each in kept]
    arguments = [short(argument) for argument in arguments]
    if any(each.kind is each.KEYWORD_ONLY for each in kept) and not any(
        each.kind is each.VAR_POSITIONAL for each in kept
    ):
        first = next(i for i, each in enumerate(kept) if each.kind is each.KEYWORD_ONLY)
        arguments.insert(first, "*")
    if any(each.kind is each.POSITIONAL_ONLY for each in kept):
        last = max(i for i, each in enumerate(kept) if each.kind is each.POSITIONAL_ONLY)
        arguments.insert(last + 1, "/")
    head = f"class {name}" if isinstance(value, type) else name
    gives = (
        "" if isinstance(value, type) or found.return_annotation is found.empty else said_type(found.return_annotation)
    )
    tail = f") -> {gives}" if gives else ")"
    line = f"{head}({', '.join(arguments)}{tail}"
    return line if len(line) <= 100 else f"{head}(\n" + "".join(f"    {each},\n" for each in arguments) + tail


def said_type(annotation: Any) -> str:
    """An annotation as it is written."""
    if annotation is inspect.Signature.empty:
        return "Any"
    return short(annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)).strip("'")


def short(text: str) -> str:
    """Without the modules of names."""
    return re.sub(r"\b(?:[a-z_]\w*\.)+(?=[A-Za-z_])", "", text) if "=" not in text else text


def docstring(of: Any) -> str:
    """A docstring as Markdown; its lists of arguments and errors become lists."""
    text = inspect.cleandoc(of.__doc__ or "") if isinstance(of, property) else inspect.getdoc(of) or ""
    found, section = [], ""
    for line in prose(text).splitlines():
        if match := SECTION.match(line):
            section = match[1]
            found += ["", f"**{section}**", ""]
        elif section and line and not line.startswith(" "):
            section = ""
            found.append(line)
        elif section in ("", "Returns", "Yields"):
            found.append(line.strip() if section else line)
        elif entry := re.match(r"    (\S[^:]*?): (.*)", line):
            found.append(f"- {code(entry[1].replace(ESCAPE, ''))}: {entry[2]}")
        else:
            found.append(f"  {line.strip()}".rstrip())
    return re.sub(r"\n{3,}", "\n\n", "\n".join(found)).strip()


def prose(text: str) -> str:
    """Plain text with `code` in it, so that Markdown shows it as it is."""
    parts = CODE.split(text)
    return "".join(part if part.startswith("`") else _plain(part) for part in parts)


def _plain(text: str) -> str:
    return re.sub(r"(?<!\w)_|_(?!\w)|[*\[\]{}]", r"\\\g<0>", text.replace("&", "&amp;").replace("<", "&lt;"))


def code(text: str) -> str:
    """As code; nothing where there is nothing."""
    return f"`{text}`" if text else ""


def cell(text: str) -> str:
    """In a table: on one line, its bars no borders."""
    parts = CODE.split(" ".join(text.split()))
    return "".join(part if part.startswith("`") else part.replace("|", "\\|") for part in parts)


def page(*parts: str) -> str:
    """Paragraphs with a blank line between them."""
    return "\n\n".join(part.strip("\n") for part in parts if part.strip()) + "\n"


if __name__ == "__main__":
    for path, text in pages().items():
        print(f"{Path(path)}: {len(text.splitlines())} lines")
