"""What a language model's builder promises: its two halves are the causal LM that its config describes."""

from __future__ import annotations

import inspect
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, Cache

from usam.component import LoRA, is_adapter, with_base_layers
from usam.llm import build_backbone, build_head
from usam.model.build import build_model
from usam.model.cross_attention import CrossAttention, decoder_layers, hearing
from usam.model.head import Head
from usam.model.model import UsamForConditionalGeneration
from usam.registry import ComponentError
from usam.spec.page import SpecError
from usam.spec.spec import Config
from usam.testing.every import (
    TOLERANCE,
    Case,
    config_round_trips,
    front_end,
    initialise,
    loads_nothing_in_init,
    refuses_unknown_options,
    shake,
)
from usam.testing.promises import Broken, Claim, Promise, Report, check, promises, require, require_same
from usam.types import IGNORE, Frames, prefix_mask
from usam.versions.compat import CACHE, cache_argument

LENGTH = 13
PLACE = 4  # of a clip's placeholder among them


def check_llm(
    component: str | Mapping[str, Any] | Config,
    /,
    *,
    expected_failures: Mapping[str, str] | None = None,
    **options: Any,
) -> Report:
    """Run every promise of a language model: `check_llm("transformers", path="Qwen/Qwen3-0.6B")`.

    Its architecture is built with random weights: take a small one.

    Raises:
        BrokenPromises: once, with every promise that is broken.
        SpecError, ComponentError: the component's name or options are wrong.
    """
    return check(llm_promises(component, expected_failures=expected_failures, **options))


def llm_promises(
    component: str | Mapping[str, Any] | Config,
    /,
    *,
    expected_failures: Mapping[str, str] | None = None,
    **options: Any,
) -> list[Promise]:
    """The same promises one by one, each to be called; nothing is built before."""
    return promises(LLMCase(component, options), CLAIMS, expected_failures)


@dataclass(frozen=True)
class LLMCase(Case):
    """A language model's builder, and words for it."""

    group = "usam.llm"

    def construct(self, cls: Any, config: Any) -> Any:
        """The builder, asked for its width and its config."""
        llm = cls(config)
        _ = llm.dim, llm.text_config()
        return llm

    def inputs(self, seed: int = 0) -> tuple[Any, ...]:
        """Token ids (2, 13) without the special ones, which come first or last in most tables."""
        config = self.structure().text_config()
        last = max(8, min(config.vocab_size - 4, 10_000))
        return (torch.randint(4, last, (2, LENGTH), generator=torch.Generator().manual_seed(seed)),)

    def backbone(self, *, seed: int = 0, **changes: Any) -> Any:
        """A backbone in eval mode; equal seeds give equal weights."""
        llm = self.structure(**{"lora": None, **changes})
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            backbone = build_backbone(llm, llm.text_config()).float()
            if llm.config.lora is None:
                shake(backbone)
        return backbone.eval()


def _states(backbone: Any, **inputs: Any) -> Tensor:
    found: Tensor = backbone(**inputs, use_cache=False).last_hidden_state
    return found


def _embed(backbone: Any, ids: Tensor) -> Tensor:
    embeds: Tensor = backbone.get_input_embeddings()(ids)
    return embeds


def true_width(case: LLMCase) -> None:
    """`dim` is the width of the token embeddings, and the head takes the backbone's states.

    Else projectors make frames that the language model cannot take.
    """
    llm, backbone = case.structure(), case.backbone()
    width = backbone.get_input_embeddings().weight.shape[1]
    require(llm.dim == width, f"dim {width}, as the embeddings have it", f"{llm.dim}", "dim")
    states = _states(backbone, inputs_embeds=_embed(backbone, *case.inputs()))
    head = build_head(llm, llm.text_config())
    require(isinstance(head, nn.Linear), "a Linear, or a subclass", f"a {type(head).__name__}", "head")
    wide = f"states of {states.shape[-1]}"
    require(states.shape[-1] == head.in_features, f"a head for {wide}", f"{head.in_features}", "head")


def chooses_words(case: LLMCase) -> None:
    """The logits of a few words are those that the head gives for all, also on the meta device.

    Else losses that look at few words see other values than the answer is made of.
    """
    llm = case.structure()
    config = llm.text_config()
    head = build_head(llm, config).float().eval()
    shake(head)
    ids = case.inputs()[0].flatten().unique()
    states = torch.randn(3, head.in_features)
    with torch.no_grad():
        ours, reference = Head(head).chosen(states, ids), head(states)[..., ids]
    require_same(ours, reference, "the head's logits of these words", "head: `shaped`, and what forward does", 1e-5)
    found = tuple(Head(head.to("meta")).chosen(states.to("meta"), ids.to("meta")).shape)
    require(found == (3, len(ids)), f"{(3, len(ids))}", f"{found}", "head: `shaped`")


def keeps_its_text_config(case: LLMCase) -> None:
    """The backbone's config is the very object that it was built from, or caches would ignore padding.

    Else an answer after padding is wrong in a way that only batches show.
    """
    llm = case.structure()
    config = llm.text_config()
    kept = llm.backbone(config).config is config
    require(kept, "backbone.config is text_config", "a copy", "backbone: AutoModel.from_config keeps it")
    require(llm.text_config() is not config, "a new config for each call", "the same one", "text_config: it is changed")


def matches_the_causal_lm(case: LLMCase) -> str | None:
    """`head(backbone(embed(ids)))` gives the causal LM's own logits.

    Else pretrained weights are put into something that they were not trained for.
    """
    llm = case.structure(lora=None)
    config = llm.text_config()
    if type(config) not in AutoModelForCausalLM._model_mapping:
        return f"transformers has no causal LM for {type(config).__name__}"
    whole = AutoModelForCausalLM.from_config(config).float().eval()
    shake(whole)
    backbone, head = case.backbone(), build_head(llm, llm.text_config()).float().eval()
    twin = next((m for m in whole.modules() if type(m) is type(backbone)), None)
    found = f"no {type(backbone).__name__} in {type(whole).__name__}"
    require(twin is not None, "that the backbone is a part of the causal LM", found, "backbone")
    backbone.load_state_dict(twin.state_dict())  # type: ignore[union-attr]
    head.load_state_dict(whole.get_output_embeddings().state_dict())
    (ids,) = case.inputs()
    with torch.no_grad():
        ours = head(_states(backbone, inputs_embeds=_embed(backbone, ids)))
        reference = whole(input_ids=ids, use_cache=False).logits
    look_at = "head: a logit scale or soft cap; backbone: what it does to ids but not to embeddings"
    require_same(ours, reference, "the causal LM's logits", look_at, 1e-5)
    return None


def hears_embeddings_as_ids(case: LLMCase) -> None:
    """The backbone gives the same states for token ids and for their embeddings.

    Else the words beside audio, which go in as embeddings, mean something else than in text.
    """
    backbone = case.backbone()
    (ids,) = case.inputs()
    with torch.no_grad():
        embeds = _embed(backbone, ids)
        given = embeds.clone()
        ours = _states(backbone, inputs_embeds=given)
        reference = _states(backbone, input_ids=ids)
    look_at = "backbone: a scale of the embeddings, or layers that read ids"
    require_same(ours, reference, "the states from token ids", look_at, 1e-5)
    require_same(given, embeds, "inputs_embeds as they were given", "backbone: what works in place")


def looks_only_back(case: LLMCase) -> None:
    """A word changes no state before it.

    Else it learns from the very answer that it has to give.
    """
    backbone = case.backbone()
    with torch.no_grad():
        embeds = _embed(backbone, *case.inputs())
        other = torch.cat([embeds[:, :-1], embeds[:, :1]], 1)
        reference, ours = (_states(backbone, inputs_embeds=x.clone())[:, :-1] for x in (embeds, other))
    look_at = "text_config: an encoder attends both ways unless is_decoder"
    require_same(ours, reference, "the states before the last word, when that changes,", look_at, TOLERANCE)


def hears_all_before(case: LLMCase) -> None:
    """Another first word changes the last state: audio that came first is not forgotten.

    Else audio at the beginning is forgotten before the answer.
    """
    backbone = case.backbone()
    with torch.no_grad():
        embeds = _embed(backbone, *case.inputs())
        other = torch.cat([embeds[:, -1:], embeds[:, 1:]], 1)
        first, second = (_states(backbone, inputs_embeds=x.clone())[:, -1] for x in (embeds, other))
    moved = bool((first != second).any(-1).all())
    require(moved, "another last state for another first word", "the same", "a window that is too short for any audio")


def keeps_batch_items_apart(case: LLMCase) -> None:
    """A text's states do not depend on the text beside it.

    Else answers depend on their neighbours.
    """
    backbone = case.backbone()
    with torch.no_grad():
        embeds = _embed(backbone, *case.inputs())
        both = _states(backbone, inputs_embeds=embeds.clone())
        alone = _states(backbone, inputs_embeds=embeds[1:].clone())
    require_same(both[1:], alone, "the states of a text beside another", "what mixes the batch axis", TOLERANCE)


def ignores_left_padding(case: LLMCase) -> None:
    """Noise before a prompt, masked, changes nothing: that is how prompts of different lengths are batched.

    Else an answer depends on how long the other prompts of its batch are.
    """
    backbone = case.backbone()
    with torch.no_grad():
        embeds = _embed(backbone, *case.inputs())
        reference = _states(backbone, inputs_embeds=embeds.clone())
        padded = torch.cat([torch.randn_like(embeds[:, :3]) * embeds.std(), embeds], 1)
        mask = torch.ones(padded.shape[:2], dtype=torch.long)
        mask[:, :3] = 0
        places = {"position_ids": (mask.cumsum(-1) - 1).clamp_min(0)}
        if "position_ids" not in inspect.signature(backbone.forward).parameters:
            places = {}
        ours = _states(backbone, inputs_embeds=padded, attention_mask=mask, **places)[:, 3:]
    look_at = "backbone: an attention mask that is dropped, a state that runs over padding"
    require_same(ours, reference, "the states without padding", look_at, TOLERANCE)


def decodes_from_its_cache(case: LLMCase) -> str | None:
    """Word by word from its cache, behind padding or not, it gives the states of the whole text at once.

    Else answers differ from what was learned, from their second word on.
    """
    backbone = case.backbone()
    name = cache_argument(backbone.forward)
    if name is None:
        return "its forward takes no cache: every answer is computed from the beginning"
    mask = torch.ones(2, LENGTH, dtype=torch.long)
    mask[1, :3] = 0
    where = (mask.cumsum(-1) - 1).clamp_min(0)
    takes = "position_ids" in inspect.signature(backbone.forward).parameters

    def run(start: int, end: int, **more: Any) -> Any:
        places = {"position_ids": where[:, start:end]} if takes else {}
        return backbone(inputs_embeds=embeds[:, start:end].clone(), attention_mask=mask[:, :end], **places, **more)

    look_at = "a cache that is not read or not filled, positions that begin anew, a mask that is dropped after it"
    with torch.no_grad():
        embeds = _embed(backbone, *case.inputs())
        reference = run(0, LENGTH, use_cache=False).last_hidden_state
        found = run(0, LENGTH - 5, use_cache=True)
        steps, cache = [found.last_hidden_state], found.get(CACHE)
        require(isinstance(cache, Cache), "a Cache in its output", f"{cache!r:.60}", f"'{CACHE}' of what it returns")
        for start in range(LENGTH - 5, LENGTH):
            found = run(start, start + 1, use_cache=True, **{name: cache})
            steps.append(found.last_hidden_state)
            cache = found.get(CACHE)
    ours = torch.cat(steps, 1)
    heard = mask.bool().unsqueeze(-1)
    reference, ours = (states.masked_fill(~heard, 0) for states in (reference, ours))
    require_same(ours, reference, "the states of the whole at once", look_at, TOLERANCE)
    return None


def answers_inside_a_model(case: LLMCase) -> None:
    """In a model it learns, and answers by its cache as without one, also when it was saved and loaded again.

    Else each half is right and the model that is made of them is not.
    """
    tree = {"encoders": {"whisper": {"arch": EARS}}, "projector": [{"type": "linear"}], "llm": case.structure().config}
    model = build_model(tree, weights=False, seed=0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        shake(model)
    batch = _questions(case, model)
    model.train()
    unsaid = (batch["attention_mask"] == 0) | (batch["input_ids"] == model.config.audio_token_id)
    loss = model(**batch, labels=batch["input_ids"].masked_fill(unsaid, IGNORE)).loss
    require(bool(loss.isfinite()), "a finite loss", f"{loss.item()}", "backbone and head")
    if loss.requires_grad:
        torch.autograd.backward(loss)
    answer = _answer(model.eval(), batch)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        again = UsamForConditionalGeneration.from_pretrained(folder)
    kind, kinds = type(again.config.text_config).__name__, type(model.config.text_config).__name__
    require(kind == kinds, f"a {kinds} from the saved config", f"a {kind}", "model_type of the text_config")
    look_at = "what is neither in the text_config nor a parameter or a persistent buffer"
    require_same(_answer(again, batch), answer, "the answer's logits after it was saved and loaded", look_at, 1e-5)


EARS = {"d_model": 16, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 16}


def _questions(case: LLMCase, model: Any) -> dict[str, Tensor]:
    """A batch of two: words, a clip's placeholders, words; the second one begins later."""
    samples = 3200
    count = int(model.config.parsed.placeholders(samples))
    (words,) = case.inputs()
    slots = torch.full((2, count), model.config.audio_token_id)
    ids = torch.cat([words[:, :PLACE], slots, words[:, PLACE : PLACE + 3]], 1)
    mask = torch.ones_like(ids)
    mask[1, :2] = 0
    sound = torch.randn(2, samples, generator=torch.Generator().manual_seed(0)) * 0.1
    return {"input_ids": ids, "attention_mask": mask, "input_values": sound}


def _answer(model: Any, batch: Mapping[str, Tensor], words: int = 4) -> Tensor:
    """The logits (2, words, vocab) of a greedy answer, compared with those of one pass over question and answer."""
    generated = model.generate(
        **batch,
        do_sample=False,
        max_new_tokens=words,
        min_new_tokens=words,
        return_dict_in_generate=True,
        output_logits=True,
    )
    mask = torch.cat([batch["attention_mask"], torch.ones(2, words, dtype=torch.long)], 1)
    with torch.no_grad():
        whole = model(**{**batch, "input_ids": generated.sequences, "attention_mask": mask}, use_cache=False).logits
    ours, reference = torch.stack(generated.logits, 1), whole[:, -words - 1 : -1]
    look_at = "its cache, and the positions after it"
    require_same(ours, reference, "the logits of an answer in one pass", look_at, 10 * TOLERANCE)
    return ours


def hears_from_beside(case: LLMCase) -> str | None:
    """With cross-attention: closed gates change nothing, and what open ones let in is heard from its place on.

    Else `llm.injection: cross_attention` changes a model that has not learned yet, or is not heard.
    """
    if case.config.injection is None:
        return "its audio comes in place of the placeholders"
    backbone = case.backbone()
    width, dim = case.structure().dim, backbone.config.hidden_size
    blocks = CrossAttention(case.config.injection, dim=dim, audio_dim=width, layers=decoder_layers(backbone)).eval()
    audio = Frames(torch.randn(2, 5, width), prefix_mask(torch.tensor([5, 3]), 5), 10.0)
    places = torch.full((2, 5), PLACE)
    with torch.no_grad():
        embeds = _embed(backbone, *case.inputs())
        reference = _states(backbone, inputs_embeds=embeds.clone())
        with hearing(blocks.listen(audio, places, None, LENGTH)):
            closed = _states(backbone, inputs_embeds=embeds.clone())
        require_same(closed, reference, "the states without audio, while the gates are closed,", "where layers begin")
        for parameter in blocks.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.5)
        with hearing(blocks.listen(audio, places, None, LENGTH)):
            ours = _states(backbone, inputs_embeds=embeds.clone())
        look_at = "decoder layers that mix the words before they take hidden_states"
        require_same(ours[:, :PLACE], reference[:, :PLACE], "the states before the clip's place", look_at, TOLERANCE)
        moved = float((ours - reference)[:, PLACE:].abs().amax(-1).min())
        require(moved > TOLERANCE, "that all states from its place on hear it", f"a change of {moved:.2g}", look_at)
        heard = blocks.listen(audio, places, None, LENGTH - 3)
        with hearing(heard):
            cache = backbone(inputs_embeds=embeds[:, :-3].clone(), use_cache=True).get(CACHE)
        require(isinstance(cache, Cache), "a Cache in its output", f"{cache!r:.60}", f"'{CACHE}' of what it returns")
        if heard is not None:
            heard.remember(cache)
        mask, where = torch.ones(2, LENGTH, dtype=torch.long), torch.arange(LENGTH - 3, LENGTH).expand(2, -1)
        takes = inspect.signature(backbone.forward).parameters
        more: dict[str, Any] = {"position_ids": where} if "position_ids" in takes else {}
        more[str(cache_argument(backbone.forward))] = cache
        with hearing(blocks.listen(None, None, cache, 3)):
            end = backbone(inputs_embeds=embeds[:, -3:], attention_mask=mask, **more)
        look_at = "a cache that does not count its tokens"
        require_same(end.last_hidden_state, ours[:, -3:], "the last states from the cache", look_at, TOLERANCE)
    return None


def survives_meta_device(case: LLMCase) -> None:
    """Both halves build on the meta device; filled by their own rules, no table is left uninitialised.

    Else `from_pretrained` leaves memory as it was found in a table, and a model is wrong at random.
    """
    llm = case.structure()
    with torch.device("meta"):
        halves = {"backbone": build_backbone(llm, llm.text_config()), "head": build_head(llm, llm.text_config())}
    plain = dict(front_end(build_backbone(llm, llm.text_config())))
    for name, half in halves.items():
        stray = [n for n, p in half.named_parameters() if p.device.type != "meta"]
        require(not stray, "that all is on the meta device", f"{', '.join(stray)} elsewhere", name)
        half.to_empty(device="cpu")
        for buffer in half.buffers():
            buffer.fill_(float("nan") if buffer.is_floating_point() else 77)
        initialise(half)
        for key, buffer in front_end(half):
            look_at = "_init_weights of the model, or reset_parameters of the module that owns it"
            require_same(buffer, plain[key], f"the buffer {key} as a plain build has it", look_at, 1e-6)


def tokenizer_round_trips(case: LLMCase) -> str | None:
    """Text survives the tokenizer, whose ids all lie in the embedding table.

    Else texts are taught that nobody wrote, or an id has no embedding.
    """
    llm = case.structure()
    try:
        tokenizer = llm.tokenizer()
    except (SpecError, ComponentError) as error:
        return f"it has no tokenizer: {error}"
    require(
        llm.tokenizer() is not tokenizer, "a new one for each call", "the same", "tokenizer: tokens are added to it"
    )
    text = "Describe this audio: déjà vu, 3 cats."
    again = tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"])
    require(again.strip() == text, f"{text!r}", f"{again!r}", "tokenizer")
    rows = case.backbone().get_input_embeddings().weight.shape[0]
    require(len(tokenizer) <= rows, f"at most {rows} tokens", f"{len(tokenizer)}", "tokenizer, and vocab_size")
    require(tokenizer.eos_token_id is not None, "a token that ends an answer", "none", "eos_token of the tokenizer")
    return None


def tokenizer_gives_offsets(case: LLMCase) -> str | None:
    """Each token tells which characters it stands for: by that the instruction and the answer are found in a chat.

    Else what is supervised cannot be told from what is asked.
    """
    try:
        tokenizer = case.structure().tokenizer()
    except (SpecError, ComponentError) as error:
        return f"it has no tokenizer: {error}"
    text = "Describe this audio: déjà vu, 3 cats."
    look_at = "tokenizer: a PreTrainedTokenizerFast, whose normaliser keeps the places of characters"
    try:
        spans = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    except (NotImplementedError, ValueError) as error:
        raise Broken("offsets", f"{type(error).__name__}: {error}", look_at) from error
    inside = all(0 <= a <= b <= len(text) for a, b in spans) and spans == sorted(spans)
    require(inside, f"places in order, within {len(text)} characters", f"{spans}", look_at)
    covered = {i for a, b in spans for i in range(a, b)}
    lost = [char for i, char in enumerate(text) if i not in covered and not char.isspace()]
    require(not lost, "a token for every character", f"none for {lost}", look_at)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    for start, word in ((0, "Describe"), (len(text) - 5, "cats.")):
        own = [token for token, (a, b) in zip(ids, spans, strict=True) if a < start + len(word) and b > start]
        said = tokenizer.decode(own).strip()
        require(word in said, f"{word!r} at its place", f"{said!r}", look_at)
    return None


def lora_starts_as_no_op(case: LLMCase) -> None:
    """With LoRA a new model gives what it gave without; only the adapters train.

    Else a run does not begin at the pretrained model.
    """
    lora = case.config.lora or LoRA.model_validate({"r": 2, "target_modules": "all-linear"})
    plain, adapted = case.backbone(), case.backbone(lora=lora, freeze="all")
    adapted.load_state_dict(with_base_layers(adapted, plain.state_dict()), strict=False)
    trains = [name for name, parameter in adapted.named_parameters() if parameter.requires_grad]
    others = [name for name in trains if not is_adapter(name)]
    require(bool(trains) and not others, "that adapters train", f"{others or 'nothing'}", "requires_grad_ in forward")
    embeds = _embed(plain, *case.inputs()).detach()
    with torch.no_grad():
        ours, reference = _states(adapted, inputs_embeds=embeds), _states(plain, inputs_embeds=embeds)
    require_same(ours, reference, "the states without LoRA", "what changes its adapters", 1e-5)


def stays_frozen(case: LLMCase) -> None:
    """Frozen, nothing trains or drops out, even in training mode, which gradient checkpointing needs.

    Else a language model that should be left alone is not.
    """
    llm = case.structure(freeze="all", lora=None)
    backbone, head = case.backbone(freeze="all").train(), build_head(llm, llm.text_config())
    trains = [n for half in (backbone, head) for n, p in half.named_parameters() if p.requires_grad]
    require(not trains, "that nothing trains", f"{', '.join(trains)}", "requires_grad_ in train")
    with torch.no_grad():
        first, second = (_states(backbone, inputs_embeds=_embed(backbone, *case.inputs())) for _ in range(2))
    require_same(second, first, "two equal calls in training mode", "dropouts that text_config does not set to 0")


def gradient_reaches_every_trainable_parameter(case: LLMCase) -> None:
    """Unfrozen, every step gives every parameter of the backbone and the head a gradient.

    Else distributed training stalls.
    """
    llm = case.structure(freeze="none", lora=None)
    halves = nn.ModuleDict(
        {"backbone": case.backbone(freeze="none").train(), "head": build_head(llm, llm.text_config())}
    )
    logits = halves["head"](_states(halves["backbone"], inputs_embeds=_embed(halves["backbone"], *case.inputs())))
    require(logits.requires_grad, "logits with a gradient", "none", "no_grad or detach in either half")
    torch.autograd.backward((logits * torch.randn_like(logits)).sum())
    parameters = dict(halves.named_parameters())
    without = [name for name, p in parameters.items() if p.requires_grad and p.grad is None]
    require(not without, "gradients for all", f"none for {', '.join(without)}", "whether forward always uses it")


def keeps_gradient_checkpointing(case: LLMCase) -> None:
    """Frozen, it passes the gradient on to its input, and gradient checkpointing still saves memory.

    Else the projector learns nothing, or training does not fit into memory.
    """
    backbone = case.backbone(freeze="all").train()
    embeds = _embed(backbone, *case.inputs()).detach()
    plain, gradient = _saved(backbone, embeds)
    backbone.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    fewer, again = _saved(backbone, embeds)
    require(bool(gradient.any()), "a gradient for inputs_embeds", "none", "no_grad or detach in the backbone")
    found = f"{fewer} saved elements instead of {plain}"
    require(fewer < plain, "fewer saved elements with checkpointing", found, "an eval mode that switches it off")
    require_same(again, gradient, "the gradient without checkpointing", "randomness in the layers", 1e-5)


def _saved(backbone: Any, embeds: Tensor) -> tuple[int, Tensor]:
    """Elements that a forward pass keeps for the backward pass, and the gradient of the input."""
    kept = 0

    def count(tensor: Tensor) -> Tensor:
        nonlocal kept
        kept += tensor.numel()
        return tensor

    source = embeds.clone().requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        states = _states(backbone, inputs_embeds=source * 1.0)
    torch.autograd.backward(states.square().sum())
    require(source.grad is not None, "a gradient for inputs_embeds", "none", "no_grad or detach in the backbone")
    return kept, source.grad  # type: ignore[return-value]


def is_deterministic(case: LLMCase) -> None:
    """In eval mode two calls give the same bits.

    Else no evaluation can be repeated.
    """
    backbone = case.backbone()
    with torch.no_grad():
        first, second = (_states(backbone, input_ids=case.inputs()[0]) for _ in range(2))
    require_same(second, first, "the same states twice", "randomness in forward")


CLAIMS: list[Claim] = [
    true_width,
    chooses_words,
    keeps_its_text_config,
    matches_the_causal_lm,
    hears_embeddings_as_ids,
    looks_only_back,
    hears_all_before,
    keeps_batch_items_apart,
    ignores_left_padding,
    decodes_from_its_cache,
    answers_inside_a_model,
    hears_from_beside,
    survives_meta_device,
    tokenizer_round_trips,
    tokenizer_gives_offsets,
    lora_starts_as_no_op,
    stays_frozen,
    gradient_reaches_every_trainable_parameter,
    keeps_gradient_checkpointing,
    is_deterministic,
    config_round_trips,
    refuses_unknown_options,
    loads_nothing_in_init,
]
