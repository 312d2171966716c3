"""A stage whose losses need no states of the language model runs it not once; every other stage does."""

import re
import shutil
from pathlib import Path

import pytest
import torch
from conftest import noise
from safetensors.torch import load_file
from short_runs import SMALL, logged
from torch.nn.modules.module import register_module_forward_hook

from usam import SpecError, UsamProcessor, build_model
from usam.model.learning import check_learns
from usam.training.run import read_run
from usam.training.start import train

FROZEN = ["llm.freeze=all", "llm.dim=16", "llm.layers=1", "llm.heads=2"]
PAGE = Path(__file__).parents[2] / "docs" / "stages.md"


@pytest.fixture
def runs():
    """How often a language model is run."""
    found = []

    def count(module, *_):
        if type(module).__name__ == "LlamaModel":
            found.append(module)

    hook = register_module_forward_hook(count)
    yield found
    hook.remove()


def built(losses, *overrides):
    only = {"cross_entropy": None, **losses}
    return build_model("tiny", *FROZEN, {"losses": only}, *overrides, seed=0)


def learned_from(model, text="<|audio|>"):
    """A batch of one question and its answer."""
    processor = UsamProcessor.from_spec(model.config.parsed)
    audio = [{"type": "audio", "audio": noise(1.0)}] if text else []
    chat = [
        {"role": "user", "content": [*audio, {"type": "text", "text": "What do you hear?"}]},
        {"role": "assistant", "content": "ab"},
    ]
    return dict(processor.encode([processor.render(chat)], labels=True))


@pytest.mark.parametrize(
    ("losses", "often"),
    [
        ({"ctc": {}}, 0),
        ({"info_nce": {}, "sigmoid_contrastive": {}, "semantic_contrastive": {}}, 0),
        ({"cross_entropy": {}}, 1),
        ({"cross_entropy": {"weight": 0}, "ctc": {}}, 1),
    ],
)
@pytest.mark.parametrize("training", [True, False], ids=["in training", "in evaluation"])
def test_it_is_run_for_losses_that_read_its_states(losses, often, training, runs):
    model = built(losses)
    output = model.train(training)(**learned_from(model))
    assert len(runs) == often
    assert output.losses.keys() == losses.keys()
    assert output.loss.isfinite()
    assert (output.logits is None) == (training or not often)


def test_it_is_run_for_an_answer_and_for_what_only_it_has(runs):
    model = built({"ctc": {}})
    batch = learned_from(model)
    assert model(**batch, output_hidden_states=True).hidden_states is not None
    assert model(**batch, logits_to_keep=1).logits.shape[1] == 1
    batch.pop("labels")
    assert model(**batch).logits is not None
    before = len(runs)
    model.generate(**batch, max_new_tokens=2)
    assert before == 3
    assert len(runs) > before


@pytest.mark.parametrize("heard", [True, False], ids=["a clip", "text alone"])
@pytest.mark.parametrize("injection", [[], ["llm.injection={type: cross_attention, freeze: all}"]])
@pytest.mark.parametrize("against", ["embeddings", "soft_tokens"])
def test_all_that_hears_gets_a_gradient(against, heard, injection):
    stages = {"projector": [{"type": "linear", "stack": 4}, *(["soft_tokens"] if against == "soft_tokens" else [])]}
    model = built({"ctc": {"against": against}}, stages, *injection).train()
    model(**learned_from(model, heard and "<|audio|>")).loss.backward()
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


def test_the_states_change_nothing_for_such_a_loss():
    model = built({"ctc": {}})
    batch = learned_from(model)
    assert torch.equal(model(**batch).loss, model(**batch, output_hidden_states=True).loss)


@pytest.mark.parametrize(
    ("override", "place"),
    [
        ("llm.freeze=none", "llm"),
        ("llm.lora={target_modules: [q_proj]}", "llm"),
        ("llm.injection=cross_attention", "llm.injection"),
    ],
)
def test_what_would_not_be_run_cannot_be_trained(override, place):
    with pytest.raises(SpecError, match=f"{place}: trains, and no loss reads .* .ctc.*write {place}.freeze: all"):
        check_learns(built({"ctc": {}}, override))
    check_learns(built({"ctc": {}, "cross_entropy": {}}, override))


@pytest.mark.filterwarnings("ignore:ctc. samples whose answers")  # where clips are shuffled
def test_the_stages_of_the_page(run_file, runs, monkeypatch):
    folder = run_file.parent
    monkeypatch.chdir(folder)
    for name in ("dev", "more"):
        shutil.copy(folder / "train.jsonl", folder / f"{name}.jsonl")
    for block in re.findall(r"```yaml\n(# (\w+)\.yaml\n.*?)```", PAGE.read_text(), re.DOTALL):
        (folder / f"{block[1]}.yaml").write_text(block[0])
    ears = [
        "model.encoders.whisper.path=null",
        SMALL[0],
        "model.llm={type: tiny, freeze: all, dim: 16, layers: 1, heads: 2}",
    ]
    steps = ["train.max_steps=2", "train.use_cpu=true", "train.logging_steps=1", "train.disable_tqdm=true"]
    first = train(read_run(folder / "stage1.yaml", *ears, *steps, "train.eval_strategy=steps", "train.eval_steps=1"))
    assert not runs
    assert sum("loss_ctc" in line for line in logged(first)) == 2
    assert sum("eval_loss_ctc" in line for line in logged(first)) == 2
    second = train(read_run(folder / "stage2.yaml", *steps))
    assert runs
    (line, *_) = logged(second)
    assert line.keys() >= {"loss_ctc", "loss_cross_entropy"}
    kept = [load_file(saved / "model.safetensors") for saved in (first, second)]
    assert "model.fusion.statistics.whisper.mean" in kept[0]
    both = kept[0].keys() & kept[1].keys()  # what adapters are laid over has other names then
    moved = {name for name in both if not torch.equal(kept[0][name], kept[1][name])}
    assert moved == {name for name in kept[0] if name.startswith("model.projector.")}
