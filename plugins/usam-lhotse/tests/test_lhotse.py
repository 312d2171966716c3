"""Cuts are read as the samples that lhotse itself would load."""

import copy
import gzip
import json
import pickle
import random

import numpy as np
import pytest
import soundfile
from lhotse import CutSet, MonoCut, MultiCut, Recording, RecordingSet, SupervisionSegment
from lhotse.audio import AudioSource

from usam.data.convert import convert
from usam.data.manifest import Manifest, ManifestError
from usam.processor.audio import AudioError
from usam.processor.clip import Clip

PROMPTS = {"asr": "Transcribe.", "aac": "Describe."}
RATE = 16000


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """The working directory, with a recording of one channel and one of three."""
    monkeypatch.chdir(tmp_path)
    draw = np.random.default_rng(0)
    soundfile.write("mono.wav", draw.uniform(-0.2, 0.2, 2 * RATE), RATE)
    soundfile.write("three.wav", draw.uniform(-0.2, 0.2, (RATE, 3)), RATE)
    return tmp_path


def said(text, start=0.0, duration=1.0, **also):
    return SupervisionSegment(f"s{start}", "mono", start, duration, text=text, **also)


def mono(*supervisions, id="c1", start=0.5, duration=1.0, **custom):
    recording = Recording.from_file("mono.wav")
    return MonoCut(id, start, duration, 0, list(supervisions), recording=recording, custom=custom or None)


def three(channel, start=0.0, duration=1.0):
    kind = MultiCut if isinstance(channel, list) else MonoCut
    return kind("c3", start, duration, channel, [said("hello")], recording=Recording.from_file("three.wav"))


def read(*cuts):
    return Manifest.of(CutSet.from_cuts(cuts), PROMPTS).samples


def block(sample):
    return sample.messages[0]["content"][0]


def heard(sample):
    return Clip.of(block(sample)).read(RATE)


def check(sample, cut):
    """The sound is what lhotse loads, its channels averaged."""
    np.testing.assert_allclose(heard(sample), cut.load_audio().mean(0), atol=1e-6)


# What a cut says


def test_a_cut_is_a_part_of_its_recording():
    cut = mono(said("hello", language="en", speaker="f1"), snr=3)
    (sample,) = read(cut)
    assert block(sample) == {"type": "audio", "audio": "mono.wav", "start": 0.5, "duration": 1.0}
    assert (sample.id, sample.task, sample.answer) == ("c1", "asr", "hello")
    assert sample.extra == {"x_snr": 3, "x_language": "en", "x_speaker": "f1"}
    assert sample.origin == "CutSet, row 0"
    check(sample, cut)


def test_a_whole_recording_has_no_range():
    (sample,) = read(mono(said("hello"), start=0, duration=2.0))
    assert block(sample) == {"type": "audio", "audio": "mono.wav"}


@pytest.mark.parametrize("key", ["context", "prompt", "question"])
def test_custom_says_what_is_asked(key):
    (sample,) = read(mono(said("a dog"), **{key: "What?", "task": "aac"}))
    assert sample.messages[0]["content"][1]["text"] == "What?"
    assert (sample.task, sample.extra) == ("aac", {})


def test_custom_may_say_the_answer():
    (sample,) = read(mono(said(None), question="What?", answer="a dog"))
    assert (sample.answer, sample.task) == ("a dog", None)


def test_a_cut_without_text_has_no_answer():
    assert read(mono())[0].answer is None


def test_supervisions_make_one_answer_in_the_order_of_time():
    first, second = said("one", 0.0, 0.5, speaker="a", language="en"), said("two", 0.5, 0.5, speaker="b", language="en")
    (sample,) = read(mono(second, first))
    assert sample.answer == "one two"
    assert sample.extra == {"x_speaker": ["a", "b"], "x_language": "en"}


def test_what_supervision_and_cut_call_alike_is_kept_apart():
    (sample,) = read(mono(said("one", custom={"snr": 1, "texts": ["One."]}), snr=3))
    assert sample.extra == {"x_snr": 3, "x_supervision_snr": 1, "x_texts": ["One."]}


# What is heard


@pytest.mark.parametrize("channel", [0, 2, [1], [0, 2], [0, 1, 2]])
def test_channels_are_lhotses(channel):
    cut = three(channel, 0.25, 0.5)
    check(read(cut)[0], cut)


@pytest.mark.parametrize(
    "change",
    [
        lambda cut: cut.pad(1.5),
        lambda cut: cut.perturb_speed(1.1),
        lambda cut: cut.perturb_volume(0.5),
        lambda cut: cut.append(cut),
        lambda cut: cut.mix(mono(id="noise", start=0.0), offset_other_by=0.25, snr=10),
        lambda cut: cut.reverb_rir(Recording.from_file("mono.wav").to_cut().truncate(duration=0.01).move_to_memory()
                                   .recording),
    ],
    ids=["padded", "faster", "softer", "appended", "mixed", "in a room"],
)  # fmt: skip
def test_what_lhotse_makes_of_a_cut_is_heard(change):
    cut = change(mono(said("hello")))
    (sample,) = pickle.loads(pickle.dumps(read(cut)))
    assert set(sample.answer.split()) == {"hello"}
    check(sample, cut)


def test_sound_is_made_when_it_is_heard(folder):
    (sample,) = read(mono(said("hello")).pad(1.5))
    (folder / "mono.wav").unlink()
    with pytest.raises(AudioError, match=r"the cut .*: lhotse cannot load it"):
        heard(sample)


def test_several_files_are_one_recording():
    sources = [AudioSource("file", [0], "mono.wav"), AudioSource("file", [1], "mono.wav")]
    recording = Recording("r", sources, RATE, 2 * RATE, 2.0)
    cut = MultiCut("c", 0.5, 1.0, [0, 1], [said("hello")], recording=recording)
    check(read(cut)[0], cut)


def test_sound_in_memory_is_heard():
    cut = mono(said("hello"))
    cut.recording = cut.recording.move_to_memory()
    check(read(cut)[0], cut)


# Where cuts lie


@pytest.mark.parametrize("name", ["cuts.jsonl", "cuts.jsonl.gz"])
def test_a_file_of_cuts_is_recognised(name, folder, monkeypatch):
    cuts = CutSet.from_cuts([mono(said("hello")), mono(said("hi"), id="c2").pad(1.5)])
    cuts.to_file(name)
    monkeypatch.chdir("/")  # paths are relative to the file
    samples = Manifest(folder / name, PROMPTS, need_answer=True).samples
    assert [sample.answer for sample in samples] == ["hello", "hi"]
    assert samples[1].origin == f"{folder / name}:2"
    found = [heard(sample) for sample in samples]
    monkeypatch.chdir(folder)
    for x, cut in zip(found, cuts, strict=True):
        np.testing.assert_allclose(x, cut.load_audio()[0], atol=1e-6)


def test_audio_root_stands_for_a_folder(folder):
    CutSet.from_cuts([mono(said("hello")).with_recording_path_prefix("{audio_root}")]).to_file("cuts.jsonl")
    assert heard(Manifest("cuts.jsonl", PROMPTS, audio_root=folder)[0]).shape == (RATE,)


@pytest.fixture
def shar(folder):
    (folder / "shar").mkdir()
    cuts = [three([0, 1, 2]), mono(said("hi")), mono(said("ho"), id="c.4").perturb_speed(1.1)]
    CutSet.from_cuts(cuts).to_shar(folder / "shar", fields={"recording": "wav"}, shard_size=2)
    return folder / "shar"


def test_a_shar_folder_is_read_as_lhotse_reads_it(shar):
    from_folder = Manifest(shar, PROMPTS).samples
    cuts = list(CutSet.from_shar(in_dir=shar))
    for sample, of_object, cut in zip(
        from_folder, Manifest.of(CutSet.from_shar(in_dir=shar), PROMPTS), cuts, strict=True
    ):
        assert (sample.id, sample.answer, sample.extra) == (of_object.id, of_object.answer, of_object.extra)
        check(sample, cut)
        check(of_object, cut)
    assert from_folder[2].origin == f"{shar / 'cuts.000001.jsonl.gz'}:1"


def test_sound_of_a_shar_folder_stays_in_its_archive(shar):
    assert len(pickle.dumps(Manifest(shar, PROMPTS))) < 5000


def test_cuts_become_usams_own(folder):
    cut = mono(said("hi"), id="c2").pad(1.5)
    CutSet.from_cuts([mono(said("hello")), cut]).to_file("cuts.jsonl.gz")
    (folder / "own").mkdir()
    assert convert("cuts.jsonl.gz", folder / "own" / "own.jsonl") == 2
    first, second = Manifest(folder / "own" / "own.jsonl", PROMPTS).samples
    assert (first.id, first.answer, heard(first).shape) == ("c1", "hello", (RATE,))
    check(second, cut)


# What is refused


def recording(kind, source):
    return Recording("r", [AudioSource(kind, [0], source)], RATE, RATE, 1.0)


@pytest.mark.parametrize(
    ("kind", "message"),
    [("command", "is a command, which would be run"), ("url", "is an address: nothing is fetched from a network"),
     ("shar", "lies in a Shar archive: give the folder")],
)  # fmt: skip
@pytest.mark.parametrize("where", ["alone", "as noise"])
def test_where_sound_is_not_taken_from(kind, message, where):
    cut = MonoCut("c", 0, 1.0, 0, [], recording=recording(kind, "cat a.wav"))
    cut = cut if where == "alone" else mono(said("hello")).mix(cut)
    with pytest.raises(ManifestError, match=f"CutSet, row 0: the recording 'cat a.wav' {message}"):
        read(cut)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"recording": None}, "the cut has no recording"),
        ({"channel": 4}, r"'channel' is 4, and the recording has \[0\]"),
        ({"custom": {"context": "?", "question": "?"}}, "'context' and 'question' of 'custom' all say what is asked"),
        ({"custom": {"answer": "?"}}, "'answer' of 'custom' and the supervisions' 'text' both"),
        ({"custom": {"task": "arc"}}, "task 'arc' has no prompt"),
        ({"duration": 0.3}, "the supervision 's0.0' reaches from 0 to 1 s, and the cut from 0 to 0.3 s"),
        ({"type": "FourCut"}, "'type' is one of MonoCut"),
        ({"supervisions": [{"text": "hello"}]}, "a supervision has 'id' of another kind"),
        ({"start": None}, "a cut has 'start' of another kind than lhotse's: None"),
        ({"speaker": "f1"}, r"nearest format is 'usam-lhotse:lhotse': it has 'speaker' too many"),
    ],
)
def test_a_wrong_cut_is_named(change, message, folder):
    row = {**mono(said("hello")).to_dict(), **change}
    (folder / "cuts.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(ManifestError, match=f"cuts.jsonl:1: .*{message}"):
        Manifest("cuts.jsonl", PROMPTS)


def test_silence_is_no_sample(folder):
    silence = mono().pad(2.0).tracks[1].cut
    with pytest.raises(ManifestError, match="a PaddingCut is silence"):
        read(silence)


def test_recordings_are_no_cuts():
    with pytest.raises(ManifestError, match=r"a RecordingSet holds no cuts; make them of it: CutSet.from_manifests"):
        Manifest.of(RecordingSet.from_recordings([Recording.from_file("mono.wav")]), PROMPTS)


def test_a_shar_folder_that_is_broken_is_named(shar):
    tar = shar / "recording.000001.tar"
    whole = tar.read_bytes()
    tar.write_bytes(whole[:2000])
    with pytest.raises(ManifestError, match=r"recording.000001.tar: .*breaks off after 'c.4_sp1.1.wav'"):
        Manifest(shar, PROMPTS)
    tar.write_bytes((shar / "recording.000000.tar").read_bytes())
    with pytest.raises(ManifestError, match=r"cuts.000001.jsonl.gz:1: the cut 'c.4_sp1.1', but recording.000001.tar"):
        Manifest(shar, PROMPTS)
    tar.unlink()
    with pytest.raises(ManifestError, match=r"one file recording.000001.tar beside it, and there are 0"):
        Manifest(shar, PROMPTS)


def test_a_shar_folder_has_as_many_cuts_as_recordings(shar):
    file = shar / "cuts.000000.jsonl.gz"
    file.write_bytes(gzip.compress(gzip.decompress(file.read_bytes()).splitlines(keepends=True)[0]))
    with pytest.raises(ManifestError, match=r"cuts.000000.jsonl.gz: has fewer cuts than recording.000000.tar"):
        Manifest(shar, PROMPTS)


THINGS = [None, True, -1, 0.5, "", "a.wav", [], {}, ["a.wav"], [[1]], {"path": "b.wav"}]


def changed(thing, draw):
    """JSON with one thing in it replaced or left out."""
    if draw.random() < 0.2 or not isinstance(thing, (dict, list)) or not thing:
        return draw.choice(THINGS)
    key = draw.choice(list(thing) if isinstance(thing, dict) else range(len(thing)))
    if draw.random() < 0.2:
        del thing[key]
    else:
        thing[key] = changed(thing[key], draw)
    return thing


def test_whatever_a_cut_holds_is_taken_or_named():
    draw = random.Random(0)
    rows = [mono(said("hello", custom={"a": 1}), snr=3).to_dict(), mono(said("hello")).pad(1.5).to_dict()]
    taken, faults = 0, []
    for _ in range(1000):
        row = copy.deepcopy(draw.choice(rows))
        key = draw.choice(list(row))
        row[key] = changed(row[key], draw)
        try:
            Manifest.of([row], PROMPTS, reader="lhotse")
            taken += 1
        except ManifestError as error:
            faults.append(str(error))
    assert all(fault.startswith("row 0: ") for fault in faults)
    assert min(taken, len(faults)) > 100
