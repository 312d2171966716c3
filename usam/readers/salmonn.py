"""SALMONN's annotations: `{"annotation": [{path, text, task, Q, expand_wav}]}`."""

from __future__ import annotations

from typing import Any

from usam.readers import Form, Layout, Row, answers, clips


class Salmonn(Layout):
    """`Q` fills `{}` in the task's prompt, or is the prompt where that has none; `expand_wav` are further clips.

    A row without a task is one of 'asr', as in SALMONN.
    """

    forms = (Form(("path", "text"), ("task", "Q", "expand_wav")),)

    def said(self, row: Any) -> Row:
        """One clip is a path, several are a list."""
        more = row.get("expand_wav") or []
        if not isinstance(more, list):
            raise ValueError(f"'expand_wav' is a list of paths, found {more!r:.120}")
        own = {"audio": [row["path"], *more] if more else row["path"], "answer": row["text"]}
        own["task"] = row.get("task") or "asr"
        question = row.get("Q")
        if question:
            prompt = self.prompts.get(own["task"], "") if isinstance(own["task"], str) else ""
            own["prompt"] = prompt.replace("{}", question) if "{}" in prompt and isinstance(question, str) else question
        return own

    def written(self, row: Row) -> Row:
        """A prompt of the row's own is `Q`."""
        first, *more = clips(row)
        (text,) = answers(row, most=1)
        before, fills, after = self.prompts.get(str(row.get("task")), "").partition("{}")
        prompt = row.get("prompt") or ""
        if fills and prompt.startswith(before) and prompt.endswith(after):
            prompt = prompt[len(before) : len(prompt) - len(after)]
        question = {"Q": prompt} if prompt else {}
        return {"path": first, "text": text, "task": row.get("task"), **question} | (
            {"expand_wav": more} if more else {}
        )
