"""What pages show is right: Python names what exists, YAML is valid, commands have the options they are given."""

import ast
import importlib
import re
import tomllib

import pytest
import typer
import written

import usam
from usam import load_spec
from usam.cli import app
from usam.evaluation.grid import KEYS
from usam.registry import GROUPS
from usam.spec.page import Places, SpecError, parse_yaml
from usam.spec.spec import Spec, find
from usam.training.run import PARTS, run_of

# Pages whose Python is run from top to bottom; that of others is run by the tests of what they show.
RUN = [page for page in written.pages() if page.parent.name == "concepts" or written.name(page) == "docs/index.md"]
COMMAND = typer.main.get_command(app)
GONE = object()
FOREIGN = {"compute_environment": "accelerate"}  # files of other programs, by a key that they begin with


@pytest.mark.parametrize("block", written.blocks("python"), ids=str)
def test_python_names_what_exists(block):
    wrong = []
    for node in ast.walk(ast.parse(block.text)):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.partition(".")[0] == "usam":
            wrong += [f"{node.module}.{each.name}" for each in node.names if not exists(f"{node.module}.{each.name}")]
        elif isinstance(node, ast.Import):
            ours = [each.name for each in node.names if each.name.partition(".")[0] == "usam"]
            wrong += [name for name in ours if not exists(name)]
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "usam":
            wrong += [f"usam.{node.attr}"] * (not exists(f"usam.{node.attr}"))
    assert wrong == []


def exists(name):
    """Whether `usam.a.b` is a module, or a name in one."""
    if name == "usam":
        return True
    module, _, last = name.rpartition(".")
    try:
        if hasattr(importlib.import_module(module), last):
            return True
        importlib.import_module(name)
    except ModuleNotFoundError:
        return False
    return True


@pytest.mark.parametrize("page", RUN, ids=written.name)
def test_python_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    for block in written.blocks_of(page):
        if block.kind == "python":
            exec(compile(block.text, str(block), "exec"), names)


@pytest.mark.parametrize("block", written.blocks("yaml", "yml"), ids=str)
def test_yaml_is_valid(block, tmp_path):
    tree = without(parse_yaml(block.text, str(block), Places()), offered(block.page))
    if tree is GONE or tree.keys() & FOREIGN.keys():
        return
    keys = set(tree)
    if keys <= {*KEYS} and keys & {"vary", "grid"}:
        assert isinstance(tree.get("base", "tiny"), (str, dict))
    elif keys <= {*PARTS}:
        for name in tree.pop("plugins", []):
            assert f"# {name}\n" in written.text(block.page), f"the page has no {name}"
        check_run(tree | measured(tree, block.page), tmp_path)
    elif keys <= {"base", *Spec.model_fields}:
        check_spec(tree)
    else:  # options of components, for pytest --usam
        assert {f"usam.{key.partition('.')[0]}" for key in keys} <= {*GROUPS}, f"what is {sorted(keys)}?"


def measured(tree, page):
    """The `eval` part of a run that an ablation of its page measures."""
    ablated = any(re.search(r"^(vary|grid):", block.text, re.MULTILINE) for block in written.blocks_of(page))
    held = tree.get("eval") or {}
    return (
        {"eval": held | {"generate": {"metrics": ["wer"], **held["generate"]}}}
        if ablated and "generate" in held
        else {}
    )


def check_run(tree, folder):
    """A run file, or the part of one that a page shows."""
    data = {"train": "rows.jsonl", **tree.get("data", {})}
    model = tree.get("model", "tiny")
    model = (
        known(model)
        if isinstance(model, str)
        else {**model, **({"base": known(model["base"])} if "base" in model else {})}
    )
    run_of(
        {**{key: value for key, value in tree.items() if key != "start"}, "model": model, "data": data},
        folder / "run.yaml",
    )


def check_spec(tree):
    """A spec, or the part of one that a page shows: laid over a bundled one, if it is not whole."""
    whole = {"encoders", "projector", "llm"} <= set(tree)
    load_spec(tree if whole else {**tree, "base": known(tree.get("base", "paper"))})


def known(source):
    """A bundled spec; `paper` in place of a file that the reader of the page would have."""
    try:
        find(source)
    except SpecError:
        return "paper"
    return source


def offered(page):
    """The components that a page is about or makes, which need not be installed here."""
    file = page.parent / "pyproject.toml"
    project = tomllib.loads(file.read_text(encoding="utf-8"))["project"] if file.is_file() else {}
    made = [
        words[2] for place, words in written.commands() if place.startswith(written.name(page)) and words[0] == "new"
    ]
    made += re.findall(r'^@register\("(\w+)"\)', written.text(page), re.MULTILINE)
    return {name for group in project.get("entry-points", {}).values() for name in group} | {*made}


def without(tree, names):
    """A tree without some components, and without what is empty then; GONE where nothing is left."""
    if isinstance(tree, dict):
        kept = {key: value for key, v in tree.items() if key not in names and (value := without(v, names)) is not GONE}
        return GONE if tree.get("type") in names or (tree and not kept) else kept
    if isinstance(tree, list):
        kept = [each for e in tree if (each := without(e, names)) is not GONE]
        return GONE if tree and not kept else kept
    return GONE if isinstance(tree, str) and tree in names else tree


def test_a_wrong_key_of_a_shown_part_is_told(tmp_path):
    with pytest.raises(SpecError, match="stak"):
        check_spec({"projector": [{"type": "linear", "stak": 5}]})
    with pytest.raises(SpecError, match="batch_second"):
        check_run({"data": {"batch_second": 5}}, tmp_path)


def test_a_plugins_component_is_left_out_and_null_is_not():
    tree = {"encoders": {"mine": {}}, "llm": {"lora": None}, "projector": [{"type": "mine"}, "linear"], "losses": {}}
    assert without(tree, {"mine"}) == {"llm": {"lora": None}, "projector": ["linear"], "losses": {}}


def fault(words, *, whole):
    """What is wrong with a command line; None where nothing is."""
    at, path = COMMAND, []
    words = list(words)
    while hasattr(at, "commands"):
        if not words:
            return f"{' '.join(path)} needs a command" if whole else None
        if words[0].startswith("-"):
            return None if words[0] in ("-h", "--help") else f"no option {words[0]}"
        path.append(words.pop(0))
        if path[-1] not in at.commands:
            return f"no command {' '.join(path)}"
        at = at.commands[path[-1]]
    options = {name: each for each in at.params for name in (*each.opts, *each.secondary_opts) if name.startswith("-")}
    given = 0
    while words:
        word, equals, _ = words.pop(0).partition("=")
        if not word.startswith("-") or word == "-":
            given += 1
        elif word in ("-h", "--help"):
            return None
        elif word not in options:
            return f"{' '.join(path)} has no option {word}"
        elif not options[word].is_flag and not equals:
            if not words and whole:
                return f"{' '.join(path)} {word} needs a value"
            del words[:1]
    arguments = [each for each in at.params if not each.opts[0].startswith("-")]
    most = None if any(each.nargs == -1 for each in arguments) else len(arguments)
    if most is not None and given > most:
        return f"{' '.join(path)} takes {most} arguments, not {given}"
    if whole and given < sum(each.required for each in arguments):
        return f"{' '.join(path)} needs more than {given} arguments"
    return None


@pytest.mark.parametrize(
    ("place", "words"), written.commands(), ids=lambda each: each if isinstance(each, str) else None
)
def test_commands_in_blocks_can_be_given(place, words):
    assert fault(words, whole=True) is None


def test_commands_in_sentences_exist():
    assert [(place, wrong) for place, words in written.mentions() if (wrong := fault(words, whole=False))] == []


@pytest.mark.parametrize(
    ("words", "wrong"),
    [
        (["trian", "run.yaml"], "no command trian"),
        (["train"], "train needs more than 0 arguments"),
        (["train", "run.yaml", "--resumed"], "train has no option --resumed"),
        (["cache", "build", "run.yaml", "other"], "cache build takes 1 arguments, not 2"),
        (["data"], "data needs a command"),
        (["train", "run.yaml", "--set", "a=b", "--resume"], None),
    ],
)
def test_a_wrong_command_is_told(words, wrong):
    assert fault(words, whole=True) == wrong


def test_a_version_is_there_to_be_named():
    assert exists("usam.__version__")
    assert not exists("usam.build_modle")
    assert usam.__version__
