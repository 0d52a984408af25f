"""Walks over arguments and results, like those of pytrees but fast for tensors and plain containers."""

from __future__ import annotations

import math
import operator
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence
from torch.utils import _pytree as pytree

from fxprune.util.inheriting import runs_as

_LEAVES = frozenset({torch.Tensor, torch.nn.Parameter, int, float, bool, str, type(None), slice})
_SIMPLE = (torch.Tensor, int, float, torch.dtype, torch.device)


def leaves(value: Any) -> Iterator[Any]:
    """All non-container values inside a value; None is a leaf."""
    kind = type(value)
    if kind in _LEAVES or isinstance(value, _SIMPLE):
        yield value
    elif kind is tuple or kind is list:
        for item in value:
            yield from leaves(item)
    elif kind is dict:
        for item in value.values():
            yield from leaves(item)
    else:
        yield from pytree.tree_leaves(value)


def holds_tensor(value: Any) -> bool:
    """Whether any leaf is a tensor."""
    return any(isinstance(leaf, torch.Tensor) for leaf in leaves(value))


def holds_floats(tensor: torch.Tensor) -> bool:
    """As ``is_floating_point()``, without being noted as a question of the forward."""
    with torch._C.DisableTorchFunction():
        return tensor.is_floating_point()


def map_leaves(function: Callable[[Any], Any], value: Any) -> Any:
    """The same structure with every leaf replaced."""
    kind = type(value)
    if kind in _LEAVES or isinstance(value, _SIMPLE):
        return function(value)
    if kind is tuple or kind is list:
        return kind(map_leaves(function, item) for item in value)
    if kind is dict:
        return {key: map_leaves(function, item) for key, item in value.items()}
    return pytree.tree_map(function, value)


_REVERSED = {
    "__rsub__": operator.sub,
    "__rdiv__": operator.truediv,
    "__rtruediv__": operator.truediv,
    "__rpow__": operator.pow,
    "__rfloordiv__": operator.floordiv,
    "__rmod__": operator.mod,
    "__rmatmul__": operator.matmul,
}
_OPERATORS = {"add", "sub", "mul", "div", "matmul", "pow", "neg", "remainder"}
_OPERATOR_OF = {"div": operator.truediv, "remainder": operator.mod}
_KEYWORDS = {"__and__": "and_", "__or__": "or_"}
_IN_PLACE = "add and div floordiv lshift matmul mod mul or pow rshift sub truediv xor"
_WRITES = {f"__i{name}__" for name in _IN_PLACE.split()}


def node_form(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[str, Any, tuple[Any, ...]]:
    """FX op, target and arguments under which an intercepted function is written down."""
    name = getattr(func, "__name__", "")
    if name in _REVERSED:
        return "call_function", _REVERSED[name], args[::-1]
    if name in _OPERATORS and not kwargs and not any(isinstance(a, str) for a in args):
        function = _OPERATOR_OF.get(name) or getattr(operator, name, None)
        if function is not None and _is_method(func):
            return "call_function", function, args
    if _is_method(func):
        if name.startswith("__"):
            return "call_function", getattr(operator, _KEYWORDS.get(name, name.strip("_"))), args
        return "call_method", name, args
    return "call_function", func, args


def mutates(func: Any) -> bool:
    """Whether a function writes to its first argument, by its name."""
    name = getattr(func, "__name__", "")
    return name == "__setitem__" or name in _WRITES or (name.endswith("_") and not name.endswith("__"))


def getter_name(func: Any) -> str:
    """The attribute that an intercepted getter reads."""
    descriptor = func.__self__
    return str(getattr(descriptor, "__name__", None) or getattr(getattr(descriptor, "fget", None), "__name__", ""))


def enterable(func: Any) -> bool:
    """Whether a function is written in Python, so that its parts can be watched instead.

    A function of torch that only gathers its arguments for one of C++ code by the same name is called as it is: code
    that is written from a graph would find it in place of that other.
    """
    name = getattr(func, "__name__", "")
    hidden = func is getattr(torch, name, None) and hasattr(torch._C._VariableFunctions, name)
    return isinstance(func, types.FunctionType) and name not in _REVERSED and not hidden


def entered(func: types.FunctionType) -> Callable[..., Any]:
    """The same function, run without asking the mode again; the functions it calls are still watched."""
    namespace = dict(func.__globals__)
    for name in list(namespace):
        if name.startswith("has_torch_function"):
            namespace[name] = _no_torch_function
    twin = types.FunctionType(func.__code__, namespace, func.__name__, func.__defaults__, func.__closure__)
    twin.__kwdefaults__ = func.__kwdefaults__
    return twin


def _no_torch_function(*_: Any) -> bool:
    return False


def _is_method(func: Any) -> bool:
    if isinstance(func, (types.MethodDescriptorType, types.WrapperDescriptorType)):
        return True
    return isinstance(func, types.FunctionType) and func.__qualname__.startswith(("Tensor.", "TensorBase."))


def filled(name: str, args: Sequence[Any], kwargs: dict[str, Any]) -> Callable[[], Tensor] | None:
    """``full(size, value)``, ``x.new_full(size, value)`` or ``full_like(x, value)`` of a tensor, without reading it.

    Also ``x.new(size)`` and ``x.new(numbers)``.
    """
    if name == "new" and not kwargs:
        of_sizes = all(isinstance(size, int) for size in args[1:]) or isinstance(args[1], torch.Size)
        sizes = args[1] if len(args) == 2 and isinstance(args[1], torch.Size) else args[1:]
        if of_sizes:
            return lambda: args[0].new_empty(tuple(sizes) if args[1:] else (0,))
        return (lambda: args[0].new_tensor(args[1])) if isinstance(args[1], (list, tuple)) else None
    places = {"new_full": 2, "full_like": 1, "full": 1}
    if name not in places or kwargs.keys() - {"size", "fill_value", "dtype", "device"}:
        return None
    before, after = args[: places[name]], args[places[name] :]
    value = kwargs.get("fill_value", after[0] if after else None)
    if not isinstance(value, Tensor) or value.is_complex():
        return None
    like: Tensor = value if name == "full" else args[0]
    size = None if name == "full_like" else kwargs.get("size", before[-1] if before else ())
    dtype, device = kwargs.get("dtype"), kwargs.get("device")
    if name == "full" and dtype is None:  # that of a Python number
        is_real = value.is_floating_point()
        dtype = torch.get_default_dtype() if is_real else torch.bool if value.dtype == torch.bool else torch.int64

    def made() -> Tensor:
        filling = value.detach().to(like) if dtype is None else value.detach().to(like.device, dtype)
        filling = filling if device is None else filling.to(device)
        return filling.expand(like.shape if size is None else size).clone()

    return made


def compared(name: str, args: Sequence[Any], kwargs: dict[str, Any]) -> Callable[[], bool] | None:
    """The questions of all values that torch answers with a truth value, as a truth value read from a tensor."""
    if name == "is_nonzero":
        return lambda: bool(args[0] != 0)
    if name == "allclose":
        return lambda: bool(torch.isclose(*args, **kwargs).all())
    if name != "equal":
        return None
    one, other = (*args, *kwargs.values())
    return lambda: one.shape == other.shape and bool((one == other).all())


PACK, PAD = "_pack_padded_sequence", "_pad_packed_sequence"


def packed(padded: Tensor, lengths: Tensor, batch_first: bool) -> tuple[Tensor, Tensor]:
    """Data (batch * steps, features) and batch sizes (steps) of (batch, steps, features), or steps first."""
    steps = padded.shape[1 if batch_first else 0]
    data = padded.new_empty(padded.shape[0] * padded.shape[1], *padded.shape[2:])
    return data, torch.empty(steps, dtype=torch.int64, device="meta")


def padded(
    data: Tensor, batch_sizes: Tensor, batch_first: bool, padding_value: float, total_length: int
) -> tuple[Tensor, Tensor]:
    """The inverse: (batch, steps, features), or steps first, and lengths (batch)."""
    batch = data.shape[0] // batch_sizes.shape[0]
    sizes = (batch, int(total_length)) if batch_first else (int(total_length), batch)
    return data.new_empty(*sizes, *data.shape[1:]), torch.empty(batch, dtype=torch.int64, device="meta")


def known(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Tensor, Tensor] | None:
    """The result of a function that packs or pads; None for any other function."""
    if name == PACK:
        return packed(*args, **kwargs)
    return padded(*args, **kwargs) if name == PAD else None


def batch_of(sequence: PackedSequence) -> int:
    """The number of sequences."""
    return int(sequence.data.shape[0] // sequence.batch_sizes.shape[0])


def like(sequence: PackedSequence, data: Tensor) -> PackedSequence:
    """Other data packed in the same way. The class itself refuses what is not on the CPU."""
    about = (None if part is None else torch.empty_like(part) for part in sequence[1:])
    return tuple.__new__(PackedSequence, (data, *about))


def is_lowered(module: nn.Module) -> bool:
    """Whether the module is written out by :func:`multi_head_attention`."""
    hooked = module._forward_hooks or module._forward_pre_hooks
    return isinstance(module, nn.MultiheadAttention) and runs_as(module, nn.MultiheadAttention) and not hooked


def multi_head_attention(
    module: nn.MultiheadAttention,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    key_padding_mask: torch.Tensor | None = None,
    need_weights: bool = True,
    attn_mask: torch.Tensor | None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """``nn.MultiheadAttention`` as projections, reshapes and attention: (L, N, E), (N, L, E) or (L, E) inputs."""
    unbatched = query.dim() == 2
    swapped = not module.batch_first and not unbatched
    if unbatched:
        query, key, value = query.unsqueeze(0), key.unsqueeze(0), value.unsqueeze(0)
    elif swapped:
        query, key, value = query.transpose(0, 1), key.transpose(0, 1), value.transpose(0, 1)
    q, k, v = _projections(module, query, key, value)
    heads = module.num_heads
    mask = _merged_mask(attn_mask, key_padding_mask, query, heads)
    k, v, mask = _extended(module, k, v, mask)
    q, k, v = (torch.unflatten(t, -1, (heads, -1)).transpose(1, 2) for t in (q, k, v))
    dropout = module.dropout if module.training else 0.0
    weights: torch.Tensor | None = None
    if need_weights:
        scores = (q * (1.0 / math.sqrt(module.head_dim))) @ k.transpose(-2, -1)
        weights = F.softmax(scores if mask is None else scores + mask, dim=-1)
        weights = F.dropout(weights, dropout) if dropout else weights
        mixed = weights @ v
        weights = weights.mean(dim=1) if average_attn_weights else weights
        weights = weights.squeeze(0) if unbatched else weights
    else:
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
    output = F.linear(mixed.transpose(1, 2).flatten(2), module.out_proj.weight, module.out_proj.bias)
    if unbatched:
        return output.squeeze(0), weights
    if swapped or module.training:
        # Steps first in memory, as torch has it: dropout behind it draws its numbers in the order of the memory.
        steps_first = output.transpose(0, 1).contiguous()
        return (steps_first if swapped else steps_first.transpose(0, 1)), weights
    return output, weights


def _projections(module: nn.MultiheadAttention, *inputs: torch.Tensor) -> list[torch.Tensor]:
    if module._qkv_same_embed_dim:
        if all(t is inputs[0] for t in inputs):
            return list(F.linear(inputs[0], module.in_proj_weight, module.in_proj_bias).chunk(3, dim=-1))
        weights = module.in_proj_weight.chunk(3)
    else:
        weights = (module.q_proj_weight, module.k_proj_weight, module.v_proj_weight)
    biases: Any = [None] * 3 if module.in_proj_bias is None else module.in_proj_bias.chunk(3)
    return [F.linear(t, w, b) for t, w, b in zip(inputs, weights, biases, strict=True)]


def _extended(
    module: nn.MultiheadAttention, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Keys and values with the learnt one and the zero one that the module may add; every query may see them."""
    added = 0
    if module.bias_k is not None and module.bias_v is not None:
        k, v = (
            torch.cat((t, b.expand(t.shape[0], -1, -1)), dim=1) for t, b in ((k, module.bias_k), (v, module.bias_v))
        )
        added += 1
    if module.add_zero_attn:
        k, v = (torch.cat((t, torch.zeros_like(t[:, :1])), dim=1) for t in (k, v))
        added += 1
    return k, v, F.pad(mask, (0, added)) if mask is not None and added else mask


def _merged_mask(
    attn_mask: torch.Tensor | None, padding: torch.Tensor | None, query: torch.Tensor, heads: int
) -> torch.Tensor | None:
    mask = None if attn_mask is None else _additive(attn_mask, query)
    if mask is not None and mask.dim() == 3:
        mask = torch.unflatten(mask, 0, (-1, heads))
    if padding is not None:
        extra = _additive(padding, query)[:, None, None, :]
        mask = extra if mask is None else mask + extra
    return mask


def _additive(mask: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=like.dtype).masked_fill(mask, float("-inf"))
