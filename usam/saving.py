"""A folder is saved whole or not at all: written beside, flushed to the disk, and put in its place in one step."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from fnmatch import fnmatchcase
from pathlib import Path
from typing import IO, Any, ClassVar

STAGED = ".saving"  # how the names of folders end that are being written
# Shards of a save before would be read with the new ones; other variants stay.
WEIGHTS = ("model.safetensors", "model-*.safetensors", "model.safetensors.index.json", "pytorch_model*.bin*")
NO_EXCHANGE = (errno.ENOSYS, errno.EINVAL, errno.EXDEV, errno.EBUSY, errno.EOPNOTSUPP)
AT_FDCWD, RENAME_EXCHANGE = -100, 2


class SavingError(OSError, ValueError):
    """A folder could not be saved: the message names it and the cause; what was there before is as it was."""


def weights_of(variant: str | None) -> tuple[str, ...]:
    """Patterns of the files that a model's weights are in; of a variant, such as `fp16`."""
    if variant is None:
        return WEIGHTS
    return (f"model.{variant}.safetensors", f"model.{variant}-*.safetensors", f"model.safetensors.index.{variant}.json")


class SavedWhole:
    """What transformers saves with `save_pretrained`, whole."""

    replaces: ClassVar[Sequence[str]] = ()  # as `whole` takes them

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> Any:
        """Save as transformers does; a folder that was good stays good until the new one is complete."""
        if kwargs.get("push_to_hub"):
            kwargs.setdefault("repo_id", Path(save_directory).name)
        if not kwargs.get("is_main_process", True):
            return super().save_pretrained(save_directory, *args, **kwargs)  # type: ignore[misc]
        with whole(save_directory, self.replaces) as folder:
            files = super().save_pretrained(str(folder), *args, **kwargs)  # type: ignore[misc]
        return [str(Path(save_directory, Path(file).name)) for file in files] if isinstance(files, list) else files


@contextmanager
def whole(folder: str | Path, replaces: Sequence[str] = ()) -> Iterator[Path]:
    """A new folder to write into, which becomes `folder` when all of it is on the disk.

    Until then, and if anything fails, `folder` is what it was; a process that is killed leaves at most a folder
    `.NAME.*.saving`, which the next save removes. Inside another `whole`, the outer one puts everything in its place.
    Linux exchanges the two folders in one step. Where it cannot (a network's file system, a mount point) the files are
    moved one by one, each of them whole.

    Args:
        folder: where to save; it may exist, and what is in it stays unless it is written anew.
        replaces: patterns of the names in `folder` that belong to what is saved, and go when it does not write them.

    Raises:
        SavingError: no room, no permission, or `folder` is a file.
    """
    folder = Path(os.path.realpath(folder))
    if any(part.endswith(STAGED) for part in folder.parts):
        folder.mkdir(parents=True, exist_ok=True)
        yield folder
        return
    with _explained(folder):
        staged = stage(folder, f"{socket.gethostname()}-{os.getpid()}")
    try:
        with _explained(folder):
            yield staged
            put(staged, folder, replaces)
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def stage(folder: Path, writer: str) -> Path:
    """An empty folder beside `folder`, or in it where it is a mount point; what killed writers left is removed."""
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, "is a file; name a folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    inside = os.path.ismount(folder) or (folder.is_dir() and not os.access(folder.parent, os.W_OK))
    place = folder if inside else folder.parent
    staged = place / f".{folder.name}.{writer}{STAGED}"
    for left in place.glob(f".{_literal(folder.name)}.*{STAGED}"):
        if left == staged or is_abandoned(left.name.removesuffix(STAGED)):
            shutil.rmtree(left, ignore_errors=True)
    staged.mkdir()
    return staged


def put(staged: Path, folder: Path, replaces: Sequence[str] = ()) -> None:
    """Flush what was written into `staged` and put it in the place of `folder`."""
    new = {path.name for path in staged.iterdir()}
    others = {path.name for path in folder.iterdir()} - new - {staged.name} if folder.is_dir() else set()
    old = {name for name in others if any(fnmatchcase(name, pattern) for pattern in replaces)}
    if staged.parent == folder:
        _flush(staged)
        _move_files(staged, folder, old)
        return
    if folder.is_dir():
        shutil.copymode(folder, staged)
        for name in others - old:
            _link(folder / name, staged / name)
    _flush(staged)
    if not folder.is_dir() or not any(folder.iterdir()):
        os.replace(staged, folder)
    else:
        try:
            _exchange(staged, folder)
        except OSError as error:
            if error.errno not in NO_EXCHANGE:
                raise
            _move_files(staged, folder, old)
    _flush_entry(folder.parent)


def write_whole(file: str | Path, content: str | bytes) -> None:
    """Write a file of text or bytes, which is there whole or is what it was before.

    Raises:
        SavingError: no room, or no permission.
    """
    with writing(file) as handle:
        handle.write(content.encode() if isinstance(content, str) else content)


@contextmanager
def writing(file: str | Path) -> Iterator[IO[bytes]]:
    """Write a file bit by bit; see `write_whole`."""
    file = Path(file)
    part = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        with _explained(file):
            file.parent.mkdir(parents=True, exist_ok=True)
            with part.open("wb") as handle:
                yield handle
            _flush_entry(part)
            os.replace(part, file)
    finally:
        with suppress(NotADirectoryError):
            part.unlink(missing_ok=True)


@contextmanager
def _explained(place: Path) -> Iterator[None]:
    try:
        yield
    except SavingError:
        raise
    except Exception as error:
        if not _is_of_the_disk(error):
            raise
        cause = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise SavingError(f"{place}: could not be saved: {cause}; what was there before is as it was") from error


def _is_of_the_disk(error: Exception) -> bool:
    """Whether writing failed: safetensors, tokenizers and torch each say it in their own way."""
    words = ("os error", "PytorchStreamWriter", "unexpected pos", "iostream error")
    if isinstance(error, OSError):
        return not isinstance(error, FileNotFoundError)  # that is something to read
    return any(word in str(error) for word in words)


def is_abandoned(name: str) -> bool:
    """Whether the process that `NAME.HOST-PID` names ran here, and runs no more."""
    host, _, pid = name.rpartition("-")
    if not host.endswith(f".{socket.gethostname()}") or not pid.isdigit():
        return False
    try:
        os.kill(int(pid), 0)
    except OSError as error:
        return error.errno == errno.ESRCH
    return False


def _literal(name: str) -> str:
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)


def _link(source: Path, target: Path) -> None:
    """The same files under another name; a copy where the file system knows no second names."""
    if source.is_dir() and not source.is_symlink():
        shutil.copytree(source, target, symlinks=True, copy_function=_link_file)
    elif source.is_symlink():
        target.symlink_to(os.readlink(source))
    else:
        _link_file(str(source), str(target))


def _link_file(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _exchange(one: Path, other: Path) -> None:
    """Two folders swap their names, in one step (renameat2 of Linux)."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None) if os.name == "posix" else None
    if rename is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    if rename(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(other))


def _move_files(staged: Path, folder: Path, old: set[str]) -> None:
    for path in sorted(staged.rglob("*")):
        target = folder / path.relative_to(staged)
        if path.is_dir() and not path.is_symlink():
            target.mkdir(exist_ok=True)
        else:
            os.replace(path, target)
    for name in old:
        gone = folder / name
        shutil.rmtree(gone) if gone.is_dir() and not gone.is_symlink() else gone.unlink()


def _flush(folder: Path) -> None:
    """Wait until everything in the folder is on the disk."""
    for path in [*folder.rglob("*"), folder]:
        if not path.is_symlink() and (path.is_file() or path.is_dir()):
            _flush_entry(path)


def _flush_entry(path: Path) -> None:
    if path.is_dir() and os.name != "posix":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        with suppress(OSError) if path.is_dir() else nullcontext():  # some file systems refuse it for folders
            os.fsync(handle)
    finally:
        os.close(handle)
