"""What keeps a tree from being released is found, each by itself."""

import re
from pathlib import Path

import pytest
import release_check
import yaml

import usam

ROOT = Path(__file__).parents[2]
METADATA = """Metadata-Version: 2.4
Name: usam
Version: 0.1.0
Summary: One line.
License-Expression: Apache-2.0
License-File: LICENSE
Keywords: audio
Requires-Python: >=3.11
Description-Content-Type: text/markdown

# usam
"""
WHEEL = {"usam/__init__.py": 1, "usam/py.typed": 0, "usam-0.1.0.dist-info/licenses/LICENSE": 1}


@pytest.fixture
def tree(tmp_path):
    """A tree that is ready, as far as its texts go."""
    (tmp_path / "usam").mkdir()
    (tmp_path / "usam/__init__.py").write_text('__version__ = "1.2.0"\n')
    (tmp_path / "CHANGELOG.md").write_text("# Changelog\n\n## 1.2.0\n- All.\n\n## 1.1.0\n")
    (tmp_path / "CITATION.cff").write_text("version: 1.2.0\n")
    folder = tmp_path / "plugins/usam-birds"
    folder.mkdir(parents=True)
    (folder / "pyproject.toml").write_text(
        '[project]\nname = "usam-birds"\nversion = "0.1"\ndescription = "Birds."\nlicense = "MIT"\n'
        'readme = "README.md"\ndependencies = ["usam>=1.1"]\n'
    )
    return tmp_path


def test_a_tree_that_is_ready(tree):
    assert [*release_check.versions(tree), *release_check.plugins(tree)] == []


@pytest.mark.parametrize(
    ("file", "old", "new", "fault"),
    [
        ("CHANGELOG.md", "## 1.2.0", "## Unreleased", "CHANGELOG.md: no entry '## 1.2.0' but Unreleased, 1.1.0"),
        ("CITATION.cff", "1.2.0", "1.1.0", "CITATION.cff: version 1.1.0, and usam/__init__.py says 1.2.0"),
        ("plugins/usam-birds/pyproject.toml", "usam>=1.1", "usam", "write usam>=VERSION"),
        ("plugins/usam-birds/pyproject.toml", "usam>=1.1", "usam>=2", "usam>=2 does not take usam 1.2.0"),
        ("plugins/usam-birds/pyproject.toml", 'license = "MIT"\n', "", "has no 'license'"),
    ],
)
def test_what_does_not_agree_is_named(file, old, new, fault, tree):
    place = tree / file
    place.write_text(place.read_text().replace(old, new))
    (found,) = [*release_check.versions(tree), *release_check.plugins(tree)]
    assert fault in found


@pytest.mark.parametrize("line", ['__version__ = "one"', "version = 3"])
def test_a_version_that_is_none_is_refused(line, tree):
    (tree / "usam/__init__.py").write_text(f"{line}\n")
    with pytest.raises(ValueError, match=r"usam/__init__\.py: "):
        release_check.version_of(tree)


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("", "", None),
        ("Summary: One line.\n", "", "no summary"),
        ("License-Expression: Apache-2.0\n", "", "no license-expression"),
        ("text/markdown", "text/plain", "the description is text/plain"),
        ("Version: 0.1.0", "Version: one", "version"),
        ("# usam\n", "[a page](docs/a.md)\n", "which lead nowhere there: docs/a.md"),
        ("# usam\n", "<picture>\n", "pictures of the repository"),
    ],
)
def test_metadata_is_what_an_index_takes(old, new, fault):
    found = " ".join(release_check.metadata(METADATA.replace(old, new, 1)))
    assert found == "" if fault is None else fault in found


@pytest.mark.parametrize(
    ("more", "fault"),
    [
        ({}, None),
        ({"tests/test_a.py": 1}, "tests/test_a.py lies outside of usam/"),
        ({"usam/__pycache__/a.pyc": 1}, "usam/__pycache__/a.pyc is nothing to install"),
        ({"usam/specs/weights/big.safetensors": 30_000_000}, "big.safetensors has 30 MB"),
    ],
)
def test_a_wheel_holds_usam_and_nothing_else(more, fault):
    found = " ".join(release_check.contents({**WHEEL, **more}))
    assert found == "" if fault is None else fault in found


def test_a_wheel_without_a_licence_is_told():
    assert list(release_check.contents({"usam/py.typed": 0})) == ["wheel: without a licence"]


def test_entry_points_are_loaded():
    text = "[console_scripts]\nusam = usam.cli:main\ngone = usam.cli:gone\n\n[pytest11]\nusam = usam.nowhere\n"
    first, second = release_check.entry_points(text)
    assert "console_scripts: gone = usam.cli:gone: module 'usam.cli' has no attribute 'gone'" in first
    assert "pytest11: usam = usam.nowhere: No module named" in second


def test_the_citation_has_this_version_and_what_the_format_asks_for():
    cited = release_check.citation(ROOT)
    assert cited["version"] == usam.__version__
    assert {"cff-version", "message", "title", "authors", "license", "type"} <= set(cited)
    assert all({"family-names", "name"} & set(author) for author in cited["authors"])


def test_the_plugins_of_this_repository_are_ready():
    assert list(release_check.plugins(ROOT)) == []


@pytest.mark.slow
def test_what_is_built_of_this_tree_is_ready(tmp_path):
    if not (ROOT / "usam").is_dir():
        pytest.skip("built from the source tree, which is not here")
    assert list(release_check.built(ROOT, tmp_path)) == []


def test_every_claim_of_the_page_on_security_names_a_test_that_there_is():
    page = (ROOT / "docs/security.md").read_text(encoding="utf-8")
    named = re.findall(r"`(tests/[\w/]+\.py|plugins/[\w/-]+\.py)::(\w+)`", page)
    rows = [line for line in page.splitlines() if line.startswith("| ") and not line.startswith("| what")]
    assert len(rows) > 10
    assert all("::" in row for row in rows)
    for file, name in named:
        assert f"def {name}(" in (ROOT / file).read_text(encoding="utf-8"), f"{file}::{name}"


def test_yaml_makes_no_objects(tmp_path):
    (tmp_path / "spec.yaml").write_text(f"usam: !!python/object/apply:os.mkdir [{tmp_path}/made]\n")
    with pytest.raises(usam.SpecError, match=r"spec\.yaml:1"):
        usam.load_spec(tmp_path / "spec.yaml")
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("file", sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml")), ids=lambda file: file.stem)
def test_an_issue_template_asks_for_what_is_needed(file):
    form = yaml.safe_load(file.read_text(encoding="utf-8"))
    if file.stem == "config":
        return
    asked = {"bug": "usam doctor", "component": "pytest --usam", "question": "usam doctor"}[file.stem]
    assert {"name", "description", "body"} <= set(form)
    assert asked in file.read_text(encoding="utf-8")
    assert all(field["type"] == "markdown" or field["id"] for field in form["body"])
