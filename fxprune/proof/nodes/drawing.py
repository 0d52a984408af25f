"""Random values for both networks: for parameters and buffers, for nodes, and in place of computed values."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxprune.proof.masking import Keep, select
from fxprune.proof.nodes.claims import Claim, cut_shape, lost_entries
from fxprune.proof.nodes.pairs import UnjudgedError, in_dtype
from fxprune.util.progress import name_seed

_PERIOD = 8191
_STEP = 97
# By table: the least and the largest integer that is drawn, and the divisor.
_DRAWN = {
    "whole": (-2, 2, 1),
    "fine": (-512, 512, 256),
    "above": (128, 768, 256),
    "any": (-16, 16, 8),
    "positive": (1, 16, 8),
    "share": (1, 15, 16),
}
_SHORT = 64  # so many entries of a row at most are drawn from many values, as two short rows of few values may be equal


class Patterns:
    """Tables of values in one floating type on one device: small multiples of powers of two.

    Sums of products of these are exact in float32. They are cut from one random table per domain, of prime length, so
    that no two rows of a tensor are equal and nothing needs to be drawn per layer.
    """

    def __init__(self, dtype: torch.dtype, device: torch.device, seed: int) -> None:
        self.dtype = dtype
        self.device = device
        self.one = torch.ones((), dtype=dtype, device=device)
        # By pointwise call, its properties; see ``laws/local.py``.
        self.known: dict[Any, tuple[str, bool, bool] | None] = {}
        self._seed = seed
        self._tables: dict[str, Tensor] = {}

    def parameter(self, tensor: Tensor, salt: int, *, positive: bool) -> Tensor:
        """Values from -2 to 2, or from 0.5 to 3, in the shape of ``tensor``; a view that must not be written to."""
        short = tensor.numel() <= _SHORT * (tensor.shape[0] if tensor.ndim else 1)
        return self._cut("above" if positive else "fine" if short else "whole", tensor.numel(), salt).view(tensor.shape)

    def activation(self, value: Tensor, salt: int) -> Tensor:
        """Random values with the shape, strides and domain of ``value``."""
        if value.is_complex():
            parts = [self._cut("any", value.numel(), salt + n).view(value.shape) for n in (0, 7)]
            return like(value, torch.complex(*parts))
        return like(value, self.drawn(domain_of(value), value.shape, salt))

    def drawn(self, domain: str, shape: Sequence[int], salt: int) -> Tensor:
        """Values of a domain in a shape; a view that must not be written to."""
        return self._cut(domain, math.prod(shape), salt).view(list(shape))

    def _cut(self, name: str, count: int, salt: int) -> Tensor:
        offset = salt * _STEP % _PERIOD
        if name not in self._tables:
            self._tables[name] = _table(name, self._seed).to(self.device, self.dtype, copy=True)
        table = self._tables[name]
        if len(table) < offset + count:
            table = table[:_PERIOD].repeat(-(-(offset + count) // _PERIOD))
            self._tables[name] = table
        return table[offset : offset + count]


@functools.lru_cache(maxsize=32)
def _table(name: str, seed: int) -> Tensor:
    low, high, divisor = _DRAWN[name]
    generator = torch.Generator().manual_seed(seed ^ name_seed(name))
    return torch.randint(low, high + 1, (_PERIOD,), generator=generator) / divisor


def domain_of(value: Tensor) -> str:
    """The range of the values: "share" (from 0 to 1), "positive" (not below 0), or "any"."""
    low, high = (bound.item() for bound in value.aminmax())
    return "any" if low < 0 else "share" if high <= 1 else "positive"


def like(value: Tensor, content: Tensor) -> Tensor:
    """A tensor with the strides and type of ``value`` and the entries of ``content``."""
    return torch.empty_like(value).copy_(content)


@dataclass(frozen=True, eq=False)
class Setting:
    """What a walk needs besides the two graphs."""

    attribute: Callable[[str], Any]  # the full network's module or tensor by its full name
    # For every parameter and buffer, the kept indices of every dim; the pruned network is known to hold exactly these
    # entries.
    keep: Keep
    inputs: Mapping[str, Any]  # the values of the graph's inputs, by name
    patterns: Patterns  # the source of random values, in the type of values between nodes

    def cast(self, value: Any) -> Any:
        """Nested values in the type of values between nodes."""
        return in_dtype(value, self.patterns.dtype)


def held(setting: Setting, name: str, value: Tensor, narrow: Tensor | None) -> tuple[Tensor, Tensor]:
    """Values of a tensor in both networks; removed ones are 0, except in running variances. Raises UnjudgedError."""
    kept = setting.keep.get(name, ())
    if narrow is not None and cut_shape(value.shape, kept) != tuple(narrow.shape):
        raise UnjudgedError(f"{name} is {tuple(narrow.shape)} and should be {cut_shape(value.shape, kept)}")
    full = _held(setting, name, value)
    if not name.endswith("running_var") and (full.is_floating_point() or full.is_complex()):
        for number, (dim, index) in enumerate(lost_entries(value, kept)):
            full = full.index_fill(dim, index, 0) if number == 0 else full.index_fill_(dim, index, 0)
    cut = select(full, kept)
    return full, cut.clone() if cut is full else cut


def _held(setting: Setting, name: str, value: Tensor) -> Tensor:
    domain = _domain_held(name, value)
    if not domain:
        value = value.detach().clone()
        return value.float() if value.dtype in (torch.float16, torch.bfloat16) else value
    full = setting.patterns.parameter(value, name_seed(name), positive=domain == "positive")
    return full if isinstance(value, nn.Parameter) else full.clone()


def _domain_held(name: str, value: Tensor) -> str:
    """The domain from which a tensor's values are drawn; "" for tables and masks, which keep their values."""
    drawn_anew = isinstance(value, nn.Parameter) or name.endswith(("running_mean", "running_var"))
    if not drawn_anew or not value.is_floating_point():
        return ""
    return "positive" if name.endswith("running_var") or (value.ndim < 2 and bool((value >= 0).all())) else "any"


def keeps_its_values(setting: Setting, node: fx.Node) -> bool:
    """Whether a node reads a table, a mask or row indices, which keep their values."""
    return node.op == "get_attr" and not _domain_held(str(node.target), setting.attribute(str(node.target)))


def held_claim(setting: Setting, name: str, value: Tensor, narrow: Tensor | None) -> Claim:
    """The claim of a parameter or buffer that a graph reads."""
    domain, silent = _domain_held(name, value), not name.endswith("running_var")
    kept, like_it = setting.keep.get(name, ()), setting.patterns.one
    if not domain or (narrow is not None and cut_shape(value.shape, kept) != tuple(narrow.shape)):
        return Claim(held(setting, name, value, narrow), kept, silent=silent)

    def values(claim: Claim) -> tuple[Tensor, Tensor]:
        return held(setting, name, value, narrow)

    return Claim(values, kept, shape=value.shape, domain=domain, silent=silent, like=like_it)


def drawn(setting: Setting, name: str, claim: Claim) -> tuple[Tensor, Tensor]:
    """Random values for which a node's claim holds, of the claim's shape and domain."""
    assert claim.shape is not None
    full = setting.patterns.drawn(claim.domain, claim.shape, name_seed(name)).clone()
    for dim, index in lost_entries(full, claim.kept) if claim.silent else ():
        full.index_fill_(dim, index, 0)
    cut = select(full, claim.kept)
    return full, cut.clone() if cut is full else cut


def renewed(setting: Setting, name: str, claim: Claim) -> Claim:
    """The claim with new random values of the same shape, strides and domain, if its values are finite floats."""
    full, narrow = claim.values()
    domain, cast = "", setting.cast(full)
    floats = full.is_floating_point() or full.is_complex()
    if floats and full.numel() and bool(torch.isfinite(full).all()):
        domain = "" if full.is_complex() else domain_of(cast)
        full = setting.patterns.activation(cast, name_seed(name))
        for dim, index in claim.lost if claim.silent else ():
            full.index_fill_(dim, index, 0)
    elif full.dtype in (torch.float64, torch.complex128):
        full = cast
    return claim.changed((full, like(setting.cast(narrow), select(full, claim.kept))), domain)
