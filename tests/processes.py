"""Commands in processes of their own, which are forks of this one: it has imported everything already."""

import importlib
import multiprocessing
import os
import signal
import socket
import sys

import torch

from usam.cli import main
from usam.registry import GROUPS

# What CUDA has begun does not live on in a fork.
METHOD = "spawn" if torch.cuda.is_available() else "fork"


def _run(arguments, out, err, environment):
    os.environ.update(environment)
    sys.stdout, sys.stderr = out.open("w"), err.open("w")
    sys.argv = ["usam", *map(str, arguments)]
    for group in GROUPS:  # as another process, it looks anew at what is installed
        importlib.import_module(group).registry.refresh()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # what runs in the background may ignore it
    main()


def start(folder, *arguments, name="command", **environment):
    """`usam ARGUMENTS` as a process that has begun; what it says goes to NAME.out and NAME.err in the folder."""
    out, err = (folder / f"{name}.{end}" for end in ("out", "err"))
    context = multiprocessing.get_context(METHOD)
    process = context.Process(target=_run, args=(arguments, out, err, environment))
    process.start()
    return process


def usam(folder, *arguments):
    """(exit status, standard output, standard error) of a command."""
    process = start(folder, *arguments)
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
