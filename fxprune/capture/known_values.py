"""Answers to a forward that reads tensors' values: known ones, and those of every healthy run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from fxprune.capture.decisions import Decisions
from fxprune.capture.finiteness import answer_if_finite
from fxprune.capture.folding import Stored, deciding_sizes, known_value
from fxprune.errors import CaptureError

__all__ = ["KnownValues"]


class KnownValues:
    """Answers for the recorder, which notes what each of them hangs on."""

    def __init__(self, node_of: Callable[[torch.Tensor], fx.Node], stored: Stored, decisions: Decisions) -> None:
        self._node_of = node_of
        self._stored = stored
        self._decisions = decisions

    def answer(self, name: str, tensor: Any) -> torch.Tensor:
        """The values of a tensor that no data enters, or a truth value that finite data have.

        Raises:
            CaptureError: data would have to say.
        """
        node = self._node_of(tensor) if isinstance(tensor, torch.Tensor) else None
        known = None if node is None else known_value(node, self._stored)
        if node is not None and known is not None:
            self._decisions.add_sizes(deciding_sizes(node, self._stored))
            return known
        answer = answer_if_finite(node) if node is not None and name == "__bool__" else None
        if node is None or answer is None:
            raise CaptureError(f"the forward reads tensor values: {name}() cannot be answered without data")
        self._decisions.add_finite(node, answer)
        return torch.tensor(answer)

    def without_masks(self, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """``x[:, mask]`` with the numbers that the mask stands for, where no data enters it."""
        tensor, index = args
        items = index if isinstance(index, tuple) else (index,)
        masks = [i for i in items if isinstance(i, torch.Tensor) and i.dtype == torch.bool and i.dim() == 1]
        if not masks or any(known_value(self._node_of(m), self._stored) is None for m in masks):
            return args
        numbers = {id(m): self.answer("__getitem__", m).nonzero().flatten() for m in masks}
        return tensor, tuple(numbers.get(id(item), item) for item in items)
