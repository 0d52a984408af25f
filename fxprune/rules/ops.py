"""Names of ops, one name for all forms of an op, and names of tensors."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx, nn

from fxprune.util.paths import named_modules

NamedTensors = list[tuple[str, torch.Tensor]]

# The other names of each op: of torch, of numpy, and of operators in Python.
_NAMES = {
    "add": "iadd",
    "sub": "isub subtract",
    "mul": "imul multiply",
    "div": "itruediv idiv truediv true_divide divide",
    "floor_divide": "ifloordiv floordiv",
    "remainder": "imod mod",
    "pow": "ipow",
    "bitwise_and": "iand and",
    "bitwise_or": "ior or",
    "bitwise_xor": "ixor xor",
    "abs": "absolute",
    "cat": "concat concatenate",
    "transpose": "swapaxes swapdims",
    "movedim": "moveaxis",
    "bitwise_not": "invert",
    "gt": "greater",
    "ge": "greater_equal",
    "lt": "less",
    "le": "less_equal",
    "ne": "not_equal",
    "matmul": "linalg_matmul",
    "clamp": "clip",
    "t": "T H",
    "mT": "mH adjoint",
}
_SYNONYMS = {name: op for op, names in _NAMES.items() for name in names.split()}


def canonical_name(target: Any) -> str:
    """The name under which rules are registered: torch's name without in-place underscore or dunder."""
    name = target if isinstance(target, str) else getattr(target, "__name__", type(target).__name__)
    name = name.strip("_") if name.startswith("__") or not name.startswith("_") else name
    return _SYNONYMS.get(name, name)


def names_of(model: nn.Module) -> tuple[dict[str, tuple[int, ...]], dict[str, str], set[str]]:
    """Shapes by first name, first names by the other names of tied tensors, and first names of the parameters."""
    return names_among(named_tensors(model, ""))


def names_among(tensors: NamedTensors) -> tuple[dict[str, tuple[int, ...]], dict[str, str], set[str]]:
    first: dict[int, str] = {}
    aliases = {n: first[id(t)] for n, t in tensors if first.setdefault(id(t), n) != n}
    shapes = {n: tuple(t.shape) for n, t in tensors if n not in aliases}
    return shapes, aliases, {n for n, t in tensors if isinstance(t, nn.Parameter) and n not in aliases}


def named_tensors(model: nn.Module, prefix: str) -> NamedTensors:
    """Parameters under each of their names, then buffers."""
    modules = named_modules(model, again=True)
    return [
        (f"{prefix}{path}.{name}" if path else f"{prefix}{name}", tensor)
        for table in ("_parameters", "_buffers")
        for path, module in modules
        for name, tensor in getattr(module, table).items()
        if tensor is not None
    ]


# Layers that read every input channel for every output channel.
CONTRACTIONS = frozenset("linear conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d".split())
NORMS = frozenset("batch_norm instance_norm group_norm layer_norm rms_norm".split())
# Elementwise, with the result in new memory and in the input's shape.
ACTIVATIONS = frozenset(
    """celu elu gelu hardshrink hardsigmoid hardswish hardtanh leaky_relu log_sigmoid logsigmoid mish prelu relu relu6
    rrelu selu sigmoid silu softplus softshrink softsign tanh tanhshrink threshold""".split()
)
MAX_POOLS = frozenset(f"max_pool{n}d" for n in (1, 2, 3))
POOLS = MAX_POOLS | {f"{kind}_pool{n}d" for kind in ("avg", "adaptive_avg", "adaptive_max") for n in (1, 2, 3)}
# A later in-place write to their results does not change their inputs.
OWNS_MEMORY = NORMS | ACTIVATIONS | POOLS
SAME_SHAPE = frozenset(
    {*NORMS, *ACTIVATIONS, *"clone contiguous detach dropout float half log_softmax requires_grad softmax to".split()}
)
_IN_PLACE = frozenset("setitem iadd isub imul itruediv ifloordiv imod ipow iand ior ixor".split())
_VIEWS = frozenset(
    """alias chunk detach diagonal expand expand_as flatten getitem mT movedim narrow permute real reshape select
    split split_with_sizes squeeze t tensor_split transpose unbind unflatten unsqueeze view view_as""".split()
)

# Each entry of the result is an unchanged entry of the first argument.
MOVES = _VIEWS | frozenset(
    "clone contiguous double flip float gather int long repeat repeat_interleave roll to".split()
)

# Parts of names of ops that draw random numbers: they advance the generator even if nothing reads the result.
_DRAWS = "rand dropout bernoulli normal multinomial poisson rrelu gumbel fractional scaled_dot".split()


def drop_unread(graph: fx.Graph) -> None:
    """Remove ops without readers and without side effects.

    The only reader of a layer stays with it: a model that keeps its class runs both, and their widths must agree.
    """
    alone: set[fx.Node] = set()  # layers, and tensors computed from one by a chain of ops without other readers
    for node in graph.nodes:
        behind = any(n in alone and len(n.users) == 1 for n in node.all_input_nodes)
        if node.op == "call_module" or (behind and isinstance(node.meta.get("val"), torch.Tensor)):
            alone.add(node)
    for node in reversed(list(graph.nodes)):
        if not node.users and node not in alone and is_pure(node):
            graph.erase_node(node)


def is_pure(node: fx.Node) -> bool:
    """Whether an op changes nothing but its result: it neither writes nor draws, and is no layer."""
    if node.op not in ("call_function", "call_method") or node.meta.get("val") is None or writes_in_place(node):
        return False
    return not draws(node)


def draws(node: fx.Node) -> bool:
    """Whether an op may draw random numbers."""
    name = canonical_name(node.target)
    return any(part in name for part in _DRAWS)


def writes_in_place(node: fx.Node) -> bool:
    """Whether an op writes to its first argument or to an ``out`` argument."""
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
    """Whether ``write`` is the middle step of ``x[i] += y``: read, change, and write to the same place."""
    return any(
        canonical_name(user.target) == "setitem" and user.args[0] is read.args[0] and user.args[2] is write
        for user in write.users
        if user.op == "call_function"
    )
