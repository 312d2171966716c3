"""The doctor says what is not as tested, what does not load, and what to type; errors beside untested versions too."""

import importlib
import os
import shutil
import subprocess
import sys

import processes
import pytest
import versions as script

from usam.cli._errors import for_its_user
from usam.registry import ComponentError
from usam.versions.tested import (
    Standing,
    UnsupportedVersion,
    environments,
    explained,
    installed,
    mismatch,
    refuse_older,
    release,
    standing,
)

PROJECTOR = "from usam.projectors import Projector\nclass Toy(Projector):\n    pass\n"


def put(folder, package, version, code=None, entry_points=None):
    """A distribution as pip leaves it; without `code`, metadata alone, beside which the real package is imported."""
    module = package.replace("-", "_")
    for other in folder.glob(f"{module}-*.dist-info"):
        shutil.rmtree(other)
    info = folder / f"{module}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
    if code is not None:
        (folder / f"{module}.py").write_text(code)
    if entry_points is not None:
        (info / "entry_points.txt").write_text(entry_points)


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A folder first on the path, in which all that the suite runs beside passes for a tested version."""
    for name, version in environments()["constraints"]["packages"].items():
        if installed(name) and standing(name).complaint:
            put(tmp_path, name, version)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    return tmp_path


def usam(site, *arguments):
    """(exit status, standard output, standard error) of a command in a process that imports everything anew."""
    path = os.pathsep.join([str(site), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "usam.cli", *arguments]
    run = subprocess.run(command, env=environment, cwd=site, capture_output=True, text=True, check=False)
    assert "Traceback" not in run.stdout + run.stderr
    return run.returncode, run.stdout, run.stderr


def beside(site, *arguments):
    """The same, of one that has imported torch and transformers already."""
    importlib.invalidate_caches()
    status, out, err = processes.usam(site, *arguments)
    assert "Traceback" not in out + err
    return status, out, err


def wrong(out):
    return [line for line in out.splitlines() if line.startswith("wrong: ")]


# usam doctor


def test_where_all_is_as_tested_nothing_is_wrong(site):
    status, out, err = usam(site, "doctor")
    assert (status, wrong(out)) == (0, []), out + err
    rows = {line.split()[0]: line for line in out.splitlines()}
    assert f"tested {standing('torch').range}" in rows["torch"]
    assert f"matches torch {installed('torch')}" in rows["torchvision"]
    assert {"python", "transformers", "peft", "triton", "GPU", "Java", "extra"} <= set(rows)
    assert out.endswith("nothing is wrong\n")


def test_a_torchvision_of_another_torch(site):
    put(site, "torch", "2.14.1")
    put(site, "torchvision", "0.28.0", "raise RuntimeError('operator torchvision::nms does not exist')")
    status, out, _ = usam(site, "doctor")
    typed = "pip install 'torchvision==0.29.*'"
    assert status == 1
    assert wrong(out) == [
        f"wrong: torchvision 0.28.0 does not match torch 2.14.1: {typed}",
        f"wrong: torchvision cannot be imported: RuntimeError: operator torchvision::nms does not exist: {typed}",
    ]


def test_a_torch_that_cannot_be_loaded(site):
    put(site, "torch", "2.14.1", "raise OSError('libcudart.so.13: cannot open shared object file')")
    put(site, "toy-package", "1.0", PROJECTOR, "[usam.projectors]\ntoy = toy_package:Toy\n")
    status, out, _ = usam(site, "doctor")
    assert status == 1
    assert "torch cannot be imported: OSError: libcudart.so.13: cannot open shared object file: pip install" in out
    assert "toy-package 1.0  not tried" in out


def test_plugins_that_cannot_serve(site):
    put(site, "broken-package", "0.7", "import sys\nsys.exit(3)", "[usam.projectors]\nbroken = broken_package:Toy\n")
    put(site, "typo-package", "1.2", "", "[usam.encoder]\near = typo_package:Ear\n")
    put(site, "dash-package", "1.3", PROJECTOR, "[usam.projectors]\nmy-toy = dash_package:Toy\n")
    put(site, "one-package", "1.4", PROJECTOR, "[usam.projectors]\ntoy = one_package:Toy\n")
    put(site, "two-package", "1.5", PROJECTOR, "[usam.projectors]\ntoy = two_package:Toy\n")
    put(site, "bad-package", "1.6", "", "[usam.encoders]\nnonsense\n")
    status, out, _ = beside(site, "doctor")
    assert status == 1
    bad, dash, typo, broken, clash = wrong(out)
    assert "bad-package 1.6: entry_points.txt, line 2: 'nonsense' is neither" in bad
    assert bad.endswith("pip uninstall bad-package")
    assert "dash-package 1.3: usam.projectors: no spec can hold the name 'my-toy'" in dash
    assert "typo-package 1.2: 'ear' is in the group 'usam.encoder', which is no family" in typo
    assert "did you mean 'usam.encoders'?: write [project.entry-points.\"usam.encoders\"]" in typo
    assert "'broken' of broken-package 0.7 failed to load: SystemExit: 3" in broken
    assert broken.endswith("pip install --upgrade broken-package, or pip uninstall broken-package")
    assert "write 'one-package:toy' or 'two-package:toy' in specs, or pip uninstall one-package" in clash


def test_a_newer_transformers_is_one_note_and_no_fault(site):
    put(site, "transformers", "5.99.0")
    status, out, _ = beside(site, "doctor")
    assert (status, wrong(out)) == (0, []), out
    tested = standing("transformers")
    (note,) = [line for line in out.splitlines() if line.startswith("note: transformers")]
    assert note == (
        f"note: transformers 5.99.0 is newer than tested ({tested.range}): "
        f"if something breaks, pip install 'transformers<5.{tested.high[1] + 1}'"
    )


# Other commands


def test_a_transformers_too_new_to_work_is_an_error_of_one_paragraph(site):
    put(site, "transformers", "6.0.0", "__version__ = '6.0.0'")
    status, out, err = usam(site, "check", "tiny")
    assert (status, out) == (2, "")
    assert "cannot import name" in err
    assert "transformers 6.0.0 is newer than tested (" in err
    assert "pip install 'transformers<5." in err
    assert "USAM_TRACEBACK=1" in err
    assert "\n\n" not in err


def test_a_malformed_file_of_another_package_stops_no_command(site):
    put(site, "bad-package", "1.6", "", "[console_scripts]\nnonsense\n")
    assert beside(site, "check", "tiny") == (0, "tiny: the spec is sound\n", "")


def test_our_own_bugs_stay_tracebacks_beside_tested_versions(site):
    assert for_its_user(TypeError("f() got an unexpected keyword argument 'x'")) is None


@pytest.mark.parametrize("error", [ImportError("no such name"), AttributeError("no such attribute"), TypeError("no x")])
def test_beside_an_untested_version_the_same_errors_name_it(site, error):
    put(site, "peft", "0.99.0")
    failed, version, how = for_its_user(error).splitlines()
    assert failed == f"{type(error).__name__}: {error}"
    assert version.startswith("peft 0.99.0 is newer than tested (")
    assert "pip install 'peft<0." in version
    assert how == "USAM_TRACEBACK=1 shows the traceback."


def test_an_error_of_another_kind_is_not_blamed_on_a_version(site):
    put(site, "peft", "0.99.0")
    assert for_its_user(RuntimeError("out of memory")) is None
    assert for_its_user(ComponentError("no component 'x'")) == "no component 'x'"


def test_in_python_too_the_error_names_the_version(site):
    put(site, "transformers", "5.99.0")
    with (
        pytest.raises(UnsupportedVersion, match=r"KeyThing.*\ntransformers 5\.99\.0 is newer than tested"),
        explained(),
    ):
        raise ImportError("cannot import name 'KeyThing'")


def test_a_transformers_below_what_usam_needs_is_refused(site):
    put(site, "transformers", "4.57.1")
    with pytest.raises(
        UnsupportedVersion, match=r"usam needs transformers 5\.\d+ or newer. transformers 4.57.1 is old"
    ):
        refuse_older("transformers")


# Versions


@pytest.mark.parametrize(
    ("version", "outside", "command"),
    [
        ("5.14.9", "older", "pip install 'transformers>=5.15,<5.25'"),
        ("5.15.0", None, None),
        ("5.24.7", None, None),
        ("5.25.0.dev0", "newer", "pip install 'transformers<5.25'"),
        ("6.0.0", "newer", "pip install 'transformers<5.25'"),
    ],
)
def test_versions_are_compared_by_minor(version, outside, command):
    found = Standing("transformers", version, (5, 15), (5, 24))
    assert (found.older, found.newer) == (outside == "older", outside == "newer")
    assert found.complaint == (command and f"transformers {version} is {outside} than tested (5.15 to 5.24): {command}")


def test_what_is_not_installed_is_missing():
    assert Standing("timm", None, (1, 0), (1, 0)).complaint == "timm is not installed: pip install 'timm>=1.0,<1.1'"


def test_a_version_without_numbers_is_none():
    assert (release("unknown"), release("3"), release("2.14.1+cu132")) == ((), (3,), (2, 14))


@pytest.mark.parametrize(
    ("torch", "torchvision", "command"),
    [
        ("2.14.1", "0.29.1", None),
        ("2.15.0", "0.29.2", None),  # its wheel asks for torch>=2.14.0
        ("2.13.0", "0.28.0", None),
        ("2.14.1", "0.28.0", "pip install 'torchvision==0.29.*'"),
        ("2.13.0", "0.29.1", "pip install 'torchvision==0.28.*'"),
        ("2.15.0", "0.28.0", "pip install 'torchvision>=0.29,<0.31'"),
        (None, "0.29.1", None),
    ],
)
def test_torchvision_goes_with_torch(torch, torchvision, command):
    said = mismatch(torch, torchvision)
    assert said == (command and f"torchvision {torchvision} does not match torch {torch}: {command}")


def test_every_requirement_was_tested_somewhere():
    assert set(script.packages()) <= {name for env in environments().values() for name in env["packages"]}


def test_the_table_of_versions_is_up_to_date():
    assert script.TABLE.read_text(encoding="utf-8") == script.table(), "run `python tests/versions/versions.py table`"
