"""Imports run one way, and importing usam costs nothing."""

import ast
import graphlib
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path

import pytest

import usam

ROOT = Path(usam.__file__).parent
FAMILIES = ("encoders", "fusions", "projectors", "losses", "llm")

# A module imports from its own row and from the rows above it.
ORDER = [
    ["usam.auto"],
    ["usam.__init__"],
    ["usam.types", "usam.registry", "usam.clock", "usam.audio", "usam.page", "usam.versions", "usam.compat"],
    ["usam.patch"],
    ["usam.spec"],
    ["usam.component", "usam.weights", "usam.kernels*"],
    ["usam.cross_attention"],
    [f"usam.{family}" for family in FAMILIES],
    [f"usam.{family}.*" for family in FAMILIES],
    ["usam.config", "usam.splice", "usam.feature_extractor"],
    ["usam.chat"],
    ["usam.model"],
    ["usam.hf", "usam.processor"],
    ["usam.*"],  # generate, data, train, evaluate, and whatever else uses whole models
    ["usam.cli"],
    ["usam.__main__"],
]


def row(module: str) -> int:
    exact = [i for i, names in enumerate(ORDER) if module in names]
    return (exact or [i for i, names in enumerate(ORDER) if any(fnmatchcase(module, name) for name in names)])[0]


@cache
def modules() -> dict[str, Path]:
    """Files by module name; a package is named without its `__init__`, except for usam itself."""
    files = {}
    for file in sorted(ROOT.rglob("*.py")):
        parts = file.relative_to(ROOT.parent).with_suffix("").parts
        files[".".join(parts[:-1] if len(parts) > 2 and parts[-1] == "__init__" else parts)] = file
    return files


def statements(body: list[ast.stmt]) -> Iterator[ast.Import | ast.ImportFrom]:
    """The imports that run when the module is imported: not those in functions or under TYPE_CHECKING."""
    for node in body:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            yield node
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield from statements(node.orelse)
        else:
            for part in ("body", "orelse", "finalbody"):
                yield from statements(getattr(node, part, []))
            for handler in getattr(node, "handlers", []):
                yield from statements(handler.body)


def imported(file: Path, known: dict[str, Path]) -> set[str]:
    """Modules of usam that a file imports."""
    names = set()
    for node in statements(ast.parse(file.read_text(encoding="utf-8")).body):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        else:
            assert node.level == 0, f"{file}:{node.lineno}: write 'from usam...', not a relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {str(node.module)}
    return names & known.keys()


@pytest.mark.parametrize("module", modules())
def test_imports_run_one_way(module):
    upward = {name for name in imported(modules()[module], modules()) if row(name) > row(module)}
    assert not upward, f"{module} imports {sorted(upward)}, which stands above it"


def test_no_imports_run_in_a_circle():
    graph = {module: imported(file, modules()) - {module} for module, file in modules().items()}
    list(graphlib.TopologicalSorter(graph).static_order())


def test_audio_imports_nothing_of_usam():
    assert imported(ROOT / "audio.py", modules()) == set()


def test_no_component_imports_another_family():
    for module, file in modules().items():
        family = module.split(".")[1]
        if family in FAMILIES:
            other = {f"usam.{name}" for name in FAMILIES} - {f"usam.{family}"}
            assert not {name for name in imported(file, modules()) if ".".join(name.split(".")[:2]) in other}, module


@pytest.mark.parametrize("statement", ["import usam", "from usam import ComponentError", "import usam.registry"])
def test_importing_usam_imports_neither_torch_nor_transformers(statement):
    code = f"{statement}; import sys; print([name for name in ('torch', 'transformers') if name in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT.parent)
    assert run.stdout.strip() == "[]"


def test_every_public_name_has_its_home():
    homes = {home for home in usam._HOME.values() if home in modules()}
    for name, home in usam._HOME.items():
        if home in homes:
            assert getattr(usam, name).__name__ == name
