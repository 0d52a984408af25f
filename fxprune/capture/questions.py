"""Questions to tensors whose answers are no tensors: what each answer hangs on is noted, or checked in the graph."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from fxprune.capture.decisions import Decisions
from fxprune.capture.leaves import leaves
from fxprune.capture.numbers import Traced, plain
from fxprune.capture.settings import Reads
from fxprune.errors import CaptureError

__all__ = ["Questions"]

# All others hang on nothing that another input, or another use of the network, changes.
_OF_DTYPE = {"dtype", "element_size", "itemsize", "nbytes", "type", "result_type", "can_cast"}
_OF_GRADIENTS = {"requires_grad", "is_leaf", "grad_fn"}
_OF_SIZES = {"nbytes", "is_same_size", "storage", "storage_offset", "typed_storage", "untyped_storage"}


class Questions:
    """Gives the answers. ``learning``: whether tensors say that they need gradients.

    Attributes:
        reads: the questions about dtypes and gradients.
    """

    def __init__(
        self,
        node_of: Callable[[torch.Tensor], fx.Node],
        shape_of: Callable[[torch.Tensor], torch.Size],
        decisions: Decisions,
        device: torch.device,
        learning: bool,
    ) -> None:
        self.reads = Reads()
        self._node_of, self._shape_of = node_of, shape_of
        self._decisions = decisions
        self._device = device
        self._learning = learning

    def answer(self, name: str, args: Any, kwargs: Any, value: Any) -> Any:
        """The answer to a question, which is ``value`` on the meta device."""
        given = list(leaves((args, kwargs)))
        self._decisions.add_shape(leaf for leaf in given if isinstance(leaf, Traced))
        for tensor in (leaf for leaf in given if isinstance(leaf, torch.Tensor)):
            if name in _OF_DTYPE:
                self.reads.read(value if isinstance(value, torch.dtype) else tensor.dtype, self._node_of(tensor))
            if name in _OF_SIZES:
                self._decisions.add_shape(self._shape_of(tensor))
        if name in _OF_GRADIENTS:
            self.reads.asks_gradients = True
            return not value if self._learning else value
        if name == "is_contiguous":
            self._decisions.add_layout(self._node_of(args[0]), kwargs, value)
        elif name == "stride":
            return self._strides(*args, **kwargs)
        elif name == "type":
            return f"torch.{'cuda.' * (self._device.type == 'cuda')}{value.split('.')[-1]}"
        return value

    def _strides(self, tensor: torch.Tensor, dim: Any = None) -> Any:
        """Strides, all of them or one, as products of sizes, which they are for a tensor that is contiguous."""
        if not tensor.is_contiguous():
            raise CaptureError("the forward asks for the strides of a tensor that is not contiguous: make it so first")
        self._decisions.add_layout(self._node_of(tensor), {}, True)
        shape = self._shape_of(tensor)
        strides = tuple(math.prod(shape[place + 1 :]) for place in range(len(shape)))
        return strides if dim is None else strides[operator.index(plain(dim))]
