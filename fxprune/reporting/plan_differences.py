"""The difference of two plans on the terminal."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Group as Stack
from rich.console import RenderableType
from rich.text import Text

from fxprune.planning.differences import GroupDifference, PlanDifference
from fxprune.reporting.tables import add_row, new_table, with_rest

__all__ = ["render_difference"]

_TOP, _LONGEST = 20, 60


def render_difference(found: PlanDifference, *, verbose: bool = False) -> RenderableType:
    """The difference as something that a rich console prints; ``verbose`` shows every group and every unit."""
    if not found:
        return Text(f"the plans are equal; channel groups: {found.equal_groups}")
    parts: list[RenderableType] = []
    if found.networks:
        parts += [_pairs("for different networks", found.networks, verbose), Text("")]
    if found.settings:
        parts += [_pairs("setting", found.settings, verbose), Text("")]
    if found.groups:
        parts.append(_groups(found.groups, verbose))
    parts.append(Text(f"{len(found.groups)} groups keep other units, {found.equal_groups} the same"))
    return Stack(*parts)


def _pairs(title: str, pairs: Mapping[str, tuple[object, object]], verbose: bool) -> RenderableType:
    table = new_table(title, ["first", "second"])
    shown = list(pairs.items()) if verbose else list(pairs.items())[:_TOP]
    for name, (first, second) in shown:
        add_row(table, name, str(first), str(second))
    return with_rest(table, len(pairs) - len(shown))


def _groups(groups: tuple[GroupDifference, ...], verbose: bool) -> RenderableType:
    table = new_table("group", ["first", "second"], last="- only the first keeps, + only the second")
    for group in groups if verbose else groups[:_TOP]:
        units = [f"- {group.only_first}"] * bool(group.only_first) + [f"+ {group.only_second}"] * bool(
            group.only_second
        )
        add_row(table, group.name, *map(str, group.kept), "\n".join(u if verbose else _short(u) for u in units))
    return with_rest(table, 0 if verbose else len(groups) - _TOP, "groups")


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} ..."
