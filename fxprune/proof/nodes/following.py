"""Follows a captured graph while the original runs: each call of the original must be the graph's next call.

A call is the same if the same function or layer is called on the same objects, in the same settings of torch. If all
calls are, and nothing else changed, the graph computes, writes, draws and learns what the original does, whatever the
values are; so one run is enough, and layers need not compute theirs. If a call cannot be found in the graph, nothing is
shown: then both programs are run and compared.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode

from fxprune.capture.lowering import entered
from fxprune.proof.nodes.pairs import UnjudgedError, call, call_name, is_number, is_sizes, may_write
from fxprune.proof.nodes.standins import StandIns
from fxprune.util.paths import modules_of

# Names by which tensors answer to operators, other than the operator's own.
_ALSO = {"truediv": "div", "mod": "remainder"}
# Layers whose results have shapes that are easy to tell, by how many dims they read.
_NORMS: dict[type, int] = {nn.BatchNorm2d: 4, nn.BatchNorm3d: 5}
_DIMS = {nn.Conv1d: 3, nn.Conv2d: 4, nn.Conv3d: 5, **_NORMS}
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_LITERALS = (torch.dtype, torch.device, torch.layout)
# What a forward may ask a tensor for without a node in the graph.
_GETTERS: tuple[Any, ...] = (Tensor.shape, Tensor.dtype, Tensor.device, Tensor.ndim, Tensor.is_cuda, Tensor.layout)
_QUESTIONS = frozenset(
    (
        *(getter.__get__ for getter in _GETTERS),
        *(Tensor.size, Tensor.dim, Tensor.numel, Tensor.nelement, Tensor.ndimension, Tensor.__len__),
        *(Tensor.is_floating_point, torch.is_floating_point, Tensor.is_complex, torch.is_complex, torch._assert),
    )
)


class Following(TorchFunctionMode):
    """Runs ``owner`` along ``graph``, whose names ``attribute`` looks up in it; its tensors are restored afterwards."""

    def __init__(self, owner: nn.Module, graph: fx.Graph, attribute: Callable[[str], Any]) -> None:
        super().__init__()
        self._owner, self._attribute = owner, attribute
        self._rest = iter(graph.nodes)
        self._node: fx.Node = next(self._rest)
        self._values: dict[fx.Node, Any] = {}
        self._layers = {id(m): m for n in graph.nodes if n.op == "call_module" for m in (attribute(str(n.target)),)}
        parts = modules_of(owner)
        self._weights = _distinct([part._parameters for part in parts])
        self._storages = {weight.untyped_storage()._cdata for weight in self._weights}
        tables: list[dict[str, Any]] = [held for m in parts for held in (m._parameters, m._buffers)]
        self._held = [(table, dict(table)) for table in tables]
        self._before_call = {id(table): before for table, before in self._held}
        buffers = _distinct([part._buffers for part in parts])
        self._versions = {id(tensor): tensor._version for tensor in (*self._weights, *buffers)}
        self._buffers = {buffer.untyped_storage()._cdata: buffer for buffer in buffers}
        # Buffers, by their memory, with their values before the first call that may write to them.
        self._before: dict[int, tuple[Tensor, Tensor]] = {}
        self._settings: Any = None
        self._inside = False
        self._entered: Any = None
        self._lost = ""

    def run(self, given: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """The owner's outputs; ``given``: the graph's inputs in order, the same objects as in the arguments.

        Raises UnjudgedError: a call is not the graph's next one.
        """
        inputs = iter(given.values())
        while self._node.op == "placeholder":
            value = self._values[self._node] = next(inputs)
            self._versions |= {id(tensor): tensor._version for tensor in _tensors(value)}
            self._node = next(self._rest)
        self._settings = _settings()
        try:
            with self._watched(), self:
                output = self._owner(*args, **kwargs)
            self._end(output)
        finally:
            for table, before in self._held:
                table.clear()
                table.update(before)
            with torch.no_grad():
                for buffer, value in self._before.values():
                    buffer.copy_(value)
        return output

    def _end(self, output: Any) -> None:
        node = self._next()
        if self._lost or node.op != "output" or not self._is_same(node.args[0], output):
            raise self._stray("the output")
        if not all(self._are_own(table) for table, _ in self._held):
            raise self._stray("a tensor that was replaced")
        self._check_unwritten(tensor for _, before in self._held for tensor in before.values() if tensor is not None)

    def _are_own(self, table: Mapping[str, Any]) -> bool:
        """Whether a module's table of tensors is as it was before the call."""
        before = self._before_call.get(id(table), {})
        return len(table) == len(before) and all(table.get(name) is held for name, held in before.items())

    @contextmanager
    def _watched(self) -> Iterator[None]:
        """Let the layers that the graph calls report their calls."""
        hooked = any(vars(part).get(hooks) for part in modules_of(self._owner) for hooks in _HOOKS)
        everywhere = nn.modules.module._has_any_global_hook()  # type: ignore[no-untyped-call]
        if hooked or everywhere or not all(map(_is_plain, self._layers.values())):
            raise self._stray("code around layers")
        for layer in self._layers.values():
            vars(layer)["forward"] = self._reporting(layer)
        try:
            yield
        finally:
            for layer in self._layers.values():
                vars(layer).pop("forward", None)

    def _reporting(self, layer: nn.Module) -> Callable[..., Any]:
        own = layer.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            if self._inside:
                return own(*args, **kwargs)
            with torch._C.DisableTorchFunction():
                node = self._next()
                if node.op != "call_module" or self._attribute(str(node.target)) is not layer:
                    raise self._stray(type(layer).__name__)
                self._inside = True
                try:
                    return self._called(node, own, args, kwargs, layer)
                finally:
                    self._inside = False

        return forward

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _QUESTIONS:
            return func(*args, **kwargs)
        node = self._next()
        given = _operands(node, func, args)
        if given is not None and self._is_same(node.args, given) and self._is_same(node.kwargs, kwargs):
            parameters = any(
                tensor.untyped_storage()._cdata in self._storages for tensor in (*_tensors(args), *_tensors(kwargs))
            )
            watched = StandIns(self._weights, replace=False) if parameters else nullcontext()
            return self._called(node, func, args, kwargs, around=watched)
        if isinstance(func, FunctionType) and func is not self._entered:
            around, self._entered = self._entered, func
            with self:
                result = entered(func)(*args, **kwargs)
            self._entered = around
            return result
        raise self._stray(getattr(func, "__name__", str(func)))

    def _stray(self, what: str) -> UnjudgedError:
        """The error for a call that the graph does not make next; a forward that catches it is lost all the same."""
        self._lost = self._lost or f"{what} instead of {self._node.name}"
        return UnjudgedError(self._lost)

    def _called(
        self,
        node: fx.Node,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        layer: nn.Module | None = None,
        around: AbstractContextManager[Any] | None = None,
    ) -> Any:
        """Make a call that is the graph's next one."""
        if self._lost or _settings() != self._settings:
            raise self._stray("other settings")
        if layer is not None and not (self._is_same(node.args, args) and self._is_same(node.kwargs, kwargs)):
            raise self._stray("other operands")
        if layer is not None and not (self._are_own(layer._parameters) and self._are_own(layer._buffers)):
            raise self._stray("a layer with other tensors")
        operands = (*_tensors(args), *_tensors(kwargs))
        held = [] if layer is None else [buffer for buffer in layer._buffers.values() if buffer is not None]
        self._check_unwritten((*operands, *held))
        writes = may_write(node, layer)
        if writes and any(tensor.untyped_storage()._cdata in self._storages for tensor in operands):
            raise self._stray("a write to a parameter")
        result = None if layer is None or kwargs else _without_values(layer, args)
        if result is None:
            for memory in {tensor.untyped_storage()._cdata for tensor in (*operands, *held)} - self._before.keys():
                if (buffer := self._buffers.get(memory)) is not None:
                    self._before[memory] = buffer, buffer.detach().clone()
            with around or nullcontext():
                result = function(*args, **kwargs)
        self._versions |= {id(tensor): tensor._version for tensor in (*_tensors(result), *held)}
        if writes:
            self._versions |= {id(tensor): tensor._version for tensor in operands}
        self._pass(node, result)
        return result

    def _pass(self, node: fx.Node, value: Any) -> None:
        self._values[node] = value
        self._node = next(self._rest)

    def _check_unwritten(self, tensors: Any) -> None:
        """Tensors must not have changed but by the graph's own calls."""
        if any(self._versions.get(id(tensor)) != tensor._version for tensor in tensors):
            raise self._stray("a write that no call shows")

    def _next(self) -> fx.Node:
        """The graph's next call that is no computation of sizes; those before it are made."""
        while self._is_quiet(self._node):
            node = self._node
            if node.op == "get_attr":
                value = self._attribute(str(node.target))
                if isinstance(value, Tensor):
                    self._versions.setdefault(id(value), value._version)
            else:
                own, named = fx.node.map_arg((node.args, node.kwargs), self._values.__getitem__)
                with torch._C.DisableTorchFunction():
                    value = call(node, own, named, None, drawn=False)
            self._pass(node, value)
        return self._node

    def _is_quiet(self, node: fx.Node) -> bool:
        if node.op not in ("call_function", "call_method"):
            return node.op == "get_attr"
        if node.target is operator.getitem and isinstance(node.args[0], fx.Node):
            return not isinstance(self._values[node.args[0]], Tensor)
        made = isinstance(node.target, type) and issubclass(node.target, (tuple, dict))
        literal = is_number(node) or is_sizes(node) or isinstance(node.meta.get("val"), _LITERALS)
        return made or literal or node.target is torch._assert

    def _is_same(self, full: Any, own: Any) -> bool:
        """Whether an argument in the graph is an argument of the original's call: the same tensor, or equal data."""
        if isinstance(full, fx.Node):
            full = self._values.get(full, self)
        if full is own:
            return True
        if isinstance(full, (tuple, list)) and isinstance(own, (tuple, list)):
            return len(full) == len(own) and all(map(self._is_same, full, own))
        if isinstance(full, dict) and isinstance(own, dict):
            return full.keys() == own.keys() and all(self._is_same(full[key], own[key]) for key in own)
        if isinstance(full, slice) and isinstance(own, slice):
            return self._is_same((full.start, full.stop, full.step), (own.start, own.stop, own.step))
        return type(full) is type(own) and isinstance(own, (bool, int, float, str, *_LITERALS)) and full == own


def _is_plain(layer: nn.Module) -> bool:
    """Whether it is a layer of torch that writes to none of its parameters."""
    own = vars(layer)
    return type(layer).__module__.startswith("torch.nn.modules.") and "forward" not in own and not own.get("max_norm")


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list, dict)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _tensors(item)


def _settings() -> Any:
    """What decides, besides operands, how a call computes and learns."""
    flags = (
        torch._C._get_math_sdp_enabled(),
        torch._C._get_flash_sdp_enabled(),
        torch._C._get_mem_efficient_sdp_enabled(),
    )
    kinds = torch.get_default_dtype(), torch.is_autocast_enabled("cpu"), torch.is_autocast_enabled("cuda")
    return torch.is_grad_enabled(), torch._C._get_mkldnn_enabled(), flags, kinds


def _operands(node: fx.Node, func: Any, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
    """The arguments that a node must have so that it calls an intercepted function; None if it calls another."""
    if node.op == "call_function" and node.target == func:
        return args
    if (
        node.op not in ("call_function", "call_method")
        or getattr(Tensor, name := getattr(func, "__name__", ""), None) is not func
    ):
        return None
    if node.op == "call_method":
        return args if node.target == name else None
    plain = call_name(node)
    if getattr(operator, plain, None) is not node.target:
        return None
    if name in (plain, f"__{plain.strip('_')}__", _ALSO.get(plain)):
        return args
    return args[::-1] if name == f"__r{plain}__" else None


def _without_values(layer: Any, args: tuple[Any, ...]) -> Tensor | None:
    """Zeros of the shape that a layer returns; None if it is to be computed."""
    kind, x, weight = type(layer), args[0] if len(args) == 1 else None, getattr(layer, "weight", None)
    if not isinstance(x, Tensor) or not isinstance(weight, Tensor) or weight.dtype != x.dtype:
        return None
    if kind is nn.Linear:
        return _zeros(x, weight, (*x.shape[:-1], len(weight))) if x.shape[-1] == weight.shape[1] else None
    if x.ndim != _DIMS.get(kind) or x.shape[1] != getattr(layer, "in_channels", len(weight)):
        return None
    if kind in _NORMS:
        return _zeros(x, weight, x.shape)
    if layer.padding_mode != "zeros" or isinstance(layer.padding, str):
        return None
    windows = zip(x.shape[2:], weight.shape[2:], layer.stride, layer.padding, layer.dilation, strict=True)
    sides = [(n + 2 * padding - dilation * (k - 1) - 1) // stride + 1 for n, k, stride, padding, dilation in windows]
    return _zeros(x, weight, (len(x), len(weight), *sides)) if min(sides) > 0 else None


def _distinct(tables: Sequence[Mapping[str, Any]]) -> list[Any]:
    """The tensors in tables of modules, each once."""
    return list({id(tensor): tensor for table in tables for tensor in table.values() if tensor is not None}.values())


def _zeros(x: Tensor, weight: Tensor, shape: Sequence[int]) -> Tensor:
    """Zeros that need gradients where a layer's result does: a custom function then returns no operand as it is."""
    if not (x.requires_grad or weight.requires_grad):
        return x.new_zeros(shape)
    return _learnt_zero(x.dtype, x.device).expand(shape).clone()


@functools.lru_cache(maxsize=16)
def _learnt_zero(dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.zeros((), dtype=dtype, device=device, requires_grad=True)
