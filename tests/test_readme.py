"""What the README says is true: its examples run, and its tables are the generated ones."""

import re
import sys
import types
from importlib import metadata
from pathlib import Path

import readme
import soundfile
from conftest import noise

TEXT = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def example(heading):
    return re.search(rf"## {heading}\n.*?```python\n(.*?)```", TEXT, re.DOTALL)[1]


def test_the_python_example_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    soundfile.write("speech.wav", noise(1.0), 16000)
    code = example("In Python")
    assert len(code.strip().splitlines()) <= 12
    exec(code, {})
    assert "Transcribe this audio." in capsys.readouterr().out
    assert (tmp_path / "my-model" / "usam.yaml").is_file()


def test_the_notebook_component_runs_and_keeps_every_promise(monkeypatch):
    from usam import testing

    notebook = types.ModuleType("notebook")
    monkeypatch.setitem(sys.modules, "notebook", notebook)
    exec(example("Add one"), notebook.__dict__)
    assert sorted(notebook.model.config.parsed.encoders) == ["energy", "whisper"]
    testing.check_encoder("energy")


def test_generated_parts_are_up_to_date():
    assert readme.written(TEXT) == TEXT, "run `make readme`"


def test_a_package_index_shows_no_link_into_the_repository():
    text = metadata.metadata("usam").get_payload()  # the description, as the package was built
    assert text.startswith("# usam")
    assert re.findall(r"\]\((?!https?:|#)[^)]*\)", text) == []
    assert "docs/architecture.md" in text  # its name is still there to be read


def test_links_into_the_repository_lead_somewhere():
    root = Path(__file__).parents[1]
    links = re.findall(r"\]\((?!https?:|#)([^)]*)\)", TEXT)
    assert links
    assert [link for link in links if not (root / link).exists()] == []
