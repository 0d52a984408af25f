"""The proof node by node, from the model's tensors to the pruned object that is returned.

It has four steps: the pruned network's tensors are the kept entries of the original's; the traced graph returns what
the original returns; each rewritten node computes the kept entries of its captured node's value; and the pruned network
runs its graph. The first, second and last are compared bit for bit.
"""

from __future__ import annotations

import functools
import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from fxprune.capture.decisions import asks_values
from fxprune.capture.reachable import reachable
from fxprune.capture.samples import Sample
from fxprune.errors import ProofError
from fxprune.proof.attributes import check_attributes, check_code, printed_function, runs_its_graph
from fxprune.proof.comparing import compare, is_float, leaves_of
from fxprune.proof.conditions import Conditions
from fxprune.proof.copies import TOLERANCE, named_tensors, out_of_memory, private_copy
from fxprune.proof.holding import check_holding
from fxprune.proof.masking import Keep, all_names, check_tensors, removes_anything
from fxprune.proof.nodes.by_values import Tally
from fxprune.proof.nodes.drawing import Patterns, Setting
from fxprune.proof.nodes.pairs import Pair, UnjudgedError
from fxprune.proof.nodes.programs import (
    GraphOver,
    NumberedPrograms,
    Programs,
    asks_for_modes,
    bound,
    hidden_modes,
    in_mode,
)
from fxprune.proof.nodes.standins import widened
from fxprune.proof.nodes.structure import Step, matched
from fxprune.proof.nodes.walk import walk
from fxprune.proof.probes import Probe, is_heavy, other_samples, small_samples
from fxprune.proof.proving import Proof
from fxprune.proof.rounding import rounding_levels
from fxprune.proof.running import called, evaluate, nothing_left_behind
from fxprune.util.copies import deep_copy
from fxprune.util.modes import CALLS, flags_of, has_own_modes, switch
from fxprune.util.paths import modules_of, named_buffers, named_modules, named_parameters

# Units in the last place by which outputs may differ if the order of summation differs.
_NEARLY = 1e4
# So few parameters are copied rather than protected.
_FEW = 1 << 20


def prove_nodes(
    original: nn.Module,
    pruned: nn.Module,
    pairs: Sequence[Pair],
    keep: Keep,
    *,
    seed: int = 0,
    untrained: str = "",
    steps: Mapping[Pair, Sequence[Step]] | None = None,
) -> Proof:
    """Prove that ``pruned`` is ``original`` without the entries that ``keep`` leaves out, one graph after another.

    Args:
        original: the caller's model; only read.
        pruned: the smaller network, to be judged.
        pairs: all of its graphs with their captured graphs, that of eval mode first.
        keep: for every parameter and buffer one kept-index tensor, or None for all, per dim.
        seed: of the random values on which nodes are judged.
        untrained: why the two cannot be compared in training mode; "" if they can.
        steps: the result of :func:`check_structure` for the pairs.

    Raises:
        ProofError: a tensor or a node differs; the message names it.
        UnjudgedError: a part cannot be judged node by node; nothing is shown.
    """
    started = time.perf_counter()
    if not pairs or any(pair.prefix for pair in pairs):
        raise UnjudgedError("parts of the model are opaque")
    held, narrow = named_tensors(original), named_tensors(pruned)
    constants = {n: t for pair in pairs for n, t in pair.constants.items() if n not in held}
    whole = all_names({**constants, **held}, keep)
    checked = check_tensors({**constants, **held}, narrow, whole)
    check_holding(original, pruned, held, narrow, constants)
    check_attributes(original, pruned)
    printed = check_code(pruned)
    with nothing_left_behind(original), torch.no_grad():
        prover = _Prover(original, pruned, whole, seed, untrained, pairs, printed)
        prover.check_modes()
        for pair in pairs:
            prover.prove(pair, matched(pair) if steps is None else steps[pair])
        prover.check_training_step()
    tally = prover.tally
    probes = [Probe("", sample) for sample in prover.samples]
    sizes = {probe.batch_size for probe in probes}
    return Proof(
        method="nan-carrying" if tally.over_kept else "masked",
        relative_error=tally.error,
        tolerance=1e-11,
        dtype="float64",
        batch_sizes=tuple(sorted(size for size in sizes if size is not None)),
        resolutions=tuple(dict.fromkeys(name for probe in probes for name in probe.resolutions)),
        tensors_checked=checked,
        vacuous=False,
        randomised=True,
        notes=tuple(dict.fromkeys(prover.notes)),
        seconds=time.perf_counter() - started,
        nodes=tally.nodes,
        device=str(prover.device),
    )


class _Prover:
    """Proves one graph after another, with one private copy of the original."""

    def __init__(
        self,
        original: nn.Module,
        pruned: nn.Module,
        keep: Keep,
        seed: int,
        untrained: str,
        pairs: Sequence[Pair],
        printed: dict[fx.Graph, FunctionType],
    ) -> None:
        tensors = [tensor for _, tensor in (*named_parameters(original), *named_buffers(original))]
        dtype = torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32
        device = tensors[0].device if tensors else torch.device("cpu")
        if device.type not in ("cpu", "cuda") or any(tensor.device != device for tensor in tensors):
            raise UnjudgedError(f"the model is on {device}, and partly elsewhere")
        self.device = device
        self._original, self._seed, self._untrained = original, seed, untrained
        self._pruned = pruned
        self._keep = keep
        small = sum(tensor.numel() for tensor in tensors) <= _FEW
        self._copy = deep_copy(original, partial(_shared, own=small)).eval()
        self._full = Programs(self._copy, small=small, shared=reachable(original))
        self._patterns = Patterns(dtype, device, seed)
        self.tally = Tally()
        self._pairs, self._functions = pairs, printed
        self.samples: list[Sample] = []
        self.notes: list[str] = []
        self._has_attention = any(isinstance(part, nn.MultiheadAttention) for part in modules_of(original))
        # Why whole networks must also be compared in a step of training.
        self._doubt = ""
        self._steps: Sequence[Step] = ()

    def check_modes(self) -> None:
        """Check that every call that switches modes sets the same flags in both networks."""
        parts = dict(named_modules(self._copy))
        ordinary = not any(map(has_own_modes, parts.values()))
        with in_mode(self._copy, False), in_mode(self._pruned, False):
            for call, mode in CALLS.items():
                switch(self._pruned, call)
                if not ordinary:
                    switch(self._copy, call)
                ours = dict.fromkeys(parts, mode) if ordinary else flags_of(self._copy)
                for path, flag in flags_of(self._pruned).items():
                    if ours.get(path, flag) is not flag:
                        where = path or "the network"
                        raise ProofError(f"in training mode: {where}.training is {flag} after {call}, which differs")

    def prove(self, pair: Pair, steps: Sequence[Step]) -> None:
        """Make all checks of one graph; ``steps``: its matched steps."""
        self._steps = steps
        first, tally = self._first(pair)
        self.tally.add(tally)
        # At sizes that differ from the trace's in both rows and image sides, if there are any.
        others = () if tally.at_any_size else self._others(pair, first)
        # Where values select the branch, only the graph's own sample is sure to take it.
        last = pair.sample if asks_values(pair.full) else first
        for sample in itertools.chain(others, dict.fromkeys((first, last))):
            try:
                self._check_programs(pair, sample)
            except UnjudgedError as error:
                if sample is last or self._takes(pair, sample):
                    raise
                # Laws hold for all sizes, also for those that the network refuses.
                self.notes += [] if sample is first else [f"not at other sizes: {error}"]
                continue
            self.samples += dict.fromkeys((first, sample))
            return

    def _check_programs(self, pair: Pair, sample: Sample) -> None:
        """Check that the pruned network is its graph, and that the original is its trace."""
        self._check_object(pair, sample)
        modes = (False, True) if pair.both_modes and not pair.training else (pair.training,)
        # Code that does not read the mode runs the same layers in both modes, and training shows how often each runs.
        alike = len(modes) > 1 and not self._untrained and not asks_for_modes(self._original)
        if not (alike and not self._compared(pair, sample, True, hidden=True)):
            for training in modes:
                self._check_trace(pair, sample, training)

    def check_training_step(self) -> None:
        """Compare one step of training of both whole networks in float64, forward and backward.

        Only if the trace did not train as the original does, bit for bit and by the same backward pass.
        """
        if self._untrained:
            self.notes.append(f"not compared in training mode: {self._untrained}")
        if self._untrained or not self._doubt:
            return
        smallest = min(self.samples, key=lambda sample: sum(tensor.numel() for tensor in sample.tensors))
        probe = Probe("random inputs of a small size", smallest)
        conditions = Conditions(
            original=self._original,
            pruned=self._pruned,
            keep=self._keep,
            probe=probe,
            expected={},
            answer={},
            dtype=torch.float64,
            tolerance=TOLERANCE[torch.float64],
            seed=self._seed,
            untrained="",
            levels=lambda: self._rounding(probe),
            tells=not self.tally.over_kept or not removes_anything(self._original, self._keep),
        )
        try:
            with torch.enable_grad():
                note = conditions.train()
        except ProofError as error:  # magnified rounding, or the forward needs another type: whole networks decide
            raise UnjudgedError(str(error)) from error
        self.notes += [note] if note else []

    def _rounding(self, probe: Probe) -> dict[str, float]:
        answer = evaluate(private_copy(self._pruned, torch.float64), probe, torch.float64, seed=self._seed)
        twin = private_copy(self._pruned, torch.float64)
        return rounding_levels(twin, probe, answer, torch.float64, seed=self._seed)

    def _first(self, pair: Pair) -> tuple[Sample, Tally]:
        """The smallest sample at which every node can be judged."""
        reason: UnjudgedError | None = None
        for sample in small_samples(pair.sample, pair.full, GraphOver(pair, self._copy).attribute):
            try:
                return sample, self._walk(pair, sample)
            except UnjudgedError as error:
                reason = reason or error
        raise reason or UnjudgedError("there is no sample")

    def _others(self, pair: Pair, first: Sample) -> Iterator[Sample]:
        """Other samples at which every node can be judged.

        If a node differs only at other sizes, removed entries may not be whole channels there: whole networks decide.
        """
        for sample in other_samples(pair.sample, first, pair.full):
            try:
                self._walk(pair, sample)
            except (ProofError, UnjudgedError) as error:
                if self._takes(pair, sample):
                    raise UnjudgedError(f"at other sizes, {error}") from error
                self.notes.append(f"not at other sizes: {error}")
                continue
            yield sample

    def _takes(self, pair: Pair, sample: Sample) -> bool:
        """Whether the graph at full width accepts a sample."""
        return self._full.takes(GraphOver(pair, self._copy), sample)

    def _walk(self, pair: Pair, sample: Sample) -> Tally:
        names = [node.name for node in pair.full.nodes if node.op == "placeholder"]
        values = bound(pair.full, sample).values()
        inputs = dict(zip(names, map(self._input, values), strict=True))
        attribute = GraphOver(pair, self._copy).attribute
        return walk(pair, Setting(attribute, self._keep, inputs, self._patterns), self._steps)

    def _input(self, value: Any) -> Any:
        def drawn(tensor: Tensor) -> Tensor:
            if not tensor.is_floating_point() or not tensor.numel() or not bool(torch.isfinite(tensor).all()):
                return tensor.to(self._patterns.dtype) if tensor.is_floating_point() else tensor
            return self._patterns.activation(tensor.to(self._patterns.dtype), tensor.numel())

        return pytree.tree_map_only(Tensor, drawn, value)

    def _check_trace(self, pair: Pair, sample: Sample, training: bool) -> None:
        """Compare the traced graph at full width with the original, outputs and backward pass, bit for bit."""
        if training and self._untrained:
            return
        found = self._compared(pair, sample, training)
        if found:
            if not training:
                self._check_nearly(pair, sample)
            wide = deep_copy(self._copy, widened)
            tolerance = TOLERANCE[torch.float64]
            found = self._trace_parts(Programs(wide, tolerance), wide, pair, sample, training)
        if found and not training:
            self._check_in_double(pair, sample)
        self._doubt = self._doubt or found

    def _compared(self, pair: Pair, sample: Sample, training: bool, *, hidden: bool = False) -> str:
        """Where the original and its trace differ, or ""; if values are large, by value numbers first."""
        # The trace decomposes layers of attention.
        if is_heavy(sample, pair.full) and not self._has_attention:
            found = self._trace_parts(self._numbered, self._numbered.owner, pair, sample, training, hidden)
            if not found:
                return ""
        return self._trace_parts(self._full, self._copy, pair, sample, training, hidden)

    @functools.cached_property
    def _numbered(self) -> NumberedPrograms:
        return NumberedPrograms(self._copy)

    def _trace_parts(
        self, programs: Programs, full: nn.Module, pair: Pair, sample: Sample, training: bool, hidden: bool = False
    ) -> str:
        with in_mode(full, training), hidden_modes(full) if hidden else nullcontext():
            try:
                program = GraphOver(pair, full)
                followed = programs is self._full and programs.follows(program, sample)
                return "" if followed else programs.part(full, program, sample)
            except UnjudgedError as error:
                return f"{error}"

    def _check_in_double(self, pair: Pair, sample: Sample) -> None:
        """Compare them within the tolerance of whole networks, if another kernel sums in another order."""
        twin, probe = private_copy(self._copy, torch.float64), Probe("", sample)
        try:
            expected = evaluate(twin, probe, torch.float64)
            found = evaluate(GraphOver(pair, private_copy(self._copy, torch.float64)), probe, torch.float64)
        except (
            Exception
        ) as error:  # the graph checks the dtype that the forward reads, and a forward may raise anything
            if out_of_memory(error):
                raise
            raise UnjudgedError(f"one of the two refuses float64: {error}") from error
        apart = compare(expected, found).error
        if not apart <= TOLERANCE[torch.float64]:
            raise UnjudgedError(f"the traced network's outputs differ from the original's by {apart:.3g} relative")

    def _check_nearly(self, pair: Pair, sample: Sample) -> None:
        """Compare them in the network's own type, in which a forward may take another branch than in float64."""
        answers = []
        for program in (self._copy, GraphOver(pair, self._copy)):
            torch.manual_seed(0)
            try:
                with in_mode(self._copy, False), torch.no_grad():
                    answers.append(leaves_of(called(program, sample.map(Tensor.clone))))
            except Exception as error:  # a forward may raise anything
                if out_of_memory(error):
                    raise
                raise UnjudgedError(f"one of the two refuses the sample: {error}") from error
        eps = max((torch.finfo(t.dtype).eps for t in answers[0].values() if is_float(t)), default=0.0)
        apart = compare(*answers).error
        if not apart <= min(_NEARLY * eps, 0.1):
            raise UnjudgedError(f"in their own type the traced network's outputs differ by {apart:.3g} relative")

    def _printed(self, graph: fx.Graph) -> FunctionType:
        if graph not in self._functions:
            self._functions[graph] = printed_function(graph)
        return self._functions[graph]

    def _check_object(self, pair: Pair, sample: Sample) -> None:
        """Check that the pruned network runs its graph: by its code, or by outputs and backward pass, bit for bit."""
        if pair.training and self._untrained:
            return
        given = sample.map(Tensor.detach)
        with in_mode(self._pruned, pair.training):
            modes = [p.narrow for p in self._pairs if p.training is pair.training or (p.both_modes and pair.training)]
            reaches = runs_its_graph(
                self._pruned,
                self._printed(pair.narrow),
                list(map(self._printed, modes)),
                partial(called, self._pruned, given),
                bound(pair.narrow, given),
            )
            vars(self._pruned).pop("_chosen", None)
        if reaches and all(map(partial(_code_finds_part, pair), pair.narrow.nodes)):
            return

        written = partial(self._printed(pair.narrow), pair.root)
        with in_mode(self._pruned, pair.training):
            found = Programs(self._pruned).part(written, self._pruned, sample)
        if found:
            raise UnjudgedError(f"the pruned network is not its graph, bit for bit: {found}")


def _code_finds_part(pair: Pair, node: fx.Node) -> bool:
    """Whether generated code finds the same module or tensor for a node as the proof."""
    if node.op not in ("call_module", "get_attr"):
        return True
    return functools.reduce(getattr, str(node.target).split("."), pair.root) is pair.named(node)[1]


def _shared(tensor: Tensor, *, own: bool) -> Tensor:
    """A parameter over the same memory, to which no program may write, unless ``own``; a copy of any other tensor."""
    if isinstance(tensor, nn.Parameter):
        memory = tensor.clone() if own or tensor.is_inference() else tensor
        return nn.Parameter(memory.detach(), requires_grad=tensor.requires_grad)
    return tensor.detach().clone()
