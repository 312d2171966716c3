"""Corpora have disjoint parts, and captions that say what sounds; the clips are made of files that the tests write."""

import json
import random

import numpy as np
import pytest
import soundfile
from usam_real import corpora
from usam_real.__main__ import main
from usam_real.scenes import EVENTS, PARTS, recordings, scenes
from usam_real.tunes import MODES, ROOTS, notes

from usam.data.manifest import Manifest

FREQUENCIES = {caption: 300 * (i + 1) for i, caption in enumerate(EVENTS)}


@pytest.fixture(scope="module")
def fetched(tmp_path_factory):
    """Three short tones for each caption, and spoken words, under the names of the real files."""
    root = tmp_path_factory.mktemp("fetched")
    samples, words = root / "sounds/sonic-pi", root / "sounds/ktuberling"
    samples.mkdir(parents=True)
    words.mkdir()
    time = np.arange(4410) / 44100
    for caption, names in EVENTS.items():
        for i in range(3):
            stem = names[i % len(names)].replace("*", f"tone{i}").replace("?", str(i))
            soundfile.write(samples / f"{stem}.flac", 0.5 * np.sin(2 * np.pi * FREQUENCIES[caption] * time), 44100)
    for word in ("ball", "egypt_arch", "moon_fallingstar", "tv_car", "hat", "shoe", "tie", "nose", "ear", "eye"):
        soundfile.write(words / f"{word}.ogg", 0.1 * np.ones(1600), 16000)
    return root


@pytest.fixture(scope="module")
def made(fetched, tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpora")
    assert main(["corpora", str(fetched), str(folder), "--only", "events", "words", "--size", "0.004"]) == 0
    return folder


def rows(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_usam_reads_the_manifests_and_the_clips(made):
    prompts = {"sounds": "What sounds?", "asr": "Transcribe."}
    for kind, part in ((kind, part) for kind in ("events", "words") for part in PARTS):
        samples = Manifest.of(made / kind / f"{part}.jsonl", prompts)
        assert len(samples) == len(rows(made / kind / f"{part}.jsonl")) > 0


def test_parts_have_no_recording_in_common(fetched):
    parts = recordings(fetched / "sounds/sonic-pi", seed=0)
    files = [file for part in PARTS for own in parts[part].values() for file in own]
    assert len(files) == len(set(files)) == 3 * len(EVENTS)
    assert all(parts[part][caption] for part in PARTS for caption in EVENTS)


def test_words_of_the_test_are_no_words_of_training(made):
    said = {part: {row["answer"] for row in rows(made / "words" / f"{part}.jsonl")} for part in PARTS}
    assert not said["train"] & said["test"]
    assert not said["train"] & said["dev"]
    assert {"arch", "falling star", "car"} < said["train"] | said["dev"] | said["test"]


def test_a_caption_names_what_sounds_in_its_order(fetched):
    one = recordings(fetched / "sounds/sonic-pi", seed=0)["train"]
    wave, caption = next(item for item in scenes(one, 20, "x") if item[1].count("then") == 1)
    first, second = caption.split(", then ")
    halves = np.array_split(wave, 2)
    for half, name in zip(halves, (first, second), strict=True):
        loudest = np.abs(np.fft.rfft(half * np.hanning(len(half)))).argmax() * 44100 / len(half)
        assert abs(loudest / FREQUENCIES[name] - 1) < 0.12


def test_a_seed_gives_the_same_clips_again(fetched):
    own = recordings(fetched / "sounds/sonic-pi", seed=0)["train"]
    for (first, said), (second, again) in zip(scenes(own, 2, "x"), scenes(own, 2, "x"), strict=True):
        assert said == again
        np.testing.assert_array_equal(first, second)


def test_what_is_there_is_left_as_it_is(fetched, made, capsys):
    before = (made / "events/test.jsonl").stat().st_mtime_ns
    main(["corpora", str(fetched), str(made), "--only", "events", "--size", "0.004"])
    assert "there already" in capsys.readouterr().out
    assert (made / "events/test.jsonl").stat().st_mtime_ns == before


@pytest.mark.parametrize("mode", MODES)
def test_a_melody_begins_with_the_chord_of_its_key_and_stays_in_its_scale(mode):
    keys = notes(random.Random(0), mode, ROOTS["train"], count=12)
    assert [key - keys[0] for key in keys[:3]] == [0, 4 if mode == "major" else 3, 7]
    assert {(key - keys[0]) % 12 for key in keys} <= set(MODES[mode])


def test_keys_of_the_test_are_no_keys_of_training():
    assert not set(ROOTS["train"]) & (set(ROOTS["dev"]) | set(ROOTS["test"]))


def test_what_was_not_fetched_is_one_line(tmp_path, capsys):
    assert main(["corpora", str(tmp_path), str(tmp_path / "out"), "--only", "events"]) == 2
    assert "sounds/sonic-pi is not there; run `python -m usam_real fetch` first" in capsys.readouterr().err


def test_packages_that_are_missing_are_told_in_one_line_before_anything_is_made(tmp_path, monkeypatch, capsys):
    nothing = {"music": {"no_sound_font": "--no-deps no-sound-font"}, "speech": {"no_voice": "no-voice"}}
    monkeypatch.setattr(corpora, "NEEDS", nothing)
    assert main(["corpora", str(tmp_path), str(tmp_path / "made")]) == 2
    commands = "pip install --no-deps no-sound-font && pip install no-voice"
    assert capsys.readouterr().err == f"corpora: not installed: no_sound_font, no_voice; {commands}\n"
    assert not (tmp_path / "made").exists()


def test_what_is_there_needs_no_package(tmp_path, monkeypatch):
    monkeypatch.setattr(corpora, "NEEDS", {"music": {"no_sound_font": "no-sound-font"}})
    (tmp_path / "music").mkdir()
    (tmp_path / "music/recipe.json").write_text(json.dumps(corpora.recipe_of("music", 1.0, 0)))
    assert corpora.needed(tmp_path) == {}
    assert corpora.needed(tmp_path, seed=1) == {"no_sound_font": "no-sound-font"}
