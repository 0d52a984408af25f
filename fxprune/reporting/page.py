"""A report, or a comparison of two, as one HTML page that loads nothing else, made from a template."""

from __future__ import annotations

import json
import shlex
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from fxprune.analysis.drawing import as_svg, colours
from fxprune.criteria import criterion_by_name, known_criteria
from fxprune.options import usual
from fxprune.reporting.comparing import Comparison, with_unit
from fxprune.reporting.report import MACS_MEANING, CostRow, GroupRow, Report, ScoreRow, removed
from fxprune.reporting.text import BUDGETS, achieved_in_words, latency_in_words, proof_in_words, recovery_in_words
from fxprune.util.tables import percent, quantity, short_seconds


def as_html(report: Report) -> str:
    """The report as one HTML page: asked and achieved, widths, costs, scores, the graph, pins, proof and timings."""
    drawn = colours(report.drawing)
    # Every element of the page that shows a group has the group's number here as its data-group.
    places = {name: place for place, name in enumerate({**drawn, **{row.name: "" for row in report.groups}})}
    widths = {row.name: f"{row.before}→{row.after}" for row in report.groups}
    return _rendered(
        "page.html.j2",
        report=report,
        budget=BUDGETS.get(report.budget, report.budget),
        achieved=achieved_in_words(report),
        macs_meaning=MACS_MEANING,
        layers=layers(report),
        groups=[(row, macs_of(report, row)) for row in report.groups],
        places=places,
        colours=drawn,
        with_errors=any(row.error is not None for row in report.groups),
        stages=stages(report),
        histograms=[(row, histogram(row)) for row in report.scores],
        drawing=Markup(as_svg(report.drawing, widths)) if report.drawing else None,
        proof=proof_in_words(report),
        latency=None if report.latency is None else latency_in_words(report.latency),
        recoveries=[recovery_in_words(row) for row in report.recovery],
        reproduction=reproduction(report),
    )


def comparison_as_html(comparison: Comparison) -> str:
    """The comparison of two reports as one HTML page."""
    return _rendered("comparison.html.j2", comparison=comparison, describe=proof_in_words, with_unit=with_unit)


def _rendered(template: str, **values: Any) -> str:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"percent": percent, "quantity": quantity, "seconds": short_seconds}
    made = environment.from_string(_read(template))
    return made.render(removed=removed, style=Markup(_read("page.css")), script=Markup(_read("page.js")), **values)


def _read(name: str) -> str:
    return (resources.files(__package__) / "html" / name).read_text(encoding="utf-8")


_MOST_STAGES, _FEWEST_STAGES = 16, 2
_MOST_OF_ALL = 0.8


@dataclass(frozen=True)
class LayerWidth:
    """A weight's number of output channels before and after, and their group, if the drawing has one."""

    name: str
    before: int
    after: int
    group: str | None = None


@dataclass(frozen=True)
class Stage:
    """A part of the network: multiply-accumulates and parameters, each before and after."""

    name: str
    macs: tuple[int, int]
    parameters: tuple[int, int]


def layers(report: Report) -> list[LayerWidth]:
    """Every weight of at least two dims, in the order of the cost rows; weights without a row come last."""
    if report.plan is None:
        return []
    order = {name: position for position, name in enumerate(row.name for row in report.costs)}
    groups = {node.label: node.groups[0] for node in report.drawing if len(node.groups) == 1}
    found = []
    for name, shape in report.plan.shapes.items():
        if len(shape) >= 2 and shape[0] > 1:
            kept = report.plan.keep[name][0]
            path, after = name.removesuffix(".weight"), shape[0] if kept is None else len(kept)
            found.append(LayerWidth(path, shape[0], after, groups.get(path)))
    return sorted(found, key=lambda layer: order.get(layer.name, len(order)))


def macs_of(report: Report, group: GroupRow) -> tuple[int, int]:
    """Multiply-accumulates, before and after, of the layers that a group cuts."""
    owners = {member.partition(" ")[0].rpartition(".")[0] for member in group.members}
    return _added(row.macs for row in report.costs if row.name in owners)


def stages(report: Report) -> list[Stage]:
    """The costs summed by the first one to three names of their paths, for a readable number of stages."""
    found: dict[str, list[CostRow]] = {}
    for depth in (1, 2, 3):
        wider = _by_prefix(report.costs, depth)
        if not found or len(wider) <= _MOST_STAGES:
            found = wider
        if len(found) > _FEWEST_STAGES and not _one_holds_most(found):
            break
    return [
        Stage(name, _added(r.macs for r in rows), _added(r.parameters for r in rows)) for name, rows in found.items()
    ]


def _one_holds_most(found: dict[str, list[CostRow]]) -> bool:
    """Whether one stage has most of the multiply-accumulates, so that the split says little."""
    macs = [sum(row.macs[0] for row in rows) for rows in found.values()]
    return max(macs) > _MOST_OF_ALL * sum(macs)


def _by_prefix(rows: tuple[CostRow, ...], depth: int) -> dict[str, list[CostRow]]:
    found: dict[str, list[CostRow]] = defaultdict(list)
    for row in rows:
        found[".".join(row.name.split(".")[:depth])].append(row)
    return found


def _added(pairs: Iterable[tuple[int, int]]) -> tuple[int, int]:
    pairs = list(pairs)
    return sum(before for before, _ in pairs), sum(after for _, after in pairs)


def histogram(row: ScoreRow) -> Markup:
    """A small stacked bar chart: kept channels above removed ones."""
    most = max((k + r for k, r in zip(row.kept, row.removed, strict=True)), default=1) or 1
    bars = []
    for place, (kept, gone) in enumerate(zip(row.kept, row.removed, strict=True)):
        low, high = 40 * gone / most, 40 * kept / most
        bars.append(f'<rect class="gone" x="{place * 5}" y="{40 - low:g}" width="4" height="{low:g}"/>')
        bars.append(f'<rect class="kept" x="{place * 5}" y="{40 - low - high:g}" width="4" height="{high:g}"/>')
    return Markup(f'<svg viewBox="0 0 {5 * len(row.kept)} 40" preserveAspectRatio="none">{"".join(bars)}</svg>')


def reproduction(report: Report) -> str:
    """The command that reproduces the result; for a network from Python, the call."""
    settings = dict(report.settings)
    changed = {name: settings[name] for name, value in usual().items() if settings.get(name, value) != value}
    if (criterion := _criterion(settings)) not in ("", "magnitude"):
        changed = {"criterion": criterion, **changed}
    excluded = settings.get("exclude") or []
    asked = settings.get("budgets") or settings.get("ratio", report.ratio)
    with_data = "calibration" in settings
    if report.source:
        words = ["fxprune", "compile", report.source]
        given = changed if asked is None else {"ratio": asked, **changed}
        words += [word for k, v in given.items() for word in _flags(k, v)]
        words += ["--calibration", "DIR"] * with_data + ["--recover", "none"] * (with_data and not report.recovery)
        return shlex.join([*words, *(word for pattern in excluded for word in ("--exclude", pattern))])
    if settings.get("budgets"):
        changed.pop("budget", None)
    options = [f"{name}={json.dumps(value)}" for name, value in changed.items()]
    options += [f"exclude={json.dumps(excluded)}"] if excluded else []
    options += ["calibration=batches"] * with_data + ["recover=None"] * (with_data and not report.recovery)
    call = "remove" if "channels" in settings else "compile"
    asked = settings.get("channels") if asked is None else asked
    words = ["model", "sample_input", *([] if asked is None else [json.dumps(asked)])]
    return f"fxprune.{call}({', '.join([*words, *options])})"


def _criterion(settings: Mapping[str, Any]) -> str:
    """The name of the criterion, or its full text if its settings are not the defaults of that name."""
    text = str(settings.get("criterion", ""))
    return next((name for name in known_criteria() if repr(criterion_by_name(name)) == text), text)


def _flags(name: str, value: Any) -> list[str]:
    values = [f"{key}={item}" for key, item in value.items()] if isinstance(value, dict) else [str(value)]
    return [word for text in values for word in (f"--{name.replace('_', '-')}", text)]
