"""The miniature world: what is said of a clip is true of it, and test has nothing of training's."""

import hashlib
import json
from itertools import combinations, pairwise, product
from pathlib import Path

import numpy as np
import pytest
import soundfile

from usam.data.manifest import Manifest
from usam.data.world import PROMPTS, music, sounds, speech, write_world
from usam.data.world.draw import CELLS, SAMPLE_RATE, SPLITS, Draw, cells, split_of
from usam.data.world.numerals import chinese, english
from usam.data.world.truth import sounding

SIZES = {"train": 40, "dev": 20, "test": 20}
TASKS = ("asr", "s2tt", "aac", "mc")


def rows(manifest: Path) -> list[dict]:
    return [json.loads(line) for line in manifest.read_text(encoding="utf-8").splitlines()]


def fingerprint(folder: Path) -> dict[str, str]:
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def texts(row: dict) -> set[str]:
    return {row["answer"]} if isinstance(row["answer"], str) else set(row["answer"])


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Path]]:
    return write_world(tmp_path_factory.mktemp("worlds") / "world", **SIZES)


@pytest.fixture(scope="module")
def quiet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A world without speech: it is made at once."""
    folder = tmp_path_factory.mktemp("worlds") / "quiet"
    write_world(folder, train=6, dev=2, test=2, domains=("sounds", "music"))
    return folder


def test_a_task_may_have_clips_of_its_own_number(tmp_path, quiet):
    made = write_world(
        tmp_path / "world", train={"aac": 3, "mc": 1}, dev=0, test={"mc": 2}, domains=("sounds", "music")
    )
    assert {split: {task: len(rows(file)) for task, file in of.items()} for split, of in made.items()} == {
        "train": {"aac": 3, "mc": 1},
        "test": {"mc": 2},
    }
    assert rows(made["train"]["aac"]) == rows(quiet / "train" / "aac.jsonl")[:3]  # fewer clips are the first ones


def test_a_number_for_no_task_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"train: no task 'acc'; did you mean 'aac'"):
        write_world(tmp_path / "world", train={"acc": 3}, domains=("sounds",))


# Numbers


@pytest.mark.parametrize(
    ("number", "words", "numerals"),
    [
        (0, "zero", "零"),
        (2, "two", "二"),
        (10, "ten", "十"),
        (12, "twelve", "十二"),
        (20, "twenty", "二十"),
        (22, "twenty two", "二十二"),
        (99, "ninety nine", "九十九"),
        (100, "one hundred", "一百"),
        (101, "one hundred and one", "一百零一"),
        (110, "one hundred and ten", "一百一十"),
        (115, "one hundred and fifteen", "一百一十五"),
        (200, "two hundred", "两百"),
        (202, "two hundred and two", "两百零二"),
        (220, "two hundred and twenty", "两百二十"),
        (305, "three hundred and five", "三百零五"),
        (350, "three hundred and fifty", "三百五十"),
        (999, "nine hundred and ninety nine", "九百九十九"),
        (1000, "one thousand", "一千"),
        (1005, "one thousand and five", "一千零五"),
        (1010, "one thousand and ten", "一千零一十"),
        (1050, "one thousand and fifty", "一千零五十"),
        (1100, "one thousand one hundred", "一千一百"),
        (1101, "one thousand one hundred and one", "一千一百零一"),
        (2000, "two thousand", "两千"),
        (2002, "two thousand and two", "两千零二"),
        (2012, "two thousand and twelve", "两千零一十二"),
        (2020, "two thousand and twenty", "两千零二十"),
        (2200, "two thousand two hundred", "两千两百"),
        (2222, "two thousand two hundred and twenty two", "两千两百二十二"),
        (4080, "four thousand and eighty", "四千零八十"),
        (9090, "nine thousand and ninety", "九千零九十"),
        (9999, "nine thousand nine hundred and ninety nine", "九千九百九十九"),
    ],
)
def test_a_number_is_said_in_one_way(number: int, words: str, numerals: str):
    assert (english(number), chinese(number)) == (words, numerals)


def test_numerals_can_be_read_back():
    """By a reader that knows no convention: each unit multiplies the digit before it, 零 says nothing."""

    def value(numerals: str) -> int:
        total, digit = 0, 0
        for sign in numerals:
            if sign in "千百十":
                total, digit = total + (digit or 1) * {"千": 1000, "百": 100, "十": 10}[sign], 0
            else:
                digit = 2 if sign == "两" else "零一二三四五六七八九".index(sign)
        return total + digit

    assert [value(chinese(number)) for number in range(10000)] == list(range(10000))
    assert len({english(number) for number in range(10000)}) == 10000


@pytest.mark.parametrize("say", [english, chinese])
@pytest.mark.parametrize("number", [-1, 10000])
def test_other_numbers_are_an_error(say, number: int):
    with pytest.raises(ValueError, match=f"{number} is not within 0 and 9999"):
        say(number)


# What is written


def test_every_task_of_every_split_is_a_manifest(world):
    assert {split: tuple(tasks) for split, tasks in world.items()} == dict.fromkeys(SPLITS, TASKS)
    for split, task in product(SPLITS, TASKS):
        manifest = Manifest(world[split][task], PROMPTS, need_answer=True)
        assert len(manifest) == SIZES[split]
        assert {sample.task for sample in manifest} == {task}


def test_captions_have_several_references_and_words_have_one(world):
    counts = {task: {len(sample.references) for sample in Manifest(world["test"][task], PROMPTS)} for task in TASKS}
    assert counts == {"asr": {1}, "s2tt": {1}, "aac": {3}, "mc": {3}}


def test_clips_are_short_mono_and_loud_enough(world):
    for split, task in product(SPLITS, TASKS):
        for row in rows(world[split][task]):
            wave, rate = soundfile.read(world[split][task].parent / row["audio"])
            assert (rate, wave.ndim) == (SAMPLE_RATE, 1)
            assert len(wave) / rate == pytest.approx(row["meta"]["seconds"], abs=1e-4)
            assert 0.5 <= len(wave) / rate <= 3.5
            assert 0.2 < np.abs(wave).max() <= 1


def test_a_seed_gives_the_same_bytes_again(quiet, tmp_path):
    write_world(tmp_path / "again", train=6, dev=2, test=2, domains=("sounds", "music"))
    assert fingerprint(tmp_path / "again") == fingerprint(quiet)


def test_a_world_that_is_there_is_kept(quiet):
    before = {file: file.stat().st_mtime_ns for file in quiet.rglob("*")}
    write_world(quiet, train=6, dev=2, test=2, domains=("sounds", "music"))
    assert {file: file.stat().st_mtime_ns for file in quiet.rglob("*")} == before


def test_another_world_is_not_overwritten(quiet):
    with pytest.raises(FileExistsError, match=r"holds another world \(seed is 0, not 1\)"):
        write_world(quiet, train=6, dev=2, test=2, seed=1, domains=("sounds", "music"))


@pytest.mark.parametrize(("domain", "task"), [(speech, "asr"), (speech, "s2tt"), (sounds, "aac"), (music, "mc")])
def test_more_clips_leave_the_first_as_they_are(domain, task: str, world):
    few = list(domain.clips(task, "train", 3, 0))
    for (wave, row), written in zip(few, rows(world["train"][task]), strict=False):
        heard, _ = soundfile.read(world["train"][task].parent / written["audio"])
        assert row["answer"] == written["answer"]
        assert np.allclose(wave, heard, atol=1e-4)


@pytest.mark.parametrize("domain", [speech, sounds, music])
def test_another_seed_gives_other_clips(domain):
    task = domain.TASKS[0]
    (one, _), (other, _) = (next(domain.clips(task, "train", 1, seed)) for seed in (0, 1))
    assert not np.array_equal(one, other)


def test_an_interrupted_world_leaves_nothing(tmp_path):
    def stop(written: int) -> None:
        if written == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_world(tmp_path / "world", train=4, dev=0, test=0, domains=("sounds",), progress=stop)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"domains": ("sound",)}, "no domain 'sound'; did you mean 'sounds'"),
        ({"domains": ("music", "music")}, "name each once"),
        ({"domains": ()}, "at least one of speech, sounds, music"),
        ({"dev": -1}, "dev is -1"),
        ({"train": 0, "dev": 0, "test": 0}, "there is nothing to write"),
    ],
)
def test_what_cannot_be_written_is_an_error(wrong: dict, said: str, tmp_path):
    with pytest.raises(ValueError, match=said):
        write_world(tmp_path / "world", **wrong)
    assert not (tmp_path / "world").exists()


# What is held out


def test_no_text_of_test_or_dev_is_trained(world):
    for task, (one, other) in product(TASKS, combinations(SPLITS, 2)):
        heard, unseen = (set().union(*map(texts, rows(world[split][task]))) for split in (one, other))
        assert heard.isdisjoint(unseen), (task, one, other)


def test_splits_share_no_number_command_or_voice():
    for pool in (speech.numbers, speech.commands, speech.voices):
        found = [set(pool(split)) for split in SPLITS]
        assert all(found)
        assert len(set.union(*found)) == sum(map(len, found))
    assert sum(len(speech.numbers(split)) for split in SPLITS) == speech.NUMBERS


def test_every_word_of_test_is_trained():
    said = {s: {w for n in speech.numbers(s) for w in english(n).split()} for s in SPLITS}
    told = {s: {w for text in speech.commands(s) for w in text.split()} for s in SPLITS}
    signs = {s: {w for n in speech.numbers(s) for w in chinese(n)} for s in SPLITS}
    for words in (said, told, signs):
        assert words["dev"] | words["test"] <= words["train"]


def test_voices_of_a_corpus_are_its_splits_own(world):
    for split in SPLITS:
        heard = {row["meta"]["voice"] for task in speech.TASKS for row in rows(world[split][task])}
        assert heard <= set(speech.voices(split))


def test_splits_have_scenes_of_one_to_three_things():
    for split in SPLITS:
        counts = [len(scene_of(row)) for _, row in sounds.clips("aac", split, 120, 0)]
        assert np.allclose([counts.count(n) / 120 for n in (1, 2, 3)], [1 / 3, 1 / 2, 1 / 6], atol=0.15)


def test_splits_share_no_scene():
    scenes = {
        split: {scene_of(row) for _, row in sounds.clips("aac", split, 60, seed)} for seed, split in enumerate(SPLITS)
    }
    for one, other in combinations(SPLITS, 2):
        assert scenes[one].isdisjoint(scenes[other])
        orders = ({tuple(n for n, _ in scene) for scene in scenes[split] if len(scene) > 1} for split in (one, other))
        assert set.isdisjoint(*orders)


def scene_of(row: dict) -> tuple:
    return tuple((event["name"], event["count"]) for event in row["meta"]["events"])


def test_every_thing_and_every_count_is_trained():
    trained = {pair for _, row in sounds.clips("aac", "train", 500, 0) for pair in scene_of(row)}
    counted = {(name, count) for name, thing in sounds.THINGS.items() if thing.counted for count in (1, 2, 3)}
    assert trained == counted | {(name, 1) for name, thing in sounds.THINGS.items() if not thing.counted}


def test_each_split_has_things_that_sound_alone():
    alone = [
        ((name, count),) for name, thing in sounds.THINGS.items() for count in ((1, 2, 3) if thing.counted else (1,))
    ]
    found = {split: sum(sounds.split_of_scene(scene) == split for scene in alone) for split in SPLITS}
    assert found == {"train": 18, "dev": 4, "test": 10}


def test_music_has_every_combination_once_and_every_pair_in_training():
    found = [played for split in SPLITS for played in music.combinations(split)]
    assert len(found) == len(set(found)) == 6 * 3 * 2 * 2 + 3 * 2
    for one, other in combinations(range(4), 2):
        pairs = {(played[one], played[other]) for played in found}
        assert pairs == {(played[one], played[other]) for played in music.combinations("train")}
    for place in range(4):
        assert {played[place] for played in music.combinations("test")} == {played[place] for played in found}


def test_splits_share_no_part_of_a_parameters_range():
    parts = [set(cells(split)) for split in SPLITS]
    assert sorted(cell for part in parts for cell in part) == list(range(CELLS))
    drawn = {split: [Draw(split, i).between("pitch", 300, 700) for i in range(200)] for split in SPLITS}
    for split, part in zip(SPLITS, parts, strict=True):
        assert {int((value - 300) / 400 * CELLS) for value in drawn[split]} == part


def test_no_parameters_of_test_are_trained(world):
    def drawn(split: str) -> set[tuple]:
        found = set()
        for row in rows(world[split]["aac"]):
            found |= {(e["name"], name, value) for e in row["meta"]["events"] for name, value in e["params"].items()}
        for row in rows(world[split]["mc"]):
            meta = row["meta"]
            found |= {(meta["instrument"], name, value) for name, value in meta["params"].items()}
        return found

    assert drawn("train").isdisjoint(drawn("test") | drawn("dev"))


def test_a_text_belongs_to_one_split_for_ever():
    assert [split_of(f"number {n}") for n in (1, 4, 102)] == ["train", "test", "test"]


# What is true of a clip


def test_answers_say_what_was_said(world):
    for row in rows(world["train"]["s2tt"]):
        assert row["answer"] == chinese(row["meta"]["number"])
        assert row["meta"]["text"] == english(row["meta"]["number"])
    kinds = {"number" in row["meta"] for row in rows(world["train"]["asr"])}
    assert kinds == {True, False}


def test_captions_say_order_and_count():
    scene = (("bell", 2), ("dog", 1), ("rain", 1))
    assert sounds.captions(scene) == [
        "a bell rings twice, then a dog barks, then rain falls",
        "first a bell rings twice, then a dog barks, then rain falls",
        "a bell ringing twice, followed by a dog barking, followed by rain falling",
    ]
    assert sounds.captions((("clap", 3),))[0] == "someone claps three times"


def test_captions_say_instrument_tempo_mode_and_meter():
    assert music.captions(("flute", "slow", "minor", "waltz")) == [
        "a slow minor waltz on a flute",
        "a flute plays a slow waltz in a minor key",
        "slow music in three-four time and a minor key, played on a flute",
    ]
    assert music.captions(("drums", "fast", None, "march"))[1] == "drums play a fast march"


def test_events_sound_where_they_say(world):
    """Within its spans a clip is louder than outside of them, where only its background is left."""
    for row in rows(world["test"]["aac"]) + rows(world["test"]["asr"]):
        wave, rate = soundfile.read(world["test"][row["task"]].parent / row["audio"])
        loud = sounding(row["meta"], rate, len(wave))
        assert loud.any()
        assert not loud.all()
        assert np.mean(wave[~loud] ** 2) < 0.1 * np.mean(wave[loud] ** 2), row


def test_frames_sound_between_onset_and_offset():
    rain = {"name": "rain", "onset": 0.5, "offset": 0.9}
    knock = {"name": "knock", "onset": 0.1, "offset": 0.4, "spans": [[0.1, 0.2], [0.3, 0.4]]}
    meta = {"events": [knock, rain]}
    assert sounding(meta, 10, 10).tolist() == [False, True, False, True, False, True, True, True, True, False]
    assert sounding(meta, 10, 10, "knock").sum() == 2


def test_events_come_in_order_and_overlap_little():
    for _, row in sounds.clips("aac", "train", 60, 0):
        events = row["meta"]["events"]
        for one, other in pairwise(events):
            assert one["onset"] < other["onset"]
            assert other["onset"] >= one["offset"] - 0.1
        counted = [event for event in events if sounds.THINGS[event["name"]].counted]
        assert all(len(event["spans"]) == event["count"] for event in counted)


def test_counted_strokes_begin_so_often():
    """Onsets counted in the sound itself, of a thing whose strokes are short."""
    draw = Draw("train", "counting")
    for name, count in product(("drip", "knock", "beep", "clap"), (1, 2, 3)):
        _, strokes = sounds._event(draw, name, count, 0.1)
        wave = sounds.placed(strokes, 2.0)
        envelope = np.abs(wave).reshape(-1, 400).max(1) > 0.25 * np.abs(wave).max()
        assert np.sum(np.diff(envelope.astype(int)) == 1) == count, name


def test_a_beat_has_its_tempo_and_its_accents():
    for meter, tempo in product(music.METERS, music.TEMPOS):
        wave, row = music.play(Draw("train", "beat", meter, tempo), ("piano", tempo, "major", meter))
        beats, meta = row["meta"]["beats"], row["meta"]
        low, high = music.TEMPOS[tempo]
        assert low <= 60 / np.diff(beats).mean() <= high
        assert 60 / np.diff(beats).mean() == pytest.approx(meta["params"]["bpm"], rel=1e-3)
        loud = [np.mean(wave[round(b * SAMPLE_RATE) :][:1600] ** 2) for b in beats]
        every = music.METERS[meter]
        assert len(loud) > every  # a second first beat can be heard
        first, others = loud[::every], [power for i, power in enumerate(loud) if i % every]
        assert min(first) > max(others)


def test_mode_is_in_the_third():
    """The chord of the first beat holds a third of four semitones in major, of three in minor."""
    for mode, third, other in (("major", 4, 3), ("minor", 3, 4)):
        wave, row = music.play(Draw("train", "mode"), ("organ", "slow", mode, "waltz"))
        tonic, start = row["meta"]["params"]["tonic"], round(row["meta"]["beats"][0] * SAMPLE_RATE)
        chord = wave[start : start + 7200] * np.hanning(7200)
        time = np.arange(7200) / SAMPLE_RATE

        def strength(semitones: int, tonic=tonic, chord=chord, time=time) -> float:
            return abs(np.sum(chord * np.exp(-2j * np.pi * tonic * 2 ** (semitones / 12) * time)))

        assert strength(third) > 5 * strength(other)


# What sounds different is different


def features(wave: np.ndarray, bands: int = 20) -> np.ndarray:
    """Mean and deviation over time of a log-mel spectrogram."""
    frames = np.lib.stride_tricks.sliding_window_view(np.pad(wave, 256), 512)[::160] * np.hanning(512)
    power = np.abs(np.fft.rfft(frames)) ** 2
    mels = np.linspace(0, 2595 * np.log10(1 + 8000 / 700), bands + 2)
    edges = 700 * (10 ** (mels / 2595) - 1) / 8000 * 256
    bins = np.arange(257)
    rise, fall = (
        (bins - edges[:-2, None]) / np.diff(edges)[:-1, None],
        (edges[2:, None] - bins) / np.diff(edges)[1:, None],
    )
    energy = np.log(power @ np.maximum(0, np.minimum(rise, fall)).T + 1e-4)
    return np.concatenate([energy.mean(0), energy.std(0)])


def accuracy(waves) -> float:
    """Of the nearest class mean, fitted to training's sounds and tried on test's."""
    drawn = {split: [(label, features(wave)) for label, wave in waves(split)] for split in ("train", "test")}
    labels = sorted({label for label, _ in drawn["train"]})
    spread = np.std([vector for _, vector in drawn["train"]], axis=0)
    means = np.stack([np.mean([v for one, v in drawn["train"] if one == label], axis=0) for label in labels])
    right = [
        labels[int(np.argmin(np.sum(((means - vector) / spread) ** 2, axis=1)))] == label
        for label, vector in drawn["test"]
    ]
    return float(np.mean(right))


def test_things_can_be_told_apart():
    def waves(split):
        for name, i in product(sounds.THINGS, range(8)):
            draw = Draw(split, "apart", name, i)
            yield name, sounds.at_peak(sounds.THINGS[name].sound(draw), draw.any(0.4, 0.9))

    assert len(sounds.THINGS) >= 12
    assert accuracy(waves) >= 0.9


def test_instruments_can_be_told_apart():
    def waves(split):
        for played in music.combinations(split):
            for i in range(3):
                yield played[0], music.play(Draw(split, "apart", played, i), played)[0]

    assert accuracy(waves) >= 0.8
