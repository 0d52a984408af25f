"""Two programs over one set of tensors, compared on one sample: what they give, what they write, and the way back.

Equal outputs to the bit, equal writes to buffers and to the sample, equally many random numbers drawn, and the same
functions of autograd in the same order from the outputs back to the same parameters: then both also learn alike.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fxprune.capture.reachable import reachable
from fxprune.capture.samples import Sample
from fxprune.capture.state import PythonState
from fxprune.proof.comparing import Leaves, compare, leaves_of
from fxprune.proof.nodes.pairs import UnjudgedError
from fxprune.proof.nodes.standins import StandIns
from fxprune.proof.running import called
from fxprune.util.modes import flags_of, set_flags

__all__ = ["Programs", "in_mode"]

Program = Callable[..., Any]


class Programs:
    """Compares programs over the tensors of ``owner``, which is left as it was."""

    def __init__(self, owner: nn.Module) -> None:
        self._owner = owner
        foreign = any(not type(m).__module__.startswith(("torch.", "fxprune.")) for m in owner.modules())
        self._state = PythonState(owner, reachable(owner)) if foreign else None

    def part(self, first: Program, second: Program, sample: Sample) -> str:
        """Where two programs part, or an empty text.

        Large products are cheap functions of the same operands in both; where that does not do, they are computed.

        Raises:
            UnjudgedError: one of them cannot be run.
        """
        for replace in (True, False):
            with StandIns(self._owner.parameters(), replace=replace) as stand_ins:
                try:
                    ours, theirs = self._run(first, sample), self._run(second, sample)
                except UnjudgedError:
                    if stand_ins.refused or not replace:
                        raise
                    continue
            found = self._parting(ours, theirs)
            if not found and all(map(_is_finite, ours.values())):
                return ""
        return found

    def takes(self, program: Program, sample: Sample) -> bool:
        """Whether a program takes a sample."""
        with StandIns(self._owner.parameters(), replace=False):
            try:
                self._run(program, sample)
            except UnjudgedError:
                return False
        return True

    def _run(self, program: Program, sample: Sample) -> Leaves:
        """What a program gives, with its history, and what it leaves in the sample, the buffers and the generator."""
        torch.manual_seed(0)
        given = sample.map(torch.clone)
        before = {name: tensor._version for name, tensor in given.named_tensors()}
        with self._unchanged() as shapes:
            try:
                with torch.enable_grad():
                    leaves = leaves_of(called(program, given), keep_history=True)
            except UnjudgedError:
                raise
            except Exception as error:  # the user's own code, and operators of all kinds
                raise UnjudgedError(f"{type(error).__name__}: {error}") from error
            # A buffer that got another shape is a cache.
            left = {n: b for n, b in self._owner.named_buffers() if b.shape == shapes.get(n)}
            leaves |= {f"buffer {name}": buffer.detach().clone() for name, buffer in left.items()}
            written = {n: t for n, t in given.named_tensors() if t._version != before[n]}
            leaves |= {f"{name} after the call": tensor.detach() for name, tensor in written.items()}
        return leaves | {"the generator": torch.get_rng_state()}

    def _parting(self, ours: Leaves, theirs: Leaves) -> str:
        found = compare(_plain(ours), _plain(theirs))
        return found.describe(0.0) if found.error != 0 else self._ways_part(ours, theirs)

    def _ways_part(self, ours: Leaves, theirs: Leaves) -> str:
        """Where the functions of autograd behind equal values part."""
        names = {id(parameter): name for name, parameter in self._owner.named_parameters()}
        stack = [(leaf.grad_fn, theirs[path].grad_fn) for path, leaf in ours.items() if isinstance(leaf, Tensor)]
        seen: dict[Any, Any] = {}
        while stack:
            one, other = stack.pop()
            if one is None or other is None or one in seen:
                if seen.get(one) is not other:
                    return f"the way back differs at {(one or other).name()}"
                continue
            seen[one] = other
            before, after = one.next_functions, other.next_functions
            held = getattr(one, "variable", None), getattr(other, "variable", None)
            if one.name() != other.name() or [n for _, n in before] != [n for _, n in after]:
                return f"{one.name()} became {other.name()} on the way back"
            if held[0] is not held[1]:
                return f"the way back leads to {names.get(id(held[0]))} and to {names.get(id(held[1]))}"
            stack += [(a, b) for (a, _), (b, _) in zip(before, after, strict=True)]
        return ""

    @contextmanager
    def _unchanged(self) -> Iterator[dict[str, torch.Size]]:
        """Put back what changes inside: buffers, and what parts keep in attributes; gives the buffers' shapes."""
        owner = self._owner
        tables = [(part, dict(part._buffers)) for part in owner.modules() if part._buffers]
        held = [(b, b.detach().clone()) for _, bs in tables for b in bs.values() if b is not None]
        try:
            yield {name: buffer.shape for name, buffer in owner.named_buffers()}
        finally:
            for part, buffers in tables:
                part._buffers.clear()
                part._buffers.update(buffers)
            with torch.no_grad():
                for tensor, value in held:  # a batch norm does not count its writes as versions
                    tensor.copy_(value)
            vars(owner).pop("_chosen", None)
            if self._state is not None:
                self._state.restore(own=True)


def _plain(leaves: Leaves) -> Leaves:
    return {path: leaf.detach() if isinstance(leaf, Tensor) else leaf for path, leaf in leaves.items()}


def _is_finite(leaf: Any) -> bool:
    return not isinstance(leaf, Tensor) or bool(torch.isfinite(leaf).all())


@contextmanager
def in_mode(module: nn.Module, training: bool) -> Iterator[None]:
    """All modules in one mode, and back in their own."""
    flags = flags_of(module)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module.train(training)
        try:
            yield
        finally:
            module.train(flags[""])
            put_back = getattr(module, "set_modes", None) or partial(set_flags, module)
            put_back(flags)
