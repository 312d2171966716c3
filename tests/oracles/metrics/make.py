"""Writes captions.json: captions, references, and what pycocoevalcap, rouge-score and scikit-learn say of them.

In an environment of its own, with Java 8 or later on PATH:
pip install rouge-score==0.1.2 pycocoevalcap==1.2 scikit-learn && python tests/oracles/metrics/make.py
"""

import contextlib
import io
import json
from importlib.metadata import version
from pathlib import Path

from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.meteor.meteor import Meteor
from pycocoevalcap.rouge.rouge import Rouge
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer
from rouge_score.rouge_scorer import RougeScorer
from sklearn.metrics import average_precision_score, f1_score

SAMPLES = [
    ("A dog barks twice, and then a door is shut.", ["A dog barks and a door is shut", "Two barks, and then a door."]),
    ("The rain falls on a tin roof", ["the rain falls on a tin roof"]),
    ("Six birds", ["Sixteen birds sing in the trees at dawn", "Six birds sing at dawn", "birds at dawn"]),
    ("Somebody isn't speaking; the dog's bark can't be heard!", ["Somebody speaks (a man), and a dog can't be heard"]),
    ("a lo-fi beat at 90.5 bpm with vinyl crackle", ["A lo-fi hip-hop beat, 90.5 bpm, with crackling vinyl...",
                                                     "A \"dusty\" beat with vinyl noise"]),
    ("water runs into a sink while a woman says \"hello\"", ["Water is running into a sink while a woman talks"]),
    ("a a a a a a", ["a siren wails and a car passes", "a siren"]),
    ("", ["a car honks"]),
    ("an engine idles and then and then and then revs up", ["An engine idles, then revs up", "The engine revs"]),
    ("nothing like it at all", ["glass breaks"]),
]  # fmt: skip
TEXTS = Path(__file__).with_name("texts.txt").read_text(encoding="utf-8").splitlines()
LABELS = ["speech", "music", "sound", "silence"]
SAID = ["speech", "music", "music", "sound", "speech", "noise", "sound"]
RIGHT = ["speech", "speech", "music", "sound", "sound", "speech", "sound"]
RANKED = [
    ("dog, rain, speech, car", "rain, car"),
    ("car, dog, rain, speech", "car"),
    ("speech, dog, car, rain", "rain"),
]


def captions(texts):
    return {i: [{"caption": text} for text in own] for i, own in enumerate(texts)}


def main():
    said = PTBTokenizer().tokenize(captions([[answer] for answer, _ in SAMPLES]))
    right = PTBTokenizer().tokenize(captions([references for _, references in SAMPLES]))
    found = {}
    with contextlib.redirect_stdout(io.StringIO()):
        values, each = Bleu(4).compute_score(right, said)
    for n in range(4):
        found[f"coco_bleu {n + 1}"] = {"value": values[n], "each": each[n]}
    for name, scorer in {"cider_d": Cider(), "coco_rouge_l": Rouge(), "meteor": Meteor()}.items():
        value, each = scorer.compute_score(right, said)
        found[name] = {"value": float(value), "each": [float(score) for score in each]}
    rouge = RougeScorer(["rougeL"])
    each = [rouge.score_multi(references, answer)["rougeL"].fmeasure for answer, references in SAMPLES]
    found["rouge_l"] = {"value": sum(each) / len(each), "each": each}
    for average in ("macro", "weighted"):
        found[f"f1 {average}"] = f1_score(RIGHT, SAID, labels=LABELS, average=average, zero_division=float("nan"))
    names = sorted({name for answer, _ in RANKED for name in answer.split(", ")})
    precisions = []
    for answer, references in RANKED:
        ranking = answer.split(", ")
        precisions.append(
            average_precision_score([n in references.split(", ") for n in names], [-ranking.index(n) for n in names])
        )
    words = PTBTokenizer().tokenize(captions([[text] for text in TEXTS]))
    made = {
        "packages": {name: version(name) for name in ("pycocoevalcap", "rouge-score", "scikit-learn")},
        "samples": SAMPLES,
        "scores": found,
        "labels": {"labels": LABELS, "said": SAID, "right": RIGHT},
        "ranked": {"samples": RANKED, "each": precisions},
        "words": [[text, words[i][0].split()] for i, text in enumerate(TEXTS)],
    }
    file = Path(__file__).with_name("captions.json")
    file.write_text(json.dumps(made, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
