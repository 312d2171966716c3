"""Draws docs/house-light.svg and docs/house-dark.svg: the rooms of usam/, and which may import which."""

from __future__ import annotations

from _drawing import Drawing, pictures, write

TITLE = "The rooms of usam from bottom to top; a room imports those on the floors below it"

# From bottom to top, as tests/test_imports.py has them; a name without a slash is a file.
FLOORS = [
    ("room", {"versions/": "what was tested, what differs, how usam is found"}),
    ("room", {"registry/": "names, classes", "types": "what flows", "clock": "time", "saving": "whole, or not"}),
    ("green", {"spec/": "a page of YAML, read, merged, checked"}),
    (
        "green",
        {
            "component": "options and adapters",
            "weights": "files and hashes",
            "parts": "of saved models",
            "kernels/": "mixture of experts",
        },
    ),
    ("blue", {f"{name}/": "" for name in ("encoders", "fusions", "projectors", "losses", "llm")}),
    ("yellow", {"providers": "whose components they are", "config": "the spec as a transformers config"}),
    ("yellow", {"processor/": "chats and sound in, tensors out"}),
    (
        "violet",
        {
            "readers/": "formats of manifests",
            "augmentations/": "other sounds of a clip",
            "metrics/": "how good answers are",
        },
    ),
    ("violet", {"suites/": "benchmarks: their files, what they ask, how they score"}),
    ("yellow", {"model/": "the composite: built, saved, generating"}),
    ("violet", {"data/": "manifests, collation, the spoken corpus"}),
    ("violet", {"generate/": "questions in, answers out"}),
    ("violet", {"training/": "run files and the Trainer"}),
    ("violet", {"evaluation/": "answers to whole files, and how sure their scores are"}),
    ("violet", {"report/": "runs as one page of pictures"}),
    ("violet", {"serving/": "a page and an API for other people"}),
    ("violet", {"demo/": "the main job in miniature"}),
    (
        "red",
        {
            "harnesses/": "for others' boards",
            "testing/": "what components promise",
            "pytest/": "is it kept?",
            "cli/": "one file a command",
        },
    ),
]
BESIDE = {1: "the ground", 4: "families: a file, a component", 9: "a transformers model", 17: "whoever uses it"}
WIDE, HIGH, GAP, LEFT = 640, 40, 14, 20


def draw(colours: dict[str, str]) -> str:
    """The picture in one palette."""
    step = HIGH + GAP
    d = Drawing(880, len(FLOORS) * step + 12, colours)
    for floor, (colour, rooms) in enumerate(FLOORS):
        y = d.height - 6 - HIGH - floor * step
        width = (WIDE - GAP * (len(rooms) - 1)) / len(rooms)
        for i, (name, what) in enumerate(rooms.items()):
            d.box(LEFT + i * (width + GAP), y, width, HIGH, colour, name, what)
        if floor:
            d.arrow((LEFT + WIDE / 2, y + HIGH), (LEFT + WIDE / 2, y + step - 1))
        if floor in BESIDE:
            d.words(LEFT + WIDE + 16, y + HIGH / 2 + 5, BESIDE[floor], pale=True, at="start")
    return d.svg(TITLE)


FILES = pictures("house", draw)

if __name__ == "__main__":
    write(FILES)
