"""Small files in the layouts of benchmarks, as they are downloaded."""

import csv
import json
from pathlib import Path

import soundfile
from conftest import noise


def sound(*files):
    """Clips that can be read, all the same."""
    for file in files:
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(file, noise(0.3), 16000)


def table(file, *rows):
    """A CSV file as pandas would write it."""
    with Path(file).open("w", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def librispeech(root):
    chapter = root / "test-clean" / "1089" / "134686"
    sound(*(chapter / f"1089-134686-000{i}.flac" for i in range(2)))
    sound(root / "test-clean" / "121" / "9" / "121-9-0000.flac")
    lines = "1089-134686-0000 HE HOPED THERE WOULD BE STEW\n1089-134686-0001 STUFF IT INTO YOU\n"
    (chapter / "1089-134686.trans.txt").write_text(lines)
    (root / "test-clean" / "121" / "9" / "121-9.trans.txt").write_text("121-9-0000 ALSO A POPULAR CONTRIVANCE\n")
    return root


def clotho(root):
    sound(root / "evaluation" / "Rain, on a roof.wav", root / "evaluation" / "dog (2).wav")
    captions = [{f"caption_{i}": f"{what}, take {i}" for i in range(1, 6)} for what in ("rain falls", "a dog barks")]
    names = [{"file_name": "Rain, on a roof.wav"}, {"file_name": "dog (2).wav"}]
    table(root / "clotho_captions_evaluation.csv", *(a | b for a, b in zip(names, captions, strict=True)))
    return root


AUDIOCAPS = [  # a clip's captions do not stand together
    {"audiocap_id": 103549, "youtube_id": "7fmOlUlwoNg", "start_time": 30, "caption": "Constant rattling noise"},
    {"audiocap_id": 103541, "youtube_id": "-AbCdEf_1", "start_time": 0, "caption": "A man speaks, then a bell"},
    {"audiocap_id": 103548, "youtube_id": "7fmOlUlwoNg", "start_time": 30, "caption": "Something rattles"},
]


def audiocaps(root, name="{youtube_id}_{start_time}.wav", folder="test"):
    root.mkdir(exist_ok=True)
    table(root / "test.csv", *AUDIOCAPS)
    sound(*(root / folder / name.format(**row) for row in AUDIOCAPS[:2]))
    return root


def question(i, **more):
    return {"question": f"What is heard in {i}?", "choices": ["A dog", "Rain", "Two men", "A bell"], **more}


def mmau(root):
    rows = []
    for i, (task, difficulty, answer) in enumerate(
        [("sound", "easy", "A dog"), ("music", "hard", "A bell"), ("speech", "easy", "Two men")]
    ):
        names = {"id": f"3fe64f3d-{i}", "audio_id": f"./test-mini-audios/3fe64f3d-{i}.wav"}
        about = {"dataset": "AudioSet", "task": task, "split": "test-mini", "category": "Reasoning"}
        about |= {"sub-category": "Acoustic Source Inference", "difficulty": difficulty}
        rows.append({**names, **question(i, answer=answer), **about})
        sound(root / "test-mini-audios" / f"3fe64f3d-{i}.wav")
    (root / "mmau-test-mini.json").write_text(json.dumps(rows, indent=2))
    return root


def covost2(root):
    """As downloaded, from English into Chinese: no quotes, a backslash before what would part cells."""
    lines = [
        "path\ttranslation\tsplit",
        'common_voice_en_1.mp3\t他说:"好。\ttest',
        "common_voice_en_2.mp3\t一\\\t二\ttest",
        "common_voice_en_3.mp3\t三\tdev",
    ]
    (root / "covost_v2.en_zh-CN.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    sound(*(root / "clips" / f"common_voice_en_{i}.mp3" for i in (1, 2, 3)))
    return root


MUSICCAPS = [
    {"ytid": "-0Gj8-vB1q4", "start_s": 30, "end_s": 40, "audioset_positive_labels": "/m/0140xf,/m/02cjck"},
    {"ytid": "-0SdAVK79lg", "start_s": 30, "end_s": 40, "audioset_positive_labels": "/m/0155w"},
    {"ytid": "zzNdwF40ID8", "start_s": 70, "end_s": 80, "audioset_positive_labels": "/m/04rlf"},
]


def musiccaps(root, name="[{ytid}]-[{start_s}-{end_s}].wav", folder="audio"):
    (root / folder).mkdir(parents=True, exist_ok=True)
    more = {"aspect_list": "['low quality', 'sustained strings']", "author_id": 4, "is_balanced_subset": False}
    table(
        root / "musiccaps-public.csv",
        *(
            {**row, **more, "caption": f'It is "nice", take {i}.', "is_audioset_eval": i != 1}
            for i, row in enumerate(MUSICCAPS)
        ),
    )
    sound(*(root / folder / name.format(**row) for row in MUSICCAPS))
    return root


def mmar(root):
    rows = []
    for i, modality in enumerate(["speech", "mix-sound-music"]):
        about = {"modality": modality, "category": "Semantic Layer", "sub-category": "Speaker Analysis"}
        about |= {"language": "en", "source": "youtube", "url": "https://www.youtube.com/watch?v=0"}
        names = {"id": f"Qx_{i}_00-00-00", "audio_path": f"./audio/Qx_{i}_00-00-00.wav"}
        rows.append({**names, **question(i, answer="Two men"), **about, "timestamp": "00:00:00,00:00:30"})
        sound(root / "audio" / f"Qx_{i}_00-00-00.wav")
    (root / "MMAR-meta.json").write_text(json.dumps(rows))
    return root


def mmau_pro_rows():
    about = {"length_type": "short", "perceptual_skills": ["Counting"], "reasoning_skills": ["Temporal", "Causal"]}
    about |= {"sub-cat": None, "transcription": None, "task_classification": None, "task_identifier": None}
    about["kwargs"] = None
    return [
        {"id": "a1", "audio_path": ["data/a1.wav"], **question(1, answer="Rain"), **about, "category": "sound"},
        {
            "id": "a2",
            "audio_path": ["data/a1.wav", "data/a2.wav"],
            **question(2, answer="A bell"),
            **about,
            "category": "multi",
        },
        {"id": "a3", "audio_path": ["data/a3.wav"], **question(3, answer="Rain"), **about, "category": "music"}
        | {"choices": ["only one"]},
        {"id": "b1", "audio_path": ["data/b1.wav"], **question(4, answer="It rains."), **about, "category": "open"}
        | {"choices": []},
        {"id": "b2", "audio_path": ["data/b2.wav"], **question(5, answer="A dog."), **about, "category": "open"}
        | {"choices": None},
        *(
            {"id": f"c{i}", "audio_path": [f"data/c{i}.wav"], **question(6, answer=None), **about}
            | {"choices": None, "category": "instruction following", "task_identifier": "Number Words (at most)"}
            | {"kwargs": {"N": 10}}
            for i in (1, 2)
        ),
    ]


def mmau_pro(root):
    rows = mmau_pro_rows()
    (root / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sound(*(root / path for row in rows for path in row["audio_path"]))
    return root


def air_bench(root):
    foundation, chat = [], []
    for i, (task, dataset) in enumerate([("Audio_Grounding", "AudioGrounding"), ("Music_AQA", "MusicQA")]):
        choices = {f"choice_{letter}": f"choice {letter}" for letter in ("abc" if i else "ab")}
        names = {"path": f"clip {i}.wav", "task_name": task, "dataset_name": dataset, "uniq_id": i}
        foundation.append({**names, "question": "Which?", **choices, "answer_gt": "choice b"})
        sound(root / "Foundation" / f"{task}_{dataset}" / f"clip {i}.{'wav' if i else 'flac'}")
    for i, task in enumerate(["speech_dialogue_QA", "sound_generation_QA"]):
        names = {"path": f"{i}.wav", "task_name": task, "dataset_name": "fisher", "uniq_id": i}
        chat.append({"meta_info": "[{...}]", "question": f"What is {i}?", "answer_gt": "wally", **names})
        sound(root / "Chat" / f"{task}_fisher" / f"{i}.wav")
    (root / "Foundation" / "Foundation_meta.json").write_text(json.dumps(foundation))
    (root / "Chat" / "Chat_meta.json").write_text(json.dumps(chat))
    return root


def muchomusic(root):
    rows = []
    for dataset, name in [("sdd", "415600.json"), ("musiccaps", "-0Gj8-vB1q4_0.json"), ("sdd", "415600.json")]:
        answers = {f"distractor_{i}_answer": f"wrong {i}" for i in (1, 2, 3)}
        skills = {"music_knowledge": "['rhythm', 'mood']", "music_reasoning": ""}
        about = {"genre": "Reggae", "dataset": dataset, "dataset_identifier": name}
        rows.append({"question": "Which, at last?", "correct_answer": "right", **answers, **about, **skills})
    table(root / "muchomusic.csv", *rows)
    (root / "sdd").mkdir()
    table(root / "sdd" / "song_describer.csv", {"track_id": 415600, "path": "00/415600.mp3", "caption": "Reggae."})
    sound(root / "sdd" / "audio" / "00" / "415600.2min.mp3")
    musiccaps(root / "musiccaps")
    return root


def prepared(root):
    """What `prepare_prompts.py` writes, beside the rest."""
    muchomusic(root)
    prompt = "Question: Which? \n Options: (A) wrong (B) right \n The correct answer is: "
    row = {"id": 415600, "prompt": prompt, "answers": ["wrong", "right"], "answer_orders": [1, 0], "dataset": "sdd"}
    row |= {"genre": "Reggae", "reasoning": ["genre and style"], "knowledge": []}
    paths = ["data/sdd/audio/00/415600.2min.mp3", "data/musiccaps/audio/[-0Gj8-vB1q4]-[30-40].wav"]
    rows = [{**row, "audio_path": path, "model_output": "A"} for path in paths]
    (root / "prompts.json").write_text(json.dumps(rows))
    return root
