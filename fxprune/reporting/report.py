"""The report of a compilation: asked and achieved, widths before and after, pins and reasons, the proof, timings."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any

from fxprune.analysis.drawing import DrawnNode
from fxprune.planning.plan import Plan
from fxprune.proof.proving import Proof
from fxprune.util.tables import PrintedInNotebook

if TYPE_CHECKING:
    from fxprune.reporting.comparing import Comparison

MACS_MEANING = "multiply-accumulates of convolution, linear and matmul"


@dataclass(frozen=True)
class GroupRow:
    """A group of channels that are removed together.

    Attributes:
        name: the group's name.
        before: channels in the original network.
        after: channels in the pruned network.
        members: the parameters and buffers that the group cuts.
        error: the norm of the change of the outputs when this group alone is cut, before any recovery, as a share of
            the norm of the original's outputs, on calibration data; None if it was not measured.
    """

    name: str
    before: int
    after: int
    members: tuple[str, ...] = ()
    error: float | None = None


@dataclass(frozen=True)
class PinnedRow:
    """A width that must stay.

    Attributes:
        name: the parameter and dim, or the node, with this width.
        width: its size.
        reason: why it stays.
        where: the operation that requires it, with its place in the model's source.
    """

    name: str
    width: int
    reason: str
    where: str = ""


@dataclass(frozen=True)
class OpaqueRow:
    """An opaque call: everything it touches keeps its size.

    Attributes:
        name: path of the module, or name of the operation.
        reason: why it is opaque.
        where: its place in the model's source.
        parameters: number of elements of its own parameters, which all stay.
        macs: its own multiply-accumulates for the sample; budgets count them, but none can be removed.
    """

    name: str
    reason: str
    where: str = ""
    parameters: int = 0
    macs: int = 0


@dataclass(frozen=True)
class CostRow:
    """The costs of one operation, or of one layer with parameters.

    Attributes:
        name: path of the module, or name of the operation.
        macs: multiply-accumulates before and after.
        parameters: elements of its parameters before and after.
    """

    name: str
    macs: tuple[int, int]
    parameters: tuple[int, int]


@dataclass(frozen=True)
class ScoreRow:
    """How the scores of a group's channels are spread.

    Attributes:
        name: the group's name.
        low: the lowest score.
        high: the highest score.
        kept: the number of kept channels in each of several equal intervals from ``low`` to ``high``.
        removed: the same for removed channels.
    """

    name: str
    low: float
    high: float
    kept: tuple[int, ...]
    removed: tuple[int, ...]


@dataclass(frozen=True)
class FidelityRow:
    """How close a network's outputs are to the original's on calibration data.

    Attributes:
        network: "cut" or "recovered".
        samples: how many samples were compared.
        held_out: whether the samples were held out, so that no recovery was fitted to them.
        error: norm of the difference of all outputs, as a share of the norm of the original's; None if the outputs
            cannot be compared.
        agreement: share of decisions (the largest entry of each sample, token or pixel) that equal the original's; None
            if there are no classes.
        cosine: mean cosine between the two outputs of each sample, token or pixel; None if there are no channels.
        divergence: mean divergence of the predictions of tokens, in nats; None if the outputs predict no tokens.
    """

    network: str
    samples: int
    held_out: bool
    error: float | None = None
    agreement: float | None = None
    cosine: float | None = None
    divergence: float | None = None


@dataclass(frozen=True)
class RecoveryRow:
    """What a recovery did after the proof.

    Attributes:
        method: the recovery's name.
        changed: the weights or modules whose values it changed.
        left: the layers it could not change, with the reasons.
        samples: how many calibration samples it used; 0 if it needs none.
        error_before: the squared error of a layer's outputs as a share of their variance, on the calibration data, as a
            mean over the layers, before the recovery; None if it is not measured.
        error_after: the same after the recovery.
        guards: changes that were skipped or undone because they made the network worse on held-out samples.
    """

    method: str
    changed: tuple[str, ...] = ()
    left: Mapping[str, str] = field(default_factory=dict)
    samples: int = 0
    error_before: float | None = None
    error_after: float | None = None
    guards: tuple[str, ...] = ()


@dataclass(frozen=True)
class LatencyRow:
    """The time of one call, if the budget was latency.

    Attributes:
        predicted: seconds of the original and of the pruned network, as sums over the table of operations.
        measured: median seconds of the whole networks, timed alternately; None if that failed.
        conditions: the conditions of the measurement, or why it failed.
    """

    predicted: tuple[float, float]
    measured: tuple[float, float] | None
    conditions: str


@dataclass(frozen=True)
class GoalRow:
    """One of several budgets.

    Attributes:
        budget: its name.
        asked: the fraction to remove.
        before: its total in the original network.
        after: the same in the pruned network.
    """

    budget: str
    asked: float | None
    before: float
    after: float


# The tables of a report, with the classes of their rows.
_ROWS: dict[str, Any] = {"groups": GroupRow, "pinned": PinnedRow, "opaque": OpaqueRow, "costs": CostRow}
_ROWS |= {"scores": ScoreRow, "recovery": RecoveryRow, "goals": GoalRow, "fidelity": FidelityRow}


@dataclass(frozen=True, repr=False)
class Report(PrintedInNotebook):
    """The result of one compilation, as plain data.

    Attributes:
        ratio: the fraction of the budget to remove, 0 <= ratio < 1; None if the request named channels or fractions
            of single layers instead.
        budget: the cost that ``ratio`` is of: "macs", "params", "channels", "memory" (bytes) or "latency" (seconds).
        budget_before: the budget's total in the original network, in its own unit.
        budget_after: the same in the pruned network.
        macs_before: multiply-accumulates of convolution, linear and matmul for one call with the sample, before.
        macs_after: the same after.
        parameters_before: number of elements of all parameters, before.
        parameters_after: the same after.
        groups: one row for each group, in the network's order.
        pinned: one row for each pinned width.
        opaque: one row for each opaque call.
        proof: the proof, or None if there was none; ``unproven`` then says why.
        recovery: one row for each recovery, in order; recoveries change kept values after the proof.
        unproven: why there is no proof, such as "verify=False" or "structural, unproven".
        seconds: wall-clock time of each pass, in order.
        settings: criterion, scope, seed, versions and all other settings that the result depends on.
        plan: the plan that was applied.
        network: class name of the original network.
        source: where the command line found the original network; empty otherwise.
        costs: one row for each operation and each layer with parameters.
        scores: one row for each group, where the criterion gives scores.
        drawing: the operations of the network, with their groups and pins.
        environment: the machine that the compilation ran on.
        latency: the predicted and measured times if the budget was latency, else None.
        goals: one row for each budget, if there were several; ``budget`` is the first.
        fidelity: one row for the network before recovery, and one after it, if there is calibration data.
        notes: what "auto" chose and why, and other remarks for the caller.
        memory_before: bytes of the parameters plus the most bytes of activations alive at once, for one call with the
            sample, before; 0 in reports of earlier versions.
        memory_after: the same after.
    """

    ratio: float | None
    budget: str
    budget_before: float
    budget_after: float
    macs_before: int
    macs_after: int
    parameters_before: int
    parameters_after: int
    groups: tuple[GroupRow, ...] = ()
    pinned: tuple[PinnedRow, ...] = ()
    opaque: tuple[OpaqueRow, ...] = ()
    proof: Proof | None = None
    unproven: str = ""
    seconds: Mapping[str, float] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    plan: Plan | None = field(default=None, repr=False)
    network: str = ""
    source: str = ""
    costs: tuple[CostRow, ...] = field(default=(), repr=False)
    scores: tuple[ScoreRow, ...] = field(default=(), repr=False)
    drawing: tuple[DrawnNode, ...] = field(default=(), repr=False)
    environment: Mapping[str, str] = field(default_factory=dict)
    recovery: tuple[RecoveryRow, ...] = ()
    latency: LatencyRow | None = None
    goals: tuple[GoalRow, ...] = ()
    notes: tuple[str, ...] = ()
    fidelity: tuple[FidelityRow, ...] = ()
    memory_before: float = 0.0
    memory_after: float = 0.0

    @property
    def achieved(self) -> float:
        """The fraction of the budget that was removed."""
        return removed(self.budget_before, self.budget_after)

    @property
    def headline(self) -> str:
        """One sentence, without a full stop, that says what was removed."""
        macs = removed(self.macs_before, self.macs_after)
        parameters = removed(self.parameters_before, self.parameters_after)
        return f"{macs:.1%} of the {MACS_MEANING} and {parameters:.1%} of the parameters removed"

    def as_dict(self) -> dict[str, Any]:
        """JSON data that :meth:`from_dict` reads; the plan is left out, as it has a file format of its own."""
        data = {name: getattr(self, name) for name in self.__dataclass_fields__ if name not in ("plan", "proof")}
        for name in _ROWS:
            data[name] = [asdict(row) for row in data[name]]
        data["drawing"] = [node.as_list() for node in self.drawing]
        data["environment"] = dict(self.environment)
        data["seconds"], data["settings"] = dict(self.seconds), dict(self.settings)
        data["proof"] = None if self.proof is None else self.proof.as_dict()
        data["latency"] = None if self.latency is None else asdict(self.latency)
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], *, plan: Plan | None = None) -> Report:
        """The report that :meth:`as_dict` wrote, with its plan.

        Raises:
            KeyError, TypeError, ValueError: the data was not written by :meth:`as_dict`.
        """
        json.dumps(data, ensure_ascii=False).encode()  # raises for lone surrogates
        fields = dict(data)
        fields |= {name: tuple(row(**_tuples(held)) for held in data.get(name, ())) for name, row in _ROWS.items()}
        fields["drawing"] = tuple(map(DrawnNode.from_list, data.get("drawing", ())))
        fields["notes"] = tuple(data.get("notes", ()))
        proof = data["proof"]  # folders of earlier versions have more fields
        known = {n: v for n, v in (proof or {}).items() if n in Proof.__dataclass_fields__}
        fields["proof"] = None if proof is None else Proof(**_tuples(known))
        latency = data.get("latency")
        fields["latency"] = None if latency is None else LatencyRow(**_tuples(latency))
        report = cls(**fields, plan=plan)
        rows = [report.drawing, *(getattr(report, name) for name in _ROWS)]
        single = [row for row in (report.proof, report.latency) if row is not None]
        _check_types([report, *(row for part in rows for row in part), *single])
        if any(len(row.kept) != len(row.removed) for row in report.scores):
            raise ValueError("scores: kept and removed have different numbers of intervals")
        if any(not 0 <= given < here for here, node in enumerate(report.drawing) for given in node.inputs):
            raise ValueError("drawing: an operation reads the result of a later one")
        return report

    def compare(self, other: Report, names: tuple[str, str] = ("first", "second")) -> Comparison:
        """Compare this result with another one, under these names: ``print`` it, or write it with ``save_html``."""
        from fxprune.reporting.comparing import Comparison

        return Comparison(self, other, names)

    def save_html(self, path: str | os.PathLike[str]) -> None:
        """Write the report as one HTML file that loads nothing else; the file appears whole or not at all.

        Raises:
            FileError: the file cannot be written.
        """
        from fxprune.reporting.page import as_html
        from fxprune.util.writing import checked_path, write_text

        write_text(checked_path(path), as_html(self))

    def __repr__(self) -> str:
        return f"<Report: {self.network or 'network'}, {self.achieved:.1%} of {self.budget} removed>"

    def __str__(self) -> str:
        from fxprune.reporting.text import as_text

        return as_text(self)


def _tuples(data: Mapping[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in data.items()}


def removed(before: float, after: float) -> float:
    """The fraction removed; 0 if there was nothing to remove."""
    return 1 - after / before if before else 0.0


# -- rows that are read from a file ------------------------------------------------------------------------------------

_LARGEST = 1 << 256  # far above any count; quotients of larger integers may overflow a float
_KINDS: dict[str, tuple[type, ...]] = {
    "int": (int, float),
    "float": (int, float),
    "str": (str,),
    "bool": (bool,),
    "None": (type(None),),
    "tuple": (tuple, list),
    "Mapping": (Mapping,),
}


def _check_types(rows: Iterable[Any]) -> None:
    """Compare fields with annotations of built-in types. Raises TypeError: a field has a value of another type."""
    for row in rows:
        for column in fields(row):
            value = getattr(row, column.name)
            if not _fits(value, str(column.type)):
                raise TypeError(f"{type(row).__name__}.{column.name} cannot be {value!r:.40}")


def _fits(value: Any, annotation: str) -> bool:
    return any(_fits_one(value, choice) for choice in annotation.split(" | "))


def _fits_one(value: Any, annotation: str) -> bool:
    name, _, inside = annotation.rstrip("]").partition("[")
    kinds = _KINDS.get(name)
    if kinds is None:
        return True
    if isinstance(value, bool) and bool not in kinds:
        return False
    if isinstance(value, int) and abs(value) >= _LARGEST:
        return False
    parts = inside.split(", ")
    of_what = parts[-1 if name == "Mapping" else 0]
    if name == "tuple" and parts[-1] != "..." and "[" not in inside and len(_held(value)) != len(parts):
        return False
    return isinstance(value, kinds) and all(_fits_one(held, of_what) for held in _held(value))


def _held(value: Any) -> list[Any]:
    """The items of a container, or the values of a mapping; the keys of a mapping are not checked."""
    if isinstance(value, Mapping):
        return list(value.values())
    return list(value) if isinstance(value, (tuple, list)) else []
