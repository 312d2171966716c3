"""A name becomes a class: found without importing, loaded when asked for, and told apart when two have it."""

import subprocess
import sys

import pytest

from usam.projectors import Projector, build_projector, register, registry
from usam.projectors.linear import Linear
from usam.registry import ComponentError, Entry, Registry, did_you_mean
from usam.spec import load_spec

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


def test_a_decorated_class_with_a_built_in_name_makes_that_name_ambiguous():
    @register("linear")
    class Mine(Projector):
        pass

    assert "'linear' is provided more than once: write 'usam:linear' or 'test_registry:linear'" in fault("linear")
    assert registry.get("test_registry:linear") is Mine
    assert registry.get("usam:linear") is Linear


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


def test_a_plugin_with_the_name_of_a_built_in(install):
    install("toy-package", linear="toy_package:Toy")
    assert "'linear' is provided more than once: write 'usam:linear' or 'toy-package:linear'" in fault("linear")


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
