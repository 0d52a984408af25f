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
        self._schedule = schedule

    def before_update(self) -> None:
        """Add the subgradient."""
        self._schedule.step()


class Polarised(Hooks):
    """Scales of batch norms parted."""

    def __init__(self, schedule: Polarization) -> None:
        self._schedule = schedule

    def before_update(self) -> None:
        """Add the subgradient."""
        self._schedule.step()

    def after_update(self) -> None:
        """Keep the scales in their bounds."""
        self._schedule.clamp()


class Soft(Hooks):
    """Channels silenced after every epoch."""

    def __init__(self, schedule: SoftPruning) -> None:
        self._schedule = schedule

    def before_epoch(self) -> None:
        """Let silent channels grow again."""
        self._schedule.wake()

    def after_epoch(self) -> None:
        """Choose anew, and silence."""
        self._schedule.step()

    def state_dict(self) -> dict[str, Any]:
        """The schedule's."""
        return self._schedule.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on."""
        self._schedule.load_state_dict(state)


class Fused(Hooks):
    """Kernels fused anew at the start of every epoch."""

    def __init__(self, schedule: FusedTraining) -> None:
        self._schedule = schedule

    def before_epoch(self) -> None:
        """Another temperature, and other shares."""
        self._schedule.step()

    def state_dict(self) -> dict[str, Any]:
        """The schedule's."""
        return self._schedule.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on."""
        self._schedule.load_state_dict(state)
