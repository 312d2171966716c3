"""Tables of recordings and what is said in them: a column of audio, one of text, and any others."""

from __future__ import annotations

from typing import Any

from usam.readers import Form, Layout, Row, answers, clips
from usam.readers.usam import KEYS

AUDIO = ("audio", "path", "file", "file_name", "wav", "audio_path", "audio_file", "wav_path", "filename")
TEXT = {"text": "asr", "sentence": "asr", "transcription": "asr", "transcript": "asr", "caption": "aac"}


class Columns(Layout):
    """The text is the answer, to the prompt of 'asr', or of 'aac' where its column is `caption`.

    Columns that usam knows (`prompt`, `task`, `id`, `start` ...) keep their meaning; all others are kept as `x_<name>`.
    """

    forms = tuple(Form((audio, text), KEYS, others=True) for audio in AUDIO for text in TEXT)

    def form(self, row: Any) -> Form | None:
        """One column of text, and none that says the answer otherwise."""
        if not isinstance(row, dict) or "answer" in row or "messages" in row:
            return None
        return super().form(row) if sum(key in row for key in TEXT) == 1 else None

    def misfit(self, row: Any) -> str:
        """Which of the two columns is missing, or stands there twice."""
        if not isinstance(row, dict):
            return super().misfit(row)
        if not any(key in row for key in AUDIO):
            return f"it lacks a column of audio: one of {', '.join(AUDIO)}"
        texts = [key for key in (*TEXT, "answer", "messages") if key in row]
        if len(texts) > 1:
            return f"'{texts[0]}' and '{texts[1]}' both say the answer: name one of them 'x_{texts[0]}'"
        return f"it lacks a column of text: one of {', '.join(map(repr, TEXT))}"

    def said(self, row: Any) -> Row:
        """The first column of audio, in the order of `AUDIO`, is heard."""
        sound = next(key for key in AUDIO if key in row)
        text = next(key for key in TEXT if key in row)
        own = {key: row[key] for key in KEYS if row.get(key) is not None}
        asked = {} if "task" in own or "prompt" in own else {"task": TEXT[text]}
        return {**own, "audio": row[sound], **asked, "answer": row[text]}

    def written(self, row: Row) -> Row:
        """One column of audio, and `text`, or `caption` for the task 'aac'."""
        told, heard = answers(row), clips(row)
        own = {key: row[key] for key in KEYS if key not in ("audio", "audios", "answer") and row.get(key) is not None}
        text = "caption" if own.get("task") == "aac" else "text"
        if "prompt" not in own and own.get("task") == TEXT[text]:
            del own["task"]
        one = {"audio": heard[0] if len(heard) == 1 else heard, text: told[0] if len(told) == 1 else told}
        return {**one, **own}
