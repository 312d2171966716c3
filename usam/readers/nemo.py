"""NeMo's manifests of speech recognition: `audio_filepath, duration, text`."""

from __future__ import annotations

from typing import Any

from usam.readers import Form, Layout, Row, answers, single

KEPT = (
    "lang", "target_lang", "source_lang", "taskname", "pnc", "itn", "timestamp", "diarize", "speaker", "orig_sr",
    "language", "shard_id", "sample_rate", "decodercontext", "emotion", "normalized", "pred_text", "uniq_id",
)  # fmt: skip


MAY = ("duration", "offset", "channel", "context", "question", "id")


class Nemo(Layout):
    """`offset` and `duration` are the part that is heard, as in NeMo; a row without a question is one of 'asr'.

    Where a row has an `answer`, that is what is learned, and `text`, the transcript, is kept as `x_text`.
    """

    forms = (
        Form(("audio_filepath", "text"), MAY, KEPT),
        Form(("audio_filepath", "answer"), MAY, ("text", *KEPT)),
    )

    def form(self, row: Any) -> Form | None:
        """As its keys say."""
        form = super().form(row)
        return self.forms[1] if form is not None and "answer" in row else form

    def said(self, row: Any) -> Row:
        """`context` and `question` are what is asked."""
        part = {key: row[key] for key in ("id", "duration", "offset", "channel") if row.get(key) is not None}
        if row.get("question") is not None and row.get("context") is not None:
            raise ValueError("'question' and 'context' both say what is asked: write one of them")
        asked = row.get("question") if row.get("question") is not None else row.get("context")
        said = {"task": "asr"} if asked is None else {"prompt": asked}
        answer = row["answer"] if "answer" in row else row["text"]
        return {"audio": row["audio_filepath"], **said, "answer": answer, **part}

    def written(self, row: Row) -> Row:
        """A clip with its part beside it."""
        kept = {key: row[f"x_{key}"] for key in KEPT if f"x_{key}" in row}
        part = {key: row[key] for key in ("id", "duration", "offset", "channel") if row.get(key) is not None}
        part |= {"offset": row["start"]} if row.get("start") is not None else {}
        asked = {"question": row["prompt"]} if row.get("prompt") is not None else {}
        (text,) = answers(row, most=1)
        said = {"text": row["x_text"], "answer": text} if "x_text" in row else {"text": text}
        return {"audio_filepath": single(row), **said, **asked, **part, **kept}
