"""Chats of several turns train, whatever their template makes of past ones."""

import json

import soundfile
import toys  # noqa: F401
from conftest import CHATML, make_tokenizer, noise

from usam import UsamProcessor, build_model, load_spec
from usam.data.manifest import Manifest
from usam.generate import Answerer
from usam.model.checkpoint import processor_beside
from usam.training.run import read_run
from usam.training.start import train

# As Qwen 3 writes it: only the last answer has thoughts.
THINKING = CHATML.replace(
    "{{ m['content'] }}",
    "{% if m['role'] == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}{{ m['content'] }}",
)


def test_a_next_stage_renders_with_the_options_of_its_own_spec(qwen3, tmp_path):
    make_tokenizer(THINKING + "{{ note }}").save_pretrained(tmp_path / "tokenizer")
    llm = {"type": "transformers", "path": qwen3, "tokenizer": str(tmp_path / "tokenizer")}
    first = {"encoders": {"toy": {}}, "projector": "linear", "llm": llm}
    build_model(first).save_pretrained(tmp_path / "m")
    UsamProcessor.from_spec(first).save_pretrained(tmp_path / "m")
    spec = load_spec(tmp_path / "m", "llm.template_options.note=Hm")
    processor = processor_beside(tmp_path / "m", spec)
    assert processor.apply_chat_template([{"role": "user", "content": "What?"}]).endswith("Hm")


def test_chats_whose_past_answers_are_rewritten_train_evaluate_and_are_continued(qwen3, tmp_path):
    make_tokenizer(THINKING).save_pretrained(tmp_path / "tokenizer")
    rows = []
    for i in range(4):
        soundfile.write(tmp_path / f"{i}.wav", noise(0.4, seed=i), 16000)
        turns = [("user", "<|audio|>What?"), ("assistant", "ab"), ("user", "And?"), ("assistant", "ba")]
        turns = [{"role": role, "content": text} for role, text in turns[: 2 + 2 * (i % 2)]]
        rows.append({"messages": turns, "audio": [f"{i}.wav"]})
    (tmp_path / "d.jsonl").write_text("\n".join(map(json.dumps, rows)))
    llm = f"{{type: transformers, path: {qwen3}, tokenizer: {tmp_path}/tokenizer, freeze: none}}"
    (tmp_path / "run.yaml").write_text(
        f"model:\n  base: tiny\n  llm: {llm}\n  projector: {{0: {{stack: 5}}}}\n"
        "data: {train: d.jsonl, eval: d.jsonl}\n"
        f"train: {{output_dir: {tmp_path}/out, max_steps: 2, per_device_train_batch_size: 2, use_cpu: true, "
        "per_device_eval_batch_size: 3, eval_strategy: steps, eval_steps: 1, logging_steps: 1, disable_tqdm: true}\n"
    )
    folder = train(read_run(tmp_path / "run.yaml"))
    state = json.loads((folder / "checkpoint-2" / "trainer_state.json").read_text())
    assert [entry["step"] for entry in state["log_history"] if "eval_loss" in entry] == [1, 2]
    answerer = Answerer.load(folder)
    questions = [sample.question for sample in Manifest(tmp_path / "d.jsonl", {}).samples]
    assert len(list(answerer.answer(questions, batch_size=3, max_new_tokens=3))) == 4
