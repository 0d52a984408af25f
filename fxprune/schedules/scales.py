"""The batch norm scales of a network, which sparse training and polarisation push."""

from __future__ import annotations

from typing import Any

from torch import nn

from fxprune.errors import OptionError

__all__ = ["at_least_zero", "batch_norm_scales"]


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
