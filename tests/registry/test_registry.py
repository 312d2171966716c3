"""A name becomes a class: found without importing, loaded when asked for, and told apart when two have it."""

import subprocess
import sys

import pytest

from usam import __version__
from usam.cli import main
from usam.projectors import Projector, build_projector, register, registry
from usam.projectors.linear import Linear
from usam.registry import ComponentError, Entry, Registry, did_you_mean, faults, first_sentence
from usam.spec.page import SpecError
from usam.spec.spec import component_config, load_spec

TOY = "from usam.projectors import Projector\nclass Toy(Projector):\n    pass\n"


@pytest.fixture(autouse=True)
def _own_decorations(monkeypatch):
    monkeypatch.setattr(registry, "_registered", dict(registry._registered))
    registry.refresh()


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Installs a distribution of one module that offers projectors; gone when the test ends."""
    monkeypatch.syspath_prepend(tmp_path)
    modules = []

    def install(name: str, source: str = TOY, version: str = "1.0", **entry_points: str) -> None:
        module = name.replace("-", "_")
        modules.append(module)
        (tmp_path / f"{module}.py").write_text(source)
        info = tmp_path / f"{module}-{version}.dist-info"
        info.mkdir(exist_ok=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        points = "".join(f"{key} = {value}\n" for key, value in (entry_points or {"toy": f"{module}:Toy"}).items())
        (info / "entry_points.txt").write_text(f"[usam.projectors]\n{points}")
        registry.refresh()

    yield install
    monkeypatch.undo()
    for module in modules:
        sys.modules.pop(module, None)
    registry.refresh()


def fault(name: str) -> str:
    with pytest.raises(ComponentError) as caught:
        registry.get(name)
    return str(caught.value)


# Built in


def test_a_built_in_component_is_named_by_its_file():
    assert registry.get("linear") is Linear


def test_a_built_in_component_has_a_provider_too():
    assert registry.get("usam:linear") is Linear


def test_private_modules_are_no_components():
    assert not [name for name in registry.names() if name.startswith("_")]


def test_names_are_sorted_and_import_nothing():
    code = (
        "import sys; from usam.registry import Registry; names = Registry(object, 'usam.encoders').names()\n"
        "assert names == sorted(names) and 'whisper' in names\n"
        "assert not {'torch', 'usam.encoders', 'usam.encoders.whisper'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_unknown_name_suggests_the_closest():
    assert fault("liner") == "usam.projectors: no component 'liner'; did you mean 'linear'?"


def test_an_unknown_name_that_is_close_to_none_lists_them():
    assert "no component 'xyz'; known: " in fault("xyz")


def test_an_unknown_provider_suggests_the_closest():
    assert "no component 'usan:linear'; did you mean 'usam:linear'?" in fault("usan:linear")


def test_a_provider_that_is_gone_is_what_to_install():
    assert fault("words-package:of") == (
        "usam.projectors: no component 'words-package:of'; no package 'words-package' that offers any is installed: "
        "pip install words-package"
    )


def test_no_names_are_said_to_be_none():
    assert did_you_mean("x", []) == "known: none"


def test_a_group_that_is_no_family():
    with pytest.raises(ComponentError, match=r"'usam\.clock' is no family of components; families: usam\.encoders"):
        Registry(Projector, "usam.clock").names()


# Registered in this process


def test_the_decorator_offers_a_class():
    @register("notebook")
    class Notebook(Projector):
        pass

    assert registry.get("notebook") is Notebook
    assert "notebook" in registry.names()


def test_a_cell_that_is_run_again_replaces_its_class():
    for _ in range(2):

        @register("notebook")
        class Notebook(Projector):
            pass

        assert registry.get("notebook") is Notebook


def test_the_decorator_refuses_what_is_no_component():
    with pytest.raises(
        ComponentError, match=r"'stray' .* is the class .*Stray, not a subclass of usam.projectors.Proj"
    ):

        @register("stray")
        class Stray:
            pass


def test_a_bare_name_is_the_librarys_own_and_the_decorator_says_so():
    with pytest.warns(UserWarning, match="usam has a 'linear' of its own.*: write 'test_registry:linear' in specs"):

        @register("linear")
        class Mine(Projector):
            pass

    assert registry.get("linear") is Linear
    assert registry.get("test_registry:linear") is Mine


@pytest.mark.parametrize("name", ["My-Toy", "2toy", "my toy", "a:b", ""])
def test_the_decorator_refuses_a_name_that_no_spec_can_hold(name):
    with pytest.raises(ComponentError, match=f"no spec can hold the name '{name}' of test_registry:.*Toy: write lower"):

        @register(name)
        class Toy(Projector):
            pass


def test_the_decorator_says_how_a_name_could_be_written():
    with pytest.raises(ComponentError, match=r"digits and '_', such as 'my_toy'$"):

        @register("My-Toy")
        class Toy(Projector):
            pass


def test_two_modules_of_one_package_cannot_take_one_name():
    def offer(module):
        register("shared")(type("Toy", (Projector,), {"__module__": module}))

    offer("parts.ears")
    offer("parts.ears")  # imported again
    with pytest.raises(ComponentError, match=r"'parts:shared' is registered twice, by parts\.ears\.Toy and by"):
        offer("parts.eyes")


# Plugins


def test_a_plugin_is_found_but_not_imported_until_it_is_asked_for(install):
    install("toy-package")
    assert "toy" in registry.names()
    assert "toy_package" not in sys.modules
    assert registry.get("toy").__module__ == "toy_package"


def test_a_plugin_says_who_provides_it(install):
    install("toy-package", version="2.3")
    (entry,) = [entry for entry in registry.entries() if entry.name == "toy"]
    assert (str(entry), entry.version) == ("toy-package:toy", "2.3")


def test_a_plugin_by_its_provider_and_name(install):
    install("toy-package")
    assert registry.get("toy-package:toy") is registry.get("toy")


def test_a_plugin_may_name_a_module_that_holds_one_component(install):
    install("toy-package", toy="toy_package")
    assert registry.get("toy").__name__ == "Toy"


def test_a_plugin_builds_like_any_other(install):
    install("toy-package", TOY.replace("pass", "dim = 8"))
    assert build_projector("toy", in_dim=8).dim == 8


def test_a_plugin_in_a_spec(install):
    install("toy-package")
    arch = {"d_model": 32, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 64}
    spec = load_spec({"encoders": {"whisper": {"arch": arch}}, "projector": "toy-package:toy", "llm": "tiny"})
    assert spec.projector[0].component is registry.get("toy")


# Plugins that fail


def test_a_plugin_that_fails_to_import_says_package_version_and_cause(install):
    install("broken-package", "import a_module_that_is_not_there\n", version="0.7", broken="broken_package:Toy")
    message = fault("broken")
    assert "usam.projectors: 'broken' of broken-package 0.7 failed to load: ModuleNotFoundError" in message
    assert message.endswith("\nusam doctor tries every plugin, and says what to type")
    assert "a_module_that_is_not_there" in message


def test_the_cause_is_chained(install):
    install("broken-package", "1 / 0\n", broken="broken_package:Toy")
    with pytest.raises(ComponentError) as caught:
        registry.get("broken")
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_a_plugin_that_fails_hurts_nobody_else(install):
    install("broken-package", "1 / 0\n", broken="broken_package:Toy")
    install("toy-package")
    assert "broken" in registry.names()
    assert registry.get("linear") is Linear
    assert registry.get("toy").__name__ == "Toy"


def test_a_plugin_whose_fault_is_cured_loads(install, tmp_path):
    install("broken-package", "1 / 0\n", broken="broken_package:Toy")
    fault("broken")
    (tmp_path / "broken_package.py").write_text(TOY)
    assert registry.get("broken").__name__ == "Toy"


def test_a_plugin_without_the_class_it_promises(install):
    install("toy-package", toy="toy_package:Missing")
    assert "'toy' of toy-package 1.0 failed to load: AttributeError: " in fault("toy")


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("def Toy(): ...", "a function"),
        ("Toy = 3", "a int"),
        ("class Toy: ...", "the class Toy"),
        ("from usam.projectors import Projector as Toy", "the class Projector"),
    ],
)
def test_an_entry_point_that_is_no_component(install, source, found):
    install("toy-package", source)
    expected = f"'toy' of toy-package 1.0 is {found}, not a subclass of usam.projectors.Projector"
    assert expected in fault("toy")


def test_a_module_with_two_components_names_both(install):
    install("toy-package", TOY + "class Second(Toy):\n    pass\n", toy="toy_package")
    assert "toy_package must hold exactly one public Projector; it holds Toy, Second" in fault("toy")


def test_a_module_with_none(install):
    install("toy-package", "from usam.projectors.linear import Linear\n", toy="toy_package")
    assert "toy_package must hold exactly one public Projector; it holds none" in fault("toy")


def test_a_private_class_beside_the_component_does_not_count(install):
    install("toy-package", TOY + "class _Part(Projector):\n    pass\n", toy="toy_package")
    assert registry.get("toy").__name__ == "Toy"


def test_a_plugin_that_exits_is_a_fault_like_any_other(install):
    install("broken-package", "import sys\nsys.exit('no licence')", version="0.7", broken="broken_package:Toy")
    assert "'broken' of broken-package 0.7 failed to load: SystemExit: no licence" in fault("broken")


def test_an_interrupt_while_a_plugin_loads_stops_the_program(install):
    install("slow-package", "raise KeyboardInterrupt", slow="slow_package:Toy")
    with pytest.raises(KeyboardInterrupt):
        registry.get("slow")


def test_a_plugin_for_another_usam_names_both_versions(install, tmp_path):
    install("new-package", "from usam.types import Spectrum\n", version="2.3", new="new_package:Toy")
    with (tmp_path / "new_package-2.3.dist-info" / "METADATA").open("a") as file:
        file.write("Requires-Dist: usam>=0.9\n")
    message = fault("new")
    assert "cannot import name 'Spectrum' from 'usam.types'" in message
    assert f"(new-package 2.3, usam {__version__}; it asks for usam>=0.9)" in message


def test_an_option_that_a_plugin_does_not_have_names_both_versions(install):
    install("toy-package", version="2.3")
    with pytest.raises(SpecError) as caught:
        component_config("usam.projectors", {"type": "toy", "depth": 3})
    assert "unknown option 'depth'" in str(caught.value)
    assert f"(toy-package 2.3, usam {__version__})" in str(caught.value)


# Declared wrongly


@pytest.fixture
def declare(install, tmp_path):
    """Installs a distribution with the given entry_points.txt."""

    def declare(name: str, entry_points: bytes) -> None:
        install(name)
        (tmp_path / f"{name.replace('-', '_')}-1.0.dist-info" / "entry_points.txt").write_bytes(entry_points)
        registry.refresh()

    return declare


@pytest.mark.parametrize(
    ("entry_points", "what"),
    [
        (b"[usam.projectors]\nnonsense\n", "line 2: 'nonsense' is neither"),
        (b"[console_scripts]\na = b:c\n[usam.projectors\ntoy = bad_package:Toy\n", "line 3: '[usam.projectors' is"),
        (b"toy = bad_package:Toy\n", "line 1: 'toy = bad_package:Toy' is neither"),
        ("\ufeff[usam.projectors]\ntoy = bad_package:Toy\n".encode(), "line 1: "),
        (b"\xff\xfe[\x00", "entry_points.txt cannot be read: UnicodeDecodeError"),
    ],
)
def test_a_malformed_file_is_told_and_hurts_nobody_else(declare, install, entry_points, what):
    declare("bad-package", entry_points)
    install("toy-package")
    assert registry.get("linear") is Linear
    assert registry.get("toy").__module__ == "toy_package"
    (found,) = faults()
    assert (found.package, found.version) == ("bad-package", "1.0")
    assert what in found.what


def test_an_unknown_name_recalls_the_packages_that_may_have_meant_to_offer_it(declare):
    declare("bad-package", b"[usam.projectors]\nnonsense\n")
    declare("typo-package", b"[usam.projector]\near = typo_package:Toy\nother = typo_package:Toy\n")
    message = fault("ear")
    assert "no component 'ear'" in message
    assert "bad-package 1.0: entry_points.txt, line 2" in message
    assert "typo-package 1.0: 'ear' is in the group 'usam.projector'" in message
    assert "'other'" not in message


@pytest.mark.parametrize("group", ["usam.projector", "usam.project", "usam_projectors", "Usam.Projectors"])
def test_a_misspelt_group_is_told(declare, group):
    declare("typo-package", f"[{group}]\near = typo_package:Toy\n".encode())
    assert [str(found) for found in faults()] == [
        f"typo-package 1.0: 'ear' is in the group '{group}', which is no family of components; "
        "did you mean 'usam.projectors'?"
    ]


def test_groups_of_other_programs_are_none_of_our_business(declare):
    declare("typo-package", b"[pytest11]\nusam_tools = typo_package\n")
    assert faults() == []


@pytest.mark.parametrize("name", ["my-toy", "Toy", "2toy", "my toy", "a:b"])
def test_a_name_that_no_spec_can_hold_is_told(declare, name):
    declare("toy-package", f"[usam.projectors]\n{name} = toy_package:Toy\n".encode())
    (found,) = faults()
    assert f"toy-package 1.0: usam.projectors: no spec can hold the name '{name}'" in str(found)


def test_a_target_that_is_no_reference_is_told(declare):
    declare("toy-package", b"[usam.projectors]\ntoy = toy package/Toy\n")
    assert "'toy = toy package/Toy' is not 'name = module:Class'" in str(faults()[0])
    assert "its entry point 'toy package/Toy' is not 'module:Class'" in fault("toy")


def test_a_package_without_metadata_is_known_by_its_folder(install, tmp_path):
    install("toy-package")
    (tmp_path / "toy_package-1.0.dist-info" / "METADATA").unlink()
    registry.refresh()
    assert registry.get("toy-package:toy").__module__ == "toy_package"


def test_only_the_first_of_two_installed_versions_counts(install, tmp_path, monkeypatch):
    install("toy-package")
    other = tmp_path / "first" / "toy_package-2.0.dist-info"
    other.mkdir(parents=True)
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-package\nVersion: 2.0\n")
    (other / "entry_points.txt").write_text("[usam.projectors]\nnew = toy_package:Toy\n")
    monkeypatch.syspath_prepend(tmp_path / "first")
    registry.refresh()
    assert [(entry.name, entry.version) for entry in registry.entries() if entry.provider == "toy-package"] == [
        ("new", "2.0")
    ]


@pytest.mark.parametrize(("arguments", "status"), [(["list"], 0), (["list", "--check"], 1)])
def test_list_tells_what_is_declared_wrongly(declare, install, monkeypatch, capsys, arguments, status):
    declare("bad-package", b"[usam.projectors]\nnonsense\n")
    declare("typo-package", b"[usam.projector]\near = typo_package:Toy\n")
    install("broken-package", "import sys\nsys.exit(0)", broken="broken_package:Toy")
    monkeypatch.setattr(sys, "argv", ["usam", *arguments])
    with pytest.raises(SystemExit) as stop:
        main()
    out = capsys.readouterr().out
    assert (stop.value.code or 0) == status
    assert "bad-package 1.0: entry_points.txt, line 2" in out
    assert "did you mean 'usam.projectors'?" in out
    assert ("FAILS: usam.projectors: 'broken' of broken-package 1.0" in out) == (status == 1)


def test_a_plugin_is_described_by_its_package_without_being_imported(install, tmp_path, monkeypatch, capsys):
    install("told-package", "raise ImportError('imported')")
    install("dumb-package", "raise ImportError('imported')", mute="dumb_package:Toy")
    with (tmp_path / "told_package-1.0.dist-info" / "METADATA").open("a") as metadata:
        metadata.write("Summary: Ears for bats (and moths). They hear much.\n")
    monkeypatch.setattr(sys, "argv", ["usam", "list"])
    with pytest.raises(SystemExit):
        main()
    rows = [line.split(maxsplit=3) for line in capsys.readouterr().out.splitlines()]
    assert ["toy", "told-package", "1.0", "Ears for bats."] in rows
    assert ["mute", "dumb-package", "1.0"] in rows


@pytest.mark.parametrize(
    ("docstring", "sentence"),
    [
        ("CED, of any size (Dinkel et al., 2024), on audio.", "CED, of any size, on audio."),
        ("The mean of each\nwindow. More.\n\nAnd more.", "The mean of each window."),
        ("One line without a stop\n\nAnd more", "One line without a stop"),
        ("At 24.5 kHz, e.g. music. No more.", "At 24.5 kHz, e.g. music."),
        ("", ""),
    ],
)
def test_the_first_sentence_of_a_docstring(docstring, sentence):
    assert first_sentence(docstring) == sentence


# Two of one name


def test_two_plugins_with_one_name_are_an_error_only_when_it_is_used(install):
    install("one-package")
    install("two-package")
    assert registry.names().count("toy") == 1
    assert registry.get("linear") is Linear
    assert "'toy' is provided more than once: write 'one-package:toy' or 'two-package:toy'" in fault("toy")


def test_two_plugins_with_one_name_can_both_be_used_by_their_providers(install):
    install("one-package")
    install("two-package")
    assert registry.get("one-package:toy").__module__ == "one_package"
    assert registry.get("two-package:toy").__module__ == "two_package"


def test_a_plugin_with_the_name_of_a_built_in_is_had_by_its_full_name_alone(install):
    install("toy-package", linear="toy_package:Toy")
    assert registry.get("linear") is Linear
    assert registry.get("toy-package:linear").__module__ == "toy_package"


@pytest.mark.parametrize("target", ["toy_package", "toy_package:Toy"])
def test_an_entry_point_and_the_decorator_may_declare_one_class(install, target):
    decorated = "from usam.projectors import Projector, register\n@register('toy')\nclass Toy(Projector):\n    pass\n"
    install("toy-package", decorated, toy=target)
    first = registry.get("toy")
    assert registry.get("toy") is first
    assert registry.find("toy").version == "1.0"


def test_a_package_that_is_found_twice_counts_once(install, tmp_path, monkeypatch):
    install("toy-package")
    other = tmp_path / "again" / "toy_package-1.0.dist-info"
    other.mkdir(parents=True)
    for name in ("METADATA", "entry_points.txt"):
        (other / name).write_bytes((tmp_path / "toy_package-1.0.dist-info" / name).read_bytes())
    monkeypatch.syspath_prepend(tmp_path / "again")
    registry.refresh()
    assert registry.get("toy").__name__ == "Toy"


# Looking again


def test_what_is_installed_later_is_found_after_refresh(install):
    assert "toy" not in registry.names()
    install("toy-package")
    assert "toy" in registry.names()


def test_an_entry_is_a_value():
    assert Entry("a", "b", "1", print) == Entry("a", "b", "1", print)
