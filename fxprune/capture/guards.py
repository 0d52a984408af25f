"""Things that a trace meets once and a graph would repeat for ever: answers about tensors, calls that fail, scripts."""

from __future__ import annotations

import functools
import math
import operator
import sys
import threading
import types
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import fx

from fxprune.capture import sources
from fxprune.capture.decisions import Decisions
from fxprune.capture.lowering import leaves
from fxprune.capture.numbers import Traced, plain, size_of
from fxprune.capture.reachable import python_of
from fxprune.capture.settings import Reads
from fxprune.errors import CaptureError
from fxprune.rules.ops import canonical_name

_FINITE = {"isfinite": True, "isinf": False, "isnan": False, "isneginf": False, "isposinf": False}
_PASSING = {"all", "any", "bool", "detach", "sum", "max", "min", "amax", "amin"}
_JOINING = {"logical_or": operator.or_, "bitwise_or": operator.or_, "add": operator.or_}
_JOINING |= {"logical_and": operator.and_, "bitwise_and": operator.and_, "mul": operator.and_}
# All others hang on nothing that another input, or another use of the network, changes.
_OF_DTYPE = {"dtype", "element_size", "itemsize", "nbytes", "type", "result_type", "can_cast"}
_OF_KIND = {"is_floating_point", "is_complex", "is_signed"}
_OF_GRADIENTS = {"requires_grad", "is_leaf", "grad_fn"}
_OF_SIZES = {"nbytes", "is_same_size", "storage_offset"}


def answer_if_finite(node: fx.Node) -> bool | None:
    """The truth value of a node's tensor where all values are finite; None where that does not decide it."""
    if node.op not in ("call_function", "call_method") or not node.all_input_nodes:
        return None
    name = canonical_name(node.target)
    if name in _FINITE:
        return _FINITE[name]
    answers = [answer_if_finite(given) for given in node.all_input_nodes]
    known = [answer for answer in answers if answer is not None]
    if len(known) < len(answers):
        return None
    if name in _PASSING and len(known) == 1:
        return known[0]
    if name in ("logical_not", "bitwise_not") and len(known) == 1:
        return not known[0]
    return _JOINING[name](*known) if name in _JOINING and len(known) == 2 else None


# In the order in which they are answered: the one that changes least comes first.
GUARDS: dict[str, tuple[Any, tuple[str, ...]]] = {
    "is_compiling": (torch.compiler, ("is_compiling", "is_dynamo_compiling")),
    "is_tracing": (torch.jit, ("is_tracing",)),
    "is_exporting": (torch.compiler, ("is_exporting",)),
}


@contextmanager
def answering(answered: Collection[str], namespaces: Iterable[dict[str, Any]]) -> Iterator[set[str]]:
    """Answer yes to the guards in ``answered``; gives the set of all guards that are asked meanwhile.

    ``namespaces``: the globals of the model's own code, which may have imported a guard by its name.
    """
    asked: set[str] = set()
    variants: dict[int, Callable[[], bool]] = {}
    places: list[tuple[dict[str, Any], str, Any]] = []
    for guard, (module, names) in GUARDS.items():
        for name in names:
            original = getattr(module, name)
            variants[id(original)] = _variant(original, guard, guard in answered, asked)
            places.append((vars(module), name, original))
    for namespace in namespaces:
        places.extend((namespace, name, value) for name, value in list(namespace.items()) if id(value) in variants)
    try:
        for namespace, name, original in places:
            namespace[name] = variants[id(original)]
        yield asked
    finally:
        for namespace, name, original in places:
            namespace[name] = original


def _variant(original: Callable[[], bool], guard: str, answer: bool, asked: set[str]) -> Callable[[], bool]:
    thread = threading.get_ident()

    def variant() -> bool:
        if threading.get_ident() != thread or sources.is_hidden(sys._getframe(1)):
            return original()
        asked.add(guard)
        return answer or original()

    return variant


def next_guard(asked: Collection[str], answered: Collection[str]) -> str | None:
    """The next one to answer yes to: one that was asked and got no for an answer."""
    return next((guard for guard in GUARDS if guard in asked and guard not in answered), None)


@contextmanager
def without_scripts() -> Iterator[None]:
    """Let TorchScript functions that this thread calls run the Python functions that they were compiled from.

    A script calls torch's kernels, and reads sizes, without Python, so no trace would see what it does.
    """
    kinds: tuple[Any, ...] = (torch.jit.ScriptFunction, torch._C.ScriptMethod)
    before = [(kind, kind.__call__) for kind in kinds]
    try:
        for kind, original in before:
            kind.__call__ = _as_python(original)
        yield
    finally:
        for kind, original in before:
            kind.__call__ = original


@contextmanager
def without_compilation() -> Iterator[None]:
    """Let functions, methods and modules that torch.compile has wrapped run as the Python code that they are."""
    if "torch._dynamo" not in sys.modules:  # whose import takes seconds; where it is not loaded, nothing was wrapped
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


def _as_python(original: Callable[..., Any]) -> Callable[..., Any]:
    thread = threading.get_ident()

    def call(script: Any, *args: Any, **kwargs: Any) -> Any:
        if threading.get_ident() != thread:
            return original(script, *args, **kwargs)
        function = python_of(script)
        if function is None:
            raise CaptureError(
                f"the forward calls {script.name!r}, which TorchScript runs unseen: call the Python function that it "
                "was made from"
            )
        return function(*args, **kwargs)

    return call


class Questions:
    """Answers a forward's questions. ``reads`` notes those about dtypes and gradients. ``learning``: whether tensors
    claim to need gradients.
    """

    def __init__(
        self,
        reads: Reads,
        node_of: Callable[[torch.Tensor], fx.Node],
        shape_of: Callable[[torch.Tensor], torch.Size],
        decisions: Decisions,
        device: torch.device,
        learning: bool,
    ) -> None:
        self._reads = reads
        self._node_of, self._shape_of = node_of, shape_of
        self._decisions = decisions
        self._device = device
        self._learning = learning

    def answer(self, name: str, args: Any, kwargs: Any, value: Any) -> Any:
        """Answer a question; ``value`` is the answer on the meta device."""
        given = list(leaves((args, kwargs)))
        self._decisions.add_shape(leaf for leaf in given if isinstance(leaf, Traced))
        for tensor in (leaf for leaf in given if isinstance(leaf, torch.Tensor)):
            if name in _OF_DTYPE:
                self._reads.read(value if isinstance(value, torch.dtype) else tensor.dtype, self._node_of(tensor))
            if name in _OF_KIND:
                self._reads.read_kind(self._node_of(tensor))
            if name in _OF_SIZES:
                self._decisions.add_shape(self._shape_of(tensor))
        if name in _OF_GRADIENTS:
            self._reads.asks_gradients = True
            return not value if self._learning else value
        if name == "is_contiguous":
            self._decisions.add_layout(self._node_of(args[0]), kwargs, value)
        elif name == "stride":
            return self._strides(*args, **kwargs)
        elif name == "type":
            return f"torch.{'cuda.' * (self._device.type == 'cuda')}{value.split('.')[-1]}"
        return value

    def _strides(self, tensor: torch.Tensor, dim: Any = None) -> Any:
        """All strides, or one, as products of sizes; that is what they are for a contiguous tensor."""
        if not tensor.is_contiguous():
            raise CaptureError("the forward asks for the strides of a tensor that is not contiguous: make it so first")
        if 1 in tensor.shape:
            raise CaptureError(
                "the forward asks for the strides of a tensor with a dim of one, which have no order: ask for its sizes"
            )
        self._decisions.add_layout(self._node_of(tensor), {}, True)
        shape = self._shape_of(tensor)
        strides = tuple(math.prod(shape[place + 1 :]) for place in range(len(shape)))
        return strides if dim is None else strides[operator.index(plain(dim))]


class Failures:
    """Recorded calls inside a ``try`` of the forward: it branches on whether they fail."""

    def __init__(self, decisions: Decisions, reads: Reads, node_of: Callable[[torch.Tensor], fx.Node]) -> None:
        self._decisions, self._reads, self._node_of = decisions, reads, node_of
        self._refusal: CaptureError | None = None
        self._around: dict[types.FrameType, int] = {}
        self._tried: list[tuple[torch.Tensor, Any, str]] = []

    def failed(self, error: Exception, given: Any) -> None:
        """Note a failure: a refusal, or an error that other sizes, types or layouts of ``given`` may not raise."""
        try:
            if isinstance(error, CaptureError):
                raise error
            self._hold(given)
        except CaptureError as refusal:
            self._refusal = self._refusal or refusal

    def passed(self, value: Any, given: Any, divisor: Any = None) -> None:
        """Note a call that passed: fix the numbers behind a number, or its divisor; remember tensors, maybe unread."""
        if isinstance(value, (torch.Tensor, *Traced)) and sources.is_tried(self._around):
            if isinstance(value, torch.Tensor):
                self._tried.append((value, given, sources.source_line()))
            elif divisor is not None:
                self._decisions.add(operator.ne, (divisor, 0))
            else:
                self._hold(given)

    def _hold(self, given: Any) -> None:
        for leaf in leaves(given):
            if isinstance(leaf, Traced):
                self._decisions.add(operator.eq, (leaf, leaf.value))
            elif isinstance(leaf, torch.Tensor) and leaf.is_meta:
                self._hold_tensor(leaf, self._node_of(leaf))

    def _hold_tensor(self, tensor: torch.Tensor, node: fx.Node) -> None:
        with torch._C.DisableTorchFunction():
            self._decisions.add_shape(size_of(node, dim, size) for dim, size in enumerate(tuple(tensor.shape)))
            self._decisions.add_layout(node, {}, tensor.is_contiguous())
            self._reads.read(tensor.dtype, node)
        self._reads.loose = True

    def check(self) -> None:
        """Fix the arguments of calls whose only effect was that they passed.

        Raises:
            CaptureError: the forward caught this refusal, or the arguments of a call cannot be fixed.
        """
        self._around.clear()
        if self._refusal is not None:
            raise self._refusal
        for value, given, place in self._tried:
            self._decisions.place = place
            if not self._node_of(value).users:
                self._hold(given)


def noted(call: Callable[..., Any]) -> Callable[..., Any]:
    """A recorder's method that tells its ``failures`` whether the call failed."""

    @functools.wraps(call)
    def noting(recorder: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            value = call(recorder, *args, **kwargs)
        except Exception as error:
            recorder.failures.failed(error, (args, kwargs))
            raise
        recorder.failures.passed(value, (args, kwargs))
        return value

    return noting
