"""Mixtures of sources: their shares, the order of their rows, and what is refused."""

import json
import math

import numpy as np
import pytest

from usam import SpecError
from usam.data import sampling
from usam.data.manifest import Manifest, ManifestError
from usam.data.mixture import MEGABATCH, Mixture, MixtureSampler, entries, expanded, mixture, shares
from usam.data.sampling import Budget, BudgetSampler, Length

SIZES = (900, 90, 10)
SEED = 9


def mix(sizes=SIZES, weights=(0.5, 0.3, 0.2)):
    return Mixture(tuple("abcdefgh"[: len(sizes)]), sizes, tuple(shares(sizes, weights)))


def counted(mixture, rows):
    """The rows of each source."""
    return np.bincount(mixture.sources(np.asarray(rows)), minlength=len(mixture.sizes))


# Shares


def test_weights_are_shares_of_the_rows_drawn():
    assert shares([900, 100], [3, 1]) == pytest.approx([0.75, 0.25])


def test_a_temperature_draws_by_a_root_of_the_size():
    """Arivazhagan et al. 2019: p_l = (D_l / sum_k D_k)^(1/T), divided by their sum."""
    by_hand = [0.9 ** (1 / 5), 0.1 ** (1 / 5)]
    assert shares([900, 100], None, 5) == pytest.approx([p / sum(by_hand) for p in by_hand])


def test_a_temperature_of_one_draws_by_size():
    assert shares([900, 100], None, 1) == pytest.approx([0.9, 0.1])


def test_a_temperature_goes_for_weights_too():
    assert shares([5, 5], [4, 1], 2) == pytest.approx([2 / 3, 1 / 3])


def test_sizes_of_billions_and_small_temperatures_are_no_overflow():
    assert shares([10**12, 1], None, 0.01) == pytest.approx([1, 0])


# The order of an epoch


def test_an_epoch_has_as_many_rows_as_there_are_and_each_source_its_share():
    order = mix().order(seed=0, epoch=0)
    assert len(order) == 1000
    assert counted(mix(), order).tolist() == [500, 300, 200]


def test_shares_that_are_no_whole_rows_are_rounded_and_nothing_is_lost():
    assert mix((5, 5, 1), (1, 1, 1)).counts == (4, 4, 3)


def test_no_row_comes_again_before_all_of_its_source_have_come():
    for source, first in [(0, 0), (1, 900), (2, 990)]:
        rows = [row for epoch in range(4) for row in mix().order(7, epoch) if mix().sources(row) == source]
        size = SIZES[source]
        for start in range(0, len(rows) - size + 1, size):
            assert sorted(rows[start : start + size]) == list(range(first, first + size))


def test_an_epoch_is_the_same_whoever_asks_and_whatever_was_asked_before():
    one = mix()
    for epoch in (3, 0, 2):
        assert (one.order(1, epoch) == mix().order(1, epoch)).all()


@pytest.mark.parametrize("other", [{"seed": 2, "epoch": 0}, {"seed": 1, "epoch": 1}])
def test_another_seed_and_another_epoch_are_another_order(other):
    assert (mix().order(seed=1, epoch=0) != mix().order(**other)).any()


@pytest.mark.parametrize("window", [10, 64, 301])
@pytest.mark.parametrize("epoch", range(3))
def test_every_stretch_of_rows_holds_every_source_in_its_share(window, epoch):
    whole = mix()
    of = whole.sources(whole.order(0, epoch))
    for start in range(len(of) - window):
        here = np.bincount(of[start : start + window], minlength=3)
        for count, share in zip(here, whole.shares, strict=True):
            assert abs(count - window * share) <= 1 + 3 * share


def test_a_million_rows_are_put_in_order_at_once():
    assert len(set(mix((10**6, 10), (1, 1)).order(0, 0))) == 500_005 + 10


def test_a_source_that_would_never_come_is_refused():
    with pytest.raises(ValueError, match="source 'b' would never come: an epoch has 20 rows"):
        mix((10, 10), (1, 1e-6))


# Samplers


def test_a_sampler_gives_the_rows_of_its_epoch():
    sampler = MixtureSampler(mix(), seed=3)
    sampler.set_epoch(2)
    assert list(sampler) == mix().order(3, 2).tolist()
    assert len(sampler) == 1000


def test_rows_grouped_by_length_are_alike_and_the_same_ones():
    lengths = np.random.default_rng(0).integers(1, 1000, 1000)
    sampler = MixtureSampler(mix(), lengths=lengths, batch=4)
    rows = list(sampler)
    assert sorted(rows) == sorted(mix().order(0, 0).tolist())
    spread = np.mean([np.ptp(lengths[rows[i : i + 4]]) for i in range(0, 1000, 4)])
    assert spread < 1000 / MEGABATCH
    assert lengths[rows[:4]].max() == max(lengths[rows])


def of_sources():
    """Clips of three sources whose lengths differ."""
    random = np.random.default_rng(0)
    means = np.repeat([3.0, 8.0, 1.5], SIZES)
    seconds = (means * random.lognormal(0, 0.5, 1000)).clip(0.5, 30)
    return [Length(tokens=int(20 * s) + 10, seconds=float(s)) for s in seconds]


def test_batches_of_a_budget_hold_the_rows_of_the_epoch():
    sampler = BudgetSampler(of_sources(), Budget(seconds=80), seed=5, together=2, mixture=mix())
    count = len(sampler)
    for epoch in range(12):
        sampler.set_epoch(epoch)
        batches = list(sampler)
        assert len(batches) == count
        assert sorted(row for batch in batches for row in batch) == sorted(mix().order(5, epoch).tolist())


def test_batches_of_a_budget_stay_within_it():
    lengths = of_sources()
    for batch in BudgetSampler(lengths, Budget(seconds=80), mixture=mix()):
        assert len(batch) * max(lengths[row].seconds for row in batch) <= 80 or len(batch) == 1


@pytest.mark.parametrize("epoch", range(3))
def test_any_twenty_batches_of_a_budget_hold_each_source_in_its_share(epoch):
    """Within 0.1, of shares of 0.5, 0.3 and 0.2, though the sources' lengths are others."""
    whole = mix()
    sampler = BudgetSampler(of_sources(), Budget(seconds=80), mixture=whole)
    sampler.set_epoch(epoch)
    counts = np.array([counted(whole, batch) for batch in sampler])
    assert len(counts) > 40
    for start in range(len(counts) - 20):
        here = counts[start : start + 20].sum(0)
        assert here / here.sum() == pytest.approx(whole.shares, abs=0.1)


@pytest.fixture
def crowded(monkeypatch):
    """Six of 70 rows fill a batch each, and all others fit into one; only the first epochs are looked at."""
    monkeypatch.setattr(sampling, "LOOKED_AT", 2)
    lengths = [Length(1, seconds=60.0)] * 6 + [Length(1, seconds=0.5)] * 64
    return lambda: BudgetSampler(lengths, Budget(seconds=60), seed=SEED, mixture=mix((60, 10), (0.1, 0.9)))


def rows_of(sampler, epoch):
    sampler.set_epoch(epoch)
    batches = list(sampler)
    assert len(batches) == len(sampler)
    return [row for batch in batches for row in batch]


def test_rows_that_have_no_place_in_the_batches_of_an_epoch_come_in_the_next(crowded, monkeypatch):
    told = []
    monkeypatch.setattr(sampling.logger, "filters", [lambda record: told.append(record.args)])
    sampler = crowded()
    seen = drawn = np.zeros(70, int)
    late = []
    for epoch in range(30):
        drawn = drawn + np.bincount(sampler.mixture.order(SEED, epoch), minlength=70)
        seen = seen + np.bincount(rows_of(sampler, epoch), minlength=70)
        late.append(int((drawn - seen).sum()))
        assert (drawn >= seen).all()
    assert seen.tolist() == drawn.tolist()
    assert any(late)
    assert told == [(epoch, rows) for epoch, rows in enumerate(late) if rows]


def test_a_run_that_goes_on_knows_the_rows_that_had_no_place(crowded):
    sampler = crowded()
    epochs = [rows_of(sampler, epoch) for epoch in range(30)]
    assert [rows_of(crowded(), epoch) for epoch in (3, 28)] == [epochs[3], epochs[28]]


def test_a_mixture_of_other_rows_is_refused():
    with pytest.raises(ValueError, match="the mixture is of 1,000 rows, and 3 have lengths"):
        BudgetSampler([Length(1)] * 3, Budget(rows=2), mixture=mix())


# What a run file says


def files(tmp_path, *names):
    for name in names:
        (tmp_path / name).write_text('{"prompt": "hm?", "answer": "ok"}\n' * 3)
    return [str(tmp_path / name) for name in names]


def test_sources_are_called_as_they_say_else_as_their_files_are():
    found = entries(["/data/asr.jsonl.gz", {"file": "/data/tags.csv", "name": "captions"}])
    assert [entry.name for entry in found] == ["asr", "captions"]


def test_files_of_one_name_in_two_folders_are_called_by_their_paths():
    assert [entry.name for entry in entries(["/a/train.json", "/b/train.json"])] == ["/a/train.json", "/b/train.json"]


def test_a_source_may_be_several_files():
    (entry,) = entries({"file": ["a.jsonl", "b.jsonl"], "weight": 2})
    assert (entry.files, entry.weight) == (("a.jsonl", "b.jsonl"), 2)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ([{"file": "a", "weight": 0}], "data.train.0.weight: expected a number, more than 0; found 0; leave"),
        ([{"file": "a", "weight": -1}], "data.train.0.weight: expected a number, more than 0; found -1"),
        ([{"file": "a", "weight": math.nan}], "data.train.0.weight: expected a number, more than 0; found nan"),
        ([{"file": "a", "weight": math.inf}], "data.train.0.weight: expected a number, more than 0; found inf"),
        ([{"file": "a", "weight": True}], "data.train.0.weight: expected a number, more than 0; found True"),
        ([{"file": "a", "weight": None}], "data.train.0.weight: expected a number, more than 0; found None"),
        ([{"file": "a", "weight": 1}, {"file": "b"}], "data.train.1: has no weight, and others have one"),
        (["b", {"file": "a", "weight": 1}], "data.train.0: has no weight, and others have one"),
        (["x/../a", {"file": "a"}], "data.train.1: a is named twice: rows that shall come more often have a higher"),
        ([{"file": ["a", "a"]}], "data.train.0: a is named twice"),
        ([{"file": "a", "wieght": 1}], "data.train.0.wieght: no such key of a source; did you mean 'weight'?"),
        ([{"weight": 1}], "data.train.0.file: a source is a map with 'file', a manifest or several; found None"),
        ([{"file": []}], "data.train.0.file: a source is a map with 'file'"),
        ([{"file": "a", "reader": 3}], "data.train.0.reader: expected text, found 3"),
        ([{"file": "a", "name": "x"}, {"file": "b", "name": "x"}], "data.train: 2 sources are called 'x'"),
        ([], r"data.train: expected a manifest, or a list of them; found \[\]"),
        (["a", 3], "data.train: expected a manifest, or a list of them"),
    ],
)  # fmt: skip
def test_what_is_wrong_in_a_list_of_sources_is_told_with_its_key(given, told):
    with pytest.raises(SpecError, match=told.replace("data.train.", r"data\.train\.")):
        entries(given)


def test_what_is_held_out_takes_no_weights():
    with pytest.raises(SpecError, match=r"data\.eval: what is held out is looked at row by row: leave the weights out"):
        entries([{"file": "a", "weight": 1}], path=("data", "eval"))


def test_without_weights_and_temperature_all_rows_come_once():
    assert mixture(entries(["a", "b"]), {}, None) is None


def test_a_temperature_of_one_source_is_refused():
    with pytest.raises(SpecError, match=r"data\.temperature: means nothing with one source"):
        mixture(entries("a"), {}, 5)


def test_a_source_of_which_no_row_is_left_is_refused():
    with pytest.raises(ManifestError, match="b: no row is left to learn from, and it has a share in the mixture"):
        mixture(entries([{"file": "a", "weight": 1}, {"file": "b", "weight": 1}]), {"a": 1}, None)


# NeMo's input_cfg


def nemo(tmp_path, text):
    """A configuration beside four manifests of two rows, the last of which holds conversations."""
    for i in range(3):
        rows = [{"audio_filepath": f"{i}.wav", "duration": 1.0, "text": f"row {i} {j}"} for j in range(2)]
        (tmp_path / f"m_{i}.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    turns = [{"from": "User", "value": "0.wav", "type": "audio"}, {"from": "Assistant", "value": "ok", "type": "text"}]
    (tmp_path / "chat.jsonl").write_text(2 * (json.dumps({"conversations": turns}) + "\n"))
    (tmp_path / "mix.yaml").write_text(text)
    return str(tmp_path / "mix.yaml")


GROUPS = """
input_cfg:
  - type: group
    weight: 0.7
    tags: {domain: read, lang: en}
    input_cfg:
      - {type: nemo, manifest_filepath: "m__OP_0..1_CL_.json", weight: 3, tags: {lang: pl}}
      - {type: nemo, manifest_filepath: m_2.json, weight: 1, tags: {context: Write down what is said.}}
  - {type: multimodal_conversation, manifest_filepath: chat.jsonl, audio_locator_tag: <a>, weight: 0.3}
"""


def nested(tmp_path):
    return nemo(tmp_path, GROUPS)


def test_weights_of_nested_groups_are_multiplied(tmp_path):
    found = expanded(entries(nested(tmp_path)))
    assert [entry.weight for entry in found] == pytest.approx([0.7 * 0.75, 0.7 * 0.25, 0.3])
    assert [entry.reader for entry in found] == ["nemo", "nemo", "nemo_conversation"]
    assert [len(entry.files) for entry in found] == [2, 1, 1]


@pytest.mark.parametrize("many", ["{0..1}", "{0,1}", "_OP_0,1_CL_"])
def test_every_way_to_write_many_files_is_read(many, tmp_path):
    one = expanded(entries(nested(tmp_path)))
    assert expanded(entries(nemo(tmp_path, GROUPS.replace("_OP_0..1_CL_", many)))) == one


def test_a_list_without_weights_has_equal_shares(tmp_path):
    listed = "- {type: nemo, manifest_filepath: m_0.json}\n- {type: nemo, manifest_filepath: m_1.json}\n"
    assert [entry.weight for entry in expanded(entries(nemo(tmp_path, listed)))] == [0.5, 0.5]


def test_shares_of_a_configuration_are_shares_of_its_own_weight(tmp_path):
    (plain,) = files(tmp_path, "plain.jsonl")
    found = expanded(entries([{"file": nested(tmp_path), "weight": 2}, {"file": plain, "weight": 1}]))
    assert [entry.weight for entry in found] == pytest.approx([1.05, 0.35, 0.6, 1])


def test_a_group_may_stand_in_a_file_of_its_own(tmp_path):
    (tmp_path / "inner.yaml").write_text("- {type: nemo, manifest_filepath: m_0.json}\n")
    file = nemo(tmp_path, "- {type: group, input_cfg: inner.yaml}\n")
    assert [entry.name for entry in expanded(entries(file))] == ["m_0"]


def test_a_manifest_of_a_configuration_has_all_rows_once_with_their_tags(tmp_path):
    manifest = Manifest(nested(tmp_path), {"asr": "Transcribe."})
    assert len(manifest) == 8
    assert [sample.source for sample in manifest] == ["m_0"] * 4 + ["m_2"] * 2 + ["chat"] * 2
    assert manifest[0].extra == {"x_domain": "read", "x_lang": "en"}  # a group's replaces those of its members
    assert manifest[0].task == "asr"


def test_the_tag_context_is_what_is_asked(tmp_path):
    sample = Manifest.of(nested(tmp_path), {"asr": "Transcribe."})[4]
    assert sample.question[0]["content"][1]["text"] == "Write down what is said."
    assert sample.task is None


@pytest.mark.parametrize(
    ("page", "told"),
    [
        ("- {type: nemo_tarred, manifest_filepath: m_0.json}", "mix.yaml:1: 0.type: 'nemo_tarred' is not read: unpack"),
        ("- {type: lhotse, cuts_path: a}", "'lhotse' is not read: name the cuts themselves in data.train"),
        ("- {type: nmeo, manifest_filepath: m_0.json}", "'nmeo' is not read: did you mean 'nemo'?"),
        ("- {manifest_filepath: m_0.json}", "mix.yaml:1: 0: a source is a map with 'type'"),
        ("- {type: nemo, manifest: m_0.json}", "0.manifest: no key of 'nemo' that is read; did you mean"),
        ("- {type: nemo}", "mix.yaml:1: 0.manifest_filepath: expected a manifest, or a list of them; found None"),
        ("- {type: nemo, manifest_filepath: no.json}", "0.manifest_filepath: .*no.json: no such manifest"),
        ("- {type: nemo, manifest_filepath: 'm_{3..1}.json'}", "{3..1} stands for no files"),
        ("- {type: nemo, manifest_filepath: m_0.json, weight: 0}", "0.weight: expected a number, more than 0; found 0"),
        (
            "- {type: nemo, manifest_filepath: m_0.json, weight: 1}\n- {type: nemo, manifest_filepath: m_1.json}",
            "mix.yaml:2: 1: has no weight, and others of its list have one",
        ),
        ("- {type: group}", "0.input_cfg: a group has 'input_cfg', a list; found None"),
        ("- {type: group, input_cfg: mix.yaml}", "holds itself"),
        ("- {type: group, input_cfg: none.yaml}", "no such configuration"),
        ("- {type: nemo, manifest_filepath: m_0.json, tags: [a]}", "0.tags: expected a map"),
        ("[]", "a YAML file among manifests is a NeMo configuration"),
        ("reweight_temperature: 2\ninput_cfg: []", "reweight_temperature: .*write data.temperature in the run file"),
        (2 * "- {type: nemo, manifest_filepath: m_0.json}\n", "m_0.json is named 2 times"),
    ],
)  # fmt: skip
def test_what_is_wrong_in_a_configuration_is_told_with_its_line(page, told, tmp_path):
    with pytest.raises(SpecError, match=told.replace("?", r"\?").replace("{3..1}", r"\{3\.\.1\}")):
        expanded(entries(nemo(tmp_path, page)))


def test_what_is_held_out_takes_no_configuration_with_weights(tmp_path):
    with pytest.raises(SpecError, match="looked at row by row: leave the weights out"):
        expanded(entries(nested(tmp_path), path=("data", "eval")), held_out=True)


def test_a_configuration_beside_sources_without_weights_is_refused(tmp_path):
    (plain,) = files(tmp_path, "plain.jsonl")
    with pytest.raises(SpecError, match="a NeMo configuration has weights, and other sources have none"):
        expanded(entries([nested(tmp_path), plain]))


def test_a_wrong_configuration_is_no_manifest(tmp_path):
    with pytest.raises(ManifestError, match="is not read"):
        Manifest(nemo(tmp_path, "- {type: txt, paths: a}"), {})
