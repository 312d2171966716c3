"""What `context: clip` changes: the features of a Whisper that was trained on windows, and its word error rate.

The specialist for speech of the miniature world (`usam/demo/specialists.py`), transcription alone, with fewer clips and
three seeds: trained on windows of 3 s and on the clip alone; and those trained on windows heard once more with the clip
alone. Clips last 0.6 to 3 s. What is reported is the test split, whose voices and sentences training never hears.
"""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch
import yaml
from _record import record

from usam import Audio, UsamForConditionalGeneration, build_encoder
from usam.data.manifest import Manifest, Sample
from usam.data.world import write_world
from usam.demo.specialists import run_of
from usam.generate import Answerer
from usam.metrics import build_metric
from usam.model.checkpoint import processor_beside
from usam.training.run import read_run
from usam.training.start import train

SEEDS = (0, 1, 2)
CLIPS, TEST, EPOCHS = 4000, 200, 4
CONTEXTS = ("window", "clip")
AS = "encoders.whisper.context={}"


def main() -> None:
    """All seeds in turn, each with both contexts."""
    raw: dict[str, Any] = {"seeds": SEEDS}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        world = write_world(folder / "world", train=CLIPS, dev=0, test=TEST, domains=["speech"])
        run_file = folder / "run.yaml"
        run_file.write_text(yaml.safe_dump(run_of("whisper", [world["train"]["asr"]], EPOCHS)))
        for seed in SEEDS:
            for context in CONTEXTS:
                out = folder / f"{context}-{seed}"
                options = ["model." + AS.format(context), f"train.seed={seed}", f"train.output_dir={out}"]
                train(read_run(run_file, *options, "train.disable_tqdm=true"))
                for heard in CONTEXTS if context == "window" else ["clip"]:
                    model = UsamForConditionalGeneration.from_pretrained(out, AS.format(heard))
                    answerer = Answerer(model, processor_beside(out, model.config.parsed))
                    samples = list(Manifest(world["test"]["asr"], answerer.processor.prompts))
                    rates = raw.setdefault(f"trained on {context}, heard as {heard}", [])
                    rates.append(word_error_rate(answerer, samples))
                if context == "window":
                    raw.setdefault("difference", []).append(difference(answerer, samples))
                print(raw, flush=True)
    rows = [
        {
            "what": f"word error rate of the specialist for speech, {name}, mean of {len(SEEDS)} seeds",
            "measured": f"{statistics.mean(found):.1%} ({', '.join(f'{rate:.1%}' for rate in found)})",
            "bound": "-",
            "ok": True,
        }
        for name, found in raw.items()
        if name.startswith("trained")
    ]
    found = statistics.mean(raw["difference"])
    what = "a Whisper trained on windows: root mean square of what `context: clip` changes, over that of the features"
    rows.append({"what": what, "measured": f"{found:.2f}", "bound": "-", "ok": True})
    record(__file__, rows, raw)


def word_error_rate(answerer: Answerer, samples: list[Sample]) -> float:
    """Of the transcripts of a corpus."""
    heard = list(answerer.answer((sample.question for sample in samples), batch_size=50, max_new_tokens=60))
    return build_metric("wer")(heard, [sample.references for sample in samples]).value


@torch.inference_mode()
def difference(answerer: Answerer, samples: list[Sample]) -> float:
    """Between the frames of one encoder's weights in both contexts, over all frames of all clips."""
    trained: Any = answerer.model.model.encoders["whisper"]
    options = trained.config.model_dump(exclude={"context"})
    window, clip = (build_encoder({"type": "whisper", **options, "context": context}).eval() for context in CONTEXTS)
    for encoder in (window, clip):
        encoder.load_state_dict(trained.state_dict())
    ears = answerer.processor.feature_extractor
    changed = whole = 0.0
    for sample in samples:
        heard = ears([sample.messages[0]["content"][0]], return_tensors="pt")
        audio = Audio(heard["input_values"], heard["input_values_mask"].bool(), ears.sampling_rate).at(16000)
        frames = [encoder(audio.x, audio.mask).x for encoder in (window, clip)]
        changed += float((frames[0] - frames[1]).square().sum())
        whole += float(frames[0].square().sum())
    return float((changed / whole) ** 0.5)


if __name__ == "__main__":
    main()
