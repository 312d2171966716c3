"""Commands in processes of their own, which are forks of this one: it has imported everything already."""

import importlib
import multiprocessing
import os
import runpy
import signal
import socket
import sys

import torch

from usam.cli import main
from usam.registry import GROUPS

# What CUDA has begun does not live on in a fork.
METHOD = "spawn" if torch.cuda.is_available() else "fork"


def _python():
    """`python FILE ARGUMENTS`."""
    del sys.argv[0]
    sys.path.insert(0, os.path.dirname(os.path.abspath(sys.argv[0])))
    runpy.run_path(sys.argv[0], run_name="__main__")


def _pytest():
    """`pytest ARGUMENTS`, apart from the session that this is a fork of."""
    import pytest

    alone = ["-p", "no:cacheprovider", "-p", "no:xdist", "-c", os.devnull, "--import-mode=importlib"]
    sys.exit(pytest.main([*alone, f"--rootdir={os.getcwd()}", *sys.argv[1:]]))


PROGRAMS = {"usam": main, "python": _python, "pytest": _pytest}


def _run(program, arguments, out, err, environment):
    os.environ.update(environment)
    sys.stdout, sys.stderr = out.open("w"), err.open("w")
    sys.argv = [program, *map(str, arguments)]
    for group in GROUPS:  # as another process, it looks anew at what is installed
        importlib.import_module(group).registry.refresh()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # what runs in the background may ignore it
    PROGRAMS[program]()


def start(folder, *arguments, name="command", program="usam", **environment):
    """`PROGRAM ARGUMENTS` as a process that has begun; what it says goes to NAME.out and NAME.err in the folder."""
    out, err = (folder / f"{name}.{end}" for end in ("out", "err"))
    context = multiprocessing.get_context(METHOD)
    process = context.Process(target=_run, args=(program, arguments, out, err, environment))
    process.start()
    return process


def usam(folder, *arguments):
    """(exit status, standard output, standard error) of a command of usam."""
    return command(folder, "usam", *arguments)


def command(folder, program, *arguments):
    """The same of `usam`, `python` or `pytest`."""
    process = start(folder, *arguments, program=program)
    process.join()
    return process.exitcode, (folder / "command.out").read_text(), (folder / "command.err").read_text()


def ranks(folder, *arguments, count=2):
    """The same command as so many processes that share its work, told so as torchrun would; all must end well."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": str(count)}
    started = [
        start(folder, *arguments, name=f"rank{i}", RANK=str(i), LOCAL_RANK=str(i), **place) for i in range(count)
    ]
    for process in started:
        process.join()
    for i, process in enumerate(started):
        assert process.exitcode == 0, (folder / f"rank{i}.err").read_text()[-5000:]
