"""Which functions, methods and attributes a saved graph may call, and the names they are written under.

Loading must run nothing that the folder brings along, so a name is resolved only if it is listed here. What is listed
computes on tensors and numbers; what reads files, takes callables or reaches into an object's internals is left out.
"""

from __future__ import annotations

import builtins
import collections
import keyword
import math
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from typing import Any

import torch
import torchvision

from fxprune.errors import ArtefactError

__all__ = [
    "CALLABLE_BUILTINS",
    "check_arguments",
    "check_attribute",
    "check_identifier",
    "check_method",
    "function_name",
    "resolve_function",
]

_OPERATORS = (
    "abs add and_ concat contains eq floordiv ge getitem gt iadd iand ifloordiv ilshift imatmul imod imul index inv "
    "invert ior ipow irshift is_ is_not isub itruediv ixor le lshift lt matmul mod mul ne neg not_ or_ pos pow rshift "
    "setitem sub truediv truth xor"
).split()
CALLABLE_BUILTINS = (
    "abs bool complex dict divmod float getattr int len list max min pow range round slice sum tuple".split()
)
_TORCH_EXTRAS = (
    "_assert _pack_padded_sequence _pad_packed_sequence finfo iinfo is_tensor sym_float sym_int sym_ite sym_max "
    "sym_min sym_not Size"
).split()
_NOT_TENSOR_MATHS = {"from_file", "from_numpy", "frombuffer"}
# The last one takes a function and calls it.
_NOT_FUNCTIONAL = {
    "assert_int_or_pair",
    "boolean_dispatch",
    "handle_torch_function",
    "triplet_margin_with_distance_loss",
}
_REFUSED_METHODS = set(
    "apply_ as_subclass backward const_data_ptr data_ptr map2_ map_ module_load numpy record_stream register_hook "
    "register_post_accumulate_grad_hook set_ share_memory_ storage storage_type untyped_storage".split()
)
_CONTAINER_METHODS = {"get", "items", "keys"}
_DUNDER_METHODS = {
    f"__{name}__"
    for name in (
        "abs add and bool contains eq float floordiv ge getitem gt iadd iand ifloordiv imod imul int invert ior isub "
        "itruediv ixor le len lshift lt matmul mod mul ne neg or pos pow radd rand rfloordiv rmatmul rmod rmul ror "
        "rpow rshift rsub rtruediv rxor setitem sub truediv xor"
    ).split()
}
_ATTRIBUTES = set(
    "H L LU Q R S T U V Vh bits data device dtype eigenvalues eigenvectors eps grad hist imag indices is_cpu is_cuda "
    "is_meta is_mps is_nested is_quantized is_sparse is_xpu itemsize layout logabsdet mH mT max min nbytes ndim pivots "
    "real requires_grad residuals resolution shape sign smallest_normal solution start step stop tiny values".split()
)


def _public(namespace: Any, names: Iterable[str], refused: Iterable[str] = ()) -> set[str]:
    return {n for n in set(names) - set(refused) if not n.startswith("_") and callable(getattr(namespace, n, None))}


@cache
def _namespaces() -> dict[str, tuple[Any, frozenset[str]]]:
    """Prefix -> the object that holds the functions, and their names; earlier prefixes are preferred when writing."""
    variable_functions = torch._C._VariableFunctions
    functional, native = torch.nn.functional, torch._C._nn
    torch_names = _public(torch, (n for n in dir(variable_functions) if hasattr(torch, n)), _NOT_TENSOR_MATHS)
    torch_names |= {name for name in [*torch.functional.__all__, *_TORCH_EXTRAS] if hasattr(torch, name)}
    linalg_names = (n for n in dir(torch.linalg) if n[0].islower())
    functional_names = {n for n in dir(functional) if n[0].islower() and not n.startswith("has_torch_function")}
    listed: dict[str, tuple[Any, Iterable[str]]] = {
        "operator": (operator, _OPERATORS),
        "builtins": (builtins, CALLABLE_BUILTINS),
        "math": (math, _public(math, dir(math))),
        "collections": (collections, ["OrderedDict"]),
        "torch": (torch, torch_names),
        "torch.nn.functional": (functional, _public(functional, functional_names, _NOT_FUNCTIONAL)),
        "torch.nn.utils.rnn": (torch.nn.utils.rnn, ["PackedSequence"]),
        "torch.special": (torch.special, _public(torch.special, torch.special.__all__)),
        "torch.fft": (torch.fft, _public(torch.fft, torch.fft.__all__)),
        "torch.linalg": (torch.linalg, _public(torch.linalg, linalg_names)),
        "torchvision.ops": (torchvision.ops, [n for n in torchvision.ops.__all__ if n[0].islower()]),
        "torch.Tensor": (torch.Tensor, _public(torch.Tensor, dir(torch.Tensor), _REFUSED_METHODS)),
        "torch._C._nn": (native, _public(native, dir(native))),
        "torch._C._VariableFunctions": (
            variable_functions,
            _public(variable_functions, dir(variable_functions), _NOT_TENSOR_MATHS),
        ),
    }
    return {prefix: (holder, frozenset(names)) for prefix, (holder, names) in listed.items()}


@cache
def _names_of_functions() -> dict[Any, str]:
    names: dict[Any, str] = {}
    for prefix, (holder, allowed) in _namespaces().items():
        for name in sorted(allowed):
            names.setdefault(getattr(holder, name), f"{prefix}.{name}")
    return names


def function_name(function: Any) -> str:
    """The name a function is written under, such as ``torch.nn.functional.relu``.

    Raises:
        ArtefactError: the function is not one that a saved graph may call.
    """
    name = _names_of_functions().get(function)
    if name is None:
        described = f"{getattr(function, '__module__', '?')}.{getattr(function, '__qualname__', function)}"
        raise ArtefactError(f"the graph calls {described}, which is not a function that a saved network may call")
    return name


def resolve_function(name: Any) -> Callable[..., Any]:
    """The function called ``name``.

    Raises:
        ArtefactError: no such function is allowed, or this version of torch lacks it.
    """
    prefix, _, last = str(name).rpartition(".")
    holder, allowed = _namespaces().get(prefix, (None, frozenset()))
    if last not in allowed:
        raise ArtefactError(
            f"the graph calls {name!r:.80}, which is not among the functions that a saved network may call "
            f"(with torch {torch.__version__})"
        )
    function: Callable[..., Any] = getattr(holder, last)
    return function


def check_method(name: Any) -> str:
    """``name`` if it is a tensor method that a saved graph may call; raises ArtefactError otherwise."""
    known = isinstance(name, str) and (
        name in _DUNDER_METHODS | _CONTAINER_METHODS or name in _namespaces()["torch.Tensor"][1]
    )
    if not known:
        raise ArtefactError(f"the graph calls the method {name!r:.80}, which a saved network may not call")
    return str(name)


def check_arguments(function: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Raise ArtefactError where a call of an allowed function could reach or call something that is not listed."""
    if function is getattr:
        # The name has to be written down: a computed one could reach any attribute.
        if len(args) != 2 or kwargs:
            raise ArtefactError("the graph calls getattr with something else than an object and a name")
        check_attribute(args[1])
    if function in (min, max) and "key" in kwargs:
        raise ArtefactError("the graph gives min or max a function to call, which a saved network may not")


def check_attribute(name: Any) -> str:
    """``name`` if it is an attribute that a saved graph may read; raises ArtefactError otherwise."""
    if not isinstance(name, str) or name not in _ATTRIBUTES:
        raise ArtefactError(f"the graph reads the attribute {name!r:.80}, which a saved network may not read")
    return name


def check_identifier(name: Any, role: str) -> str:
    """``name`` if it is a plain Python name; raises ArtefactError otherwise.

    The graph is printed as Python source before it runs, so every name in it must be a name and nothing else.
    """
    if not isinstance(name, str) or not name.isidentifier() or keyword.iskeyword(name):
        raise ArtefactError(f"{name!r:.80} cannot be the name of a {role}")
    return name
