"""A report on the terminal: one screen of 100 columns, or more if asked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console, RenderableType
from rich.console import Group as Stack
from rich.table import Table
from rich.text import Text

from fxprune.planning.composing import GroupDifference, PlanDifference
from fxprune.proof.proving import Proof
from fxprune.reporting.report import (
    MACS_MEANING,
    FidelityRow,
    GoalRow,
    GroupRow,
    LatencyRow,
    OpaqueRow,
    RecoveryRow,
    Report,
    removed,
)
from fxprune.util.tables import (
    Printable,
    add_row,
    labelled,
    listing,
    new_table,
    percent,
    plain_text,
    quantity,
    short_seconds,
    with_rest,
)

_TOP_GROUPS = 10
_PROVEN = {"masked": "the masked original's", "nan-carrying": "the original's over the kept entries"}
BUDGETS = {"macs": "MACs", "params": "parameters", "channels": "channels", "memory": "memory", "latency": "latency"}


def print_report(report: Report, console: Console | None = None, *, verbose: bool = False) -> None:
    """Print a report; ``verbose`` shows every group with its members and every pinned width."""
    (console or Console()).print(Printable(render_report(report, verbose=verbose)))


def as_text(report: Report, *, verbose: bool = False) -> str:
    """The report as plain text, at most 100 columns wide."""
    return plain_text(render_report(report, verbose=verbose))


def render_report(report: Report, *, verbose: bool = False) -> RenderableType:
    """The report as a rich renderable."""
    title = Text(f"{report.network or 'network'}: {achieved_in_words(report)}", style="bold")
    parts: list[RenderableType] = [title, _totals(report), Text(f"* {MACS_MEANING}", style="dim"), Text("")]
    if report.groups:
        parts.append(_groups(report.groups, verbose))
    if report.pinned:
        rows = [(f"{row.name} ({row.width})", row.reason, row.where) for row in report.pinned]
        parts += [Text(""), listing("pinned width", rows, verbose)]
    if report.opaque:
        rows = [(_with_cost(row), row.reason, row.where) for row in report.opaque]
        parts += [Text(""), listing("opaque call", rows, verbose)]
    return Stack(*parts, *_closing(report))


def _with_cost(row: OpaqueRow) -> str:
    """The name, with the module's own parameters and multiply-accumulates."""
    found = [(row.macs, "MACs"), (row.parameters, "parameters")]
    cost = ", ".join(f"{quantity(count)} {unit}" for count, unit in found if count)
    return f"{row.name} ({cost})" if cost else row.name


def achieved_in_words(report: Report) -> str:
    """For each budget: the fraction removed, the fraction asked, and the overshoot."""
    alone = GoalRow(report.budget, report.ratio, report.budget_before, report.budget_after)
    words = []
    for goal in report.goals or (alone,):
        achieved = removed(goal.before, goal.after)
        text = f"{percent(achieved)} of {BUDGETS.get(goal.budget, goal.budget)} removed"
        if goal.asked is not None:
            over = percent(achieved - goal.asked)
            text += f", {percent(goal.asked)} asked" + (f" (overshoot {over})" if over != percent(0) else "")
        words.append(text)
    return "; ".join(words)


def _totals(report: Report) -> Table:
    table = new_table("", ["before", "after", "removed"])
    widths = [(row.before, row.after) for row in report.groups]
    rows = [
        ("MACs *", report.macs_before, report.macs_after, ""),
        ("parameters", report.parameters_before, report.parameters_after, ""),
        ("channels of groups", sum(before for before, _ in widths), sum(after for _, after in widths), ""),
        ("memory of a call", report.memory_before, report.memory_after, "B"),
    ]
    for name, before, after, unit in rows if report.memory_before else rows[:-1]:
        add_row(table, name, quantity(before) + unit, quantity(after) + unit, percent(removed(before, after)))
    return table


def _groups(groups: tuple[GroupRow, ...], verbose: bool) -> RenderableType:
    # Most channels removed first; sorting is stable, so equals stay in the network's order.
    shown = groups if verbose else sorted(groups, key=lambda row: row.after - row.before)[:_TOP_GROUPS]
    errors = ["error added"] if any(row.error is not None for row in groups) else []
    columns = ["before", "after", "kept", *errors]
    table = new_table("group", columns, last="members") if verbose else new_table("group", [*columns, "members"])
    for row in shown:
        cells = [row.name, str(row.before), str(row.after), percent(row.after / row.before if row.before else 0.0)]
        cells += ["" if row.error is None else percent(row.error)] * len(errors)
        add_row(table, *cells, "\n".join(row.members) if verbose else str(len(row.members)))
    return with_rest(table, len(groups) - len(shown), "groups")


def _closing(report: Report) -> list[RenderableType]:
    lines: list[RenderableType] = [Text(""), labelled("proof", proof_in_words(report))]
    lines += [labelled("note", note) for note in report.notes]
    lines += [labelled("recovery", recovery_in_words(row)) for row in report.recovery]
    lines += [labelled("fidelity", fidelity_in_words(row)) for row in report.fidelity]
    if report.latency is not None:
        lines.append(labelled("latency", latency_in_words(report.latency)))
    if report.seconds:
        passes = ", ".join(f"{name} {short_seconds(value)}" for name, value in report.seconds.items())
        lines.append(labelled("seconds", f"{passes}; {short_seconds(sum(report.seconds.values()))} in all"))
    if report.settings:
        settings = [_setting(k, v) for k, v in report.settings.items() if not _in_title(k, v) and v != []]
        lines.append(labelled("settings", ", ".join(settings)))
    return lines


def _in_title(name: str, value: Any) -> bool:
    return name in ("budget", "budgets") or (name == "ratio" and not isinstance(value, dict))


def proof_in_words(report: Report) -> str:
    """What was proven and how closely, or why there is no proof."""
    proof = report.proof
    if proof is None:
        return f"none ({report.unproven or 'not asked for'})"
    if proof.method not in _PROVEN:
        return ". ".join([proof.method, *proof.notes])
    precision = f"tolerance {proof.tolerance:.0e}, {proof.dtype}"
    nodes = f"each of {proof.nodes} nodes equals" if proof.nodes else "outputs equal"
    parts = [
        f"{nodes} {_PROVEN[proof.method]} to {proof.relative_error:.1e} ({precision}{_where(proof)})",
        f"{proof.tensors_checked} tensors equal bit for bit",
        *(["VACUOUS: what was removed has no measurable effect"] if proof.vacuous else []),
        *(note.rstrip(".") for note in proof.notes),
    ]
    return "; ".join(parts)


def _where(proof: Proof) -> str:
    """The sizes and the device that the proof ran on, and its seconds."""
    ran = {"batch": proof.batch_sizes, "resolution": proof.resolutions}
    sizes = [f", {name} {', '.join(map(str, values))}" for name, values in ran.items() if values]
    return f"{''.join(sizes)}, on {proof.device} in {short_seconds(proof.seconds)} s"


def latency_in_words(row: LatencyRow) -> str:
    """The predicted and the measured times."""
    pairs = [("predicted", row.predicted), ("measured", row.measured)]
    known = [(name, pair) for name, pair in pairs if pair is not None]
    words = [f"{name} {1e3 * a:.3g} to {1e3 * b:.3g} ms ({a / b:.2f} times faster)" for name, (a, b) in known]
    return "; ".join([*words, row.conditions])


def recovery_in_words(row: RecoveryRow) -> str:
    """The effect of one recovery."""
    parts = [f"{row.method}, after the proof: {len(row.changed)} changed"]
    if row.samples:
        parts.append(f"{row.samples} samples")
    if row.error_before is not None and row.error_after is not None:
        parts.append(f"mean error of the layers' outputs {percent(row.error_before)} to {percent(row.error_after)}")
    parts += [f"guard: {guard}" for guard in row.guards]
    return "; ".join([*parts, *(f"left {name}: {reason}" for name, reason in row.left.items())])


def fidelity_in_words(row: FidelityRow) -> str:
    """How close one network is to the original."""
    seen = f"{row.samples} {'held-out ' if row.held_out else ''}samples of the calibration"
    if row.error is None:
        return f"{row.network}: its outputs cannot be compared with the original's; {seen}"
    parts = [f"{row.network}: outputs {percent(row.error)} off the original's"]
    if row.divergence is not None:
        parts.append(f"predictions diverge by {row.divergence:.3f} nats a token")
    if row.agreement is not None:
        parts.append(f"the largest entry is the same for {percent(row.agreement)}")
    if row.cosine is not None:
        parts.append(f"cosine {row.cosine:.3f}")
    return "; ".join([*parts, seen])


def _setting(name: str, value: Any) -> str:
    if isinstance(value, dict):
        return " ".join(f"{key} {item}" for key, item in value.items())
    return f"{name} {value}"


_TOP, _LONGEST = 20, 60


def render_difference(found: PlanDifference, *, verbose: bool = False) -> RenderableType:
    """The difference as a rich renderable; ``verbose`` shows every group and every channel."""
    if not found:
        return Text(f"the plans are equal; channel groups: {found.equal_groups}")
    parts: list[RenderableType] = []
    if found.networks:
        parts += [_pairs("for different networks", found.networks, verbose), Text("")]
    if found.settings:
        parts += [_pairs("setting", found.settings, verbose), Text("")]
    if found.groups:
        parts.append(_group_changes(found.groups, verbose))
    parts.append(Text(f"{len(found.groups)} groups keep other channels, {found.equal_groups} the same"))
    return Stack(*parts)


def _pairs(title: str, pairs: Mapping[str, tuple[object, object]], verbose: bool) -> RenderableType:
    table = new_table(title, ["first", "second"])
    shown = list(pairs.items()) if verbose else list(pairs.items())[:_TOP]
    for name, (first, second) in shown:
        add_row(table, name, str(first), str(second))
    return with_rest(table, len(pairs) - len(shown))


def _group_changes(groups: tuple[GroupDifference, ...], verbose: bool) -> RenderableType:
    table = new_table("group", ["first", "second"], last="- only the first keeps, + only the second")
    for group in groups if verbose else groups[:_TOP]:
        signed = [f"{sign} {only}" for sign, only in (("-", group.only_first), ("+", group.only_second)) if only]
        add_row(table, group.name, *map(str, group.kept), "\n".join(c if verbose else _short(c) for c in signed))
    return with_rest(table, 0 if verbose else len(groups) - _TOP, "groups")


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} ..."
