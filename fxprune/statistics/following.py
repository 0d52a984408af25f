"""What comes after a layer: the batch norm that alone reads it, and the sum of a residual stream that it goes into."""

from __future__ import annotations

from collections.abc import Mapping

from torch import fx

from fxprune.rules.call import Call

__all__ = ["addition_after", "norm_after"]


def norm_after(node: fx.Node, calls: Mapping[fx.Node, Call]) -> fx.Node | None:
    """The batch norm that alone reads a node."""
    user = _only_user(node)
    call = calls.get(user) if user is not None else None
    return user if call is not None and call.name == "batch_norm" and call.arguments["input"] is node else None


def addition_after(node: fx.Node, calls: Mapping[fx.Node, Call]) -> tuple[fx.Node, fx.Node] | None:
    """The addition of two activations of one shape that alone reads a node, and its other summand."""
    user = _only_user(node)
    call = calls.get(user) if user is not None else None
    if user is None or call is None or call.name != "add" or call.arguments.get("alpha", 1) != 1:
        return None
    summands = [call.arguments["input"], call.arguments["other"]]
    others = [s for s in summands if isinstance(s, fx.Node) and s is not node]
    if len(others) != 1 or call.shape_of(others[0]) != call.shape_of(node):
        return None
    return user, others[0]


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None
