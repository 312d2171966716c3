"""Corpora of what was fetched, as manifests of usam with disjoint parts: sound events, music, and spoken words."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import soundfile
from tqdm import tqdm

from usam.saving import whole
from usam_real import scenes, speech, tunes
from usam_real._needs import require

SIZES = {"train": 500, "dev": 40, "test": 50}
KINDS = ("events", "music", "words", "speech")
TASKS = {"events": "sounds", "music": "music", "words": "asr"}
# What a kind is made with beside what this package requires: by the module, what pip is to be told.
NEEDS: dict[str, dict[str, str]] = {
    "music": {"tinysoundfont": "--no-deps tinysoundfont"},  # its requirement is for playing aloud
    "speech": {"piper": "piper-tts", "onnxruntime": "piper-tts", "espeakng_loader": "espeakng-loader"},
}
# Where the name of a file is not the word that is said in it.
SAID = {"fallingstar": "falling star", "palmtree": "palm tree", "broccolli": "broccoli", "ufo": "UFO"}


def write(fetched: Path, folder: Path, kinds: Iterable[str] = KINDS, *, size: float = 1.0, seed: int = 0) -> None:
    """Write corpora, unless they are there: `KIND/train.jsonl`, `dev.jsonl`, `test.jsonl` and their clips.

    Rows have `audio`, `task`, `answer`, `id` and `x_licence`. Events share no recording between the parts, melodies no
    key, words no word; of `speech` see `write_speech`.

    Args:
        fetched: what `fetch` filled.
        folder: where to.
        kinds: which of `KINDS`.
        size: how many clips, as a share of `SIZES`; words are as many as there are.
        seed: another one draws others.

    Raises:
        FileNotFoundError: something was not fetched.
        ImportError: a package is missing; says which, before anything is made.
    """
    kinds = list(kinds)
    require(needed(folder, kinds, size=size, seed=seed), "corpora")
    for kind in kinds:
        place, recipe = folder / kind, recipe_of(kind, size, seed)
        if _made(place) == recipe:
            print(f"{place}: there already", flush=True)
            continue
        if kind == "speech":
            speech.write_speech(fetched, place, size=size, seed=seed)
            continue
        with whole(place, replaces=["*"]) as new:
            for part, count in SIZES.items():
                number = max(1, round(size * count))
                rows = (
                    _words(fetched, part, seed) if kind == "words" else _drawn(kind, fetched, new, part, number, seed)
                )
                lines = [json.dumps({**row, "task": TASKS[kind], "id": f"{kind}-{part}-{i:05d}"}) for i, row in rows]
                (new / f"{part}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
            (new / "recipe.json").write_text(json.dumps(recipe) + "\n", encoding="utf-8")


def needed(folder: Path, kinds: Iterable[str] = KINDS, *, size: float = 1.0, seed: int = 0) -> dict[str, str]:
    """What `write` needs for the kinds that are not there yet: by the module, what pip is to be told."""
    missing = [kind for kind in kinds if _made(folder / kind) != recipe_of(kind, size, seed)]
    return {module: asked for kind in missing for module, asked in NEEDS.get(kind, {}).items()}


def recipe_of(kind: str, size: float, seed: int) -> dict[str, Any]:
    """What a kind is made by: what was made by another recipe is made anew."""
    return speech.recipe_of(size, seed) if kind == "speech" else {"size": size, "seed": seed, "clips": SIZES}


def _made(place: Path) -> Any:
    try:
        return json.loads((place / "recipe.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _drawn(kind: str, fetched: Path, new: Path, part: str, count: int, seed: int) -> list[tuple[int, dict[str, Any]]]:
    """Clips of one part, written beside the manifest."""
    if kind == "events":
        source = _there(fetched / "sounds/sonic-pi")
        drawn = scenes.scenes(scenes.recordings(source, seed)[part], count, f"{seed}:{part}")
        rate, licence = scenes.RATE, "CC0-1.0"
    else:
        font = _there(fetched / "sounds/soundfont/TimGM6mb.sf2")
        drawn, rate, licence = tunes.tunes(font, part, count, f"{seed}:{part}"), tunes.RATE, "GPL-2.0-only"
    (new / part).mkdir()
    rows = []
    for i, (wave, answer) in enumerate(tqdm(drawn, f"{kind}, {part}", count, disable=None), start=1):
        audio = f"{part}/{i:05d}.flac"
        soundfile.write(new / audio, wave.clip(-1, 1), rate, subtype="PCM_16")
        rows.append((i, {"audio": audio, "answer": answer, "x_licence": licence}))
    return rows


def _words(fetched: Path, part: str, seed: int) -> list[tuple[int, dict[str, Any]]]:
    """The words that people said for KDE, where they lie; dev and test have a fifth of the words each."""
    source = _there(fetched / "sounds/ktuberling").resolve()
    said = [(file, file.stem.rpartition("_")[2]) for file in sorted(source.glob("*.ogg"))]
    words = sorted({word for _, word in said})
    random.Random(f"{seed}:words").shuffle(words)
    held_out = len(words) // 5
    own = {"test": words[:held_out], "dev": words[held_out : 2 * held_out], "train": words[2 * held_out :]}[part]
    rows = [{"audio": str(file), "answer": SAID.get(word, word)} for file, word in said if word in own]
    return list(enumerate([{**row, "x_licence": "GPL-2.0-or-later"} for row in rows], start=1))


def _there(place: Path) -> Path:
    if not place.exists():
        raise FileNotFoundError(f"{place} is not there; run `python -m usam_real fetch` first")
    return place
