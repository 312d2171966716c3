"""`--plugin FILE.py` stands in every command that reads a spec or loads a model, and `plugins:` in run files."""

import json
import sys

import pytest
import soundfile
import typer
import yaml
from conftest import EAR, noise

from usam.cli import app
from usam.registry import ComponentError
from usam.spec.page import SpecError
from usam.training.run import read_run

# One looks at what is installed, one trains a bundled spec, two look at a folder, one makes sounds, one writes a
# package.
WITHOUT = {"doctor", "demo", "cache stat", "cache verify", "data world", "new"}


@pytest.fixture
def ear(tmp_path):
    """A file that offers the encoder `option_ear`, forgotten when the test ends."""
    from usam.encoders import registry

    before, path = dict(registry._registered), list(sys.path)
    file = tmp_path / "option_ear.py"
    file.write_text(EAR.format(name="option_ear"))
    yield file
    sys.modules.pop("option_ear", None)
    registry._registered.clear()
    registry._registered.update(before)
    registry.refresh()
    sys.path[:] = path


@pytest.fixture
def spec(tmp_path):
    tree = {"base": "tiny", "encoders": {"option_ear": {}, "whisper": None}, "llm": {"dim": 16, "heads": 2}}
    file = tmp_path / "spec.yaml"
    file.write_text(yaml.safe_dump(tree))
    return file


def commands(group, before=""):
    """Every command by its words."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, f"{before}{name} ")
        else:
            yield before + name, command


COMMANDS = dict(commands(typer.main.get_command(app)))


@pytest.mark.parametrize("name", sorted(COMMANDS.keys() - WITHOUT))
def test_a_command_takes_it(name):
    assert "--plugin" in [option for parameter in COMMANDS[name].params for option in parameter.opts]


def test_a_spec_of_a_file_can_be_checked_and_shown(usam, ear, spec):
    status, _, err = usam("check", spec)
    assert status == 2
    assert "no component 'option_ear'" in err
    assert usam("check", spec, "--plugin", ear)[0] == 0
    assert "option_ear" in usam("show", spec, "--plugin", ear)[1]


def test_a_component_of_a_file_is_listed_shown_and_in_the_schema(usam, ear):
    out = usam("list", "--plugin", ear)[1]
    assert any(line.split()[:2] == ["option_ear", "option_ear"] for line in out.splitlines())
    assert "Loudness in steps of 20 ms." in out
    assert "Loudness in steps of 20 ms." in usam("show", "option_ear", "--plugin", ear)[1]
    assert '"option_ear"' in usam("schema", "--plugin", ear)[1]


@pytest.mark.parametrize(("code", "says"), [("1 / 0\n", "line 1: ZeroDivisionError"), ("", "registers no component")])
def test_a_file_that_cannot_be_used_is_one_paragraph(usam, tmp_path, code, says):
    (tmp_path / "unusable.py").write_text(code)
    status, _, err = usam("list", "--plugin", tmp_path / "unusable.py")
    assert status == 2
    assert says in err
    assert "Traceback" not in err


def test_train_generate_and_export_with_a_file(usam, ear, spec, tmp_path):
    soundfile.write(tmp_path / "a.wav", noise(0.5), 16000)
    (tmp_path / "d.jsonl").write_text(json.dumps({"audio": "a.wav", "task": "asr", "answer": "seven"}) + "\n")
    train = {"output_dir": str(tmp_path / "out"), "max_steps": 1, "save_strategy": "no", "use_cpu": True}
    run = {"model": "spec.yaml", "plugins": ["option_ear.py"], "data": {"train": "d.jsonl"}, "train": train}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(run))
    status, _, err = usam("train", tmp_path / "run.yaml")
    assert status == 0, err
    assert yaml.safe_load((tmp_path / "out" / "run.yaml").read_text())["plugins"] == [str(ear)]
    for name in ("out", "merged"):
        status, out, err = usam("generate", tmp_path / name, tmp_path / "a.wav", "--max-new-tokens", 2, "--plugin", ear)
        assert status == 0, err
        assert "a.wav\t" in out
        if name == "out":
            assert usam("export", tmp_path / "out", tmp_path / "merged", "--plugin", ear)[0] == 0


@pytest.fixture
def run(tmp_path, spec):
    def run(plugins):
        (tmp_path / "d.jsonl").write_text("{}\n")
        tree = {"model": "spec.yaml", "plugins": plugins, "data": {"train": "d.jsonl"}, "train": {}}
        (tmp_path / "run.yaml").write_text(yaml.safe_dump(tree))
        return tmp_path / "run.yaml"

    return run


def test_a_run_finds_its_plugins_beside_it(run, ear):
    assert read_run(run("option_ear.py")).plugins == (str(ear),)


def test_a_run_keeps_what_was_given_beside_it(run, ear):
    from usam.registry.files import load_file

    load_file(ear)
    assert read_run(run([]), plugins=[ear]).plugins == (str(ear),)


def test_a_run_names_the_line_of_a_plugin_that_fails(run):
    with pytest.raises(ComponentError, match=r"run.yaml:\d+: plugins: plugin .*none.py: no such file"):
        read_run(run(["none.py"]))


@pytest.mark.parametrize("plugins", [3, {"a": 1}, [3]])
def test_a_run_says_what_plugins_are(run, plugins):
    with pytest.raises(SpecError, match=r"plugins: expected a list of \.py files"):
        read_run(run(plugins))
