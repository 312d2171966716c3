"""What docs/plugins.md shows is typed and printed as it stands there, in a clean environment.

Clean is: a virtual environment of its own with the wheel of usam, as hatchling builds it, in an empty folder far from
the source tree. What usam depends on is not installed again, which takes minutes and gigabytes: it is found in the
environment that runs the tests, whose own usam is hidden by the wheel. pip has no index, and builds with the hatchling
that is there.
"""

import os
import re
import shlex
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from test_tutorials import assert_shown, steps, write_files

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "plugins.md").read_text(encoding="utf-8")
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    "PIP_NO_BUILD_ISOLATION": "0",  # pip reads it the other way round
    "PIP_NO_INDEX": "1",
}


def section(heading):
    return re.search(rf"^## {heading}\n(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE)[1]


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    """The folder of a clean environment."""
    if not (ROOT / "usam").is_dir():
        pytest.skip("the wheel is built from the source tree, which is not here")
    folder = tmp_path_factory.mktemp("clean")
    wheels, env = folder / "wheels", folder / "env"
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(wheels)]
    subprocess.run(build, cwd=ROOT, check=True)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(env)], check=True)
    places = {"base": str(env), "platbase": str(env)}
    site = Path(sysconfig.get_path("purelib", "venv", vars=places))
    (site / "outer.pth").write_text(f"{sysconfig.get_path('purelib')}\n")  # as a path: what lies in it adds no other
    wheel = next(wheels.glob("*.whl"))
    run = typed(f"pip install --quiet --no-deps --ignore-installed {shlex.quote(str(wheel))}", env, folder)
    assert run.returncode == 0, run.stderr
    return env


def typed(command, env, folder):
    """A command as in a shell of the environment."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    path = os.pathsep.join([str(env / "bin"), os.environ["PATH"]])
    program, *rest = shlex.split(command)
    call = (
        [str(env / "bin" / "python"), "-m", program] if program in ("pip", "pytest") else [str(env / "bin" / program)]
    )
    return subprocess.run(
        [*call, *rest],
        cwd=folder, env={**environment, **ENVIRONMENT, "PATH": path}, capture_output=True, text=True, check=False,
    )  # fmt: skip


def words(lines):
    """Columns may be wider elsewhere, and counts and times differ."""
    return [" ".join(line.split()) for line in lines]


@pytest.mark.slow
@pytest.mark.parametrize("heading", ["From a name to a trained model", "A metric in an ablation"])
def test_a_transcript_is_what_happens(heading, clean, tmp_path):
    text = section(heading)
    write_files(text, tmp_path)
    asked = steps(text)
    assert 5 <= len(asked) < 10
    for command, shown in asked:
        run = typed(command, clean, tmp_path)
        gone = any("was saved with" in line for line in shown)  # what fails is shown as it fails
        assert run.returncode == (2 if gone else 0), run.stdout + run.stderr
        assert_shown(words(shown), words((run.stderr if gone else run.stdout).splitlines()))


@pytest.mark.slow
def test_what_is_typed_there_is_the_wheel(clean, tmp_path):
    run = typed('python -c "import usam; print(usam.__file__)"', clean, tmp_path)
    assert Path(run.stdout.strip()).is_relative_to(clean)
