"""A report, or two beside one another, as one HTML file that needs no network."""

from fxprune.reporting.html.page import as_html, comparison_as_html

__all__ = ["as_html", "comparison_as_html"]
