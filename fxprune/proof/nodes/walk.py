"""The proof node by node: each node's claim from the claims before it, at sizes as small as the graph accepts.

The claim of a node is that its narrow value consists of the kept entries of its full value. Inputs and outputs keep
everything, and parameters keep what the plan says. If a law shows that the claim follows from those before it, it holds
for all values. Else a node is judged on random values of its own: removed entries may hold anything, or zero if the
node before returned zero there. Once a node is judged, its value is drawn anew, so that later nodes do not depend on
the computed value, and rounding does not build up. Every node's claim holds for all values for which the claims before
it hold, so the claims of the outputs follow along the graph, and these say that the networks are equal.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, fx

from fxprune.errors import ProofError
from fxprune.proof.comparing import compare, leaves_of
from fxprune.proof.locating import reads_about
from fxprune.proof.nodes.by_values import ByValues, Tally
from fxprune.proof.nodes.claims import Claim, Kept, same_kept
from fxprune.proof.nodes.drawing import Setting, drawn, held_claim
from fxprune.proof.nodes.evaluating import TOLERANCE, WAYS
from fxprune.proof.nodes.laws import Reading, Verdict, has_same_attributes, judged, law_name
from fxprune.proof.nodes.laws.reading import on_meta, widest
from fxprune.proof.nodes.memory import Memory, sharing, written_by
from fxprune.proof.nodes.pairs import Pair, UnjudgedError, call, call_name, fault, is_number, on_values
from fxprune.proof.nodes.structure import Step

# Ops that read or set the memory layout: in graphs with them no law is used, so computed values keep their strides.
_LAYOUT = frozenset("is_contiguous stride as_strided storage_offset data_ptr".split())


def walk(pair: Pair, setting: Setting, steps: Sequence[Step]) -> Tally:
    """Judge all nodes by the matched ``steps``. Raises ProofError: one differs; UnjudgedError: one cannot be judged."""
    return _Walk(pair, setting).run(steps)


class _Walk:
    def __init__(self, pair: Pair, setting: Setting) -> None:
        self._pair, self._setting = pair, setting
        self._claims: dict[fx.Node, Claim] = {}
        self._owners: dict[fx.Node, fx.Node] = {}
        self._memory = Memory(pair)
        self._by_values = ByValues(pair, setting, self._claims, self._owners, self._memory)
        self._evaluation, self._tally = self._by_values.evaluation, self._by_values.tally
        self._has_other_rows = any(map(self._has_rows, (n for n in pair.full.nodes if n.op == "placeholder")))
        # The nodes that only move entries, according to laws.
        self._moved: set[fx.Node] = set()
        self._has_laws = not any(call_name(node) in _LAYOUT for node in pair.full.nodes)

    def _has_rows(self, node: fx.Node) -> bool:
        """Whether an input has another number of rows than in the trace."""
        traced, value = node.meta.get("val"), self._setting.inputs[node.name]
        return isinstance(traced, Tensor) and isinstance(value, Tensor) and value.shape[:1] != traced.shape[:1]

    def run(self, steps: Sequence[Step]) -> Tally:
        self._by_values.steps = {step.full: step for step in steps}
        for step in steps:
            try:
                self._judge(step)
            except (ProofError, UnjudgedError):
                raise
            except Exception as error:  # operators and modules may raise anything, which proves nothing
                raise UnjudgedError(f"{step.full.name}: {type(error).__name__}: {error}") from error
            if isinstance(step.image, fx.Node):
                self._owners[step.image] = step.full
            for node in self._memory.dying(step.full):
                if not is_number(node):  # a write through a view may read the view's bounds again
                    self._claims.pop(node, None)
        return self._tally

    def _judge(self, step: Step) -> None:
        node = step.full
        if node.op == "placeholder":
            value = self._setting.inputs[node.name]
            self._claims[node] = Claim((value, value))
        elif node.op == "get_attr":
            self._attribute(step)
        elif node.op == "output":
            for given in node.all_input_nodes:
                self._output(given)
        elif step.image is None:
            if is_number(node):
                self._left_out(node)
        else:
            reading = self._reading(step)
            if reading is None or not (
                self._by_arithmetic(reading)
                or (node not in self._by_values.fixed and (self._by_law(reading) or self._by_law_of_rows(reading)))
                or self._by_identity(step, reading)
            ):
                self._by_values.judge(step)
                self._tally.at_any_size &= reading is not None and reading.same and _depends_on_equal_values(reading)

    def _attribute(self, step: Step) -> None:
        node, name = step.full, str(step.full.target)
        # A gate has no image: the rewritten network has no such tensor.
        narrow = None if step.image is None else self._pair.named(step.image)[1]
        self._claims[node] = held_claim(self._setting, name, self._setting.attribute(name), narrow)
        self._memory.note(node, ())

    def _output(self, given: fx.Node) -> None:
        claim = self._claims[given]
        if claim.is_drawn and claim.is_whole:
            return
        found = compare(leaves_of(claim.full), leaves_of(claim.narrow))
        if not found.error <= TOLERANCE:
            raise fault(self._pair, given, f"as an output, {found.describe(TOLERANCE)}")

    def _left_out(self, node: fx.Node) -> None:
        """Compute a number that the rewritten graph lacks: checks of the captured graph still need it."""
        if all(given in self._claims for given in node.all_input_nodes):
            full, _ = self._evaluation.called(node, None, lambda n: self._claims[n].sized()[0], WAYS[0])
            self._claims[node] = Claim((full, full))

    def _reading(self, step: Step) -> Reading | None:
        """The node as laws see it; None if the rewritten graph needs further ops for its value."""
        given = step.full.all_input_nodes
        if step.counterpart is None or step.written != (step.image,) or not all(n in self._claims for n in given):
            return None
        return Reading(
            step.full,
            step.counterpart,
            self._by_values.kept_of(step.full),
            self._claims,
            self._owners,
            self._pair.images,
            self._evaluation.modules(step),
            self._setting.keep,
            self._setting.patterns,
        )

    def _by_arithmetic(self, reading: Reading) -> bool:
        """Whether both networks make the same call on numbers or tensor sizes, with the same result."""
        node = reading.node
        asks = node.target is getattr and node.args[1] in ("dtype", "device")
        if not (is_number(node) or asks) or node.op == "call_module" or reading.writes or not reading.same:
            return False
        values = []
        for side in range(2):
            args, kwargs = on_values(node, lambda n, side=side: self._claims[n].sized()[side])  # type: ignore[misc]
            values.append(call(node, args, kwargs, None))
            if all(claim.shape is None and _is_alike(claim) for claim in reading.operands):
                break
        if type(values[0]) is not type(values[-1]) or values[0] != values[-1]:
            return False
        self._claims[node] = Claim((values[0], values[-1]))
        self._tally.exact += 1
        return True

    def _by_law(self, reading: Reading) -> bool:
        """Whether a law shows that the claim holds."""
        verdict = judged(reading) if self._has_laws else None
        if verdict is None:
            return False
        node = reading.node
        kept = () if verdict.pieces else self._by_values.fitting(node, verdict.shape)
        if not verdict.pieces and not all(map(same_kept, kept, reading.kept)):
            return False
        written = written_by(node) if reading.writes else None
        members = self._memory.note(node, [written] if written else node.all_input_nodes if verdict.shares else ())
        later = self._memory.rewritten(node, members, self._claims) if written else set()
        if not self._passes_on(written, later):
            return False
        caused = all(claim.caused for claim in reading.operands if claim.is_lossy or claim.with_nan)
        if verdict.pieces:
            pieces = [
                self._drawn(f"{node.name}[{number}]", piece.shape, piece.kept, verdict, caused)
                for number, piece in enumerate(verdict.pieces)
            ]
            self._claims[node] = Claim.of_pieces(pieces, caused=caused)
        else:
            self._claims[node] = self._drawn(node.name, verdict.shape, reading.kept, verdict, caused)
        for member in later:
            whole = member is written and law_name(node) != "setitem"
            self._claims[member] = self._claims[node] if whole else self._partly(member, self._claims[node])
        if verdict.shares and not reading.writes:
            self._moved.add(node)
        self._tally.at_any_size &= verdict.at_any_size
        self._tally.over_kept += verdict.over_kept
        self._tally.by_law += not verdict.over_kept
        return True

    def _by_law_of_rows(self, reading: Reading) -> bool:
        """The same if the removed entries of a dim that contains rows are known for the trace's number of rows only."""
        if not self._has_other_rows or all(index is None for index in reading.kept):
            return False
        shape = _shape_of(reading)
        kept = reading.kept if shape is None else self._by_values.fitting(reading.node, shape)
        return any(map(operator.is_not, kept, reading.kept)) and self._by_law(replace(reading, kept=kept))

    def _passes_on(self, written: fx.Node | None, later: set[fx.Node]) -> bool:
        """Whether later readers of a write see it through views whose entries are known by laws."""
        if not later - {written}:
            return True
        lineage = self._memory.lineage(written) if written else []
        known = all(member in lineage and self._claims[member].is_drawn for member in later)
        return known and all(node in self._moved for node in lineage[1:])

    def _partly(self, node: fx.Node, written: Claim) -> Claim:
        """The claim of a value that was partly overwritten: the kept indices stay the same."""
        old = self._claims[node]
        silent, domain = old.silent and written.silent, widest([old, written])
        verdict = Verdict(old.shape or (), domain, silent)
        return self._drawn(node.name, verdict.shape, old.kept, verdict, old.caused)

    def _drawn(self, name: str, shape: Sequence[int], kept: Kept, verdict: Verdict, caused: bool) -> Claim:
        return Claim(
            partial(drawn, self._setting, name),
            kept,
            shape=shape,
            domain=verdict.domain or "any",
            silent=verdict.silent,
            caused=caused,
            like=self._setting.patterns.one,
        )

    def _by_identity(self, step: Step, reading: Reading) -> bool:
        """Whether both networks make the same call on the same values, in which nothing is removed."""
        node = step.full
        if reading.writes or is_number(node) or not reading.operands or not reading.same:
            return False
        if any(index is not None for index in reading.kept) or not all(map(_is_alike, reading.operands)):
            return False
        if reading.modules is not None and not _is_unchanged(reading):
            return False
        result = self._evaluation.run_full(step, WAYS[self._setting.patterns.dtype == torch.float64])
        self._memory.note(node, sharing(result))
        self._claims[node] = claim = Claim((result.full, result.full))
        if isinstance(result.full, Tensor):
            self._claims[node] = self._by_values.renewed(node, claim)
        self._tally.by_law += 1
        return True


def _shape_of(reading: Reading) -> Sequence[int] | None:
    """The shape of the full value; of a layer's output, only the number of rows is sure."""
    if reading.module is not None:
        given, traced = reading.tensor(), reading.node.meta["val"].shape
        return None if given is None or not given.shape else (given.shape[0], *traced[1:])
    result = reading.tried(lambda claim: on_meta(claim.shape or ()) if claim.is_float else claim.full.to("meta"))
    return result.shape if isinstance(result, Tensor) else None


def _depends_on_equal_values(reading: Reading) -> bool:
    """Whether a call returns a number, or depends only on values that are the same in both networks."""
    if is_number(reading.node):
        return True
    about = reads_about(reading.node) or call_name(reading.node).startswith("new_")
    alike = (_is_alike(claim) or (about and claim.shape is not None) for claim in reading.operands)
    return all(index is None for index in reading.kept) and all(alike)


def _is_alike(claim: Claim) -> bool:
    """Whether both values are the same tensor or number."""
    if claim.shape is not None:
        return claim.is_whole
    return (
        isinstance(claim.full, (bool, int, float, torch.dtype, torch.device))
        and type(claim.full) is type(claim.narrow)
        and claim.full == claim.narrow
    )


def _is_unchanged(reading: Reading) -> bool:
    """Whether both networks call the same module of torch.nn over the same tensors."""
    assert reading.modules is not None
    full, narrow = reading.modules
    names = (*full._parameters, *full._buffers)
    if type(full) is not type(narrow) or not type(full).__module__.startswith("torch.nn.") or full._modules:
        return False
    return has_same_attributes(full, narrow) and all(kept is None for n in names for kept in reading.kept_of(n) or ())
