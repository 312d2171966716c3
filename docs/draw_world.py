"""Draws docs/world.png: the spectrogram of each thing and each instrument of the miniature world."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from usam.data.world import music, sounds
from usam.data.world.draw import SAMPLE_RATE, Draw, Wave
from usam.data.world.synthesis import placed

COLUMNS = 6
SECONDS = {"things": 1.4, "instruments": 2.9}


def spectrogram(wave: Wave, window: int = 512, hop: int = 80) -> Wave:
    """Decibels below the loudest, frequencies by frames."""
    padded = np.pad(wave, window // 2)
    frames = np.lib.stride_tricks.sliding_window_view(padded, window)[::hop] * np.hanning(window)
    power = np.abs(np.fft.rfft(frames)).T ** 2
    return np.asarray(10 * np.log10(power / power.max() + 1e-9))


def clips() -> Iterator[tuple[str, Wave]]:
    """What is drawn, with its name above it."""
    for name, thing in sounds.THINGS.items():
        stroke = thing.sound(Draw("train", "picture", name))
        strokes = [(0.05, stroke), (0.5, stroke)] if thing.counted else [(0.05, stroke)]
        yield f"{thing.who} {thing.does}", placed(strokes, SECONDS["things"])
    for name in music.INSTRUMENTS:
        played = next(one for one in music.combinations("train") if one[0] == name)
        wave, _ = music.play(Draw("train", "picture", name), played)
        yield music.captions(played)[0], wave


def main() -> None:
    """Write the picture beside this script."""
    shown = list(clips())
    rows = -(-len(shown) // COLUMNS)
    figure, axes = plt.subplots(rows, COLUMNS, figsize=(2.5 * COLUMNS, 1.9 * rows), sharey=True, layout="constrained")
    for place, panel in enumerate(axes.flat):
        if place >= len(shown):
            panel.axis("off")
            continue
        title, wave = shown[place]
        extent = (0, len(wave) / SAMPLE_RATE, 0, SAMPLE_RATE / 2000)
        panel.imshow(spectrogram(wave), origin="lower", aspect="auto", extent=extent, vmin=-60, vmax=0, cmap="gray_r")
        panel.set_title(title, fontsize=9)
        panel.tick_params(labelsize=7)
    figure.supxlabel("seconds", fontsize=9)
    figure.supylabel("kHz", fontsize=9)
    figure.savefig(Path(__file__).with_name("world.png"), dpi=75, metadata={"Software": None})


if __name__ == "__main__":
    main()
