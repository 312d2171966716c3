"""Whether a model has anything to learn, and by what."""

from __future__ import annotations

from usam.model.model import UsamForConditionalGeneration
from usam.spec.page import SpecError


def check_learns(model: UsamForConditionalGeneration) -> None:
    """Refuse to train a model whose loss is always zero, or none of whose weights train.

    Raises:
        SpecError: says what to write instead.
    """
    weights = {name: float(loss.config.weight) for name, loss in model.losses.parts()}
    if not any(weights.values()):
        found = ", ".join(f"{name} has weight 0" for name in weights) or "there is none"
        raise SpecError(f"losses: nothing is learned without a loss ({found}); write losses: {{cross_entropy: {{}}}}")
    if not any(parameter.requires_grad for parameter in model.model.parameters()) and not any(
        parameter.requires_grad for parameter in model.lm_head.parameters()
    ):
        raise SpecError(
            "nothing would train: every part is frozen and has no adapters; write `freeze: none` at the projector, or "
            "`lora` at a part that stays frozen"
        )
