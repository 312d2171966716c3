"""One page of HTML that needs nothing else: headings, figures with what to see in them, and tables."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 76rem; background: #fff; color: #111;
  font: 1rem/1.5 system-ui, "Segoe UI", "Noto Sans", "Noto Sans CJK SC", sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: .5rem 0; }
h2 { font-size: 1.2rem; margin: 2.2rem 0 .3rem; border-top: 1px solid #999; padding-top: .8rem; }
a { color: #003b75; }
nav ul { columns: 18rem; padding-left: 1.2rem; margin: .5rem 0; }
p { max-width: 46rem; margin: .4rem 0; }
.how { color: #444; }
figure { margin: .6rem 0; }
.panels { display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; align-items: flex-start; }
.panels figcaption { font-size: .9rem; line-height: 1.4; padding-left: .3rem; }
.panels svg { display: block; max-width: 100%; height: auto; stroke-linejoin: round; stroke-linecap: butt; }
figcaption ul, .missing { max-width: 46rem; margin: .6rem 0; padding-left: 1.2rem; }
.missing { padding: .4rem .8rem .4rem 2rem; border-left: .25rem double #555; background: #f4f4f4; }
.scroll { overflow-x: auto; max-width: 100%; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; overflow-wrap: normal; }
th, td { padding: .2rem .7rem .2rem 0; text-align: left; vertical-align: top; white-space: nowrap; }
tbody th, td { border-bottom: 1px solid #bbb; }
thead th { border-bottom: 2px solid #111; }
@media print { body { max-width: none; } nav { display: none; } .panels figure, tr { break-inside: avoid; } }
"""


@dataclass(frozen=True)
class Panel:
    """One drawing, and what it is, for those who do not see it."""

    svg: str
    label: str
    says: str = ""
    """What is to be seen in it: sentences, with numbers of the data."""


@dataclass(frozen=True)
class Figure:
    """A section of the page."""

    name: str
    """Of letters and `-`: its place in the page's address."""
    title: str
    how: str
    """How it is read."""
    panels: Sequence[Panel] = ()
    says: Sequence[str] = ()
    """What is to be seen in all of them."""
    table: Sequence[Sequence[str]] = ()
    """A row of heads, and rows."""
    missing: Sequence[str] = ()
    """What is not in it, and why."""


def page(title: str, intro: Sequence[str], figures: Sequence[Figure]) -> str:
    """The page."""
    contents = [f'<li><a href="#{f.name}">{escape(f.title)}</a></li>' for f in figures]
    body = [
        f"<h1>{escape(title)}</h1>",
        *(f"<p>{escape(line)}</p>" for line in intro),
        '<nav aria-label="Contents">',
        "<ul>",
        *contents,
        "</ul>",
        "</nav>",
        "<main>",
        *(line for figure in figures for line in _section(figure)),
        "</main>",
    ]
    head = [
        "<!DOCTYPE html>",
        '<html lang="en">',
        "<head>",
        '<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<link rel="icon" href="data:,">',  # or a server is asked for one
        f"<title>{escape(title)}</title>",
        f"<style>{STYLE}</style>",
        "</head>",
        "<body>",
    ]
    return "\n".join([*head, *body, "</body>", "</html>", ""])


def _section(figure: Figure) -> Iterator[str]:
    yield f'<section id="{figure.name}" aria-labelledby="{figure.name}-title">'
    yield f'<h2 id="{figure.name}-title">{escape(figure.title)}</h2>'
    if figure.panels or figure.table:
        yield f'<p class="how">{escape(figure.how)}</p>'
    if figure.panels or figure.says:
        yield "<figure>"
        if figure.panels:
            yield '<div class="panels">'
            yield from (element(panel, f"{figure.name}-{i}") for i, panel in enumerate(figure.panels))
            yield "</div>"
        if figure.says:
            yield f"<figcaption><ul>{''.join(f'<li>{escape(one)}</li>' for one in figure.says)}</ul></figcaption>"
        yield "</figure>"
    if figure.table:
        yield from _table(figure.table, figure.title)
    if figure.missing:
        yield f'<ul class="missing">{"".join(f"<li>{escape(one)}</li>" for one in figure.missing)}</ul>'
    yield "</section>"


def element(panel: Panel, name: str) -> str:
    """The drawing and what it shows, no wider than it is; its ids are its own in the page."""
    text = re.sub(r'\bid="', f'id="{name}-', panel.svg)
    text = re.sub(r'(href="#|url\(#)', rf"\1{name}-", text)
    text = text.replace("<svg", f'<svg role="img" aria-label="{escape(panel.label)}"', 1)
    found = re.search(r'width="([\d.]+)pt"', text)
    wide = f' style="max-width: {found[1]}pt"' if found else ""
    says = f"<figcaption>{escape(panel.says)}</figcaption>" if panel.says else ""
    return f"<figure{wide}>{text}{says}</figure>"


def _table(rows: Sequence[Sequence[str]], title: str) -> Iterator[str]:
    heads, *lines = rows
    yield f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(title)}, as a table">'
    yield "<table>"
    columns = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in heads)
    yield f"<thead><tr>{columns}</tr></thead>"
    yield "<tbody>"
    for first, *rest in lines:
        cells = "".join(f"<td>{escape(cell)}</td>" for cell in rest)
        yield f'<tr><th scope="row">{escape(first)}</th>{cells}</tr>'
    yield "</tbody>"
    yield "</table>"
    yield "</div>"
