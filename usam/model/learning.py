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
    if not any(loss.needs_states for _, loss in model.losses.parts()):
        _check_idle(model, ", ".join(weights))
    if not any(parameter.requires_grad for parameter in model.model.parameters()) and not any(
        parameter.requires_grad for parameter in model.lm_head.parameters()
    ):
        raise SpecError(
            "nothing would train: every part is frozen and has no adapters; write `freeze: none` at the projector, or "
            "`lora` at a part that stays frozen"
        )


def _check_idle(model: UsamForConditionalGeneration, losses: str) -> None:
    """Refuse to train what is not run."""
    idle = {"llm": (model.model.language_model, model.lm_head), "llm.injection": (model.model.cross_attention,)}
    for place, modules in idle.items():
        if any(p.requires_grad for module in modules if module is not None for p in module.parameters()):
            raise SpecError(
                f"{place}: trains, and no loss reads the language model's states ({losses}), so that it is not run and "
                f"would learn nothing; write {place}.freeze: all, without lora, or add a loss such as cross_entropy"
            )
