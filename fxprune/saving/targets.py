"""The functions, methods and attributes that a saved graph may use, and their names in the file.

The values of a graph are tensors, numbers, strings, ``None``, slices, dtypes and the like, and lists, tuples and dicts
of these. A target is listed only if it maps such values to such values: none returns a module, class or function, none
reads a file, and none reads an attribute by a computed name. Ops with a rule are listed, and in addition the names
below, each chosen by hand; functions that a later torch adds are not.
"""

from __future__ import annotations

import builtins
import collections
import keyword
import math
import operator
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch.fx import Node

from fxprune.errors import ArtefactError
from fxprune.rules.ops import canonical_name
from fxprune.rules.registry import has_rule

_OPERATORS = (
    "abs add and_ concat contains eq floordiv ge getitem gt iadd iand ifloordiv ilshift imatmul imod imul index inv "
    "invert ior ipow irshift is_ is_not isub itruediv ixor le lshift lt matmul mod mul ne neg not_ or_ pos pow rshift "
    "setitem sub truediv truth xor"
).split()
CALLABLE_BUILTINS = (
    "abs bool complex dict divmod float getattr int len list max min pow range round slice sum tuple".split()
)
# Functions of torch and methods of tensors without a rule.
_FURTHER = frozenset(
    "absolute affine_grid_generator alias_copy allclose argwhere as_strided as_strided_copy as_strided_scatter "
    "bartlett_window bincount binomial blackman_window block_diag can_cast cartesian_prod cdouble cfloat chalf "
    "cholesky cholesky_inverse cholesky_solve coalesce combinations concat concatenate conv_tbc convolution corrcoef "
    "cov cumulative_trapezoid det detach_copy diagflat diagonal_copy diagonal_scatter dim divide element_size "
    "empty_permuted empty_strided equal expand_copy fill_diagonal frexp frobenius_norm geqrf get_device gradient "
    "grid_sampler grid_sampler_2d grid_sampler_3d gru hamming_window histc inverse is_complex is_conj is_contiguous "
    "is_floating_point is_inference is_neg is_nonzero is_pinned is_same_size is_set_to is_signed isin istft item "
    "kaiser_window logdet lstm lu_solve lu_unpack masked_select matrix_exp matrix_power msort multinomial multiply "
    "mvlgamma native_batch_norm native_dropout native_group_norm native_layer_norm ndimension nelement new "
    "new_empty_strided nonzero nonzero_static norm_except_dim nuclear_norm numel orgqr ormqr permute_copy pinverse "
    "poisson promote_types qr range renorm result_type rnn_relu rnn_tanh select_copy select_scatter size slice_copy "
    "slice_scatter slogdet split_copy squeeze_copy stft storage_offset stride subtract sum_to_size svd t_copy "
    "to_dense to_sparse to_sparse_csr tolist transpose_copy trapezoid trapz triangular_solve tril_indices "
    "triu_indices true_divide unbind_copy unfold_copy unique unique_consecutive unsqueeze_copy vander "
    "view_as_complex_copy view_as_real_copy".split()
)
_TORCH_EXTRAS = """_assert _weight_norm finfo iinfo is_autocast_enabled is_tensor sym_float sym_int sym_ite sym_max
    sym_min sym_not Size""".split()
_FUNCTIONAL_EXTRAS = frozenset(
    "gaussian_nll_loss gumbel_softmax multi_head_attention_forward pdist upsample upsample_bilinear "
    "upsample_nearest".split()
)
_NATIVE_EXTRAS = frozenset(
    "col2im im2col nll_loss2d nll_loss_nd pad_sequence reflection_pad1d reflection_pad2d reflection_pad3d "
    "replication_pad1d replication_pad2d replication_pad3d rrelu_with_noise upsample_bicubic2d upsample_bilinear2d "
    "upsample_linear1d upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_trilinear3d".split()
)
_MATHS = (
    "acos acosh asin asinh atan atan2 atanh ceil comb copysign cos cosh degrees dist erf erfc exp expm1 fabs factorial "
    "floor fmod frexp fsum gamma gcd hypot isclose isfinite isinf isnan isqrt lcm ldexp lgamma log log10 log1p log2 "
    "modf perm pow prod radians remainder sin sinh sqrt tan tanh trunc"
).split()
_CONTAINER_METHODS = {"get", "items", "keys"}
_DUNDER_METHODS = {
    f"__{name}__"
    for name in (
        "abs add and bool contains eq float floordiv ge getitem gt iadd iand ifloordiv imod imul int invert ior isub "
        "itruediv ixor le len lshift lt matmul mod mul ne neg or pos pow radd rand rfloordiv rmatmul rmod rmul ror "
        "rpow rshift rsub rtruediv rxor setitem sub truediv xor"
    ).split()
}
# None of these is a method of a tensor or of another value in a graph.
_ATTRIBUTES = frozenset(
    "H L LU Q R S T U V Vh data device dtype eigenvalues eigenvectors grad hist imag info is_cpu is_cuda is_leaf "
    "is_meta is_mps is_nested is_quantized is_sparse is_xpu itemsize layout logabsdet mH mT nbytes ndim pivots real "
    "requires_grad residuals shape solution start step stop".split()
)
# Attributes of torch.finfo and torch.iinfo.
_NUMBER_ATTRIBUTES = frozenset("bits dtype eps max min resolution smallest_normal tiny".split())
# Operators of libraries, under torch.ops.
OPERATORS = (torch._ops.OpOverload, torch._ops.OpOverloadPacket)
_FUNCTION_KINDS = (types.FunctionType, types.BuiltinFunctionType, types.MethodDescriptorType, types.MethodType)


def _chosen(holder: Any, names: Iterable[str], extras: frozenset[str] = _FURTHER) -> frozenset[str]:
    """The functions of ``holder`` among ``names`` that have a rule or are in ``extras``."""
    functions = [n for n in names if not n.startswith("__") and isinstance(getattr(holder, n, None), _FUNCTION_KINDS)]
    return frozenset(n for n in functions if has_rule(canonical_name(n)) or {n, n.removesuffix("_")} & extras)


@cache
def _namespaces() -> dict[str, tuple[Any, frozenset[str]]]:
    """By prefix, the object that holds the functions, and their names; earlier prefixes are preferred in writing."""
    variable_functions, native = torch._C._VariableFunctions, torch._C._nn
    torch_names = {name for name in dir(variable_functions) if hasattr(torch, name)} | set(torch.functional.__all__)
    listed: dict[str, tuple[Any, Iterable[str]]] = {
        "operator": (operator, _OPERATORS),
        "builtins": (builtins, CALLABLE_BUILTINS),
        "math": (math, [name for name in _MATHS if hasattr(math, name)]),
        "collections": (collections, ["OrderedDict"]),
        "torch": (torch, [*_chosen(torch, torch_names), *(n for n in _TORCH_EXTRAS if hasattr(torch, n))]),
        "torch.nn.functional": (
            torch.nn.functional,
            _chosen(torch.nn.functional, dir(torch.nn.functional), _FUNCTIONAL_EXTRAS),
        ),
        "torch.nn.utils.rnn": (torch.nn.utils.rnn, ["PackedSequence"]),
        "torch.sparse": (torch.sparse, ["mm"]),
        "torch.special": (torch.special, _of_native(torch.special)),
        "torch.fft": (torch.fft, _of_native(torch.fft)),
        "torch.linalg": (torch.linalg, _of_native(torch.linalg)),
        "torchvision.ops": _of_torchvision(),
        "torch.Tensor": (torch.Tensor, _chosen(torch.Tensor, dir(torch.Tensor))),
        "torch._C._nn": (native, _chosen(native, dir(native), _NATIVE_EXTRAS)),
        "torch._C._VariableFunctions": (variable_functions, _chosen(variable_functions, dir(variable_functions))),
    }
    return {prefix: (holder, frozenset(names)) for prefix, (holder, names) in listed.items()}


def _of_torchvision() -> tuple[Any, list[str]]:
    """torchvision's operators; none if it cannot be imported, because it is missing or built for another torch."""
    try:
        import torchvision.ops
    except (ImportError, RuntimeError, OSError):
        return None, []
    return torchvision.ops, [name for name in torchvision.ops.__all__ if name[0].islower()]


def _of_native(public: Any) -> list[str]:
    """The functions of a namespace that are native operators of torch with the namespace's name as prefix."""
    last = public.__name__.rpartition(".")[2]
    native, prefix = getattr(torch._C, f"_{last}"), f"{last}_"
    names = [name.removeprefix(prefix) for name in dir(native) if name.startswith(prefix)]
    return [name for name in names if not name.startswith("_") and hasattr(public, name)]


@cache
def _names_of_functions() -> dict[Any, str]:
    names: dict[Any, str] = {}
    for prefix, (holder, allowed) in _namespaces().items():
        for name in sorted(allowed):
            names.setdefault(getattr(holder, name), f"{prefix}.{name}")
    return names


def function_name(function: Any) -> str:
    """The name of a function, such as ``torch.nn.functional.relu``. Raises ArtefactError: it is not listed."""
    name = _names_of_functions().get(function)
    if name is None:
        described = f"{getattr(function, '__module__', '?')}.{getattr(function, '__qualname__', function)}"
        raise ArtefactError(f"the graph calls {described}, which is not a function that a saved network may call")
    return name


def tensor_function_name(function: Any) -> str | None:
    """The name of one of torch's own tensor functions, or None for anything else."""
    try:
        name = _names_of_functions().get(function, "")
    except TypeError:  # not hashable
        return None
    return name if name.startswith("torch.") else None


def resolve_function(name: Any) -> Callable[..., Any]:
    """The function called ``name``. Raises ArtefactError: it is not listed, or not in this version of torch."""
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


def check_call(op: str, target: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Raise ArtefactError if a listed function or method could do something unlisted with these arguments."""
    if target is getattr:
        _check_attribute(args, kwargs)
    if target in (min, max) and "key" in kwargs:
        raise ArtefactError("the graph gives min or max a function to call, which a saved network may not")
    if ((target == "new" and op == "call_method") or target is torch.Tensor.new) and set(kwargs) - {"device"}:
        # One of its keywords is an address in memory.
        raise ArtefactError("the graph gives Tensor.new a keyword, which a saved network may not")


def _check_attribute(args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    # The name must be a literal: a computed one could read any attribute.
    if len(args) != 2 or kwargs or not isinstance(args[0], Node):
        raise ArtefactError("the graph calls getattr with something else than a value and a name")
    holder, name = args
    names = _NUMBER_ATTRIBUTES if holder.target in (torch.finfo, torch.iinfo) else _ATTRIBUTES
    if not isinstance(name, str) or name not in names:
        raise ArtefactError(f"the graph reads the attribute {name!r:.80}, which a saved network may not read")


def check_identifier(name: Any, role: str) -> str:
    """``name`` if it is a plain name, as printed source needs; raises ArtefactError otherwise."""
    if not isinstance(name, str) or not name.isidentifier() or keyword.iskeyword(name):
        raise ArtefactError(f"{name!r:.80} cannot be the name of a {role}")
    return name
