"""``capture``: model and sample in, annotated graph out. No real compute; the caller's model is only read."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import fx, nn

from fxprune.capture import builtin_calls, clone, custom, decisions, folding, guards, lowering, settings, sources
from fxprune.capture.arguments import placeholders
from fxprune.capture.known_results import OnMeta
from fxprune.capture.live import LiveValues
from fxprune.capture.lowering import map_leaves
from fxprune.capture.masked import VALUES_DECIDE, refuse
from fxprune.capture.moments import Selections
from fxprune.capture.reachable import reachable, restored
from fxprune.capture.recorder import Recorder
from fxprune.capture.samples import Sample
from fxprune.capture.selections import idle_checks
from fxprune.capture.state import OtherRandomStates, Place, PythonState
from fxprune.errors import CaptureError, FxpruneError, described
from fxprune.rules import is_leaf
from fxprune.rules.ops import NamedTensors, drop_unread, named_tensors, names_among
from fxprune.util.copies import HELD_TENSOR, MADE_TENSOR, cloned, deep_copy, private_copy, tensors_in
from fxprune.util.modes import Effects, flags_of, set_flags, switch
from fxprune.util.paths import ModelPaths, PartsModule, attribute, copied_graph, modules_of, named_modules

# Why a module is opaque, and what each of its calls gave in a real run, on the meta device.
OpaqueCalls = tuple[str, list[Any]]
# What ran: the recorder, the tensors and the state of the copy, its modes, and what it writes outside of tensors.
Recorded = tuple[Recorder, NamedTensors, clone.State, dict[bool, Any], dict[Place, Any]]

# How the text begins that says why a network has no graph of training mode.
NO_TRAINING = "training mode cannot be captured: "

_IN_WORDS = {  # by what an error of torch says: torch tells its own developers how a kernel might be registered
    "data-independent": VALUES_DECIDE,
    "nested_tensor": "it makes nested tensors; nn.TransformerEncoder makes none with enable_nested_tensor=False",
}


@dataclass
class Captured:
    """A captured forward."""

    graph: fx.Graph  # the FX graph; each node's ``meta`` holds ``val`` (its value on meta), ``source`` and ``module``
    # Shape of every parameter and buffer by its first state-dict name, and of the constants.
    shapes: dict[str, tuple[int, ...]]
    aliases: dict[str, str]  # every other state-dict name of a tied tensor, to its first name
    constants: dict[str, torch.Tensor]  # tensors made while tracing, by attribute name
    sample: Sample  # the sample that was traced (batch of at least 2 where the model has a free batch)
    training: bool = False  # the mode that was traced
    parameters: set[str] = field(default_factory=set)  # first names of the parameters
    # Paths, in what was traced, of the modules that the forward asks for their mode.
    modes_read: set[str] = field(default_factory=set)
    # By the mode of the whole, the mode of every module by its path in what was traced.
    flags: dict[bool, dict[str, bool]] = field(default_factory=dict)
    prefix: str = ""  # what stands before every name in the graph; that of an island is its path and a dot
    # Reasons by path of the modules that are kept as one call; the path of the whole model is empty, and then there
    # is no graph.
    opaque: dict[str, str] = field(default_factory=dict)
    # Multiply-accumulates of the opaque modules, for the sample, without those of their islands.
    opaque_macs: dict[str, float] = field(default_factory=dict)
    islands: tuple[Captured, ...] = ()  # parts inside opaque modules that are captured by themselves
    calls: float = 1  # how often an island is called in one run, counted in calls with its sample
    training_graph: Captured | None = None  # the graph of training mode where it is another one
    # The same forward for other inputs, for which it takes other branches.
    specializations: tuple[Captured, ...] = ()
    specialization: int = 0  # 0, or which of the specializations this is
    # Which of the sample's other samples a specialization was traced on; None for one that nobody gave.
    other: int | None = None
    # For the gate of each selection, the path of the layer that reads the selection.
    selections: dict[str, str] = field(default_factory=dict)
    # The questions whether it is being traced that were answered yes, because the forward failed otherwise.
    told: frozenset[str] = frozenset()
    # Buffers whose values the forward reads in Python.
    buffers_read: set[str] = field(default_factory=set)
    # Attributes of modules that the forward sets, and buffers to which it gives another shape.
    remembers: tuple[str, ...] = ()
    fills: bool = False  # whether the forward changes lists or dicts that it is given
    # What the ``train()`` and ``eval()`` do that are the model's own, or those of its parts.
    effects: Effects = field(default_factory=dict)
    # What the forward leaves for its next call in attributes, containers, classes and globals, by place.
    written: dict[Place, Any] = field(default_factory=dict)
    # What the sample's values decided, where data decide; None where nothing of the kind is traced.
    answers: list[Any] | None = None
    empty: frozenset[int] | None = None  # as in a task
    untraced: str = ""  # why the forward in training mode could not be captured; empty where it was, or need not be

    def refuse_training(self, reason: str) -> None:
        """Keep only the graph of eval mode, and run it only while all parts are in the modes they have in eval mode."""
        self.untraced, self.training_graph = f"{NO_TRAINING}{reason}", None
        self.flags.pop(True, None)
        self.modes_read |= {"", *self.opaque}

    def everything(self) -> Iterator[Captured]:
        """This graph and that of training mode, then those of every specialization and every island."""
        for captured in (self, *self.specializations, *self.islands):
            yield from captured.modes()

    def modes(self) -> Iterator[Captured]:
        """This graph, and that of training mode where it differs."""
        yield self
        if self.training_graph is not None:
            yield self.training_graph

    def first_name(self, name: str) -> str:
        """The name under which a tied tensor is known."""
        return self.aliases.get(name, name)

    def takes(self, model: nn.Module, sample: Sample) -> bool:
        """Whether a sample of another batch size takes the branches that were traced."""
        traced, wanted = self.sample.batch_size, sample.batch_size
        holds = traced is None or wanted is None or decisions.holds_at_batch(self.graph, traced, wanted)
        return holds or self.without_values(model)(sample) is None

    def without_values(self, model: nn.Module) -> Callable[[Sample], Exception | None]:
        """A function that runs the graph, without values unless data decide; it returns a sample's error, if any."""
        without = self.answers is None
        constants = {name: tensor.to("meta") if without else tensor for name, tensor in self.constants.items()}
        module = replace(self, constants=constants).module(clone.meta_clone(model) if without else private_copy(model))
        # Not called as a GraphModule, which would print where it fails.
        plain_call = functools.partial(nn.Module.__call__, module)
        called = OnMeta(module) if without and isinstance(module, fx.GraphModule) else plain_call

        def run(sample: Sample) -> Exception | None:
            try:
                with torch.no_grad(), torch.random.fork_rng(devices=[]):
                    (sample.to_meta() if without else sample.with_values()).call(called)
            except Exception as error:  # the graph holds the user's own operations: anything may come out of them
                return error
            return None

        return run

    def refuse_other_sizes(self) -> None:
        """Make every graph except those of islands refuse all sizes but its own sample's, apart from the batch."""
        for captured in (mode for specialization in (self, *self.specializations) for mode in specialization.modes()):
            decisions.refuse_other_sizes(captured.graph, slice(captured.sample.batch_size is not None, None))

    def led_by(self, number: int) -> Captured:
        """The same captures with one specialization first, and the former first one among the specializations."""
        first, *rest = self.specializations[number - 1], replace(self, specializations=()), *self.specializations
        return replace(first, specializations=tuple(c for c in rest if c.specialization != number))

    def module(self, model: nn.Module) -> nn.Module:
        """The captured graph at full width, sharing ``model``'s tensors (unused ones too) and submodules.

        It also holds the constants of training mode and of the specializations, so that every tensor that a plan names
        is one of its own. Where the model's own forward is opaque there is no graph: the model itself is given back.
        """
        if "" in self.opaque:
            return model
        root: dict[str, Any] = {}
        paths = ModelPaths(model)
        for node in self.graph.nodes:
            if node.op == "call_module":
                root[node.target] = paths.module(node.target)
            elif node.op == "get_attr":
                root[node.target] = self.constants.get(node.target)
                if root[node.target] is None:
                    root[node.target] = paths.attribute(node.target)
        root |= {n: paths.attribute(n) for n in (*self.shapes, *self.aliases) if n not in self.constants}
        for captured in (mode for specialization in (self, *self.specializations) for mode in specialization.modes()):
            root |= captured.constants
        module = PartsModule(root, copied_graph(self.graph), type(model).__name__)
        # Not module.train(): that would switch the submodules too, and they are the caller's.
        module.training = self.training
        return module


def capture(
    model: nn.Module,
    sample: Sample,
    *,
    training: bool = False,
    prefix: str = "",
    opaque: Mapping[str, OpaqueCalls] | None = None,
    specialization: int = 0,
    flags: Mapping[str, bool] | None = None,
    written: Mapping[Place, Any] | None = None,
    live: bool = False,
) -> Captured:
    """Trace ``model`` on ``sample`` (any device; only shapes and dtypes are used).

    ``prefix`` is put before every name in the graph, where ``model`` is a part of a larger one. ``opaque``: modules by
    path that are not traced into. A forward that cannot be traced, but asks whether it is being traced, is told that it
    is. ``specialization``: which of several captures of the model for inputs of different sizes this is. ``flags``:
    modes of modules by path, where they are not those that the model itself sets. ``written``: what calls of the model
    are known to write outside of its tensors, which must not decide anything. ``live``: where data decide on a branch,
    go on with the sample's values. Raises CaptureError, with the module and the source line: it cannot be traced.
    """
    task = Task(model, sample, training, prefix, opaque or {}, specialization, flags or {}, written or {})
    if live:
        with contextlib.suppress(CaptureError):
            captured = replace(task, answers=[], empty=frozenset()).run()
            if captured.without_values(model)(sample) is None:
                return captured
        task = replace(task, answers=[])
    try:
        return task.run()
    except CaptureError as error:
        failure = error
    answered = {next(iter(guards.GUARDS))}
    while True:
        with guards.answering(answered, reachable(model).namespaces.values()) as asked:
            try:
                return replace(task.run(), told=frozenset(answered))
            except CaptureError as error:
                # That of the smallest module leaves most to trace around it.
                failure = error if asked and error.path.count(".") >= failure.path.count(".") else failure
                guard = guards.next_guard(asked, answered)
        if guard is None:
            raise failure
        answered.add(guard)


@dataclass(frozen=True)
class Task:
    """The arguments of :func:`capture`.

    ``precision``: that of the model and the sample; None is their own. ``gradients``, ``cast``, ``inference``: whether
    those, autocast and inference mode are on around the forward. ``learning``: whether tensors need gradients.
    ``answers``: what data decided in earlier traces; None where they may decide nothing. ``empty``: which selections
    hold no entries, if all others are taken to hold some. ``chance``: what is drawn outside torch, if not the next.
    """

    model: nn.Module
    sample: Sample
    training: bool = False
    prefix: str = ""
    opaque: Mapping[str, OpaqueCalls] = field(default_factory=dict)
    specialization: int = 0
    flags: Mapping[str, bool] = field(default_factory=dict)
    written: Mapping[Place, Any] = field(default_factory=dict)
    precision: torch.dtype | None = None
    gradients: bool = True
    cast: bool = False
    inference: bool = False
    learning: bool = False
    answers: list[Any] | None = None
    chance: tuple[int, ...] = ()
    empty: frozenset[int] | None = None

    def run(self) -> Captured:
        if self.answers is not None:
            self.answers.clear()
        recorder, tensors, state, flags, written = self.settled()
        folding.check_unwritten(recorder.buffers_read, recorder.graph, self.training)
        for check in [] if self.empty is None else idle_checks(self, recorder, {*state.changed(), *written}):
            recorder.graph.erase_node(check)
        drop_unread(recorder.graph)
        read = {node.target for node in recorder.graph.nodes if node.op == "get_attr"}
        constants = {name: value for name, value in recorder.constants.items() if name in read}
        if self.sample.batch_size == 1:
            # A size of one is folded away where sizes are multiplied, so that this graph is right for no other batch.
            decisions.refuse_other_sizes(recorder.graph, slice(1))
        shapes, aliases, parameters = names_among(tensors)
        shapes |= {n: tuple(t.shape) for n, t in constants.items()}
        forward = recorder.graph, shapes, aliases, constants, self.sample, self.training, parameters
        return Captured(
            *forward,
            recorder.modes_read,
            flags,
            self.prefix,
            {path: reason for path, (reason, _) in self.opaque.items()},
            specialization=self.specialization,
            buffers_read=recorder.buffers_read,
            remembers=state.changed() or recorder.writes.outside,
            fills=recorder.writes.fills,
            written=written,
            answers=self.answers,
            empty=self.empty,
        )

    def settled(self) -> Recorded:
        """The recorded forward, whose graph is right in other settings, too."""
        recorder, tensors, state, flags, written = self.recorded()
        own = {t.dtype for t in (*(tensor for _, tensor in tensors), *self.sample.tensors)}
        settings.settle(recorder, self.model, own, self._forward_with)
        return recorder, tensors, state, flags, written

    def recorded(self) -> Recorded:
        """The recorder after the forward, and the tensors and state of the copy that ran."""
        # Gradients are on, so that the recorder sees where the forward itself switches them off; no tensor needs one.
        with settings.surroundings(self.gradients, self.cast, self.inference):
            copy = clone.meta_clone(self.model)
            if self.precision is not None:  # that of plain tensors too, as in the copies of the proof
                copy = deep_copy(copy, self._in_precision)
            switch(copy, "train" if self.training else "eval")
            set_flags(copy, self.flags)
            flags = {self.training: flags_of(copy)}
            device = next((tensor.device for tensor in self.sample.tensors), torch.device("cpu"))
            recorder = Recorder(device, self._constant_names(copy), self._buffer, self.learning)
            tensors = named_tensors(copy, self.prefix)
            state = clone.State(copy)
            recorder.writes.watch(tensors, state.plain_tensors, reachable(self.model).written)
            if self.answers is not None:
                values = self.sample.map(self._in_precision), recorder.constants, self.prefix, self.answers
                recorder.read_live(LiveValues(self._live_copy, *values), Selections(self.empty))
            written = self._forward(copy, recorder, state)
        return recorder, tensors, state, flags, written

    def _live_copy(self) -> nn.Module:
        copy = deep_copy(self.model, lambda tensor: self._in_precision(cloned(tensor)))
        switch(copy, "train" if self.training else "eval")
        set_flags(copy, self.flags)
        return copy

    def _forward_with(self, **changes: Any) -> Recorder | None:
        """The forward in other settings; None if it cannot be traced, unless gradients are needed: that raises."""
        try:
            return replace(self, **changes).recorded()[0]
        except CaptureError:
            if "learning" in changes:
                raise
            return None

    def _constant_names(self, copy: nn.Module) -> Callable[[torch.Tensor], str]:
        """The prefixes of constants' names, which tell those that the model holds from those that the forward makes."""
        mode = "training_" * self.training + f"variant{self.specialization}_" * (self.specialization > 0)

        @functools.cache
        def held() -> set[int]:
            return {id(tensor) for module in modules_of(copy) for tensor in tensors_in(vars(module), depth=4)}

        return lambda tensor: f"{self.prefix}_{mode}{HELD_TENSOR if id(tensor) in held() else MADE_TENSOR}"

    def _forward(self, copy: nn.Module, recorder: Recorder, state: clone.State) -> dict[Place, Any]:
        """Run the copy on the meta device under the recorder; returns its writes outside of tensors, by place."""
        paths = {id(module): path for path, module in named_modules(copy)}
        handler = self._handler(copy, recorder, paths)
        clone.watch(copy, handler, lambda module, changed: recorder.mode_is_used(paths.get(id(module), ""), changed))
        given = placeholders(copy.forward, self.sample.to_meta().map(self._in_precision), recorder.placeholder)
        args, kwargs = map_leaves(lambda leaf: leaf, given)
        chance, python_state = OtherRandomStates(*self.chance), PythonState(copy, reachable(self.model), self.prefix)
        recorder.selections.moments.watch(paths, python_state.written, state.changed)
        try:
            remembering = builtin_calls.remembering(reachable(self.model).functions)
            with restored(self.model), remembering, custom.watched(recorder.call_custom), recorder:
                python_state.watch(self.written, next(iter(recorder.graph.nodes)))
                with builtin_calls.refusing_seeds(), guards.without_scripts():
                    value = copy(*args, **kwargs)
                left = python_state.written()
            recorder.writes.check_given(given, (args, kwargs), part=bool(self.prefix))
            recorder.drew = chance.were_used()
            for name, old, new in state.replaced_tensors():
                recorder.writes.replaced(f"{self.prefix}{name}", old, new)
            recorder.output(value)
            return left
        except Exception as error:  # the forward is the user's own code: it may raise anything
            words = next((words for part, words in _IN_WORDS.items() if part in str(error)), described(error))
            words = str(error) if isinstance(error, FxpruneError) else words
            message = f"{sources.place_of(error, recorder.innermost)}: {words}"
            raise CaptureError(message, path=recorder.innermost, graph=recorder.graph) from error
        finally:
            python_state.unwatch()
            chance.restore()

    def _handler(self, copy: nn.Module, recorder: Recorder, paths: Mapping[int, str]) -> clone.CallHandler:
        """The function that records a call of a submodule."""
        supply = {path: iter(results) for path, (_, results) in self.opaque.items()}

        def handle(module: nn.Module, original: Callable[..., Any], args: Any, kwargs: Any) -> Any:
            path = (self.prefix + paths.get(id(module), "")).removesuffix(".")
            if path in self.opaque:
                return recorder.call_opaque(path, self._in_precision(next(supply[path])), args, kwargs)
            if lowering.is_lowered(module):
                value = _inside(recorder, path, lowering.multi_head_attention, module, args, kwargs)
                recorder.node_of(value[0]).meta["layer"] = "MultiheadAttention"
                return value
            if module is not copy and is_leaf(module) and recorder.writes.are_own(path, module):
                return recorder.call_module(path, module, original, args, kwargs)
            return _inside(recorder, path, original, module, args, kwargs)

        return handle

    def _in_precision(self, value: Any) -> Any:
        if self.precision is None:
            return value
        return map_leaves(lambda v: v.to(self.precision) if torch.is_tensor(v) and v.is_floating_point() else v, value)

    def _buffer(self, name: str) -> torch.Tensor | None:
        """The values of a buffer of the caller's model; None for a parameter, which training changes."""
        value = attribute(self.model, name.removeprefix(self.prefix))
        return None if isinstance(value, nn.Parameter) or value.is_meta else value.detach()


def _inside(recorder: Recorder, path: str, function: Any, module: nn.Module, args: Any, kwargs: Any) -> Any:
    recorder.module_path.append(path)
    result = function(module, *args, **kwargs)
    refuse(result)
    recorder.module_path.pop()
    recorder.selections.moments.returned(result)
    return result
