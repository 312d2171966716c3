"""Tensors by key in a folder that grows: shards that are whole or not there, for many readers and writers at once.

A shard is `NAME.safetensors`, which never changes. `NAME.json` beside it is written after it and lists its keys with a
checksum of each tensor; the lists of a folder together are its index. So a process that is killed leaves at most a
shard without a list, which nobody reads, and writers need to know nothing of each other, for each has names of its own.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import time
import zlib
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from usam.saving import is_abandoned, write_whole

SHARD = 2**27  # bytes after which what was gathered is written
OPEN = 64  # shards that are kept open
PER_KEY = 256  # bytes that a key takes in a shard's header and list, at most
STALE = 3600  # seconds after which an unfinished file of another machine counts as left behind
WHOLE, LIST = ".safetensors", ".json"


class StoreError(ValueError):
    """What is stored is not what was written: the message names the file."""


class Store:
    """The tensors of one folder by key, mapped into memory; not for several threads.

    Args:
        folder: holds the shards; it is made when something is first written.
        about: what the tensors are, which every list repeats.
        limit: bytes that `root` may hold; what does not fit is not stored. None: no limit.
        root: the folder that the limit is for; None: `folder`.
        shard: bytes after which what was put is written.
    """

    def __init__(
        self,
        folder: str | Path,
        about: Mapping[str, Any] | None = None,
        *,
        limit: int | None = None,
        root: str | Path | None = None,
        shard: int = SHARD,
    ) -> None:
        self.folder = Path(folder)
        self.about = json.loads(json.dumps(dict(about or {})))
        self.limit = limit
        self.root = Path(root) if root is not None else self.folder
        self.shard = shard
        self.full = False  # something did not fit
        self._places: dict[str, tuple[Path, int]] = {}  # shard and checksum, by key
        self._known: set[str] = set()  # lists that were read
        self._handles: OrderedDict[Path, tuple[Any, int]] = OrderedDict()
        self._new: dict[str, Tensor] = {}
        self._bytes = 0
        self._written = 0
        for left in left_behind(self.folder) if os.access(self.folder, os.W_OK) else ():
            left.unlink(missing_ok=True)
        self.refresh()

    def __len__(self) -> int:
        return len(self._places.keys() | self._new.keys())

    def __contains__(self, key: str) -> bool:
        return key in self._new or key in self._places

    def refresh(self) -> None:
        """Look for what other processes have written.

        Raises:
            StoreError: a list is broken.
        """
        for file in lists(self.folder):
            if file.name not in self._known:
                found = read_list(file)
                self._known.add(file.name)
                shard = file.with_suffix(WHOLE)
                self._places |= {key: (shard, check) for key, check in found["tensors"].items()}

    def get(self, key: str) -> Tensor:
        """The tensor of a key; copy it before it is changed.

        Raises:
            KeyError: nothing is stored under it.
            StoreError: it is not what was stored.
        """
        if key in self._new:
            return self._new[key]
        shard, check = self._places[key]
        handle, size = self._open(shard)
        _check_size(shard, size)  # or reading past the end of a file that is mapped would end the process
        return read_tensor(handle, shard, key, check)

    def put(self, key: str, tensor: Tensor) -> None:
        """Store a tensor that is not stored yet; it is on the disk after `flush`, which comes by itself at times."""
        if key in self or self.full:
            return
        self._new[key] = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        self._bytes += tensor.nbytes + PER_KEY
        if self._bytes >= self.shard:
            self.flush()

    def flush(self) -> None:
        """Write what was put, as far as it fits into the limit: `full` says if some did not.

        Raises:
            SavingError: the disk refuses; what was stored before is as it was.
        """
        new, self._new, self._bytes = self._new, {}, 0
        if not new:
            return
        self.root.mkdir(parents=True, exist_ok=True)
        with _alone(self.root) if self.limit is not None else nullcontext():
            fitting = self._fitting(new)
            if fitting:
                self._write(fitting)

    def _fitting(self, new: dict[str, Tensor]) -> dict[str, Tensor]:
        if self.limit is None:
            return new
        room = self.limit - size_of(self.root) - len(json.dumps(self.about)) - PER_KEY
        fitting = {}
        for key, tensor in new.items():
            room -= tensor.nbytes + PER_KEY
            if room < 0:
                self.full = True
                break
            fitting[key] = tensor
        return fitting

    def _write(self, tensors: dict[str, Tensor]) -> None:
        writer = f"{socket.gethostname()}-{os.getpid()}"
        shard = self.folder / f"{secrets.token_hex(4)}-{self._written:05}.{writer}{WHOLE}"
        content = save(tensors)
        checks = {key: checksum(tensor) for key, tensor in tensors.items()}
        write_whole(shard, content)
        told = {"about": self.about, "bytes": len(content), "tensors": checks}
        write_whole(shard.with_suffix(LIST), json.dumps({**told, "check": _check(told)}))
        self._written += 1
        self._known.add(shard.with_suffix(LIST).name)
        self._places |= {key: (shard, check) for key, check in checks.items()}

    def _open(self, shard: Path) -> tuple[Any, int]:
        if shard not in self._handles:
            told = read_list(shard.with_suffix(LIST))
            self._handles[shard] = open_shard(shard, told["bytes"]), told["bytes"]
            if len(self._handles) > OPEN:
                self._handles.popitem(last=False)
        self._handles.move_to_end(shard)
        return self._handles[shard]


def checksum(tensor: Tensor) -> int:
    """A checksum of a tensor on the CPU: its dtype, its shape and its bytes."""
    said = zlib.crc32(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
    return zlib.crc32(tensor.contiguous().flatten().view(torch.uint8).numpy().data, said)


def read_tensor(handle: Any, shard: Path, key: str, check: int) -> Tensor:
    """A tensor of an open shard, compared with its checksum.

    Raises:
        StoreError: names the shard.
    """
    try:
        tensor: Tensor = handle.get_tensor(key)
    except (SafetensorError, RuntimeError, ValueError) as error:
        raise StoreError(f"{shard}: holds no whole tensor {key}: {error}; {_remedy(shard)}") from error
    if checksum(tensor) != check:
        raise StoreError(f"{shard}: tensor {key} is not what was stored: its checksum differs; {_remedy(shard)}")
    return tensor


def open_shard(shard: Path, size: int) -> Any:
    """A shard of so many bytes, mapped into memory.

    Raises:
        StoreError: it is gone, of another size, or no whole safetensors file.
    """
    _check_size(shard, size)
    try:
        return safe_open(shard, framework="pt")
    except SafetensorError as error:
        raise StoreError(f"{shard}: not a whole safetensors file: {error}; {_remedy(shard)}") from error


def _check_size(shard: Path, size: int) -> None:
    if not shard.is_file():
        raise StoreError(f"{shard}: is gone, and its list is still there; {_remedy(shard)}")
    found = shard.stat().st_size
    if found != size:
        raise StoreError(f"{shard}: has {found:,} bytes, and {size:,} were stored; {_remedy(shard)}")


def _remedy(file: Path) -> str:
    root = file.parents[1]
    return f"`usam cache verify {root} --remove` removes such files, and what they held is then stored again"


def read_list(file: Path) -> dict[str, Any]:
    """The list of a shard: `about`, `bytes` and the checksums of its `tensors`.

    Raises:
        StoreError: names the file.
    """
    try:
        found = json.loads(file.read_bytes())
        check = found.pop("check")
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise StoreError(f"{file}: not the list of a shard: {error}; {_remedy(file)}") from error
    if check != _check(found):
        raise StoreError(f"{file}: is not what was written: its checksum differs; {_remedy(file)}")
    return dict(found)


def _check(told: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps(told, sort_keys=True).encode())


def lists(folder: Path) -> list[Path]:
    """The lists of a folder's shards, by name."""
    if not folder.is_dir():
        return []
    names = (entry.name for entry in os.scandir(folder))
    return [folder / name for name in sorted(names) if name.endswith(LIST) and not name.startswith(".")]


def faults(folder: Path) -> Iterator[tuple[Path, str]]:
    """Read all that a folder holds: the list of each shard that is not what was written, and what is wrong."""
    for file in lists(folder):
        try:
            told = read_list(file)
            shard = file.with_suffix(WHOLE)
            handle = open_shard(shard, told["bytes"])
            for key, check in told["tensors"].items():
                read_tensor(handle, shard, key, check)
        except StoreError as error:
            yield file, str(error)


def unfinished(folder: Path) -> list[Path]:
    """Shards without a list and files that are being written: a writer's that is at work, or that was killed."""
    names = sorted(os.listdir(folder)) if folder.is_dir() else []
    mine = [name for name in names if name.endswith(WHOLE) or (name.startswith(".") and _writer(name) != name[1:])]
    return [folder / name for name in mine if not _is_listed(folder / name)]


def left_behind(folder: Path, stale: float = STALE) -> list[Path]:
    """Of what is unfinished, what a process wrote that ran here and runs no more, or that is `stale` seconds old."""
    old = time.time() - stale
    return [
        path
        for path in unfinished(folder)
        # The list is looked for again: the writer may have ended, all done, since.
        if (is_abandoned(_writer(path.name)) or _written_at(path) < old) and not _is_listed(path)
    ]


def _writer(name: str) -> str:
    """`TOKEN.HOST-PID` of a shard, and of what becomes a shard or its list."""
    return name.removeprefix(".").partition(WHOLE)[0].partition(LIST)[0]


def _is_listed(path: Path) -> bool:
    return not path.name.startswith(".") and path.with_suffix(LIST).is_file()


def _written_at(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:  # it has been put in its place
        return float("inf")


def size_of(folder: Path) -> int:
    """Bytes of all files in a folder."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.stat(os.path.join(place, name)).st_size
            except FileNotFoundError:  # another process has just put it in its place
                continue
    return total


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """While one process looks how much room there is, and takes it, no other does."""
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    with (folder / ".lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
