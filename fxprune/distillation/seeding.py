"""Random numbers that depend on the place in the training alone: a resumed run draws what it would have drawn."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

__all__ = ["keep_random_state", "seed_everything"]


def seed_everything(*place: int | str) -> None:
    """Seed torch, numpy and ``random`` from a place such as ``(seed, "step", 17)``."""
    digest = hashlib.blake2b(repr(place).encode(), digest_size=8).digest()
    number = int.from_bytes(digest, "big") >> 1
    torch.manual_seed(number)
    random.seed(number)
    np.random.seed(number % 2**32)


@contextmanager
def keep_random_state() -> Iterator[None]:
    """Put back every random state at the end."""
    python, numbers = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numbers)
