"""A front-end's windows and filters stay in float32, whatever dtype the model is cast to."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import nn

Self = TypeVar("Self", bound="FrontEnd")


class FrontEnd(nn.Module):
    """A module whose own buffers are tables, made by `reset_parameters`; a cast of the model must not coarsen them."""

    def reset_parameters(self) -> None:
        """Fill the tables."""

    def _apply(self: Self, fn: Any, recurse: bool = True) -> Self:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if any(table.dtype != torch.float32 for table in self.buffers(recurse=False)):
            self.reset_parameters()
        return self
