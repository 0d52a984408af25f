"""Sparse training for slimming: an L1 penalty on the batch norm scales."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from fxprune.schedules.scales import at_least_zero, batch_norm_scales

__all__ = ["SparseTraining"]


class SparseTraining:
    """Training that drives batch norm scales to zero, for the criterion "slimming" (Liu et al., 2017, 1708.06519).

    The subgradient of ``strength * sum(abs(scale))`` is added to the gradients of all batch norm scales. Call
    :meth:`step` between ``loss.backward()`` and ``optimizer.step()``; under DistributedDataParallel every rank does the
    same, after gradients have been averaged.

    Args:
        model: the network that is trained; only its gradients are changed.
        strength: published values lie between 1e-5 and 1e-4.

    Raises:
        OptionError: the strength is below 0, or the network has no batch norm with scales.
    """

    def __init__(self, model: nn.Module, strength: float = 1e-4) -> None:
        self.strength = at_least_zero("strength", strength)
        self._scales = batch_norm_scales(model)
        self.steps = 0

    @torch.no_grad()
    def step(self) -> None:
        """Add the subgradient; scales without a gradient stay as they are."""
        for scale in self._scales:
            if scale.grad is not None:
                scale.grad.add_(scale.sign(), alpha=self.strength)
        self.steps += 1

    def state_dict(self) -> dict[str, Any]:
        """What :meth:`load_state_dict` reads to go on."""
        return {"strength": self.strength, "steps": self.steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where another schedule stood."""
        self.strength, self.steps = float(state["strength"]), int(state["steps"])
