"""What `forward` is given is checked before any work: its names, its shapes, and that every placeholder has a clip.

What needs the values is not looked at while compiling, nor on the meta device.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

import torch
from torch import Tensor
from transformers.cache_utils import CacheLayerMixin
from transformers.utils import TransformersKwargs

from usam.clock import rescale
from usam.component import Parts
from usam.registry import did_you_mean
from usam.spec.spec import Spec
from usam.types import Audio, Frames, prefix_mask

Given = Mapping[str, tuple[Tensor, Tensor]] | tuple[Tensor, Tensor] | None
"""What was computed before: frames (clip, time, dim) and mask (clip, time), of encoders by name, or of the fusion."""

# What transformers and vLLM hand to whatever they run, for the attention in it; and what would do nothing here.
HANDED_ON = {*TransformersKwargs.__optional_keys__, "use_cache", "cache_position", "attention_instances"}
NOTHING_HERE = {"num_items_in_batch", "output_router_logits"}


def names_of(forward: Callable[..., Any], backbone: Callable[..., Any]) -> frozenset[str]:
    """The arguments of a model's `forward`: its own, and those that it hands on to the language model's."""
    own, inner = (inspect.signature(f).parameters.values() for f in (forward, backbone))
    named = {p.name for p in (*own, *inner) if p.kind is not p.VAR_KEYWORD}
    more = HANDED_ON - NOTHING_HERE if any(p.kind is p.VAR_KEYWORD for p in inner) else set()
    return frozenset(named | more)


def check_prompt(model: Any, given: bool) -> None:
    """What reads the instruction is given it.

    Raises:
        ValueError: it is not.
    """
    names = [type(part).__name__ for part in (model.fusion, *model.projector.stages) if part.reads_prompt]
    if names and not given:
        raise ValueError(
            f"{', '.join(names)} reads the prompt: pass 'prompt_mask' (UsamProcessor makes it), or fix the "
            "gates with `usam export --task`"
        )


def check_names(given: Iterable[str], known: frozenset[str]) -> None:
    """No argument is swallowed.

    Raises:
        TypeError: one that would do nothing, with the names that come close.
    """
    for name in given:
        if name not in known:
            raise TypeError(
                f"no argument '{name}'; {did_you_mean(name, sorted(known))}. What a loss alone reads goes into 'batch'"
            )


def check_shapes(
    input_ids: Tensor | None,
    inputs_embeds: Tensor | None,
    input_values: Tensor | None,
    input_values_mask: Tensor | None,
    attention_mask: Any,
    prompt_mask: Tensor | None,
    cache: Any,
    given: Given = None,
) -> None:
    """Compare the inputs with each other.

    Raises:
        ValueError: two that exclude each other, one without the other that it needs, or shapes that do not fit.
    """
    if torch.compiler.is_compiling():
        return
    if input_ids is None and inputs_embeds is None:
        raise ValueError("give input_ids or inputs_embeds")
    if input_ids is not None and inputs_embeds is not None:
        raise ValueError("input_ids and inputs_embeds are two ways to say the same: give one of the two")
    if inputs_embeds is not None and (input_values is not None or given is not None):
        name = "audio_frames" if input_values is None else "input_values"
        raise ValueError(
            f"inputs_embeds do not say where the clips stand: give input_ids with {name}, or leave {name} "
            "out where the embeddings hold the audio already"
        )
    which = "input_ids" if input_ids is not None else "inputs_embeds"
    tokens: Any = input_ids if input_ids is not None else inputs_embeds
    if tokens.ndim != (2 if input_ids is not None else 3):
        axes = "(batch, length)" if input_ids is not None else "(batch, length, dim)"
        raise ValueError(f"{which} is {axes}, found {tuple(tokens.shape)}")
    rows, length = tokens.shape[:2]
    if prompt_mask is not None and prompt_mask.shape != (rows, length):
        raise _other("prompt_mask", prompt_mask, which, (rows, length))
    if isinstance(attention_mask, Tensor) and attention_mask.ndim == 2:
        _check_attention_mask(attention_mask, which, rows, length, _cached(cache))
    if input_values is not None:
        _check_clips(input_values, input_values_mask)
    elif input_values_mask is not None and not isinstance(given, Mapping):
        raise ValueError("input_values_mask says which of input_values are a clip's own: give input_values")


def _check_attention_mask(mask: Tensor, which: str, rows: int, length: int, cached: int | None) -> None:
    if cached is None:
        if mask.shape[0] != rows or mask.shape[1] < length:
            raise _other("attention_mask", mask, which, (rows, length))
    elif tuple(mask.shape) != (rows, cached + length):
        after = f"; it covers the {cached} tokens in the cache as well" if cached else ""
        raise _other("attention_mask", mask, which, (rows, cached + length), after)


def _check_clips(values: Tensor, mask: Tensor | None) -> None:
    if values.ndim != 2 or len(values) == 0:
        raise ValueError(
            f"input_values is (clip, samples), all clips of the batch below each other, found {tuple(values.shape)}; "
            "without a clip, leave it out"
        )
    if not values.is_floating_point():
        raise ValueError(f"input_values is a waveform in [-1, 1], found {values.dtype}; divide 16-bit samples by 32768")
    if mask is None:
        return
    if mask.shape != values.shape:
        raise _other("input_values_mask", mask, "input_values", tuple(values.shape))
    _check_prefix(mask, "input_values_mask", "samples")


def _check_prefix(mask: Tensor, name: str, what: str) -> None:
    if torch.compiler.is_compiling() or mask.is_meta:
        return
    if bool((mask[:, 1:].bool() & ~mask[:, :-1].bool()).any()):
        raise ValueError(f"{name}: a clip's own {what} come first, padding goes on their right")


def _other(name: str, found: Tensor, beside: str, expected: tuple[int, ...], why: str = "") -> ValueError:
    return ValueError(
        f"{name} is {tuple(found.shape)}, but {expected} is what goes with {beside}{why}; "
        "UsamProcessor makes them together"
    )


def _cached(cache: Any) -> int | None:
    """Tokens in a cache; None when it does not count them."""
    if cache is None:
        return 0
    layers = getattr(cache, "layers", None)
    if layers is None or (layers and not any(isinstance(layer, CacheLayerMixin) for layer in layers)):
        return None
    return int(cache.get_seq_length())


def audio_of(values: Tensor | None, mask: Tensor | None, given: Given, spec: Spec) -> Audio | None:
    """The clips: of those that encoders' frames stand for, the lengths alone; None where the fusion's frames do.

    Args:
        values: (clip, samples).
        mask: (clip, samples); None for clips that fill their rows.
        given: what stands for the clips, or beside them.
        spec: of the model.

    Raises:
        ValueError: what is given does not tell what is heard.
    """
    if given is not None and not isinstance(given, Mapping):
        if values is not None:
            raise ValueError("audio_frames of the fusion stand for input_values: leave these out")
        if isinstance(given, Tensor) or len(given) != 2 or not all(isinstance(part, Tensor) for part in given):
            raise ValueError("audio_frames are (frames, mask) of the fusion, or such a pair for each encoder by name")
        return None
    if values is None:
        if missing := [name for name in sorted(spec.encoders) if name not in (given or {})]:
            raise ValueError(
                f"audio_frames: none for {', '.join(missing)}, and no input_values that would be encoded; give one of "
                "the two"
            )
        if mask is None:
            raise ValueError(
                "audio_frames of encoders do not say how long the clips are: give input_values_mask with them, True on "
                "each clip's own samples, or input_values; or the fusion's frames, as (frames, mask)"
            )
        if mask.ndim != 2 or len(mask) == 0:
            raise ValueError(f"input_values_mask is (clip, samples), found {tuple(mask.shape)}")
        _check_prefix(mask, "input_values_mask", "samples")
        values = torch.zeros(1, 1, device=mask.device).expand(mask.shape)
    mask = torch.ones_like(values, dtype=torch.bool) if mask is None else mask.bool()
    return Audio(values.float(), mask, spec.sample_rate)


def taken(values: Tensor | None, mask: Tensor | None, given: Given, spec: Spec) -> Tensor:
    """How many placeholders each clip takes, before anything is computed of it; arguments as of `audio_of`."""
    audio = audio_of(values, mask, given, spec)
    if audio is not None:
        return spec.placeholders(audio.lengths)
    frames: Tensor = cast(Any, given)[1].sum(-1)
    return frames * 0 + 1 if spec.beside else spec.projected_length(frames, spec.fused_length(spec.sample_rate)[1])[0]


def given_frames(given: Given, encoders: Parts, audio: Audio) -> dict[str, Frames]:
    """What encoders gave for these clips before, by name.

    Raises:
        ValueError: no such encoder, or frames that are not those of such clips.
    """
    known = dict(encoders.parts())
    found = {}
    for name, (x, mask) in (given if isinstance(given, Mapping) else {}).items():
        if name not in known:
            raise ValueError(f"audio_frames: no encoder '{name}'; {did_you_mean(name, known)}")
        config, what = known[name].config, f"audio_frames['{name}']"
        size = config.length(rescale(audio.x.shape[1], audio.rate, config.sample_rate))
        lengths = config.length(rescale(audio.lengths, audio.rate, config.sample_rate))
        if x.shape != (shape := (len(audio.x), size, known[name].dim)):
            raise _other(what, x, "input_values", shape)
        if mask.shape != shape[:2]:
            raise _other(f"the mask of {what}", mask, "input_values", shape[:2])
        checked = not torch.compiler.is_compiling() and not mask.is_meta
        if checked and not torch.equal(mask, prefix_mask(lengths, size)):
            raise ValueError(
                f"the mask of {what} counts {mask.sum(-1).tolist()} frames, and these clips have {lengths.tolist()}, "
                "which come first"
            )
        found[name] = Frames(x, mask, config.rate)
    return found


def fused_frames(given: tuple[Tensor, Tensor], fusion: Any, spec: Spec) -> Frames:
    """What the fusion gave before.

    Raises:
        ValueError: they are not its frames.
    """
    x, mask = given
    if x.ndim != 3 or len(x) == 0 or x.shape[2] != fusion.dim or not x.is_floating_point():
        raise ValueError(
            f"audio_frames is {tuple(x.shape)} of {x.dtype}, and the fusion gives (clip, time, {fusion.dim}) of floats"
        )
    if mask.shape != x.shape[:2]:
        raise _other("the mask of audio_frames", mask, "these frames", tuple(x.shape[:2]))
    _check_prefix(mask, "the mask of audio_frames", "frames")
    return Frames(x, mask.bool(), spec.fused_length(spec.sample_rate)[1])


def check_heard(slots: Tensor) -> None:
    """Without clips there is no placeholder.

    Raises:
        ValueError: a prompt whose audio is missing.
    """
    if torch.compiler.is_compiling() or slots.is_meta:
        return
    if bool(slots.any()):
        raise ValueError(
            f"{int(slots.sum())} audio placeholders in input_ids, but no clips: pass 'input_values' (UsamProcessor "
            "makes it), or write the prompt without <|audio|>"
        )


def check_labels(labels: Tensor, wanted: Tensor, shape: tuple[int, ...], audio_token: int | None) -> None:
    """Labels say token by token what the state before it should predict; `wanted` are those that are supervised.

    Raises:
        ValueError: another shape than the inputs, nothing supervised, or audio that is to be predicted.
    """
    if torch.compiler.is_compiling():
        return
    if labels.shape != shape:
        raise _other("labels", labels, "the inputs", shape)
    if wanted.numel() == 0:
        raise ValueError(
            "labels have no supervised token: every label is -100 (or only the first position is not); "
            "check the data with `usam check SPEC DATA`"
        )
    if audio_token is not None and not wanted.is_meta and bool((wanted == audio_token).any()):
        raise ValueError(f"labels: audio placeholders ({audio_token}) cannot be predicted; put -100 in their place")
