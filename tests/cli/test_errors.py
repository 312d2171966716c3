"""Errors are sorted by who raised them: what a user can mend is one paragraph, a fault of ours keeps its traceback."""

import errno
import subprocess
import sys
from typing import Annotated, get_args, get_origin, get_type_hints

import pytest
import torch
from typer.models import OptionInfo

from usam import ComponentError, SpecError
from usam.cli import app
from usam.cli._errors import for_its_user


def caught(function, *arguments, **options):
    """What the command line would print for what a function raises; None for a traceback."""
    try:
        function(*arguments, **options)
    except Exception as error:
        return for_its_user(error)
    raise AssertionError("nothing was raised")


def in_usam(code, **names):
    """Runs code as if it stood in a file of usam."""
    exec(compile(code, "usam/some.py", "exec"), {"__name__": "usam.some", **names})


def in_other(code, **names):
    exec(compile(code, "other/some.py", "exec"), {"__name__": "other.some", **names})


@pytest.mark.parametrize("kind", ["ValueError", "TypeError", "RuntimeError", "KeyError", "NotImplementedError"])
def test_what_usam_raises_on_purpose_is_for_its_user(kind):
    assert caught(in_usam, f"raise {kind}('write two')").strip("'") == "write two"


@pytest.mark.parametrize("code", ["max([])", "int('x')", "{}['x']", "None.x", "1 / 0", "assert 1 == 2", "[].pop()"])
def test_what_python_raises_in_usam_is_a_fault_of_ours(code):
    assert caught(in_usam, code) is None


def test_what_another_package_refuses_is_told_with_its_name():
    said = caught(in_other, "raise ValueError('beams must be positive')")
    assert said == "other: beams must be positive\nUSAM_TRACEBACK=1 shows the traceback."


@pytest.mark.parametrize("code", ["raise RuntimeError('shapes')", "raise TypeError('x')", "int('x')"])
def test_what_fails_in_another_package_keeps_its_traceback(code):
    assert caught(in_other, code) is None


@pytest.mark.parametrize("kind", [ComponentError, SpecError])
def test_an_error_of_a_spec_is_told_as_it_is(kind):
    assert caught(in_other, "raise kind('llm: no')", kind=kind) == "llm: no"


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("raise OSError(28, 'No space left on device', 'm/model.safetensors')", "no room left on the disk for m/model"),
        ("raise RuntimeError('I/O error: No space left on device (os error 28)')", "no room left on the disk"),
        ("raise OSError(27, 'File too large')", "no room left on the disk"),
        ("raise PermissionError(13, 'Permission denied', 'm/config.json')", "m/config.json: Permission denied"),
        ("raise NotADirectoryError(20, 'Not a directory', 'out/x')", "out/x: Not a directory"),
        ("raise FileNotFoundError(2, 'No such file or directory', b'a.wav')", "a.wav: No such file or directory"),
        ("raise OSError('x/y is not a local folder')", "x/y is not a local folder"),
        ("raise MemoryError()", "there is not enough memory"),
        (
            "raise RuntimeError('Found no NVIDIA driver on your system.')",
            "the GPU cannot be used: Found no NVIDIA driver",
        ),
        ("raise AssertionError('Torch not compiled with CUDA enabled')", "the GPU cannot be used: Torch not compiled"),
    ],
)
def test_what_the_machine_refuses_is_for_its_user(code, says):
    assert says in caught(in_other, code)


def test_too_little_memory_on_a_gpu_is_for_its_user():
    said = caught(
        in_other, "raise error", error=torch.OutOfMemoryError("Tried to allocate 2 GiB\nException raised from x")
    )
    assert said.startswith(
        "there is not enough memory; take smaller batches or a smaller dtype: Tried to allocate 2 GiB\n"
    )


def test_a_hub_that_cannot_be_reached_is_for_its_user():
    from huggingface_hub.errors import LocalEntryNotFoundError

    assert "cannot be reached" in caught(in_other, "raise error", error=LocalEntryNotFoundError("cannot be reached"))


def numeric_options():
    for command in app.registered_commands:
        name = command.name or command.callback.__name__
        for parameter, hint in get_type_hints(command.callback, include_extras=True).items():
            kind, *infos = get_args(hint) if get_origin(hint) is Annotated else (hint,)
            if {int, float} & {kind, *get_args(kind)} and isinstance(infos[0], OptionInfo):
                yield name, f"--{parameter.replace('_', '-')}"


def test_there_are_numeric_options():
    assert {("check", "--rows"), ("generate", "--num-beams"), ("demo", "--seed")} <= set(numeric_options())


@pytest.mark.parametrize(("command", "option"), numeric_options())
@pytest.mark.parametrize("value", ["-1", "x"])
def test_a_number_out_of_range_names_its_option(usam, tmp_path, command, option, value):
    given = {"generate": [tmp_path, "a.wav"], "check": ["tiny"]}.get(command, [])
    status, _, err = usam(command, *given, option, value)
    assert status == 2
    assert option in err
    assert "Traceback" not in err


@pytest.mark.parametrize("option", ["--num-beams", "--max-new-tokens", "--batch-size"])
def test_nothing_can_be_generated_with_zero(usam, tmp_path, option):
    status, _, err = usam("generate", tmp_path, "a.wav", option, 0)
    assert status == 2
    assert option in err


def test_no_rows_can_be_shown(usam):
    status, _, err = usam("check", "tiny", "--rows", 0)
    assert status == 2
    assert "--rows" in err


def test_a_folder_that_is_a_file_is_one_paragraph(usam, tmp_path):
    (tmp_path / "file").write_text("")
    status, _, err = usam("schema", "--out", tmp_path / "file" / "schema.json")
    assert status == 2
    assert err == f"error: {tmp_path}/file/schema.json: Not a directory\n"


@pytest.mark.skipif(sys.platform != "linux", reason="/dev/full is Linux's")
def test_a_full_disk_is_one_paragraph(usam):
    status, _, err = usam("schema", "--out", "/dev/full")
    assert status == 2
    assert "no room left on the disk" in err
    assert errno.ENOSPC == 28


@pytest.mark.slow
def test_a_fault_of_ours_keeps_its_traceback(tmp_path):
    code = "import sys, usam.cli.list as broken; from usam.cli import main; broken.textwrap = None; "
    code += "sys.argv = ['usam', 'list']; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "Traceback" in done.stderr
