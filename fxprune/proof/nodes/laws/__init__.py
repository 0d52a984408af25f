"""Laws: rules by which the claim of a torch op follows from its operands' claims, for all values at once."""

from __future__ import annotations

import functools
import operator
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

from fxprune.proof.nodes.laws.local import LOCAL, LOCAL_MODULES, POINTWISE, POINTWISE_MODULES, local, pointwise
from fxprune.proof.nodes.laws.moves import concatenated, cut, expanded, overwritten, padded, permuted, sliced, viewed
from fxprune.proof.nodes.laws.products import LAYERS, attention, einsum, layer_norm, linear, matmul
from fxprune.proof.nodes.laws.reading import Reading, Verdict

__all__ = ["Reading", "Verdict", "judged", "law_name"]

_VIEWS = frozenset("view reshape flatten unflatten squeeze unsqueeze".split())
_CUTS = frozenset("chunk split split_with_sizes tensor_split unbind".split())
_OTHERS = {
    **dict.fromkeys("transpose permute swapaxes movedim t contiguous clone detach".split(), permuted),
    **dict.fromkeys(("cat", "concat", "concatenate"), concatenated),
    **dict.fromkeys(("matmul", "bmm", "mm"), matmul),
    **dict.fromkeys(("expand", "broadcast_to"), expanded),
    "einsum": einsum,
    "getitem": sliced,
    "setitem": overwritten,
    "linear": linear,
    "scaled_dot_product_attention": attention,
}
_SPACES = (torch, F, operator, torch._C._nn)
_KNOWN = frozenset((*POINTWISE, *LOCAL, *_VIEWS, *_CUTS, *_OTHERS))
# The law's name by function, not by name: other functions may have the same names.
_FUNCTIONS = {
    getattr(space, written): name
    for name in _KNOWN
    for written in (name, f"{name}_")
    for space in _SPACES
    if hasattr(space, written)
}
_POINTWISE_CLASSES = frozenset(getattr(nn, name) for name in POINTWISE_MODULES)
# Laws of local ops for removal along the dims that they mix.
_LOSING = {"layer_norm": layer_norm, "pad": padded}
_VIEW_CLASSES = {nn.Flatten: "flatten", nn.Unflatten: "unflatten"}


def law_name(node: fx.Node) -> str:
    """The name of the torch function or method, if it has a law; else ""."""
    if node.op == "call_function":
        return _FUNCTIONS.get(node.target, "")
    name = str(node.target)
    name = name.removesuffix("_") if not name.endswith("__") else name
    return name if node.op == "call_method" and name in _KNOWN else ""


def judged(reading: Reading) -> Verdict | None:
    """The verdict of the op's law; None if there is no law, or if it does not apply."""
    if reading.modules is not None:
        return _judged_module(reading)
    name = law_name(reading.node)
    if name in POINTWISE:
        return pointwise(reading)
    if not name or (reading.writes and name != "setitem"):
        return None
    if name in LOCAL:
        return local(reading, LOCAL[name]) or (_LOSING[name](reading) if name in _LOSING else None)
    if name in _VIEWS or name in _CUTS:
        return (viewed if name in _VIEWS else cut)(reading, name)
    return _OTHERS[name](reading)


def _judged_module(reading: Reading) -> Verdict | None:
    assert reading.modules is not None
    full, narrow = reading.modules
    classes: tuple[Any, Any] = type(full), type(narrow)
    kind = _class_with_a_law(classes[0])
    if kind is None or _class_with_a_law(classes[1]) is not kind:
        return None
    if not _methods_of(kind).isdisjoint(vars(full)) or len(reading.node.args) != 1 or reading.node.kwargs:
        return None
    verdict = None
    if kind in LAYERS:
        verdict = LAYERS[kind](reading)
    elif kind in _VIEW_CLASSES:
        verdict = viewed(reading, _VIEW_CLASSES[kind])
    if verdict is None and has_same_attributes(full, narrow):
        if kind in _POINTWISE_CLASSES:
            verdict = pointwise(reading)
        elif kind in LOCAL_MODULES:
            verdict = local(reading, LOCAL_MODULES[kind])
    return verdict


_CLASSES = frozenset((*LAYERS, *_VIEW_CLASSES, *LOCAL_MODULES, *_POINTWISE_CLASSES))
# Names that a class may define and still run like its base class.
_ITS_OWN = frozenset("__init__ __module__ __doc__ __dict__ __weakref__ __annotations__ __constants__".split())


@functools.cache
def _class_with_a_law(kind: Any) -> Any:
    """The torch.nn class with a law that a class is, or that it inherits from without overriding anything."""
    for cls in kind.__mro__:
        if cls in _CLASSES:
            return cls
        if any(name not in _ITS_OWN and any(hasattr(base, name) for base in cls.__bases__) for name in vars(cls)):
            return None
    return None


@functools.cache
def _methods_of(kind: Any) -> frozenset[str]:
    return frozenset(name for name in dir(kind) if callable(getattr(kind, name, None)))


_LITERALS = (type(None), bool, int, float, str)


def _is_plain(value: Any) -> bool:
    return isinstance(value, _LITERALS) or (isinstance(value, (tuple, list)) and all(map(_is_plain, value)))


def has_same_attributes(full: nn.Module, narrow: nn.Module) -> bool:
    """Whether all plain attributes of two modules are equal, except the mode."""
    ours, theirs = (
        {n: v for n, v in vars(module).items() if _is_plain(v) and n != "training"} for module in (full, narrow)
    )
    return ours == theirs
