"""What `usam check` calls sound builds, trains a step and evaluates; the rest is refused in words, and none hangs."""

import json
import signal
from contextlib import contextmanager
from itertools import islice

import pytest
import torch
from conftest import make_tokenizer, noise
from generated import Specs

from usam import ComponentError, SpecError, UsamProcessor, build_model, load_spec
from usam.data.trial import try_spec
from usam.model.statistics import gather

LONGEST = 120  # seconds for a spec, which takes less than one


@contextmanager
def ended(spec):
    """Stop what hangs."""

    def stop(*_):
        pytest.fail(f"{LONGEST} s were not enough for {json.dumps(spec)}")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(LONGEST)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def trains(spec) -> str | None:
    """Build, evaluate, take a step and evaluate again, on other clips than the check; what went wrong."""
    try:
        model, processor = build_model(spec, seed=1), UsamProcessor.from_spec(spec)
        rate = processor.feature_extractor.sampling_rate
        chats = [
            [
                {
                    "role": "user",
                    "content": [{"type": "audio", "audio": noise(seconds, i, rate)}, {"type": "text", "text": "?"}],
                },
                {"role": "assistant", "content": answer},
            ]
            for i, (seconds, answer) in enumerate([(0.9, "yes"), (0.4, "no"), (0.7, "perhaps")])
        ]
        batch = processor.encode([processor.render(chat) for chat in chats], labels=True)
        if not model.model.fusion.gathered:
            gather(model, [batch])
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-5)
        loss = model.train()(**batch).loss
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            after = model.eval()(**batch).loss
        return None if loss.isfinite() and after.isfinite() else f"losses {loss.item()} and {after.item()}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    make_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("seed", "count"), [(0, 30), *(pytest.param(seed, 100, marks=pytest.mark.slow) for seed in range(10))]
)
def test_what_is_called_sound_trains_and_the_rest_is_refused_in_words(seed, count, tokenizer):
    sound, failed, other = 0, [], []
    for spec in islice(Specs(seed, tokenizer), count):
        with ended(spec):
            try:
                trial = try_spec(load_spec(spec))
            except (SpecError, ComponentError):
                continue
            except Exception as error:
                other.append(f"{type(error).__name__}: {error}: {json.dumps(spec)}")
                continue
            if not trial.sound:  # too large to be tried
                continue
            sound += 1
            if why := trains(spec):
                failed.append(f"{why}: {json.dumps(spec)}")
    assert not other, "\n".join(other)
    assert len(failed) <= sound // 100, "\n".join(failed)
    assert sound > count // 4, "too few are sound for this test to say anything"
