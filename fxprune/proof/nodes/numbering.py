"""Value numbering of programs: a function called on equal operands returns an equal value.

A program runs on the meta device, so nothing is computed. Every storage has a number for the calls that computed its
content; a tensor is identified by its storage's number and its layout there. Two programs with equal numbers return the
same for all values of inputs and parameters. Programs that branch on values cannot be compared in this way.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from fxprune.proof.nodes.pairs import UnjudgedError

_aten = torch.ops.aten
# Views that are not declared as views.
_VIEWS = frozenset((_aten._unsafe_view.default,))
# Arguments that functions write to, although their schemas do not say so.
_WRITTEN = {_aten.native_batch_norm.default: (3, 4), _aten.rrelu_with_noise.default: (1,)}
# Tensors that no call returned are numbered by content, up to this many entries.
_MOST = 1 << 20


def on_meta(tensor: Tensor) -> Tensor:
    """A tensor of the same shape and strides without values; integers and booleans are copied."""
    if not (isinstance(tensor, nn.Parameter) or tensor.is_floating_point() or tensor.is_complex()):
        return tensor.detach().clone()
    twin = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")
    return nn.Parameter(twin, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else twin


class Numbers(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Numbers the values of programs while it is active; one object for all programs that are compared.

    Attributes:
        draws: the number of the random draws so far.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # a guard around each operator would take longer than the operator

    def __init__(self, weights: Iterable[Tensor]) -> None:
        """``weights``: the parameters, to which no program may write."""
        super().__init__()  # type: ignore[no-untyped-call]
        self._numbers: dict[Any, int] = {}
        self._shapes: dict[Any, list[Any]] = {}
        self._weights = {tensor.untyped_storage()._cdata for tensor in weights}
        self.begin(())

    def begin(self, given: Iterable[tuple[str, Tensor]]) -> None:
        """Forget the previous program; ``given``: tensors of both programs by name, on the meta device."""
        self._content: dict[int, int] = {}
        self._alive: list[Any] = []
        self.draws = 0
        for name, tensor in given:
            self._hold(tensor, ("given", name))

    def of(self, tensor: Tensor) -> Any:
        """A key of a tensor's values; equal keys mean equal values."""
        return self._content_of(tensor), _lying(tensor)

    def left(self, tensor: Tensor) -> Any:
        """The same for a tensor that a program may have left unchanged."""
        return self._content.get(tensor.untyped_storage()._cdata), _lying(tensor)

    def __torch_dispatch__(
        self,
        func: torch._ops.OpOverload,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        schema = func._schema
        if func.namespace not in ("aten", "prims"):
            raise UnjudgedError(f"{func} is unknown and may have any effect")
        if func in _VIEWS or (not schema.is_mutable and any(r.alias_info is not None for r in schema.returns)):
            return func(*args, **kwargs)
        key: Any = (func, self._named(args), self._named(tuple(kwargs.items())))
        if torch.Tag.nondeterministic_seeded in func.tags:
            key = (*key, self.draws)
            self.draws = self._number(("draws", key))
        written = list(_written(func, args, kwargs))
        if any(tensor.untyped_storage()._cdata in self._weights for tensor in written):
            raise UnjudgedError("a call writes to parameters")
        symbolic = any(tensor.is_meta for tensor in _tensors((args, kwargs)))
        if symbolic and not all(tensor.is_meta for tensor in written):
            raise UnjudgedError(f"{func} writes values of inputs to a tensor that depends on none")
        result = self._without_values(func, args, kwargs) if symbolic else func(*args, **kwargs)
        for place, tensor in enumerate(written):
            self._hold(tensor, (key, "written", place))
        self._hold_new(result, key)
        return result

    def _without_values(self, func: torch._ops.OpOverload, args: Any, kwargs: Any) -> Any:
        """A function's result on the meta device; computed once for operands of equal shapes."""
        shapes = func, _shapes((args, kwargs))
        if shapes not in self._shapes:
            result = func(*_all_on_meta(args), **_all_on_meta(kwargs))
            own = {tensor.untyped_storage()._cdata for tensor in _tensors(result)} - self._content.keys()
            alike = len(own) == sum(all(t is not a for a in args) for t in _tensors(result))
            if alike and _shapes((args, kwargs)) == shapes[1]:
                self._shapes[shapes] = _recipe(args, result)
            return result
        return _made(self._shapes[shapes], args)

    def _hold_new(self, result: Any, key: Any) -> None:
        for place, tensor in enumerate(_tensors(result)):
            if tensor.untyped_storage()._cdata not in self._content:
                self._hold(tensor, (key, place))

    def _hold(self, tensor: Tensor, key: Any) -> None:
        storage = tensor.untyped_storage()
        self._content[storage._cdata] = self._number(key)
        self._alive.append(storage)  # another memory must not get its address

    def _number(self, key: Any) -> int:
        return self._numbers.setdefault(key, len(self._numbers))

    def _content_of(self, tensor: Tensor) -> int:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._content:
            if tensor.is_meta or storage.nbytes() > _MOST * tensor.element_size():
                raise UnjudgedError("the program reads a tensor of unknown content")
            everything = torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)
            content = everything.cpu().numpy().tobytes()
            self._hold(tensor, ("content", content))
        return self._content[storage._cdata]

    def _named(self, value: Any) -> Any:
        """An argument with keys in place of tensors; numbers of other types have other keys."""
        if isinstance(value, Tensor):
            return self.of(value)
        if isinstance(value, (list, tuple)):
            return tuple(map(self._named, value))
        return value if isinstance(value, (int, str)) and not isinstance(value, bool) else (type(value), repr(value))


def _lying(tensor: Tensor) -> Any:
    """A tensor's layout in its storage."""
    bits = tensor.is_conj(), tensor.is_neg()
    return tensor.storage_offset(), tensor.shape, tensor.stride(), tensor.dtype, bits


def _recipe(args: tuple[Any, ...], result: Any) -> Any:
    """How to make a result again: the position of an argument, a tensor's shape, or several of these."""
    if isinstance(result, (tuple, list)):
        return type(result), [_recipe(args, item) for item in result]
    if not isinstance(result, Tensor):
        return "as it is", result
    place = next((place for place, value in enumerate(args) if value is result), None)
    return (result.shape, result.stride(), result.dtype) if place is None else ("argument", place)


def _made(recipe: Any, args: tuple[Any, ...]) -> Any:
    if len(recipe) == 3:
        return torch.empty_strided(recipe[0], recipe[1], dtype=recipe[2], device="meta")
    kind, what = recipe
    if kind == "argument":
        return args[what]
    return what if kind == "as it is" else kind(_made(item, args) for item in what)


def _shapes(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.shape, value.stride(), value.dtype
    if isinstance(value, dict):
        return tuple((name, _shapes(item)) for name, item in value.items())
    if isinstance(value, (list, tuple)):
        return tuple(map(_shapes, value))
    return type(value), repr(value)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple, dict)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _tensors(item)


def _all_on_meta(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value if value.is_meta else value.to("meta")
    if isinstance(value, dict):
        return {name: _all_on_meta(item) for name, item in value.items()}
    return type(value)(map(_all_on_meta, value)) if type(value) in (list, tuple) else value


def _written(func: torch._ops.OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[Tensor]:
    """The tensors that a call writes to."""
    for place, argument in enumerate(func._schema.arguments if func._schema.is_mutable else ()):
        value = args[place] if place < len(args) else kwargs.get(argument.name)
        if argument.alias_info is not None and argument.alias_info.is_write:
            yield from _tensors(value)
    for place in _WRITTEN.get(func, ()):
        yield from _tensors(args[place])
