"""How much of a batch is padding: batches of 16 rows as they come, against batches of a budget.

5,000 clips of 0.5 to 30 s, log-normal around 4 s, as collections of speech and sound are. 60 % are transcribed (the
answer's tokens follow the clip's length), 25 % described in a sentence, 15 % asked about. A second of audio is 12.5
tokens. The budget is what 16 rows hold on average, in seconds and in tokens. Lengths alone; no model, no sound.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from _record import record

from usam.data.sampling import Budget, BudgetSampler, Length

ROWS, BATCH, RATE, EPOCHS = 5000, 16, 12.5, 3
BOUND = 0.05


def corpus(seed: int) -> list[Length]:
    """The lengths of the rows."""
    random = np.random.default_rng(seed)
    drawn = random.lognormal(math.log(4), 0.9, 3 * ROWS)
    seconds = drawn[(drawn >= 0.5) & (drawn <= 30)][:ROWS]
    kind = random.choice(3, ROWS, p=[0.6, 0.25, 0.15])
    spoken = seconds * 3.2 * random.lognormal(0, 0.25, ROWS)  # tokens of what is said, by how fast one speaks
    answer = np.choose(kind, [spoken, random.integers(12, 26, ROWS), random.integers(2, 10, ROWS)])
    prompt = np.choose(kind, [np.full(ROWS, 22), np.full(ROWS, 24), random.integers(20, 45, ROWS)])
    tokens = np.ceil(seconds * RATE) + prompt + np.ceil(answer)
    return [Length(tokens=int(t), seconds=float(s)) for t, s in zip(tokens, seconds, strict=True)]


def padding(sampler: BudgetSampler, batches: list[list[int]]) -> dict[str, float]:
    """Shares of all seconds and of all tokens."""
    seconds, silence, tokens, filler = np.sum([sampler.padding(batch) for batch in batches], axis=0)
    return {"audio": float(silence / (seconds + silence)), "tokens": float(filler / (tokens + filler))}


def main() -> None:
    """Both ways of making batches, over several epochs."""
    lengths = corpus(seed=0)
    seconds, tokens = (float(np.mean(of)) for of in ([r.seconds for r in lengths], [r.tokens for r in lengths]))
    budget = Budget(seconds=BATCH * seconds, tokens=round(BATCH * tokens))
    sampler = BudgetSampler(lengths, budget)
    order = np.random.default_rng(1)
    found: dict[str, list[dict[str, float]]] = {"as they come": [], "budget": []}
    full = []
    for epoch in range(EPOCHS):
        rows = order.permutation(ROWS).tolist()
        found["as they come"].append(padding(sampler, [rows[i : i + BATCH] for i in range(0, ROWS, BATCH)]))
        sampler.set_epoch(epoch)
        batches = list(sampler)
        found["budget"].append(padding(sampler, batches))
        held = [sampler.padding(batch) for batch in batches]
        full += [max((s + p) / (BATCH * seconds), (t + q) / (BATCH * tokens)) for s, p, t, q in held]
    rows: list[dict[str, Any]] = []
    for what in ("audio", "tokens"):
        before, after = (max(epoch[what] for epoch in found[way]) for way in ("as they come", "budget"))
        told = f"share of {what} that is padding, with a budget (batches of {BATCH} as they come: {before:.0%})"
        measured = {"measured": f"{after:.1%}", "bound": f"at most {BOUND:.0%}", "ok": after <= BOUND}
        rows.append({"what": told, **measured})
    share = float(np.mean(full))
    told = "share of its budget that a batch fills, on average"
    rows.append({"what": told, "measured": f"{share:.0%}", "bound": "at least 75%", "ok": share >= 0.75})
    sizes = {"seconds": budget.seconds, "tokens": budget.tokens, "batches": len(sampler)}
    record(__file__, rows, {**found, "budget of a batch": sizes})


if __name__ == "__main__":
    main()
