"""What is shown beside an answer, as HTML: how long it took, the spectrogram with kept frames, the router's weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from threading import Lock

from usam.report.clips import Look, Looked, routers, selection, unscored
from usam.report.page import Panel, element
from usam.serving.page_answers import Timing, Told

DRAWING = Lock()  # matplotlib's settings are those of all threads
KEPT = "Above: which frames the model keeps, and what is known to sound. Below: how much each matters to the answer."
HEARD = "How loud each pitch is at each moment; the model scores no frames."
ROUTED = "How much each expert of the projector contributes, at each moment or to the whole clip."


def message(told: Told) -> str:
    """What went wrong, or what is to be noted; empty where nothing is."""
    if told.fault:
        return f'<p class="usam-fault" role="alert">{escape(told.fault)}</p>'
    lines = [f'<p class="usam-note">{escape(note)}</p>' for note in told.notes]
    if told.reference:
        lines.append(f'<p class="usam-note">The right answer: <b>{escape(told.reference)}</b></p>')
    return "".join(lines)


def timing(found: Timing | None) -> str:
    """Four numbers in a row; empty until they are known."""
    if found is None:
        return ""
    pace = f"{found.tokens / found.total:.1f}" if found.total > 0 else "-"
    numbers = {
        "audio": f"{found.audio:.2f} s",
        "first piece after": "-" if found.first is None else f"{found.first:.2f} s",
        "whole answer after": f"{found.total:.2f} s",
        "tokens a second": pace,
    }
    cells = (f"<div><dt>{name}</dt><dd>{number}</dd></div>" for name, number in numbers.items())
    return f'<dl class="usam-timing">{"".join(cells)}</dl>'


def figures(looks: Sequence[Look], model: str, place: str) -> str:
    """Spectrograms and routers of the clips of one answer; `place` is where on the page, so that ids are its own."""
    if not looks:
        return ""
    with DRAWING:
        sections = list(_sections(looks, model))
    body = []
    for number, (title, how, panels) in enumerate(sections):
        drawn = "".join(element(panel, f"{place}-{number}-{i}") for i, panel in enumerate(panels))
        body.append(f"<section><h3>{title}</h3><p>{how}</p>{drawn}</section>")
    return f'<div class="usam-figures">{"".join(body)}</div>'


def _sections(looks: Sequence[Look], model: str) -> Iterator[tuple[str, str, Sequence[Panel]]]:
    found = {model: Looked(looks)}
    kept = selection(found).panels
    yield "Spectrogram", KEPT if kept else HEARD, kept or [unscored(look) for look in looks]
    if panels := routers(found).panels:
        yield "Router weights", ROUTED, panels
