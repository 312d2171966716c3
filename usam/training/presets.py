"""Arguments of the Trainer by one name, `train: {preset: paper}`; what a run writes itself wins."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from usam.registry import did_you_mean
from usam.spec.page import Places, SpecError

PRESETS: dict[str, dict[str, Any]] = {
    # U-SAM (arXiv 2505.13880): AdamW, linear decay, on four GPUs. How many epochs it does not say.
    "paper": {
        "optim": "adamw_torch",
        "learning_rate": 5e-5,
        "weight_decay": 1e-6,
        "lr_scheduler_type": "linear",
        "warmup_steps": 0.13,  # below 1, a share of all steps
    },
}
BATCH = {"paper": 64}  # rows of a step, on all processes
ROWS = 16  # of them in a batch of one process, unless the run says otherwise


def resolved(
    train: Mapping[str, Any], places: Places, *, budget: bool = False, processes: int | None = None
) -> dict[str, Any]:
    """The arguments with the preset's in place of its name.

    The preset's batch becomes `gradient_accumulation_steps` for as many processes as there are.

    Args:
        train: what a run says.
        places: where it says it.
        budget: batches are made by a budget: the preset then says nothing of them.
        processes: None reads WORLD_SIZE, as torchrun and accelerate launch set it.

    Raises:
        SpecError: no such preset, or processes and rows that do not make its batch.
    """
    explicit = {key: value for key, value in train.items() if key != "preset"}
    name = train.get("preset")
    if name is None:
        return explicit
    where = places.at(("train", "preset"))
    if name not in PRESETS:
        raise SpecError(f"{where}no preset {name!r}; {did_you_mean(str(name), PRESETS)}")
    usual = dict(PRESETS[name])
    if not budget and "gradient_accumulation_steps" not in explicit:
        processes = int(os.environ.get("WORLD_SIZE", "1")) if processes is None else processes
        rows = explicit.get("per_device_train_batch_size", min(ROWS, max(1, BATCH[name] // processes)))
        together = rows * processes if isinstance(rows, int) and rows > 0 else 1
        if BATCH[name] % together:
            raise SpecError(
                f"{where}a step has {BATCH[name]} rows, which {processes} processes with batches of {rows} do not "
                "make; write per_device_train_batch_size and gradient_accumulation_steps"
            )
        usual |= {"per_device_train_batch_size": rows, "gradient_accumulation_steps": BATCH[name] // together}
    return {**usual, **explicit}
