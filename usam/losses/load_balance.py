"""Keeps a router from leaving experts idle: the Switch Transformer's loss (Fedus et al., 2022, eq. 4 to 6)."""

from __future__ import annotations

import torch

from usam.losses import Loss
from usam.losses._routers import routers
from usam.types import LossInputs, LossOutput


class LoadBalance(Loss):
    """Experts times the sum over experts of load and mean probability: 1 where both are even.

    The load is the share of slots sent to an expert and has no gradient. A dense mixture sends every row
    everywhere: there the load is the probability, and the loss pulls the mean probabilities together.
    """

    needs_states = needs_frames = False

    def forward(self, inputs: LossInputs) -> LossOutput:
        """Mean over the stages that route.

        Raises:
            ValueError: there is audio, and no stage routes.
        """
        if inputs.audio.x.shape[1] == 0:
            return LossOutput(self.nothing(inputs))
        found = routers(inputs, "load_balance", "router_probs", "router_load")
        values = [len(load) * (probs * load).sum() for probs, load in found]
        return LossOutput(torch.stack(values).mean())
