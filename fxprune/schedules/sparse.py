"""The batch norm scales of a network, which sparse training and polarisation push."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from fxprune.errors import OptionError


def batch_norm_scales(model: nn.Module) -> list[nn.Parameter]:
    """The scales of all batch norms, each of shape ``(channels,)``.

    Raises:
        OptionError: there are none.
    """
    norms = (m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm))
    scales = [norm.weight for norm in norms if norm.weight is not None]
    if not scales:
        raise OptionError(
            f"{type(model).__name__} has no batch norm with scales, and there is nothing to drive to zero"
        )
    return scales


def at_least_zero(name: str, value: Any) -> float:
    """The number.

    Raises:
        OptionError: it is below 0 or no number.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value >= 0:
        raise OptionError(f"{name} must be at least 0, not {value!r}")
    return float(value)


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
        self._model, _ = model, batch_norm_scales(model)
        self.steps = 0

    @torch.no_grad()
    def step(self) -> None:
        """Add the subgradient; scales without a gradient stay as they are."""
        for scale in batch_norm_scales(self._model):
            if scale.grad is not None:
                scale.grad.add_(scale.sign(), alpha=self.strength)
        self.steps += 1

    def state_dict(self) -> dict[str, Any]:
        """What :meth:`load_state_dict` reads to go on."""
        return {"strength": self.strength, "steps": self.steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where another schedule stood."""
        self.strength, self.steps = float(state["strength"]), int(state["steps"])


class Polarization:
    """Training that parts batch norm scales into two clusters, for the criterion "slimming".

    Zhuang et al., "Neuron-level Structured Pruning using Polarization Regularizer", NeurIPS 2020, equation 2, with the
    mean m over the scales of all layers: ``strength * sum(pull * abs(scale) - abs(scale - m))``, where an L1 penalty
    alone pushes every scale to zero. Its subgradient, the part through the mean included, is added to the gradients by
    :meth:`step`, between ``loss.backward()`` and ``optimizer.step()``. The paper keeps scales in ``[0, bound]``:
    :meth:`clamp`, after ``optimizer.step()``, does. Under DistributedDataParallel every rank does the same.

    Args:
        model: the network that is trained. :meth:`step` changes gradients, :meth:`clamp` the scales.
        strength: weight of the penalty.
        pull: the paper's t. The larger, the more scales go to zero.
        bound: the largest scale that :meth:`clamp` leaves, the paper's a.

    Raises:
        OptionError: a number below 0, or a network without batch norm scales.
    """

    def __init__(self, model: nn.Module, strength: float = 1e-4, pull: float = 1.2, bound: float = 1.0) -> None:
        self.strength = at_least_zero("strength", strength)
        self.pull, self.bound = at_least_zero("pull", pull), at_least_zero("bound", bound)
        self._model, _ = model, batch_norm_scales(model)
        self.steps = 0

    @torch.no_grad()
    def step(self) -> None:
        """Add the subgradient; scales without a gradient stay as they are, though they count in the mean."""
        scales = batch_norm_scales(self._model)
        values = torch.cat([scale.flatten() for scale in scales])
        mean = values.mean()
        # Moving one scale by d moves the mean by d / n, and with it every term abs(scale - mean).
        through_mean = (values - mean).sign().mean()
        for scale in scales:
            if scale.grad is not None:
                slope = self.pull * scale.sign() - (scale - mean).sign() + through_mean
                scale.grad.add_(slope, alpha=self.strength)
        self.steps += 1

    @torch.no_grad()
    def clamp(self) -> None:
        """Put every scale back between 0 and ``bound``."""
        for scale in batch_norm_scales(self._model):
            scale.clamp_(0.0, self.bound)

    def state_dict(self) -> dict[str, Any]:
        """What :meth:`load_state_dict` reads to go on."""
        return {"strength": self.strength, "pull": self.pull, "bound": self.bound, "steps": self.steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where another schedule stood."""
        self.strength, self.pull = float(state["strength"]), float(state["pull"])
        self.bound, self.steps = float(state["bound"]), int(state["steps"])
