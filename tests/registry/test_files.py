"""A component in a file of one's own: imported by `--plugin`, named by what is saved, asked for when it is missing."""

import hashlib
import importlib
import os
import subprocess
import sys
from types import ModuleType

import pytest
from conftest import EAR

from usam import ComponentError, UsamModel, UsamProcessor, build_model, load_spec
from usam.config import UsamConfig
from usam.providers import providers
from usam.registry import GROUPS
from usam.registry.files import load_file, written_in

# A language model with a config of its own, which transformers does not know until the file is imported.
WORDS = '''
from transformers import AutoConfig, AutoModel, LlamaConfig, LlamaModel
from usam.llm import register
from usam.llm.tiny import Tiny

class WordsConfig(LlamaConfig):
    model_type = "{model_type}"

class WordsModel(LlamaModel):
    config_class = WordsConfig

{registering}

@register("{name}")
class Words(Tiny):
    """A Llama under another name."""

    def text_config(self):
        return WordsConfig(**super().text_config().to_diff_dict())

    def backbone(self, text_config):
        return WordsModel(text_config)
'''
REGISTERING = "AutoConfig.register('{model_type}', WordsConfig)\nAutoModel.register(WordsConfig, WordsModel)"
SMALL = ["llm.heads=2", "encoders.whisper=null"]


@pytest.fixture
def forget():
    """Forgets what was registered and imported since the test began, and looks into other folders; also at its end."""
    registries = [importlib.import_module(group).registry for group in GROUPS]
    kept = [dict(registry._registered) for registry in registries]
    path = list(sys.path)

    def forget(*folders):
        for name in [name for name in sys.modules if name.startswith(NAMES)]:
            del sys.modules[name]
        sys.path[:] = [*map(str, folders), *path]
        for registry, before in zip(registries, kept, strict=True):
            registry._registered.clear()
            registry._registered.update(before)
            registry.refresh()

    yield forget
    forget()


NAMES = ("ear_", "words_", "silent_", "broken_", "exits_", "one_package", "two_package")


@pytest.fixture
def write(tmp_path, forget):
    """Writes a file of components."""

    def write(name, text, **values):
        file = tmp_path / name
        file.write_text(text.format(name=file.stem, **values) if values or text is EAR else text)
        return file

    return write


def fails(file):
    with pytest.raises(ComponentError) as caught:
        load_file(file)
    return str(caught.value)


def test_a_file_offers_what_it_registers(write):
    load_file(write("ear_a.py", EAR))
    assert load_spec("tiny", {"encoders": {"ear_a": {}}}).encoders["ear_a"].component.__module__ == "ear_a"


def test_a_file_is_imported_once(write):
    file = write("ear_b.py", EAR)
    load_file(file)
    first = sys.modules["ear_b"]
    load_file(str(file))
    assert sys.modules["ear_b"] is first


def test_a_file_may_import_its_neighbours(write, tmp_path):
    (tmp_path / "ear_c_beside.py").write_text(EAR.format(name="ear_c"))
    load_file(write("ear_c.py", "import ear_c_beside\n"))
    assert load_spec("tiny", {"encoders": {"ear_c": {}}})


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("silent_a.py", "x = 1\n", "silent_a.py: it registers no component: write @register('name') above its class"),
        ("broken_a.py", "x = 1\n\n1 / 0\n", "broken_a.py, line 3: ZeroDivisionError: division by zero"),
        ("broken_b.py", "def f(:\n", "broken_b.py: SyntaxError: invalid syntax (broken_b.py, line 1)"),
        ("exits_a.py", "import sys\nsys.exit('no licence')\n", "exits_a.py, line 2: SystemExit: no licence"),
        ("my-parts.py", "", "my-parts.py: it is imported as a module: name it with letters, digits and '_'"),
        ("json.py", "", "there is another module 'json'"),
        ("parts.txt", "", "parts.txt: give one .py file"),
    ],
)
def test_a_file_that_offers_nothing_says_why(write, name, text, message):
    assert message in fails(write(name, text))


def test_a_file_that_is_not_there(tmp_path):
    assert f"plugin {tmp_path}/none.py: no such file (looked in {tmp_path})" in fails(tmp_path / "none.py")
    assert "give one .py file" in fails(tmp_path)


# What is saved


@pytest.fixture
def saved(forget, tmp_path):
    """Saves a model with an encoder of a file, and forgets the file."""

    def save(file):
        load_file(file)
        provenance = save_with(file.stem, tmp_path / "m")
        forget()
        return provenance, tmp_path / "m"

    return save


def save_with(encoder, folder):
    model = build_model("tiny", {"encoders": {encoder: {}}}, *SMALL)
    model.save_pretrained(folder)
    UsamProcessor.from_spec(model.config.parsed).save_pretrained(folder)
    return model.config.provenance


def cannot_load(folder):
    with pytest.raises(ComponentError) as caught:
        UsamModel.from_pretrained(folder)
    return str(caught.value)


def python(code, *path):
    """Runs code in a fresh process; returns what it printed, or its error."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [*map(str, path), os.environ.get("PYTHONPATH")]))}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=env)
    return (done.stdout if done.returncode == 0 else done.stderr).strip()


def test_a_saved_model_names_the_file_and_its_hash(write, saved):
    file = write("ear_d.py", EAR)
    provenance, folder = saved(file)
    assert provenance["components"]["usam.encoders:ear_d"] == "ear_d"
    assert provenance["plugins"] == {
        "usam.encoders:ear_d": {
            "module": "ear_d",
            "class": "Ear",
            "file": "ear_d.py",
            "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        }
    }
    assert not list(folder.glob("*.py"))  # never copied in silence


def test_a_model_of_packages_alone_names_no_file():
    assert providers(load_spec("tiny")).keys() == {"components"}


def test_a_model_whose_file_is_not_imported_asks_for_it(write, saved):
    said = cannot_load(saved(write("ear_e.py", EAR))[1])
    assert "no component 'ear_e'" in said
    assert (
        "'ear_e' is the class Ear of ear_e.py, which is not saved with the model: pass --plugin ear_e.py, "
        "or import ear_e before loading" in said
    )


def test_a_model_loads_again_with_its_file(write, saved):
    file = write("ear_f.py", EAR)
    _, folder = saved(file)
    load_file(file)
    assert UsamModel.from_pretrained(folder).encoders["ear_f"].dim == 1


@pytest.fixture
def as_main(forget, tmp_path, monkeypatch):
    """Runs the encoder `mine` as `python FILE` does, or as a notebook does; saves a model of it, and forgets it."""

    def run(file=None):
        main = ModuleType("__main__")
        if file is not None:
            (tmp_path / file).write_text(EAR.format(name="mine"))
            main.__file__ = str(tmp_path / file)
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, "__main__", main)
            exec(EAR.format(name="mine"), vars(main))
            save_with("mine", tmp_path / "m")
        forget()
        return tmp_path / "m"

    return run


def test_a_model_of_a_script_names_its_class_and_its_file(as_main):
    said = cannot_load(as_main("ear_script.py"))
    assert "'mine' is the class Ear of ear_script.py" in said
    assert "pass --plugin ear_script.py, or run it before loading" in said


def test_a_model_of_a_notebook_says_to_put_its_class_in_a_file(as_main):
    said = cannot_load(as_main())
    assert "'mine' is the class Ear of a notebook: put it in a file and pass --plugin FILE.py" in said


def test_a_model_of_a_notebook_loads_with_the_same_class_in_a_file(as_main, tmp_path):
    folder = as_main()
    (tmp_path / "ear_kept.py").write_text(EAR.format(name="mine"))
    load_file(tmp_path / "ear_kept.py")
    assert UsamModel.from_pretrained(folder).encoders["mine"].__module__ == "ear_kept"


def test_a_part_that_is_taken_out_of_a_saved_model_is_not_asked_for(write, saved):
    _, folder = saved(write("ear_h.py", EAR))
    whisper = {"arch": {"d_model": 16, "encoder_layers": 1, "encoder_attention_heads": 1, "encoder_ffn_dim": 16}}
    config = UsamConfig.from_pretrained(folder)
    tree = {**config.spec, "encoders": {"whisper": {"type": "whisper", **whisper}}}
    assert list(UsamConfig(**{**config.to_dict(), "spec": tree}).parsed.encoders) == ["whisper"]


def test_a_file_that_has_changed_is_told(write, saved):
    file = write("ear_g.py", EAR)
    _, folder = saved(file)
    file.write_text(file.read_text() + "\n# otherwise\n")
    load_file(file)
    with pytest.warns(UserWarning, match=r"ear_g.py is not as it was when this model was saved .*: its 'ear_g' may do"):
        UsamModel.from_pretrained(folder)


@pytest.mark.slow
@pytest.mark.parametrize("registering", ["", REGISTERING])
def test_a_language_model_with_a_config_of_its_own_loads_in_a_fresh_process(write, tmp_path, registering):
    name = f"words_{len(registering)}"
    values = {"model_type": f"{name}_type"}
    file = write(f"{name}.py", WORDS, registering=registering.format(**values), **values)
    load_file(file)
    model = build_model("tiny", {"llm": {"type": name, "dim": 16, "heads": 2}})
    model.save_pretrained(tmp_path / "m")
    UsamProcessor.from_spec(model.config.parsed).save_pretrained(tmp_path / "m")
    code = (
        f"import {name}; from transformers import AutoModelForMultimodalLM, AutoProcessor; import usam; "
        f"m = AutoModelForMultimodalLM.from_pretrained({str(tmp_path / 'm')!r}); "
        f"AutoProcessor.from_pretrained({str(tmp_path / 'm')!r}); print(type(m.config.text_config).__name__)"
    )
    assert python(code, tmp_path) == "WordsConfig"


# Packages


def install(folder, package, name, code, version="1.0"):
    """A distribution as pip leaves it: one module, whose class is an encoder or a language model."""
    module, family = package.replace("-", "_"), "usam.llm" if "Words" in code else "usam.encoders"
    (folder / f"{module}.py").write_text(code)
    info = folder / f"{module}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
    target = "Words" if family == "usam.llm" else "Ear"
    (info / "entry_points.txt").write_text(f"[{family}]\n{name} = {module}:{target}\n")


def test_a_language_model_of_a_package_is_imported_before_its_config_is_read(tmp_path, forget):
    code = WORDS.format(name="words_of", model_type="words_of_package", registering=REGISTERING)
    code = code.replace("{model_type}", "words_of_package").replace('@register("words_of")', "")
    install(tmp_path, "words-package", "words_of", code)
    forget(tmp_path)
    build_model("tiny", {"llm": {"type": "words_of", "dim": 16, "heads": 2}}).save_pretrained(tmp_path / "m")
    forget()
    assert "'words_of' was saved with words-package 1.0: pip install words-package" in cannot_load(tmp_path / "m")
    load = (
        f"import usam; from transformers import AutoConfig; c = AutoConfig.from_pretrained({str(tmp_path / 'm')!r}); "
    )
    assert python(load + "print(type(c.text_config).__name__)", tmp_path) == "WordsConfig"


@pytest.fixture
def two(tmp_path, forget):
    """Two packages that offer the encoder `ear`, and a model saved while the first one was alone."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        install(tmp_path / name, f"{name}-package", "ear", EAR.format(name="x").replace('@register("x")', ""))
    forget(tmp_path / "one")
    save_with("ear", tmp_path / "m")
    return tmp_path


def test_a_saved_model_keeps_to_its_own_provider_when_another_takes_the_name(two, forget):
    forget(two / "two", two / "one")
    assert UsamModel.from_pretrained(two / "m").encoders["ear"].__module__ == "one_package"
    extractor = UsamProcessor.from_pretrained(two / "m").feature_extractor
    assert extractor._parsed.encoders["ear"].component.__module__ == "one_package"
    assert load_spec(two / "m").encoders["ear"].type == "one-package:ear"


def test_a_saved_model_does_not_take_another_package_for_its_own(two, forget):
    forget(two / "two")
    said = cannot_load(two / "m")
    assert "'ear' was saved with one-package 1.0, and here it is two-package:ear: pip install one-package" in said


def test_what_is_written_in_a_class():
    assert written_in(int) == {"module": "builtins", "class": "int"}
