"""What frozen encoders give for a clip is computed once, and read again in every epoch after.

A clip's frames depend on that clip alone, so they are stored one by one. They are those of one encoder: its weights, by
their hash, its options, what provides it, the rate that its audio is resampled from, and usam's arithmetic. And those
of one waveform, by its hash, as the model is given it: at the model's rate, after range and channel. A change in any of
these is another key, and what was stored under the old one is not read.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from usam.clock import rescale
from usam.component import DTYPES, is_adapter, is_frozen, own_dtype
from usam.data.store import SHARD, WHOLE, Store, faults, left_behind, lists, read_list, size_of, unfinished
from usam.model.model import UsamForConditionalGeneration, UsamModel
from usam.providers import providers
from usam.types import Audio, Frames

logger = logging.getLogger(__name__)

ARITHMETIC = 1  # one more whenever an encoder of usam's, or the resampler, gives other frames for the same weights
SAME_FRAMES = ("path", "revision", "freeze", "lora", "lr_scale", "dtype")  # options; the weights speak for these
HALVES = ("float16", "bfloat16")
GIB = 2**30
KEY = re.compile("[0-9a-f]{32}")


class CacheError(ValueError):
    """Frames cannot be stored, or are not what was stored: the message says of which encoder, and why."""


class FeatureCache:
    """The frames of a model's encoders, read from a folder where they are stored, else computed and stored there.

    What the encoders give is computed without autocast, in the dtype of their weights. As a context it writes, at its
    end, what is still in memory.

    Args:
        folder: where; several processes may read and fill it at once.
        model: all its encoders are frozen.
        dtype: `float16` or `bfloat16` halves what is stored of float32. A value is then off by at most 0.05 % of itself
            in float16 (below 6e-5 by at most 3e-8; above 65504 is an error), and by 0.4 % in bfloat16, the first
            time as well. None stores what the encoders give, bit for bit.
        limit: GiB that the folder may hold; when it is full nothing more is stored, with one warning.
        shard: bytes after which what was gathered is written.

    Raises:
        CacheError: an encoder's frames cannot be stored, with the reason.
        StoreError: the folder holds a broken list.
    """

    def __init__(
        self,
        folder: str | Path,
        model: UsamForConditionalGeneration | UsamModel,
        *,
        dtype: str | None = None,
        limit: float | None = None,
        shard: int = SHARD,
    ) -> None:
        if dtype is not None and dtype not in HALVES:
            raise CacheError(f"dtype is {' or '.join(HALVES)}, or nothing to store frames as they are; found {dtype!r}")
        body = model.model if isinstance(model, UsamForConditionalGeneration) else model
        if reasons := refusals(body):
            raise CacheError("frames cannot be stored: " + "; ".join(reasons))
        if Path(folder).exists() and not Path(folder).is_dir():
            raise CacheError(f"{folder}: is a file; name a folder")
        Path(folder).mkdir(parents=True, exist_ok=True)  # where that is not allowed, it is told before the work
        self.rate: int = body.config.parsed.sample_rate
        self.dtype = None if dtype is None else DTYPES[dtype]
        self.encoders = dict(body.encoders.parts())
        self.stores: dict[str, Store] = {}
        for name, about in abouts(body, dtype).items():
            bound = None if limit is None else int(limit * GIB)
            self.stores[name] = Store(Path(folder, key_of(about)), about, limit=bound, root=folder, shard=shard)
        self.folder = Path(folder)
        self.limit = limit
        self.encoded = 0  # clips that an encoder was run on, over all encoders
        self._warned = False

    def __enter__(self) -> FeatureCache:
        return self

    def __exit__(self, *error: object) -> None:
        self.flush()

    def flush(self) -> None:
        """Write what is still in memory.

        Raises:
            SavingError: the disk refuses; what was stored before is as it was.
        """
        for store in self.stores.values():
            store.flush()
        self._tell()

    def _tell(self) -> None:
        if not self._warned and any(store.full for store in self.stores.values()):
            self._warned = True
            logger.warning(
                "%s: its limit of %g GiB is reached; what is not stored is encoded each time", self.folder, self.limit
            )

    def frames(
        self, values: Tensor, mask: Tensor | None = None, clips: Sequence[str] | None = None
    ) -> dict[str, tuple[Tensor, Tensor]]:
        """Each encoder's frames (clip, time, dim) and their mask, as `forward` takes them for `audio_frames`.

        Args:
            values: (clip, samples) at the model's rate.
            mask: (clip, samples); None for clips that fill their rows.
            clips: what `clip_keys` gives for these; None computes it.

        Raises:
            CacheError: an encoder gives what cannot be stored.
            StoreError: what is stored is broken; names the file.
        """
        mask = torch.ones_like(values, dtype=torch.bool) if mask is None else mask.bool()
        clips = clip_keys(values, mask, self.rate) if clips is None else clips
        audio = Audio(values.float(), mask, self.rate)
        return {name: self._of(name, audio, clips) for name in self.encoders}

    def fill(self, values: Tensor, mask: Tensor) -> None:
        """Compute and store what is not stored yet; arguments and errors are those of `frames`."""
        clips = clip_keys(values, mask, self.rate)
        audio = Audio(values.float(), mask.bool(), self.rate)
        for name in self.encoders:
            self._keep(name, self._fresh(name, audio, clips))

    def _fresh(self, name: str, audio: Audio, clips: Sequence[str]) -> dict[str, Tensor]:
        """The frames of the clips that were not stored."""
        store = self.stores[name]
        if any(clip not in store for clip in clips):
            store.refresh()
        missing = {clip: i for i, clip in enumerate(clips) if clip not in store}
        if not missing:
            return {}
        return dict(zip(missing, self._encoded(name, audio, list(missing.values())), strict=True))

    def _keep(self, name: str, fresh: Mapping[str, Tensor]) -> None:
        for clip, x in fresh.items():
            self.stores[name].put(clip, x)
        self._tell()

    def _of(self, name: str, audio: Audio, clips: Sequence[str]) -> tuple[Tensor, Tensor]:
        encoder, store = self.encoders[name], self.stores[name]
        found = self._fresh(name, audio, clips)
        own = encoder.config.sample_rate
        lengths = encoder.config.length(rescale(audio.lengths, self.rate, own))
        size = encoder.config.length(rescale(audio.x.shape[1], self.rate, own))
        given = self.dtype and (own_dtype(encoder) or torch.float32)
        rows = [found[clip] if clip in found else store.get(clip) for clip in clips]
        self._keep(name, found)  # which may write, and what does not fit is no longer there
        frames = rows[0].new_zeros(len(rows), size, encoder.dim, dtype=given)
        for i, (row, length) in enumerate(zip(rows, lengths.tolist(), strict=True)):
            if row.shape != (length, encoder.dim):
                raise CacheError(
                    f"{store.folder}: clip {clips[i]} has frames of {tuple(row.shape)}, and encoders.{name} gives "
                    f"{(length, encoder.dim)}; remove the folder"
                )
            frames[i, :length] = row
        device = audio.x.device
        return frames.to(device), torch.arange(size, device=device) < lengths.unsqueeze(-1)

    def _encoded(self, name: str, audio: Audio, rows: list[int]) -> list[Tensor]:
        """What the encoder gives for some clips, each (time, dim), as it is stored."""
        encoder = self.encoders[name]
        heard = Audio(audio.x[rows], audio.mask[rows], audio.rate).at(encoder.config.sample_rate)
        with torch.no_grad(), torch.autocast(audio.x.device.type, enabled=False):
            frames: Frames = encoder(heard.x, heard.mask)
        if frames.aux:
            raise CacheError(f"encoders.{name} gives by-products ({', '.join(frames.aux)}), which are not stored")
        self.encoded += len(rows)
        x = frames.x.to("cpu", self.dtype or frames.x.dtype)
        found = []
        for row, length in zip(x, frames.lengths.tolist(), strict=True):
            if not bool(row[:length].isfinite().all()):
                wide = self.dtype is torch.float16 and bool(frames.x.isfinite().all())
                why = (
                    "values beyond float16; store bfloat16, or as they are" if wide else "NaN or infinity in its frames"
                )
                raise CacheError(f"encoders.{name}: {why}; nothing of this batch is stored")
            found.append(row[:length])
        return found


@dataclass(frozen=True)
class Held:
    """What a cache holds of one encoder."""

    key: str
    about: Mapping[str, Any]
    clips: int
    shards: int
    size: int  # bytes, all files
    unfinished: int  # files


def held(folder: str | Path) -> list[Held]:
    """What a cache holds, an encoder each.

    Raises:
        CacheError: it is no folder.
        StoreError: a list is broken.
    """
    found = []
    for place in _places(folder):
        listed = [read_list(file) for file in lists(place)]
        clips = {clip for told in listed for clip in told["tensors"]}
        about = listed[0]["about"] if listed else {}
        found.append(Held(place.name, about, len(clips), len(listed), size_of(place), len(unfinished(place))))
    return found


def verify(folder: str | Path, *, remove: bool = False) -> list[str]:
    """Read all that a cache holds, and tell what is not what was written.

    Args:
        folder: the cache.
        remove: the broken shards, and what killed writers left; what they held will be encoded again.

    Raises:
        CacheError: it is no folder.
    """
    found = []
    for place in _places(folder):
        for file, why in faults(place):
            found.append(why)
            if remove:
                for path in (file, file.with_suffix(WHOLE)):
                    path.unlink(missing_ok=True)
        for left in left_behind(place) if remove else ():
            left.unlink(missing_ok=True)
    return found


def _places(folder: str | Path) -> list[Path]:
    if not Path(folder).is_dir():
        raise CacheError(f"{folder}: no such folder")
    found = sorted(path for path in Path(folder).iterdir() if path.is_dir() and KEY.fullmatch(path.name))
    if not found:
        raise CacheError(f"{folder}: holds no frames of encoders")
    return found


def refusals(model: UsamModel) -> list[str]:
    """Why the frames of a model's encoders cannot be stored; nothing if they can."""
    reasons = []
    for name, encoder in model.encoders.parts():
        trains = [key for key, parameter in encoder.named_parameters() if parameter.requires_grad]
        where = f"encoders.{name}"
        if any(is_adapter(key) for key, _ in encoder.named_parameters()):
            reasons.append(f"{where}.lora: its adapters train, and change its frames; leave lora out")
        elif any(key.startswith("mix.") for key in trains):
            reasons.append(
                f"{where}.layers: the mix of its layers trains, and the layers themselves are not stored; "
                "write layers: last, or numbers of layers"
            )
        elif not is_frozen(encoder):
            reasons.append(f"{where}.freeze: {trains[0]} trains, and changes its frames; write freeze: all")
        elif encoder.config.freeze == "none":
            reasons.append(f"{where}.freeze: none leaves on what is random in training; write freeze: all")
        elif any(parameter.is_meta for parameter in encoder.parameters()):
            reasons.append(f"{where} has no weights; build the model with weights")
    return reasons


def abouts(model: UsamModel, dtype: str | None = None) -> dict[str, dict[str, Any]]:
    """What the frames of each encoder depend on, beside the clip, as plain data."""
    spec = model.config.parsed
    provided = providers(spec)
    found = {}
    for name, encoder in model.encoders.parts():
        config = encoder.config
        key = f"usam.encoders:{config.type}"
        package = provided["components"].get(key, "")
        own = package.startswith("usam ")
        options = {option: value for option, value in config.to_dict().items() if option not in SAME_FRAMES or not own}
        kind = config.type.rpartition(":")[2]  # as a saved model names it, its provider stands before it
        found[name] = {
            "encoder": kind,
            "by": f"usam, arithmetic {ARITHMETIC}" if own else [package, provided.get("plugins", {}).get(key)],
            "options": {**options, "type": kind},
            "weights": hash_of(encoder.state_dict()),
            "audio": spec.sample_rate,
            "stored": dtype or "as given",
            "dim": encoder.dim,
        }
    return found


def key_of(about: Mapping[str, Any]) -> str:
    """The folder of what depends on this."""
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:32]


def hash_of(tensors: Mapping[str, Tensor]) -> str:
    """A hash of tensors, their names, dtypes and shapes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def clip_keys(values: Tensor, mask: Tensor | None, rate: int) -> list[str]:
    """The hash of each clip's own samples: (clip, samples) at `rate`, of which the mask marks the first."""
    lengths = [values.shape[1]] * len(values) if mask is None else mask.sum(-1).tolist()
    keys = []
    for row, length in zip(values.detach().float().cpu(), lengths, strict=True):
        digest = hashlib.blake2b(f"{rate}\n".encode(), digest_size=16)
        digest.update(row[:length].contiguous().numpy().data)
        keys.append(digest.hexdigest())
    return keys


class Keyed:
    """A collator whose batches also have `clips`, the key of each, so that those who read the audio hash it."""

    def __init__(self, collate: Callable[[Any], dict[str, Any]], rate: int) -> None:
        self.collate = collate
        self.rate = rate

    def __call__(self, samples: Any) -> dict[str, Any]:
        batch = self.collate(samples)
        if "input_values" in batch:
            batch["clips"] = clip_keys(batch["input_values"], batch.get("input_values_mask"), self.rate)
        return batch
