"""Keeps a router's logits small: the z-loss of ST-MoE (Zoph et al., 2022, eq. 5)."""

from __future__ import annotations

import torch

from usam.losses import Loss
from usam.losses._routers import routers
from usam.types import LossInputs, LossOutput


class RouterZ(Loss):
    """Mean square of the logarithm of the sum of the logits' exponentials."""

    needs_states = needs_frames = False

    def forward(self, inputs: LossInputs) -> LossOutput:
        """Mean over the routed rows of the batch, then over the stages that route.

        Raises:
            ValueError: there is audio, and no stage routes.
        """
        if inputs.audio.x.shape[1] == 0:
            return LossOutput(self.nothing(inputs))
        values = [z for (z,) in routers(inputs, "router_z", "router_z")]
        return LossOutput(torch.stack(values).mean())
