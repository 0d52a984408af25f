"""What a distillation gives back."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import nn

__all__ = ["Distilled"]


@dataclass(frozen=True)
class Distilled:
    """A trained network and how it came about.

    Attributes:
        network: a copy of the pruned network with trained weights, on its device and in its mode.
        steps: how many steps of the optimiser were taken in all.
        history: one dict for each logged step: "step", the loss and its parts, "learning_rate", perhaps "score".
        score: what ``evaluate`` said of ``network``; None without it.
        best_step: after which step the best score was seen; None without ``evaluate``.
        seconds: wall time of this call.
        resumed: the step that this call went on from; 0 for a fresh start.
    """

    network: nn.Module
    steps: int
    history: list[dict[str, Any]] = field(repr=False)
    score: float | None = None
    best_step: int | None = None
    seconds: float = 0.0
    resumed: int = 0

    def __repr__(self) -> str:
        parts = [f"{self.steps} steps"]
        losses = [row["loss"] for row in self.history if "loss" in row]
        if losses:
            parts.append(f"loss {losses[0]:.4g} to {losses[-1]:.4g}")
        if self.score is not None:
            parts.append(f"score {self.score:.4g}")
            parts.append(f"best after step {self.best_step}")
        if self.resumed:
            parts.append(f"resumed after step {self.resumed}")
        return f"Distilled({', '.join(parts)}, {self.seconds:.1f} s)"
