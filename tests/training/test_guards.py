"""What is not finite stops a run before the optimizer's step, and names the rows that it came from."""

import json
import math
import subprocess
import sys

import pytest
import torch
from short_runs import SMALL
from transformers import TrainingArguments

import usam.training.trainer
from usam import UsamProcessor, build_model, losses
from usam.data.collate import Collator
from usam.data.manifest import Manifest
from usam.training.run import read_run
from usam.training.start import train
from usam.training.trainer import BESIDE, UsamTrainer
from usam.types import LossOutput

LOSSES = '''
import torch
from usam import losses
from usam.types import LossOutput


class Spoiled(losses.Loss):
    """Not finite with a row that says so."""

    def forward(self, inputs):
        value = inputs.hidden.square().mean()
        spoiled = any(extra.get("x_spoiled") for extra in inputs.batch["extra"])
        return LossOutput(self.spoil(value) if spoiled else value)


@losses.register("spoiled_value")
class Value(Spoiled):
    def spoil(self, value):
        return value * float("nan")


@losses.register("spoiled_gradient")
class Gradient(Spoiled):
    def spoil(self, value):
        return (value - value.detach()).sqrt()
'''
exec(LOSSES)


@pytest.fixture
def rows(run_file):
    """The run's training rows; the sixth is spoiled."""
    manifest = run_file.parent / "train.jsonl"
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    rows[5]["x_spoiled"] = True
    manifest.write_text("\n".join(map(json.dumps, rows)))
    return manifest


class Unheard:
    """A collator that makes a clip not a number, as a broken front-end would."""

    def __init__(self, processor, line):
        self.collate = Collator(processor, tasks=True)
        self.line = line

    def __call__(self, samples):
        batch = self.collate(samples)
        for i, origin in enumerate(batch["rows"].origins):
            if origin.endswith(f":{self.line}"):
                batch["input_values"][i, 0] = math.nan
        return batch


def trainer(run_file, *overrides, collate=None, **arguments):
    run = read_run(run_file, *SMALL, *overrides)
    processor = UsamProcessor.from_spec(run.spec)
    data = Manifest(run.data["train"], run.spec.prompts)
    torch.manual_seed(0)
    usual = {"use_cpu": True, "report_to": "none", "remove_unused_columns": False, "disable_tqdm": True}
    usual |= {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "max_steps": 2}
    usual |= {"train_sampling_strategy": "sequential", "save_strategy": "no", "learning_rate": 1e-3}
    return UsamTrainer(
        model=build_model(run.spec),
        args=TrainingArguments(str(run_file.parent / "out"), **{**usual, **arguments}),
        train_dataset=data,
        eval_dataset=data,
        data_collator=collate(processor) if collate else Collator(processor, tasks=True),
        processing_class=processor,
    )


def only(line, of):
    return rf"at step 2, in \S*train.jsonl:{line} \(\d\.\d s, peak -?\d+\.\d dBFS\), of {of} rows; look at these"


def test_a_loss_names_the_row_by_its_tokens(run_file):
    with pytest.raises(FloatingPointError, match=r"'cross_entropy' is nan at step 2, in \S*:7 \(.*\), of 2 rows;"):
        trainer(run_file, collate=lambda processor: Unheard(processor, 7)).train()


def test_a_loss_without_tokens_names_the_row_that_spoils_it_alone(run_file, rows):
    loss = "model.losses={own: {type: spoiled_value}}"
    with pytest.raises(FloatingPointError, match="loss 'own' is nan " + only(6, 2)):
        trainer(run_file, loss).train()


def test_a_gradient_names_the_row_among_all_of_its_step(run_file, rows):
    loss = "model.losses={own: {type: spoiled_gradient}}"
    with pytest.raises(FloatingPointError, match="the gradient is not finite " + only(6, 4)):
        trainer(run_file, loss).train()


def test_so_does_that_of_a_run_file_whose_rows_have_sources(run_file, rows):
    overrides = [*SMALL, "model.losses={own: {type: spoiled_gradient}}", "train.per_device_train_batch_size=4"]
    overrides += [f"train.output_dir={run_file.parent / 'out'}", "data.eval=null", "train.eval_strategy=no"]
    overrides += ["train.train_sampling_strategy=sequential", "train.max_steps=2"]
    with pytest.raises(FloatingPointError, match="the gradient is not finite " + only(6, 4)):
        train(read_run(run_file, *overrides))


@pytest.mark.parametrize("norm", [0.0, 1.0])
def test_weights_are_those_before_the_step(run_file, rows, norm):
    spoiled = trainer(run_file, "model.losses={own: {type: spoiled_gradient}}", max_grad_norm=norm)
    with pytest.raises(FloatingPointError):
        spoiled.train()
    assert all(p.isfinite().all() for p in spoiled.model.parameters())


def test_where_no_row_does_it_alone_all_are_named(run_file):
    @losses.register("spoiled_together")
    class Together(losses.Loss):
        def forward(self, inputs):
            return LossOutput(inputs.hidden.mean() * (math.nan if len(inputs.batch["ids"]) > 1 else 1))

    with pytest.raises(FloatingPointError, match=r"step 1, in \S*:1 \(.*\), \S*:2 \(.*\), of 2 rows"):
        trainer(run_file, "model.losses={own: {type: spoiled_together}}").train()


def test_weights_that_are_not_finite_are_said_to_be(run_file):
    broken = trainer(run_file)
    with torch.no_grad():
        broken.model.lm_head.weight[0] = math.nan
    with pytest.raises(FloatingPointError, match=r"weights are not finite either \(.*lm_head.weight\): go back"):
        broken.train()


def test_an_evaluation_names_the_row_too(run_file):
    broken = trainer(run_file, collate=lambda processor: Unheard(processor, 3), per_device_eval_batch_size=4)
    with pytest.raises(FloatingPointError, match=r"'cross_entropy' is nan at step 1, in \S*:3 \(.*\), of 4 rows"):
        broken.evaluate()


def test_a_step_that_the_scaler_skips_is_no_fault(run_file, rows):
    """fp16 has no scaler on a CPU: here one stands in its place, and the optimizer's step is all that follows."""
    scaled = trainer(run_file, "model.losses={own: {type: spoiled_gradient}}", max_steps=1)
    scaled.accelerator.scaler = torch.amp.GradScaler("cpu", enabled=False)
    scaled.model.lm_head.weight.grad = torch.full_like(scaled.model.lm_head.weight, math.inf)
    scaled.check_step()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["spoiled_value", "spoiled_gradient"])
def test_two_processes_stop_together_and_name_the_row_of_one(run_file, rows, kind):
    (run_file.parent / "own.py").write_text(LOSSES)
    overrides = [*SMALL, f"model.losses={{own: {{type: {kind}}}}}", "train.per_device_train_batch_size=2"]
    overrides += ["train.ddp_backend=gloo", f"train.output_dir={run_file.parent / 'two'}", "data.eval=null"]
    overrides += ["train.train_sampling_strategy=sequential", "train.max_steps=2", "train.eval_strategy=no"]
    words = [word for override in overrides for word in ("--set", override)]
    many = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [*many, "-m", "usam.cli", "train", run_file, *words, "--plugin", run_file.parent / "own.py"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode != 0
    found = [line for line in done.stderr.splitlines() if "at step 2, in" in line]
    assert found, done.stderr  # of one process at least: its launcher ends the other, which may not come to say it
    assert all("train.jsonl:6 (" in line and "train.jsonl:5" not in line for line in found)


# What float16 rounds away

FROZEN = ["model.llm.freeze=all", "model.llm.lora={r: 2}"]


def gradients(run_file, dtype, scale):
    """Of all that trains beside a frozen language model in a dtype, of a loss times `scale`."""
    run = read_run(run_file, *SMALL, *FROZEN, f"model.llm.dtype={dtype}")
    model = build_model(run.spec, seed=0)
    samples = Manifest(run.data["train"], run.spec.prompts)[:2]
    batch = Collator(UsamProcessor.from_spec(run.spec))(list(samples))
    (model(**{name: batch[name] for name in batch.keys() - BESIDE}).loss * scale).backward()
    return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]


@pytest.mark.parametrize(("dtype", "exact"), [("float32", True), ("bfloat16", True), ("float16", False)])
def test_gradients_through_a_frozen_language_model_grow_with_the_loss(run_file, dtype, exact):
    """Two processes scale a loss by two, one that accumulates does not; float16 rounds what lies below 6e-5."""
    pairs = zip(gradients(run_file, dtype, 2**-8), gradients(run_file, dtype, 1), strict=True)
    assert all(torch.equal(small * 2**8, whole) for small, whole in pairs) == exact


@pytest.mark.parametrize(
    ("overrides", "arguments", "told"),
    [
        (["model.llm.dtype=float16"], {}, ["llm"]),
        (["model.llm.dtype=float16"], {"bf16": True}, []),
        (["model.llm.dtype=bfloat16"], {}, []),
        (["model.encoders.whisper.dtype=float16", "model.encoders.whisper.freeze=all"], {}, []),
        (
            ["model.encoders.whisper.dtype=float16", "model.encoders.whisper.lora={r: 2, target_modules: [q_proj]}"],
            {},
            ["encoders.whisper"],
        ),
    ],
    ids=["float16", "bf16", "bfloat16", "frozen_encoder", "encoder_with_adapters"],
)
def test_gradients_that_pass_through_float16_are_told_of(run_file, monkeypatch, overrides, arguments, told):
    said = []
    monkeypatch.setattr(usam.training.trainer.logger, "filters", [lambda record: said.append(record.args[0])])
    trainer(run_file, *FROZEN, *overrides, **arguments).create_optimizer()
    assert said == told
