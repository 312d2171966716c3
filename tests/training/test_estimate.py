"""What a step takes is told without taking it, and held against one that is taken."""

import json
from functools import cache
from types import SimpleNamespace

import pytest
import soundfile
import torch
from conftest import make_tokenizer, noise
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from usam import SpecError, load_spec
from usam.config import resolve
from usam.data.cost import How, batch_of, hollow_model, step
from usam.data.hollow import FORMULAS, hollow
from usam.data.sampling import Budget, Length
from usam.model.model import UsamForConditionalGeneration
from usam.training.estimate import Plan, estimate, plan_of
from usam.training.run import Run

LORA = ("encoders.whisper.freeze=all", "llm.freeze=all", "llm.lora={r: 4, target_modules: [q_proj, v_proj]}")
SPECS = [("tiny",), ("mini_paper",), ("tiny", *LORA)]
ROWS = [Length(tokens=70, asked=61, seconds=1.0), Length(tokens=60, asked=51, seconds=0.6)]


@cache
def hollowed(*asked):
    """A spec, and its model without memory, which any number of steps leave as it is."""
    spec = resolve(load_spec(*asked))
    return spec, hollow_model(spec, How())


class NoModules(SimpleNamespace):
    """Instead of FlopCounterMode's hooks, which a gradient that is taken in the forward pass breaks."""

    parents = frozenset(["Global"])

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


def taken(spec, skeleton, rows, checkpointing=False):
    """A step on the CPU: operations by torch's counter, and the most bytes by its profiler, of the second step."""
    with hollow() as values:
        batch = batch_of(spec, skeleton, rows, values)
        shapes = {n: values.known[t] for n, t in batch.items() if isinstance(t, torch.Tensor) and t in values.known}
    clips = torch.randn(shapes["input_values_mask"].shape, generator=torch.Generator().manual_seed(0)) * 0.1
    real = {**shapes, "batch": batch["batch"], "input_values": clips * shapes["input_values_mask"]}
    model = UsamForConditionalGeneration(skeleton.config, seed=0).train()
    if checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], fused=True)
    counter = FlopCounterMode(display=False)
    counter.mod_tracker = NoModules()
    attention = {op: formula for op, formula in FORMULAS.items() if "for_cpu" in str(op)}  # which torch leaves out
    counter.flop_registry.update(attention)
    with counter:
        model(**real).loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    there = [*model.parameters(), *model.buffers()]
    there += [t for state in optimizer.state.values() for t in state.values()]
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        model(**real).loss.backward()
        optimizer.step()
    events = [e for e in profiled.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return counter.get_total_flops(), peak + sum(t.nbytes for t in {id(t): t for t in there}.values())


@pytest.mark.parametrize("asked", SPECS, ids=["tiny", "mini_paper", "lora"])
def test_a_step_takes_what_was_estimated(asked):
    spec, model = hollowed(*asked)
    cost = step(spec, model, ROWS, How())
    operations, most = taken(spec, model, ROWS)
    assert cost.work.total == operations
    assert cost.peak == pytest.approx(most, rel=0.15)


def test_checkpointed_states_are_computed_again():
    (spec, model), how = hollowed("mini_paper"), How(checkpointing=True)
    cost = step(spec, hollow_model(spec, how), ROWS, how)
    operations, most = taken(spec, model, ROWS, checkpointing=True)
    assert cost.work.total == operations
    assert cost.peak == pytest.approx(most, rel=0.15)
    assert cost.activations < step(spec, model, ROWS, How()).activations


def test_a_dense_mixture_counts_all_experts_also_where_an_op_computes_them():
    small, large = ([Length(tokens=9, asked=8, seconds=s)] for s in (1.0, 40.0))
    spec, model = hollowed("mini_paper", "projector.1.hidden=4096", "encoders.mert=null", "encoders.ced=null")
    few, many = (step(spec, model, rows, How()).work.forward["projector.1"] for rows in (small, large))
    frames = [spec.placeholders(round(s * spec.sample_rate)) for s in (1.0, 40.0)]
    per_frame = 2 * 3 * 4096 * (128 + 96)  # two layers of three experts
    assert many - few == (frames[1] - frames[0]) * per_frame


def test_a_sparse_mixture_counts_the_experts_that_are_chosen():
    rows = [Length(tokens=40, asked=30, seconds=1.0)]
    found = {}
    for top_k in (1, 2):
        spec, model = hollowed("mini_paper", f"projector.1.top_k={top_k}", "encoders.mert=null", "encoders.ced=null")
        found[top_k] = step(spec, model, rows, How()).work.forward["projector.1"]
    frames = spec.placeholders(spec.sample_rate)
    assert found[2] - found[1] == frames * 2 * 128 * (128 + 96)


def test_frames_from_a_cache_spare_the_encoders():
    spec, model = hollowed("tiny", *LORA)
    with_cache = step(spec, model, ROWS, How(cached=True)).work
    without = step(spec, model, ROWS, How()).work
    assert "encoders.whisper" in without.forward
    assert without.total - with_cache.total == without.forward["encoders.whisper"]


def test_bfloat16_keeps_less_and_computes_the_same():
    spec, model = hollowed("tiny")
    costs = [step(spec, model, ROWS, how) for how in (How(autocast=torch.bfloat16), How())]
    assert costs[0].activations < costs[1].activations
    assert costs[0].work == costs[1].work
    assert costs[0].gradients == costs[1].gradients


@pytest.mark.parametrize(("name", "times"), [("adamw_torch", 2), ("adamw_torch_fused", 2), ("sgd", 0), ("adagrad", 1)])
def test_an_optimizer_keeps_so_many_numbers_for_each_that_trains(name, times):
    spec, model = hollowed("tiny")
    cost = step(spec, model, ROWS, How(optimizer=name))
    assert cost.optimizer == pytest.approx(times * cost.gradients, rel=0.001, abs=1000)


def test_an_optimizer_that_nobody_knows_is_told():
    with pytest.raises(SpecError, match=r"adamw_torh.*adamw_torch"):
        estimate(load_spec("tiny"), Plan(how=How(optimizer="adamw_torh"), seconds=1))


def test_a_cache_of_keys_and_values_grows_by_the_layers():
    found = estimate(load_spec("tiny"), Plan(seconds=1, batch_size=1))
    assert found.per_token == 2 * 2 * 128 * 4  # keys and values, two layers, the width, float32


def test_a_budget_of_seconds_makes_the_batch():
    found = estimate(load_spec("tiny"), Plan(seconds=2, batch_size=None, budget=Budget(seconds=9)))
    assert found.batch["rows"] == 4


@pytest.fixture
def run(tmp_path):
    """A run over eleven clips of 0.2 to 1.2 s."""
    make_tokenizer().save_pretrained(tmp_path / "tokenizer")
    rows = []
    for i in range(11):
        soundfile.write(tmp_path / f"{i}.wav", noise(0.2 + i / 10), 16000)
        rows.append({"audio": f"{i}.wav", "task": "asr", "answer": "rain " * (i + 1)})
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    train = {"per_device_train_batch_size": 4, "bf16": True, "optim": "sgd", "gradient_accumulation_steps": 2}
    return Run(load_spec("tiny"), {"train": str(tmp_path / "train.jsonl")}, train)


def test_a_run_says_what_it_trains_on_and_how(run):
    plan = plan_of(run)
    assert (plan.batch_size, plan.how.autocast, plan.how.optimizer) == (4, torch.bfloat16, "sgd")
    found = estimate(run.spec, plan, run)
    assert (found.rows, found.batches) == (11, 3)
    assert found.batch["seconds"] == pytest.approx(4 * 1.2)
    seconds = sum(0.2 + i / 10 for i in range(11))
    flops = 1e9
    assert found.hours_a_day(flops) * 3600 == pytest.approx(found.epochs_a_day(flops) * seconds)


@pytest.mark.slow
def test_the_paper_at_full_size_needs_no_memory():
    found = estimate(load_spec("paper"), Plan(batch_size=8, seconds=10))
    assert found.parts[-1].parameters > 9e9
    assert found.cost.peak > 20 * 2**30
    assert found.cost.work.forward["llm"] > 1e12


def test_a_stage_that_does_not_run_the_language_model_is_followed():
    stages = {
        "projector": [{"type": "linear", "stack": 4}, "soft_tokens"],
        "losses": {"cross_entropy": None, "ctc": {"against": "soft_tokens"}},
    }
    spec = resolve(load_spec("tiny", stages, "llm.freeze=all", "fusion.standardize=true"))
    work = step(spec, hollow_model(spec, How()), ROWS, How()).work
    assert not work.forward.get("llm")
    assert work.backward["projector.0"] > 0
