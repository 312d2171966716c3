"""What the README and its neighbours say is true: examples run, tables and pictures are the generated ones."""

import re
import sys
import types
from importlib import metadata
from pathlib import Path

import pytest
import readme
import yaml
from test_imports import ORDER, modules, room

import usam
from usam import load_spec

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", *(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md"))]

sys.path.insert(0, str(ROOT / "docs"))

import draw_concepts  # noqa: E402
import draw_house  # noqa: E402
import draw_model  # noqa: E402


def example(heading):
    return re.search(rf"## {heading}\n.*?```python\n(.*?)```", TEXT, re.DOTALL)[1]


def description():
    """The README as a package index shows it: of this tree, or of the wheel that is tested."""
    if not (ROOT / "usam").is_dir():
        return metadata.metadata("usam").get_payload()
    from hatchling.metadata.core import ProjectMetadata
    from hatchling.plugin.manager import PluginManager

    return ProjectMetadata(str(ROOT), PluginManager()).core.readme


def test_the_readme_is_short():
    assert len(TEXT.splitlines()) <= 140


def test_the_python_example_prints_what_the_readme_says(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code = example("In Python")
    assert len(code.strip().splitlines()) <= 19
    exec(code, {})
    assert f"# {capsys.readouterr().out.strip()}\n" in code
    assert (tmp_path / "my-model" / "usam.yaml").is_file()


def test_the_spec_is_sound_and_its_llm_can_be_patched():
    mine = re.search(r"## A spec\n```yaml\n(.*?)```", TEXT, re.DOTALL)[1]
    assert load_spec(load_spec(yaml.safe_load(mine)), {"llm": {"lora": None}}).llm.lora is None


def test_the_notebook_component_runs_and_keeps_every_promise(monkeypatch):
    from usam import testing

    notebook = types.ModuleType("notebook")
    monkeypatch.setitem(sys.modules, "notebook", notebook)
    exec(example("Write a plugin"), notebook.__dict__)
    assert sorted(notebook.model.config.parsed.encoders) == ["energy", "whisper"]
    testing.check_encoder("energy")


@pytest.mark.parametrize("file", readme.FILES, ids=lambda file: file.name)
def test_what_is_generated_is_up_to_date(file):
    text = file.read_text(encoding="utf-8")
    assert readme.FILES[file](text) == text, "run `make readme`"


def test_a_result_names_its_own_device(monkeypatch):
    row = {"what": "a product", "measured": "2.0", "bound": "none"}
    result = {"script": "gpu.py", "device": "a GPU", "versions": {"torch": "2"}, "rows": [row]}
    monkeypatch.setattr(readme, "results", lambda: {"gpu.py": result})
    assert "\n\nOn a GPU; torch 2.\n" in readme.benchmarks()


@pytest.mark.parametrize("picture", [draw_model, draw_house, draw_concepts])
def test_pictures_are_up_to_date(picture):
    for file, text in picture.FILES.items():
        assert file.read_text(encoding="utf-8") == text, "run `make readme`"


def test_the_house_has_every_room_on_its_floor():
    """A floor stands above another as the order of imports has it."""
    rooms = [f"usam.{name.removesuffix('/')}" for _, floor in draw_house.FLOORS for name in floor]
    assert {*rooms, "usam.__init__"} == {room(module) for module in modules()}
    lowest = [min(i for i, names in enumerate(ORDER) if r in map(room, names)) for r in rooms]
    assert lowest == sorted(lowest)


def test_a_package_index_shows_no_link_into_the_repository_and_no_picture():
    text = description()
    assert text.startswith("# usam")
    assert re.findall(r"\]\((?!https?:|#)[^)]*\)", text) == []
    assert "docs/benchmarks.md" in text  # its name is still there to be read
    assert "<picture>" not in text
    assert ".svg" not in text


def missing(paths):
    """Which of them are not there; the package itself may stand elsewhere, as where a wheel is tested."""
    roots = [ROOT, Path(usam.__file__).parents[1]]
    return [path for path in paths if not any((root / path).exists() for root in roots)]


@pytest.mark.parametrize("page", PAGES)
def test_paths_that_are_named_exist(page):
    paths = r"`((?:usam|benchmarks|docs|examples|plugins|tests)/[\w./-]*)`"
    assert missing(re.findall(paths, (ROOT / page).read_text(encoding="utf-8"))) == []
