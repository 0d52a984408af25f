"""Numbers as people read them."""

from __future__ import annotations

__all__ = ["percent", "quantity", "short_seconds"]


def quantity(value: float) -> str:
    """A count with a decimal prefix and about four digits: ``4.089 G``."""
    for factor, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        # A number that would round up to 1000 takes the next prefix.
        if abs(value) >= 0.9995 * factor:
            return f"{value / factor:.4g} {prefix}"
    return f"{value:.4g}"


def percent(fraction: float) -> str:
    """A fraction as a percentage with one digit after the point."""
    return f"{100 * fraction:.1f} %"


def short_seconds(value: float) -> str:
    """Seconds with two digits after the point."""
    return f"{value:.2f}"
