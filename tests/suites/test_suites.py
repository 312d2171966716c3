"""Benchmarks are read as they are downloaded; each test writes a few files in the real layout."""

import json

import benchmark_files
import pytest

from usam.readers import ManifestError
from usam.spec.page import SpecError
from usam.suites import build_suite
from usam.testing import suite_promises

CASES = {
    "librispeech": {},
    "covost2": {},
    "audiocaps": {},
    "clotho": {},
    "musiccaps": {"split": "all"},
    "mmau": {},
    "mmau_pro": {},
    "mmau_pro open": {"split": "open"},
    "mmau_pro instructions": {"split": "instruction_following"},
    "mmar": {},
    "air_bench": {},
    "air_bench chat": {"split": "chat"},
    "muchomusic": {},
    "muchomusic prepared": {"prepared": "prompts.json"},
}
PROMISES = [str(promise) for promise in suite_promises("mmau", root=".")]


def load(name, root, **options):
    return build_suite(name, **options).load(getattr(benchmark_files, name)(root))


@pytest.mark.parametrize("promise", PROMISES)
@pytest.mark.parametrize("case", CASES)
def test_promises(case, promise, tmp_path):
    name, _, more = case.partition(" ")
    root = getattr(benchmark_files, "prepared" if more == "prepared" else name)(tmp_path)
    {str(own): own for own in suite_promises(name, root=root, **CASES[case])}[promise]()


# LibriSpeech


def test_librispeech_is_a_tree_of_transcripts(tmp_path):
    rows = load("librispeech", tmp_path).rows
    assert [row["id"] for row in rows] == ["1089-134686-0000", "1089-134686-0001", "121-9-0000"]
    assert rows[0] == {
        "id": "1089-134686-0000",
        "audio": "{audio_root}/test-clean/1089/134686/1089-134686-0000.flac",
        "task": "asr",
        "answer": ["HE HOPED THERE WOULD BE STEW"],
    }


def test_librispeech_may_lie_in_its_own_folder(tmp_path):
    (tmp_path / "LibriSpeech").mkdir()
    benchmark_files.librispeech(tmp_path / "LibriSpeech")
    rows = build_suite("librispeech").load(tmp_path).rows
    assert rows[0]["audio"] == "{audio_root}/LibriSpeech/test-clean/1089/134686/1089-134686-0000.flac"


def test_librispeech_counts_words_as_whisper_does():
    assert build_suite("librispeech").metrics == {"wer": {"type": "wer", "normalizer": "english"}}


def test_a_split_that_is_not_there_says_where_it_comes_from(tmp_path):
    benchmark_files.librispeech(tmp_path)
    with pytest.raises(ManifestError, match=r"holds no test-other.*openslr\.org/12"):
        build_suite("librispeech", split="test-other").load(tmp_path)


def test_an_utterance_without_words(tmp_path):
    benchmark_files.librispeech(tmp_path)
    (tmp_path / "test-clean/121/9/121-9.trans.txt").write_text("121-9-0000\n")
    with pytest.raises(ManifestError, match=r"121-9\.trans\.txt:1: an utterance and its words"):
        build_suite("librispeech").load(tmp_path)


# Captions


def test_clotho_has_five_captions_a_clip(tmp_path):
    first, _ = load("clotho", tmp_path).rows
    assert first["audio"] == "{audio_root}/evaluation/Rain, on a roof.wav"
    assert first["answer"] == [f"rain falls, take {i}" for i in range(1, 6)]


def test_clotho_without_a_column(tmp_path):
    benchmark_files.clotho(tmp_path)
    file = tmp_path / "clotho_captions_evaluation.csv"
    file.write_text(file.read_text().replace("caption_5", "caption_6"))
    with pytest.raises(ManifestError, match=r"evaluation\.csv:2: has no 'caption_5'; it has file_name"):
        build_suite("clotho").load(tmp_path)


def test_audiocaps_gathers_the_captions_of_a_clip(tmp_path):
    rows = load("audiocaps", tmp_path).rows
    assert [row["id"] for row in rows] == ["7fmOlUlwoNg_30", "-AbCdEf_1_0"]
    assert rows[0]["answer"] == ["Constant rattling noise", "Something rattles"]
    assert rows[0]["audio"] == "{audio_root}/test/7fmOlUlwoNg_30.wav"


@pytest.mark.parametrize(
    ("name", "folder"),
    [("{youtube_id}.flac", "audio/test"), ("Y{youtube_id}.wav", "."), ("{audiocap_id}.mp3", "test")],
)
def test_audiocaps_knows_how_clips_are_called(tmp_path, name, folder):
    root = benchmark_files.audiocaps(tmp_path, name, folder)
    clip = build_suite("audiocaps").load(root).rows[0]["audio"]
    assert clip == f"{{audio_root}}/{folder}/{name.format(**benchmark_files.AUDIOCAPS[0])}".replace("/./", "/")


def test_audiocaps_is_told_how_clips_are_called(tmp_path):
    root = benchmark_files.audiocaps(tmp_path, "a-{youtube_id}.wav", "here")
    with pytest.raises(ManifestError, match=r"no clip is found in .*under names such as 7fmOlUlwoNg_30\.wav"):
        build_suite("audiocaps").load(root)
    assert len(build_suite("audiocaps", clips="here/a-{youtube_id}.wav").load(root).rows) == 2
    with pytest.raises(SpecError, match=r"clips: 'here/\{ytid\}.*known: \{youtube_id\}"):
        build_suite("audiocaps", clips="here/{ytid}.wav").load(root)


def test_missing_clips_are_left_out_where_that_is_asked(tmp_path):
    root = benchmark_files.audiocaps(tmp_path)
    (root / "test" / "-AbCdEf_1_0.wav").unlink()
    with pytest.raises(ManifestError, match=r"clips of 1 of 2 items are missing: test/-AbCdEf_1_0\.wav; missing: skip"):
        build_suite("audiocaps").load(root)
    found = build_suite("audiocaps", missing="skip").load(root)
    assert [row["id"] for row in found.rows] == ["7fmOlUlwoNg_30"]
    assert found.left_out == ("-AbCdEf_1_0",)


def test_a_start_that_is_no_number(tmp_path):
    root = benchmark_files.audiocaps(tmp_path)
    (root / "test.csv").write_text((root / "test.csv").read_text().replace(",30,", ",soon,"))
    with pytest.raises(ManifestError, match=r"test\.csv:2: 'start_time' is a whole number, found 'soon'"):
        build_suite("audiocaps").load(root)


def test_musiccaps_has_the_clips_that_audioset_evaluates_on(tmp_path):
    rows = load("musiccaps", tmp_path).rows
    assert [row["id"] for row in rows] == ["-0Gj8-vB1q4", "zzNdwF40ID8"]
    assert rows[0]["audio"] == "{audio_root}/audio/[-0Gj8-vB1q4]-[30-40].wav"
    assert rows[0]["answer"] == ['It is "nice", take 0.']
    assert rows[0]["task"] == "mc"
    assert [row["id"] for row in build_suite("musiccaps", split="train").load(tmp_path).rows] == ["-0SdAVK79lg"]


# CoVoST 2


def test_covost2_reads_the_table_as_it_is_downloaded(tmp_path):
    rows = load("covost2", tmp_path).rows
    assert [row["answer"] for row in rows] == [['他说:"好。'], ["一\t二"]]
    assert rows[0]["audio"] == "{audio_root}/clips/common_voice_en_1.mp3"
    assert rows[0]["task"] == "s2tt"


def test_covost2_reads_the_table_of_a_split(tmp_path):
    benchmark_files.covost2(tmp_path)
    head = "path\tsentence\ttranslation\tclient_id\n"
    line = "common_voice_en_3.mp3\tThree.\t三\tabc\n"
    (tmp_path / "covost_v2.en_zh-CN.test.tsv").write_text(head + line, encoding="utf-8")
    (row,) = build_suite("covost2").load(tmp_path).rows
    assert (row["answer"], row["x_sentence"]) == (["三"], "Three.")


def test_covost2_may_stand_beside_several_languages(tmp_path):
    benchmark_files.covost2(tmp_path)
    (tmp_path / "en").mkdir()
    (tmp_path / "clips").rename(tmp_path / "en" / "clips")
    assert build_suite("covost2").load(tmp_path).rows[0]["audio"].startswith("{audio_root}/en/clips/")


@pytest.mark.parametrize(("pair", "tokenize"), [("en_zh-CN", "zh"), ("en_ja", "char"), ("de_en", "13a")])
def test_words_of_the_target_language(pair, tokenize):
    assert build_suite("covost2", pair=pair).metrics["bleu"] == {"type": "bleu", "tokenize": tokenize}


def test_a_language_that_there_is_not():
    with pytest.raises(SpecError, match="pair: CoVoST 2 has no 'en_zh'; did you mean 'en_zh-CN'"):
        build_suite("covost2", pair="en_zh")


def test_a_line_of_covost2_that_lacks_a_cell(tmp_path):
    benchmark_files.covost2(tmp_path)
    with (tmp_path / "covost_v2.en_zh-CN.tsv").open("a") as file:
        file.write("common_voice_en_4.mp3\ttest\n")
    with pytest.raises(ManifestError, match=r"zh-CN\.tsv:5: 2 cells, and 3 columns: path, translation, split"):
        build_suite("covost2").load(tmp_path)


# Questions with choices


def test_mmau_asks_as_its_authors_do(tmp_path):
    row = load("mmau", tmp_path).rows[0]
    assert row["prompt"] == (
        "What is heard in 0?  Select one option from the provided choices.\n['A dog', 'Rain', 'Two men', 'A bell']."
    )
    assert row["audio"] == "{audio_root}/test-mini-audios/3fe64f3d-0.wav"
    assert row["x_choices"] == ["A dog", "Rain", "Two men", "A bell"]
    assert (row["x_task"], row["x_difficulty"], row["x_sub_category"]) == (
        "sound",
        "easy",
        "Acoustic Source Inference",
    )


def test_another_prompt_keeps_the_question(tmp_path):
    row = load("mmau", tmp_path, prompt="{choices}? {question} {braces}").rows[1]
    assert row["prompt"] == "['A dog', 'Rain', 'Two men', 'A bell']? What is heard in 1? {braces}"
    with pytest.raises(SpecError, match=r"asks its own question: write \{question\}"):
        build_suite("mmau", prompt="What is it?")


def test_two_items_of_one_id(tmp_path):
    benchmark_files.mmau(tmp_path)
    file = tmp_path / "mmau-test-mini.json"
    file.write_text(file.read_text().replace('"3fe64f3d-1"', '"3fe64f3d-0"'))
    with pytest.raises(ManifestError, match=r"the id '3fe64f3d-0' stands in .*mmau-test-mini\.json"):
        build_suite("mmau").load(tmp_path)


def test_choices_may_be_written_as_text(tmp_path):
    benchmark_files.mmau(tmp_path)
    file = tmp_path / "mmau-test-mini.json"
    rows = json.loads(file.read_text())
    file.write_text(json.dumps([{**row, "choices": json.dumps(row["choices"])} for row in rows]))
    assert build_suite("mmau").load(tmp_path).rows[0]["x_choices"] == ["A dog", "Rain", "Two men", "A bell"]


def test_choices_that_are_none(tmp_path):
    benchmark_files.mmau(tmp_path)
    file = tmp_path / "mmau-test-mini.json"
    rows = json.loads(file.read_text())
    for given, message in ((4, "is a list of texts, found 4"), (["Rain"], "has two texts or more, found")):
        file.write_text(json.dumps([{**row, "choices": given} for row in rows]))
        with pytest.raises(ManifestError, match=f"'choices' {message}"):
            build_suite("mmau").load(tmp_path)


def test_the_answers_of_a_hidden_split_are_hidden():
    with pytest.raises(SpecError, match="split: mmau has no 'test'; did you mean 'test-mini'"):
        build_suite("mmau", split="test")


def test_mmar_is_told_by_modality_and_layer(tmp_path):
    row = load("mmar", tmp_path).rows[1]
    assert (row["x_modality"], row["x_category"]) == ("mix-sound-music", "Semantic Layer")
    assert row["audio"] == "{audio_root}/audio/Qx_1_00-00-00.wav"


def test_mmar_may_be_lines(tmp_path):
    benchmark_files.mmar(tmp_path)
    rows = json.loads((tmp_path / "MMAR-meta.json").read_text())
    (tmp_path / "MMAR-meta.json").unlink()
    (tmp_path / "MMAR-meta.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert len(build_suite("mmar").load(tmp_path).rows) == 2


def test_mmau_pro_has_three_kinds_of_questions(tmp_path):
    closed = load("mmau_pro", tmp_path).rows
    assert [row["id"] for row in closed] == ["a1", "a2"]
    assert closed[1]["audio"] == ["{audio_root}/data/a1.wav", "{audio_root}/data/a2.wav"]
    assert closed[0]["x_reasoning_skills"] == ["Temporal", "Causal"]
    assert "Select one option from the provided choices.\n['A dog'," in closed[0]["prompt"]
    is_open = build_suite("mmau_pro", split="open").load(tmp_path).rows
    assert [(row["id"], row["prompt"]) for row in is_open] == [
        ("b1", "What is heard in 4?"),
        ("b2", "What is heard in 5?"),
    ]
    first, _ = build_suite("mmau_pro", split="instruction_following").load(tmp_path).rows
    assert "answer" not in first
    assert (first["x_task_identifier"], first["x_kwargs"]) == ("Number Words (at most)", {"N": 10})


@pytest.mark.parametrize("split", ["open", "instruction_following"])
def test_what_a_judge_scores_has_no_metric_and_says_so(split):
    suite = build_suite("mmau_pro", split=split)
    assert suite.metrics == {}
    assert "the official scoring" in suite.not_computed


def test_mmau_pro_is_parquet_as_it_is_downloaded(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    benchmark_files.mmau_pro(tmp_path)
    lines = build_suite("mmau_pro").load(tmp_path)
    parquet.write_table(pyarrow.Table.from_pylist(benchmark_files.mmau_pro_rows()), tmp_path / "test.parquet")
    (tmp_path / "test.jsonl").unlink()
    assert build_suite("mmau_pro").load(tmp_path) == lines


def test_air_bench_lists_four_choices_as_its_authors_do(tmp_path):
    grounding, music = load("air_bench", tmp_path).rows
    assert grounding["prompt"] == (
        "Choose the most suitable answer from options A, B, C, and D to respond the question in next line, you may "
        "only choose A or B or C or D.\nWhich?\nA. choice a\nB. choice b\nC. None\nD. None"
    )
    assert grounding["audio"] == "{audio_root}/Foundation/Audio_Grounding_AudioGrounding/clip 0.flac"
    assert grounding["x_choices"] == ["choice a", "choice b"]
    assert music["x_part"] == "Music_AQA_MusicQA"
    assert music["id"] == "Music_AQA_MusicQA/1"


def test_an_answer_of_air_bench_that_is_no_choice(tmp_path):
    benchmark_files.air_bench(tmp_path)
    file = tmp_path / "Foundation" / "Foundation_meta.json"
    file.write_text(file.read_text().replace('"answer_gt": "choice b"', '"answer_gt": "B"'))
    with pytest.raises(ManifestError, match=r"Foundation_meta\.json.*'answer_gt' is none of the choices: 'B'"):
        build_suite("air_bench").load(tmp_path)


def test_air_bench_chat_asks_the_question_alone_and_keeps_what_a_judge_reads(tmp_path):
    row = load("air_bench", tmp_path, split="chat").rows[0]
    assert (row["prompt"], row["answer"]) == ("What is 0?", ["wally"])
    assert (row["x_domain"], row["x_meta_info"]) == ("speech", "[{...}]")
    assert build_suite("air_bench", split="chat").metrics == {}


def test_muchomusic_shuffles_its_choices_for_each_question(tmp_path):
    rows = load("muchomusic", tmp_path).rows
    assert [row["id"] for row in rows] == ["sdd/415600/0", "musiccaps/-0Gj8-vB1q4_0/1", "sdd/415600/2"]
    assert all(sorted(row["x_choices"]) == ["right", "wrong 1", "wrong 2", "wrong 3"] for row in rows)
    assert all(row["answer"] == ["right"] for row in rows)
    assert rows[0]["audio"] == "{audio_root}/sdd/audio/00/415600.2min.mp3"
    assert rows[1]["audio"] == "{audio_root}/musiccaps/audio/[-0Gj8-vB1q4]-[30-40].wav"
    assert rows[0]["x_knowledge"] == ["rhythm", "mood"]
    a, b, c, d = rows[0]["x_choices"]
    asked = f"\n Question: Which, at last?\n Options: (A) {a} (B) {b} (C) {c} (D) {d} \n The correct answer is: "
    assert rows[0]["prompt"].endswith(asked)
    orders = {
        tuple(row["x_choices"]) for s in range(9) for row in build_suite("muchomusic", seed=s).load(tmp_path).rows
    }
    assert len(orders) > 9


def test_muchomusic_asks_prepared_prompts_as_they_stand(tmp_path):
    root = benchmark_files.prepared(tmp_path)
    row = build_suite("muchomusic", prepared="prompts.json").load(root).rows[0]
    assert row["prompt"] == "Question: Which? \n Options: (A) wrong (B) right \n The correct answer is: "
    assert (row["answer"], row["x_choices"]) == (["right"], ["wrong", "right"])
    assert row["audio"] == "{audio_root}/sdd/audio/00/415600.2min.mp3"


def test_a_question_whose_clip_no_table_knows(tmp_path):
    root = benchmark_files.muchomusic(tmp_path)
    benchmark_files.table(root / "sdd" / "song_describer.csv", {"track_id": 1, "path": "00/1.mp3"})
    with pytest.raises(ManifestError, match=r"muchomusic\.csv:2: '415600' stands in no row of the table of sdd"):
        build_suite("muchomusic").load(root)
