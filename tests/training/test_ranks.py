"""Several processes learn what one does, save what one does, and go on from what others saved."""

import json
import shutil
import subprocess
import sys
from importlib.util import find_spec

import pytest
import soundfile
import torch
from accelerate.utils import FullyShardedDataParallelPlugin
from conftest import noise
from processes import ranks
from safetensors.torch import load_file
from short_runs import SMALL, logged

from usam import SpecError, UsamForConditionalGeneration
from usam.model.checkpoint import export
from usam.training import checkpoints
from usam.training.routing import Routing
from usam.training.run import read_run
from usam.training.sharding import check
from usam.training.start import train

ACCUMULATING = ["train.gradient_accumulation_steps=2"]
GLOO = ["train.ddp_backend=gloo"]
FSDP2 = [*GLOO, "train.fsdp=true", "train.fsdp_config={version: 2}"]
PAPER = [  # from trained weights; frozen, the language model would be float16, as it is stored
    "model.llm.freeze=all",
    "model.llm.dtype=float32",
    "model.llm.lora={r: 4, lora_alpha: 8}",
]
CPU = "use_cpu: true, " if torch.accelerator.is_available() else ""  # where there is nothing else, it is the default
STEPS = ["train.per_device_train_batch_size=2", "train.logging_steps=1", "train.save_total_limit=9"]


@pytest.fixture
def rows(tmp_path):
    """Seven clips of two tasks, which two processes cannot share evenly."""
    lines = []
    for i in range(7):
        soundfile.write(tmp_path / f"{i}.wav", noise(0.4 + 0.1 * i, seed=i), 16000)
        lines.append({"audio": f"{i}.wav", "task": "asr", "answer": "ab" * (1 + i % 3)})
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return tmp_path


def run_file(rows, spec="tiny"):
    file = rows / f"{spec}.yaml"
    file.write_text(
        f"model: {spec}\ndata: {{train: rows.jsonl}}\n"
        f"train: {{max_steps: 4, learning_rate: 1e-3, {CPU}disable_tqdm: true, save_steps: 2}}\n"
    )
    return file


def one(file, folder, *overrides, resume=False):
    """A run of one process."""
    return train(read_run(file, *STEPS, *overrides, f"train.output_dir={folder}"), resume=resume)


def two(file, folder, *overrides, resume=False):
    """A run of two, which torchrun starts."""
    overrides = [*STEPS, *overrides, f"train.output_dir={folder}"]
    words = [word for override in overrides for word in ("--set", override)] + ["--resume"] * resume
    many = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run([*many, "-m", "usam.cli", "train", file, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-5000:]
    return folder


def forks(file, folder, *overrides):
    """A run of two that begin at once."""
    overrides = [*STEPS, *overrides, f"train.output_dir={folder}"]
    ranks(file.parent, "train", file, *(word for override in overrides for word in ("--set", override)))
    return folder


STAGE = [
    "model.projector=[{type: linear, stack: 4}, {type: soft_tokens}]",
    "model.fusion.standardize=true",
    "model.llm.freeze=all",
]
CTC = "ctc: {against: soft_tokens, negatives: all}"


def losses(folder, name="loss"):
    return [line[name] for line in logged(folder) if name in line]


def weights(folder):
    return load_file(folder / "model.safetensors")


def assert_learned_the_same(folder, other):
    """The curve, and what came of it; Adam divides by what is nearly zero, where rounding shows."""
    assert losses(folder) == pytest.approx(losses(other), rel=1e-5)
    first, second = weights(folder), weights(other)
    assert first.keys() == second.keys()
    assert all(torch.allclose(first[name], second[name], rtol=0, atol=1e-4) for name in first)


# The same steps


@pytest.mark.parametrize("launched", [forks, pytest.param(two, marks=pytest.mark.slow)], ids=["forks", "torchrun"])
def test_two_processes_make_the_steps_of_one_that_accumulates(launched, rows):
    file = run_file(rows)
    whole = one(file, rows / "one", *SMALL, *ACCUMULATING)
    assert len(losses(whole)) == 4
    assert_learned_the_same(launched(file, rows / "two", *SMALL, *GLOO), whole)


@pytest.mark.skipif(bool(CPU), reason="with a GPU each process has one, and knows of the others")
def test_processes_that_would_train_each_by_itself_are_refused(rows):
    with pytest.raises(AssertionError, match=r"train.use_cpu: 2 processes were started, .* write use_cpu: true"):
        forks(run_file(rows), rows / "out", *SMALL, "train.use_cpu=false")


@pytest.mark.slow
def test_processes_that_spread_the_weights_do_too(rows):
    file = run_file(rows)
    looking = ["data.eval=rows.jsonl", "train.eval_strategy=steps", "train.eval_steps=2"]
    looking += ["train.load_best_model_at_end=true", "train.per_device_eval_batch_size=1"]
    whole = one(file, rows / "one", *SMALL, *looking, *ACCUMULATING)
    spread = two(file, rows / "two", *SMALL, *looking, *FSDP2)
    assert_learned_the_same(spread, whole)
    assert losses(spread, "eval_loss") == pytest.approx(losses(whole, "eval_loss"), rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", [GLOO, FSDP2], ids=["ddp", "fsdp2"])
@pytest.mark.parametrize("sampling", [[], ["data.batch_seconds=1.6"]], ids=["rows", "budget"])
def test_three_encoders_with_adapters_and_routing_by_the_prompt(sampling, strategy, rows):
    file = run_file(rows, "mini_paper")
    whole = one(file, rows / "one", *PAPER, *sampling, *ACCUMULATING)
    assert_learned_the_same(two(file, rows / "two", *PAPER, *sampling, *strategy), whole)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        ["model.llm.tie_word_embeddings=true"],
        ["model.llm.tie_word_embeddings=true", "model.llm.freeze=all"],
        ["model.losses.info_nce={}", "model.losses.sigmoid_contrastive={}"],
        ["train.gradient_checkpointing=true"],
    ],
    ids=["tied", "tied_and_frozen", "learned_temperatures", "checkpointed"],
)
def test_weights_are_spread_whatever_shares_them(options, rows):
    file = run_file(rows)
    whole = one(file, rows / "one", *SMALL, *options, *ACCUMULATING)
    assert_learned_the_same(two(file, rows / "two", *SMALL, *options, *FSDP2), whole)


# What is saved


@pytest.mark.slow
def test_a_checkpoint_of_spread_weights_is_the_one_of_a_single_process(rows):
    file = run_file(rows, "mini_paper")
    whole = one(file, rows / "one", *PAPER, *ACCUMULATING)
    spread = two(file, rows / "two", *PAPER, *FSDP2)
    own = {"progress.pt", "rng_state.pth"}
    of_both = {f"{name}_{rank}.{end}" for rank in (0, 1) for name, end in (("progress", "pt"), ("rng_state", "pth"))}
    for folder in ("checkpoint-2", "."):
        names = {path.name for path in (whole / folder).iterdir() if path.is_file()}
        found = {path.name for path in (spread / folder).iterdir() if path.is_file()}
        assert found - of_both == names - own
        assert weights(spread / folder).keys() == weights(whole / folder).keys()
    assert (spread / "config.json").read_text() == (whole / "config.json").read_text()
    state, alone = (torch.load(f / "checkpoint-2" / "optimizer.pt", weights_only=True) for f in (spread, whole))
    assert state["state"].keys() == alone["state"].keys()
    for number, entries in alone["state"].items():
        assert all(torch.allclose(state["state"][number][name], entries[name], atol=1e-5) for name in entries)
    export(spread, rows / "exported")
    merged, alone = (UsamForConditionalGeneration.from_pretrained(f).eval() for f in (rows / "exported", whole))
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        assert torch.allclose(merged(input_ids=ids).logits, alone(input_ids=ids).logits, atol=1e-4)


# Another number of processes goes on


@pytest.mark.slow
@pytest.mark.parametrize(
    ("before", "after"),
    [([], GLOO), (GLOO, []), ([], FSDP2), (FSDP2, []), (GLOO, FSDP2)],
    ids=["one_ddp", "ddp_one", "one_fsdp2", "fsdp2_one", "ddp_fsdp2"],
)
def test_other_processes_go_on_with_the_same_rows(before, after, rows):
    """In the middle of the second epoch, and between two lines of the log."""
    file = run_file(rows)
    more = [*SMALL, "train.max_steps=6", "train.save_steps=3", "train.logging_steps=2"]
    whole = one(file, rows / "whole", *more, *ACCUMULATING)
    begun = two(file, rows / "begun", *more, *before) if before else whole
    (rows / "half").mkdir()
    shutil.copytree(begun / "checkpoint-3", rows / "half" / "checkpoint-3")
    goes_on = two if after else one
    assert_learned_the_same(goes_on(file, rows / "half", *more, *(after or ACCUMULATING), resume=True), whole)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A checkpoint whose steps were of two batches, and what it says it was made of."""
    folder = tmp_path_factory.mktemp("saved")
    soundfile.write(folder / "0.wav", noise(0.5), 16000)
    line = json.dumps({"audio": "0.wav", "task": "asr", "answer": "ab"})
    (folder / "rows.jsonl").write_text("\n".join([line] * 4))
    checkpoint = one(run_file(folder), folder / "out", *SMALL, *ACCUMULATING) / "checkpoint-2"
    return checkpoint, json.loads((checkpoint / checkpoints.RECORD).read_text())


def made_of(saved, processes, steps, **train):
    return {
        **saved[1],
        "train": {**saved[1]["train"], "processes": processes, "gradient_accumulation_steps": steps} | train,
    }


def test_processes_instead_of_accumulation_are_told(saved):
    told = checkpoints.compare(saved[0], made_of(saved, 2, 1, fsdp=True, fsdp_config={"version": 2}))
    assert [line.split(":")[0] for line in told] == [
        "train.gradient_accumulation_steps", "train.processes", "train.fsdp", "train.fsdp_config.version"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("processes", "steps", "message"),
    [
        (1, 1, r"and now of 1 \(processes: 1, steps of accumulation: 1\); write train.gradient_accumulation_steps: 2"),
        (2, 2, r"a step was made of 2 batches .* and now of 4 .*; write train.gradient_accumulation_steps: 1"),
        (3, 1, r"start 1 or 2 of them, with train.gradient_accumulation_steps so that the product is 2"),
    ],
)
def test_steps_of_another_number_of_batches_are_refused(processes, steps, message, saved):
    with pytest.raises(SpecError, match=message):
        checkpoints.compare(saved[0], made_of(saved, processes, steps))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train_sampling_strategy": "batch_rebalance"}, "batch_rebalance deals out rows by the number of processes"),
        ({"deepspeed": "zero.json"}, "train.deepspeed: it saves the optimizer in parts"),
    ],
)
def test_what_depends_on_the_number_of_processes_is_refused(change, message, saved):
    with pytest.raises(SpecError, match=message):
        checkpoints.compare(saved[0], made_of(saved, 2, 1, **change))


@pytest.mark.parametrize("option", ["gather: true", "queue: 4"])
def test_a_loss_that_looks_beyond_its_batch_is_refused(option, rows):
    contrastive = [f"model.losses.semantic_contrastive={{{option}}}", "train.max_steps=2"]
    found = one(run_file(rows), rows / "out", *SMALL, *contrastive, *ACCUMULATING) / "checkpoint-2"
    before = json.loads((found / checkpoints.RECORD).read_text())
    with pytest.raises(SpecError, match=r"model.losses.semantic_contrastive: compares with what each process heard"):
        checkpoints.compare(found, made_of((found, before), 2, 1))


def test_what_routers_did_on_several_processes_is_joined():
    aux = {"0.router_rows": torch.ones(1, 1), "0.router_entropy": torch.zeros(1, 1), "sample": torch.tensor([0])}
    whole, parts = Routing(), [Routing(), Routing()]
    for part, task, gate in zip(parts, ("asr", "count"), (0.25, 0.75), strict=True):
        own = {**aux, "0.router_probs": torch.tensor([[gate, 1 - gate]]), "0.router_load": torch.tensor([[1.0, 0.0]])}
        part.add([task], own)
        whole.add([task], own)
    assert Routing.joined([part.state for part in parts]).means() == whole.means()


# What is refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fsdp_version": 1}, "fsdp_config.version: .* write 2"),
        ({"fsdp_version": 2, "state_dict_type": "SHARDED_STATE_DICT"}, "state_dict_type: .* write FULL_STATE_DICT"),
        ({"fsdp_version": 2, "state_dict_type": "FULL_STATE_DICT", "cpu_ram_efficient_loading": True}, "write false"),
    ],
)
def test_ways_to_spread_that_checkpoints_do_not_go_with_are_refused(options, message, monkeypatch):
    monkeypatch.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", "false")  # which the plugin would write
    with pytest.raises(SpecError, match=message):
        check(FullyShardedDataParallelPlugin(**options))


def test_one_process_has_nobody_to_share_with(rows):
    with pytest.raises(SpecError, match=r"train.fsdp: one process alone .* torchrun"):
        one(run_file(rows), rows / "out", *SMALL, "train.fsdp=true")


@pytest.mark.parametrize("key", ["deepspeed", "fsdp_config"])
def test_a_file_of_arguments_that_is_not_there_is_named(key, rows):
    with pytest.raises(SpecError, match=rf"train\.{key}.*gone.json: no such file"):
        read_run(run_file(rows), f"train.{key}=gone.json")


@pytest.mark.skipif(find_spec("deepspeed") is not None, reason="deepspeed is installed")
def test_the_package_that_is_missing_is_named(rows):
    (rows / "zero.json").write_text('{"zero_optimization": {"stage": 2}}')
    with pytest.raises(SpecError, match="deepspeed"):
        one(run_file(rows), rows / "out", *SMALL, "train.deepspeed=zero.json")


@pytest.mark.slow
@pytest.mark.parametrize("spread", [GLOO, FSDP2], ids=["whole", "in parts"])
@pytest.mark.parametrize("others", ["cross_entropy: null", "cross_entropy: {}"], ids=["ctc", "both"])
def test_processes_lend_the_vocabulary_that_one_has(others, spread, rows):
    file, stage = run_file(rows), [*SMALL, *STAGE, f"model.losses={{{CTC}, {others}}}"]
    whole = one(file, rows / "one", *stage, *ACCUMULATING)
    assert_learned_the_same(two(file, rows / "two", *stage, *spread), whole)
