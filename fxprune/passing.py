"""What every public pass runs in: one at a time, with gradients possible, without autocast and garbage collection."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from fxprune.capture.reachable import restored
from fxprune.progress import Steps

__all__ = ["one_pass", "uncollected"]

# The proof seeds the generators and switches kernels for the whole process, so one pass runs at a time.
_LOCK = threading.RLock()


@contextmanager
def one_pass(progress: bool | None, model: Any) -> Iterator[Steps]:
    """One pass over a model, which shows its steps if ``progress`` (None: only on a terminal).

    What the model's code shares with the rest of the process, caches among it, is afterwards what it was.
    """
    with ExitStack() as around:
        around.enter_context(_LOCK)
        # Tensors made in inference mode could not be trained, and autocast would round what is proven.
        around.enter_context(torch.inference_mode(False))
        for device in ("cpu", "cuda"):
            if torch.is_autocast_enabled(device):
                around.enter_context(torch.autocast(device, enabled=False))
        if isinstance(model, nn.Module):
            around.enter_context(restored(model))
        steps = around.enter_context(Steps(progress))
        yield steps


@contextmanager
def uncollected() -> Iterator[None]:
    """Without automatic garbage collection: next to nothing of what a pass makes is garbage before it ends."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()
