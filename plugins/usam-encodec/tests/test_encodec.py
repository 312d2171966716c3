"""The encoder keeps usam's promises, and gives transformers' own latents."""

import pytest
import torch
from transformers import EncodecConfig, EncodecModel

from usam import ComponentError, build_encoder
from usam.testing import encoder_promises

ARCH = {"num_filters": 4, "hidden_size": 8, "codebook_dim": 8, "codebook_size": 16}
PROMISES = encoder_promises(
    "encodec",
    arch=ARCH,
    seconds=0.3,
    expected_failures={"compiles": "transformers keeps its paddings in tensors and branches on them"},
)


@pytest.mark.parametrize("promise", PROMISES, ids=str)
def test_it_keeps_its_promises(promise):
    promise()


@pytest.fixture(scope="module")
def codec(tmp_path_factory):
    folder = tmp_path_factory.mktemp("encodec")
    model = EncodecModel(EncodecConfig(**ARCH)).eval()
    model.save_pretrained(folder)
    return str(folder), model


@torch.no_grad()
def test_whole_frames_are_transformers_own(codec):
    path, model = codec
    audio = 0.1 * torch.randn(2, 320 * 12)
    frames = build_encoder("encodec", path=path)(audio, torch.ones_like(audio, dtype=torch.bool))
    torch.testing.assert_close(frames.x, model.encoder(audio.unsqueeze(1)).mT)
    assert (frames.rate, frames.lengths.tolist()) == (75, [12, 12])


def test_a_model_that_is_not_causal_is_refused():
    with pytest.raises(ComponentError, match="only the causal model"):
        build_encoder("encodec", arch={**ARCH, "use_causal_conv": False})
