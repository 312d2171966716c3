"""Boxes, arrows and words as SVG, written twice: for a light page and for a dark one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

PALETTES = {
    "light": {
        "ink": "#1f2328", "pale": "#59636e", "line": "#818b98", "room": "#f6f8fa",
        "blue": "#b6e3ff", "green": "#aceebb", "yellow": "#fae17d", "red": "#ffd3dd", "violet": "#e6d5ff",
    },
    "dark": {
        "ink": "#f0f6fc", "pale": "#b1bac4", "line": "#8b949e", "room": "#161b22",
        "blue": "#0c4a8a", "green": "#115c2b", "yellow": "#6b4a08", "red": "#7d2942", "violet": "#503196",
    },
}  # fmt: skip


@dataclass
class Drawing:
    """A picture of so many pixels, on no background, in the colours of one palette."""

    width: int
    height: int
    colours: dict[str, str]
    parts: list[str] = field(default_factory=list)

    def box(self, x: float, y: float, width: float, height: float, colour: str, name: str = "", more: str = "") -> None:
        """A box with its name in its middle, and below it what more there is to say; both may have several lines."""
        self.parts.append(
            f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="6" '
            f'fill="{self.colours[colour]}" stroke="{self.colours["line"]}"/>'
        )
        lines = [(line, True) for line in name.splitlines()] + [(line, False) for line in more.splitlines()]
        first = y + height / 2 + 5 - 8.5 * (len(lines) - 1)
        for i, (line, bold) in enumerate(lines):
            self.words(x + width / 2, first + 17 * i, line, size=14 if bold else 13, bold=bold)

    def words(
        self,
        x: float,
        y: float,
        text: str,
        size: int = 13,
        *,
        bold: bool = False,
        pale: bool = False,
        at: str = "middle",
    ) -> None:
        """A line of text; `at` is its `start`, `middle` or `end`."""
        weight = ' font-weight="600"' if bold else ""
        colour = self.colours["pale" if pale else "ink"]
        self.parts.append(
            f'<text x="{x:g}" y="{y:g}" font-size="{size}" text-anchor="{at}" fill="{colour}"{weight}>'
            f"{escape(text, quote=False)}</text>"
        )

    def arrow(self, *points: tuple[float, float]) -> None:
        """A line through the points, with a head at the last."""
        path = " ".join(f"{x:g},{y:g}" for x, y in points)
        style = f'fill="none" stroke="{self.colours["line"]}" stroke-width="1.5" marker-end="url(#head)"'
        self.parts.append(f'<polyline points="{path}" {style}/>')

    def svg(self, title: str) -> str:
        """The picture as a file's text; the title is what is read aloud."""
        head = (
            '<marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
            f'<path d="M0,0 L8,4 L0,8 z" fill="{self.colours["line"]}"/></marker>'
        )
        return "\n".join([
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}" '
            f'width="{self.width}" height="{self.height}" role="img" font-family="Helvetica, Arial, sans-serif">',
            f"<title>{escape(title)}</title>",
            f"<defs>{head}</defs>",
            *self.parts,
            "</svg>\n",
        ])  # fmt: skip


def pictures(name: str, draw: Callable[[dict[str, str]], str]) -> dict[Path, str]:
    """The files of a picture, `docs/<name>-light.svg` and `-dark.svg`, and their text; a name may be a path."""
    docs = Path(__file__).parent
    return {docs / f"{name}-{mode}.svg": draw(colours) for mode, colours in PALETTES.items()}


def write(files: dict[Path, str]) -> None:
    """Write them."""
    for file, text in files.items():
        file.write_text(text, encoding="utf-8")
