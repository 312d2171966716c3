"""aiSFX and CREPE keep usam's promises, and compute what the originals do, from files such as their packages carry."""

import hashlib
import math
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from usam import ComponentError, build_encoder
from usam.testing import encoder_promises

CHANNELS = [8, 4, 4, 4, 4, 4]
PROMISES = {
    "aisfx": encoder_promises("aisfx", arch={"width": 2}, seconds=0.6),
    "crepe": encoder_promises("crepe", arch={"channels": CHANNELS}, features="both", seconds=0.3),
}


def cases():
    for name, promises in PROMISES.items():
        for promise in promises:
            marks = [pytest.mark.slow] if str(promise) == "compiles" else []
            yield pytest.param(promise, id=f"{name}-{promise}", marks=marks)


@pytest.mark.parametrize("promise", cases())
def test_they_keep_their_promises(promise):
    promise()


def heard(audio):
    return torch.ones_like(audio, dtype=torch.bool)


def stored_norm(channels):
    return {
        "weight": 1 + 0.1 * torch.randn(channels),
        "bias": 0.1 * torch.randn(channels),
        "running_mean": 0.1 * torch.randn(channels),
        "running_var": 1 + torch.rand(channels),
        "num_batches_tracked": torch.tensor(7),
    }


@pytest.fixture(scope="module")
def aisfx(tmp_path_factory):
    """A checkpoint in the layout of the package: weights with classifiers, and numbers of data sets by numpy."""
    torch.manual_seed(0)
    tensors, into = OrderedDict(), 1
    for block in range(1, 5):
        out = 2 ** (block + 1)
        for conv, channels in ((1, into), (2, out)):
            name = f"embedding_net.conv_block{block}"
            tensors[f"{name}.conv{conv}.weight"] = torch.randn(out, channels, 3, 3) / math.sqrt(9 * channels)
            tensors |= {f"{name}.bn{conv}.{key}": value for key, value in stored_norm(out).items()}
        into = out
    tensors |= {"fc.0.0.weight": torch.randn(16, 32), "fc.0.0.bias": torch.randn(16)}
    file = tmp_path_factory.mktemp("aisfx") / "checkpoint.pth"
    torch.save((tensors, {"prosfx": (np.int64(0), 78)}), file)
    return with_old_names(file), tensors


def with_old_names(file):
    """The same file as numpy 1 would have written it, whose module names stand in the published one."""
    with zipfile.ZipFile(file) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, content.replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    return file


def as_trained(tensors, spectrogram):
    """The embedding of one block (frames, bins), with torch's own modules as the paper's code calls them."""
    x = spectrogram[None, None]
    for block in range(1, 5):
        for conv in (1, 2):
            part = {key.rpartition(".")[2]: t for key, t in tensors.items() if f"block{block}.bn{conv}." in key}
            x = F.conv2d(x, tensors[f"embedding_net.conv_block{block}.conv{conv}.weight"], padding=1)
            x = F.batch_norm(x, part["running_mean"], part["running_var"], part["weight"], part["bias"])
            x = F.relu(x)
        x = F.max_pool2d(x, 2 if block < 4 else 1)
    return x.mean(3).amax(2)[0]


@torch.no_grad()
def test_the_loudest_frames_of_a_block_are_the_embedding_of_the_paper(aisfx):
    path, tensors = aisfx
    encoder = build_encoder("aisfx", path=str(path))
    audio = 0.3 * torch.randn(1, 8192 * 12)
    frames = encoder(audio, heard(audio))
    spectrogram = encoder.mel(F.pad(audio, (512, 512)))[0]
    assert frames.x.shape == (1, 12, 32)
    torch.testing.assert_close(frames.x[0].amax(0), as_trained(tensors, spectrogram), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_long_clips_are_encoded_in_pieces_that_meet_without_a_seam(aisfx, monkeypatch):
    encoder = build_encoder("aisfx", path=str(aisfx[0]))
    audio = 0.3 * torch.randn(1, 8192 * 21 + 5)
    whole = encoder(audio, heard(audio))
    monkeypatch.setattr("usam_real.aisfx.CHUNK", 64)
    torch.testing.assert_close(encoder(audio, heard(audio)).x, whole.x)


def test_its_spectrogram_is_essentias():
    """Bands of equal width in mels whose weights add up to one, over the power of a Hann window that ends in zeros."""
    encoder = build_encoder("aisfx", arch={"width": 1})
    sound = np.random.default_rng(0).normal(0, 0.1, 2048)
    power = np.abs(np.fft.rfft(sound * np.hanning(2048))) ** 2
    mel = 1127 * np.log(1 + np.linspace(0, 22050, 1025) / 700)
    edges = np.linspace(0, mel[-1], 98)
    bands = np.stack([np.interp(mel, edges[i : i + 3], [0, 1, 0], 0, 0) for i in range(96)])
    expected = np.log10(1e4 * (bands / bands.sum(1, keepdims=True)) @ power + 1) / 9.457798957824707
    found = encoder.mel(torch.from_numpy(sound)[None])[0, 0]
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-4)


@pytest.fixture(scope="module")
def crepe(tmp_path_factory):
    torch.manual_seed(0)
    tensors, into = OrderedDict(), 1
    for i, out in enumerate(CHANNELS, start=1):
        kernel = 512 if i == 1 else 64
        tensors[f"conv{i}.weight"] = torch.randn(out, into, kernel, 1) / math.sqrt(into * kernel)
        tensors[f"conv{i}.bias"] = 0.1 * torch.randn(out)
        tensors |= {f"conv{i}_BN.{key}": value for key, value in stored_norm(out).items()}
        into = out
    tensors |= {"classifier.weight": torch.randn(360, 16), "classifier.bias": torch.randn(360)}
    file = tmp_path_factory.mktemp("crepe") / "tiny.pth"
    torch.save(tensors, file)
    return file, tensors


def as_published(tensors, window):
    """Embedding and pitches of one window, in the operations of torchcrepe."""
    x = (window - window.mean()) / window.std()
    x = x[None, None, :, None]
    for i in range(1, 7):
        x = F.pad(x, (0, 0, 254, 254) if i == 1 else (0, 0, 31, 32))
        x = F.relu(F.conv2d(x, tensors[f"conv{i}.weight"], tensors[f"conv{i}.bias"], stride=(4 if i == 1 else 1, 1)))
        part = {key.rpartition(".")[2]: t for key, t in tensors.items() if key.startswith(f"conv{i}_BN")}
        x = F.batch_norm(x, part["running_mean"], part["running_var"], part["weight"], part["bias"], eps=1e-3)
        x = F.max_pool2d(x, (2, 1))
        if i == 5:
            embedding = x.flatten()
    pitch = F.linear(x.permute(0, 2, 1, 3).reshape(-1), tensors["classifier.weight"], tensors["classifier.bias"])
    return torch.cat([embedding, pitch.sigmoid()])


@pytest.mark.parametrize(("hop", "rate", "count"), [(200, 80, 15), (1600, 10, 2)])
@torch.no_grad()
def test_a_frame_is_what_crepe_hears_around_its_middle(crepe, hop, rate, count):
    path, tensors = crepe
    audio = 0.1 * torch.randn(1, 3000)
    frames = build_encoder("crepe", path=str(path), features="both", hop=hop)(audio, heard(audio))
    assert (frames.rate, frames.x.shape) == (rate, (1, count, 32 + 360))
    for i in [i for i in range(count) if i * hop + hop // 2 >= 512 and i * hop + hop // 2 + 512 <= 3000]:
        middle = i * hop + hop // 2
        expected = as_published(tensors, audio[0, middle - 512 : middle + 512])
        torch.testing.assert_close(frames.x[0, i], expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_parts_of_a_frame_can_be_had_alone(crepe):
    audio = 0.1 * torch.randn(1, 1000)
    both, embedding, pitch = (
        build_encoder("crepe", path=str(crepe[0]), features=name)(audio, heard(audio)).x
        for name in ("both", "embedding", "pitch")
    )
    torch.testing.assert_close(both, torch.cat([embedding, pitch], -1))


@torch.no_grad()
def test_safetensors_give_the_same_frames(crepe, tmp_path):
    path, tensors = crepe
    save_file({name: t for name, t in tensors.items() if t.is_floating_point()}, tmp_path / "model.safetensors")
    audio = 0.1 * torch.randn(1, 1000)
    first, second = (build_encoder("crepe", path=str(p))(audio, heard(audio)).x for p in (path, tmp_path))
    torch.testing.assert_close(first, second)


@pytest.mark.parametrize("name", ["aisfx", "crepe"])
def test_a_folder_of_the_package_is_a_source_whose_hash_is_known(name, request):
    path, _ = request.getfixturevalue(name)
    source = build_encoder(name, path=str(path.parent)).source()
    assert source.files == (path,)
    assert source.provenance()["sha256"] == {path.name: hashlib.sha256(path.read_bytes()).hexdigest()}


@pytest.mark.parametrize("name", ["aisfx", "crepe"])
def test_a_tensor_that_is_not_known_is_named(name, request, tmp_path):
    path, tensors = request.getfixturevalue(name)
    torch.save({**tensors, "attention.weight": torch.ones(2)}, tmp_path / path.name)
    with pytest.raises(ComponentError, match=r"unexpected attention\.weight \(2,\)"):
        build_encoder(name, path=str(tmp_path))


@pytest.mark.parametrize("name", ["aisfx", "crepe"])
def test_a_tensor_of_another_shape_is_named(name, request, tmp_path):
    path, tensors = request.getfixturevalue(name)
    last = next(key for key in reversed(tensors) if key.endswith(("bn2.weight", "conv5.bias")))
    torch.save({**tensors, last: torch.ones(3)}, tmp_path / path.name)
    with pytest.raises(ComponentError, match=r"(bn2\.weight|conv\.bias) is \(3,\), expected \("):
        build_encoder(name, path=str(tmp_path))


@pytest.mark.parametrize("name", ["aisfx", "crepe"])
def test_weights_of_another_network_are_refused(name, tmp_path):
    torch.save({"encoder.weight": torch.ones(2)}, tmp_path / "model.pth")
    with pytest.raises(ComponentError, match="no checkpoint of"):
        build_encoder(name, path=str(tmp_path))


class Executes:
    def __reduce__(self):
        return print, ("executed",)


def test_a_pickle_that_would_execute_code_is_refused(tmp_path, capsys):
    torch.save({"conv1.weight": Executes()}, tmp_path / "model.pth")
    with pytest.raises(ComponentError, match=r"model\.pth: refused, for it holds more than tensors"):
        build_encoder("crepe", path=str(tmp_path))
    assert not capsys.readouterr().out


def test_where_weights_are_missing_the_error_says_how_to_fetch_them(tmp_path):
    with pytest.raises(ComponentError, match="python -m usam_real fetch FOLDER"):
        build_encoder("aisfx", path=str(tmp_path / "aisfx"))
