"""Cross-attention lets a language model listen to the audio from beside its words, instead of among them.

Gated blocks stand before its decoder layers, whichever causal LM of transformers it is: forward pre-hooks put
them there, so that neither its code nor the names of its weights change.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache

from usam.component import Component, adapt, building
from usam.llm import CrossAttentionConfig
from usam.model.pretrained import in_float32
from usam.registry import ComponentError
from usam.types import Frames
from usam.versions.compat import cache_argument

NEVER = torch.iinfo(torch.long).max  # a place that no token reaches


class CrossAttention(Component):
    """Gated cross-attention and feed-forward blocks before the decoder layers of a language model.

    Flamingo (Alayrac et al., 2022, section 2.2) and, for audio, Audio Flamingo (Kong et al., 2024, section 3.1).

    Args:
        dim: width of the states between the decoder layers.
        audio_dim: width of the projected frames.
        layers: the decoder layers.
    """

    Config = CrossAttentionConfig

    def __init__(self, config: CrossAttentionConfig, *, dim: int, audio_dim: int, layers: Sequence[nn.Module]) -> None:
        super().__init__(config)
        self.dim, self.audio_dim = dim, audio_dim
        self.before = list(range(config.every - 1, len(layers), config.every))
        if not self.before:
            raise ComponentError(
                f"llm.injection: 'every' is {config.every}, but the language model has {len(layers)} decoder layers"
            )
        self.blocks = nn.ModuleList(GatedBlock(config, dim=dim, audio_dim=audio_dim) for _ in self.before)
        for i, layer in enumerate(self.before):
            layers[layer].register_forward_pre_hook(_Before(self, i), with_kwargs=True)

    def listen(self, audio: Frames | None, places: Tensor | None, cache: Any, tokens: int) -> Listening | None:
        """What the next `tokens` tokens hear; None when there is nothing to be heard.

        Args:
            audio: frames (batch, time, audio_dim) of the clips among these tokens, or None.
            places: (batch, time), the column of each frame's placeholder among these tokens.
            cache: the language model's, which remembers the clips before them; None at the start.
            tokens: how many tokens come.
        """
        seen = cache.get_seq_length() if cache is not None else 0
        memory = memory_of(cache)
        if memory is not None and memory.cropped:
            memory.forget(seen)
        known = [] if memory is None or memory.places is None else [memory.places]
        if audio is not None and places is not None:
            known.append((places + seen).masked_fill(~audio.mask, NEVER))
        if not known:
            return None
        where = torch.cat(known, -1) if len(known) > 1 else known[0]
        position = torch.arange(tokens, device=where.device) + seen
        mask = where.unsqueeze(-2) <= position.unsqueeze(-1)
        if self.config.clips == "last":
            last = where.unsqueeze(-2).masked_fill(~mask, -1).amax(-1, keepdim=True)
            mask = mask & (where.unsqueeze(-2) == last)
        past = memory.states if memory is not None and memory.places is not None else [None] * len(self.blocks)
        return Listening(mask.unsqueeze(1), where, None if audio is None else audio.x, past)

    def silence(self, embeds: Tensor) -> tuple[Frames, Tensor]:
        """A frame that no token hears, and its place: through it every block has a gradient, which is zero."""
        x = embeds.new_zeros(len(embeds), 1, self.audio_dim, dtype=torch.float32)
        mask = x.new_zeros(x.shape[:2], dtype=torch.bool)
        return Frames(x, mask, 0.0), mask.long()

    def hear(self, index: int, x: Tensor, heard: Listening) -> Tensor:
        """The states before a decoder layer, after block `index` has listened."""
        if x.ndim != 3 or x.shape[-1] != self.dim:
            raise ComponentError(
                f"llm.injection: the decoder layers take states of shape {tuple(x.shape)}, and cross-attention needs "
                f"(batch, length, {self.dim}); use 'injection: prefix' with this language model"
            )
        block: Any = self.blocks[index]
        past = heard.past[index] or (None, None)
        inputs = (x, heard.mask.to(x.device), heard.audio, *past)
        if block.gradient_checkpointing and block.training:
            x, keys, values = block._gradient_checkpointing_func(block.__call__, *inputs)
        else:
            x, keys, values = block(*inputs)
        heard.states.append((keys, values))
        return x


def blocks_before(
    backbone: Any, injection: CrossAttentionConfig | None, audio_dim: int, seed: int | None
) -> CrossAttention | None:
    """The blocks before a language model's decoder layers; None if the audio comes in place of its placeholders."""
    if injection is None:
        return None
    with in_float32(), building("llm.injection", injection, seed):
        layers, dim = decoder_layers(backbone), backbone.config.hidden_size
        return adapt(CrossAttention(injection, dim=dim, audio_dim=audio_dim, layers=layers), injection)


class GatedBlock(nn.Module):
    """States attend to frames, then a feed-forward layer; tanh gates that start at zero let neither through.

    Alayrac et al., 2022, figure 4. A state that hears nothing passes unchanged.
    """

    gradient_checkpointing = False  # transformers sets it, and the function that checkpoints

    def __init__(self, config: CrossAttentionConfig, *, dim: int, audio_dim: int) -> None:
        super().__init__()
        self.heads, inner, wide = config.heads, config.heads * config.head_dim, config.feed_forward * dim
        self.norm, self.audio_norm = nn.LayerNorm(dim), nn.LayerNorm(audio_dim)
        self.query = nn.Linear(dim, inner, bias=False)
        self.key_value = nn.Linear(audio_dim, 2 * inner, bias=False)
        self.out = nn.Linear(inner, dim, bias=False)
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(dim), nn.Linear(dim, wide, bias=False), nn.GELU(), nn.Linear(wide, dim, bias=False)
        )
        self.attention_gate = nn.Parameter(torch.empty(1))
        self.feed_forward_gate = nn.Parameter(torch.empty(1))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Close the gates."""
        nn.init.zeros_(self.attention_gate)
        nn.init.zeros_(self.feed_forward_gate)

    def forward(
        self, x: Tensor, mask: Tensor, audio: Tensor | None, keys: Tensor | None, values: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The states (batch, length, dim), with the keys and values (batch, heads, time, head_dim) of all frames.

        Args:
            x: (batch, length, dim).
            mask: (batch, 1, length, time), True where a token hears a frame.
            audio: (batch, new time, audio_dim), frames whose keys and values are not known yet.
            keys, values: of the frames before those.
        """
        dtype = self.query.weight.dtype
        if audio is not None:
            new = self.key_value(self.audio_norm(audio.to(x.device, dtype)))
            k, v = rearrange(new, "b t (two h d) -> two b h t d", two=2, h=self.heads)
            keys = k if keys is None else torch.cat([keys, k], -2)
            values = v if values is None else torch.cat([values, v], -2)
        assert keys is not None
        assert values is not None
        # Who hears nothing attends anywhere, for a softmax over nothing is NaN; what it finds is dropped.
        deaf = ~mask.any(-1, keepdim=True)
        q = rearrange(self.query(self.norm(x.to(dtype))), "b l (h d) -> b h l d", h=self.heads)
        found = F.scaled_dot_product_attention(q, keys, values, attn_mask=mask | deaf)
        found = self.out(rearrange(found, "b h l d -> b l (h d)"))
        x = x + (self.attention_gate.tanh() * found).masked_fill(deaf.squeeze(1), 0).to(x.dtype)
        found = self.feed_forward(x.to(dtype))
        x = x + (self.feed_forward_gate.tanh() * found).masked_fill(deaf.squeeze(1), 0).to(x.dtype)
        return x, keys, values


State = tuple[Tensor, Tensor]  # keys and values of one block


@dataclass
class Listening:
    """What the blocks hear in one forward pass, and what they made of it."""

    mask: Tensor  # batch 1 token time: True where a token hears a frame
    places: Tensor  # batch time: where each frame's placeholder stands in the cache
    audio: Tensor | None  # batch time audio_dim: the frames that no block has heard yet
    past: Sequence[State | None]  # a block: its keys and values of the frames before
    states: list[State] = field(default_factory=list)  # a block: those of all frames

    def remember(self, cache: Any) -> None:
        """Leave keys, values and places with the language model's cache, for the tokens that follow."""
        if self.audio is None or not isinstance(cache, Cache):  # nothing new: what it has is not written again
            return
        memory = memory_of(cache)
        text = next((layer for layer in cache.layers if isinstance(layer, CacheLayerMixin)), None)
        if memory is None and text is not None:
            memory = AudioMemory(text)
            cache.layers.append(memory)  # last, and only now: some caches make their own layers when these first run
        if memory is not None:
            memory.places, memory.states = self.places, self.states


class _Now(threading.local):
    """What is heard at the moment, in this thread: nothing outlives its forward pass."""

    listening: Listening | None = None


_now = _Now()


@contextmanager
def hearing(listening: Listening | None) -> Iterator[None]:
    """While the language model runs: what its blocks hear."""
    before, _now.listening = _now.listening, listening
    try:
        yield
    finally:
        _now.listening = before


class _Before:
    """The hook before a decoder layer; an object, not a closure, so that a copied model calls its own blocks."""

    def __init__(self, blocks: CrossAttention, index: int) -> None:
        self.blocks, self.index = blocks, index

    def __call__(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        heard = _now.listening
        if heard is None:
            if not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1:
                raise RuntimeError(
                    "cross-attention: a decoder layer is recomputed in the backward pass, where its audio is gone; "
                    "gradient checkpointing needs transformers 5.23 or later, with its own layers"
                )
            return None
        if args:
            return (self.blocks.hear(self.index, args[0], heard), *args[1:]), kwargs
        if "hidden_states" in kwargs:
            return args, {**kwargs, "hidden_states": self.blocks.hear(self.index, kwargs["hidden_states"], heard)}
        raise ComponentError(f"llm.injection: {type(layer).__name__} takes no 'hidden_states'; use 'injection: prefix'")


class AudioMemory(CacheLayerMixin):
    """What the blocks keep in the language model's cache: it follows beams, copies and selections of the samples.

    Args:
        text: the cache's first layer, for whoever asks this one about the text's length.
    """

    is_compileable = True
    is_croppable = True
    supports_early_init = False

    def __init__(self, text: CacheLayerMixin) -> None:
        super().__init__()
        self.text = text
        self.is_initialized = True
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self.places: Tensor | None = None
        self.states: list[State] = []
        self.cropped = False

    def crop(self, tokens_to_remove: int) -> None:
        """Remember that tokens were removed; which clips went with them is seen when the next ones come."""
        self.cropped = self.cropped or tokens_to_remove != 0

    def forget(self, length: int) -> None:
        """Drop the clips whose placeholders stood past the cache's length."""
        self.cropped = False
        if self.places is not None:
            self.places = self.places.masked_fill(self.places >= length, NEVER)

    def _rows(self, rows: Tensor) -> None:
        if self.places is not None:
            self.places = self.places[rows.to(self.places.device)]
            self.states = [(k[rows.to(k.device)], v[rows.to(v.device)]) for k, v in self.states]

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Follow the beams."""
        self._rows(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep some samples."""
        self._rows(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Copy every sample."""
        if self.places is not None:
            self._rows(torch.arange(len(self.places)).repeat_interleave(repeats))

    def offload(self) -> None:
        """Stay on the device."""

    def prefetch(self) -> None:
        """Be on the device."""

    def get_seq_length(self) -> int:
        """The text's."""
        length: int = self.text.get_seq_length()
        return length

    def get_max_length(self) -> int:
        """No bound."""
        return -1

    def lazy_initialization(self, *args: Any) -> None:
        """Nothing to do."""

    def update(self, *args: Any, **kwargs: Any) -> Any:
        """Not for layers of text."""
        raise NotImplementedError("the audio's memory is written by Listening.remember")

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """The text's."""
        sizes: tuple[int, int] = self.text.get_mask_sizes(query_length)
        return sizes


def memory_of(cache: Any) -> AudioMemory | None:
    """The audio's memory in a language model's cache, if it has any."""
    return next((layer for layer in getattr(cache, "layers", ()) if isinstance(layer, AudioMemory)), None)


def decoder_layers(backbone: Any) -> list[nn.Module]:
    """The decoder layers of a language model: its outermost list of `num_hidden_layers` modules.

    Raises:
        ComponentError: there is no such list, or more than one; or no cache that could remember the audio.
    """
    layers = DynamicCache(config=backbone.config).layers  # none, where they are made as the model runs
    attends = not layers or any(isinstance(layer, CacheLayerMixin) for layer in layers)
    if cache_argument(backbone.forward) is None or not attends:
        raise ComponentError(
            "llm.injection: cross_attention remembers the audio in a cache of keys and values, which "
            f"{type(backbone).__name__} does not take; use 'injection: prefix' with this language model"
        )
    count = backbone.config.num_hidden_layers
    lists = {name: m for name, m in backbone.named_modules() if isinstance(m, nn.ModuleList)}
    fit = [name for name, m in lists.items() if len(m) == count]
    outermost = min((name.count(".") for name in fit), default=0)
    fit = [name for name in fit if name.count(".") == outermost]
    if len(fit) != 1:
        found = ", ".join(f"{name} ({len(lists[name])})" for name in fit or lists) or "no list at all"
        raise ComponentError(
            f"llm.injection: cross_attention needs the {count} decoder layers of {type(backbone).__name__}, one "
            f"ModuleList of that length; found {found}. Use 'injection: prefix' with this language model"
        )
    return list(lists[fit[0]])
