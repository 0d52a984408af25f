"""Compares two programs over one set of tensors on one sample: outputs, writes, and the backward pass.

They must have equal outputs bit for bit, equal writes to buffers and to the sample, equally many random draws, and the
same autograd functions in the same order from the outputs to the same parameters. Then their training is equal too.
"""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from types import CodeType
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxprune.capture.reachable import Reachable, reachable
from fxprune.capture.samples import Sample
from fxprune.capture.state import PythonState
from fxprune.proof.comparing import Leaves, compare, leaves_of
from fxprune.proof.copies import promoted
from fxprune.proof.nodes.following import Following
from fxprune.proof.nodes.numbering import Numbers, on_meta
from fxprune.proof.nodes.pairs import Pair, UnjudgedError, call
from fxprune.proof.nodes.standins import StandIns
from fxprune.proof.running import called, modes
from fxprune.util.copies import deep_copy
from fxprune.util.modes import flags_of, has_own_modes, set_flags
from fxprune.util.paths import ModelPaths, modules_of, named_buffers, named_modules, named_parameters

Program = Callable[..., Any]
# Autograd functions that move entries: equal values show where to, and different functions may do the same.
_MOVES = frozenset(
    f"{name}Backward{number}"
    for name in """View UnsafeView ReshapeAlias Transpose Permute T Clone Select Split SplitWithSizes Squeeze Unsqueeze
    Unbind Slice Alias""".split()
    for number in range(5)
)

# Samples of more entries are no longer small: products may be large though parameters are few.
_SMALL = 1 << 11


class Programs:
    """Compares programs over the tensors of ``owner``, which is left unchanged.

    ``tolerance``: the largest relative difference that passes. If it is not 0, ``owner`` is in float64, and large
    parameters may have no values of their own, so that all products with them are replaced. ``small``: the parameters
    are few, and their memory is the owner's alone: then no call needs to be watched. ``shared``: what the owner's code
    reaches, if it is known.
    """

    def __init__(
        self, owner: nn.Module, tolerance: float = 0.0, *, small: bool = False, shared: Reachable | None = None
    ) -> None:
        self._owner, self._tolerance, self._small = owner, tolerance, small
        parts, held = named_modules(owner), named_buffers(owner) + (named_parameters(owner) if small else [])
        foreign = any(not type(part).__module__.startswith(("torch.", "fxprune.")) for _, part in parts)
        self._state = PythonState(owner, shared or reachable(owner)) if foreign else None
        self._tables = [(f"{path}.".lstrip("."), part, dict(part._buffers)) for path, part in parts if part._buffers]
        self._held = held

    @functools.cached_property
    def _values(self) -> dict[str, Tensor]:
        """The values of all tensors that a call may change, by name."""
        return {name: tensor.detach().clone() for name, tensor in self._held}

    def part(self, first: Program, second: Program, sample: Sample) -> str:
        """Where two programs differ, or "".

        Large products are replaced by cheap functions of their operands; if that does not work, they are computed.
        Raises UnjudgedError: one of them cannot be run.
        """
        small = self._small and sum(tensor.numel() for tensor in sample.tensors) <= _SMALL
        weights = [] if small else [parameter for _, parameter in named_parameters(self._owner)]
        for replace in (False,) if small else (True,) if self._tolerance else (True, False):
            watched = StandIns(weights, replace=replace)
            try:
                ours, theirs = (self._run(p, sample, nullcontext() if small else watched) for p in (first, second))
            except UnjudgedError:
                if watched.refused or self._tolerance or not replace:
                    raise
                continue
            found = self._output_difference(ours, theirs)
            if not found and all(map(_is_finite, ours.values())):
                return ""
        return found

    def follows(self, program: GraphOver, sample: Sample) -> bool:
        """Whether the owner makes, call by call, the calls of a captured graph over it."""

        def run(*args: Any, **kwargs: Any) -> Any:
            return following.run(bound(program.graph, Sample(args, kwargs)), *args, **kwargs)

        self._seed()
        try:
            following = Following(self._owner, program.graph, program.attribute)
            with torch.enable_grad():
                called(run, sample.map(Tensor.clone))
        except Exception:  # the user's code and operators may raise anything
            return False
        finally:
            self._restore_state()
        return True

    def takes(self, program: Program, sample: Sample) -> bool:
        """Whether a program accepts a sample."""
        try:
            self._run(program, sample, StandIns(self._owner.parameters(), replace=False))
        except UnjudgedError:
            return False
        return True

    def _run(self, program: Program, sample: Sample, watched: AbstractContextManager[Any]) -> Leaves:
        """A program's outputs with their history, and its changes to the sample, the buffers and the generator."""
        self._seed()
        given = sample.map(lambda tensor: promoted(tensor, torch.float64) if self._tolerance else tensor.clone())
        versions = {name: tensor._version for name, tensor in given.named_tensors()}
        with self._unchanged() as held:
            try:
                with watched, self._modes(), _history_without_values():
                    leaves = leaves_of(called(program, given), keep_history=True)
            except UnjudgedError:
                raise
            except Exception as error:  # the user's code and operators may raise anything
                raise UnjudgedError(f"{type(error).__name__}: {error}") from error
            for name, buffer in self._kept_buffers():
                if not torch.equal(buffer, held[name]):
                    leaves[f"buffer {name}"] = buffer.detach().clone()
            written = {n: t for n, t in given.named_tensors() if t._version != versions[n]}
            leaves |= {f"{name} after the call": tensor.detach() for name, tensor in written.items()}
        return leaves | {"the generator": torch.get_rng_state()}

    def _seed(self) -> None:
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            torch.manual_seed(0)
        else:  # seeding all kinds of devices takes longer than many a layer
            torch.default_generator.manual_seed(0)

    def _modes(self) -> AbstractContextManager[Any]:
        if self._tolerance:
            return modes(torch.float64, carry_nan=False, gradients=True)
        return torch.enable_grad()

    def _output_difference(self, ours: Leaves, theirs: Leaves) -> str:
        found = compare(_plain(ours), _plain(theirs))
        return found.describe(self._tolerance) if not found.error <= self._tolerance else self._grad_fault(ours, theirs)

    def _grad_fault(self, ours: Leaves, theirs: Leaves) -> str:
        """Where the autograd functions behind equal values differ, or ""."""
        stack = [(leaf.grad_fn, theirs[path].grad_fn) for path, leaf in ours.items() if isinstance(leaf, Tensor)]
        seen: dict[Any, Any] = {}
        while stack:
            one, other = (_moved_from(way) for way in stack.pop())
            if one is None or other is None or one in seen:
                if one is not other and (other is None or seen.get(one) is not other):
                    return f"the way back differs at {(one or other).name()}"
                continue
            seen[one] = other
            (name, before), (other_name, after) = _asked(one), _asked(other)
            held = getattr(one, "variable", None), getattr(other, "variable", None)
            if name != other_name or len(before) != len(after):
                return f"{name} became {other_name} on the way back"
            if held[0] is not held[1]:
                names = {id(parameter): name for name, parameter in named_parameters(self._owner)}
                return f"the way back leads to {names.get(id(held[0]))} and to {names.get(id(held[1]))}"
            stack += zip(before, after, strict=True)
        return ""

    def _kept_buffers(self) -> Iterator[tuple[str, Tensor]]:
        """The current buffers, by name; one whose shape changed is a cache and is left out."""
        held = ((ahead + name, buffer) for ahead, part, _ in self._tables for name, buffer in part._buffers.items())
        for name, buffer in held:
            before = self._values.get(name)
            if buffer is not None and before is not None and buffer.shape == before.shape:
                yield name, buffer

    @contextmanager
    def _unchanged(self) -> Iterator[dict[str, Tensor]]:
        """Restore tensors and attributes that change inside; yields the tensors' values before.

        Raises UnjudgedError: a parameter changed.
        """
        written = []
        try:
            yield self._values
        finally:
            for _, part, buffers in self._tables:
                part._buffers.clear()
                part._buffers.update(buffers)
            with torch.no_grad():
                for name, tensor in self._held:  # a batch norm's writes do not raise the version counter
                    if not tensor.is_meta and not torch.equal(tensor, self._values[name]):
                        tensor.copy_(self._values[name])
                        written.append(tensor)
            self._restore_state()
        if any(isinstance(tensor, nn.Parameter) for tensor in written):
            raise UnjudgedError("a call writes to parameters")

    def _restore_state(self) -> None:
        vars(self._owner).pop("_chosen", None)
        if self._state is not None:
            self._state.restore(own=True)


class NumberedPrograms(Programs):
    """Compares programs for all values at once, on the meta device: by the calls that compute each value."""

    def __init__(self, owner: nn.Module) -> None:
        super().__init__(deep_copy(owner, on_meta))
        self.owner = self._owner

    def part(self, first: Program, second: Program, sample: Sample) -> str:
        """Where two programs differ, or "".

        Raises:
            UnjudgedError: one of them depends on values, or cannot be run.
        """
        numbers = Numbers(self._owner.parameters())
        (known, ours), (other, theirs) = (self._numbered(program, sample, numbers) for program in (first, second))
        found = next((path for path in {**known, **other} if known.get(path) != other.get(path)), "")
        return f"{found} comes about in another way" if found else self._grad_fault(ours, theirs)

    def _numbered(self, program: Program, sample: Sample, numbers: Numbers) -> tuple[Leaves, Leaves]:
        """The numbers of all outputs and changes of a program, and its outputs."""
        self._seed()
        given = sample.to_meta()
        held = [pair for pair in named_buffers(self._owner) if pair[1].is_meta]
        numbers.begin([*named_parameters(self._owner), *held, *given.named_tensors()])
        with self._unchanged():
            try:
                with numbers, torch.enable_grad(), _history_without_values():
                    leaves = leaves_of(called(program, given), keep_history=True)
                known = {path: numbers.of(leaf) if isinstance(leaf, Tensor) else leaf for path, leaf in leaves.items()}
            except UnjudgedError:
                raise
            except Exception as error:  # the user's code and operators may raise anything
                raise UnjudgedError(f"{type(error).__name__}: {error}") from error
            known |= {
                f"{n} after the call": numbers.left(t) for n, t in (*self._kept_buffers(), *given.named_tensors())
            }
        return known | {"the generator": (numbers.draws, torch.get_rng_state().numpy().tobytes())}, leaves


class GraphOver:
    """A captured graph as a program over the modules and tensors of the original or a copy."""

    def __init__(self, pair: Pair, network: nn.Module) -> None:
        self.graph, self._constants, self._paths = pair.full, pair.constants, ModelPaths(network)
        self._dying = pair.last_read

    def attribute(self, name: str) -> Any:
        """The module or tensor of that name, which may be a constant of the trace."""
        constant = self._constants.get(name)
        return self._paths.attribute(name) if constant is None else constant

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        given = iter(bound(self.graph, Sample(args, kwargs)).values())
        values: dict[fx.Node, Any] = {}
        for node in self.graph.nodes:
            if node.op == "placeholder":
                values[node] = next(given)
            elif node.op == "get_attr":
                values[node] = self.attribute(str(node.target))
            else:
                own, named = fx.node.map_arg((node.args, node.kwargs), values.__getitem__)
                if node.op == "output":
                    return own[0]
                module = self.attribute(str(node.target)) if node.op == "call_module" else None
                values[node] = call(node, own, named, module, drawn=False)
            for gone in self._dying.get(node, ()):
                del values[gone]
        return None


def bound(graph: fx.Graph, sample: Sample) -> dict[str, Any]:
    """The sample's arguments by name, in the order of a graph's inputs."""
    inputs = [
        (str(n.target), next(iter(n.args), inspect.Parameter.empty)) for n in graph.nodes if n.op == "placeholder"
    ]
    kind: Any = inspect.Parameter.POSITIONAL_OR_KEYWORD
    parameters = []
    for name, default in inputs:
        own: Any = {0: kind, 1: inspect.Parameter.VAR_POSITIONAL, 2: inspect.Parameter.VAR_KEYWORD}[name.count("*")]
        parameters.append(inspect.Parameter(name.lstrip("*"), own, default=default))
        kind = inspect.Parameter.KEYWORD_ONLY if own is not kind else kind
    try:
        signature = inspect.Signature(parameters)
        found = signature.bind(*sample.args, **sample.kwargs)
    except (TypeError, ValueError) as error:
        raise UnjudgedError(str(error)) from error
    found.apply_defaults()
    return found.arguments


def _history_without_values() -> AbstractContextManager[Any]:
    """Record history without saved values, because no backward pass is run."""

    def unpacked(_: Any) -> Tensor:
        raise AssertionError("nobody goes back")

    hooks: AbstractContextManager[Any] = torch.autograd.graph.saved_tensors_hooks(lambda _: None, unpacked)
    return hooks


def _moved_from(way: Any) -> Any:
    """The first autograd function that does not only move entries."""
    while way is not None and way.name() in _MOVES and len(way.next_functions) == 1:
        way = way.next_functions[0][0]
    return way


def _asked(way: Any) -> tuple[str, list[Any]]:
    """The name of an autograd function and the next functions; a product and a sum are one function."""
    name, behind = way.name(), [function for function, _ in way.next_functions]
    product = _moved_from(behind[0]) if name == "AddBackward0" else None
    if product is not None and product.name() == "MmBackward0":
        return "AddmmBackward0", [*behind[1:], *(function for function, _ in product.next_functions)]
    return name, behind


def _plain(leaves: Leaves) -> Leaves:
    return {path: leaf.detach() if isinstance(leaf, Tensor) else leaf for path, leaf in leaves.items()}


def _is_finite(leaf: Any) -> bool:
    return not isinstance(leaf, Tensor) or bool(torch.isfinite(leaf).all())


# Names by which code may read the mode of a module.
_MODES = frozenset("training __dict__ vars attrgetter eval exec".split())
# A dropout with a higher probability leaves too little to compare.
_FEW_LEFT = 0.9


def asks_for_modes(module: nn.Module) -> bool:
    """Whether code outside torch may read the modes of modules, or dropout leaves too little to compare."""
    code, parts = reachable(module), list(modules_of(module))
    if _MODES & code.names or any("training" in _words(function.__code__) for function in code.functions):
        return True
    foreign = {type(part) for part in parts} - {type(part) for part in parts if not _is_foreign(part)}
    own = any(hasattr(cls, "training") for cls in foreign) or any(map(has_own_modes, parts))
    return own or any(
        getattr(part, "p", 0.0) > _FEW_LEFT for part in parts if isinstance(part, nn.modules.dropout._DropoutNd)
    )


def _words(code: CodeType) -> Iterator[Any]:
    for value in code.co_consts:
        yield from _words(value) if isinstance(value, CodeType) else (value,)


def _is_foreign(part: nn.Module) -> bool:
    return not type(part).__module__.startswith("torch.")


@contextmanager
def hidden_modes(module: nn.Module) -> Iterator[None]:
    """Remove the mode of all modules that are not of torch classes, so that code that reads it raises."""
    hidden = [(part, vars(part).pop("training")) for part in modules_of(module) if _is_foreign(part)]
    try:
        yield
    finally:
        for part, flag in hidden:
            vars(part)["training"] = flag


@contextmanager
def in_mode(module: nn.Module, training: bool) -> Iterator[None]:
    """Put all modules in one mode, and restore their own modes at the end."""
    parts = modules_of(module)
    before = [part.training for part in parts]
    if all(flag is training for flag in before):
        yield
        return
    if not any(map(has_own_modes, parts)):
        try:
            for part in parts:
                vars(part)["training"] = training
            yield
        finally:
            for part, flag in zip(parts, before, strict=True):
                vars(part)["training"] = flag
        return
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
