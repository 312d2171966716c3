"""What the routers of projector and fusion report, as means over the batch."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from usam.types import LossInputs


def routers(inputs: LossInputs, loss: str, *names: str) -> Iterator[tuple[Tensor, ...]]:
    """For each stage that routes, its by-products `names` as means over all routed rows of the batch.

    A clip counts by its rows, so that neither padding nor the lengths of its neighbours sway the mean.

    Raises:
        ValueError: there is audio, and no stage reports them.
    """
    stages = [key.removesuffix(".router_rows") for key in inputs.aux if key.endswith(".router_rows")]
    if not stages:
        found = ", ".join(sorted(inputs.aux)) or "none"
        raise ValueError(
            f"{loss} needs a `moe` projector, or a `pam` or `mowe` fusion, which report their routers; by-products of "
            f"this model: {found}. "
            f"Write `projector: [..., {{type: moe, experts: 3}}]`, or take {loss} out of `losses`"
        )
    for stage in stages:
        rows = inputs.aux[f"{stage}.router_rows"]
        share = rows / rows.sum().clamp_min(1)
        yield tuple(_mean(inputs.aux[f"{stage}.{name}"], share) for name in names)


def _mean(value: Tensor, share: Tensor) -> Tensor:
    """The mean over clips, in float32 at least, of (clip, ...)."""
    weight = share.view(-1, *[1] * (value.ndim - 1))
    return (value * weight).masked_fill(weight == 0, 0).sum(0)
