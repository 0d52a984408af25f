"""What a forward asks about dtypes, gradients and autocast: the graph reads it, checks it, or is refused."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import fx, nn

from fxprune.capture.decisions import CALLS_WITH, REFUSAL
from fxprune.capture.reachable import Reachable, names_in, reachable
from fxprune.capture.sources import Site, call_that_reads, current_call, source_line
from fxprune.capture.state import CHANCES
from fxprune.errors import CaptureError

if TYPE_CHECKING:
    from fxprune.capture.recorder import Recorder

PRECISIONS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
_AUTOCAST = ("cpu", "cuda")
_LIMITS = ("min", "max", "eps", "tiny")
_GRADIENTS = frozenset(("is_grad_enabled",))
_CASTS = frozenset(
    """is_autocast_enabled is_autocast_cpu_enabled get_autocast_dtype get_autocast_gpu_dtype
    get_autocast_cpu_dtype""".split()
)
_INFERENCE = frozenset(("is_inference_mode_enabled", "is_inference"))
_AUTOCASTS = {"autocast", "custom_fwd", "set_autocast_enabled"}
NewNode = Callable[[str, Any, tuple[Any, ...], dict[str, Any], Any], fx.Node]


@dataclass
class Reads:
    """The questions about dtypes that a forward asked, the newest last."""

    # For each tensor's node, the source line and the last node of the graph before the question.
    asked: dict[fx.Node, tuple[str, fx.Node]] = field(default_factory=dict)
    # The same of questions to which all precisions have one answer, but integers have another.
    kinds: dict[fx.Node, tuple[str, fx.Node]] = field(default_factory=dict)
    # Nodes that stand for an argument equal to a dtype that was read, or to a limit of it.
    guesses: list[fx.Node] = field(default_factory=list)
    asks_gradients: bool = False  # whether it asked tensors whether they need gradients
    leaves_autocast: bool = False  # whether it computed without the autocast that was on around it
    # Whether an answer may have gone elsewhere than into the one call that took it (``like=x.dtype``), or a guess may
    # be no answer.
    loose: bool = False
    # The calls that take answers, and did not get them yet.
    _waiting: list[Site] = field(default_factory=list)
    _latest: dict[torch.dtype, fx.Node] = field(default_factory=dict)

    def read(self, dtype: torch.dtype, node: fx.Node) -> None:
        """Note that a forward asked for the dtype of ``node``, or for something that depends on it."""
        self._latest[dtype] = node
        self.asked.setdefault(node, (source_line(), next(reversed(node.graph.nodes))))
        site = call_that_reads("dtype")
        self.loose |= site is None
        self._waiting += [] if site is None else [site]

    def read_kind(self, node: fx.Node) -> None:
        """Note that a forward asked whether ``node`` holds floats."""
        self.kinds.setdefault(node, (source_line(), next(reversed(node.graph.nodes))))

    @property
    def questions(self) -> tuple[Any, ...]:
        """What was asked, to be compared with another trace."""
        lines = [(node.name, line) for node, (line, _) in self.asked.items()]
        return lines, self.asks_gradients, self.leaves_autocast, self.loose

    @property
    def are_arguments(self) -> bool:
        """Whether each answer was only passed on to one call of torch: then it decides nothing else."""
        return not self.loose and not self._waiting

    def holds(self, value: Any) -> bool:
        """Whether a value may have come from a tensor's dtype."""
        return _as_dtype(value) in self._latest

    def argument(self, value: Any, new: NewNode) -> Any:
        """A dtype or a limit of one as it stands in the graph: for now a read, if there was one like it."""
        if dtype := _as_dtype(value):
            return self._guess(dtype, new, self._latest[dtype]) if dtype in self._latest else value
        for dtype, node in self._latest.items():
            limit = _limit(dtype, value)
            if limit:
                info = new("call_function", torch.finfo, (self._guess(dtype, new, node),), {}, torch.finfo(dtype))
                made = new("call_function", getattr, (info, limit), {}, value)
                self.guesses += [info, made]
                return made
        return value

    def _guess(self, dtype: torch.dtype, new: NewNode, node: fx.Node) -> fx.Node:
        site = current_call()
        self.loose |= site not in self._waiting
        if site in self._waiting:
            self._waiting.remove(site)
        made = new("call_function", getattr, (node, "dtype"), {}, dtype)
        self.guesses.append(made)
        return made


def _as_dtype(value: Any) -> torch.dtype | None:
    """The dtype itself, or the one that a name such as ``torch.FloatTensor`` means."""
    if isinstance(value, str) and value.startswith("torch.") and value.count(".") == 1:
        value = getattr(getattr(torch, value.split(".")[1], None), "dtype", None)
    return value if isinstance(value, torch.dtype) else None


def _limit(dtype: torch.dtype, value: Any) -> str:
    if type(value) is not float or not dtype.is_floating_point:
        return ""
    return next((name for name in _LIMITS if getattr(torch.finfo(dtype), name) == value), "")


def settle(trace: Recorder, model: nn.Module, own: set[torch.dtype], traced: Callable[..., Recorder | None]) -> None:
    """Find what in a graph depends on settings: decide which guesses are reads, and refuse other branches.

    ``own``: the dtypes of the model and the sample. ``traced`` gives the forward in another ``precision``, without
    ``gradients``, with autocast on (``cast``), in ``inference`` mode or ``learning`` (with tensors that need
    gradients), or drawing other numbers (``chance``); None where it cannot be traced then. Raises CaptureError: it
    takes another branch. If only autocast around it leads to another branch, checks in the graph refuse calls under
    autocast.
    """

    def otherwise(**changes: Any) -> Recorder | None:
        other = traced(**changes)
        trace.modes_read.update(other.modes_read if other else ())  # a forward may ask in some settings alone
        return other

    for number in CHANCES if trace.drew else ():
        _refuse_drawn(trace, otherwise(chance=(number,)))
    if trace.reads.asks_gradients:
        _refuse_other_branch(trace, otherwise(learning=True))
    named = _functions_named(reachable(model))
    asks_gradients, asks_cast = not _GRADIENTS.isdisjoint(named), not _CASTS.isdisjoint(named)
    if asks_gradients:
        _refuse_other_branch(trace, otherwise(gradients=False))
    if not _INFERENCE.isdisjoint(named):
        _refuse_other_branch(trace, otherwise(inference=True))
    if asks_cast or not _AUTOCASTS.isdisjoint(named):
        both = [otherwise(cast=True, gradients=False)] if asks_gradients and asks_cast else []
        others = [otherwise(cast=True), *both]
        if any(o is None or o.reads.leaves_autocast or (asks_cast and _first_other_op(trace, o)) for o in others):
            _refuse_autocast_around(trace.graph)
    # Last, because it changes the graph.
    decides = trace.reads.asked if not trace.reads.are_arguments else {}
    if decides:
        further = [dtype for dtype in PRECISIONS if own & set(PRECISIONS) != {dtype}]
        _settle_precisions(trace.graph, trace.reads, {dtype: otherwise(precision=dtype) for dtype in further})
    _refuse_other_kinds(trace.graph, decides | trace.reads.kinds)


def _functions_named(code: Reachable) -> frozenset[str]:
    """Names of functions that code may call; those of all questions where it may get one by a name that it computes."""
    each = [names_in(function.__code__) for function in code.functions]
    computed = any({"getattr", "torch"} <= names for names in each)
    return frozenset(code.held).union(*each, _GRADIENTS | _CASTS | _INFERENCE if computed else ())


def _settle_precisions(graph: fx.Graph, reads: Reads, others: dict[torch.dtype, Recorder | None]) -> None:
    found = {d: _compared(graph, reads, other.graph, other.reads) for d, other in others.items() if other}
    refused = {d: "" for d in others if d not in found}
    refused |= {d: node.meta.get("source", "") for d, (node, _) in found.items() if node is not None}
    for guess in reads.guesses:
        values = [matches[guess] for d, (_, matches) in found.items() if d not in refused and guess in matches]
        if all(value == guess.meta["val"] for value, _ in values):
            _make_literal(guess)
            continue
        for dtype, (_, matches) in found.items():
            if dtype not in refused and guess in matches and not matches[guess][1]:
                refused[dtype] = guess.meta["source"]
    for dtype, line in refused.items():
        _refuse(graph, reads, dtype, line)


def _refuse_drawn(trace: Recorder, other: Recorder | None) -> None:
    """Refuse a forward for which numbers drawn outside torch make a difference."""
    node = _first_other_op(trace, other)
    if node is None and other is not None:
        drawn = {name for name, tensor in trace.constants.items() if not _equal(tensor, other.constants.get(name))}
        node = next((node for node in trace.graph.nodes if node.target in drawn), None)
        if trace.reads.questions != other.reads.questions:
            node = next(iter(trace.graph.nodes))
    if node is not None:
        raise CaptureError(
            "the forward draws random numbers with numpy or Python's random module, on which "
            f"{node.meta.get('source') or 'its result'} depends, and a graph would repeat them at every call: draw "
            "them with torch",
            path=node.meta.get("module", ""),
        )


def _equal(tensor: torch.Tensor, other: torch.Tensor | None) -> bool:
    return other is not None and tensor.dtype == other.dtype and torch.equal(tensor, other)


def _refuse_other_branch(trace: Recorder, other: Recorder | None) -> None:
    if (node := _first_other_op(trace, other)) is not None:
        message = (
            "the forward asks whether gradients are on, or needed, or sets them, and no graph carries the way that"
        )
        raise CaptureError(
            f"{message} it takes to {node.meta.get('source') or 'its result'} then", path=node.meta.get("module", "")
        )


def _first_other_op(trace: Recorder, other: Recorder | None) -> fx.Node | None:
    """The first op that differs in other settings: the very first if the forward fails there, None if none differs."""
    if other is None:
        first: fx.Node = next(iter(trace.graph.nodes))
        return first
    return _compared(trace.graph, trace.reads, other.graph, other.reads)[0]


def _compared(
    graph: fx.Graph, reads: Reads, other: fx.Graph, other_reads: Reads
) -> tuple[fx.Node | None, dict[fx.Node, tuple[Any, bool]]]:
    """The first op in which another graph differs, or None; and for each value whether it is a guess there too."""
    left, right = _ops(graph, reads.guesses), _ops(other, other_reads.guesses)
    match = _Match(set(reads.guesses), set(other_reads.guesses))
    for mine, theirs in zip(left, right, strict=False):
        same = mine.op == theirs.op and _same_target(mine.target, theirs.target)
        if not same or not match.equal((mine.args, mine.kwargs), (theirs.args, theirs.kwargs)):
            return mine, match.found
        match.twins[mine] = theirs
    return (None if len(left) == len(right) else left[-1]), match.found


def _ops(graph: fx.Graph, guesses: Iterable[fx.Node]) -> list[fx.Node]:
    left_out = set(guesses)
    return [node for node in graph.nodes if node not in left_out]


def _same_target(left: Any, right: Any) -> bool:
    return bool(left == right or (type(left) is type(right) and type(left).__module__.startswith("fxprune.")))


class _Match:
    """Compares arguments of two graphs, whose nodes so far are ``twins``."""

    def __init__(self, guesses: set[fx.Node], others: set[fx.Node]) -> None:
        self.twins: dict[fx.Node, fx.Node] = {}
        self.found: dict[fx.Node, tuple[Any, bool]] = {}
        self._guesses, self._others = guesses, others

    def equal(self, left: Any, right: Any) -> bool:
        if isinstance(left, fx.Node) and left in self._guesses:
            guessed = isinstance(right, fx.Node) and right in self._others
            self.found[left] = (right.meta["val"] if guessed else right, guessed)
            return guessed or type(right) is type(left.meta["val"])
        if isinstance(right, fx.Node) and right in self._others:
            return bool(left == right.meta["val"])
        if isinstance(left, fx.Node):
            return self.twins.get(left) is right
        if isinstance(left, (tuple, list)):
            pairs = zip(left, right, strict=False) if type(left) is type(right) else ()
            return type(left) is type(right) and len(left) == len(right) and all(self.equal(*pair) for pair in pairs)
        if isinstance(left, dict):
            return isinstance(right, dict) and self.equal(list(left.items()), list(right.items()))
        if isinstance(left, slice) and isinstance(right, slice):
            return self.equal((left.start, left.stop, left.step), (right.start, right.stop, right.step))
        return type(left) is type(right) and bool(left == right or (left != left and right != right))


def _make_literal(guess: fx.Node) -> None:
    value = guess.meta["val"]
    if isinstance(value, torch.finfo):
        return
    for user in list(guess.users):
        if user.target is torch.finfo:
            continue
        user.args = fx.node.map_arg(user.args, lambda n: value if n is guess else n)
        user.kwargs = fx.node.map_arg(user.kwargs, lambda n: value if n is guess else n)


def _refuse_other_kinds(graph: fx.Graph, asked: dict[fx.Node, tuple[str, fx.Node]]) -> None:
    """Check that what is made of inputs alone still holds floats, or the same integers, where a forward asked."""
    for node, (line, last) in asked.items():
        value = node.meta["val"]
        if not isinstance(value, torch.Tensor) or not _is_made_of_inputs(node):
            continue
        kind = "floats" if value.is_floating_point() else str(value.dtype)
        text = f"{CALLS_WITH}{kind} in {node.name}: {line} asks for its dtype, and may go another way for others"
        if value.is_floating_point():
            steps: list[tuple[Any, tuple[Any, ...], Any]] = [(torch.is_floating_point, (), True)]
        else:
            steps = [(getattr, ("dtype",), value.dtype), (operator.eq, (value.dtype,), True)]
        made = node
        for function, more, result in (*steps, (torch._assert, (text,), None)):
            with graph.inserting_after(last):
                made = last = graph.call_function(function, (made, *more))
            made.meta |= {"val": result, "source": line, "module": ""}


def _is_made_of_inputs(node: fx.Node) -> bool:
    """Whether a tensor comes from inputs, and no layer or parameter, which would make floats of it in any case."""
    seen, pending = {node}, [node]
    while pending:
        new = set(pending.pop().all_input_nodes) - seen
        seen |= new
        pending += new
    kinds = {each.op for each in seen}
    return "placeholder" in kinds and kinds.isdisjoint(("call_module", "get_attr"))


def _refuse(graph: fx.Graph, reads: Reads, dtype: torch.dtype, line: str) -> None:
    for node, (asked, last) in reads.asked.items():
        value = node.meta["val"]
        if not isinstance(value, torch.Tensor) or not value.is_floating_point():
            continue
        text = f"{REFUSAL}other precisions than {dtype}: {asked} asks for the dtype of {node.name}, and {line or 'it'}"
        with graph.inserting_after(last):
            read = graph.call_function(getattr, (node, "dtype"))
        with graph.inserting_after(read):
            other = graph.call_function(operator.ne, (read, dtype))
        with graph.inserting_after(other):
            check = graph.call_function(torch._assert, (other, f"{text} goes another way there"))
        read.meta |= {"val": value.dtype, "source": asked, "module": ""}
        other.meta |= {"val": True, "source": asked, "module": ""}
        check.meta |= {"val": None, "source": asked, "module": ""}


@contextmanager
def surroundings(gradients: bool, cast: bool, inference: bool) -> Iterator[None]:
    """Whether gradients, autocast (``cast``) and inference mode are on around a forward."""
    before = [(device, torch.is_autocast_enabled(device)) for device in _AUTOCAST]
    try:
        for device in _AUTOCAST:
            torch.set_autocast_enabled(device, cast)
        with torch.inference_mode(inference), torch.set_grad_enabled(gradients and not inference):
            yield
    finally:
        for device, enabled in before:
            torch.set_autocast_enabled(device, enabled)


def _refuse_autocast_around(graph: fx.Graph) -> None:
    """Check in the graph that autocast is off around it: a graph cannot turn it off for a part."""
    text = (
        f"{REFUSAL}calls without autocast around them, which its forward turns off in places or goes another way for: "
        "convert it instead"
    )
    with graph.inserting_before(next(n for n in graph.nodes if n.op != "placeholder")):
        for device in _AUTOCAST:
            asked = graph.call_function(torch.is_autocast_enabled, (device,))
            free = graph.call_function(operator.not_, (asked,))
            check = graph.call_function(torch._assert, (free, text))
            for node, value in ((asked, False), (free, True), (check, None)):
                node.meta |= {"val": value, "source": "", "module": ""}


def refuse_autocast(reads: Reads, around: tuple[bool, ...]) -> None:
    """Note that a forward turned off the autocast ``around`` it. Raises CaptureError: it turned autocast on itself."""
    now = autocast()
    if now == around:
        return
    reads.leaves_autocast |= any(before and not after for before, after in zip(around, now, strict=True))
    if any(after and not before for before, after in zip(around, now, strict=True)):
        raise CaptureError("the forward computes under torch.autocast, which a graph does not carry: use it outside")


def autocast() -> tuple[bool, ...]:
    """Whether autocast is on, by the type of device."""
    return tuple(map(torch.is_autocast_enabled, _AUTOCAST))
