"""What each part of the paper's model is worth, in miniature: eight models, the same steps, one table.

python examples/ablation.py --steps 300 --seeds 2
"""

import argparse
import time
from itertools import chain, islice, repeat
from statistics import mean

import torch
from torch.utils.data import DataLoader

from usam import UsamProcessor, build_model
from usam.data.collate import Collator
from usam.data.manifest import Manifest
from usam.data.spoken import write_corpus
from usam.training.trainer import trainable

ABLATIONS = {
    "paper": [],
    "w/o Whisper": ["encoders.whisper=null"],
    "w/o CED": ["encoders.ced=null"],
    "w/o MERT": ["encoders.mert=null"],
    "w/o TAPM": ["projector.1.type=linear"],
    "w/o SACLM": ["losses.semantic_contrastive=null"],
    "w/o TAPM and SACLM": ["projector.1.type=linear", "losses.semantic_contrastive=null"],
    "2 of 8 experts": ["projector.1.experts=8", "projector.1.top_k=2", "losses.load_balance.weight=0.01"],
}
NOTES = """
unseen: cross entropy of the answers to clips of unseen sentences after {steps} steps: mean over {seeds} seeds (lowest
to highest). difference: to the first row, seed by seed.
They can tell what a part does to this miniature. Rows of a seed see the same batches in the same order and start from
equal weights wherever they have the same modules, so that what differs by chance is what is ablated alone.
They cannot tell what a part does to the paper's model, which has pretrained encoders, a large language model, and
other data; nor what comes after more steps, for smaller models are often ahead early. A range of {seeds} seeds
is no confidence interval: a difference whose range holds 0 shows nothing, and another may still be luck."""


def batches(data, collate, seed, steps):
    """What a seed shows every model: shuffled anew in each epoch, read when it is needed, and not kept."""
    order = torch.Generator().manual_seed(seed)
    epoch = DataLoader(data, batch_size=16, shuffle=True, collate_fn=collate, generator=order)
    return islice(chain.from_iterable(repeat(epoch)), steps)


def run(changes, seed, files, steps):
    """(parameters that train, cross entropy on unseen sentences) of one model, trained."""
    model = build_model("mini_paper", *changes, seed=seed).train()
    spec = model.config.parsed
    collate = Collator(UsamProcessor.from_spec(spec))
    train, test = (Manifest(files[part], spec.prompts) for part in ("train", "unseen_sentences"))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.98))
    torch.manual_seed(seed)
    for batch in batches(train, collate, seed, steps):
        optimizer.zero_grad()
        model(**batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    with torch.no_grad():
        unseen = model.eval()(**collate([test[i] for i in range(len(test))])).losses["cross_entropy"]
    return trainable(model), float(unseen)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", default="runs/ablation", help="where the spoken corpus goes")
    parser.add_argument("--clips", type=int, default=1000, help="to train on")
    parser.add_argument("--test", type=int, default=100, help="clips of unseen sentences")
    parser.add_argument("--steps", type=int, default=300, help="of 16 clips each")
    parser.add_argument("--seeds", type=int, default=2, help="runs of each model")
    options = parser.parse_args()
    files = write_corpus(options.folder, train=options.clips, test=options.test)
    print(f"{'':20} {'trainable':>10}  {'unseen':24}  {'difference':27}  {'seconds':>7}")
    base = None
    for name, changes in ABLATIONS.items():
        start = time.perf_counter()
        counts, unseen = zip(*(run(changes, seed, files, options.steps) for seed in range(options.seeds)), strict=True)
        row = f"{mean(unseen):7.3f} ({min(unseen):.3f} to {max(unseen):.3f})"
        apart = [here - there for here, there in zip(unseen, base or unseen, strict=True)]
        difference = f"{mean(apart):+7.3f} ({min(apart):+.3f} to {max(apart):+.3f})" if base else ""
        base = base or unseen
        seconds = time.perf_counter() - start
        print(f"{name:20} {counts[0]:>10,}  {row:24}  {difference:27}  {seconds:7.1f}", flush=True)
    print(NOTES.format(**vars(options)))
