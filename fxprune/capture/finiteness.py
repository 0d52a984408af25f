"""Branches on whether values are finite: they are taken as for finite values, and the graph checks that they are.

``if not torch.isfinite(x).all(): x = x.clamp(...)`` guards against overflow in narrow types. No trace holds both ways,
but the answer of every healthy run is known.
"""

from __future__ import annotations

import operator

from torch import fx

from fxprune.capture.naming import canonical_name

__all__ = ["answer_if_finite"]

_FINITE = {"isfinite": True, "isinf": False, "isnan": False, "isneginf": False, "isposinf": False}
_PASSING = {"all", "any", "bool", "detach", "sum", "max", "min", "amax", "amin"}
_JOINING = {"logical_or": operator.or_, "bitwise_or": operator.or_, "add": operator.or_}
_JOINING |= {"logical_and": operator.and_, "bitwise_and": operator.and_, "mul": operator.and_}


def answer_if_finite(node: fx.Node) -> bool | None:
    """The truth value of a node's tensor where all values are finite; None where that does not decide it."""
    if node.op not in ("call_function", "call_method") or not node.all_input_nodes:
        return None
    name = canonical_name(node.target)
    if name in _FINITE:
        return _FINITE[name]
    answers = [answer_if_finite(given) for given in node.all_input_nodes]
    known = [answer for answer in answers if answer is not None]
    if len(known) < len(answers):
        return None
    if name in _PASSING and len(known) == 1:
        return known[0]
    if name in ("logical_not", "bitwise_not") and len(known) == 1:
        return not known[0]
    return _JOINING[name](*known) if name in _JOINING and len(known) == 2 else None
