"""The recorder: a torch function mode that writes every op on watched tensors into an FX graph.

Tensors are plain meta tensors that know their nodes; sizes are numbers that know their origin. The mode is local to its
thread, so other threads do not notice the capture.
"""

from __future__ import annotations

import contextlib
import math
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from fxprune.capture import custom, known_results, lowering, masked, recording, settings, sources
from fxprune.capture.arguments import Arguments, as_torch_names_them
from fxprune.capture.clone import META, conversion_on_meta, meta_like, on_meta
from fxprune.capture.decisions import Decisions
from fxprune.capture.folding import KnownValues
from fxprune.capture.guards import Failures, Questions, noted
from fxprune.capture.live import DataReads, LiveValues
from fxprune.capture.lowering import getter_name, holds_floats, holds_tensor, leaves, map_leaves, mutates
from fxprune.capture.moments import Selections
from fxprune.capture.numbers import Traced, size_of
from fxprune.capture.settings import Reads
from fxprune.capture.state import check_forgotten
from fxprune.capture.writes import Writes
from fxprune.errors import CaptureError
from fxprune.rules import has_rule
from fxprune.rules.ops import canonical_name
from fxprune.util.copies import HELD_TENSOR
from fxprune.util.paths import new_node

_VIEW_GETTERS = {"T", "mT", "H", "mH", "real", "imag", "data"}
_QUERIES = {"size", "dim", "numel", "nelement", "__len__", "ndimension"}
_RANDOM = {"rand", "randn", "randint", "randperm", "normal", "bernoulli", "empty", "rand_like", "randn_like"}
_NODE, _HOOKS = "_fxprune_node", {"register_hook", "register_post_accumulate_grad_hook", "retain_grad"}
_UNANSWERED = {"data_ptr", "dim_order", "grad", "is_set_to", "storage", "typed_storage", "untyped_storage"}
_CUTS, _DEVICES = {"unbind", "split", "chunk"}, {"cpu", "cuda", "meta", "mps", "xpu"}
_READS_DATA = {"item", "tolist", "__bool__", "__int__", "__float__", "__index__", "numpy", "__contains__"}


class Recorder(TorchFunctionMode):
    """Records one forward into ``graph``.

    Functions with a rule are written as one node; the code of others is recorded. ``buffer(name)`` gives the values of
    a buffer, where there are any, for control flow that reads them. ``learning``: whether tensors claim to need
    gradients.
    """

    def __init__(
        self,
        device: torch.device,
        constant_name: Callable[[torch.Tensor], str],
        buffer: Callable[[str], torch.Tensor | None],
        learning: bool = False,
    ) -> None:
        super().__init__()
        self.modes_read: set[str] = set()
        self.graph = fx.Graph()
        self.graph._graph_namespace.create_name("self", None)  # no node may have this name in generated code
        self.constants: dict[str, torch.Tensor] = {}
        self.module_path: list[str] = []
        self._constant_name = constant_name
        self._buffer = buffer
        self._in_leaf = False
        self.device = device
        self._constant_nodes: dict[int, tuple[torch.Tensor, fx.Node]] = {}
        self._gradients, self._autocast = torch.is_grad_enabled(), settings.autocast()
        self._asked_for_gradients, self._inference = self._gradients, torch.is_inference_mode_enabled()
        self._attributes: dict[str, fx.Node] = {}
        self.writes = Writes(self._new, self.node_of, self._attribute, self.decided)
        self.reads = Reads()
        self.drew = False  # whether numbers were drawn outside torch
        self._arguments = Arguments(self.graph, self._new, self.node_of, self.reads)
        self._decisions = Decisions(self.graph, self._new, self._arguments.size)
        self.failures = Failures(self._decisions, self.reads, self.node_of)
        self._questions = Questions(self.reads, self.node_of, self._shape, self._decisions, device, learning)
        self._values = KnownValues(self._new, self.node_of, self._stored, self.constants, self._decisions)
        self._by_values: DataReads | None = None
        self.selections = Selections(None)
        self._entered: Any = None  # a function that dispatches to others asks the mode again by its own name

    def read_live(self, live: LiveValues, selections: Selections) -> None:
        """Where data decide, go on with the sample's values, as far as a graph can do the same for other values."""
        forms = self._new, self.node_of, self._call, self._adopt, self._decisions
        self._by_values, self.selections = DataReads(live, *forms, selections), selections

    def placeholder(self, name: str, value: Any, default: tuple[Any, ...] = (), may_be_none: bool = False) -> None:
        """Add an input; the tensors in ``value`` become getitem nodes of it where it is a container.

        ``default``: the value that a call may leave out, alone in a tuple.
        """
        node = self.graph.placeholder(name)
        node.args = default
        node.meta["val"] = value
        self._decisions.add_lengths(node, value)
        self._adopt(node, value)
        if may_be_none and holds_tensor(value):
            self._decisions.add_given(node)
        self._decisions.add_literal(node, value)

    def _adopt(self, node: fx.Node, value: Any) -> None:
        if isinstance(value, torch.Tensor):
            setattr(value, _NODE, self._without_gradient(node, value))
        elif isinstance(value, (list, tuple, dict)):
            for key, item in value.items() if isinstance(value, dict) else enumerate(value):
                if holds_tensor(item):
                    self._adopt(self._new("call_function", operator.getitem, (node, key), {}, item), item)

    def _without_gradient(self, node: fx.Node, value: torch.Tensor) -> fx.Node:
        """Detach results in the graph where the forward switches gradients off."""
        unchanged = self._gradients in (torch.is_grad_enabled(), self._asked_for_gradients)
        unchanged = unchanged and torch.is_inference_mode_enabled() is self._inference
        if unchanged or not holds_floats(value) or not node.all_input_nodes:
            return node
        return self._new("call_method", "detach", (node,), {}, value)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        args, kwargs = as_torch_names_them(func, args, kwargs) if kwargs else (args, {})
        name = getattr(func, "__name__", "")
        if name != "_set_grad_enabled" and not self._tracks(args, kwargs) and not self._varies(name, args, kwargs):
            return self.writes.run(func, args, kwargs)
        return self._answer(name, func, args, kwargs)

    @noted
    def _answer(self, name: str, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if (asked := getter_name(func) if name == "__get__" else name) in _UNANSWERED and self._is_tracked(args[0]):
            self._refuse(f"the forward asks a tensor for its {asked}, which a graph's own tensors have otherwise")
        if name == "__get__":
            return self._read_attribute(getter_name(func), func, args[0])
        if name == "__set__" and self._is_tracked(args[0]):
            return self.writes.data(getter_name(func), *args)
        if name == "_set_grad_enabled":
            self._refuse_custom()
            self._asked_for_gradients = bool(args[0])
        if name in _HOOKS and self._is_tracked(args[0]):
            self._refuse(f"the forward calls {name}(), and no graph would call the hook")
        if name in _QUERIES:
            return self._query(name, func, args, kwargs)
        if name in _READS_DATA:
            return self._values.read(name, func, args, kwargs, self._by_values)
        if name == "unbind" and self._by_values and (rows := self._by_values.steps(name, args[0])) is not None:
            return rows
        fill = lowering.filled(name, args, kwargs) or lowering.compared(name, args, kwargs)
        if fill or (lowering.enterable(func) and func is not self._entered and not has_rule(canonical_name(name))):
            return self._enter(func, fill, args, kwargs)
        return self._index_or_record(name, func, args, kwargs)

    def _enter(self, func: Any, fill: Callable[[], Any] | None, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        before, self._entered = self._entered, func
        try:
            with self:
                return fill() if fill else lowering.entered(func)(*args, **kwargs)
        finally:
            self._entered = before

    def _index_or_record(self, name: str, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if name == "pad" and len(args) > 1:
            args = args[0], self._values.lengths(args[1], self._by_values), *args[2:]
        if self._by_values is None and masked.asks_places(name, args, kwargs):
            with self:
                return masked.places(args[0])
        if name in ("__getitem__", "__setitem__"):
            args = (args[0], masked.as_mask(args[1]), *args[2:])
            args = args[0], self._values.as_numbers(args[1], masks=name == "__getitem__"), *args[2:]
        args = self._by_values.picked(*args) if self._by_values and name == "__setitem__" else args
        with self if name == "__setitem__" else contextlib.nullcontext():
            handled, result = masked.indexed(name, args, self.node_of)
        if self._by_values and isinstance(result, masked.Picked):
            return self._by_values.entries(result, func, args)
        return result if handled else self._record(func, args, kwargs)

    def _varies(self, name: str, args: Any, kwargs: Any) -> bool:
        """Whether a call without watched arguments may differ next time: random, or of the input's dtype."""
        return canonical_name(name) in _RANDOM or any(map(self.reads.holds, leaves((args, kwargs))))

    def _tracks(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        return any(self._is_tracked(leaf) for leaf in leaves((args, kwargs)))

    def _is_tracked(self, leaf: Any) -> bool:
        if isinstance(leaf, torch.Tensor):
            return leaf.device == META or id(leaf) in self._constant_nodes
        if isinstance(leaf, slice):
            return any(isinstance(v, Traced) for v in (leaf.start, leaf.stop, leaf.step))
        return isinstance(leaf, Traced) or (isinstance(leaf, torch.device) and self._arguments.knows(leaf))

    # -- questions about a tensor -----------------------------------------------------------------------------------

    def _read_attribute(self, name: str, func: Any, tensor: Any) -> Any:
        if name == "shape":
            return self._shape(tensor)
        if name == "ndim":
            self._decisions.add_rank(self.node_of(tensor))
        if name == "device":
            return self._arguments.device_of(self.node_of(tensor), self.device)
        if name.removeprefix("is_") in _DEVICES:
            return self.device.type == name.removeprefix("is_")
        if name in _VIEW_GETTERS:
            value = func(tensor)
            node = self._new("call_function", getattr, (self.node_of(tensor), name), {}, value)
            self._adopt(node, value)
            return value
        return self._questions.answer(name, (tensor,), {}, func(tensor))

    def _shape(self, tensor: torch.Tensor) -> torch.Size:
        node = self.node_of(tensor)
        self._decisions.add_rank(node)
        with torch._C.DisableTorchFunction():
            return torch.Size(tuple(size_of(node, d, n) for d, n in enumerate(tuple(tensor.shape))))

    def _query(self, name: str, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        value = func(*args, **kwargs)
        if name in ("dim", "ndimension"):
            self._decisions.add_rank(self.node_of(args[0]))
        if name == "size":
            dim = args[1] if len(args) > 1 else kwargs.get("dim")
            shape = self._shape(args[0])
            return shape if dim is None else shape[int(dim)]
        if name in ("numel", "nelement"):
            return math.prod(self._shape(args[0]))
        if name == "__len__":
            self.decided(operator.eq, (self._shape(args[0])[0], value))
        return value

    # -- recording --------------------------------------------------------------------------------------------------

    def _record(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        settings.refuse_autocast(self.reads, self._autocast)
        self._refuse_custom()
        self._own_constants_before_mutation(func, args)
        self.writes.keep_shape(func, args)
        try:
            value = self._compute(func, args, kwargs)
        except (NotImplementedError, RuntimeError):
            if self._by_values is None or mutates(func):
                raise
            return self._by_values.result(func, args, kwargs)
        if not holds_tensor(value) and not mutates(func):
            return self._questions.answer(getattr(func, "__name__", ""), args, kwargs, value)
        if getattr(func, "__name__", "") in _CUTS and isinstance(args[0], torch.Tensor):
            self._decisions.add_pieces(func.__name__, self.node_of(args[0]), args, kwargs, len(value))
        unlearned = self.writes.unlearned(func, args, torch.is_grad_enabled() != self._gradients)
        op, target, args = lowering.node_form(func, args, kwargs)
        if unlearned is not None:
            self._new(op, target, (unlearned, *self._arguments.of(args[1:])), self._arguments.of(kwargs), value)
            return value
        node = self._call(op, target, args, kwargs, value)
        if isinstance(out := kwargs.get("out"), torch.Tensor):
            setattr(out, _NODE, node)
        return value

    def _refuse_custom(self) -> None:
        if torch.is_grad_enabled() != self._gradients and custom.runs():
            raise CaptureError("a custom autograd function cannot be watched: its backward would be lost")

    def _call(self, op: str, target: Any, args: Any, kwargs: Any, value: Any) -> fx.Node:
        node = self._new(op, target, self._arguments.of(tuple(args)), self._arguments.of(kwargs), value)
        self._adopt(node, value)
        return node

    def _own_constants_before_mutation(self, func: Any, args: tuple[Any, ...]) -> None:
        """Clone a constant that the forward writes to, anew at every call of the graph."""
        self.writes.note(func, args, {})
        if mutates(func) and args and isinstance(args[0], torch.Tensor) and args[0].device != META:
            constant = args[0]
            if HELD_TENSOR in self._constant_name(constant):
                raise CaptureError("the forward writes to a tensor that is no buffer: no state dict would keep it")
            node = self._new("call_method", "clone", (self._constant(constant),), {}, meta_like(constant))
            self._constant_nodes[id(constant)] = (constant, node)

    @noted
    def call_module(self, path: str, module: nn.Module, original: Any, args: Any, kwargs: Any) -> Any:
        """Record the call of a leaf module."""
        settings.refuse_autocast(self.reads, self._autocast)
        self._in_leaf = True
        with torch._C.DisableTorchFunction():
            value: Any = known_results.known_result(module, args, kwargs)
            if value is None:
                value = self._compute(lambda *a, **k: original(module, *a, **k), args, kwargs)
        self._in_leaf = False
        self._call("call_module", path, args, kwargs, value).meta["layer"] = type(module).__name__
        return value

    @noted
    def call_custom(self, function: custom.CustomFunction, run: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        """Record a custom autograd function; ``run(*args)`` gives its results. Raises CaptureError as that does."""
        value = custom.without_values(run, args, lambda t: self.writes.name_of(t) is not None or hasattr(t, _NODE))
        with torch._C.DisableTorchFunction():
            self._call("call_function", function, args, {}, value)
        return value

    @noted
    def call_opaque(self, path: str, result: Any, args: Any, kwargs: Any) -> Any:
        """Record the call of an opaque module; ``result`` is its output in a real run."""
        recording.check(path, result, kwargs)
        with torch._C.DisableTorchFunction():
            value = pytree.tree_map_only(torch.Tensor, meta_like, result)
        self._decisions.add_lengths(self._call("call_module", path, args, kwargs, value), value)
        return value

    @property
    def buffers_read(self) -> set[str]:
        """The buffers whose values the forward read in Python."""
        return self._values.buffers - self.constants.keys()

    @property
    def innermost(self) -> str:
        """Path of the module whose forward is running."""
        return next((p for p in reversed(self.module_path) if p), "")

    def mode_is_used(self, path: str, changed: bool) -> None:
        """Note that the forward asks for a module's training flag. Raises CaptureError: it changes the flag."""
        if changed:
            self._refuse(f"the forward changes the mode of {path or 'the model'}, as no graph does: do so in train()")
        self.modes_read |= set() if self._in_leaf else {path}

    @noted
    def decided(self, function: Callable[..., Any], operands: tuple[Any, ...]) -> None:
        """Check in the graph that ``function(*operands)`` is true. Raises CaptureError: one is of an earlier call."""
        for operand in operands:
            check_forgotten(operand)
        self._decisions.add(function, operands)

    def _refuse(self, reason: str) -> None:
        raise CaptureError(reason, path=self.innermost)

    def output(self, value: Any) -> None:
        """Finish the graph. Raises CaptureError: a parameter or buffer now shares the memory of another tensor."""
        self.writes.check_memory()
        if self._by_values:
            self._by_values.finish()
        with self.graph.inserting_before(self.graph.output(self._arguments.of(value))):
            self.failures.check()

    def _compute(self, func: Any, args: Any, kwargs: Any) -> Any:
        args, kwargs = map_leaves(on_meta, (tuple(args), kwargs))
        args, kwargs = conversion_on_meta(getattr(func, "__name__", ""), args, kwargs)
        known = known_results.known_function_result(getattr(func, "__name__", ""), args, kwargs)
        if known is not None:
            return known
        if getattr(func, "__name__", "") in ("cpu", "cuda"):
            return args[0].view_as(args[0])
        # A factory without a device makes its tensor on the default one.
        value = map_leaves(on_meta, func(*args, **kwargs))
        # A call may give its argument itself back (``float()`` of what is float32), which stays what it was.
        given = isinstance(value, torch.Tensor) and not mutates(func) and any(value is arg for arg in args)
        return value.view_as(value) if given else value

    def _new(self, op: str, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any], value: Any) -> fx.Node:
        if sources.has_saved_tensor_hooks():
            self._refuse("the forward packs what is saved for the backward pass, which no graph would do")
        node = new_node(self.graph, op, target, args, kwargs)
        module = self.module_path[-1] if self.module_path else ""
        node.meta.update(val=value, source=sources.source_line(), module=module)
        return node

    # -- nodes --------------------------------------------------------------------------------------------------------

    def node_of(self, tensor: torch.Tensor) -> fx.Node:
        """The node that made the tensor; a parameter, buffer or constant gets one on first use."""
        if id(tensor) in self._constant_nodes:
            return self._constant_nodes[id(tensor)][1]
        node = getattr(tensor, _NODE, None)
        if isinstance(node, fx.Node) and node.graph is self.graph:
            return node
        if (name := self.writes.name_of(tensor)) is not None:
            node = self._attribute(name, tensor)
            setattr(tensor, _NODE, node)
            return node
        if tensor.device == META:
            raise CaptureError(
                f"a tensor of shape {tuple(tensor.shape)} came out of code that cannot be watched "
                "(a compiled function, a custom autograd function or a tensor kept from an earlier call)"
            )
        return self._constant(tensor)

    def _stored(self, name: str) -> torch.Tensor | None:
        """The values of a constant or a buffer; None for a parameter, or if there are none."""
        return self.constants[name] if name in self.constants else self._buffer(name)

    def _attribute(self, name: str, value: torch.Tensor) -> fx.Node:
        if name not in self._attributes:
            self._attributes[name] = self._new("get_attr", name, (), {}, value)
        return self._attributes[name]

    def _constant(self, tensor: torch.Tensor) -> fx.Node:
        if id(tensor) not in self._constant_nodes:
            name = f"{self._constant_name(tensor)}{len(self.constants)}"
            self.constants[name] = tensor.detach().clone()
            self._constant_nodes[id(tensor)] = tensor, self._attribute(name, meta_like(tensor))
            self._constant_nodes[id(tensor)][1].meta["constant"] = self.constants[name]
        return self._constant_nodes[id(tensor)][1]
