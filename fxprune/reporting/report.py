"""What a compilation did: asked and achieved, widths before and after, what was pinned and why, the proof, timings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from fxprune.planning.plan import Plan
from fxprune.verifying.proof import Proof

__all__ = ["MACS_MEANING", "GroupRow", "OpaqueRow", "PinnedRow", "Report"]

MACS_MEANING = "multiply-accumulates of convolution, linear and matmul"


@dataclass(frozen=True)
class GroupRow:
    """A group of channels that live or die together.

    Attributes:
        name: the group's name.
        before: channels in the original network.
        after: channels in the pruned network.
        members: the parameters and buffers that the group cuts.
    """

    name: str
    before: int
    after: int
    members: tuple[str, ...] = ()


@dataclass(frozen=True)
class PinnedRow:
    """A width that had to stay.

    Attributes:
        name: the parameter and dim, or the node, that has the width.
        width: its size.
        reason: why it stays.
        where: the operation, with its place in the model's source, that says so.
    """

    name: str
    width: int
    reason: str
    where: str = ""


@dataclass(frozen=True)
class OpaqueRow:
    """A call that is not seen into: everything it touches keeps its size.

    Attributes:
        name: path of the module, or name of the operation.
        reason: why it is opaque.
        where: its place in the model's source.
        parameters: number of elements of its own parameters, which stay as they are.
        macs: its own multiply-accumulates for the sample, which no budget covers.
    """

    name: str
    reason: str
    where: str = ""
    parameters: int = 0
    macs: int = 0


@dataclass(frozen=True)
class Report:
    """The result of one compilation, as plain data.

    Attributes:
        ratio: the fraction of the budget asked to be removed, 0 <= ratio < 1.
        budget: what ``ratio`` is a fraction of: "macs", "params" or "channels".
        budget_before: the budget's total in the original network, in its own unit.
        budget_after: the same in the pruned network.
        macs_before: multiply-accumulates of convolution, linear and matmul for one call with the sample, before.
        macs_after: the same after.
        parameters_before: number of elements of all parameters, before.
        parameters_after: the same after.
        groups: one row for each group, in the network's order.
        pinned: one row for each pinned width.
        opaque: one row for each call that is not seen into.
        proof: the proof, or None where there was none; ``unproven`` then says why.
        unproven: why there is no proof, such as "verify=False" or "structural, unproven".
        seconds: wall-clock time of each pass, in order.
        settings: criterion, scope, seed, versions and whatever else the result depends on.
        plan: the plan that was applied.
        network: class name of the original network.
        source: where the command line found the original network; empty otherwise.
    """

    ratio: float
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

    @property
    def achieved(self) -> float:
        """The fraction of the budget that was removed."""
        return removed(self.budget_before, self.budget_after)

    @property
    def headline(self) -> str:
        """One sentence without a full stop: what was removed."""
        macs = removed(self.macs_before, self.macs_after)
        parameters = removed(self.parameters_before, self.parameters_after)
        return f"{macs:.1%} of the {MACS_MEANING} and {parameters:.1%} of the parameters removed"

    def as_dict(self) -> dict[str, Any]:
        """JSON data that :meth:`from_dict` reads; the plan is left out, as it has a file format of its own."""
        data = {name: getattr(self, name) for name in self.__dataclass_fields__ if name not in ("plan", "proof")}
        for name in ("groups", "pinned", "opaque"):
            data[name] = [asdict(row) for row in data[name]]
        data["seconds"], data["settings"] = dict(self.seconds), dict(self.settings)
        data["proof"] = None if self.proof is None else self.proof.as_dict()
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], *, plan: Plan | None = None) -> Report:
        """The report that :meth:`as_dict` wrote, with its plan.

        Raises:
            KeyError, TypeError: the data was not written by :meth:`as_dict`.
        """
        fields = dict(data)
        fields["groups"] = tuple(GroupRow(**{**row, "members": tuple(row["members"])}) for row in data["groups"])
        fields["pinned"] = tuple(PinnedRow(**row) for row in data["pinned"])
        fields["opaque"] = tuple(OpaqueRow(**row) for row in data["opaque"])
        fields["proof"] = None if data["proof"] is None else _proof(data["proof"])
        return cls(**fields, plan=plan)

    def __str__(self) -> str:
        from fxprune.reporting.printing import as_text

        return as_text(self)


def _proof(data: Mapping[str, Any]) -> Proof:
    values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in data.items()}
    return Proof(**values)


def removed(before: float, after: float) -> float:
    """The fraction removed; 0 where there was nothing."""
    return 1 - after / before if before else 0.0
