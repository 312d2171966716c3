"""The processor turns chats, or text and audio, into the tensors that the model takes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jinja2 import TemplateError
from tokenizers import AddedToken
from torch import Tensor
from transformers import BatchFeature, ProcessorMixin
from transformers.feature_extraction_utils import FeatureExtractionMixin

from usam.audio import read_audio
from usam.config import AUDIO_TOKEN, resolve
from usam.llm import build_llm
from usam.registry import did_you_mean
from usam.spec import Spec

PLAIN = "{prompt}\n{audio}\n---\n{answer}"
IGNORE = -100

Span = tuple[int, int]


@dataclass(frozen=True)
class Rendered:
    """One sample as text with a placeholder for each clip, and what in it is instruction and answer."""

    text: str
    audio: tuple[Any, ...] = ()
    instruction: tuple[Span, ...] | None = None  # None: everything but special tokens
    answers: tuple[Span, ...] = ()


class UsamFeatureExtractor(FeatureExtractionMixin):
    """Waveforms as one padded batch at the rate the model takes; the encoders' front-ends are in the model.

    Args:
        spec: the model's spec as plain data, which says how many tokens a clip becomes.
    """

    model_input_names = ["input_values", "input_values_mask"]

    def __init__(self, spec: Mapping[str, Any] | None = None, **kwargs: Any) -> None:
        kwargs.pop("sampling_rate", None)
        super().__init__(**kwargs)
        self.spec = dict(spec or {})
        self._parsed = Spec.from_tree(self.spec) if spec else None
        self.sampling_rate = self._parsed.sample_rate if self._parsed else 16000

    def audio_tokens(self, samples: int) -> int:
        """Placeholders for a clip of `samples` samples."""
        assert self._parsed is not None, "a feature extractor needs its spec"
        return self._parsed.audio_tokens(samples)

    def fetch_audio(self, audio: Any, sampling_rate: int | None = None) -> Any:
        """Sound from a file, bytes, a dict or an array, at the model's rate; a list of them gives a list.

        Raises:
            AudioError: it cannot be read; the message names the file.
        """
        if isinstance(audio, (list, tuple)) and not (audio and isinstance(audio[0], (int, float))):
            return [self.fetch_audio(clip, sampling_rate) for clip in audio]
        if isinstance(audio, (np.ndarray, Tensor)) and sampling_rate not in (None, self.sampling_rate):
            audio = {"array": audio, "sampling_rate": sampling_rate}
        return read_audio(audio, self.sampling_rate)

    def __call__(
        self, audio: Any, sampling_rate: int | None = None, return_tensors: str | None = None, **kwargs: Any
    ) -> BatchFeature:
        """`input_values` (clip, samples), zero on the right of shorter clips, and `input_values_mask`.

        Args:
            audio: one clip, or a list of them, as `fetch_audio` takes.
            sampling_rate: of bare arrays; None for the model's own.
            return_tensors: "pt", "np" or None.
        """
        clips = self.fetch_audio(audio if isinstance(audio, (list, tuple)) else [audio], sampling_rate)
        size = max(len(clip) for clip in clips)
        values = np.zeros((len(clips), size), dtype=np.float32)
        mask = np.zeros((len(clips), size), dtype=bool)
        for i, clip in enumerate(clips):
            values[i, : len(clip)] = clip
            mask[i, : len(clip)] = True
        return BatchFeature({"input_values": values, "input_values_mask": mask}, tensor_type=return_tensors)

    def to_dict(self) -> dict[str, Any]:
        """The extractor as data."""
        data: dict[str, Any] = super().to_dict()
        data.pop("_parsed", None)
        return data


class UsamProcessor(ProcessorMixin):
    """Chats in, tensors out; also decodes.

    Args:
        feature_extractor: a UsamFeatureExtractor.
        tokenizer: the language model's; the placeholder is added to it when it is not there.
        chat_template: a chat template other than the tokenizer's.
        template: `auto` for the chat template if there is one, else a plain one; or text with {prompt},
            {audio} and {answer}.
        prompts: task name to instruction.
    """

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
        self.audio_token = AUDIO_TOKEN
        tokenizer.add_tokens([AddedToken(AUDIO_TOKEN, special=True, normalized=False)], special_tokens=True)
        self.audio_token_id = tokenizer.convert_tokens_to_ids(AUDIO_TOKEN)
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
    def from_spec(cls, spec: Spec) -> UsamProcessor:
        """The processor of a spec: needs its tokenizer, but no weights, and builds no encoder."""
        spec = resolve(spec)
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
        clips = [] if audio is None else list(audio) if isinstance(audio, (list, tuple)) else [audio]
        if clips and isinstance(clips[0], (int, float)):
            clips = [clips]
        counts = [t.count(AUDIO_TOKEN) for t in texts]
        if sum(counts) != len(clips):
            raise ValueError(
                f"{sum(counts)} placeholders for {len(clips)} clips (placeholders by prompt: {counts}): write one "
                f"{AUDIO_TOKEN} in the text for each clip"
            )
        bos = self._bos()
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
        tokens = [self.feature_extractor.audio_tokens(len(clip)) for clip in clips]
        data: dict[str, Any] = {}
        texts, moves = [], []
        remaining = iter(tokens)
        for sample in samples:
            counts = [next(remaining) for _ in sample.audio]
            text, move = _expand(sample.text, counts)
            texts.append(text)
            moves.append(move)
        found = self.tokenizer(
            texts,
            add_special_tokens=False,  # the text is complete: its template, or we, wrote the first token
            padding=options["padding"],
            padding_side=options["padding_side"],
            return_offsets_mapping=True,
        )
        special = set(self.tokenizer.all_special_ids) | {self.audio_token_id}
        data["input_ids"] = found["input_ids"]
        data["attention_mask"] = found["attention_mask"]
        data["prompt_mask"] = [
            _marked(ids, offsets, sample.instruction, move, special)
            for ids, offsets, sample, move in zip(
                found["input_ids"], found["offset_mapping"], samples, moves, strict=True
            )
        ]
        if labels:
            data["labels"] = []
            for ids, offsets, sample, move in zip(
                found["input_ids"], found["offset_mapping"], samples, moves, strict=True
            ):
                marks = _marked(ids, offsets, sample.answers, move, {self.audio_token_id})
                data["labels"].append([token if mark else IGNORE for token, mark in zip(ids, marks, strict=True)])
        if options["return_mm_token_type_ids"]:
            data["mm_token_type_ids"] = [[3 * (t == self.audio_token_id) for t in ids] for ids in found["input_ids"]]
        if clips:
            data |= self.feature_extractor(clips, return_tensors="np" if options["return_tensors"] else None)
        batch = BatchFeature(data, tensor_type=options["return_tensors"])
        if isinstance(batch["prompt_mask"], Tensor):
            batch["prompt_mask"] = batch["prompt_mask"].bool()
        return batch

    def apply_chat_template(  # type: ignore[override]
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
            processor_kwargs: options of `__call__`.
            kwargs: variables of the template, such as `enable_thinking`.

        Raises:
            ValueError: the template drops the text, or renders a turn differently once another follows.
        """
        single = isinstance(conversation[0], Mapping)
        chats = [conversation] if single else list(conversation)
        samples = [
            self.render(chat, add_generation_prompt, continue_final_message, chat_template, **kwargs) for chat in chats
        ]
        if not tokenize:
            texts = [sample.text for sample in samples]
            return texts[0] if single else texts
        wants_labels = return_labels or return_assistant_tokens_mask
        options = {"return_tensors": return_tensors, **(processor_kwargs or {})}
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
        flat = [_flatten(message) for message in messages]
        turns = [{"role": m["role"], "content": text} for m, (text, _) in zip(messages, flat, strict=True)]

        def draw(count: int, generate: bool, follow: bool = False) -> str:
            return self._draw(turns[:count], generate, follow, chat_template, kwargs)

        whole = draw(len(turns), add_generation_prompt, continue_final_message)
        answers: list[Span] = []
        for i, turn in enumerate(turns):
            if turn["role"] != "assistant" or (continue_final_message and i == len(turns) - 1):
                continue
            before, after = draw(i, True), draw(i + 1, False)
            if not after.startswith(before) or not whole.startswith(after.rstrip()):
                raise ValueError(
                    f"the chat template of '{self.tokenizer.name_or_path}' renders message {i} differently once its "
                    "answer, or another turn, follows; the answer cannot be told from the prompt. Pass another "
                    "'chat_template', a plain 'template' in the spec, or one turn a sample"
                )
            answer = after[len(before) :].rstrip()
            if answer.endswith(tuple(self.tokenizer.all_special_tokens)):
                answers.append((len(before), len(before) + len(answer)))
            elif i < len(turns) - 1:
                answers.append((len(before), len(after)))
            else:  # a template that does not end its turn: without an end token the model would never stop
                whole = after.rstrip() + str(self.tokenizer.eos_token)
                answers.append((len(before), len(whole)))
        return Rendered(
            whole,
            tuple(clip for _, clips in flat for clip in clips),
            tuple(self._instruction(turns, draw)),
            tuple(answers),
        )

    def _instruction(self, turns: Sequence[Mapping[str, str]], draw: Any) -> list[Span]:
        spans = []
        for i, turn in enumerate(turns):
            if turn["role"] == "assistant":
                break
            if turn["role"] != "user":
                continue
            segment, end = draw(i + 1, False), None
            for piece in reversed([p.strip() for p in turn["content"].split(AUDIO_TOKEN) if p.strip()]):
                start = segment.rfind(piece, 0, end)
                if start < 0:
                    raise ValueError(
                        f"the chat template of '{self.tokenizer.name_or_path}' does not render the user's text "
                        f"{piece[:60]!r} as it is; pass another 'chat_template' or a plain 'template' in the spec"
                    )
                spans.append((start, start + len(piece)))
                end = start
        return sorted(spans)

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
        if not turns:
            return ""
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
                text += _fill(head, turn["content"])
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
        return AUDIO_TOKEN * self.feature_extractor.audio_tokens(samples)


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
    return {**KNOWN_OPTIONS, **flat}


def _flatten(message: Mapping[str, Any]) -> tuple[str, list[Any]]:
    """A message's text with a placeholder for each clip, and the clips."""
    content = message.get("content", "")
    if isinstance(content, str):
        return content, []
    text, clips = [], []
    for block in content:
        kind = block.get("type") if isinstance(block, Mapping) else None
        if kind == "text":
            text.append(str(block["text"]))
        elif kind in ("audio", "audio_url", "input_audio"):
            found = [block[key] for key in ("audio", "path", "url", "audio_url", "array") if block.get(key) is not None]
            if kind == "audio" and not found:
                text.append(AUDIO_TOKEN)  # the clip is given beside the messages
                continue
            if len(found) != 1:
                raise ValueError(f"an audio block names one source ('audio', 'path' or 'url'), found {block!r:.120}")
            clips.append(found[0]["url"] if isinstance(found[0], Mapping) and "url" in found[0] else found[0])
            text.append(AUDIO_TOKEN)
        else:
            raise ValueError(f"a content block has type 'text' or 'audio', found {block!r:.120}")
    return "".join(text), clips


def _fill(template: str, content: str) -> str:
    """A user's turn in a plain template: the clips in {audio}, unless the text says where they stand."""
    pieces = [piece for piece in content.split(AUDIO_TOKEN) if piece.strip()]
    clips = content.count(AUDIO_TOKEN)
    if clips and len(pieces) <= 1:
        prompt = pieces[0].strip() if pieces else ""
        return template.replace("{prompt}", prompt).replace("{audio}", AUDIO_TOKEN * clips)
    without = re.sub(r"(?m)^\{audio\}\n|\{audio\}", "", template)
    return without.replace("{prompt}", content)


def _expand(text: str, counts: Sequence[int]) -> tuple[str, list[tuple[int, int]]]:
    """Text with each placeholder repeated, and by how many characters what follows it has moved."""
    pieces = text.split(AUDIO_TOKEN)
    if len(pieces) != len(counts) + 1:
        raise ValueError(
            f"{len(pieces) - 1} placeholders for {len(counts)} clips in {text[:80]!r}: the text holds "
            f"{AUDIO_TOKEN} once for each clip"
        )
    expanded, moves = pieces[0], []
    position, moved = len(pieces[0]), 0
    for piece, count in zip(pieces[1:], counts, strict=True):
        expanded += AUDIO_TOKEN * count + piece
        position += len(AUDIO_TOKEN)
        moved += (count - 1) * len(AUDIO_TOKEN)
        moves.append((position, moved))
        position += len(piece)
    return expanded, moves


def _marked(
    ids: Sequence[int],
    offsets: Sequence[Span],
    spans: Sequence[Span] | None,
    moves: Sequence[tuple[int, int]],
    never: set[int],
) -> list[bool]:
    """Which tokens overlap the spans, which are given in the text before its placeholders were repeated."""
    if spans is None:
        return [b > a and token not in never for token, (a, b) in zip(ids, offsets, strict=True)]

    def moved(position: int) -> int:
        return position + max((by for start, by in moves if start <= position), default=0)

    placed = [(moved(a), moved(b)) for a, b in spans]
    marks = [False] * len(ids)
    for i, (token, (a, b)) in enumerate(zip(ids, offsets, strict=True)):
        if b > a and token not in never:
            marks[i] = any(a < end and b > start for start, end in placed)
    return marks


def batch_to(batch: Mapping[str, Any], device: Any) -> dict[str, Any]:
    """The tensors of a batch on a device."""
    return {key: value.to(device) if isinstance(value, torch.Tensor) else value for key, value in batch.items()}


def answers(processor: UsamProcessor, generated: Tensor, prompt_length: int) -> list[str]:
    """The generated text alone, without prompt and special tokens."""
    decoded = processor.tokenizer.batch_decode(generated[:, prompt_length:], skip_special_tokens=True)
    return [str(text).strip() for text in decoded]
