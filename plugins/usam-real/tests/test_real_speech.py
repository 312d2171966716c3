"""Sentences are spoken and human clips labelled once, in disjoint parts; voice and clips are the tests' own."""

import ctypes
import json
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
from usam_real import voices
from usam_real.labels import Labeller, is_sure, worded
from usam_real.sentences import said, sentences, shared
from usam_real.speech import SIZES, _each, _labelled, _split, write_speech
from usam_real.voices import Flite, Neural

SIZE = 0.004


class Tone:
    """Speaks in a tone, longer for longer texts; it keeps a list of what it said, in a file."""

    def __init__(self, log, stop_after=None):
        self.log, self.stop_after = log, stop_after

    def say(self, text, speed, pitch):
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        if self.stop_after is not None and len(lines) >= self.stop_after:
            raise KeyboardInterrupt
        self.log.write_text("\n".join([*lines, text]) + "\n")
        time = np.arange(int(400 * len(text) / speed)) / 16000
        return sum(0.15 * np.sin(2 * np.pi * hertz * pitch * time) for hertz in (200, 5000))


class Ear:
    """Labels a clip by the number in its name, surely but for every fifth."""

    def __init__(self, log):
        self.log = log

    def label(self, files):
        with self.log.open("a") as log:
            log.writelines(f"{file.name}\n" for file in files)
        return [(f"Number {'abcdefghij'[int(f.stem) % 10]}!", -2.0 if int(f.stem) % 5 == 0 else -0.1) for f in files]


@pytest.fixture(scope="module")
def fetched(tmp_path_factory):
    root = tmp_path_factory.mktemp("fetched")
    for folder in ("texts/fortunes", "texts/words", "sounds/asterisk"):
        (root / folder).mkdir(parents=True)
    nouns = [f"{a}{b}" for a in "bdfgklm" for b in ("at", "en", "ip", "og", "ud")]
    words = ["the", "sees", "a", *nouns]
    (root / "texts/words/american-english").write_text("\n".join(words))
    sayings = [f"The {one} sees a {other}.\n\t\t-- Somebody\n%\n" for one in nouns for other in nouns[:3]]
    (root / "texts/fortunes/art").write_text("".join(sayings))
    for i in range(30):
        soundfile.write(root / f"sounds/asterisk/{i:02d}.wav", 0.1 * np.ones(8000), 8000)
    return root


def made(fetched, place, *, stop_after=None):
    tools = {"voices": dict.fromkeys(("neural", "flite", "espeak"), lambda: Tone(place.parent / "said", stop_after))}
    tools["labeller"] = lambda: Ear(place.parent / "heard")
    write_speech(fetched, place, size=SIZE, seed=0, processes=1, **tools)
    return place


@pytest.fixture(scope="module")
def corpus(fetched, tmp_path_factory):
    return made(fetched, tmp_path_factory.mktemp("corpora") / "speech")


def rows(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_a_sentence_is_of_known_words_and_without_its_author(fetched):
    found = sentences(fetched / "texts/fortunes", fetched / "texts/words/american-english")
    assert found["the bat sees a ben"] == "The bat sees a ben."
    assert not any("somebody" in text for text in found)


def test_what_is_said_keeps_apostrophes_within_words():
    assert said("'Tis I -- don't YOU see?") == "tis i don't you see"


def test_too_few_sentences_are_told():
    with pytest.raises(ValueError, match="2 sentences were found, and 3 are needed"):
        shared({"a b c": "A b c.", "d e f": "D e f."}, {"train": 3}, 0)


def test_no_sentence_is_in_two_parts(corpus):
    texts = [row["answer"] for part in SIZES for row in rows(corpus / f"{part}.jsonl") if row["x_label"] == "text"]
    assert len(texts) == len(set(texts)) > 0


def test_what_is_said_in_human_clips_of_the_test_is_said_in_none_of_training(corpus):
    human = {p: {r["answer"] for r in rows(corpus / f"{p}.jsonl") if r["x_voice"] == "human"} for p in SIZES}
    assert human["test"]
    assert human["test"].isdisjoint(human["ctc"] | human["train"] | human["dev"])
    assert human["dev"].isdisjoint(human["ctc"] | human["train"])


def test_rows_say_who_labelled_them(corpus):
    found = {row["x_voice"]: row["x_label"] for row in rows(corpus / "test.jsonl")}
    assert found == {"human": "whisper-tiny.en", "neural": "text", "espeak": "text"}


def test_human_clips_for_training_are_there_at_three_speeds_and_held_out_ones_as_they_are(corpus):
    for part in SIZES:
        own = rows(corpus / f"{part}-human.jsonl") if part != "train" else []
        said = {speed: [row["answer"] for row in own if row["x_speed"] == speed] for speed in (0.9, 1.0, 1.1)}
        others = [] if part in ("dev", "test") else said[1.0]
        assert said[0.9] == said[1.1] == others
    slow = next(row for row in rows(corpus / "ctc-human.jsonl") if row["x_speed"] == 0.9)
    assert soundfile.info(corpus / slow["audio"]).duration == pytest.approx(1 / 0.9, abs=0.01)


def test_every_second_sentence_sounds_as_through_a_telephone(corpus):
    for row in rows(corpus / "ctc-neural.jsonl"):
        wave, rate = soundfile.read(corpus / row["audio"])
        power = np.abs(np.fft.rfft(wave)) ** 2
        high = power[np.fft.rfftfreq(len(wave), 1 / rate) > 4200].sum() / power.sum()
        assert (high < 1e-3) == row["x_narrow"]


def test_clips_that_whisper_is_unsure_of_are_in_no_part(corpus):
    clips = [Path(row["audio"]) for part in SIZES for row in rows(corpus / f"{part}.jsonl")]
    assert not [clip for clip in clips if clip.suffix == ".wav" and int(clip.stem) % 5 == 0]


@pytest.mark.parametrize(
    ("text", "log", "sure"),
    [
        ("Hello.", -0.1, True),
        ("Hello.", -0.9, False),
        ("", 0.0, False),
        ("Press 1.", -0.1, False),
        ("[beep]", 0, False),
    ],
)
def test_a_sure_label_has_words_alone(text, log, sure):
    assert is_sure(text, log, -0.5) is sure


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Press 1 to send, or 42.", "Press one to send, or forty two."),
        ("0", "zero"),
        ("Press 1-4.", "Press 1-4."),
        ("3D audio, 2.5 of 19th, $5, 1,000, 8:30, 100", "3D audio, 2.5 of 19th, $5, 1,000, 8:30, 100"),
    ],
)
def test_a_number_that_stands_alone_is_written_in_words(text, words):
    assert worded(text) == words


def test_clips_of_subfolders_are_used_and_silent_ones_are_not(tmp_path):
    (tmp_path / "clips/digits").mkdir(parents=True)
    for name, height in (("8", 0.1), ("digits/8", 0.1), ("digits/9", 0)):
        soundfile.write(tmp_path / f"clips/{name}.wav", height * np.ones(8000), 8000)
    _labelled(tmp_path / "clips", tmp_path / "labels.jsonl", lambda: Ear(tmp_path / "heard"), 1, 0, 1)
    assert {row["clip"] for row in rows(tmp_path / "labels.jsonl")} == {"8.wav", "digits/8.wav"}


def test_each_part_is_there_by_voice_too(corpus):
    for part, counts in SIZES.items():
        each = {file.stem.removeprefix(f"{part}-"): rows(file) for file in corpus.glob(f"{part}-*.jsonl")}
        assert set(each) == {*counts, *(["human"] if part != "train" else [])}
        assert sum(map(len, each.values())) == len(rows(corpus / f"{part}.jsonl"))
        assert all(row["x_voice"] == voice for voice, own in each.items() for row in own)


def test_stopped_it_goes_on_and_says_and_labels_nothing_twice(fetched, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        made(fetched, tmp_path / "speech", stop_after=5)
    assert not (tmp_path / "speech/recipe.json").exists()
    made(fetched, tmp_path / "speech")
    for log in ("said", "heard"):
        lines = (tmp_path / log).read_text().splitlines()
        assert len(lines) == len(set(lines)) > 5


def test_a_label_that_is_not_sure_enough_to_be_held_out_is_for_training():
    labels = [(Path(f"{word}.wav"), word, -0.1) for word in ("one", "two", "three", "four", "five", "six")]
    labels = [(Path("unsure.wav"), "unsure", -0.8), (Path("guessed.wav"), "guessed", -1.2), *labels]
    found = {part: {text for _, text in clips} for part, clips in _split(labels, 0.01, 0).items()}
    assert "unsure" in found["ctc"] | found["train"]
    assert found["test"] | found["dev"] == {"one", "two", "three", "four"}
    assert "guessed" not in set().union(*found.values())


def test_a_line_of_labels_that_was_cut_off_is_made_again(fetched, tmp_path):
    place = made(fetched, tmp_path / "speech")
    whole = place.joinpath("labels.jsonl").read_text()
    (place / "labels.jsonl").write_text(whole[:-5])
    made(fetched, place)
    assert place.joinpath("labels.jsonl").read_text() == whole


class Broken:
    """Makes nothing, in whatever process."""

    def __call__(self):
        raise FileNotFoundError("nothing was fetched")


@pytest.mark.slow
def test_a_tool_that_cannot_be_made_is_told_by_many_processes_too():
    with pytest.raises(FileNotFoundError, match="nothing was fetched"):
        list(_each(print, Broken(), ["a", "b", "c"], 2))


ENDLESS = """
import os, sys, time
from pathlib import Path
from usam_real.speech import _each

def work(tool, job):
    Path(sys.argv[1], str(os.getpid())).touch()
    time.sleep(600)

if __name__ == "__main__":
    list(_each(work, dict, [1, 2], 2))
"""


@pytest.mark.slow
def test_a_run_that_is_killed_leaves_no_process_behind(tmp_path):
    (tmp_path / "endless.py").write_text(ENDLESS)
    (tmp_path / "pids").mkdir()

    def soon(holds):
        end = time.monotonic() + 120
        while not holds() and time.monotonic() < end:
            time.sleep(0.1)
        assert holds()

    with subprocess.Popen([sys.executable, tmp_path / "endless.py", tmp_path / "pids"]) as run:
        soon(lambda: len(list((tmp_path / "pids").iterdir())) == 2)
        run.kill()
    pids = [int(file.name) for file in (tmp_path / "pids").iterdir()]
    soon(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))


def test_without_a_fetched_whisper_there_are_no_labels(tmp_path):
    with pytest.raises(FileNotFoundError, match="no Whisper is there; run `python -m usam_real fetch` first"):
        Labeller(tmp_path)


def test_without_a_fetched_voice_nothing_is_said(tmp_path):
    pytest.importorskip("piper", reason="the neural voice is piper-tts's")
    with pytest.raises(FileNotFoundError, match="no voice is there; run `python -m usam_real fetch` first"):
        Neural(tmp_path)


def test_without_the_libraries_of_flite_nothing_is_said(tmp_path):
    (tmp_path / "libflite.so.2.2").touch()
    with pytest.raises(FileNotFoundError, match=r"libflite_usenglish, libflite_cmulex, .* not there; run `python -m"):
        Flite(tmp_path)


def test_libraries_that_this_system_cannot_load_are_told(tmp_path):
    for name in FLITE:
        (tmp_path / f"libflite{name}.so.2.2").write_text("no library")
    with pytest.raises(OSError, match=r"Flite cannot be loaded: .*libflite\.so\.2\.2.*apt-get install libasound2"):
        Flite(tmp_path)


FLITE = ("", "_usenglish", "_cmulex", "_cmu_us_awb", "_cmu_us_rms", "_cmu_us_slt")


class Libraries(SimpleNamespace):
    """Flite's libraries, of which every voice is a tone of a second, longer by the stretch."""

    def __init__(self):
        said, stretches, kept = [], [], []

        def register(speaker):
            return lambda folder: ctypes.pointer(voices._Speaker(speaker, None))

        def speak(text, speaker):
            said.append((speaker.contents.name.decode(), text.decode()))
            kept.append((9000 * np.sin(np.arange(round(16000 * stretches[-1])) / 10)).astype(np.int16))
            samples = kept[-1].ctypes.data_as(ctypes.POINTER(ctypes.c_short))
            return ctypes.pointer(voices._Wave(None, 16000, len(kept[-1]), 1, samples))

        super().__init__(
            said=said,
            flite_init=lambda: None,
            delete_wave=lambda wave: None,
            feat_set_float=lambda features, name, value: stretches.append(value),
            flite_text_to_wave=speak,
            **{f"register_cmu_us_{speaker}": register(speaker.encode()) for speaker in ("slt", "rms", "awb")},
        )


def test_flite_says_a_sentence_at_a_speed_and_pitch(tmp_path, monkeypatch):
    for name in FLITE:
        (tmp_path / f"libflite{name}.so.2.2").touch()
    libraries = Libraries()
    monkeypatch.setattr(voices.ctypes, "CDLL", lambda file, mode: libraries)
    voice = Flite(tmp_path)
    wave = voice.say("Hello there.", speed=1.25, pitch=1.1)
    assert len(wave) / 16000 == pytest.approx(1 / 1.25, abs=0.01)
    assert np.abs(wave).max() == pytest.approx(9000 / 32768, rel=0.02)
    for pitch in np.linspace(0.9, 1.3, 20):
        voice.say("And again.", 1.0, pitch)
    assert {speaker for speaker, _ in libraries.said} == {"slt", "rms", "awb"}
    assert {text for _, text in libraries.said} == {"Hello there.", "And again."}


def test_another_recipe_begins_anew(fetched, tmp_path):
    place = made(fetched, tmp_path / "speech")
    (place / "begun.json").write_text('{"size": 9, "seed": 9}\n')
    (place / "left.txt").write_text("of another recipe")
    made(fetched, place)
    assert not (place / "left.txt").exists()
