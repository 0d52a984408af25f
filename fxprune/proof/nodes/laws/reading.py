"""A node as laws look at it: what is known of the values that it reads, and its arguments in both networks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxprune.proof.masking import Keep
from fxprune.proof.nodes.claims import Claim, Kept
from fxprune.proof.nodes.drawing import Patterns
from fxprune.proof.nodes.pairs import call, may_write, on_values

_DOMAINS = ("share", "positive", "any")


@dataclass(frozen=True, eq=False)
class Piece:
    """The shape of one tensor of several, and what it keeps."""

    shape: tuple[int, ...]
    kept: Kept


@dataclass(eq=False)
class Verdict:
    """That the claim of a node holds for all values, and what is known of its own."""

    shape: Sequence[int]  # of the full value
    domain: str = "any"  # where fresh values are drawn from
    silent: bool = True  # whether what goes is zero
    shares: bool = False  # whether it may share memory with what it reads
    at_any_size: bool = True  # whether this was shown for inputs of all sizes
    over_kept: bool = False  # whether what goes was left out of a norm, instead of being zero there
    pieces: Sequence[Piece] = ()  # the tensors, where it gives several


@dataclass(eq=False)
class Reading:
    """One call in both networks."""

    node: fx.Node  # the call in the captured graph
    other: fx.Node  # the call in the rewritten one
    kept: Kept  # what its value keeps, as the certificate says
    claims: Mapping[fx.Node, Claim]  # of the captured graph's nodes
    owners: Mapping[fx.Node, fx.Node]  # by node of the rewritten graph, the captured node that it stands for
    images: Mapping[fx.Node, Any]  # the other way round
    modules: tuple[nn.Module, nn.Module] | None  # of both networks, where the call is one of a module
    keep: Keep  # what every parameter and buffer keeps
    patterns: Patterns  # where values come from

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
        """The claims of what it reads."""
        return [self.claims[given] for given in self.node.all_input_nodes]

    @property
    def writes(self) -> bool:
        """Whether it writes to what it reads."""
        return may_write(self.node, self.module)

    @cached_property
    def same(self) -> bool:
        """Whether both calls have the same literals, and read the same nodes."""
        args, kwargs = fx.node.map_arg((self.node.args, self.node.kwargs), self.images.get)
        return bool(args == self.other.args and kwargs == self.other.kwargs)

    @property
    def call(self) -> tuple[Any, ...]:
        """What is called with which literals, equal for equal calls on other tensors; of modules the attributes."""
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
        """Nested arguments with numbers and claims in the places of nodes."""
        return fx.node.map_arg(given, self._claim_or_number)

    def tensor(self, position: int = 0, name: str = "input") -> Claim | None:
        """The claim of a floating tensor among the arguments."""
        found = self.argument(position, name)
        return found if isinstance(found, Claim) and found.shape is not None and found.is_float else None

    def kept_of(self, name: str) -> Kept | None:
        """What one of the module's tensors keeps; None where it has none of that name."""
        return None if self.tensors_of(name)[0] is None else self.keep.get(f"{self.node.target}.{name}", ())

    def tensors_of(self, name: str) -> tuple[Tensor | None, Tensor | None]:
        """One of the module's tensors in both networks."""
        assert self.modules is not None
        full, narrow = (module._parameters.get(name, module._buffers.get(name)) for module in self.modules)
        return full, narrow

    def tried(self, value_of: Callable[[Claim], Any]) -> Any:
        """What the full network's call gives for values in the places of tensors; None where it raises."""
        return self._called(self.node, self.module, lambda n: _value(self.claims[n], value_of, narrow=False))

    def tried_narrow(self, value_of: Callable[[Claim], Any]) -> Any:
        """The same of the rewritten call."""
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
    """A domain that holds the values of all operands."""
    return max((claim.domain or "any" for claim in operands), key=_DOMAINS.index, default="any")


def on_meta(shape: Sequence[int]) -> Tensor:
    """A tensor without values."""
    return torch.empty(list(shape), device="meta")
