"""What each part of the paper's model is worth, in miniature: seven models, the same steps, one table.

python examples/ablation.py --steps 300
"""

import argparse
import time
from itertools import cycle, islice

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
}

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--folder", default="runs/ablation", help="where the spoken corpus goes")
parser.add_argument("--clips", type=int, default=1000, help="to train on")
parser.add_argument("--test", type=int, default=100, help="clips of unseen sentences")
parser.add_argument("--steps", type=int, default=300, help="of 16 clips each")
options = parser.parse_args()

files = write_corpus(options.folder, train=options.clips, test=options.test)
print(f"{'':20} {'trainable':>10} {'loss':>7} {'unseen':>7} {'seconds':>8}")
for name, changes in ABLATIONS.items():
    torch.manual_seed(0)
    model = build_model("mini_paper", *changes).train()
    spec = model.config.parsed
    collate = Collator(UsamProcessor.from_spec(spec))
    train, test = (Manifest(files[part], spec.prompts) for part in ("train", "unseen_sentences"))
    batches = DataLoader(train, batch_size=16, shuffle=True, collate_fn=collate)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.98))
    start = time.perf_counter()
    for batch in islice(cycle(batches), options.steps):
        outputs = model(**batch)
        optimizer.zero_grad()
        outputs.loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    seconds, loss = time.perf_counter() - start, float(outputs.losses["cross_entropy"])
    with torch.no_grad():
        unseen = float(model.eval()(**collate([test[i] for i in range(len(test))])).losses["cross_entropy"])
    print(f"{name:20} {trainable(model):>10,} {loss:7.3f} {unseen:7.3f} {seconds:8.1f}", flush=True)
