"""Which ops write in place, whether that reaches what an op gives, and which ops have no effect at all."""

from __future__ import annotations

from torch import fx

from fxprune.capture.naming import canonical_name

_IN_PLACE = frozenset("setitem iadd isub imul itruediv ifloordiv imod ipow iand ior ixor".split())
_VIEWS = frozenset(
    """alias chunk detach diagonal expand expand_as flatten getitem mT movedim narrow permute real reshape select
    split split_with_sizes squeeze t tensor_split transpose unbind unflatten unsqueeze view view_as""".split()
)

# Parts of names: what draws random numbers moves the generator on, even where nothing reads the result.
_DRAWS = (
    "rand",
    "dropout",
    "bernoulli",
    "normal",
    "multinomial",
    "poisson",
    "rrelu",
    "gumbel",
    "fractional",
    "scaled_dot",
)


def drop_unread(graph: fx.Graph) -> None:
    """Remove the ops that nothing reads and that change nothing."""
    for node in reversed(list(graph.nodes)):
        if not node.users and _is_pure(node):
            graph.erase_node(node)


def _is_pure(node: fx.Node) -> bool:
    if node.op not in ("call_function", "call_method") or node.meta.get("val") is None or writes_in_place(node):
        return False
    name = canonical_name(node.target)
    return not any(part in name for part in _DRAWS)


def writes_in_place(node: fx.Node) -> bool:
    """Whether an op writes to its first argument or to one that is passed for it."""
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    in_place = name in _IN_PLACE or (name.endswith("_") and not name.endswith("__"))
    return in_place or "out" in node.kwargs or node.kwargs.get("inplace") is True


def is_written(node: fx.Node) -> bool:
    """Whether a later op writes to the node's tensor in place, directly or through a view."""
    pending, seen = [node], {node}
    while pending:
        for user in pending.pop().users:
            if user.op not in ("call_function", "call_method") or not user.args or user.args[0] not in seen:
                continue
            if writes_in_place(user) and not _is_put_back(user, node):
                return True
            view = user.target is getattr or canonical_name(user.target) in _VIEWS
            if view and user not in seen:
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
