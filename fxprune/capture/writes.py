"""Writes of a forward to parameters and buffers, as nodes that repeat them at every call."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import fx, nn

from fxprune.capture.clone import meta_like
from fxprune.capture.lowering import leaves, mutates
from fxprune.capture.numbers import size_of
from fxprune.capture.objects import is_dense
from fxprune.errors import CaptureError

_RESHAPES_IN_PLACE = {"squeeze_", "unsqueeze_", "transpose_", "swapaxes_", "swapdims_", "t_"}


class Writes:
    """Writes to the tensors of a model that a recorder watches.

    ``attribute``: the node that reads a tensor by its name; ``new`` makes a node, ``node_of`` gives that of a tensor.
    ``decided`` writes a check on sizes.
    """

    def __init__(
        self,
        new: Callable[..., fx.Node],
        node_of: Callable[[torch.Tensor], fx.Node],
        attribute: Callable[[str, torch.Tensor], fx.Node],
        decided: Callable[..., None],
    ) -> None:
        self._new, self._node_of, self._attribute, self._decided = new, node_of, attribute, decided
        self._names: dict[int, str] = {}
        self._tensors: dict[str, torch.Tensor] = {}
        self._held: list[tuple[torch.Tensor, int]] = []
        self._given_data: set[str] = set()
        self._made: set[int] = set()  # the memories to which writes are not noted here
        self._kept: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.fills = False  # whether lists or dicts among the inputs change
        self.outside: tuple[str, ...] = ()  # what else this writes to, from before the forward, in words

    def watch(
        self,
        named: Iterable[tuple[str, torch.Tensor]],
        plain: Iterable[torch.Tensor],
        kept: list[tuple[torch.Tensor, torch.Tensor]],
    ) -> None:
        """Note the tensors of the model: those with state-dict names, of which the first counts, and plain attributes.

        ``kept`` gets every other tensor from before the forward to which this writes, with its values until then.
        """
        self._made, self._kept = {*map(_memory, plain)}, kept
        for name, tensor in named:
            self._names.setdefault(id(tensor), name)
            self._tensors[name] = tensor
            self._held.append((tensor, tensor.untyped_storage()._cdata))

    def run(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Call a function of what no input enters, and note the tensors that it makes."""
        self.note(func, args, kwargs)
        value = func(*args, **kwargs)
        if isinstance(value, (torch.Tensor, tuple, list)):
            self._made |= {*map(_memory, leaves(value))} - {*map(_memory, leaves((args, kwargs)))}
        return value

    def note(self, func: Any, args: Any, kwargs: Any) -> None:
        """Note those tensors to which a call writes, and whose memory no call made."""
        for tensor in leaves((args[:1] if mutates(func) else (), kwargs.get("out"))):
            if is_dense(tensor) and (memory := _memory(tensor)) not in self._made:
                self._kept.append((tensor, tensor.detach().clone()))
                self._made.add(memory)
                self.outside += (f"a tensor of shape {tuple(tensor.shape)}",)

    def check_given(self, given: Any, left: Any, *, part: bool) -> None:
        """Note whether inputs are still what was given. Raises CaptureError: a part's are not, which others read."""
        self.fills = not _same_entries(given, left)
        if part and self.fills:
            raise CaptureError("it changes a list or dict that it is given, which no graph does: return the entries")

    def name_of(self, tensor: torch.Tensor) -> str | None:
        """The state-dict name of a tensor, if it has one."""
        return self._names.get(id(tensor))

    def are_own(self, path: str, module: nn.Module) -> bool:
        """Whether a module holds its own tensors, none that the forward put in their places."""
        held = (*module._parameters.items(), *module._buffers.items())
        return all(tensor is self._tensors.get(f"{path}.{name}") for name, tensor in held)

    def replaced(self, name: str, old: torch.Tensor, new: Any) -> None:
        """``self.mean = ...`` is written into the buffer. Raises CaptureError: it is no tensor, or for a parameter."""
        if isinstance(old, nn.Parameter) or not isinstance(new, torch.Tensor):
            raise CaptureError(f"the forward replaces {name}, which is no buffer, or by what is no tensor")
        node = self._attribute(name, old)
        self._check_shape(self._node_of(new), node)
        self._keep_for_readers(node, old)
        value = self._new("call_method", "detach", (self._node_of(new),), {}, new)
        self._new("call_method", "copy_", (node, value), {}, old)

    def data(self, name: str, tensor: torch.Tensor, value: Any) -> None:
        """``self.mean.data = ...`` is written into the tensor. Raises CaptureError: it cannot hold what is given."""
        held, old = self.name_of(tensor), self._node_of(tensor)
        if name != "data" or held is None or not isinstance(value, torch.Tensor) or held in self._given_data:
            raise CaptureError(f"the forward sets .{name} of {held or 'an activation'}, which no graph would do again")
        with torch._C.DisableTorchFunction():
            shared = value.untyped_storage()._cdata in {memory for _, memory in self._held}
            if shared or (value.shape, value.dtype) != (tensor.shape, tensor.dtype):
                raise CaptureError(f"the forward gives {held} data of another shape or type, or of another tensor")
        self._given_data.add(held)
        self._check_shape(self._node_of(value), old)
        self._keep_for_readers(old, tensor)
        data = self._new("call_function", getattr, (old, "data"), {}, meta_like(tensor))
        self._new("call_method", "copy_", (data, self._node_of(value)), {}, meta_like(tensor))

    def _check_shape(self, value: fx.Node, held: fx.Node) -> None:
        """Check in the graph that a value has the shape of what it replaces: else the tensor would change its own."""
        with torch._C.DisableTorchFunction():
            shape = tuple(held.meta["val"].shape)
        for dim, size in enumerate(shape):
            self._decided(operator.eq, (size_of(value, dim, size), size_of(held, dim, size)))

    def _keep_for_readers(self, node: fx.Node, tensor: torch.Tensor) -> None:
        """Give readers of the old values, gradients included, a copy."""
        with node.graph.inserting_after(node):
            before = self._new("call_method", "clone", (node,), {}, meta_like(tensor))
        node.replace_all_uses_with(before, lambda user: user is not before)

    def keep_shape(self, func: Any, args: Any) -> None:
        """Keep the earlier node's shape when a tensor gets another in place. Raises CaptureError: a hidden write."""
        _refuse_hidden_writes(func)
        if getattr(func, "__name__", "") in _RESHAPES_IN_PLACE and isinstance(args[0], torch.Tensor):
            node = self._node_of(args[0])
            with torch._C.DisableTorchFunction():
                node.meta["val"] = node.meta["val"].detach()

    def unlearned(self, func: Any, args: tuple[Any, ...], without_gradients: bool) -> fx.Node | None:
        """The stand-in for a parameter that the forward writes to under ``no_grad``: its views have no gradients."""
        if not (without_gradients and mutates(func) and args and isinstance(args[0], nn.Parameter)):
            return None
        return self._new("call_method", "detach", (self._node_of(args[0]),), {}, meta_like(args[0]))

    def check_memory(self) -> None:
        """Check that every tensor still has its own memory. Raises CaptureError: one now has that of another tensor."""
        for tensor, memory in self._held:
            if tensor.untyped_storage()._cdata != memory:
                raise CaptureError(
                    f"the forward gives {self.name_of(tensor)} the memory of another tensor: use copy_()"
                )


def _memory(value: Any) -> int:
    """What tells the memory of a tensor from that of others; 0 for other values."""
    return int(value.untyped_storage()._cdata) if is_dense(value) else 0


def _same_entries(given: Any, left: Any) -> bool:
    """Whether containers hold the same objects in the same places."""
    if not isinstance(given, (dict, list, tuple)) or given is left:
        return given is left
    parts = ([*v, *v.values()] if isinstance(v, dict) else v for v in (given, left))
    return len(given) == len(left) and all(map(_same_entries, *parts))


def _refuse_hidden_writes(func: Any) -> None:
    """Refuse an operator that writes to arguments as its schema alone tells: its name, or an ``out``, must say so."""
    packet = getattr(func, "overloadpacket", func)
    if not isinstance(packet, torch._ops.OpOverloadPacket):
        return
    overloads = [func] if packet is not func else [getattr(packet, name) for name in packet.overloads()]
    for schema in (overload._schema for overload in overloads):
        places = [place for place, given in enumerate(schema.arguments) if given.is_write and not given.is_out]
        if any(place or not mutates(packet) for place in places):
            raise CaptureError(
                f"{schema.name} writes to its arguments, which no graph would tell: let it return a new tensor, or "
                "call it in a module of its own, which then is kept whole"
            )
