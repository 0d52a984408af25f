"""Judges a node on random values of its own, if no law covers it."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxprune.proof.locating import tables
from fxprune.proof.masking import select
from fxprune.proof.nodes.claims import Claim, Kept, difference, is_gone, is_silent
from fxprune.proof.nodes.drawing import Setting, keeps_its_values, renewed
from fxprune.proof.nodes.evaluating import WAYS, Evaluation, Result, Way
from fxprune.proof.nodes.memory import Memory, sharing, written_by
from fxprune.proof.nodes.pairs import Pair, UnjudgedError, call_name, fault, may_write, tensors_among
from fxprune.proof.nodes.structure import Step

# Uninitialised memory has a shape but no values.
_UNWRITTEN = frozenset("empty empty_like empty_strided new_empty new_empty_strided empty_permuted".split())
# Ops that only cut a tensor into pieces.
_CUTS = frozenset("split split_with_sizes chunk tensor_split unbind unsafe_chunk unsafe_split".split())


@dataclass
class Tally:
    """How nodes were judged."""

    by_law: int = 0  # for all values at once
    # On values: bit for bit, within the tolerance, and over the kept entries alone.
    exact: int = 0
    close: int = 0
    over_kept: int = 0
    structure: int = 0  # by their shapes, because their values are random
    error: float = 0.0  # the largest difference
    at_any_size: bool = True  # whether everything shown holds for inputs of all sizes

    def add(self, other: Tally) -> None:
        """Add the counts of another graph."""
        self.by_law += other.by_law
        self.exact += other.exact
        self.close += other.close
        self.over_kept += other.over_kept
        self.structure += other.structure
        self.error = max(self.error, other.error)

    @property
    def nodes(self) -> int:
        """How many nodes were judged."""
        return self.by_law + self.exact + self.close + self.over_kept + self.structure


class ByValues:
    """Judges nodes of a pair of graphs on values; each judged node is added to ``claims``."""

    def __init__(
        self,
        pair: Pair,
        setting: Setting,
        claims: dict[fx.Node, Claim],
        owners: Mapping[fx.Node, fx.Node],
        memory: Memory,
    ) -> None:
        self._pair, self._setting = pair, setting
        self._claims, self._owners, self._memory = claims, owners, memory
        self.evaluation = Evaluation(pair, setting, claims, owners)
        self._tables = tables(pair.full)
        # Row indices, boxes and the like, computed from constants: kernels may rely on their values.
        held = [node for node in pair.full.nodes if keeps_its_values(setting, node)]
        # Both networks draw random numbers of their own, so these do not keep their values.
        self.fixed = tables(pair.full, held) - _by_chance(pair.full)
        self.tally = Tally()
        self.steps: dict[fx.Node, Step] = {}

    def judge(self, step: Step) -> None:
        """Judge one node and store its claim. Raises ProofError: it differs; UnjudgedError: it cannot be judged."""
        kept: Kept = self.kept_of(step.full)
        failures: list[str] = []
        for way in WAYS[self._setting.patterns.dtype == torch.float64 :]:
            if way.over_kept and not self._may_lose(step):
                continue
            result = self.evaluation.run(step, way)
            if way is WAYS[0] and _is_inexact_tuple(step.full, result.full):
                continue
            if isinstance(result.full, Tensor):
                kept = self.fitting(step.full, result.full.shape)
            text = self._differs(step, result, kept, way)
            if not text:
                self._accept(step, result, kept, way)
                return
            failures.append(text)
        text = failures[min(len(failures), 2) - 1]
        if any(map(operator.is_not, kept, self.kept_of(step.full))):
            raise UnjudgedError(f"{step.full.name} keeps something else at these sizes: {text}")
        raise fault(self._pair, step.full, text)

    def fitting(self, node: fx.Node, shape: Sequence[int]) -> Kept:
        """The kept indices of a value of some shape, from those at the trace's sizes.

        Along a dim of another size, such as rows and heads merged, each part keeps the same. Raises UnjudgedError: the
        dim is not such a repetition.
        """
        kept = self.kept_of(node)
        if all(index is None for index in kept):
            return kept
        traced = node.meta["val"].shape
        found = [k if k is None or d >= len(shape) else _stretched(k, traced[d], shape[d]) for d, k in enumerate(kept)]
        if len(kept) > len(shape) or any(k is not None and f is None for k, f in zip(kept, found, strict=True)):
            raise UnjudgedError(f"{node.name} is {tuple(shape)} here, but removal is known for {tuple(traced)}")
        return tuple(found)

    def kept_of(self, node: fx.Node) -> Kept:
        """The kept indices of a node's value, from the certificate."""
        if node.op == "get_attr":
            return self._setting.keep.get(str(node.target), ())
        return self._pair.kept.get(node.name, ())

    def _lossy(self, step: Step) -> list[Claim]:
        claims = map(self._claims.get, step.full.all_input_nodes)
        return [claim for claim in claims if claim and (claim.is_lossy or claim.with_nan)]

    def _may_lose(self, step: Step) -> bool:
        """Whether an operand or module may have lost entries. Raises UnjudgedError: nothing explains a loss."""
        lossy = self._lossy(step)
        if any(not claim.caused for claim in lossy):
            raise UnjudgedError(f"{step.full.name}: nothing shows why entries of its operands are removed")
        return bool(lossy) or step.full.op == "call_module"

    def _differs(self, step: Step, result: Result, kept: Kept, way: Way) -> str:
        node, full, narrow = step.full, result.full, result.narrow
        if isinstance(full, Tensor):
            if result.random or call_name(node) in _UNWRITTEN:
                same = isinstance(narrow, Tensor) and select(full, kept).shape == narrow.shape
                return "" if same else f"the shape is {getattr(narrow, 'shape', None)}"
            return self._unlike(full, kept, narrow, way)
        if isinstance(full, (bool, int, float)):
            return "" if type(full) is type(narrow) and full == narrow else f"{full!r} became {narrow!r}"
        whole = not isinstance(full, (tuple, list)) or isinstance(full, torch.Size)
        return "" if whole or len(full) == len(narrow) else f"{len(full)} values became {len(narrow)}"

    def _unlike(self, full: Tensor, kept: Kept, narrow: Any, way: Way) -> str:
        """How the narrow value differs from the kept part of the full one, or ""."""
        found = difference(full, kept, narrow)
        if not found.error <= way.tolerance:
            return found.describe(way.tolerance)
        self.tally.error = max(self.tally.error, found.error)
        return ""

    def _accept(self, step: Step, result: Result, kept: Kept, way: Way) -> None:
        self._count(result, way)
        node, full = step.full, result.full
        self._check_written(step, result, way)
        self._check_statistics(step, result)
        if isinstance(full, Tensor):
            self._claims[node] = self._claim(step, result, kept, way)
            return
        claim = Claim((full, result.narrow))
        if isinstance(full, (tuple, list)) and tensors_among(full):
            lossy = self._lossy(step)
            if lossy or node.op == "call_module":
                claim.caused = all(c.caused for c in lossy)
                claim.with_nan = self._with_nan_in_removed(
                    step, {given: self._claims[given] for given in node.all_input_nodes if given in self._claims}
                )
        self._claims[node] = claim

    def _claim(self, step: Step, result: Result, kept: Kept, way: Way) -> Claim:
        node, full = step.full, result.full
        claim = Claim((full, result.narrow), kept)
        claim.silent = way.over_kept or is_silent(full, claim.lost)
        if claim.is_lossy and not way.over_kept and node not in self._tables:
            claim.caused = self._is_caused(step, claim)
        if way.over_kept and not is_gone(full, claim.lost):
            raise UnjudgedError(f"{node.name}: entries that should be removed are not")
        if way.over_kept:
            full = torch.nan_to_num(full, nan=0.0)
        claim = Claim((full, result.narrow), kept, silent=claim.silent, caused=claim.caused)
        if step.written:
            return self.renewed(node, claim)
        # A gate has no node of its own in the rewritten graph: it keeps the values of the node before it.
        return claim.changed(self._setting.cast((full, result.narrow)))

    def renewed(self, node: fx.Node, claim: Claim) -> Claim:
        """The claim with new random values, if the node's values are floats that depend on inputs or parameters."""
        if node in self.fixed:
            return claim.changed(self._setting.cast(claim.values()))
        return renewed(self._setting, node.name, claim)

    def _is_caused(self, step: Step, claim: Claim) -> bool:
        """Whether removed entries follow from earlier ones: they are zero if those are, or NaN if those are."""
        if claim.silent and (self._lossy(step) or step.full.op == "call_module"):
            return True
        try:
            result = self.evaluation.run(step, WAYS[-1])
        except UnjudgedError:
            return False
        return isinstance(result.full, Tensor) and is_gone(result.full, claim.lost)

    def _with_nan_in_removed(self, step: Step, known: Mapping[fx.Node, Claim]) -> Callable[[], Any]:
        """A function that computes the node's value with NaN in removed entries."""
        evaluation = Evaluation(self._pair, self._setting, known, dict(self._owners))
        return lambda: evaluation.run(step, WAYS[-1]).full

    def _check_statistics(self, step: Step, result: Result) -> None:
        """Judge a batch norm's output in training mode and its statistics after one step."""
        if result.modules is None or not isinstance(result.modules[0], nn.modules.batchnorm._BatchNorm):
            return
        if not self._pair.training:
            if not self._pair.both_modes:
                return
            found = ""
            for way in WAYS[1:]:  # if positions are removed too, statistics are over the kept entries
                result = self.evaluation.run(step, way, training=True)
                text = self._differs(step, result, self.fitting(step.full, result.full.shape), way)
                if not text:
                    break
                found = found or text
            else:
                raise fault(self._pair, step.full, f"in training mode, {found}")
        assert result.modules is not None
        full, narrow = result.modules
        for name, buffer in full._buffers.items():
            kept = self._setting.keep.get(f"{step.full.target}.{name}", ())
            if buffer is not None and (text := self._unlike(buffer, kept, narrow._buffers[name], WAYS[1])):
                raise fault(self._pair, step.full, f"its {name} after a step of training: {text}")

    def _check_written(self, step: Step, result: Result, way: Way) -> None:
        """Record whose memory the node's value shares, and judge written values again that later nodes read."""
        node, writes = step.full, may_write(step.full, result.modules and result.modules[0])
        shared = sharing(result) or ({written_by(node)} if writes else set())
        members = self._memory.note(node, shared)
        later = self._memory.rewritten(node, members, self._claims) if writes else set()
        if not later or result.random:
            return
        written = written_by(node)
        found = result.used if later == {written} else self._through_views(step, later, way)
        for member in later:
            if isinstance(found[member][0], Tensor):
                self._rewritten(node, member, *found[member], way)

    def _through_views(self, step: Step, later: set[fx.Node], way: Way) -> Mapping[fx.Node, tuple[Any, Any]]:
        """After a write to a view, the values of its base and of the views in between, by node."""
        lineage = self._memory.lineage(written_by(step.full))
        if way.over_kept or any(member not in lineage for member in later):
            raise UnjudgedError(f"{step.full.name} writes to memory that later nodes read, and not through plain views")
        return self.evaluation.replayed([self.steps[node] for node in lineage[1:]], step, lineage[0], way)

    def _rewritten(self, node: fx.Node, member: fx.Node, full: Any, narrow: Any, way: Way) -> None:
        """Judge another node's value after a write."""
        old = self._claims[member]
        kept = old.kept
        if text := self._unlike(full, kept, narrow, way):
            # The middle step of ``x[::2] += y`` may write to a copy if the narrow network puts that back as well.
            if any(call_name(user) == "setitem" and node in user.args[2:] for user in node.users):
                raise UnjudgedError(f"{node.name} writes to {member.name}, and a later op puts the result there")
            raise fault(self._pair, node, f"its write to {member.name}: {text}")
        now = Claim((full, narrow), kept, caused=old.caused)
        now.silent = is_silent(full, now.lost)
        self._claims[member] = self.renewed(member, now)

    def _count(self, result: Result, way: Way) -> None:
        if result.random:
            self.tally.structure += 1
        elif way.over_kept:
            self.tally.over_kept += 1
        elif way.tolerance:
            self.tally.close += 1
        else:
            self.tally.exact += 1


def _stretched(kept: Tensor, before: int, after: int) -> Tensor | None:
    """The kept indices of a dim of another size, if each of its parts keeps the same; else None."""
    if before == after:
        return kept
    part = math.gcd(before, after)
    if not part or len(kept) % (before // part):
        return None
    parts = kept.view(before // part, -1)
    starts = part * torch.arange(max(before, after) // part, device=kept.device)[:, None]
    own = parts[:1]
    return (own + starts[: after // part]).flatten() if torch.equal(parts, own + starts[: before // part]) else None


def _is_inexact_tuple(node: fx.Node, value: Any) -> bool:
    """Whether the value is several computed tensors, which are compared only when they are read."""
    return isinstance(value, (tuple, list)) and bool(tensors_among(value)) and call_name(node) not in _CUTS


# Parts of the names of ops that draw random numbers or return uninitialised memory.
_CHANCE = ("rand", "bernoulli", "normal", "uniform", "exponential", "multinomial", "poisson", "dropout", "empty")


def _by_chance(graph: fx.Graph) -> set[fx.Node]:
    """The nodes whose values depend on random numbers or on uninitialised memory."""
    found: set[fx.Node] = set()
    for node in graph.nodes:
        name = call_name(node)
        if any(part in name for part in _CHANCE) or any(given in found for given in node.all_input_nodes):
            found.add(node)
    return found
