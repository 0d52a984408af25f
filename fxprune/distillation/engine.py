"""accelerate as the engine: devices, mixed precision and data parallel training; an optional dependency."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist

from fxprune.errors import DistillationError, MissingDependencyError, OptionError

__all__ = ["engine"]

_PLAIN = ("NO", "MULTI_CPU", "MULTI_GPU", "MULTI_XPU", "MULTI_NPU", "MULTI_MLU", "MULTI_HPU")


@contextmanager
def engine(precision: str) -> Iterator[Any]:
    """An ``accelerate.Accelerator`` for one training; its process-wide settings end with it.

    Raises:
        MissingDependencyError: accelerate is not installed.
        OptionError: this process runs accelerate in another precision.
        DistillationError: processes that do not know of each other, or a way of sharding that is not data parallel.
    """
    try:
        import accelerate
        from accelerate.state import AcceleratorState, PartialState
    except ImportError as error:
        raise MissingDependencyError(
            "fxprune.distill trains with accelerate, which is not installed: pip install 'fxprune[distill]'"
        ) from error
    ours, alone = not AcceleratorState._shared_state, not PartialState._shared_state
    try:
        made = accelerate.Accelerator(mixed_precision=precision, cpu=_on_cpu() or None)
    except ValueError as error:
        raise OptionError(f"accelerate refuses precision={precision!r} in this process: {error}") from error
    try:
        _check(made)
        yield made
    finally:
        made.free_memory()
        if ours:
            # A later training of this process may want another precision.
            AcceleratorState._reset_state(reset_partial_state=alone)


def _on_cpu() -> bool:
    """accelerate takes several processes on CPUs for what they are only where it is told."""
    return "LOCAL_RANK" in os.environ and not torch.accelerator.is_available()


def _check(made: Any) -> None:
    kind = made.distributed_type.value
    if kind not in _PLAIN:
        raise DistillationError(
            f"fxprune.distill is for data parallel training, and accelerate is set to {kind}: launch it with torchrun, "
            "or choose a plain configuration"
        )
    world = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
    if world != made.num_processes:
        raise DistillationError(
            f"torch.distributed has {world} processes and accelerate sees {made.num_processes}: launch the script with "
            "torchrun or accelerate launch, which tell each process its rank"
        )
