"""The spoken corpus: real sound, the same for everyone, and test sets that training never heard."""

import hashlib
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import soundfile

from usam.data.spoken import UNSEEN_VOICES, VOICES, WORDS, say_all, speak, variants, voices, write_corpus

SIZES = {"train": 40, "unseen_sentences": 20, "unseen_voices": 20}


def corpus(folder: Path, seed: int = 0) -> dict[str, Path]:
    return write_corpus(folder, train=SIZES["train"], test=SIZES["unseen_voices"], seed=seed)


def rows(manifest: Path) -> list[dict]:
    return [json.loads(line) for line in manifest.read_text().splitlines()]


def fingerprint(folder: Path) -> dict[str, str]:
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return corpus(tmp_path_factory.mktemp("corpora") / "spoken")


def test_speech_is_sound():
    wave, rate = speak("seven three blue")
    assert (wave.dtype, wave.ndim, rate) == (np.float32, 1, 22050)
    assert 0.5 < len(wave) / rate < 3
    assert 0.05 < np.abs(wave).max() <= 1


def test_speech_does_not_depend_on_what_was_said_before():
    first, _ = speak("six", voice="en-us+f1")
    speak("something else", voice="en-gb+whisper")
    assert np.array_equal(first, speak("six", voice="en-us+f1")[0])


def test_threads_hear_the_same():
    texts = ["one two", "three four"] * 4
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda text: speak(text)[0], texts))
    assert all(np.array_equal(wave, speak(text)[0]) for text, wave in zip(texts, together, strict=True))


def test_one_after_the_other_is_the_same_each_time():
    asked = [("one two", "en-us+f1", 160, 40), ("three", "en-gb", 180, 60)]
    first, again = say_all(asked), say_all(asked)
    assert all(np.array_equal(one, other) for (one, _), (other, _) in zip(first, again, strict=True))
    assert np.array_equal(first[0][0], speak("one two", voice="en-us+f1", rate=160, pitch=40)[0])


def test_every_option_changes_the_speech():
    plain, _ = speak("one two three")
    assert len(speak("one two three", rate=250)[0]) < 0.85 * len(plain)
    for other in ({"pitch": 80}, {"voice": "en-gb"}, {"voice": "en-us+f1"}):
        assert not np.array_equal(plain, speak("one two three", **other)[0])


@pytest.mark.parametrize(
    ("voice", "offered"), [("en-uk", "en-gb"), ("en-us+f11", "f1"), ("en-us+", "croak"), ("klingon", "known: af")]
)
def test_an_unknown_voice_offers_what_there_is(voice: str, offered: str):
    with pytest.raises(ValueError, match=r"no voice") as caught:
        speak("hello", voice=voice)
    assert f"'{voice}'" in str(caught.value)
    assert offered in str(caught.value)


@pytest.mark.parametrize("wrong", [{"rate": 20}, {"pitch": 100}])
def test_a_number_out_of_range_says_the_range(wrong: dict[str, int]):
    with pytest.raises(ValueError, match=r"must lie within"):
        speak("hello", **wrong)


def test_a_text_without_a_sound_is_an_error():
    with pytest.raises(ValueError, match=r"nothing to say in '\.\.\.'"):
        speak("...")


def test_without_the_package_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    with pytest.raises(ImportError, match=r'pip install "usam\[demo\]"'):
        speak("hello")


def test_the_voices_of_the_corpus_exist():
    languages, speakers = voices(), variants()
    for voice in (*VOICES, *UNSEEN_VOICES):
        language, _, speaker = voice.partition("+")
        assert language in languages
        assert not speaker or speaker in speakers


def test_a_manifest_has_a_row_a_clip(made: dict[str, Path]):
    assert {name: len(rows(path)) for name, path in made.items()} == SIZES
    for path in made.values():
        for row in rows(path):
            assert set(row) == {"audio", "task", "answer", "meta"}
            assert row["task"] == "asr"
            assert set(row["answer"].split()) <= set(WORDS)


def test_files_are_16_khz_mono_and_as_long_as_their_rows_say(made: dict[str, Path]):
    for path in made.values():
        for row in rows(path):
            info = soundfile.info(path.parent / row["audio"])
            assert (info.samplerate, info.channels, info.subtype) == (16000, 1, "PCM_16")
            assert info.frames / 16000 == pytest.approx(row["meta"]["seconds"], abs=1e-3)


def test_clips_begin_and_end_with_sound(made: dict[str, Path]):
    for row in rows(made["train"]):
        wave, rate = soundfile.read(made["train"].parent / row["audio"])
        loud = np.flatnonzero(np.abs(wave) > 0.02 * np.abs(wave).max()) / rate
        assert loud[0] < 0.1
        assert len(wave) / rate - loud[-1] < 0.1


def test_test_sentences_are_never_trained_on(made: dict[str, Path]):
    said = {name: {row["answer"] for row in rows(path)} for name, path in made.items()}
    assert not said["train"] & (said["unseen_sentences"] | said["unseen_voices"])


def test_unseen_voices_are_never_trained_on(made: dict[str, Path]):
    heard = {name: {row["meta"]["voice"] for row in rows(path)} for name, path in made.items()}
    assert heard["unseen_sentences"] <= set(VOICES)
    assert not heard["unseen_voices"] & (heard["train"] | set(VOICES))


def test_a_seed_gives_the_same_bytes_again_and_another_seed_others(made: dict[str, Path], tmp_path: Path):
    first = fingerprint(made["train"].parent)
    assert fingerprint(corpus(tmp_path / "again")["train"].parent) == first
    other = fingerprint(corpus(tmp_path / "other", seed=1)["train"].parent)
    assert other.keys() == first.keys()
    assert other["train.jsonl"] != first["train.jsonl"]


def test_progress_counts_the_clips(tmp_path: Path):
    counts: list[int] = []
    write_corpus(tmp_path / "spoken", train=3, test=1, progress=counts.append)
    assert counts == [1, 2, 3, 4, 5]


def test_a_corpus_is_not_made_twice(made: dict[str, Path]):
    counts: list[int] = []
    again = write_corpus(made["train"].parent, train=40, test=20, progress=counts.append)
    assert again == made
    assert counts == []


def test_a_corpus_of_other_parameters_is_not_overwritten(made: dict[str, Path]):
    with pytest.raises(FileExistsError, match=r"train is 40, not 41"):
        write_corpus(made["train"].parent, train=41, test=20)


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(FileExistsError, match=r"something else"):
        write_corpus(tmp_path, train=1, test=1)
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.txt"]


def test_an_interrupted_run_leaves_nothing(tmp_path: Path):
    def stop(_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_corpus(tmp_path / "spoken", train=3, test=1, progress=stop)
    assert list(tmp_path.iterdir()) == []
