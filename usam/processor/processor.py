"""The processor turns chats, or text and audio, into the tensors that the model takes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from jinja2 import TemplateError
from tokenizers import AddedToken
from torch import Tensor
from transformers import BatchFeature, ProcessorMixin

from usam.config import AUDIO_TOKEN, resolve
from usam.llm import build_llm
from usam.processor.chat import Rendered, Span, expand, fill_template, flatten, mark_tokens, moved
from usam.processor.feature_extractor import UsamFeatureExtractor, clips_of
from usam.registry import did_you_mean
from usam.saving import SavedWhole
from usam.spec.spec import Override, SpecSource, load_spec
from usam.types import IGNORE

PLAIN = "{prompt}\n{audio}\n---\n{answer}"
FIRST_MARK = 0xE000  # Unicode's private use area


class UsamProcessor(SavedWhole, ProcessorMixin):
    """Chats in, tensors out; also decodes.

    Args:
        feature_extractor: a UsamFeatureExtractor.
        tokenizer: the language model's; the placeholder is added to it when it is not there.
        chat_template: a chat template other than the tokenizer's.
        template: `auto` for the chat template if there is one, else a plain one; or text with {prompt},
            {audio} and {answer}.
        prompts: task name to instruction.
    """

    replaces = ("chat_template*", "additional_chat_templates")
    feature_extractor: Any
    tokenizer: Any

    def __init__(
        self,
        feature_extractor: Any = None,
        tokenizer: Any = None,
        chat_template: str | None = None,
        template: str = "auto",
        prompts: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(feature_extractor, tokenizer, chat_template=chat_template)
        self.template = template
        self.prompts = dict(prompts or {})
        if not tokenizer.is_fast:
            raise ValueError(f"{type(tokenizer).__name__} gives no character offsets; use the fast tokenizer")
        if tokenizer.eos_token is None:
            raise ValueError("the tokenizer has no 'eos_token', so that no answer could end; set one")
        self.audio_token = AUDIO_TOKEN
        tokenizer.add_tokens([AddedToken(AUDIO_TOKEN, special=True, normalized=False)], special_tokens=True)
        self.audio_token_id = tokenizer.convert_tokens_to_ids(AUDIO_TOKEN)
        # The tokenizer's own list leaves out most of those that were added to it, such as <|im_end|>.
        added = {token.content: i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
        self._special = {**added, **dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))}
        tokenizer.padding_side = "left"
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        if template != "auto":
            missing = [slot for slot in ("{prompt}", "{audio}", "{answer}") if template.count(slot) != 1]
            if missing:
                raise ValueError(f"template {template!r}: write {', '.join(missing)} exactly once, or 'auto'")
            self.chat_template = None
        elif chat_template is None:
            self.chat_template = tokenizer.chat_template

    @classmethod
    def from_spec(cls, spec: SpecSource, *overrides: Override) -> UsamProcessor:
        """The processor of a spec: needs its tokenizer, but no weights, and builds no encoder.

        Args:
            spec: a bundled name, a file, a saved model's folder, a dict or a Spec.
            overrides: patches such as `"encoders.mert=null"`.
        """
        spec = resolve(load_spec(spec, *overrides))
        return cls(
            UsamFeatureExtractor(spec.to_dict()),
            build_llm(spec.llm).tokenizer(),
            template=spec.template,
            prompts=spec.prompts,
        )

    @property
    def model_input_names(self) -> list[str]:
        """Every tensor that `__call__` can return."""
        return ["input_ids", "attention_mask", "prompt_mask", "input_values", "input_values_mask"]

    @property
    def end_ids(self) -> list[int]:
        """Tokens at which an answer ends: the tokenizer's own, and what the template writes after an answer."""
        ends = [int(self.tokenizer.eos_token_id)]
        try:
            sample = self.render([{"role": "user", "content": "?"}, {"role": "assistant", "content": "."}])
        except ValueError:  # whoever trains with this template is told; an answer can still end
            return ends
        start, end = sample.answers[0]
        last = self.tokenizer(sample.text[start:end], add_special_tokens=False)["input_ids"][-1]
        return list(dict.fromkeys([*ends, last] if last in self._special.values() else ends))

    def __call__(
        self,
        images: Any = None,
        text: str | Sequence[str] | None = None,
        videos: Any = None,
        audio: Any = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """Tokenize finished prompts, one `<|audio|>` in them for each clip.

        Args:
            images, videos: not taken.
            text: one or several prompts, with the template already around them; without any template,
                the whole text counts as the instruction.
            audio: all clips in order: files, bytes, arrays or dicts; one, or a list.
            kwargs: `sampling_rate` of bare arrays, `padding`, `padding_side`, `return_tensors`,
                `return_mm_token_type_ids`.

        Raises:
            ValueError: more or fewer placeholders than clips; truncation was asked for.
            AudioError: a clip cannot be read.
        """
        if images is not None or videos is not None:
            raise ValueError("usam models hear and read: they take text and audio, no images or videos")
        if text is None:
            raise ValueError("give text; for a task's own prompt use processor.apply_chat_template(messages)")
        texts = [text] if isinstance(text, str) else list(text)
        clips = [] if audio is None else clips_of(audio)
        counts = [t.count(AUDIO_TOKEN) for t in texts]
        if sum(counts) != len(clips):
            raise ValueError(
                f"{sum(counts)} placeholders for {len(clips)} clips (placeholders by prompt: {counts}): write one "
                f"{AUDIO_TOKEN} in the text for each clip"
            )
        bos = "" if _options(kwargs)["add_special_tokens"] is False else self._bos()
        samples = []
        for t, count in zip(texts, counts, strict=True):
            own, clips = clips[:count], clips[count:]
            samples.append(Rendered(t if t.startswith(bos) else bos + t, tuple(own)))
        return self.encode(samples, **kwargs)

    def encode(self, samples: Sequence[Rendered], *, labels: bool = False, **kwargs: Any) -> BatchFeature:
        """Tensors of rendered samples: `input_ids`, `attention_mask`, `prompt_mask`, the clips, and `labels`."""
        options = _options(kwargs)
        audio = [clip for sample in samples for clip in sample.audio]
        clips = self.feature_extractor.fetch_audio(audio, options["sampling_rate"]) if audio else []
        counts = iter([self.feature_extractor.placeholders(len(clip)) for clip in clips])
        special = set(self._special.values())
        rows: dict[str, list[list[Any]]] = defaultdict(list)
        for sample in samples:
            text, moves = expand(sample.text, [next(counts) for _ in sample.audio])
            ids, offsets = self._tokenize(text, [moved(start, moves) for start, _ in sample.answers])
            rows["input_ids"].append(ids)
            rows["attention_mask"].append([1] * len(ids))
            rows["prompt_mask"].append(mark_tokens(ids, offsets, sample.instruction, moves, special))
            if labels:
                learned = mark_tokens(ids, offsets, sample.answers, moves, {self.audio_token_id})
                rows["labels"].append([token if mark else IGNORE for token, mark in zip(ids, learned, strict=True)])
            if options["return_mm_token_type_ids"]:
                rows["mm_token_type_ids"].append([3 * (token == self.audio_token_id) for token in ids])
        if options["padding"] not in (False, "do_not_pad"):
            size = max(map(len, rows["input_ids"]))
            size = max(size, options["max_length"]) if options["padding"] == "max_length" else size
            fill = {"input_ids": self.tokenizer.pad_token_id, "labels": IGNORE, "prompt_mask": False}
            for name in rows:
                rows[name] = [_padded(row, size, fill.get(name, 0), options["padding_side"]) for row in rows[name]]
        data: dict[str, Any] = dict(rows)
        if clips:
            data |= self.feature_extractor(clips, return_tensors="np" if options["return_tensors"] else None)
        batch = BatchFeature(data, tensor_type=options["return_tensors"])
        if isinstance(batch["prompt_mask"], Tensor):
            batch["prompt_mask"] = batch["prompt_mask"].bool()
        return batch

    def _tokenize(self, text: str, starts: Sequence[int]) -> tuple[list[int], list[Span]]:
        """Token ids and their places, with a token's edge at every start of an answer.

        A token across it, such as a blank line, or a space and the word after it, would be one that
        generation never sees: that begins after the prompt's own last token.
        """

        def tokens(a: int, b: int) -> tuple[list[int], list[Span]]:
            # The text is complete: its template, or we, wrote the first token.
            found = self.tokenizer(text[a:b], add_special_tokens=False, return_offsets_mapping=True)
            return found["input_ids"], [(a + c, a + d) for c, d in found["offset_mapping"]]

        ids, offsets = tokens(0, len(text))
        cuts = [start for start in starts if any(a < start < b for a, b in offsets)]
        if cuts:
            pieces = [tokens(a, b) for a, b in pairwise([0, *cuts, len(text)])]
            ids, offsets = [i for piece, _ in pieces for i in piece], [span for _, piece in pieces for span in piece]
        return ids, offsets

    def apply_chat_template(
        self,
        conversation: Sequence[Any],
        chat_template: str | None = None,
        *,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        tokenize: bool = False,
        return_dict: bool = True,
        return_tensors: str | None = "pt",
        return_labels: bool = False,
        return_assistant_tokens_mask: bool = False,
        processor_kwargs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        """A chat, or several, as text or as tensors.

        Args:
            conversation: messages `{"role", "content"}`; content is text, or blocks of `{"type": "text",
                "text"}` and `{"type": "audio", "audio" | "path" | "url": ...}`; or a list of such chats.
            chat_template: a template for this call.
            add_generation_prompt: end where the answer begins.
            continue_final_message: end inside the last message.
            tokenize: return tensors, else the rendered text (with one placeholder for each clip).
            return_dict: False returns `input_ids` alone.
            return_tensors: "pt", "np" or None.
            return_labels: also `labels`, supervised on the assistant's turns and their end tokens.
            return_assistant_tokens_mask: also `assistant_masks`, 1 on what `return_labels` supervises.
            processor_kwargs: options of `__call__`; they may also stand among `kwargs`.
            kwargs: variables of the template, such as `enable_thinking`.

        Raises:
            ValueError: the template drops the text, or renders a turn differently once another follows.
        """
        single = not conversation or isinstance(conversation[0], Mapping)
        chats = [conversation] if single else list(conversation)
        options = {key: kwargs.pop(key) for key in KNOWN_OPTIONS if key in kwargs}
        samples = [
            self.render(chat, add_generation_prompt, continue_final_message, chat_template, **kwargs) for chat in chats
        ]
        if not tokenize:
            texts = [sample.text for sample in samples]
            return texts[0] if single else texts
        wants_labels = return_labels or return_assistant_tokens_mask
        options = {"return_tensors": return_tensors, **options, **(processor_kwargs or {})}
        batch = self.encode(samples, labels=wants_labels, **options)
        if return_assistant_tokens_mask:
            labels = batch["labels"]
            batch["assistant_masks"] = (
                (labels != IGNORE).long()
                if isinstance(labels, Tensor)
                else [[int(token != IGNORE) for token in row] for row in labels]
            )
        if not return_labels:
            batch.pop("labels", None)
        return batch if return_dict else batch["input_ids"]

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        chat_template: str | None = None,
        **kwargs: Any,
    ) -> Rendered:
        """One chat as text, with the places of its instruction and its answers.

        Turns are found by rendering `messages[:i]`, which must be a prefix of `messages[:i + 1]`.
        """
        flat = [flatten(message) for message in messages]
        turns = [{"role": m["role"], "content": text} for m, (text, _) in zip(messages, flat, strict=True)]
        if not turns or turns[0]["role"] == "assistant":
            raise ValueError("a chat begins with a message of the system or the user")

        def draw(turns: Sequence[Mapping[str, str]], generate: bool = False, follow: bool = False) -> str:
            return self._draw(turns, generate, follow, chat_template, kwargs)

        whole = draw(turns, add_generation_prompt, continue_final_message)
        answers: list[Span] = []
        for i, turn in enumerate(turns):
            if turn["role"] != "assistant" or (continue_final_message and i == len(turns) - 1):
                continue
            before, after = draw(turns[:i], generate=True), draw(turns[: i + 1])
            if not after.startswith(before) or not whole.startswith(after.rstrip()):
                raise self._unstable(i)
            answer = after[len(before) :].rstrip()
            if answer.endswith(tuple(self._special)):
                answers.append((len(before), len(before) + len(answer)))
            elif i < len(turns) - 1:
                answers.append((len(before), len(after)))
            else:  # a template that does not end its turn: without an end token the model would never stop
                whole = after.rstrip() + str(self.tokenizer.eos_token)
                answers.append((len(before), len(whole)))
        return Rendered(
            whole,
            tuple(clip for _, clips in flat for clip in clips),
            tuple(self._instruction(turns, draw, whole)),
            tuple(answers),
        )

    def _instruction(self, turns: Sequence[Mapping[str, str]], draw: Callable[..., str], whole: str) -> Iterator[Span]:
        """Where the user's words before the first answer stand in the whole text.

        Each run of words is drawn once more as one character that no template writes, to see where it goes.
        """
        for i, turn in enumerate(turns):
            if turn["role"] == "assistant":
                return
            words = [piece.strip() for piece in turn["content"].split(AUDIO_TOKEN) if piece.strip()]
            if turn["role"] != "user" or not words:
                continue
            marks = [chr(FIRST_MARK + k) for k in range(len(words))]
            marked, rest = "", turn["content"]
            for mark, run in zip(marks, words, strict=True):
                before, _, rest = rest.partition(run)
                marked += before + mark
            text = draw([*turns[:i], {**turn, "content": marked + rest}])
            spans = []
            for mark, run in zip(marks, words, strict=True):
                start = text.find(mark)
                text = text.replace(mark, run, 1)
                spans.append((start, start + len(run)))
            end = spans[-1][1]
            if any(start < 0 for start, _ in spans) or not draw(turns[: i + 1]).startswith(text[:end]):
                raise ValueError(
                    f"the chat template of '{self.tokenizer.name_or_path}' does not render the user's text "
                    f"{words[0][:60]!r} as it is; pass another 'chat_template' or a plain 'template' in the spec"
                )
            if not whole.startswith(text[:end]):
                raise self._unstable(i)
            yield from spans

    def _unstable(self, message: int) -> ValueError:
        return ValueError(
            f"the chat template of '{self.tokenizer.name_or_path}' renders message {message} differently once its "
            "answer, or another turn, follows; the answer cannot be told from the prompt. Pass another "
            "'chat_template', a plain 'template' in the spec, or one turn a sample"
        )

    def _draw(
        self,
        turns: Sequence[Mapping[str, str]],
        generate: bool,
        follow: bool,
        chat_template: str | None,
        variables: Mapping[str, Any],
    ) -> str:
        template = chat_template or self.chat_template
        if template is None:
            return self._draw_plain(turns, follow)
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    list(turns),
                    chat_template=template,
                    tokenize=False,
                    add_generation_prompt=generate,
                    continue_final_message=follow,
                    **variables,
                )
            )
        except TemplateError as error:
            raise ValueError(
                f"the chat template of '{self.tokenizer.name_or_path}' refuses these messages: {error}"
            ) from error

    def _draw_plain(self, turns: Sequence[Mapping[str, str]], follow: bool) -> str:
        template = PLAIN if self.template == "auto" else self.template
        head, tail = template.split("{answer}")
        text = self._bos()
        for i, turn in enumerate(turns):
            if turn["role"] == "system":
                text += turn["content"] + "\n"
            elif turn["role"] == "user":
                text += fill_template(head, turn["content"])
            else:
                last = i == len(turns) - 1
                text += turn["content"] + ("" if follow and last else f"{self.tokenizer.eos_token}{tail}")
        return text

    def _bos(self) -> str:
        """The token that the tokenizer would put first, or nothing."""
        first = self.tokenizer("")["input_ids"][:1]
        bos = self.tokenizer.bos_token
        return str(bos) if bos is not None and first == [self.tokenizer.bos_token_id] else ""

    def replace_audio_token(self, audio_inputs: dict[str, Any], audio_idx: int, **kwargs: Any) -> str:
        """The placeholders of one clip, as servers ask for them."""
        samples = int(np.asarray(audio_inputs["input_values_mask"][audio_idx]).sum())
        return AUDIO_TOKEN * int(self.feature_extractor.placeholders(samples))


KNOWN_OPTIONS: dict[str, Any] = {
    "sampling_rate": None,
    "padding": True,
    "padding_side": "left",
    "return_tensors": "pt",
    "return_mm_token_type_ids": False,
    "truncation": False,
    "max_length": None,
    "add_special_tokens": None,
    "return_attention_mask": True,
}


def _options(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Options as transformers spells them: flat, or grouped under `text_kwargs`, `audio_kwargs`."""
    flat: dict[str, Any] = {}
    for key, value in kwargs.items():
        flat |= value if key in ("text_kwargs", "audio_kwargs", "common_kwargs") else {key: value}
    for key in flat:
        if key not in KNOWN_OPTIONS:
            raise TypeError(f"no option '{key}'; {did_you_mean(key, KNOWN_OPTIONS)}")
    if flat.get("truncation"):
        raise ValueError("truncation would cut audio out of the prompt; shorten the text, or the clips, instead")
    options = {**KNOWN_OPTIONS, **flat}
    if options["padding"] not in (True, False, "longest", "max_length", "do_not_pad"):
        raise ValueError(f"padding is True ('longest'), False or 'max_length', found {options['padding']!r}")
    if options["padding"] == "max_length" and options["max_length"] is None:
        raise ValueError("padding='max_length' needs 'max_length'")
    return options


def _padded(row: list[Any], size: int, fill: Any, side: str) -> list[Any]:
    padding = [fill] * (size - len(row))
    return padding + row if side == "left" else row + padding


def answers(processor: UsamProcessor, generated: Tensor, prompt_length: int) -> list[str]:
    """The generated text alone, without prompt and special tokens."""
    decoded = processor.tokenizer.batch_decode(generated[:, prompt_length:], skip_special_tokens=True)
    return [str(text).strip() for text in decoded]
