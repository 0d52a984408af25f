"""A node as laws see it: the claims of its operands, and its arguments in both networks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxprune.proof.masking import Keep
from fxprune.proof.nodes.claims import Claim, Kept, at, same_kept
from fxprune.proof.nodes.drawing import Patterns
from fxprune.proof.nodes.pairs import call, may_write, on_values

_DOMAINS = ("share", "positive", "any")


@dataclass(frozen=True, eq=False)
class Piece:
    """The shape of one tensor of several, and its kept indices."""

    shape: tuple[int, ...]
    kept: Kept


@dataclass(eq=False)
class Verdict:
    """A law's finding that the claim of a node holds for all values, and the properties of that claim."""

    shape: Sequence[int]  # of the full value
    domain: str = "any"  # the range of fresh values
    silent: bool = True  # whether removed entries are zero
    shares: bool = False  # whether it may share memory with its operands
    at_any_size: bool = True  # whether this was shown for inputs of all sizes
    over_kept: bool = False  # whether removed entries are left out of a sum or norm, instead of being zero
    pieces: Sequence[Piece] = ()  # the tensors, if the op returns several


@dataclass(eq=False)
class Reading:
    """One call in both networks."""

    node: fx.Node  # the call in the captured graph
    other: fx.Node  # the call in the rewritten one
    kept: Kept  # the kept indices of its value, from the certificate
    claims: Mapping[fx.Node, Claim]  # of the captured graph's nodes
    owners: Mapping[fx.Node, fx.Node]  # by node of the rewritten graph, the captured node that it stands for
    images: Mapping[fx.Node, Any]  # the inverse of ``owners``
    modules: tuple[nn.Module, nn.Module] | None  # of both networks, if the call is of a module
    keep: Keep  # the kept indices of every parameter and buffer
    patterns: Patterns  # the source of fresh values

    @property
    def module(self) -> Any:
        """The full network's module."""
        return None if self.modules is None else self.modules[0]

    @property
    def narrow_module(self) -> Any:
        """The rewritten network's module."""
        return None if self.modules is None else self.modules[1]

    @cached_property
    def operands(self) -> list[Claim]:
        """The claims of the nodes that it reads."""
        return [self.claims[given] for given in self.node.all_input_nodes]

    @property
    def writes(self) -> bool:
        """Whether it writes to an operand."""
        return may_write(self.node, self.module)

    def keeps_like(self, given: Claim | Piece, count: int) -> bool:
        """Whether the value keeps the same as an operand along the first ``count`` dims."""
        return all(same_kept(at(given.kept, dim), at(self.kept, dim)) for dim in range(count))

    @cached_property
    def same(self) -> bool:
        """Whether both calls have the same literals and read corresponding nodes."""
        args, kwargs = fx.node.map_arg((self.node.args, self.node.kwargs), self.images.get)
        return bool(args == self.other.args and kwargs == self.other.kwargs)

    @property
    def call(self) -> tuple[Any, ...]:
        """A key that is equal for equal calls on other tensors: the function or module attributes, and the literals."""
        places = {given: (..., place) for place, given in enumerate(self.node.all_input_nodes)}
        written = fx.node.map_arg((self.node.args, self.node.kwargs), lambda n: self._number_or(n, places[n]))
        if self.modules is None:
            return self.node.target, repr(written)
        held = {name: value for name, value in vars(self.module).items() if not name.startswith("_")}
        return type(self.module), repr(held), repr(written)

    def _number_or(self, given: fx.Node, place: Any) -> Any:
        claim = self.claims[given]
        return claim.full if claim.shape is None else place

    def argument(self, position: int, name: str, default: Any = None) -> Any:
        """An argument: a literal, a number, or the claim of a tensor."""
        args, kwargs = self.node.args, self.node.kwargs
        return self.known(args[position] if position < len(args) else kwargs.get(name, default))

    def known(self, given: Any) -> Any:
        """Nested arguments with nodes replaced by numbers and claims."""
        return fx.node.map_arg(given, self._claim_or_number)

    def tensor(self, position: int = 0, name: str = "input") -> Claim | None:
        """The claim of an argument that is a floating tensor; else None."""
        found = self.argument(position, name)
        return found if isinstance(found, Claim) and found.shape is not None and found.is_float else None

    def kept_of(self, name: str) -> Kept | None:
        """The kept indices of one of the module's tensors; None if it has none of that name."""
        return None if self.tensors_of(name)[0] is None else self.keep.get(f"{self.node.target}.{name}", ())

    def tensors_of(self, name: str) -> tuple[Tensor | None, Tensor | None]:
        """One of the module's tensors in both networks."""
        assert self.modules is not None
        full, narrow = (module._parameters.get(name, module._buffers.get(name)) for module in self.modules)
        return full, narrow

    def tried(self, value_of: Callable[[Claim], Any]) -> Any:
        """The result of the full network's call with tensors replaced by values; None if it raises."""
        return self._called(self.node, self.module, lambda n: _value(self.claims[n], value_of, narrow=False))

    def tried_narrow(self, value_of: Callable[[Claim], Any]) -> Any:
        """The same for the rewritten call."""
        return self._called(
            self.other, self.narrow_module, lambda n: _value(self.claims[self.owners[n]], value_of, narrow=True)
        )

    def _called(self, node: fx.Node, module: nn.Module | None, value_of: Callable[[fx.Node], Any]) -> Any:
        try:
            args, kwargs = on_values(node, value_of)
            return call(node, args, kwargs, module)
        except (RuntimeError, TypeError, ValueError, LookupError, AssertionError):
            return None

    def _claim_or_number(self, given: fx.Node) -> Any:
        claim = self.claims[given]
        return claim.full if claim.shape is None else claim


def _value(claim: Claim, value_of: Callable[[Claim], Any], *, narrow: bool) -> Any:
    if claim.shape is None:
        return claim.narrow if narrow else claim.full
    return value_of(claim)


def widest(operands: Sequence[Claim]) -> str:
    """The domain that contains the values of all operands."""
    return max((claim.domain or "any" for claim in operands), key=_DOMAINS.index, default="any")


def on_meta(shape: Sequence[int]) -> Tensor:
    """A tensor of this shape without values."""
    return torch.empty(list(shape), device="meta")
