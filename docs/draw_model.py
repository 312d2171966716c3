"""Draws docs/model-light.svg and docs/model-dark.svg: the parts of a model, as the paper puts them together."""

from __future__ import annotations

import math

from _drawing import Drawing, pictures, write

TITLE = "From a waveform through encoders, fusion and projectors to a language model and its losses"
TOP, HIGH = 116, 168  # of the families' boxes
MIDDLE = TOP + 94


def draw(colours: dict[str, str]) -> str:
    """The picture in one palette."""
    d = Drawing(880, 376, colours)
    families(d)
    audio(d)
    for start, end in ((84, 109), (234, 259), (354, 379), (488, 505), (622, 649)):
        d.arrow((start, MIDDLE), (end, MIDDLE))
    losses(d)
    prompt(d)
    return d.svg(TITLE)


def audio(d: Drawing) -> None:
    """A waveform."""
    d.words(44, TOP + 20, "audio", 14, bold=True)
    for i in range(19):
        loud = 4 + 30 * abs(math.sin(0.55 * i) * math.cos(0.31 * i + 0.4))
        x = 8 + 4 * i
        d.parts.append(
            f'<line x1="{x}" y1="{MIDDLE - loud:.1f}" x2="{x}" y2="{MIDDLE + loud:.1f}" '
            f'stroke="{d.colours["line"]}" stroke-width="2"/>'
        )
    d.words(44, TOP + HIGH - 8, "any length", pale=True)


def families(d: Drawing) -> None:
    """What a spec names, from left to right."""
    for x, width, name, others, at in (
        (110, 124, "encoders", "or beats, timm, …", 172),
        (260, 94, "fusion", "or sum", 307),
        (380, 242, "projector", "or linear, conv, pool, …", 464),
        (650, 220, "llm", "or any causal LM", 782),
    ):
        d.box(x, TOP, width, HIGH, "room")
        d.words(x + width / 2, TOP + 20, name, 14, bold=True)
        d.words(at, TOP + HIGH - 8, others, pale=True)
    for i, (name, hears) in enumerate((("whisper", "speech"), ("ced", "sounds"), ("mert", "music"))):
        d.box(117, TOP + 32 + 37 * i, 110, 32, "blue")
        d.words(172, TOP + 53 + 37 * i, f"{name}: {hears}")
    d.box(268, TOP + 46, 78, 96, "green", "concat", "side by\nside, on\none clock")
    d.box(388, TOP + 46, 100, 96, "yellow", "window\nQ-Former", "a token for\neach 0.68 s")
    d.box(506, TOP + 46, 108, 96, "yellow", "mixture of\nexperts", "weighed by\nthe prompt")
    d.box(660, TOP + 32, 200, 76, "violet", "Llama 3.1 8B", "frozen, with LoRA")
    for i, cell in enumerate(("prompt", "audio", "answer")):
        d.box(660 + 68 * i, TOP + 116, 64, 26, ("red", "yellow", "violet")[i])
        d.words(692 + 68 * i, TOP + 134, cell)


def losses(d: Drawing) -> None:
    """Above what they read."""
    d.box(380, 8, 490, 68, "room")
    d.words(392, 47, "losses", 14, bold=True, at="start")
    d.box(456, 22, 178, 40, "red", "semantic contrastive")
    d.box(660, 22, 200, 40, "red", "cross entropy")
    d.arrow((564, TOP), (564, 64))
    d.arrow((690, TOP), (690, 90), (600, 90), (600, 64))
    d.arrow((760, TOP), (760, 64))


def prompt(d: Drawing) -> None:
    """Below: it weighs the experts, and is read."""
    d.box(456, 322, 240, 42, "red", "“Transcribe this audio.”")
    d.words(440, 348, "prompt", 14, bold=True, at="end")
    d.arrow((564, 322), (564, TOP + 144))
    d.arrow((690, 322), (690, TOP + 144))


FILES = pictures("model", draw)

if __name__ == "__main__":
    write(FILES)
