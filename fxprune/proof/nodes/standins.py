"""Cheap replacements for convolutions and matrix products.

Whether two programs are equal does not depend on what a matrix product computes: if they call the same functions on the
same values, their results are equal whatever the functions are. So if only equality of programs matters, a large
product is replaced by an outer product of two vectors: one depends on all of the left operand, the other on the right
operand, or only on which parameter that is.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from fxprune.proof.copies import promoted
from fxprune.proof.nodes.pairs import UnjudgedError

# Products with fewer multiplications are computed.
_LARGE = 1 << 20
# Parameters of fewer entries are copied to another type.
_MANY = 1 << 16
_PERIOD, _STEP = 8191, 97


def widened(tensor: Tensor) -> Tensor:
    """A tensor in float64; of a large parameter only one row, expanded to its shape."""
    if not isinstance(tensor, nn.Parameter):
        return promoted(tensor, torch.float64)
    if tensor.ndim < 2 or tensor.numel() < _MANY or not tensor.is_floating_point():
        return nn.Parameter(promoted(tensor, torch.float64), requires_grad=tensor.requires_grad)
    row = promoted(tensor[:1], torch.float64).expand(tensor.shape)
    return nn.Parameter(row, requires_grad=tensor.requires_grad)


@functools.cache
def _cosines() -> Tensor:
    return torch.cos(torch.arange(_PERIOD, dtype=torch.float64) ** 2)


class StandIns(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Replaces large products while it is active, and refuses writes to any of the ``weights``.

    Attributes:
        refused: whether a call would have written to a weight.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # a guard around each operator would take longer than the operator

    def __init__(self, weights: Iterable[Tensor], *, replace: bool = True) -> None:
        """With ``replace`` off, products are computed."""
        super().__init__()  # type: ignore[no-untyped-call]
        self._replace = replace
        self.refused = False
        self._weights = {t.untyped_storage()._cdata: t._version for t in weights if t.layout is torch.strided}
        # By place in memory and shape, the number of an unchanged weight.
        self._numbers: dict[Any, int] = {}
        self._table = _cosines()

    def __torch_dispatch__(
        self, func: torch._ops.OpOverload, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func._schema.is_mutable:
            self._check_written(func, args)
        stand_in = _STAND_INS.get(func) if self._replace else None
        if stand_in is not None and not kwargs:
            result = stand_in(self, *args)
            if result is not None:
                return result
        return func(*args, **(kwargs or {}))

    def _check_written(self, func: torch._ops.OpOverload, args: tuple[Any, ...]) -> None:
        for argument, value in zip(func._schema.arguments, args, strict=False):
            written = argument.alias_info is not None and argument.alias_info.is_write
            if written and isinstance(value, Tensor) and value.untyped_storage()._cdata in self._weights:
                self.refused = True
                raise UnjudgedError("a call writes to parameters")

    def _product(self, left: Tensor, right: Tensor) -> Tensor | None:
        """The replacement for ``left @ right``; None if it is to be computed."""
        if not (left.is_floating_point() and left.dtype == right.dtype):
            return None
        if left.numel() * right.shape[-1] < _LARGE and not self._is_virtual(right):
            return None
        # Not a matrix product, whose last bits may depend on a row's position.
        rows = (left * self._vector(left, left.shape[-1], 1)).sum(-1) * left.shape[-1] ** -0.5
        number, first = self._rows(right)
        if number is None:
            columns = self._vector(right, right.shape[-2], 2) @ right * right.shape[-2] ** -0.5
        else:
            columns = self._vector(right, first + right.shape[-1], number + 3)[first:]
        product: Tensor = rows.unsqueeze(-1) * columns.unsqueeze(-2)
        return product

    def _sum(self, added: Tensor, left: Tensor, right: Tensor) -> Tensor | None:
        product = self._product(left, right)
        return None if product is None else product.add_(added)

    def _convolution(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, stride: Any, padding: Any, dilation: Any, *others: Any
    ) -> Tensor | None:
        transposed, output_padding, groups = others
        if not x.is_floating_point():
            return None
        if weight.numel() * (x.numel() // max(x.shape[1], 1)) < _LARGE and not self._is_virtual(weight):
            return None
        kernel, channels = weight.shape[2:], weight.shape[1] * groups if transposed else weight.shape[0]
        shape = [1, -1] + [1] * len(kernel)
        share = self._vector(x, x.shape[1], 1 + groups) * x.shape[1] ** -0.5
        mixed = (x * share.view(shape)).sum(1, keepdim=True)
        number = self._number(weight)
        if number is None:
            taps = weight.sum((0, 1), keepdim=True)
            flat = weight.transpose(0, 1) if transposed else weight
            gains = (flat.flatten(1) @ self._vector(x, flat[0].numel(), 2)).repeat(groups if transposed else 1)
        else:
            taps = self._vector(x, math.prod(kernel), number + 5).view(1, 1, *kernel)
            gains = self._vector(x, channels, number + 3)
        mixed = _aten.convolution.default(mixed, taps, None, stride, padding, dilation, transposed, output_padding, 1)
        result: Tensor = mixed * gains.view(shape)
        return result if bias is None else result.add_(bias.view(shape))

    def _rows(self, tensor: Tensor) -> tuple[int | None, int]:
        """The number of the weight whose rows a transposed matrix holds, and the first row."""
        size = tensor.shape[-2]
        if tensor.ndim != 2 or tensor.stride() != (1, size) or tensor.storage_offset() % size:
            return self._number(tensor), 0
        storage = tensor.untyped_storage()._cdata
        if self._weights.get(storage) != tensor._version:
            return None, 0
        key = (storage, size, tensor.dtype)
        return self._numbers.setdefault(key, len(self._numbers)), int(tensor.storage_offset() // size)

    def _number(self, tensor: Tensor) -> int | None:
        """The number of an unchanged weight or of a view of one; else None."""
        storage = tensor.untyped_storage()._cdata
        if self._weights.get(storage) != tensor._version:
            return None
        key = (storage, tensor.storage_offset(), tensor.shape, tensor.stride(), tensor.dtype)
        return self._numbers.setdefault(key, len(self._numbers))

    def _is_virtual(self, tensor: Tensor) -> bool:
        """Whether a weight is an expanded row, made by :func:`widened`."""
        return 0 in tensor.stride() and tensor.untyped_storage()._cdata in self._weights

    def _vector(self, like: Tensor, size: int, salt: int) -> Tensor:
        """Pseudo-random numbers between -1 and 1."""
        start = salt * _STEP % _PERIOD
        if self._table.numel() < start + size or self._table.dtype != like.dtype or self._table.device != like.device:
            table = self._table[:_PERIOD].to(like.device, like.dtype)
            self._table = table.repeat(-(-(start + size) // _PERIOD) + 1)
        return self._table[start : start + size]


_aten = torch.ops.aten
_STAND_INS: dict[Any, Callable[..., Tensor | None]] = {
    _aten.mm.default: StandIns._product,
    _aten.bmm.default: StandIns._product,
    _aten.addmm.default: StandIns._sum,
    _aten.baddbmm.default: StandIns._sum,
    _aten.convolution.default: StandIns._convolution,
}
