"""The stages of `make real` on tiny models in the same formats, and clips of noise."""

import json
from contextlib import contextmanager

import numpy as np
import pytest
import soundfile
import torch
import yaml
from safetensors.torch import save_file
from test_real_encoders import CHANNELS
from test_real_smollm2 import ENTRIES, llama, write_gguf
from torch.nn.modules.module import register_module_forward_hook
from transformers import WhisperConfig, WhisperForConditionalGeneration
from usam_real import show as showing
from usam_real import smollm2, speech
from usam_real.corpora import recipe_of
from usam_real.show import ASKED, SPECIALISTS, STAGES, show, silenced

from usam import build_encoder
from usam.data.cache import held
from usam.generate import Answerer
from usam.training.run import read_run
from usam.training.start import train

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
EAR = {"d_model": 16, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 16}
MOUTH = {"decoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 16, "vocab_size": 64}
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
TASKS = {"speech": "asr", "words": "asr", "events": "sounds", "music": "music"}
VOICES = ("human", "neural", "flite", "espeak")
PARTS = ("ctc", "train", "dev", "test", *(f"{part}-{voice}" for part in ("ctc", "train", "test") for voice in VOICES))


@pytest.fixture(scope="module")
def fetched(tmp_path_factory):
    """Models where `fetch` puts them."""
    root = tmp_path_factory.mktemp("fetched")
    models = {
        name: root / "models" / name for name in ("whisper-tiny.en", "aisfx", "crepe-tiny", "smollm2-135m-instruct")
    }
    for place in models.values():
        place.mkdir(parents=True)
    torch.manual_seed(0)
    whisper = WhisperForConditionalGeneration(WhisperConfig(**EAR, **MOUTH, **SPECIAL, max_source_positions=50))
    whisper.save_pretrained(models["whisper-tiny.en"])
    own = {
        "aisfx": build_encoder("aisfx", arch={"width": 2}),
        "crepe-tiny": build_encoder("crepe", arch={"channels": CHANNELS}, features="both"),
    }
    for name, encoder in own.items():
        save_file(encoder.state_dict(), models[name] / "model.safetensors")
    entries = {**ENTRIES, "tokenizer.chat_template": CHATML, "llama.context_length": 512}
    write_gguf(root / "tiny.gguf", llama(np.random.default_rng(0))[0], entries)
    smollm2.convert(root / "tiny.gguf", models["smollm2-135m-instruct"])
    return root


def corpora(folder):
    """Clips of two seconds, as if `corpora` had made them."""
    for kind, task in TASKS.items():
        place = folder / "corpora" / kind
        place.mkdir(parents=True)
        for i in range(4):
            soundfile.write(place / f"{i}.wav", np.random.default_rng(i).normal(0, 0.1, 32000), 16000)
        for part in PARTS:
            rows = [{"audio": f"{i}.wav", "task": task, "answer": f"the {'abcd'[i]}", "id": f"{i}"} for i in range(4)]
            (place / f"{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (place / "recipe.json").write_text(json.dumps(recipe_of(kind, 1.0, 0)))
    return folder


@contextmanager
def counted():
    """The language models that are run."""
    found = []

    def count(module, *_):
        if type(module).__name__ == "LlamaModel":
            found.append(module)

    hook = register_module_forward_hook(count)
    try:
        yield found
    finally:
        hook.remove()


@pytest.fixture(scope="module")
def stages(fetched, tmp_path_factory):
    """Both stages, two steps each, and how often each ran the language model."""
    folder, often = corpora(tmp_path_factory.mktemp("real")), {}
    showing._fetched(folder / "fetched", fetched)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for place, name in STAGES.items():
            (folder / name).write_text(showing._run(folder, name, 0, 0))
            with counted() as runs:
                train(read_run(name, "train.disable_tqdm=true"))
            often[place] = len(runs)
    return folder, often


def heard(model):
    """What the fusion is given of a clip: each specialist's frames, standardised."""
    answerer, found = Answerer.load(model), {}
    answerer.model.model.fusion.register_forward_pre_hook(lambda _, given: found.update(given[0]))
    clip = {"type": "audio", "audio": np.random.default_rng(9).normal(0, 0.1, 16000).astype(np.float32)}
    chat = [{"role": "user", "content": [clip, {"type": "text", "text": "Transcribe the speech."}]}]
    with torch.no_grad():
        answerer.model(**answerer.processor.encode([answerer.processor.render(chat)]))
    return {name: frames.x for name, frames in found.items()}


def test_the_first_stage_runs_the_language_model_not_once_and_the_second_does(stages):
    _, often = stages
    assert often["ctc"] == 0
    assert often["model"] > 0


@pytest.mark.parametrize("name", SPECIALISTS)
def test_without_a_specialist_its_frames_are_training_s_mean_and_the_others_as_they_were(name, stages, tmp_path):
    folder, _ = stages
    before, after = heard(folder / "model"), heard(silenced(folder / "model", tmp_path / "without", name))
    assert before[name].abs().max() > 0.1
    assert after.pop(name).abs().max() < 1e-20
    assert len(after) == 2
    assert all(torch.equal(x, before[other]) for other, x in after.items())


def test_a_specialist_that_there_is_not_is_refused(stages, tmp_path):
    folder, _ = stages
    with pytest.raises(ValueError, match="0 tensors of the statistics of 'mert', expected one"):
        silenced(folder / "model", tmp_path / "without", "mert")
    assert not (tmp_path / "without").exists()


@pytest.mark.parametrize(("share", "steps"), [(1, 3600), (0.5, 1800), (0, 2)])
def test_fewer_steps_are_a_share_of_the_run_file_s(share, steps, tmp_path):
    assert yaml.safe_load(showing._run(tmp_path, "ctc.yaml", share, 0))["train"]["max_steps"] == steps


def test_a_run_finds_its_models_from_anywhere_and_has_its_own_seed(tmp_path):
    run = yaml.safe_load(showing._run(tmp_path, "ctc.yaml", 1, 7))
    assert run["model"]["encoders"]["aisfx"]["path"] == f"{tmp_path}/fetched/models/aisfx"
    assert run["train"]["seed"] == 7


def test_what_stage_2_hears_is_listened_to_by_the_encoders_of_stage_1(tmp_path):
    for name in STAGES.values():
        (tmp_path / name).write_text(showing._run(tmp_path, name, 1, 0))
    first, second = (yaml.safe_load((tmp_path / name).read_text()) for name in STAGES.values())
    listening = yaml.safe_load(showing._union(tmp_path).read_text())
    assert (listening["model"], listening["data"]) == (first["model"], second["data"])


@pytest.mark.parametrize("voice", ["neural", "flite", "espeak"])
def test_each_stage_learns_sentences_of_its_own(voice, tmp_path):
    files = []
    for name in STAGES.values():
        sources = yaml.safe_load(showing._run(tmp_path, name, 1, 0))["data"]["train"]
        files.append(next(source["file"] for source in sources if source["name"] == voice))
    assert files == [f"corpora/speech/{part}-{voice}.jsonl" for part in ("ctc", "train")]


def test_what_stage_1_has_stored_stage_2_takes(stages):
    folder, _ = stages
    assert sorted(one.about["encoder"] for one in held(folder / "cache")) == sorted(SPECIALISTS)


def test_a_stage_that_is_trained_is_not_trained_again(tmp_path, capsys):
    (tmp_path / "ctc").mkdir()
    (tmp_path / "ctc/config.json").write_text("{}")
    showing._trained(tmp_path, "ctc", "no such run file")
    assert capsys.readouterr().out == f"{tmp_path / 'ctc'}: there already\n"


def test_the_time_of_a_part_adds_up_over_calls_also_of_one_that_was_stopped(tmp_path):
    (tmp_path / "seconds.json").write_text('{"fetch": 5.0, "test": 1.0}')
    with pytest.raises(KeyboardInterrupt), showing._stage("fetch", tmp_path, showing._times(tmp_path)):
        raise KeyboardInterrupt
    assert showing._times(tmp_path)["fetch"] >= 5
    assert showing._times(tmp_path)["test"] == 1


def test_what_was_fetched_elsewhere_is_linked_once(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder; give one that"):
        showing._fetched(tmp_path / "fetched", tmp_path / "nowhere")
    for _ in range(2):
        showing._fetched(tmp_path / "fetched", tmp_path / "a")
    with pytest.raises(ValueError, match=r"fetched is there already, and is not .*b: remove it, or leave that out"):
        showing._fetched(tmp_path / "fetched", tmp_path / "b")


def test_a_folder_that_was_begun_with_other_options_is_left_alone(tmp_path):
    asked = {"size": 1.0, "steps": 1.0, "seed": 0}
    for _ in range(2):
        showing._begin(tmp_path, asked)
    with pytest.raises(
        ValueError, match=r"was begun with steps 1\.0, and not 0\.5, seed 0, and not 2: name another folder"
    ):
        showing._begin(tmp_path, {**asked, "steps": 0.5, "seed": 2})


def test_packages_that_are_missing_are_told_before_anything_is_done(tmp_path, monkeypatch):
    monkeypatch.setattr(showing, "NEEDS", {"no_such_metric": "no-such-metric"})
    with pytest.raises(ImportError, match=r"make real: not installed: .*no_such_metric; .*pip install no-such-metric"):
        show(tmp_path / "real")
    assert not (tmp_path / "real").exists()


def test_a_folder_that_another_recipe_began_is_left_alone(tmp_path, monkeypatch):
    asked = {"size": 1.0, "recipe": showing._recipe()}
    showing._begin(tmp_path, asked)
    monkeypatch.setitem(speech.SIZES, "ctc", {"neural": 7})
    assert showing._recipe() != asked["recipe"]
    with pytest.raises(ValueError, match=rf"was begun with recipe {asked['recipe']}, and not {showing._recipe()}"):
        showing._begin(tmp_path, {**asked, "recipe": showing._recipe()})


@pytest.mark.slow
def test_all_of_it_is_shown_and_nothing_is_made_twice(fetched, tmp_path, capsys):
    pytest.importorskip("jiwer", reason="word error rates are jiwer's")
    folder = corpora(tmp_path)
    show(folder, fetched=fetched, steps=0)
    capsys.readouterr()
    made = {name: (folder / name / "config.json").stat().st_mtime_ns for name in STAGES}
    results = json.loads((folder / "results.json").read_text())
    assert results["tests"].keys() == ASKED.keys()
    assert results["tests"]["human"].keys() == {"heard", "shuffled", *(f"without {name}" for name in SPECIALISTS)}
    assert results["tests"]["espeak"].keys() == {"heard"}
    assert [one["whisper"] for one in results["transcripts"]] == ["the a", "the b", "the c", "the d"]
    assert (folder / "report.html").is_file()
    show(folder, fetched=fetched, steps=0)
    assert f"{folder / 'model'}: there already" in capsys.readouterr().out
    assert made == {name: (folder / name / "config.json").stat().st_mtime_ns for name in STAGES}
    again = json.loads((folder / "results.json").read_text())
    assert (again["tests"], again["transcripts"]) == (results["tests"], results["transcripts"])
