"""The processor turns chats, or text and audio, into the tensors that the model takes."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import AddedToken
from torch import Tensor
from transformers import BatchFeature, ProcessorMixin
from transformers.processing_utils import MultiModalData

from usam.config import AUDIO_TOKEN, resolve
from usam.llm import build_llm
from usam.processor.batching import KNOWN_OPTIONS, options_of, padded
from usam.processor.chat import Rendered, Span, flatten, mark_tokens, repeated, replacements
from usam.processor.drawing import check_variables, drawer, first_token
from usam.processor.feature_extractor import UsamFeatureExtractor, clips_of
from usam.processor.lengths import ClipLength
from usam.processor.turns import ROLES, Draw, Turns, wrapping
from usam.providers import providers
from usam.registry import did_you_mean
from usam.saving import SavedWhole
from usam.spec.spec import Override, Spec, SpecSource, load_spec
from usam.types import IGNORE

if TYPE_CHECKING:
    from usam.llm import LLM
    from usam.processor.audio import Waveform

PLAIN = "{prompt}\n{audio}\n---\n{answer}"


class UsamProcessor(SavedWhole, ProcessorMixin):
    """Chats in, tensors out; also decodes.

    Args:
        feature_extractor: a UsamFeatureExtractor.
        tokenizer: the language model's; the placeholder is added to it when it is not there.
        chat_template: a chat template other than the tokenizer's.
        template: `auto` for the chat template if there is one, else a plain one; or text with {prompt},
            {audio} and {answer}.
        prompts: task name to instruction.
        template_options: variables of the chat template, such as `{"enable_thinking": False}`; those that a call
            gives go before them.
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
        template_options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(feature_extractor, tokenizer, chat_template=chat_template)
        self.template = template
        self.prompts = dict(prompts or {})
        self.template_options = dict(template_options or {})
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
            if not template.index("{answer}") > max(template.index("{prompt}"), template.index("{audio}")):
                raise ValueError(f"template {template!r}: {{answer}} comes after {{prompt}} and {{audio}}")
            self.chat_template = None
        elif chat_template is None:
            self.chat_template = tokenizer.chat_template
        if self.template_options:
            try:
                check_variables(tokenizer, self._template(), self.template_options)
            except ValueError as error:
                raise ValueError(f"llm.template_options: {error}") from error

    @classmethod
    def from_spec(cls, spec: SpecSource, *overrides: Override) -> UsamProcessor:
        """The processor of a spec: needs its tokenizer, but no weights, and builds no encoder.

        Args:
            spec: a bundled name, a file, a saved model's folder, a dict or a Spec.
            overrides: patches such as `"encoders.mert=null"`.
        """
        spec = resolve(load_spec(spec, *overrides))
        return cls(
            UsamFeatureExtractor(spec.to_dict(), providers(spec)),
            build_llm(spec.llm).tokenizer(),
            template=spec.template,
            prompts=spec.prompts,
            template_options=cast("LLM.Config", spec.llm).template_options,
        )

    def with_spec(self, spec: Spec) -> UsamProcessor:
        """A processor for another spec, with this one's tokenizer and chat template; itself for its own."""
        tree = resolve(spec).to_dict()
        if tree == self.feature_extractor.spec:
            return self
        return type(self)(
            UsamFeatureExtractor.from_dict({**self.feature_extractor.to_dict(), "spec": tree}),
            self.tokenizer,
            self.chat_template,
            spec.template,
            spec.prompts,
            cast("LLM.Config", spec.llm).template_options,
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
        ((start, end),) = sample.answers
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
                `return_mm_token_type_ids`; `return_text_replacement_offsets`, which servers such as vLLM ask for: what
                was written in the place of each clip, and no `prompt_mask`.

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
        bos = "" if options_of(kwargs)["add_special_tokens"] is False else first_token(self.tokenizer)
        samples = []
        for t, count in zip(texts, counts, strict=True):
            own, clips = clips[:count], clips[count:]
            samples.append(Rendered(t if t.startswith(bos) else bos + t, tuple(own)))
        return self.encode(samples, **kwargs)

    def encode(self, samples: Sequence[Rendered], *, labels: bool = False, **kwargs: Any) -> BatchFeature:
        """Tensors of rendered samples: `input_ids`, `attention_mask`, `prompt_mask`, the clips, and `labels`.

        With labels, each sample gives all of its `rows`, one after the other.
        """
        options = options_of(kwargs)
        if labels:
            samples = [row for sample in samples for row in sample.rows]
        audio = [clip for sample in samples for clip in sample.audio]
        clips = self.feature_extractor.fetch_audio(audio, options["sampling_rate"]) if audio else []
        counts = iter(self._placeholders(clips))
        special = set(self._special.values())
        rows: dict[str, list[NDArray[Any]]] = defaultdict(list)
        written = []
        for sample, (found, offsets) in zip(samples, self._tokenized(samples), strict=True):
            ids = np.array(found, np.int64)
            own_counts = [next(counts) for _ in sample.audio]
            times = repeated(found, self.audio_token_id, own_counts, sample.text)
            written.append(replacements(sample.text, own_counts))
            own = {
                "input_ids": ids,
                "attention_mask": np.ones_like(ids),
                "prompt_mask": np.array(mark_tokens(found, offsets, sample.instruction, special), bool),
            }
            if labels:
                learned = mark_tokens(found, offsets, sample.answers, (self.audio_token_id,))
                own["labels"] = np.where(learned, ids, IGNORE)
            if options["return_mm_token_type_ids"]:
                own["mm_token_type_ids"] = 3 * (ids == self.audio_token_id)
            for name, row in own.items():
                rows[name].append(row.repeat(times))
        data = padded(rows, options, self.tokenizer.pad_token_id)
        if clips:
            data |= self.feature_extractor.padded(clips, options["return_tensors"])
        batch = BatchFeature(data, tensor_type=options["return_tensors"])
        if options["return_text_replacement_offsets"]:  # whoever asks takes every other key for one of the clips
            batch.pop("prompt_mask")
            batch["text_replacement_offsets"] = written
        elif isinstance(batch["prompt_mask"], Tensor):
            batch["prompt_mask"] = batch["prompt_mask"].bool()
        return batch

    def _placeholders(self, clips: Sequence[Waveform]) -> list[int]:
        if len(clips) < 2:
            return [int(self.feature_extractor.placeholders(len(clip))) for clip in clips]
        lengths = torch.tensor([len(clip) for clip in clips])  # whose arithmetic is that of ints
        return cast(list[int], self.feature_extractor.placeholders(lengths).tolist())

    def measure(self, sample: Rendered, names: Sequence[str] = ()) -> tuple[int, list[ClipLength]]:
        """Tokens of a rendered sample as the model reads it, and what each of its clips takes of them.

        Args:
            sample: what `render` returned.
            names: what to call the clips; else they are numbered.
        """
        rate = self.feature_extractor.sampling_rate
        clips = [self.feature_extractor.fetch_audio(clip) for clip in sample.audio]
        counts = self._placeholders(clips)
        names = names or [str(i + 1) for i in range(len(clips))]
        ids, _ = self._tokenize(sample.text, sample.starts)
        tokens = int(repeated(ids, self.audio_token_id, counts, sample.text).sum())
        return tokens, [ClipLength(n, c, len(x) / rate) for n, c, x in zip(names, counts, clips, strict=True)]

    def _tokenize(self, text: str, starts: Sequence[int]) -> tuple[list[int], list[Span]]:
        """Token ids and their places, with a token's edge at every start of an answer.

        A token across it, such as a blank line, or a space and the word after it, would be one that
        generation never sees: that begins after the prompt's own last token.
        """
        return self._edged(text, starts, *self._tokens([text])[0])

    def _tokenized(self, samples: Sequence[Rendered]) -> list[tuple[list[int], list[Span]]]:
        """`_tokenize` of several at once, which takes less time."""
        texts = [sample.text for sample in samples]
        found = self._tokens(texts) if texts else []
        return [self._edged(sample.text, sample.starts, *own) for sample, own in zip(samples, found, strict=True)]

    def _edged(
        self, text: str, starts: Sequence[int], ids: list[int], offsets: list[Span]
    ) -> tuple[list[int], list[Span]]:
        cuts = [start for start in starts if [a for a, b in offsets if a < start < b]]
        if not cuts:
            return ids, offsets
        places = list(pairwise([0, *cuts, len(text)]))
        pieces = self._tokens([text[a:b] for a, b in places])
        ids = [token for piece, _ in pieces for token in piece]
        return ids, [(a + c, a + d) for (a, _), (_, own) in zip(places, pieces, strict=True) for c, d in own]

    def _tokens(self, texts: Sequence[str]) -> list[tuple[list[int], list[Span]]]:
        # The texts are complete: their template, or we, wrote the first token.
        found = self.tokenizer(list(texts), add_special_tokens=False, return_offsets_mapping=True)
        return list(zip(found["input_ids"], found["offset_mapping"], strict=True))

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
            return_labels: also `labels`, supervised on the assistant's turns and their end tokens. Where the template
                renders an answer differently once other turns follow, the chat gives a further row that ends with it.
            return_assistant_tokens_mask: also `assistant_masks`, 1 on what `return_labels` supervises.
            processor_kwargs: options of `__call__`; they may also stand among `kwargs`.
            kwargs: variables of the template, such as `enable_thinking`; they go before `template_options`.

        Raises:
            ValueError: the template refuses the chat, changes its words, or reads no such variable.
        """
        single = not conversation or isinstance(conversation[0], Mapping)
        chats = [conversation] if single else list(conversation)
        options = {key: kwargs.pop(key) for key in KNOWN_OPTIONS if key in kwargs}
        wants_labels = return_labels or return_assistant_tokens_mask
        learn = wants_labels or not (add_generation_prompt or continue_final_message)
        samples = [
            self._turns(chat, chat_template, kwargs).render(add_generation_prompt, continue_final_message, learn)
            for chat in chats
        ]
        if not tokenize:
            texts = [sample.text for sample in samples]
            return texts[0] if single else texts
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
        """One chat as text, with the places of its instruction and its answers, and its further `rows` in training.

        Raises:
            ValueError: no such role; the template refuses the chat, or changes words of the user or of an answer.
        """
        return self._turns(messages, chat_template, kwargs).render(
            add_generation_prompt, continue_final_message, not (add_generation_prompt or continue_final_message)
        )

    def _turns(
        self,
        messages: Sequence[Mapping[str, Any]],
        chat_template: str | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> Turns:
        flat = [flatten(message) for message in messages]
        turns = [{**m, "content": text} for m, (text, _) in zip(messages, flat, strict=True)]
        for i, turn in enumerate(turns):
            if turn.get("role") not in ROLES:
                raise ValueError(
                    f"message {i}: no role {turn.get('role')!r}; {did_you_mean(str(turn.get('role')), ROLES)}"
                )
        if not turns or turns[0]["role"] == "assistant":
            raise ValueError("a chat begins with a message of the system or the user")
        draw = self._drawer(chat_template, variables)
        return Turns(
            turns, [clip for _, clips in flat for clip in clips], draw, self._special, str(self.tokenizer.eos_token)
        )

    def _drawer(self, chat_template: str | None = None, variables: Mapping[str, Any] | None = None) -> Draw:
        """The template with its variables bound: those of the spec, and over them those of the call."""
        plain = PLAIN if self.template == "auto" else self.template
        template = self._template(chat_template)
        return drawer(self, self.tokenizer, template, plain, self.template_options, variables)

    def _template(self, chat_template: str | None = None) -> str | None:
        """The chat template of a call, else of the processor; of several by name, `default`."""
        if not isinstance(self.chat_template, Mapping):
            return chat_template or self.chat_template
        name = chat_template or "default"
        if name not in self.chat_template and chat_template is None:
            raise ValueError(f"several chat templates ({', '.join(self.chat_template)}): name one as 'chat_template'")
        return cast(str, self.chat_template.get(name, chat_template))

    def answer_text(self, generated: Sequence[int] | Tensor) -> str:
        """The answer in generated tokens: without special tokens, and without what the template wraps around it."""
        raw = self.tokenizer.decode(generated, skip_special_tokens=False)
        text = str(self.tokenizer.decode(generated, skip_special_tokens=True))
        before, after = (piece.strip() for piece in self._wrapping())
        if before and re.match(_loosely(before), raw):
            text = re.sub(r"\A" + _loosely(self._bare(before)), "", text)
        if after:
            text = re.sub(_loosely(after) + r"\s*\Z", "", text)
        return text.strip()

    def lasting_text(self, generated: Sequence[int] | Tensor) -> str:
        """What of an answer whose tokens are still coming stays as it is: what `answer_text` will begin with.

        Held back is half a character, white space at the end, and what may turn out to be the template's own.
        """
        before, after = ("".join(piece.split()) for piece in self._wrapping())
        raw = "".join(self.tokenizer.decode(generated, skip_special_tokens=False).split())
        if before and before.startswith(raw):
            return ""
        text = self.answer_text(generated).rstrip("\ufffd").rstrip()
        for size in range(len(after), 0, -1):
            if found := re.search(_loosely(after[:size]) + r"\Z", text):
                return text[: found.start()].rstrip()
        return text

    def post_process_multimodal_output(
        self, generated_outputs: Any, skip_special_tokens: bool = True, **kwargs: Any
    ) -> Any:
        """Prompts with their answers as text, as pipelines ask for them; without what is wrapped around an answer."""
        texts = super().post_process_multimodal_output(generated_outputs, skip_special_tokens, **kwargs)
        header = self._header() if skip_special_tokens and isinstance(texts, list) else []
        if not header:
            return texts
        for i, row in enumerate(generated_outputs):
            ids = [int(token) for token in row]
            ends = [k for k in range(len(header), len(ids) + 1) if ids[k - len(header) : k] == header]
            if ends:
                prompt = self.tokenizer.decode(ids[: ends[-1]], skip_special_tokens=True)
                texts[i] = prompt + self.answer_text(ids[ends[-1] :])
        return texts

    def _header(self) -> list[int]:
        """The tokens after which an answer begins, of a template that wraps something around it; else none."""
        if not "".join(self._wrapping()).strip():
            return []
        draw, question = self._drawer(), [{"role": "user", "content": "?"}]
        asked, prompt = draw(question, False, False), draw(question, True, False)
        ids = self.tokenizer(prompt.removeprefix(asked), add_special_tokens=False)["input_ids"]
        return list(ids) if prompt.startswith(asked) else []

    def _wrapping(self) -> tuple[str, str]:
        try:
            return wrapping(self._drawer(), self._special, str(self.tokenizer.eos_token))
        except ValueError:  # such a template was not trained with
            return "", ""

    def _bare(self, text: str) -> str:
        for token in self._special:
            text = text.replace(token, "")
        return text

    def replace_audio_token(self, audio_inputs: dict[str, Any], audio_idx: int, **kwargs: Any) -> str:
        """The placeholders of one clip, as servers ask for them."""
        samples = int(np.asarray(audio_inputs["input_values_mask"][audio_idx]).sum())
        return AUDIO_TOKEN * int(self.feature_extractor.placeholders(samples))

    def _get_num_multimodal_tokens(self, audio_lengths: Sequence[int] | None = None, **kwargs: Any) -> MultiModalData:
        """How many placeholders stand for clips of so many samples, as vLLM asks."""
        if audio_lengths is None:
            return MultiModalData()
        return MultiModalData(num_audio_tokens=[int(self.feature_extractor.placeholders(n)) for n in audio_lengths])


def _loosely(text: str) -> str:
    """A pattern for a text, whatever white space tokenizers write between its characters."""
    return r"\s*" + r"\s*".join(re.escape(character) for character in "".join(text.split()))


def answers(processor: UsamProcessor, generated: Tensor, prompt_length: int) -> list[str]:
    """The generated answers alone, without the prompt and without what the template wraps around them."""
    return [processor.answer_text(row) for row in generated[:, prompt_length:]]
