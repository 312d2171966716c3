"""Draws docs/kernels.svg: five frames on their way through three experts, two for each frame, and through all."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt

COLOURS = ["#8ecae6", "#ffb703", "#95d5b2"]  # of the experts
PLAIN, EMPTY = "#e9ecef", "#ffffff"
CHOSEN = [(1, 0), (0, 2), (1, 2), (0, 1), None]  # the fifth frame is padding
SORTED = [(e, t) for e in range(3) for t, chosen in enumerate(CHOSEN) if chosen and e in chosen]
HEIGHT = 0.55


class Drawing:
    """Cells, arrows and words on one plane."""

    def __init__(self) -> None:
        self.figure = plt.figure(figsize=(10.6, 6.5))
        self.axes = self.figure.add_axes((0, 0, 1, 1))
        self.axes.set(xlim=(0, 21.2), ylim=(-6.9, 6.1))
        self.axes.axis("off")

    def cell(self, x: float, y: float, width: float, colour: str, text: str = "", height: float = HEIGHT) -> None:
        self.axes.add_patch(plt.Rectangle((x, y), width, height, facecolor=colour, edgecolor="#495057", linewidth=0.8))
        self.words(x + width / 2, y + height / 2, text)

    def words(self, x: float, y: float, text: str, size: float = 9, **options: str) -> None:
        style = {"ha": "center", "va": "center"} | options
        self.axes.text(x, y, text, fontsize=size, **style)

    def arrow(self, start: tuple[float, float], end: tuple[float, float], **options: object) -> None:
        style = {"arrowstyle": "-|>", "color": "#495057", "linewidth": 1.0, "shrinkA": 0, "shrinkB": 0} | options
        self.axes.annotate("", end, start, arrowprops=style)


def best_few(draw: Drawing) -> None:
    """Above: routed, sorted by expert, two grouped products, and put together again."""
    frame = [3.6 - 0.85 * t for t in range(5)]
    row = [4.2 - 0.62 * r for r in range(len(SORTED))]
    draw.words(0.4, 5.7, "The best few: top_k = 2 of 3 experts", 12, ha="left", weight="bold")
    for title, x in (
        ("frames", 1.2),
        ("choices", 2.9),
        ("rows by expert", 7.0),
        ("hidden", 11.7),
        ("y", 15.9),
    ):
        draw.words(x, 5.05, title)
    draw.words(19.6, 5.05, "output")
    for t, chosen in enumerate(CHOSEN):
        draw.cell(0.6, frame[t], 1.2, PLAIN if chosen else EMPTY, f"x{t}" if chosen else "padding")
        for k, e in enumerate(chosen or ()):
            draw.cell(2.3 + 0.6 * k, frame[t], 0.6, COLOURS[e], str(e))
        draw.cell(19.0, frame[t], 1.2, PLAIN if chosen else EMPTY, f"y{t}" if chosen else "0")
    for r, (e, t) in enumerate(SORTED):
        middle = row[r] + HEIGHT / 2
        assert CHOSEN[t] is not None
        draw.arrow((3.5, frame[t] + HEIGHT / 2), (6.4, middle), linewidth=0.6, color=COLOURS[e])
        draw.cell(6.4, row[r], 1.2, COLOURS[e], f"x{t}")
        draw.cell(10.2, row[r], 3.0, COLOURS[e])
        draw.cell(15.3, row[r], 1.2, COLOURS[e])
        draw.arrow((16.5, middle), (19.0, frame[t] + HEIGHT / 2), linewidth=0.6, color=COLOURS[e])
    for e in range(3):
        rows = [r for r, (expert, _) in enumerate(SORTED) if expert == e]
        middle = (row[rows[0]] + row[rows[-1]] + HEIGHT) / 2
        draw.arrow((7.7, middle), (10.1, middle))
        draw.words(8.9, middle + 0.3, f"U{e}")
        draw.arrow((13.3, middle), (15.2, middle))
        draw.words(14.25, middle + 0.3, f"V{e}")
        draw.words(7.75, row[rows[0]] + HEIGHT / 2, f"offs[{e}]", 7, ha="left")
    below = -0.95
    draw.words(2.6, below, "route: softmax, top-k,\ncounts of each tile", 8)
    draw.words(5.5, below, "place:\ncounted, not sorted", 8)
    draw.words(10.3, below, "up: x is gathered as it is loaded,\nthen bias, activation and gate", 8)
    draw.words(14.6, below, "down", 8)
    draw.words(17.9, below, "combine: a frame's rows\nin the order of its choices", 8)


def all_experts(draw: Drawing) -> None:
    """Below: two library products, and one kernel between them."""
    draw.words(0.4, -2.15, "All experts: no rows move", 12, ha="left", weight="bold")
    tops = [-3.4, -4.0, -4.6, -5.2]
    for title, x in (("x", 1.2), ("pre-activations", 6.6), ("gated", 13.4), ("output", 19.6)):
        draw.words(x, -2.6, title)
    for t, y in enumerate(tops):
        draw.cell(0.6, y, 1.2, PLAIN, f"x{t}")
        for e, colour in enumerate(COLOURS):
            draw.cell(4.5 + 1.4 * e, y, 1.4, colour)
            draw.cell(11.3 + 1.4 * e, y, 1.4, colour)
        draw.cell(19.0, y, 1.2, PLAIN, f"y{t}")
    middle = -4.0
    for start, end, over, under in (
        (1.9, 4.4, "[U0 U1 U2]", "one product"),
        (8.8, 11.2, "gate_act", "one kernel"),
        (15.6, 18.9, "[V0 V1 V2]", "one product, which also sums"),
    ):
        draw.arrow((start, middle), (end, middle))
        draw.words((start + end) / 2, middle + 0.35, over)
        draw.words((start + end) / 2, middle - 0.4, under, 8)
    draw.words(10.6, -6.2, "For the gradients x, the gates and the pre-activations are kept, and no expert's output.")


def main() -> None:
    """Write the picture beside this script."""
    plt.rcParams.update({"svg.hashsalt": "kernels", "svg.fonttype": "none"})  # the same file each time, and a small one
    draw = Drawing()
    best_few(draw)
    all_experts(draw)
    draw.figure.savefig(Path(__file__).with_name("kernels.svg"), metadata={"Date": None})


if __name__ == "__main__":
    main()
