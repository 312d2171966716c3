"""A template writes turns as text: a chat template, or a plain one; what is often written is remembered."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

from jinja2 import TemplateError
from transformers import GenerationConfig, PreTrainedTokenizerBase

from usam.processor.chat import fill_template
from usam.processor.turns import Draw, Turn
from usam.registry import did_you_mean

FIRST: WeakKeyDictionary[Any, tuple[Any, str]] = WeakKeyDictionary()  # `first_token` of tokenizers, asked once for each
DRAWN: WeakKeyDictionary[Any, dict[Any, str]] = WeakKeyDictionary()  # texts of turns, by processor
REMEMBERED = 256  # of them
UNSTEADY = re.compile("strftime_now|random|lipsum")  # what makes a template write the same turns differently
NOT_VARIABLES = {
    "messages",
    *inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters.keys() - {"tools", "documents"},
}
# Pipelines and servers pass these on to every processor.
PASSED_ON = {"load_audio_from_video", "timeout", *GenerationConfig().to_dict()}


def drawer(
    owner: Any,
    tokenizer: Any,
    template: str | None,
    plain: str,
    options: Mapping[str, Any],
    variables: Mapping[str, Any] | None = None,
) -> Draw:
    """A template with its variables bound.

    Args:
        owner: the processor, with which what it remembers goes.
        tokenizer: the language model's.
        template: a chat template; None writes chats with the plain one.
        plain: text with {prompt}, {audio} and {answer}.
        options: variables of the processor.
        variables: those of a call, which go before them.

    Raises:
        ValueError: the template reads no such variable.
    """
    given = {key: value for key, value in (variables or {}).items() if value is not None and key not in PASSED_ON}
    check_variables(tokenizer, template, given)
    if template is None:
        state: Any = plain, first_token(tokenizer), tokenizer.eos_token
        return _remembered(owner, partial(_draw_plain, tokenizer, plain), state)
    draw = partial(_draw, tokenizer, template, {**options, **given})
    own = type(tokenizer).apply_chat_template is PreTrainedTokenizerBase.apply_chat_template
    if given or not own or UNSTEADY.search(template):
        return draw
    return _remembered(owner, draw, (template, repr(options), repr(tokenizer.special_tokens_map)))


def first_token(tokenizer: Any) -> str:
    """The token that the tokenizer would put first, or nothing."""
    bos = tokenizer.bos_token
    state = bos, getattr(tokenizer, "add_bos_token", None)
    if FIRST.get(tokenizer, (None, ""))[0] != state:
        first = tokenizer("")["input_ids"][:1]
        told = str(bos) if bos is not None and first == [tokenizer.bos_token_id] else ""
        FIRST[tokenizer] = state, told
    return FIRST[tokenizer][1]


def check_variables(tokenizer: Any, template: str | None, variables: Mapping[str, Any]) -> None:
    """Refuse variables that a template does not read, with a ValueError."""
    for name in variables:
        if template is None:
            raise ValueError(f"'{name}' is for a chat template, and this processor writes chats with a plain one")
        if name in NOT_VARIABLES:
            raise ValueError(f"'{name}' is no variable of a template, but what a chat is rendered with")
        if not re.search(rf"\b{re.escape(name)}\b", template):
            close = did_you_mean(name, set(re.findall(r"\b[a-z_]{4,}\b", template)))
            raise ValueError(
                f"the chat template of '{tokenizer.name_or_path}' reads no variable '{name}'"
                + (f"; {close}" if close.startswith("did") else "")
            )


def _draw(
    tokenizer: Any, template: str, variables: Mapping[str, Any], turns: Sequence[Turn], generate: bool, follow: bool
) -> str:
    try:
        return str(
            tokenizer.apply_chat_template(
                list(turns),
                chat_template=template,
                tokenize=False,
                add_generation_prompt=generate,
                continue_final_message=follow,
                **variables,
            )
        )
    except (TemplateError, TypeError) as error:
        raise ValueError(f"the chat template of '{tokenizer.name_or_path}' refuses these messages: {error}") from error


def _draw_plain(tokenizer: Any, plain: str, turns: Sequence[Turn], generate: bool, follow: bool) -> str:
    head, tail = plain.split("{answer}")
    text = first_token(tokenizer)
    for i, turn in enumerate(turns):
        if turn["role"] == "user":
            text += fill_template(head, turn["content"])
        elif turn["role"] == "assistant":
            last = i == len(turns) - 1
            text += turn["content"] + ("" if follow and last else f"{tokenizer.eos_token}{tail}")
        else:
            text += turn["content"] + "\n"
    return text


def _remembered(owner: Any, draw: Draw, state: Any) -> Draw:
    """The same, which draws turns that are often drawn (the question of a task, without its answer) once.

    Args:
        owner: with which they go.
        draw: gives the same text for the same turns.
        state: all else that its text depends on.
    """
    known = DRAWN.setdefault(owner, {})

    def drawn(turns: Sequence[Turn], generate: bool, follow: bool) -> str:
        said = tuple([(turn["role"], turn["content"]) for turn in turns if len(turn) == 2])
        if len(said) < len(turns):  # with more than words
            return draw(turns, generate, follow)
        key = state, said, generate, follow
        text = known.pop(key, None)
        if text is None:
            text = draw(turns, generate, follow)
            while len(known) >= REMEMBERED:
                known.pop(next(iter(known)), None)  # the one that has not been asked for the longest
        known[key] = text
        return text

    return drawn
