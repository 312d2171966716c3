"""A model that says anything, and rows to ask it about."""

import json

import soundfile
from conftest import noise

from usam import UsamProcessor, build_model

ANSWERS = ["a", "b a b a b", "c", "abcabc abc", ["d", "d d"], "ee", "f f f"]
TASKS = ["asr", "aac", "asr", "asr", "aac", "asr", "asr"]
SPEC = ["llm.dim=16", "llm.layers=1", "llm.heads=2", "prompts.aac=Describe it."]


def save_model(folder, seed=0):
    model = build_model("tiny", *SPEC, seed=seed)
    model.save_pretrained(folder)
    UsamProcessor.from_spec(model.config.parsed).save_pretrained(folder)
    return folder


def write_rows(folder, name="test.jsonl", **changes):
    """Seven rows of two tasks; `changes` are other keys of every row, None takes one out."""
    rows = []
    for i, (task, answer) in enumerate(zip(TASKS, ANSWERS, strict=True)):
        soundfile.write(folder / f"{i}.flac", noise(0.4 + 0.1 * (i * 3 % 7), seed=i), 16000)
        row = {"audio": f"{i}.flac", "task": task, "answer": answer, "id": f"row {i}", **changes}
        rows.append({key: value for key, value in row.items() if value is not None})
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / name


def change(file, line, **changes):
    """Other keys in one row."""
    rows = [json.loads(text) for text in file.read_text().splitlines()]
    rows[line - 1] |= changes
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def lasting(record):
    """What another machine, and another day, would give as well."""
    passing = ("time", "machine")
    return {key: value for key, value in record.about.items() if key not in passing}, list(record.answers)
