"""A report as one HTML file that needs no network."""

from fxprune.reporting.html.page import as_html

__all__ = ["as_html"]
