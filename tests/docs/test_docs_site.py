"""The site has every page, its reference says all that the code offers, and it builds without a warning."""

import dataclasses
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer
import written

import usam
from usam.cli import app
from usam.registry import GROUPS
from usam.spec.options import options
from usam.spec.schema import json_schema
from usam.spec.spec import SPECS
from usam.training.checks import CACHE, DATA
from usam.training.held_out import Evaluation
from usam.training.presets import PRESETS
from usam.training.run import PARTS, Run

sys.path.insert(0, str(written.ROOT / "docs"))

import make_site
import reference

FOREIGN = re.compile(
    r'<(?:script|link|img|source|iframe|audio|video)\b[^>]*\b(?:src|href|srcset)="?(?:https?:)?//[^>]*>'
)


@pytest.fixture(scope="module")
def gathered():
    return make_site.gather()


def section(page, name):
    """What stands below a heading with this anchor, up to the next of its level."""
    found = re.search(rf"^## [^\n]*{{ #{re.escape(name)} }}\n(.*?)(?=^## |\Z)", page, re.DOTALL | re.MULTILINE)
    return found[1] if found else ""


def test_the_navigation_names_every_page_once(gathered):
    assert make_site.faults({path for path in gathered if path.endswith(".md")}) == []


def test_a_page_that_is_not_in_the_navigation_is_an_error():
    named = set(make_site.navigation())
    found = make_site.faults((named | {"new.md"}) - {"zoo.md"})
    assert found == [
        "new.md: mkdocs.yml does not name it in nav",
        "zoo.md: mkdocs.yml names it in nav, and there is no such page",
    ]


def test_pictures_of_two_palettes_follow_the_palette(gathered):
    page = gathered["architecture.md"]
    assert "<picture>" not in page
    assert "(model-light.svg#only-light)" in page
    assert "(model-dark.svg#only-dark)" in page


def test_links_out_of_the_docs_lead_to_pages(gathered):
    assert "(plugins/usam-clap.md)" in gathered["plugins.md"]
    assert "(reference/projectors.md#moe)" in gathered["kernels.md"]
    assert "(reference/index.md)" in gathered["index.md"]
    assert "(contributing.md)" in gathered["index.md"]
    assert "(formats.md)" in gathered["changelog.md"]


def test_a_link_to_a_file_that_is_no_page_becomes_its_text(gathered):
    assert "[`usam.kernels.choice`]" not in gathered["kernels.md"]
    assert not re.search(r"\]\((?![a-z]+:)[^)]*\.py\)", "".join(t for t in gathered.values() if isinstance(t, str)))


@pytest.mark.parametrize("group", GROUPS)
def test_every_component_has_its_options_and_says_what_it_is(group, gathered):
    family = group.rpartition(".")[2]
    page = gathered[f"reference/{family}.md"]
    for name, cls in reference.built_in(group):
        here = section(page, name)
        assert f"`{cls.__module__}.{cls.__qualname__}`" in here
        assert len(here.splitlines()) > 4, f"{group}:{name} says nothing"
        shared = (
            {o.name for o in options(importlib.import_module(group).registry.base.Config)}
            if hasattr(cls, "Config")
            else ()
        )
        for option in options(cls.Config) if hasattr(cls, "Config") else ():
            if option.name.partition(".")[0] not in shared:
                assert f"| `{option.name}` |" in here
                assert option.description, f"{group}:{name}.{option.name} has no docstring"


@pytest.mark.parametrize("group", GROUPS[:4])  # a language model is a builder
def test_a_family_of_models_gives_shapes(group, gathered):
    page = gathered[f"reference/{group.rpartition('.')[2]}.md"]
    contract = page.partition("## The contract")[2].partition("## Options of all")[0]
    assert re.search(r"\(\w+, [\w.() ]+[,)]", contract) or "LossInputs" in contract


def test_every_public_name_is_explained(gathered):
    page = gathered["reference/python.md"]
    for name in usam.__all__:
        here = section(page, name.strip("_").lower())
        assert len(here.strip()) > 30, name
        assert getattr(getattr(usam, name), "__doc__", None), name


def test_every_command_has_every_option(gathered):
    page = gathered["reference/command.md"]
    for path, each in reference.commands(typer.main.get_command(app), ("usam",)):
        here = page.partition(f"## {' '.join(path)}\n")[2].partition("\n## ")[0]
        for parameter in each.params:
            if parameter.name != "help":
                assert parameter.help, f"{path} {parameter.name} has no help"
                assert (
                    reference.argument_name(parameter) if reference.is_argument(parameter) else parameter.opts[0]
                ) in here


def test_every_key_of_a_spec_and_of_a_run_file_is_there(gathered):
    spec, run = gathered["reference/spec.md"], gathered["reference/run.md"]
    for key, value in json_schema()["properties"].items():
        assert f"| `{key}` |" in spec
        assert value.get("description"), f"the key {key} has no meaning in the schema"
    said = reference.field_docstrings(Run)
    assert [key for key in DATA if f"`{key}`" not in said["data"]] == []
    keys = [
        *(f"data.{key}" for key in DATA),
        *(f"data.cache.{key}" for key in CACHE),
        *(f"eval.{key}" for key in Evaluation.model_fields),
    ]
    assert [key for key in (*keys, *PRESETS) if f"| `{key}` |" not in run] == []
    assert [part for part in PARTS if f"`{part}`" not in run] == []


def test_every_bundled_spec_is_shown(gathered):
    page = gathered["reference/specs.md"]
    for file in SPECS.rglob("*.yaml"):
        assert "```yaml" in section(page, file.stem)


def test_fields_of_a_class_are_told_by_strings_and_comments():
    @dataclasses.dataclass
    class Shape:
        wide: int  # in pixels
        high: int
        """In lines."""

    assert reference.field_docstrings(Shape) == {"wide": "in pixels", "high": "In lines."}


def test_prose_is_shown_as_it_is_written():
    assert reference.prose("a * b, `x*y`, _a_, <i> and {z}") == r"a \* b, `x*y`, \_a\_, &lt;i> and \{z\}"


def test_arguments_and_errors_become_lists():
    def measured(_):
        """What it is.

        Args:
            x: (batch, time),
                padded.

        Raises:
            ValueError: no time.
        """

    assert reference.docstring(measured) == (
        "What it is.\n\n**Args**\n\n- `x`: (batch, time),\n  padded.\n\n**Raises**\n\n- `ValueError`: no time."
    )


@pytest.mark.slow
@pytest.mark.parametrize("builder", make_site.BUILDERS)
def test_the_site_builds_without_a_warning_and_asks_no_other_host(builder, tmp_path):
    if importlib.util.find_spec(builder) is None:
        pytest.skip(f"{builder} is not installed: pip install '.[docs]'")
    asked = [sys.executable, str(written.ROOT / "docs" / "make_site.py"), "--with", builder, "--into", str(tmp_path)]
    done = subprocess.run(asked, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WARNING" not in done.stdout + done.stderr
    built = sorted((tmp_path / "site").rglob("*.html"))
    assert {page.parent.name for page in built} >= {"concepts", "zoo", "encoders", "usam-clap"}
    assert [match for page in built for match in FOREIGN.findall(page.read_text(encoding="utf-8"))] == []
    styles = "".join(file.read_text(encoding="utf-8") for file in (tmp_path / "site").rglob("*.css"))
    assert re.findall(r"(?:url\(|@import )[\"']?(?:https?:)?//[^)]*", styles) == []
    assert missing_pictures(tmp_path / "site", built) == []


def missing_pictures(site: Path, built):
    """Pictures of the pages that are no files of the site: zensical looks for links only."""
    return [
        f"{page.relative_to(site)}: {source}"
        for page in built
        if page.name != "404.html"
        for source in re.findall(r'<img[^>]* src="?([^"# >]+)', page.read_text(encoding="utf-8"))
        if not source.startswith("data:") and not (page.parent / source).is_file()
    ]
