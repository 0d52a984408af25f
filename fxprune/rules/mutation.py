"""Whether what an op gives is written to later on, which matters where a view would become a copy."""

from __future__ import annotations

from torch import fx

from fxprune.capture.naming import canonical_name, writes_in_place

_VIEWS = frozenset(
    """alias chunk detach diagonal expand expand_as flatten getitem mT movedim narrow permute real reshape select
    split split_with_sizes squeeze t tensor_split transpose unbind unflatten unsqueeze view view_as""".split()
)


def is_written(node: fx.Node) -> bool:
    """Whether a later op writes to the node's tensor in place, directly or through a view."""
    pending, seen = [node], {node}
    while pending:
        for user in pending.pop().users:
            if user.op not in ("call_function", "call_method") or not user.args or user.args[0] not in seen:
                continue
            if writes_in_place(user) and not _is_put_back(user, node):
                return True
            if canonical_name(user.target) in _VIEWS and user not in seen:
                seen.add(user)
                pending.append(user)
    return False


def _is_put_back(write: fx.Node, read: fx.Node) -> bool:
    """Whether it is the middle of ``x[i] += y``: read, change, and write to the same place."""
    return any(
        canonical_name(user.target) == "setitem" and user.args[0] is read.args[0] and user.args[2] is write
        for user in write.users
        if user.op == "call_function"
    )
