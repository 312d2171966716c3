"""Training: what is supervised, what moves, what stays, and that the arithmetic of batches does not matter."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import toys  # noqa: F401
from conftest import noise, nudge
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import Trainer, TrainingArguments

from usam import UsamProcessor, build_model, load_spec


@pytest.fixture(scope="module")
def spec(speech):
    lora = {"target_modules": ["q_proj", "v_proj"], "lora_dropout": 0.1}
    return {**speech, "llm": {**speech["llm"], "lora": lora}}


@pytest.fixture(scope="module")
def processor(spec):
    return UsamProcessor.from_spec(load_spec(spec))


def chat(i, audio=True):
    clip = [{"type": "audio", "audio": noise(0.1 + 0.3 * (i % 4), i)}] if audio else []
    question = {"role": "user", "content": [*clip, {"type": "text", "text": "What do you hear?"}]}
    return [question, {"role": "assistant", "content": "A dog barks." * (1 + i % 3)}]


CHATS = [chat(i) for i in range(8)]


@pytest.fixture(scope="module")
def collate(processor):
    def collate(chats):
        return dict(processor.apply_chat_template(chats, tokenize=True, return_labels=True))

    return collate


@pytest.fixture
def model(spec):
    torch.manual_seed(0)
    return nudge(build_model(spec))


@pytest.fixture(scope="module")
def batch(collate):
    return collate(CHATS)


def trainable(model):
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def gradients(model):
    return {name: p.grad.clone() for name, p in trainable(model).items()}


def assert_same(found, expected, atol):
    assert found.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=atol, msg=lambda m, n=name: f"{n}: {m}")


# The loss


def test_cross_entropy_is_that_of_the_answers(model, batch):
    out = model(**batch)
    expected = F.cross_entropy(out.logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten())
    torch.testing.assert_close(out.loss, expected)


def test_the_loss_is_the_weighted_sum_of_its_unweighted_parts(spec, batch):
    losses = {"cross_entropy": {"weight": 0.5}, "toy_match": {"weight": 2.0}}
    out = build_model({**spec, "losses": losses})(**batch)
    torch.testing.assert_close(out.loss, 0.5 * out.losses["cross_entropy"] + 2 * out.losses["toy_match"])
    expected = F.cross_entropy(out.logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten())
    torch.testing.assert_close(out.losses["cross_entropy"], expected)
    torch.testing.assert_close(out.aux["toy_match.distance"].mean(), out.losses["toy_match"])


def test_a_loss_is_given_the_audio_and_the_answer_of_each_sample(model, collate):
    given = {}
    model.losses.cross_entropy.register_forward_pre_hook(lambda _, inputs: given.update(inputs=inputs[0]))
    three = [chat(0), chat(1, audio=False), chat(2)]
    batch = collate(three)
    model(**batch)
    inputs = given["inputs"]
    clips = [model.get_audio_features(torch.from_numpy(c[0]["content"][0]["audio"])[None]) for c in three[::2]]
    assert inputs.audio.lengths.tolist() == [1, 0, 7]
    torch.testing.assert_close(inputs.audio.x[0, :1], clips[0].pooler_output, rtol=0, atol=1e-5)
    torch.testing.assert_close(inputs.audio.x[2], clips[1].pooler_output, rtol=0, atol=1e-5)
    embeds, mask = inputs.answer
    supervised = batch["labels"] != -100
    assert torch.equal(mask, supervised)
    assert torch.equal(embeds[mask], model.get_input_embeddings()(batch["labels"][supervised]).detach())
    assert not embeds.requires_grad


def test_there_are_no_logits_while_training(model, batch):
    assert model.train()(**batch).logits is None
    assert model.eval()(**batch).logits.shape == (*batch["labels"].shape, 308)
    assert model.train()(**{**batch, "labels": None}).logits.shape == (*batch["labels"].shape, 308)


def test_the_last_logits_alone(model, batch):
    inputs = {**batch, "labels": None}
    torch.testing.assert_close(model(**inputs, logits_to_keep=2).logits, model(**inputs).logits[:, -2:])
    torch.testing.assert_close(model(**inputs, logits_to_keep=torch.tensor([3])).logits, model(**inputs).logits[:, 3:4])


def test_labels_without_an_answer_are_an_error(model, batch):
    with pytest.raises(ValueError, match="labels have no supervised token"):
        model(**{**batch, "labels": torch.full_like(batch["labels"], -100)})


# Batches


def test_four_micro_batches_give_the_gradients_of_one_batch(model, collate, batch):
    total = (batch["labels"] != -100).sum()
    model.eval()  # without the dropout of the adapters
    model(**batch, num_items_in_batch=total).loss.backward()
    expected = gradients(model)
    model.zero_grad()
    for i in range(0, 8, 2):
        model(**collate(CHATS[i : i + 2]), num_items_in_batch=total).loss.backward()
    assert_same(gradients(model), expected, atol=1e-5)
    model.zero_grad()
    model(**batch).loss.backward()
    assert_same(gradients(model), expected, atol=1e-5)


def test_every_trainable_parameter_gets_a_gradient(model, batch):
    model.train()(**batch).loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in trainable(model).values())


@pytest.mark.parametrize("projector", ["linear", "toy_gate"])
def test_a_batch_without_audio_leaves_no_gradient_out(projector, spec, collate):
    """Distributed training would wait for it forever."""
    model = build_model({**spec, "projector": projector, "losses": {"cross_entropy": {}, "toy_match": {}}})
    text = collate([chat(0, audio=False), chat(1, audio=False)])
    model.train()(**text).loss.backward()
    assert all(p.grad is not None for p in trainable(model).values())
    assert not any(p.grad.any() for p in model.model.projector.parameters())


# What is frozen


def test_frozen_encoders_do_not_move_and_drop_nothing(spec):
    """Not even their batch statistics; Whisper's config asks for dropout."""
    arch = load_spec(spec).encoders["whisper"].resolved().arch
    whisper = {**spec["encoders"]["whisper"], "arch": {**arch, "dropout": 0.5, "encoder_layerdrop": 0.5}}
    model = build_model({**spec, "encoders": {"whisper": whisper, "toy": {}}}, "fusion.rate=10").train()
    before = copy.deepcopy(model.model.encoders.state_dict())
    clips = torch.from_numpy(noise(0.5, rate=24000))[None]
    assert torch.equal(model.model.encode(clips).x, model.model.encode(clips).x)
    after = model.model.encoders.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_an_encoder_that_trains_keeps_its_statistics(spec):
    model = build_model({**spec, "encoders": {"toy": {"freeze": "none"}}}).train()
    model.model.encode(torch.from_numpy(noise(0.5, rate=24000))[None])
    assert model.model.encoders.toy.norm.running_mean.any()


def test_the_frozen_language_model_keeps_its_flag_and_drops_nothing(spec, gpt2, collate):
    """GPT-2 drops a tenth by default; gradient checkpointing asks for the flag."""
    model = build_model({**spec, "llm": {"type": "transformers", "path": gpt2}}).train()
    processor = UsamProcessor.from_spec(model.config.parsed)
    batch = processor.apply_chat_template(CHATS[:2], tokenize=True, return_labels=True)
    assert model.model.language_model.h[0].training
    assert model(**batch).loss == model(**batch).loss


def test_batch_norms_of_a_frozen_language_model_stay_in_eval_mode(model):
    model.model.language_model.add_module("norm_of_batches", torch.nn.BatchNorm1d(2))
    assert not model.train().model.language_model.norm_of_batches.training


def test_adapters_do_drop(model, batch):
    model.train()
    assert model(**batch).loss != model(**batch).loss


def test_the_frozen_encoder_stays_in_eval_mode(model):
    model.train()
    assert model.training
    assert model.model.projector.stages[0].training
    assert not any(module.training for module in model.model.encoders.whisper.modules())


def saved_elements(model, batch):
    count = 0

    def pack(tensor):
        nonlocal count
        count += tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = model(**batch).loss
    loss.backward()
    return count


@pytest.mark.parametrize("lora", [True, False])
def test_gradient_checkpointing_saves_less_and_gives_the_same_gradients(lora, spec, batch):
    torch.manual_seed(0)
    model = nudge(build_model(spec, "llm.lora.lora_dropout=0" if lora else "llm.lora=null")).train()
    plain, expected = saved_elements(model, batch), gradients(model)
    model.zero_grad()
    model.gradient_checkpointing_enable()
    assert saved_elements(model, batch) < 0.6 * plain
    assert_same(gradients(model), expected, atol=1e-6)


# transformers' own Trainer


def trainer(model, collate, folder, data=CHATS, **options):
    options = {"max_steps": 4, "learning_rate": 1e-2, "lr_scheduler_type": "constant", "save_strategy": "no", **options}
    arguments = TrainingArguments(
        output_dir=str(folder),
        remove_unused_columns=False,
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        **options,
    )
    return Trainer(model, arguments, data_collator=collate, train_dataset=data, eval_dataset=CHATS[:3])


def weights(model):
    return {name: p.detach().clone() for name, p in trainable(model).items()}


def test_the_trainer_lowers_the_loss_and_moves_only_what_trains(model, collate, batch, tmp_path):
    before, state = model(**batch).loss, copy.deepcopy(model.state_dict())
    trainer(model, collate, tmp_path, max_steps=6).train()
    assert model.eval()(**batch).loss < 0.9 * before
    moved = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, state[name])}
    assert moved == set(trainable(model))


def test_accumulated_steps_are_those_of_the_whole_batch(spec, collate, tmp_path):
    found = []
    for size, steps in ((8, 1), (2, 4)):
        torch.manual_seed(0)
        model = nudge(build_model(spec, "llm.lora.lora_dropout=0"))
        options = {"per_device_train_batch_size": size, "gradient_accumulation_steps": steps, "optim": "sgd"}
        trainer(model, collate, tmp_path, max_steps=2, max_grad_norm=0, **options).train()
        found.append(weights(model))
    assert_same(found[1], found[0], atol=1e-5)


def test_a_resumed_run_ends_where_an_uninterrupted_one_does(spec, collate, tmp_path):
    def run(folder, resume=None, **options):
        torch.manual_seed(0)
        model = build_model(spec)
        options = {"per_device_train_batch_size": 2, "save_strategy": "steps", "save_steps": 3, **options}
        trainer(model, collate, folder, max_steps=6, **options).train(resume_from_checkpoint=resume)
        return weights(model)

    expected = run(tmp_path)
    delta = load_file(tmp_path / "checkpoint-3" / "model.safetensors")
    assert delta.keys() == expected.keys()
    assert_same(run(tmp_path / "again", resume=str(tmp_path / "checkpoint-3")), expected, atol=0)


def test_the_trainers_checkpoint_is_a_model(model, collate, batch, tmp_path):
    trainer(model, collate, tmp_path, save_strategy="steps", save_steps=4).train()
    again = type(model).from_pretrained(tmp_path / "checkpoint-4")
    assert torch.equal(again(**batch).loss, model.eval()(**batch).loss)


def test_evaluation_predicts_logits_and_nothing_else(model, collate, tmp_path):
    evaluated = trainer(model, collate, tmp_path, per_device_eval_batch_size=2)
    losses = [model.eval()(**collate(CHATS[:2])).loss.item(), model(**collate(CHATS[2:3])).loss.item()]
    np.testing.assert_allclose(evaluated.evaluate()["eval_loss"], (2 * losses[0] + losses[1]) / 3, rtol=1e-5)
    predictions = evaluated.predict(CHATS[:2]).predictions
    assert isinstance(predictions, np.ndarray)
    with torch.no_grad():
        np.testing.assert_allclose(predictions, model(**collate(CHATS[:2])).logits.numpy(), atol=1e-6)


# PEFT around the whole model


def test_peft_trains_adapters_and_the_projector(spec, batch):
    model = build_model(spec, "llm.lora=null")
    peft = get_peft_model(model, LoraConfig(target_modules=["q_proj"], modules_to_save=["projector"])).train()
    before = weights(peft)
    assert any("lora_A" in name for name in before)
    assert any("projector" in name for name in before)
    optimizer = torch.optim.AdamW(peft.parameters(), lr=1e-2)
    losses = []
    for _ in range(5):
        losses.append(peft(**batch).loss)
        losses[-1].backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < 0.9 * losses[0]
    assert all(not torch.equal(p, before[name]) for name, p in weights(peft).items())


def test_peft_over_a_model_with_adapters_is_refused_unless_both_are_active(model, batch):
    peft = get_peft_model(model, LoraConfig(target_modules=["q_proj", "v_proj"]))
    with pytest.raises(ValueError, match=r"another adapter \(default\) has switched off the model's own LoRA"):
        peft(**batch)
    peft.base_model.set_adapter(["usam", "default"])
    assert peft(**batch).loss.isfinite()
