"""How many tokens a language model has positions for, and what to say of a sample that has more."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class ClipLength:
    """One clip of a sample: what its user calls it, and how long it is in the text and in time."""

    name: str
    tokens: int
    seconds: float

    def __str__(self) -> str:
        return f"'{self.name}' ({self.seconds:.1f} s) takes {self.tokens:,}"


def context_length(text_config: Any) -> int | None:
    """Positions of a language model: the rows of its table, or how far its rotations were made to reach.

    None for a model that has no such bound (a recurrent one, or one whose attention only decays with distance).

    Args:
        text_config: a transformers config of a causal language model, such as `model.config.text_config`.
    """
    if getattr(text_config, "alibi", False):
        return None
    found = getattr(text_config, "max_position_embeddings", None) or getattr(text_config, "max_seq_len", None)
    if not isinstance(found, int):
        return None
    rope = getattr(text_config, "rope_parameters", None) or {}
    factor, kind = rope.get("factor"), rope.get("rope_type")
    if isinstance(factor, (int, float)):
        if kind in ("linear", "dynamic"):
            return int(found * factor)
        if kind == "yarn":
            return max(found, int(factor * rope.get("original_max_position_embeddings", found)))
    return found


def too_long(context: int | None, tokens: int, clips: Sequence[ClipLength] = (), answer: int = 0) -> str | None:
    """What is wrong with a sample of so many tokens, and what to do; None when it fits.

    Args:
        context: the model's positions, of `context_length`.
        tokens: of the whole text as the model reads it, clips included; in training, the answer too.
        clips: the clips among them.
        answer: tokens that generation may add.
    """
    if context is None or tokens + answer <= context:
        return None
    audio = sum(clip.tokens for clip in clips)
    parts = f" (clip {', clip '.join(map(str, clips))}; text {tokens - audio:,})" if clips else ""
    found = f"{tokens:,} tokens{parts}" + (f" and {answer:,} for the answer" if answer else "")
    left = context - (tokens - audio) - answer
    seconds = sum(clip.seconds for clip in clips)
    remedies = []
    if audio and left > 0:
        remedies.append(f"at most {left:,} tokens of audio fit, about {seconds * left / audio:.1f} s: cut the audio")
        remedies.append("take a projector with fewer tokens a second")
    elif clips:
        remedies.append("shorten the text")
    else:
        remedies.append(f"at most {max(context - answer, 0):,} tokens of text fit: shorten it")
    if answer and tokens < context:
        remedies.insert(0, f"ask for an answer of at most {context - tokens:,} (max_new_tokens)")
    return f"{found} do not fit the language model's {context:,} positions; {', or '.join(remedies)}"
