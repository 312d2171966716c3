"""lmms-eval's contract for models, written down from its source in the smallest form: it is not installed here.

`lmms`, `Instance.args`, `task_dict[task][split][doc_id]`, `cache_hook.add_partial` and `ModelManifest` are as in
lmms_eval/api/model.py, api/instance.py and models/registry_v2.py.
"""

import importlib
import sys
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace

import pytest
from conftest import noise
from held_out_rows import save_model

from usam.generate import Answerer
from usam.spec.page import SpecError

GREEDY = {"max_new_tokens": 4, "temperature": 0, "top_p": 1.0, "num_beams": 1, "do_sample": False, "until": ["\n\n"]}


class Lmms:
    """The base class of its models."""

    is_simple = True

    def __init__(self):
        self._rank, self._world_size, self.task_dict, self.told = 0, 1, {}, []
        self.cache_hook = SimpleNamespace(add_partial=lambda *said: self.told.append(said))

    rank = property(lambda self: self._rank)
    world_size = property(lambda self: self._world_size)


@dataclass(frozen=True)
class ModelManifest:
    """How a package names its model."""

    model_id: str
    simple_class_path: str | None = None
    chat_class_path: str | None = None
    aliases: tuple = ()


@pytest.fixture(scope="module")
def harness():
    """The module as lmms-eval imports it."""
    names = {"lmms_eval": {}, "lmms_eval.api": {}, "lmms_eval.models": {}}
    names |= {"lmms_eval.api.model": {"lmms": Lmms}, "lmms_eval.models.registry_v2": {"ModelManifest": ModelManifest}}
    for name, content in names.items():
        sys.modules[name] = ModuleType(name)
        vars(sys.modules[name]).update(content)
    yield importlib.import_module("usam.harnesses.lmms_eval")
    for name in [*names, "usam.harnesses.lmms_eval"]:
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def model(harness, folder):
    model = harness.Usam(str(folder), batch_size=2)
    documents = [{"audio": {"array": noise(0.3 + 0.1 * i, seed=i), "sampling_rate": 16000}} for i in range(3)]
    model.task_dict = {"mmau": {"test_mini": documents}}
    return model


def ask(i, text="What is it?", clips=lambda document: [document["audio"]], **options):
    return SimpleNamespace(args=(text, {**GREEDY, **options}, clips, i, "mmau", "test_mini"))


def test_it_is_found_by_its_entry_point(harness):
    from usam.harnesses import lmms_eval_models

    manifest = lmms_eval_models()
    module, _, name = manifest.simple_class_path.rpartition(".")
    found = getattr(importlib.import_module(module), name)
    assert (manifest.model_id, found, found.is_simple) == ("usam", harness.Usam, True)
    assert issubclass(found, Lmms)


def test_answers_are_the_model_s_own_in_order(model, folder):
    requests = [ask(2), ask(0, "And this?"), ask(1, max_new_tokens=3)]
    answerer = Answerer.load(folder)
    for request, answer in zip(requests, model.generate_until(requests), strict=True):
        text, options, clips, i, _, _ = request.args
        chat = answerer.ask(clips(model.task_dict["mmau"]["test_mini"][i]), prompt=text)
        assert [answer] == list(answerer.answer([chat], max_new_tokens=options["max_new_tokens"]))
    assert len(model.told) == 3


def test_several_clips_and_none(model):
    twice = ask(0, clips=lambda document: [document["audio"]] * 2)
    assert len(model.generate_until([twice, ask(1, clips=lambda document: [])])) == 2


def test_an_answer_ends_at_what_ends_it(harness):
    assert harness._until("a dog\n\nbarks. Then", ["\n\n", ".", ""]) == "a dog"
    assert harness._until("a dog", ["\n\n"]) == "a dog"


def test_sampling_is_asked_for(harness):
    options, stops = harness._options({"temperature": 0.7, "top_p": None, "until": "."})
    assert options == {"max_new_tokens": 256, "temperature": 0.7, "do_sample": True}
    assert stops == ["."]
    assert harness._options({"temperature": 0, "top_p": 1.0})[0] == {"max_new_tokens": 256, "do_sample": False}


def test_a_request_that_cannot_be_answered_is_no_empty_answer(model):
    with pytest.raises(ValueError, match=r"mmau, document 1: .*nowhere\.wav"):
        model.generate_until([ask(0), ask(1, clips=lambda document: ["nowhere.wav"])])


def test_samples_without_a_rate(model):
    with pytest.raises(ValueError, match=r"mmau, document 0: .*found ndarray, which says no rate"):
        model.generate_until([ask(0, clips=lambda document: [document["audio"]["array"]])])


def test_an_option_that_is_none(model):
    with pytest.raises(SpecError, match="did you mean 'num_beams'"):
        model.generate_until([ask(0, num_beam=2)])


@pytest.mark.parametrize("options", [{"batch_size": "auto"}, {"batch_size": 0}, {"max_batch_size": 4}])
def test_batches_that_it_would_have_to_find(harness, folder, options):
    with pytest.raises(ValueError, match="batch_size is a whole number"):
        harness.Usam(str(folder), **options)


def test_what_is_not_offered(model):
    for ask_for in (model.loglikelihood, model.generate_until_multi_round):
        with pytest.raises(NotImplementedError, match="output_type is generate_until"):
            ask_for([])
