"""What a schedule does in the course of training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fxprune.schedules import FusedTraining, Polarization, SoftPruning, SparseTraining


class Hooks:
    """Called around epochs and updates; nothing by itself."""

    def before_epoch(self) -> None:
        """At the start of an epoch."""

    def before_update(self) -> None:
        """Between the backward pass and the optimiser's step."""

    def after_update(self) -> None:
        """After the optimiser's step."""

    def after_epoch(self) -> None:
        """At the end of an epoch."""

    def state_dict(self) -> dict[str, Any]:
        """What it needs to go on."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on."""


class Sparse(Hooks):
    """Scales of batch norms pushed to zero."""

    def __init__(self, schedule: SparseTraining) -> None:
        self.before_update = schedule.step  # type: ignore[method-assign]


class Polarised(Hooks):
    """Scales of batch norms parted."""

    def __init__(self, schedule: Polarization) -> None:
        self.before_update, self.after_update = schedule.step, schedule.clamp  # type: ignore[method-assign]


class Soft(Hooks):
    """Channels silenced after every epoch."""

    def __init__(self, schedule: SoftPruning) -> None:
        self.before_epoch, self.state_dict = schedule.wake, schedule.state_dict  # type: ignore[method-assign]
        self.load_state_dict = schedule.load_state_dict  # type: ignore[method-assign]
        self._schedule = schedule

    def after_epoch(self) -> None:
        """Choose anew, and silence."""
        self._schedule.step()


class Fused(Hooks):
    """Kernels fused anew at the start of every epoch."""

    def __init__(self, schedule: FusedTraining) -> None:
        self.before_epoch, self.state_dict = schedule.step, schedule.state_dict  # type: ignore[method-assign]
        self.load_state_dict = schedule.load_state_dict  # type: ignore[method-assign]
