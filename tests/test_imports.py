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

# A room imports from its own row and from the rows above it; what stands in no row is an error.
ORDER = [
    ["usam.versions", "usam.versions.auto", "usam.versions.tested"],
    ["usam.__init__"],
    ["usam.types", "usam.registry", "usam.registry.*", "usam.clock", "usam.saving", "usam.versions.compat"],
    ["usam.spec.spec", "usam.spec.*"],
    ["usam.component", "usam.parts", "usam.weights", "usam.kernels", "usam.kernels.*"],
    [f"usam.{family}" for family in FAMILIES],
    [f"usam.{family}.*" for family in FAMILIES],
    ["usam.config", "usam.providers"],
    ["usam.processor.processor", "usam.processor.*"],
    ["usam.readers", "usam.augmentations", "usam.metrics"],
    ["usam.readers.*", "usam.augmentations.*", "usam.metrics.*"],
    ["usam.suites"],
    ["usam.suites.*"],
    ["usam.model", "usam.model.*"],
    ["usam.data", "usam.data.*"],
    ["usam.generate"],
    ["usam.generate.*"],
    ["usam.training", "usam.training.*"],
    ["usam.evaluation", "usam.evaluation.*", "usam.serving", "usam.serving.*"],
    ["usam.report", "usam.report.*"],
    ["usam.demo", "usam.demo.*"],
    ["usam.harnesses", "usam.harnesses.*"],
    ["usam.testing", "usam.testing.*"],
    ["usam.pytest"],
    ["usam.cli", "usam.cli.*"],
]


def row(module: str) -> int:
    exact = [i for i, names in enumerate(ORDER) if module in names]
    return (exact or [i for i, names in enumerate(ORDER) if any(fnmatchcase(module, name) for name in names)])[0]


def room(module: str) -> str:
    """`usam.model` for `usam.model.splice`; the ground floor's files, and a family's, are one room each."""
    return ".".join(module.split(".")[:2])


@cache
def modules() -> dict[str, Path]:
    """Files by module name; a package is named without its `__init__`, except for usam itself."""
    files = {}
    for file in sorted(ROOT.rglob("*.py")):
        parts = file.relative_to(ROOT.parent).with_suffix("").parts
        files[".".join(parts[:-1] if len(parts) > 2 and parts[-1] == "__init__" else parts)] = file
    return files


def statements(node: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    """Every import of a file, those in functions too, but for those that only name types."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.Import, ast.ImportFrom)):
            yield child
        elif not (isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)):
            yield from statements(child)


def imported(file: Path, known: dict[str, Path]) -> set[str]:
    """Modules of usam that a file imports."""
    names = set()
    for node in statements(ast.parse(file.read_text(encoding="utf-8"))):
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


def test_no_two_rooms_import_each_other():
    graph = {room(module): set() for module in modules()}
    for module, file in modules().items():
        graph[room(module)] |= {room(name) for name in imported(file, modules())} - {room(module)}
    list(graphlib.TopologicalSorter(graph).static_order())


def test_audio_imports_nothing_else_of_usam():
    own = {name: file for name, file in modules().items() if name.startswith("usam.processor.containers")}
    assert imported(ROOT / "processor" / "audio.py", modules()) == {"usam.processor.containers"}
    assert all(imported(file, modules()) <= own.keys() for file in own.values())


def test_few_files_stand_loose():
    assert len(list(ROOT.glob("*.py"))) <= 9


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
