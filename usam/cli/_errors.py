"""Whose fault an error is: what its user can mend is told in one paragraph, our own faults keep their traceback.

Errors are sorted by who raised them, not by their type: what usam raises on purpose is written for its user; what the
system, the hub or the GPU refuses is too; what Python itself raises inside usam is a fault of ours.
"""

from __future__ import annotations

import dis
import errno
import os
import re
from types import TracebackType

HOW = "USAM_TRACEBACK=1 shows the traceback."
FULL = re.compile(r"No space left on device|os error 28\b|Disk quota exceeded|File too large", re.IGNORECASE)
CUDA = re.compile(
    r"NVIDIA driver|not compiled with CUDA|CUDA is not available|No CUDA GPUs|invalid device ordinal", re.I
)
READER = re.compile(
    r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\) (?:is killed by signal: ([\w ]+)|exited unexpectedly)"
)
REMOTE = ("huggingface_hub", "httpx", "requests", "urllib3")


def for_its_user(error: BaseException) -> str | None:
    """What to print when a user can mend it; None for our own faults, whose traceback is wanted."""
    from usam.registry import ComponentError
    from usam.spec.page import SpecError
    from usam.versions.tested import UnsupportedVersion, suspects

    cause = error
    while isinstance(cause, ComponentError) and cause.__cause__:
        cause = cause.__cause__
    outside = suspects(cause)
    if isinstance(error, (ComponentError, SpecError)):
        return f"{error}\n{HOW}" if outside else str(error)
    if isinstance(error, UnsupportedVersion):
        return f"{error}\n{HOW}"
    if outside:
        return "\n".join([f"{type(error).__name__}: {error}", *outside, HOW])
    return _of_the_machine(error) or _on_purpose(error)


def _of_the_machine(error: BaseException) -> str | None:
    """What the system, the hub, the memory or the GPU refuses."""
    said = " ".join(str(error).partition("\nException raised from")[0].split())  # torch appends its C++ frames
    if FULL.search(said) or getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        where = getattr(error, "filename", None)
        return f"there is no room left on the disk{f' for {where}' if where else ''}: {said}"
    if type(error).__name__ == "OutOfMemoryError" or isinstance(error, MemoryError):
        what = said or type(error).__name__
        return f"there is not enough memory; take smaller batches or a smaller dtype: {what}\n{HOW}"
    if reader := killed_reader(error):
        return reader
    if isinstance(error, (RuntimeError, AssertionError)) and CUDA.search(said):
        return f"the GPU cannot be used: {said}\nusam doctor says what torch finds; cpu always works"
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{os.fsdecode(error.filename)}: {error.strerror}"
    if isinstance(error, OSError) or type(error).__module__.partition(".")[0] in REMOTE:
        return f"{said or type(error).__name__}\n{HOW}"
    return None


def killed_reader(error: BaseException) -> str | None:
    """What to say of a process that reads data and was killed; None of other errors."""
    found = READER.search(str(error)) if isinstance(error, RuntimeError) else None
    if found is None:
        return None
    signal = f" ({found[2]})" if found[2] else ""
    return (
        f"a process that reads data (pid {found[1]}) was killed{signal}, as the system does when its memory is full: "
        "take fewer of them (train.dataloader_num_workers of a run, --workers), or smaller batches"
    )


def _on_purpose(error: BaseException) -> str | None:
    """What was raised by a `raise`: by usam, whatever it is; by others, a ValueError."""
    package, raised = _raiser(error.__traceback__)
    if not raised or isinstance(error, AssertionError):
        return None
    if package == "usam":
        return str(error)
    return f"{package}: {error}\n{HOW}" if isinstance(error, ValueError) else None


def _raiser(traceback: TracebackType | None) -> tuple[str, bool]:
    """The package whose code an error came out of, and whether by a `raise`."""
    if traceback is None:
        return "", False
    while traceback.tb_next is not None:
        traceback = traceback.tb_next
    frame = traceback.tb_frame
    package = str(frame.f_globals.get("__name__", "")).partition(".")[0]
    return package, dis.opname[frame.f_code.co_code[traceback.tb_lasti]] == "RAISE_VARARGS"
