"""Draws the pictures of docs/concepts/, one a page, each as `<page>-light.svg` and `<page>-dark.svg`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any, cast

from _drawing import Drawing, pictures, write

from usam.spec.spec import Spec, load_spec


def rect(d: Drawing, x: float, y: float, width: float, height: float, colour: str, line: str = "line") -> None:
    """A small cell without words."""
    fill = "none" if colour == "none" else d.colours[colour]
    d.parts.append(
        f'<rect x="{x:.2f}" y="{y:.2f}" width="{width:.2f}" height="{height:.2f}" fill="{fill}" '
        f'stroke="{d.colours[line]}" stroke-width="0.7"/>'
    )


def dashed(d: Drawing, start: tuple[float, float], end: tuple[float, float]) -> None:
    """A line that is no way."""
    (x1, y1), (x2, y2) = start, end
    d.parts.append(
        f'<line x1="{x1:g}" y1="{y1:g}" x2="{x2:g}" y2="{y2:g}" stroke="{d.colours["line"]}" '
        f'stroke-width="1.2" stroke-dasharray="5 4"/>'
    )


def listed(d: Drawing, x: float, y: float, lines: Sequence[str], *, pale: bool = False) -> None:
    """Lines below each other, from the left."""
    for i, line in enumerate(lines):
        d.words(x, y + 20 * i, line, at="start", pale=pale)


def spec(colours: dict[str, str]) -> str:
    """A base and a patch make a tree, whose types the registry knows."""
    d = Drawing(880, 330, colours)
    d.box(10, 30, 250, 112, "room")
    d.words(135, 22, "whisper_ced_mert.yaml, the base", bold=True)
    listed(d, 24, 56, ["encoders: whisper, ced, mert", "projector: one of its own", "llm: transformers, LoRA of rank 8",
                       "prompts: asr, aac, …"])  # fmt: skip
    d.box(10, 190, 250, 112, "room")
    d.words(135, 182, "paper.yaml, the patch", bold=True)
    listed(d, 24, 216, ["fusion: {rate: 25, …}", "projector: [window_qformer, moe]",
                        "losses: {semantic_contrastive: …}", "prompts: {s2tt: …}"])  # fmt: skip
    d.arrow((260, 86), (318, 140))
    d.arrow((260, 246), (318, 192))
    d.words(289, 76, "merged", pale=True)
    d.words(289, 268, "laid over", pale=True)

    d.words(430, 22, "a spec", bold=True)
    d.box(320, 30, 220, 272, "room")
    families = ("encoders", "fusion", "projector", "llm", "losses")
    colour = dict(zip(families, ("blue", "green", "yellow", "violet", "red"), strict=True))
    named = ("whisper, ced, mert", "concat", "window_qformer, moe", "transformers", "two, with weights")
    for i, (family, names) in enumerate(zip(families, named, strict=True)):
        d.box(332, 40 + 51 * i, 196, 44, colour[family], family, names)

    d.words(708, 22, "the registry", bold=True)
    d.box(560, 30, 310, 272, "room")
    offers = (
        "files of usam/encoders/",
        "files of usam/fusions/",
        "packages: entry points",
        "your file: @register(“…”)",
    )
    for i, offer in enumerate(offers):
        d.box(716, 44 + 62 * i, 142, 46, "room", "", offer.replace(" usam/", "\nusam/")
              .replace(": ", ":\n"))  # fmt: skip
        d.arrow((716, 67 + 62 * i), (676, 150 + 8 * i))
    d.box(574, 134, 100, 64, "blue", "name", "to a class and\nits Config")
    d.arrow((540, 166), (572, 166))
    return d.svg("A base and a patch are merged into a spec; each type in it is a name of the registry")


SECONDS = 2
LEFT, WIDE = 170, 690


def time(colours: dict[str, str]) -> str:
    """Two seconds as samples, as frames of each encoder, on one clock, and as tokens."""
    paper = load_spec("paper")
    d = Drawing(880, 342, colours)
    samples = SECONDS * paper.sample_rate
    for i in range(0, WIDE, 4):
        loud = 3 + 15 * abs(math.sin(0.043 * i) * math.cos(0.017 * i + 0.4))
        d.parts.append(
            f'<line x1="{LEFT + i}" y1="{34 - loud:.1f}" x2="{LEFT + i}" y2="{34 + loud:.1f}" '
            f'stroke="{d.colours["line"]}" stroke-width="2"/>'
        )
    d.words(160, 32, f"{SECONDS} seconds", bold=True, at="end")
    d.words(160, 49, f"{samples:,} samples", pale=True, at="end")
    rows = [*streams(paper, samples), *fused(paper, samples)]
    for i, (name, frames, rate, colour) in enumerate(rows):
        y = 76 + 50 * i
        width = WIDE / (SECONDS * rate)
        for frame in range(frames):
            left = LEFT + frame * width
            rect(d, left, y, min(width, LEFT + WIDE + 15 - left), 28, colour)
        d.words(160, y + 12, name, bold=True, at="end")
        d.words(160, y + 28, f"{rate:.4g}/s: {frames}", pale=True, at="end")
    dashed(d, (LEFT + WIDE, 8), (LEFT + WIDE, 330))
    return d.svg("Two seconds as samples, as frames of three encoders, as frames on one clock, and as three tokens")


def streams(paper: Spec, samples: int) -> list[tuple[str, int, float, str]]:
    """Each encoder's frames: name, number, rate, colour."""
    found = []
    for name, config in sorted(paper.encoders.items()):
        encoder = cast("Any", config)
        heard = int(samples * Fraction(encoder.sample_rate, paper.sample_rate))
        found.append((name, int(encoder.length(heard)), float(encoder.rate), "blue"))
    return found


def fused(paper: Spec, samples: int) -> list[tuple[str, int, float, str]]:
    """The frames on one clock, and the tokens."""
    frames, rate = paper.fused_length(samples)
    tokens, slow = paper.audio_length(samples)
    return [("fusion", int(frames), rate, "green"), ("tokens", int(tokens), slow, "yellow")]


GATES = (0.7, 0.2, 0.1)


def mixture(colours: dict[str, str]) -> str:
    """The prompt's mean gives gates; the experts' outputs are added by them."""
    d = Drawing(880, 330, colours)
    d.box(10, 40, 190, 44, "red", "“Transcribe this audio.”")
    d.words(105, 30, "the instruction", pale=True)
    d.box(240, 32, 130, 60, "room", "mean", "of its embeddings,\nlayer norm")
    d.box(410, 32, 110, 60, "green", "router", "one hidden layer")
    d.box(560, 32, 120, 60, "room", "gates", "softmax, sum 1")
    for start, end in ((200, 238), (370, 408), (520, 558)):
        d.arrow((start, 62), (end, 62))
    d.words(70, 190, "frames of the clip", pale=True)
    for i in range(6):
        rect(d, 20 + 17 * i, 200, 13, 44, "blue")
        rect(d, 784 + 15 * i, 200, 12, 44, "yellow")
    for i, gate in enumerate(GATES):
        y = 130 + 68 * i
        d.box(300, y, 150, 52, "yellow", f"expert {i}", "two linear layers")
        d.arrow((126, 222), (200, 222), (200, y + 26), (298, y + 26))
        d.arrow((450, y + 26), (530, y + 26))
        rect(d, 536, y + 12, 130, 28, "none")
        rect(d, 536, y + 12, 130 * gate, 28, "green")
        d.words(601, y + 31, f"times {gate}", bold=True)
        d.arrow((666, y + 26), (700, y + 26), (700, 222), (718, 222)) if i != 1 else d.arrow((666, 222), (718, 222))
    d.arrow((620, 92), (620, 140))
    d.box(720, 200, 40, 44, "green", "+")
    d.arrow((760, 222), (782, 222))
    d.words(826, 190, "as many frames", pale=True)
    d.words(826, 266, "of the language", pale=True)
    d.words(826, 283, "model’s width", pale=True)
    return d.svg("The instruction gives one gate an expert; every frame passes all experts, added by their gates")


SCORES = (0.22, 0.35, 0.71, 0.83, 0.64, 0.4, 0.18, 0.12, 0.57, 0.78, 0.44, 0.2)


def contrast(colours: dict[str, str]) -> str:
    """Scores of frames, those that are kept, slots, and the own answer beside another's."""
    d = Drawing(880, 340, colours)
    step, base = 28, 150
    d.words(20, 28, "score of each frame: half predicted, half relevance", bold=True, at="start")
    for i, score in enumerate(SCORES):
        x = 20 + step * i
        rect(d, x, base - 100 * score, 22, 100 * score, "green" if score > 0.5 else "room")
        rect(d, x, 184, 22, 34, "green" if score > 0.5 else "room")
    dashed(d, (14, base - 50), (20 + step * len(SCORES), base - 50))
    d.words(24 + step * len(SCORES), base - 46, "threshold", pale=True, at="start")
    d.words(20, 174, "frames of the clip, after the projectors", bold=True, at="start")
    for i in [i for i, score in enumerate(SCORES) if score > 0.5]:
        d.arrow((31 + step * i, 220), (31 + step * i, 246), (430, 246), (430, 206))
    d.words(190, 268, "kept: their gradient passes straight through to the scores", pale=True)
    d.box(376, 128, 108, 74, "yellow", "slots", "each a mean\nof kept frames")
    d.box(600, 60, 250, 56, "violet", "“seven three”", "tokens of the own answer")
    d.box(600, 214, 250, 56, "red", "“a dog barks twice”", "tokens of another sample’s answer")
    d.arrow((484, 150), (530, 150), (530, 88), (598, 88))
    d.arrow((484, 180), (530, 180), (530, 242), (598, 242))
    d.words(725, 48, "near: the distance to the own answer", pale=True)
    d.words(725, 292, "far: the distance to another’s", pale=True)
    d.words(725, 168, "cost: max(0, margin + near − far)", bold=True)
    d.words(440, 326, "none of this is needed to generate", pale=True)
    return d.svg("Frames with high scores are gathered into slots, which shall be nearer to the own answer")


def masks(colours: dict[str, str]) -> str:
    """Three clips in a batch, as samples, frames and tokens; and their placeholders in the text."""
    d = Drawing(880, 356, colours)
    for column, (name, count, cell, lengths) in enumerate((
        ("samples", 20, 11.0, (20, 14, 5)),
        ("frames", 10, 22.0, (10, 7, 3)),
        ("tokens", 4, 55.0, (4, 3, 1)),
    )):  # fmt: skip
        left = 110 + 258 * column
        d.words(left + 110, 22, name, 14, bold=True)
        for row, own in enumerate(lengths):
            for i in range(count):
                real = i < own
                colour = ("blue", "green", "yellow")[column] if real else "none"
                rect(d, left + cell * i, 36 + 42 * row, cell - 2, 30, colour)
        if column:
            d.arrow((left - 34, 93), (left - 6, 93))
    for row in range(3):
        d.words(98, 56 + 42 * row, f"clip {row + 1}", at="end")
    d.words(
        440,
        180,
        "the mask is True on a clip’s own cells, which come first; what stands behind them changes nothing",
        pale=True,
    )
    d.words(20, 218, "the text of clip 2’s sample, to the language model", bold=True, at="start")
    words = ["Transcribe", "this", "audio.", "audio", "audio", "audio", "---", "seven", "three", "end"]
    for i, word in enumerate(words):
        colour = "yellow" if word == "audio" else "violet" if i > 6 else "red"
        d.box(20 + 84 * i, 230, 78, 34, colour, "", word)
    for i in range(3):
        d.arrow((311 + 84 * i, 292), (311 + 84 * i, 266))
    d.words(395, 310, "the k-th token of the clip at the k-th placeholder", pale=True)
    d.words(734, 290, "supervised: the answer", pale=True)
    d.words(140, 290, "the prompt, which the router reads", pale=True)
    d.words(
        440,
        344,
        "Placeholders are counted by the configs, masks are made by the modules: one arithmetic, in whole numbers",
        pale=True,
    )
    return d.svg(
        "Three clips as samples, frames and tokens, each with its own first; tokens stand at placeholders of the text"
    )


def checkpoints(colours: dict[str, str]) -> str:
    """Sources and a delta make a model; training gives a delta; export gives one folder."""
    d = Drawing(880, 330, colours)
    d.words(110, 22, "sources, by hash", bold=True)
    for i, (name, more) in enumerate((
        ("encoders", "openai/whisper-large-v2 …"), ("language model", "Qwen/Qwen3-0.6B"), ("none", "new parts: a seed"),
    )):  # fmt: skip
        d.box(10, 34 + 62 * i, 200, 50, ("blue", "violet", "room")[i], name, more)
        d.arrow((210, 59 + 62 * i), (288, 112 + 9 * i))
    d.words(250, 56, "pretrained()", pale=True)
    d.words(390, 22, "a model", bold=True)
    d.box(290, 34, 200, 174, "room")
    d.box(302, 46, 176, 44, "blue", "frozen", "as the sources have it")
    d.box(302, 98, 176, 44, "yellow", "trains", "projectors, LoRA, …")
    d.box(302, 150, 176, 44, "green", "in no source", "statistics, new parts")
    d.arrow((490, 121), (588, 121))
    d.words(540, 112, "save", pale=True)
    d.words(730, 22, "the folder", bold=True)
    d.box(590, 34, 280, 174, "room")
    d.box(602, 46, 256, 44, "yellow", "the delta", "what trains, and what no source has")
    d.box(602, 98, 256, 44, "room", "config.json, usam.yaml", "the spec, sources and their hashes")
    d.box(602, 150, 256, 44, "room", "processor", "tokenizer, chat template")
    d.arrow((730, 208), (730, 250), (390, 250), (390, 212))
    d.words(560, 242, "from_pretrained: sources, with the delta on top", pale=True)
    d.box(10, 268, 860, 48, "green", "usam export", "LoRA merged, all weights in one folder that needs no source")
    d.arrow((310, 208), (310, 266))
    return d.svg(
        "A model takes weights from sources; a delta is saved with their hashes; export writes all in one folder"
    )


def data(colours: dict[str, str]) -> str:
    """From a manifest to the Trainer, and what each step says or keeps."""
    d = Drawing(880, 300, colours)
    stops = (
        ("manifest", "rows in files,\nany format", "room"),
        ("reader", "each row a\nchecked Sample", "green"),
        ("sampler", "which rows make\na batch", "yellow"),
        ("collation", "clips decoded,\nchats rendered", "blue"),
        ("model", "frames, tokens,\nlosses", "violet"),
        ("Trainer", "steps, logs,\ncheckpoints", "red"),
    )
    for i, (name, more, colour) in enumerate(stops):
        d.box(10 + 147 * i, 96, 125, 84, colour, name, more)
        if i:
            d.arrow((10 + 147 * i - 22, 138), (10 + 147 * i - 2, 138))
    above = (
        (219, "a wrong row stops\nthe start, with its line"),
        (366, "shares, a budget;\nthe seed gives the order"),
        (525, "augmentations,\nin training only"),
    )
    for x, text in above:
        for i, line in enumerate(text.splitlines()):
            d.words(x, 44 + 17 * i, line, pale=True)
        d.arrow((x, 68), (x, 94))
    d.box(560, 226, 200, 58, "room", "cache", "frames of frozen encoders")
    d.arrow((640, 226), (640, 182))
    d.arrow((682, 182), (682, 224))
    d.words(550, 250, "by the hash of", at="end", pale=True)
    d.words(550, 267, "encoder and samples", at="end", pale=True)
    d.box(157, 226, 125, 58, "room", "index", "24 bytes a row")
    d.arrow((219, 226), (219, 182))
    return d.svg(
        "Rows of a manifest become samples, batches, tensors and steps; frames of frozen encoders are kept in a cache"
    )


DRAWN = (spec, time, mixture, contrast, masks, checkpoints, data)
FILES = {file: text for draw in DRAWN for file, text in pictures(f"concepts/{draw.__name__}", draw).items()}

if __name__ == "__main__":
    write(FILES)
