"""Frames that begin with the norm of the language model's embeddings: `match_embeddings`."""

import pytest
import torch
import toys  # noqa: F401
from conftest import noise, nudge

from usam import SpecError, UsamProcessor, build_model, build_projector, load_spec
from usam.model.checkpoint import load

SPEC = {
    "encoders": {"toy": {}},
    "projector": [{"type": "linear", "stack": 5, "dim": 10}, {"type": "mlp", "hidden": 6}],
    "llm": {"type": "tiny", "dim": 16, "layers": 1, "heads": 2},
}
MATCH = "projector.1.match_embeddings=true"
GEMMA = {"model_type": "gemma3_text", "vocab_size": 40, "hidden_size": 16, "intermediate_size": 8, "head_dim": 8,
         "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1}  # fmt: skip


def norms(model, seed=0):
    """Of the frames of two clips."""
    values = torch.from_numpy(noise(1.0, seed, rate=24000)).view(2, -1)
    with torch.no_grad():
        return model.model.get_audio_features(values).pooler_output.norm(dim=-1)


def mean_norm(model):
    """Of what the token table gives."""
    table = model.get_input_embeddings()
    with torch.no_grad():
        return table(torch.arange(len(table.weight))).norm(dim=-1).mean()


@pytest.mark.parametrize("weights", [True, False])
def test_frames_start_with_the_mean_norm_of_the_embeddings(weights):
    model = build_model(SPEC, MATCH, weights=weights)
    assert norms(model).tolist() == pytest.approx([mean_norm(model).item()] * len(norms(model)), rel=1e-3)
    assert norms(build_model(SPEC)).mean() > 2 * mean_norm(model)


def test_embeddings_count_as_their_table_gives_them():
    """Gemma's are stored small, and its table multiplies them by the root of their width."""
    model = build_model(SPEC, {"llm": {"type": "transformers", "arch": GEMMA}}, MATCH, weights=False)
    assert mean_norm(model) > 3 * model.get_input_embeddings().weight.norm(dim=-1).mean()
    assert norms(model).mean().item() == pytest.approx(mean_norm(model).item(), rel=1e-3)


def test_it_matches_a_language_model_that_is_loaded(speech):
    model = build_model(speech, "projector.0.match_embeddings=true")
    values = torch.from_numpy(noise(1.0)).unsqueeze(0)
    with torch.no_grad():
        found = model.model.get_audio_features(values).pooler_output.norm(dim=-1)
    assert found.mean().item() == pytest.approx(mean_norm(model).item(), rel=1e-3)


def test_it_is_off_where_a_spec_does_not_ask_for_it():
    plain, matched = (build_model(SPEC, *more, seed=0).state_dict() for more in ([], [MATCH]))
    assert set(matched) - set(plain) == {"model.projector.stages.1.matched.log_rms"}
    assert all(torch.equal(tensor, matched[name]) for name, tensor in plain.items())


def test_a_structure_has_no_norm_yet():
    with torch.device("meta"):
        model = build_model(SPEC, MATCH, weights=False)
    assert model.model.projector.stages[1].matched.log_rms.is_meta


def test_what_was_learned_is_saved_and_not_matched_anew(tmp_path):
    model = nudge(build_model(SPEC, MATCH))
    model.save_pretrained(tmp_path)
    UsamProcessor.from_spec(model.config.parsed).save_pretrained(tmp_path)
    assert torch.equal(norms(load(tmp_path)), norms(model))
    assert abs(norms(model).mean() - mean_norm(model)) > 0.01


def test_its_norm_trains_where_the_stage_is_frozen():
    model = build_model(SPEC, MATCH, "projector.1.freeze=all")
    assert [n for n, p in model.model.projector.stages[1].named_parameters() if p.requires_grad] == ["matched.log_rms"]


def test_its_gradients_are_those_of_the_numbers():
    matched = build_model(SPEC, MATCH).model.projector.stages[1].matched.double()
    x = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(matched, x)
    assert torch.equal(matched(torch.zeros(1, 4)), torch.zeros(1, 4))


def test_only_the_last_stage_can_match():
    with pytest.raises(SpecError, match=r"projector.0.match_embeddings: only the last .* projector.1.match_embeddings"):
        load_spec(SPEC, "projector.0.match_embeddings=true")


def test_what_is_heard_from_beside_matches_nothing():
    with pytest.raises(SpecError, match=r"projector.1.match_embeddings: with llm.injection no frame stands among"):
        load_spec(SPEC, MATCH, "llm.injection=cross_attention")


def test_outside_a_spec_there_is_nothing_to_match():
    with pytest.raises(SpecError, match="match_embeddings: there is no language model"):
        build_projector("linear", in_dim=4, match_embeddings=True)


def test_a_spec_says_so():
    assert load_spec(SPEC, MATCH).to_dict()["projector"][1]["match_embeddings"] is True
