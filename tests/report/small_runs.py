"""Folders of runs, records and ablations, written by hand in their real formats; and a page's parts."""

import json
from html.parser import HTMLParser

from usam.evaluation.record import Record
from usam.metrics import build_metric

VOID = {"meta", "link", "br", "img", "hr", "input"}
LOG = [
    {"step": 10, "epoch": 0.5, "loss": 4.0, "loss_cross_entropy": 6.0, "loss_semantic_contrastive": 2.0,
     "loss_cross_entropy/asr": 5.0, "loss_cross_entropy/aac": 7.0,
     "router/asr/expert0": 0.5, "router/asr/expert1": 0.5, "router/asr/entropy": 0.69,
     "router/aac/expert0": 0.4, "router/aac/expert1": 0.6, "router/aac/entropy": 0.67},
    {"step": 10, "epoch": 0.5, "eval_loss": 4.5, "eval_loss_cross_entropy": 7.0, "eval_loss_aac": 4.0,
     "eval_loss_asr": 5.0, "eval_loss_shuffled_audio": 4.5, "eval_wer": 1.0, "eval_wer_asr": 0.9, "eval_wer_aac": 1.1},
    {"step": 10, "eval_wer_id": "wer|usam 0"},
    {"step": 20, "epoch": 1.0, "loss": 1.5, "loss_cross_entropy": 2.0, "loss_semantic_contrastive": 1.0,
     "loss_cross_entropy/asr": 1.0, "loss_cross_entropy/aac": 3.0,
     "router/asr/expert0": 0.8, "router/asr/expert1": 0.2, "router/asr/entropy": 0.5,
     "router/aac/expert0": 0.09, "router/aac/expert1": 0.91, "router/aac/entropy": 0.3},
    {"step": 20, "epoch": 1.0, "eval_loss": 2.0, "eval_loss_cross_entropy": 3.0, "eval_loss_aac": 2.5,
     "eval_loss_asr": 1.5, "eval_loss_shuffled_audio": 3.0, "eval_wer": 0.5, "eval_wer_asr": 0.2, "eval_wer_aac": 0.8},
    {"step": 20, "epoch": 1.0, "train_loss": 2.0, "train_runtime": 12.0},
]  # fmt: skip


def write_log(folder, log=LOG, steps=20, planned=20):
    folder.mkdir(parents=True, exist_ok=True)
    state = {"global_step": steps, "max_steps": planned, "log_history": log}
    (folder / "trainer_state.json").write_text(json.dumps(state))
    return folder


def write_record(folder, answers, metric="wer"):
    """A record of (task, prediction, reference)."""
    lines = [
        {"id": i, "row": f"t.jsonl:{i}", "task": task, "prompt": "", "prediction": said, "complete": True, "tokens": 1,
         "references": [right]}
        for i, (task, said, right) in enumerate(answers)
    ]  # fmt: skip
    asked = {"decoding": {"max_new_tokens": 8}}
    about = {
        "format": 1,
        "asked": asked,
        "answered": len(lines),
        "cut_off": 0,
        "skipped": [],
        "data": [],
        "metrics": {},
    }
    about["metrics"] = {}
    return Record(about, lines).scored({metric: build_metric(metric)}, draws=100).write(folder)


def write_table(folder, value=0.25):
    """An ablation of two variations, as `usam ablate` writes it."""
    apart = {"value": value - 0.5, "low": -0.4, "high": -0.1, "p": 0.01, "exact": True, "seeds": 2, "samples": 8}
    scores = [
        {"value": 0.5, "low": 0.4, "high": 0.6, "by_seed": {"0": 0.4, "1": 0.6}, "samples": 8, "difference": None},
        {"value": value, "low": 0.1, "high": 0.3, "by_seed": {"0": 0.2, "1": 0.3}, "samples": 8, "difference": apart},
    ]
    rows = [
        {"name": name, "overrides": [], "seeds": [0, 1], "faults": faults, "scores": {"wer": score}, "parameters": 10,
         "trainable": 10, "tokens": 5.0, "seconds": 3.0}
        for name, score, faults in zip(("base", "mlp"), scores, ({}, {"2": "failed: no room"}), strict=True)
    ]  # fmt: skip
    table = {
        "file": "grid.yaml", "against": "base", "budget": "4 steps", "seeds": [0, 1],
        "columns": [{"metric": "wer", "task": None, "higher_is_better": False}], "rows": rows, "notes": [],
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "table.json").write_text(json.dumps(table))
    return folder


class Page(HTMLParser):
    """A page taken apart; every tag must be closed, every id be the only one, and nothing come from elsewhere."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open, self.ids, self.names, self.drawings, self.links, self.words = [], [], [], {}, [], []
        self.feed(text)
        self.close()
        assert self.open == []
        assert len(self.ids) == len(set(self.ids))
        assert {link[1:] for link in self.links if link.startswith("#")} <= set(self.ids)
        assert [link for link in self.links if not link.startswith(("#", "data:"))] == []
        assert "script" not in self.names
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        found = dict(attrs)
        self.names.append(tag)
        self.ids += [found["id"]] if "id" in found else []
        self.links += [found[key] for key in ("src", "href", "xlink:href") if key in found]
        if tag == "section":
            self.section = found["id"]
        if tag == "svg":
            self.drawings.setdefault(self.section, []).append(found["aria-label"])

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.words.append(data)
