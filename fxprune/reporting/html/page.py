"""The page: a template filled with a report."""

from __future__ import annotations

from importlib import resources

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from fxprune.drawing import as_svg
from fxprune.drawing.svg import colours
from fxprune.reporting.html.views import histogram, layers, reproduction, stages
from fxprune.reporting.numbers import percent, quantity, short_seconds
from fxprune.reporting.printing import BUDGETS, achieved_in_words, latency_in_words, proof_in_words, recovery_in_words
from fxprune.reporting.report import MACS_MEANING, Report, removed

__all__ = ["as_html"]


def as_html(report: Report) -> str:
    """The report as one HTML page: asked and achieved, widths, costs, scores, the graph, pins, proof and timings."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"percent": percent, "quantity": quantity, "seconds": short_seconds}
    template = environment.from_string(_read("page.html.j2"))
    return template.render(
        report=report,
        budget=BUDGETS.get(report.budget, report.budget),
        achieved=achieved_in_words(report),
        macs_meaning=MACS_MEANING,
        removed=removed,
        layers=layers(report),
        stages=stages(report),
        histograms=[(row, histogram(row)) for row in report.scores],
        drawing=Markup(as_svg(report.drawing)) if report.drawing else None,
        colours=colours(report.drawing),
        proof=proof_in_words(report),
        latency=None if report.latency is None else latency_in_words(report.latency),
        recoveries=[recovery_in_words(row) for row in report.recovery],
        reproduction=reproduction(report),
        style=Markup(_read("page.css")),
        script=Markup(_read("page.js")),
    )


def _read(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")
