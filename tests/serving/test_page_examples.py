"""Example clips of the miniature world, made when the page starts."""

import importlib.util

import pytest
import soundfile

from usam.serving.page_examples import KINDS, OF_EACH, examples

if importlib.util.find_spec("espeakng_loader") is None:
    pytest.skip("eSpeak NG is not installed: pip install 'usam[demo]'", allow_module_level=True)


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    return examples(tmp_path_factory.mktemp("world") / "world")


def test_there_are_a_few_of_each_domain(given):
    assert [example.label for example in given] == [
        f"{kind} {i + 1}" for kind in KINDS.values() for i in range(OF_EACH)
    ]
    assert all(0.5 < soundfile.info(example.file).duration < 10 for example in given)


def test_what_is_true_of_them_is_known(given):
    for example in given:
        assert example.known.answers[0]
        assert {"name", "onset", "offset"} <= example.known.events[0].keys()
    assert len({example.key for example in given}) == len(given)
