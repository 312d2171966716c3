"""The window Q-Former against transformers' BLIP-2 module with the same weights, at the width of U-SAM's encoders.

8 clips of 10 s at 25 frames a second and 3072 wide, in windows of 17 frames; one query of 768, two layers, twelve
heads. Both are given the same windows and masks; forward alone, and forward and backward with gradients for
the weights. One process a variant, so that neither sees the other's memory; time is the processor's, beside that by
the clock. Memory is what a step adds at its peak to weights, their gradients and windows, which are the same for both,
in a further process that gives back at once what it frees.
"""

from __future__ import annotations

import ctypes
import json
import os
import statistics
import subprocess
import sys
import time
from typing import Any, cast

CLIPS, SECONDS, RATE, WIDTH, DIM, HEADS, WINDOW = 8, 10, 25, 3072, 768, 12, 17
STEPS, PROCESSES = 4, 2
AT_ONCE = {"MALLOC_MMAP_THRESHOLD_": str(2**20)}  # glibc gives tensors back to the system when they are freed
VARIANTS, MODES = ("ours", "theirs"), ("forward", "forward and backward")


def memory(peak: bool) -> int:
    """Bytes of memory now, or at their peak since `forget_peak`."""
    with open("/proc/self/status") as handle:
        line = next(line for line in handle if line.startswith("VmHWM" if peak else "VmRSS"))
    return int(line.split()[1]) * 1024


def forget_peak() -> None:
    """Give back what is free, and let the peak start from now."""
    ctypes.CDLL(None).malloc_trim(0)
    with open("/proc/self/clear_refs", "w") as handle:
        handle.write("5")


def measure(variant: str, mode: str) -> None:
    """Print the seconds of each step, the bytes that the first one added at its peak, and sums of what came out."""
    import torch
    from torch.nn.functional import pad
    from transformers import Blip2QFormerConfig
    from transformers.models.blip_2.modeling_blip_2 import Blip2QFormerModel

    from usam.projectors._qformer import QFormer
    from usam.projectors.window_qformer import own_names
    from usam.types import prefix_mask

    torch.set_num_threads(1)  # waiting threads would count as work
    torch.manual_seed(0)
    lengths = torch.linspace(0.5, 1, CLIPS).mul(SECONDS * RATE).long()
    count = -(-SECONDS * RATE // WINDOW)
    behind = count * WINDOW - SECONDS * RATE
    mask = pad(prefix_mask(lengths, SECONDS * RATE), (0, behind)).reshape(CLIPS * count, WINDOW)
    x = torch.randn(CLIPS * count, WINDOW, WIDTH).masked_fill(~mask.unsqueeze(-1), 0)
    heard = mask.any(-1)

    config = Blip2QFormerConfig(
        hidden_size=DIM,
        num_attention_heads=HEADS,
        num_hidden_layers=2,
        intermediate_size=4 * DIM,
        encoder_hidden_size=WIDTH,
        cross_attention_frequency=1,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        attn_implementation="sdpa",
    )
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in Blip2QFormerModel(config).state_dict().items()}
    weights = {f"qformer.{name}": torch.randn(shape) * 0.02 for name, shape in shapes.items()}
    for name in weights:
        if name.lower().endswith("layernorm.weight"):
            weights[name] += 1
    query = torch.randn(1, 1, DIM)
    if variant == "ours":
        own = own_names(weights | {"query_tokens": query}, "BLIP-2")
        module: torch.nn.Module = QFormer(
            in_dim=WIDTH,
            dim=DIM,
            queries=1,
            layers=2,
            heads=HEADS,
            intermediate=4 * DIM,
            cross_attention_frequency=1,
            dropout=0.0,
        )
        module.load_state_dict({name: own.pop(f"qformer.{name}") for name in module.state_dict()})
        last = "layers.1.down.weight"
        del own
    else:
        module = Blip2QFormerModel(config)
        module.load_state_dict({name: weights[f"qformer.{name}"] for name in shapes})
        last = "encoder.layer.1.output_query.dense.weight"
    del weights
    for parameter in module.parameters():
        parameter.grad = torch.zeros_like(parameter)

    def read() -> torch.Tensor:
        if variant == "ours":
            return cast(torch.Tensor, module(x, mask))
        queries = query.expand(len(x), -1, -1)
        out = module(query_embeds=queries, encoder_hidden_states=x, encoder_attention_mask=mask.long())
        return cast(torch.Tensor, out.last_hidden_state)

    def step() -> torch.Tensor:
        with torch.set_grad_enabled(mode != "forward"):
            out = read()[heard]
            if mode != "forward":
                torch.autograd.backward((out * torch.linspace(-1, 1, DIM)).sum())
        return out.detach()

    torch.ones(64, 64) @ torch.ones(64, 64)  # the library's own buffers
    forget_peak()
    before = memory(peak=False)
    first = step()
    added = memory(peak=True) - before
    gradient = cast(torch.Tensor, module.get_parameter(last).grad)
    found = {"out": first[:, 0, :8].tolist(), "gradient": gradient[:8, :8].tolist()}
    seconds, wall = [], []
    for _ in range(STEPS):
        start, began = time.process_time(), time.perf_counter()
        step()
        seconds.append(time.process_time() - start)
        wall.append(time.perf_counter() - began)
    print(json.dumps({"seconds": seconds, "wall": wall, "added": added, **found}))


def main() -> None:
    """All variants in turn, several processes each; medians, and their ratios."""
    import torch
    from _record import record

    runs: dict[tuple[str, str], list[dict[str, Any]]] = {(mode, variant): [] for mode in MODES for variant in VARIANTS}
    for i in range(PROCESSES + 1):
        for (mode, variant), some in runs.items():
            command = [sys.executable, __file__, variant, mode]
            env = os.environ | (AT_ONCE if i == PROCESSES else {})
            done = subprocess.run(command, check=True, capture_output=True, text=True, env=env)
            some.append(json.loads(done.stdout.splitlines()[-1]))
    rows = []
    for mode in MODES:
        ours, theirs = (runs[mode, variant] for variant in VARIANTS)
        for key, tolerance in (("out", 2e-6), ("gradient", 1e-4)):
            a, b = torch.tensor(ours[0][key]), torch.tensor(theirs[0][key])
            error = float((a - b).abs().max() / b.abs().max().clamp_min(1))
            assert error < tolerance, f"{mode}: {key} differs by {error}"
            if key == "out" or mode != "forward":
                what = (
                    f"window Q-Former, {mode}: largest difference in {key}, as a share of the largest value (or of 1)"
                )
                rows.append({"what": what, "measured": f"{error:.1e}", "bound": f"{tolerance:g}", "ok": True})
        seconds = [statistics.median(s for run in some[:-1] for s in run["seconds"]) for some in (ours, theirs)]
        wall = [statistics.median(s for run in some[:-1] for s in run["wall"]) for some in (ours, theirs)]
        added = [some[-1]["added"] for some in (ours, theirs)]
        for what, (mine, other), bound in (
            ("processor time against BLIP-2's", seconds, 0.5),
            ("time by the clock against BLIP-2's", wall, 0.5),
            (f"memory it adds against BLIP-2's {added[1] / 2**20:.0f} MiB", added, 1.5),
        ):
            share = mine / other
            measured = {"measured": f"{share:.2f}", "bound": f"{bound:g}", "ok": share <= bound}
            rows.append({"what": f"window Q-Former, {mode}: {what}", **measured})
    raw = {
        f"{mode}, {variant}": [{key: run[key] for key in ("seconds", "wall", "added")} for run in some]
        for (mode, variant), some in runs.items()
    }
    record(__file__, rows, raw)


if __name__ == "__main__":
    measure(*sys.argv[1:]) if len(sys.argv) > 1 else main()
