"""`python -m usam_real page`: what a run of `show` found is written into a page, between its marks."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from usam.saving import write_whole
from usam_real.show import ASKED, SPECIALISTS

Results = Mapping[str, Any]
HOWS = ("heard", "shuffled", *(f"without {name}" for name in SPECIALISTS))
OWN = {"human": "whisper", "sounds": "aisfx", "music": "crepe"}  # whose domain a test is
MOST_WRONG, SHUFFLED_WRONG, TWICE = 0.30, 0.90, 2.0  # what is asked for


def write_page(results: Path, page: Path) -> None:
    """Fill all that stands between `<!-- NAME -->` and `<!-- /NAME -->` for each of `PARTS`, and leave the rest.

    Args:
        results: `results.json` of `show`.
        page: a file of Markdown.

    Raises:
        FileNotFoundError: one of them is not there.
        ValueError: the results lack something, or the page has a mark not exactly once.
    """
    try:
        found = json.loads(results.read_text(encoding="utf-8"))
        written = {name: part(found) for name, part in PARTS.items()}
    except json.JSONDecodeError as error:
        raise ValueError(f"{results}: no JSON: {error}") from error
    except KeyError as error:
        raise ValueError(f"{results}: has no {error}; it is written by `python -m usam_real show`") from error
    text = page.read_text(encoding="utf-8")
    for name, part in written.items():
        marks = f"<!-- {name} -->", f"<!-- /{name} -->"
        if any(text.count(mark) != 1 for mark in marks) or text.index(marks[0]) > text.index(marks[1]):
            raise ValueError(f"{page}: write {marks[0]} and {marks[1]} once each, with what is filled in between")
        before, rest = text.split(marks[0])
        text = f"{before}{marks[0]}\n{part}\n{marks[1]}{rest.split(marks[1])[1]}"
    write_whole(page, text)


def _made(found: Results) -> str:
    minutes = sum(found["seconds"].values()) / 60
    shares = [
        f"{found[key]:g} of the {what}" for key, what in (("size", "clips"), ("steps", "steps")) if found[key] != 1
    ]
    only = f", with {' and '.join(shares)}" if shares else ""
    delta = f"What is saved beside the frozen models is {found['delta_bytes'] / 1e6:.1f} MB."
    place = f"{found['machine']['cpus']} processors ({found['machine']['system']})"
    return f"One run, seed {found['seed']}{only}, of {minutes:.0f} minutes on {place}. {delta}"


def _tests(found: Results) -> str:
    rows = [["test", "clips", "measure", "heard", "another clip's sound", *HOWS[2:]]]
    for name, one in found["tests"].items():
        measure = "word error rate ↓" if ASKED[name].percent else "CIDEr-D ↑"
        cells = [_span(name, one.get(how)) for how in HOWS]
        rows.append([name, str(one["heard"]["samples"]), measure, *cells])
    return _table(rows)


def _bounds(found: Results) -> str:
    tests = found["tests"]
    human = [tests["human"][how]["value"] for how in HOWS[:2]]
    lines = [
        _held(f"human speech: {human[0]:.1%} of words wrong", human[0] <= MOST_WRONG, f"at most {MOST_WRONG:.0%}"),
        _held(
            f"human speech, another clip's sound: {human[1]:.1%} of words wrong",
            human[1] >= SHUFFLED_WRONG,
            f"at least {SHUFFLED_WRONG:.0%}",
        ),
    ]
    for name in ("sounds", "music"):
        heard, other = (tests[name][how]["value"] for how in HOWS[:2])
        said = f"{name}: CIDEr-D {heard:.2f}, and {other:.2f} with another clip's sound"
        lines.append(_held(said, heard > 0 and heard >= TWICE * other, f"at least {TWICE:g} times as much"))
    return "\n".join(lines)


def _held(said: str, holds: bool, asked: str) -> str:
    return f"- {said}; asked for: {asked}, {'met' if holds else '**not met**'}."


def _directions(found: Results) -> str:
    rows = [["test", "the paper's direction", "worst", "change", "agrees"]]
    for name, own in OWN.items():
        one, worse = found["tests"][name], 1 if ASKED[name].percent else -1
        changes = {other: one[f"without {other}"]["value"] - one["heard"]["value"] for other in SPECIALISTS}
        worst = max(changes, key=lambda other: worse * changes[other])
        agrees = worst == own and worse * changes[worst] > 0
        shown = ", ".join(f"{other} {_change(name, change)}" for other, change in changes.items())
        rows.append([name, f"worst without {own}", f"without {worst}", shown, "yes" if agrees else "**no**"])
    return _table(rows)


def _change(name: str, value: float) -> str:
    return f"{100 * value:+.1f} points" if ASKED[name].percent else f"{value:+.2f}"


def _times(found: Results) -> str:
    rows = [["part", "seconds"], *([name, f"{seconds:.0f}"] for name, seconds in found["seconds"].items())]
    return _table(rows)


def _transcripts(found: Results) -> str:
    said = [[_plain(one[who]) for who in ("heard", "whisper")] for one in found["transcripts"]]
    return _table([["heard", "Whisper's own words"], *said])


# By the name of its mark, what is written of the results.
PARTS: dict[str, Callable[[Results], str]] = {
    "made": _made,
    "tests": _tests,
    "bounds": _bounds,
    "directions": _directions,
    "times": _times,
    "transcripts": _transcripts,
}


def _span(name: str, score: Mapping[str, float] | None) -> str:
    if score is None:
        return ""
    form = ".1%" if ASKED[name].percent else ".2f"
    value, low, high = (format(score[key], form) for key in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


def _table(rows: Sequence[Sequence[str]]) -> str:
    head, *body = rows
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *body])


def _plain(text: str) -> str:
    """On one line, and nothing of it read as Markdown."""
    return re.sub(r"([\\|<>*_`\[\]])", r"\\\1", " ".join(text.split()))
