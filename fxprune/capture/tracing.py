"""From model and sample to the captured graphs: eval mode, training mode, and the traceable parts of opaque modules."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx, nn

from fxprune.capture import guards
from fxprune.capture.capturing import NO_TRAINING, Captured, Task, capture
from fxprune.capture.checking import counters, fails_for, is_meta, modes_that_forget, refuses, traced_hooks
from fxprune.capture.decisions import (
    are_complete,
    asked_at,
    asks_values,
    is_check,
    refuse_one_tensor,
    refuse_other_orders,
)
from fxprune.capture.lowering import leaves
from fxprune.capture.modes import Modes, capture_training, modes_of
from fxprune.capture.partial import capture_parts
from fxprune.capture.reachable import forget, reachable
from fxprune.capture.samples import OneTensor, Sample, kind_of
from fxprune.capture.specializations import find_specializations, is_complete, share_taken
from fxprune.capture.state import Place, PythonState, shared_objects_restored
from fxprune.errors import CaptureError, ModelError, SampleError
from fxprune.rules.ops import drop_unread
from fxprune.util.copies import private_copy
from fxprune.util.modes import switch


@dataclass(frozen=True)
class OpaqueOp:
    """An op without a rule, or whose rule does not cover this use: everything it touches keeps its size.

    ``macs`` and ``parameters`` are those of a module that is kept as one call, without those of its traced parts.
    """

    node: str
    op: str
    source: str
    reason: str
    macs: float = 0.0
    parameters: int = 0


# The names, among what is opaque, of decisions of the forward, and of a training mode that could not be traced.
DECIDED_BY_VALUES = "decisions on values"
UNTRACED_TRAINING = "the forward in training mode"


def trace(model: nn.Module, sample: Sample) -> tuple[Captured, tuple[OpaqueOp, ...]]:
    """The captured graphs, and the parts of the forward not in them. Raises FxpruneError: there is nothing to trace."""
    with shared_objects_restored(model) as outside:
        return _traced(model, sample, outside)


def _traced(model: nn.Module, sample: Sample, outside: PythonState) -> tuple[Captured, tuple[OpaqueOp, ...]]:
    modes = modes_of(model)
    captured = _both_modes(model, sample, modes, {})
    _undo(outside)
    if "" not in captured.opaque and not any(n.all_input_nodes for n in captured.graph.find_nodes(op="output")):
        raise ModelError("the forward returns no tensor, so there is nothing to keep: return what it computes")
    remembers = (*captured.remembers, *(f"{key!r} of the {words}" for words, key in captured.written))
    written = counters(model, captured.sample, sorted(captured.flags) if remembers else ())
    if written:
        captured = _both_modes(model, sample, modes, written)
        _undo(outside)
        _check_layers(model, captured, written)
    if remembers:
        _check_memory(model, captured, captured, remembers)
    captured.specializations = captured.specializations or tuple(find_specializations(model, captured))
    for specialization in captured.specializations if not captured.untraced else ():
        try:
            _add_training(model, specialization, modes, written)
        except CaptureError as error:
            captured.refuse_training(str(error))
            break
        if kept := [
            name for mode in specialization.modes() for name in (*mode.remembers, *(str(p) for p, _ in mode.written))
        ]:
            _check_memory(model, captured, specialization, kept)
    for specialization in captured.specializations if captured.untraced else ():
        specialization.refuse_training(captured.untraced.removeprefix(NO_TRAINING))
    _check_orders(model, captured)
    _check_identities(model, captured, sample)
    return captured, tuple(_untraced(model, captured))


def _untraced(model: nn.Module, captured: Captured) -> Iterator[OpaqueOp]:
    """What the forward does that is not in the graphs."""
    if captured.untraced:
        yield OpaqueOp("", UNTRACED_TRAINING, "", captured.untraced)
    if any(asks_values(mode.graph) for mode in captured.modes()):
        yield OpaqueOp("", DECIDED_BY_VALUES, asked_at(captured.graph), _branches_taken(captured))
    if hooked := traced_hooks(model):
        words = "what they do to values is in the graphs, and what else they do is not"
        yield OpaqueOp("", f"forward hooks of {', '.join(hooked):.100}", "", words)
    if any(mode.fills for mode in captured.everything()):
        words = "the forward changes them, and the graphs leave them as they are"
        yield OpaqueOp("", "lists and dicts among the arguments", "", words)


def _undo(outside: PythonState) -> None:
    """Put back what traces have changed so far outside of the model, so that what follows starts as they did."""
    outside.restore()
    forget()


def _branches_taken(captured: Captured) -> str:
    """What a call does whose values take some branches or others, in words."""
    count = len(captured.specializations)
    if are_complete([each.graph for each in (captured, *captured.specializations)]):
        return f"there are {count + 1} graphs for its branches, and they leave out no answer"
    seen = f"there are {count + 1} graphs for its branches" if count else "the graph takes the branches of the sample"
    return f"{seen}, and calls that would take others are refused: pass other_samples that take them"


def _check_layers(model: nn.Module, captured: Captured, written: Mapping[Place, Any]) -> None:
    """Refuse a mode in which a layer is called whose settings the forward changes: ModelError, where it is eval."""
    changes = {False: counters(model, captured.sample, [False]), True: written}
    served = [(mode, mode.training) for mode in captured.everything()]
    if not captured.untraced:  # where training has no graph of its own, that of eval mode serves it
        served += [(mode, True) for mode in captured.everything() if not mode.training and not mode.training_graph]
    for mode, training in served:
        changed = dict(changes[training].keys())
        layers = (n for n in mode.graph.nodes if n.op == "call_module" and n.target not in captured.opaque)
        called = (f"module {layer.target}" for layer in layers)
        if place := next((words for words in called if words in changed), None):
            reason = (
                f"the forward changes {changed[place]!r} of the {place} for its next call: a graph calls the layer as "
                "it was; write the operation as a function of a number in a buffer, or pass it as an argument"
            )
            if not training:
                raise ModelError(reason)
            captured.refuse_training(reason)


def _check_orders(model: nn.Module, captured: Captured) -> None:
    """Let the graphs check the order of entries of dicts, and of keywords, where a trace with another one differs."""
    given = [value for node in captured.graph.nodes if node.op == "placeholder" for value in _inside(node.meta["val"])]
    if not any(isinstance(value, dict) and len(value) > 1 for value in given):
        return
    sample = replace(captured.sample, args=_reversed(captured.sample.args), kwargs=_reversed(captured.sample.kwargs))
    graphs = [attempt(model, replace(captured, sample=given))[0] for given in (captured.sample, sample)]
    if _calls(graphs[0]) != _calls(graphs[1]):
        for mode in (mode for each in (captured, *captured.specializations) for mode in each.modes()):
            refuse_other_orders(mode.graph)
            drop_unread(mode.graph)


def _check_identities(model: nn.Module, captured: Captured, sample: Sample) -> None:
    """Let the graphs refuse one tensor in two places of the inputs, where the forward then does something else.

    Raises CaptureError: the sample is such an input.
    """
    parts = (captured, *captured.specializations)
    if "" in captured.opaque or not any(_asks_identities(model, part) for part in parts):
        return
    for given in (sample, *sample.others):
        places = {(t.untyped_storage()._cdata, t.storage_offset(), kind_of(t)) for t in given.tensors}
        if len(places) < len(given.tensors):
            raise CaptureError(
                "the sample gives one tensor for several arguments, and the forward asks whether they are one, "
                "which no graph can: give clones, or one argument"
            )
    for each in (each for part in parts for each in part.modes()):
        refuse_one_tensor(each.graph)
        drop_unread(each.graph)


def _asks_identities(model: nn.Module, part: Captured) -> bool:
    """Whether the forward does something else, and a graph of this part does not, if one tensor is in two places."""
    one = OneTensor(part.sample.args, part.sample.kwargs)
    if len(set(map(kind_of, one.tensors))) == len(one.tensors):
        return False
    served = [part.training_graph or replace(part, training=True)] * bool(part.modes_read)
    for mode in [part, *served]:
        graphs = [attempt(model, replace(mode, sample=given))[0] for given in (part.sample, one)]
        calls, other = (_calls(graph, by_kind=True) for graph in graphs)
        if calls != other and fails_for(model, mode, one):
            return True
    return False


def _inside(value: Any) -> Iterator[Any]:
    """The value, and what is in its containers."""
    yield value
    if isinstance(value, (dict, list, tuple)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _inside(item)


def _reversed(value: Any) -> Any:
    if type(value) is dict:
        return {key: _reversed(value[key]) for key in reversed(value)}
    return type(value)(map(_reversed, value)) if type(value) in (list, tuple) else value


def _calls(graph: fx.Graph, *, by_kind: bool = False) -> list[tuple[Any, ...]]:
    """What a graph computes from its inputs, however the entries of these are numbered.

    ``by_kind``: tensors among the inputs that can stand in each other's place count as one.
    """
    names: dict[fx.Node, str] = {}
    found: list[tuple[Any, ...]] = []
    for node in graph.nodes:
        entry = node.target is operator.getitem and not names.get(node.args[0], "%").startswith("%")
        if node.op == "placeholder" or entry:
            names[node] = f"{names[node.args[0]]}[{node.args[1]!r}]" if entry else str(node.target)
            if by_kind and isinstance(node.meta["val"], torch.Tensor):
                names[node] = str(kind_of(node.meta["val"]))
        elif not (is_check(node) or node.target is len or (node.users and all(map(is_check, node.users)))):
            names[node] = f"%{len(found)}"
            found.append((node.op, node.target, str(fx.node.map_arg((node.args, node.kwargs), names.__getitem__))))
    return found


def attempt(model: nn.Module, like: Captured) -> tuple[fx.Graph, CaptureError | None]:
    """The trace of a forward as far as it gets, in the setting of ``like``, and the error that stopped it."""
    answers = None if like.answers is None else list(like.answers)
    task = Task(model, like.sample, like.training, answers=answers, empty=like.empty)
    told = guards.answering(set(like.told), reachable(model).namespaces.values()) if like.told else nullcontext()
    with told:
        try:
            return task.recorded()[0].graph, None
        except CaptureError as error:
            return error.graph or fx.Graph(), error


def modes_that_remember(model: nn.Module, captured: Captured) -> list[bool]:
    """The modes (``training``) in which two calls leave other numbers for the next trace, in operations that stay.

    Answers alone cannot tell: the operation may stand behind an activation that answers zero.
    """
    found = []
    for training in (False, True)[: 1 if captured.untraced else 2]:
        with shared_objects_restored(model), torch.random.fork_rng(devices=[]):
            twin = private_copy(model)
            switch(twin, "train" if training else "eval")
            before = [attempt(twin, mode)[0] for mode in captured.modes()]
            with torch.set_grad_enabled(training), suppress(Exception):  # the user's own code: it may raise anything
                for _ in range(2):
                    captured.sample.map(torch.clone).call(twin)
            after = [attempt(twin, mode)[0] for mode in captured.modes()]
        if any(map(_differ_in_numbers, before, after)):
            found.append(training)
    return found


def _differ_in_numbers(graph: fx.Graph, other: fx.Graph) -> bool:
    calls = [[node for node in given.nodes if node.op.startswith("call")] for given in (graph, other)]
    if [node.target for node in calls[0]] != [node.target for node in calls[1]]:
        return False
    numbers = ([leaf for node in part for leaf in leaves((node.args, node.kwargs))] for part in calls)
    return any(type(a) in (int, float) and a != b for a, b in zip(*numbers, strict=False))


def _check_memory(model: nn.Module, captured: Captured, part: Captured, remembers: Sequence[str]) -> None:
    """Refuse a mode in which something kept between calls changes the answer: ModelError, where it is eval."""
    for training in modes_that_forget(model, part) or modes_that_remember(model, part):
        reason = (
            f"the forward keeps {', '.join(remembers):.200} for its next call, which then gives another answer: a "
            "graph forgets; pass such state as an argument, or keep it in a buffer"
        )
        if not training:
            raise ModelError(reason)
        captured.refuse_training(reason)


def _both_modes(model: nn.Module, sample: Sample, modes: Modes, written: Mapping[Place, Any]) -> Captured:
    """Both graphs of a model; a part that cannot be traced in training mode is opaque in both."""
    captured = _eval_graph(model, sample, modes, written)
    captured.effects = modes.effects
    try:
        _add_training(model, captured, modes, written)
    except CaptureError as error:
        failure = error
    else:
        return captured
    try:
        if not failure.path or captured.opaque:
            raise failure
        parts = _parts(model, captured.sample, failure, modes, written)
        parts.effects = modes.effects
        _add_training(model, parts, modes, written)
    except CaptureError as error:
        captured.refuse_training(str(error))
        return captured
    return parts


def _eval_graph(model: nn.Module, sample: Sample, modes: Modes, written: Mapping[Place, Any]) -> Captured:
    """Trace with a batch of at least 2, as a size of one would hide which dims are the batch; a fixed batch stays."""
    candidates = [sample.with_batch(2), sample] if sample.batch_size == 1 else [sample]
    failure: CaptureError | None = None
    for candidate in candidates:
        try:
            captured = capture(model, candidate, written=written)
        except CaptureError as error:
            failure = error
            continue
        if candidate is sample or captured.takes(model, sample):
            return captured
    assert failure is not None
    refusal = refuses(model, sample)
    if refusal is not None:
        raise SampleError(
            f"the model itself refuses the sample: {refusal}; sample_input holds what a call of the model takes"
        ) from failure
    return _with_values_or_parts(model, sample, failure, modes, written)


def _with_values_or_parts(
    model: nn.Module, sample: Sample, failure: CaptureError, modes: Modes, written: Mapping[Place, Any]
) -> Captured:
    """The graphs for the branches that values take, or a graph with opaque modules: that which refuses less.

    Graphs that leave out no answer of the values refuse nothing, and let every width go. So do graphs that the user
    chose by other samples. Otherwise opaque modules are preferred, unless they leave nothing to prune and the graphs
    accept most values that were tried.
    """
    live = _live_graph(model, sample, written)
    if live is None:
        return _parts(model, sample, failure, modes, written)
    live.specializations = tuple(find_specializations(model, live)) if asks_values(live.graph) else ()
    if is_complete(model, live) or (sample.others and live.specializations):
        return live
    try:
        return _parts(model, sample, failure, modes, written)
    except CaptureError:
        if share_taken(model, live) <= 0.5:
            raise
        return live


def _live_graph(model: nn.Module, sample: Sample, written: Mapping[Place, Any]) -> Captured | None:
    """The graph of the branches that the sample takes where data decide; None if there is none."""
    if is_meta(model) or sample.image_lists or any(tensor.is_meta for tensor in sample.tensors):
        return None
    for candidate in [sample.with_batch(2), sample] if sample.batch_size == 1 else [sample]:
        try:
            captured = capture(model, candidate, written=written, live=True)
        except CaptureError:
            continue
        if candidate is sample or captured.takes(model, sample):
            return captured
    return None


def _parts(
    model: nn.Module, sample: Sample, failure: CaptureError, modes: Modes, written: Mapping[Place, Any]
) -> Captured:
    if sample.batch_size == 1:
        try:
            captured = capture_parts(model, sample.with_batch(2), failure, modes, written)
            if captured.takes(model, sample):
                return captured
        except CaptureError:
            pass  # the model may want one row alone
    return capture_parts(model, sample, failure, modes, written)


def _add_training(model: nn.Module, captured: Captured, modes: Modes, written: Mapping[Place, Any]) -> None:
    """Capture the graph of training mode if it differs."""
    captured.training_graph = capture_training(model, captured, modes, written)
