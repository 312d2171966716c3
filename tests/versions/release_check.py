"""Is this tree ready to be released? `make release-check` prints what is wrong, and fails if anything is."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import zipfile
from collections.abc import Iterator
from email import message_from_string
from importlib.metadata import EntryPoint
from pathlib import Path, PurePosixPath

import yaml
from packaging.metadata import Metadata
from packaging.requirements import Requirement
from packaging.version import InvalidVersion, Version

ROOT = Path(__file__).parents[2]
JUNK = ("__pycache__", ".pyc", ".DS_Store", ".orig", ".swp", "~")
LARGEST = 20_000_000  # bytes of one file in a wheel
IN_SDIST = ("README.md", "LICENSE", "CHANGELOG.md", "SECURITY.md", "CITATION.cff", "Makefile", "constraints.txt")


def version_of(root: Path) -> str:
    """What usam calls itself.

    Raises:
        ValueError: it does not, or not by a version.
    """
    found = re.search(r'^__version__ = "(.*)"$', (root / "usam/__init__.py").read_text(encoding="utf-8"), re.M)
    if found is None:
        raise ValueError('usam/__init__.py: no line __version__ = "..."')
    try:
        Version(found[1])
    except InvalidVersion as error:
        raise ValueError(f"usam/__init__.py: {error}") from error
    return found[1]


def versions(root: Path) -> Iterator[str]:
    """Where the version is written otherwise, or not at all."""
    version = version_of(root)
    entries = re.findall(r"^## \[?([^\s\]]+)", (root / "CHANGELOG.md").read_text(encoding="utf-8"), re.M)
    if version not in entries:
        yield f"CHANGELOG.md: no entry '## {version}' but {', '.join(entries)}"
    cited = citation(root)
    if str(cited.get("version")) != version:
        yield f"CITATION.cff: version {cited.get('version')}, and usam/__init__.py says {version}"


def citation(root: Path) -> dict[str, object]:
    """The citation file as data."""
    return dict(yaml.safe_load((root / "CITATION.cff").read_text(encoding="utf-8")))


def plugins(root: Path) -> Iterator[str]:
    """What packages beside usam do not say of themselves, or of the usam that they need."""
    version = Version(version_of(root))
    for file in sorted(root.glob("plugins/*/pyproject.toml")):
        project = tomllib.loads(file.read_text(encoding="utf-8"))["project"]
        place = file.relative_to(root)
        needs = [need for need in map(Requirement, project["dependencies"]) if need.name == "usam"]
        floors = [spec for need in needs for spec in need.specifier if spec.operator == ">="]
        if not floors:
            yield f"{place}: dependencies: write usam>=VERSION, the lowest that it works with"
        elif not needs[0].specifier.contains(version, prereleases=True):
            yield f"{place}: dependencies: {needs[0]} does not take usam {version}"
        yield from (f"{place}: [project] has no '{key}'" for key in ("version", "description", "license", "readme")
                    if not project.get(key))  # fmt: skip


def metadata(text: str) -> Iterator[str]:
    """What a package index refuses of METADATA, or shows badly."""
    try:
        found = Metadata.from_email(text)
    except Exception as group:  # an ExceptionGroup of all faults
        yield from (f"METADATA: {error}" for error in getattr(group, "exceptions", [group]))
        return
    for key in ("summary", "description", "license_expression", "license_files", "requires_python", "keywords"):
        if not getattr(found, key):
            yield f"METADATA: no {key.replace('_', '-')}"
    if found.description_content_type != "text/markdown":
        yield f"METADATA: the description is {found.description_content_type}, not text/markdown"
    body = message_from_string(text).get_payload()
    links = re.findall(r"\]\((?!https?:|#|mailto:)([^)]+)\)", str(body))
    if links:
        yield f"METADATA: the description has links into the repository, which lead nowhere there: {', '.join(links)}"
    if "<picture>" in str(body):
        yield "METADATA: the description has pictures of the repository"


def contents(names: dict[str, int]) -> Iterator[str]:
    """What does not belong into a wheel, or is missing in it; `names` are its files with their sizes."""
    for name, size in names.items():
        parts = PurePosixPath(name).parts
        if parts[0] != "usam" and not parts[0].endswith(".dist-info"):
            yield f"wheel: {name} lies outside of usam/"
        if any(part.endswith(JUNK) for part in parts):
            yield f"wheel: {name} is nothing to install"
        if size > LARGEST:
            yield f"wheel: {name} has {size / 1e6:.0f} MB"
    wanted = {"usam/py.typed": "usam/py.typed", "a licence": ".dist-info/licenses/LICENSE"}
    yield from (f"wheel: without {what}" for what, end in wanted.items() if not any(n.endswith(end) for n in names))


def entry_points(text: str) -> Iterator[str]:
    """Entry points that cannot be loaded."""
    group = ""
    for line in filter(None, map(str.strip, text.splitlines())):
        if line.startswith("["):
            group = line.strip("[]")
            continue
        name, _, value = line.partition(" = ")
        point = EntryPoint(name, value, group)
        try:
            target = importlib.import_module(point.module)
            for part in filter(None, point.attr.split(".") if point.attr else []):
                target = getattr(target, part)
        except (ImportError, AttributeError) as error:
            yield f"entry point {group}: {line}: {error}"


def built(root: Path, folder: Path) -> Iterator[str]:
    """Faults of the sdist and the wheel, which are built into a folder."""
    run = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "--directory", str(folder)],
        cwd=root, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if run.returncode:
        yield f"hatchling build fails: {run.stderr.strip()}"
        return
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        sizes = {info.filename: info.file_size for info in wheel.infolist()}
        yield from contents(sizes)
        for name in sizes:
            if name.endswith(".dist-info/METADATA"):
                yield from metadata(wheel.read(name).decode())
            if name.endswith(".dist-info/entry_points.txt"):
                yield from entry_points(wheel.read(name).decode())
    with tarfile.open(next(folder.glob("*.tar.gz"))) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    yield from (f"sdist: without {name}" for name in IN_SDIST if name not in names)
    yield from (f"sdist: {name} is nothing to publish" for name in names if name.endswith(JUNK))


def faults(root: Path = ROOT) -> Iterator[str]:
    """All that is wrong."""
    yield from versions(root)
    yield from plugins(root)
    with tempfile.TemporaryDirectory() as folder:
        yield from built(root, Path(folder))


if __name__ == "__main__":
    found = list(faults())
    print(*[f"wrong: {fault}" for fault in found] or [f"usam {version_of(ROOT)} is ready to be released"], sep="\n")
    sys.exit(bool(found))
