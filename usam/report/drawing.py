"""Panels in black and white: line styles, markers and hatches tell things apart; colour only helps."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from usam.registry import ComponentError
from usam.report.reading import Series

WIDE, HIGH = 3.7, 2.6  # inches of a panel: one fits a telephone, three a screen
POINTS = 300  # of a line; more of them are averaged
COLOURS = ("#000000", "#0072b2", "#d55e00", "#009e73", "#9a4f7e", "#555555")  # Okabe & Ito, 2008; all dark
LINES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")  # seven and four: 28 pairs
HATCHES = ("", "////", "....", "xxxx", "\\\\\\\\", "++++", "----")
FACES = ("white", "0.8", "white", "0.9", "0.65", "white")  # hatches and faces: 42 pairs
LOOK = {
    "svg.hashsalt": "usam", "svg.fonttype": "none", "text.parse_math": False, "font.size": 8.5, "hatch.linewidth": 0.6,
    "axes.titlesize": 9, "axes.titlelocation": "left", "axes.spines.top": False, "axes.spines.right": False,
    "legend.fontsize": 8, "legend.frameon": False, "axes.grid": True, "grid.color": "0.88", "axes.axisbelow": True,
}  # fmt: skip


def matplotlib() -> Any:
    """The package.

    Raises:
        ComponentError: it is not installed.
    """
    try:
        import matplotlib as found
        import matplotlib.figure
    except ModuleNotFoundError as error:
        raise ComponentError(
            "matplotlib is not installed: pip install 'usam[figures]', or pip install matplotlib"
        ) from error
    return found


def svg(draw: Callable[[Any], None], *, width: float = WIDE, height: float = HIGH) -> str:
    """What `draw` puts on a figure of so many inches, as an element of HTML, with text as text."""
    with matplotlib().rc_context(LOOK), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph", UserWarning)  # whoever shows the page has the fonts
        figure = matplotlib().figure.Figure(figsize=(width, height), layout="constrained")
        draw(figure)
        out = io.StringIO()
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    text = out.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>|<defs>\s*<style.*?</style>\s*</defs>|<!--.*?-->", "", text, flags=re.S)
    text = re.sub(r'\s(?:xmlns(?::xlink)?|version)="[^"]*"', "", text[text.index("<svg") :])
    text = re.sub(r'\b(?:d|x|y)="[^"]*"', lambda found: re.sub(r"(\.\d\d)\d+", r"\1", found[0]), text)  # points
    return re.sub(r"\n\s*", "\n", text).strip()


def legend(figure: Any, handles: Sequence[Any], labels: Sequence[str]) -> None:
    """Below the axes; of one thing alone there is none."""
    if len(labels) > 1:
        figure.legend(handles, labels, loc="outside lower left", ncols=_columns(labels), handlelength=3)


def room(labels: Sequence[str]) -> float:
    """Inches that a legend takes."""
    return 0.19 * -(-len(labels) // _columns(labels)) if len(labels) > 1 else 0.0


def _columns(labels: Sequence[str]) -> int:
    return max(1, min(4, len(labels), 46 // (max(map(len, labels)) + 7)))


def style(place: int, count: int = 0) -> dict[str, Any]:
    """How the line of this place is drawn; `count`: of its points, a few of which are marked."""
    every = max(1, count // 6)
    return {
        "color": COLOURS[place % len(COLOURS)], "linestyle": LINES[place % len(LINES)], "linewidth": 1.3,
        "marker": MARKERS[place % len(MARKERS)], "markersize": 4, "markevery": (place % every, every),
    }  # fmt: skip


def fill(place: int) -> dict[str, Any]:
    """How the bar of this place is drawn."""
    face, hatch = FACES[place % len(FACES)], HATCHES[place % len(HATCHES)]
    return {"facecolor": face, "edgecolor": "black", "hatch": hatch, "linewidth": 0.8}


def thinned(series: Series) -> Series:
    """At most `POINTS` points, means over stretches of the same number of them."""
    if len(series.steps) <= POINTS:
        return series
    steps = [part.mean() for part in np.array_split(np.array(series.steps, float), POINTS)]
    values = [part.mean() for part in np.array_split(np.array(series.values), POINTS)]
    return Series(tuple(map(round, steps)), tuple(map(float, values)))


@dataclass(frozen=True)
class Line:
    """One line over steps, and how it differs from the others."""

    name: str
    series: Series
    place: int
    other: Mapping[str, Any] = field(default_factory=dict)


def lines(title: str, drawn: Sequence[Line], *, share: bool = False, level: float | None = None) -> str:
    """Lines over steps; `share`: from 0 to 1, `level`: a thin line at this height."""
    labels = [line.name for line in drawn]

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        handles = []
        for line in drawn:
            series = thinned(line.series)
            look = {**style(line.place, len(series.steps)), **line.other}
            handles += axes.plot(series.steps, series.values, **look)
        if level is not None:
            axes.axhline(level, color="0.4", linewidth=0.8, linestyle=(0, (1, 2)))
        if share:
            axes.set_ylim(-0.03, 1.03)
        axes.set(title=title, xlabel="step")
        axes.xaxis.get_major_locator().set_params(integer=True)
        legend(figure, handles, labels)

    return svg(draw, height=HIGH + room(labels))
