"""Evaluates a private copy in one floating type and leaves the process unchanged."""

from __future__ import annotations

import contextlib
import itertools
import linecache
from collections.abc import Callable, Iterator
from functools import partial
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from fxprune.capture.decisions import REFUSAL, refuses_values
from fxprune.capture.reachable import forget
from fxprune.capture.samples import Sample
from fxprune.proof.comparing import Leaves, leaves_of
from fxprune.proof.copies import is_filled, promoted
from fxprune.proof.nan_carrying import NanCarrying
from fxprune.proof.nan_carrying.calls import tensors_among
from fxprune.proof.nan_carrying.contractions import by_groups
from fxprune.proof.probes import Probe
from fxprune.util.paths import named_parameters
from fxprune.util.progress import random_state_kept

_NARROW = (torch.float16, torch.bfloat16, torch.float32)


# Their results are exact in every type, and values written into them must not be rounded.
_CONSTANT = frozenset(f"aten::{prefix}{name}" for name in ("empty", "zeros", "ones", "full") for prefix in ("", "new_"))


class _Promote(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Computes in ``dtype`` where the source asks for a narrower type, such as ``x.float()``.

    Values that come from no input and no parameter (``torch.arange(n).cos()``) are computed in the type of the
    source, because a trace may hold them as constants; they are widened when they meet wider values.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._dtype = dtype
        self._narrow = tuple(narrow for narrow in _NARROW if narrow.itemsize < dtype.itemsize)

    def __torch_dispatch__(
        self, func: torch._ops.OpOverload, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        found = {tensor.dtype for tensor in tensors_among(args, kwargs)}
        if self._dtype in found:
            if kwargs.get("dtype") in self._narrow:
                kwargs["dtype"] = self._dtype
            if len(found) > 1:
                # An in-place operator must write to the same tensor.
                fixed = args[:1] if func._schema.is_mutable else ()
                args, kwargs = pytree.tree_map_only(Tensor, self._widen, (args[len(fixed) :], kwargs))
                args = fixed + args
        if is_summed(func, args):
            return by_taps(*args)
        if func is torch.ops.aten._grouped_mm.default and self._dtype is torch.float64:
            return by_groups(args[0], args[1], args[2] if len(args) > 2 else kwargs.get("offs"))
        if func is torch.ops.aten.native_batch_norm_backward.default:
            # With one row and gradients in channels-last format, its kernel sums the wrong entries.
            args = (args[0].contiguous(), *args[1:])
        result = func(*args, **kwargs)
        # A private copy widens constants that repeat one number, whether made from a list or by a factory function.
        listed = func is torch.ops.aten.lift_fresh.default and is_filled(result)
        return self._widen(result) if listed or func._schema.name in _CONSTANT else result

    def _widen(self, tensor: Tensor) -> Tensor:
        return tensor.to(self._dtype) if tensor.dtype in self._narrow else tensor


def evaluate(
    module: Callable[..., Any], probe: Probe, dtype: torch.dtype, *, seed: int = 0, carry_nan: bool = False
) -> Leaves:
    """Clones of a private copy's outputs on ``probe`` and of inputs that it changes; ``seed``: of random numbers."""
    sample = probe.in_dtype(dtype)
    torch.manual_seed(seed)
    with modes(dtype, carry_nan=carry_nan):
        leaves = leaves_of(called(module, sample))
    return leaves | changed_inputs(sample, probe.in_dtype)


def called(module: Callable[..., Any], sample: Sample) -> Any:
    """The output of ``module`` for the sample, which it may change."""
    # The wrapper of a GraphModule prints to the terminal and drops the traceback when its code raises.
    call = partial(nn.Module.__call__, module) if isinstance(module, fx.GraphModule) else module
    forget()
    return sample.call(call)


def changed_inputs(sample: Sample, fresh: Callable[[torch.dtype], Sample]) -> Leaves:
    """The current values of the sample's tensors that a call has changed; ``fresh`` returns the sample unchanged."""
    written = [(name, tensor) for name, tensor in sample.named_tensors() if tensor._version]
    if not written:
        return {}
    before = dict(fresh(torch.float64).named_tensors())
    return {
        f"{name} after the call": tensor.detach().clone()
        for name, tensor in written
        if not torch.equal(promoted(tensor, torch.float64), before[name])
    }


@contextlib.contextmanager
def modes(dtype: torch.dtype, *, carry_nan: bool, gradients: bool = False) -> Iterator[None]:
    """Evaluate in ``dtype``, with ``gradients`` or without, and over NaN-carrying values if ``carry_nan``."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.set_grad_enabled(gradients))
        stack.enter_context(_Promote(dtype))
        if carry_nan:
            stack.enter_context(_decomposed())
            stack.enter_context(NanCarrying())
        yield


@contextlib.contextmanager
def _decomposed() -> Iterator[None]:
    """Decompose attention, transformer layers and recurrent nets: fused kernels would lose the NaNs."""
    fast_path, onednn = torch.backends.mha.get_fastpath_enabled(), torch._C._get_mkldnn_enabled()
    try:
        torch.backends.mha.set_fastpath_enabled(False)
        torch._C._set_mkldnn_enabled(False)
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
        torch._C._set_mkldnn_enabled(onednn)


@contextlib.contextmanager
def nothing_left_behind(module: nn.Module) -> Iterator[None]:
    """Restore all random generators, those of the module's devices included, at the end."""
    with random_state_kept({t.device.index or 0 for _, t in named_parameters(module) if t.device.type == "cuda"}):
        yield


def where(error: BaseException) -> str:
    """The line of a GraphModule's generated code that ``error`` came from, as the end of a message, or "".

    A check that the capture wrote says where itself; that of a value gets what to do.
    """
    if REFUSAL in str(error):
        return _KEEP * refuses_values(error)
    line = ""
    traceback: TracebackType | None = error.__traceback__
    while traceback is not None:
        filename = traceback.tb_frame.f_code.co_filename
        if filename.startswith("<eval_with_key>"):
            line = linecache.getline(filename, traceback.tb_lineno).split(";")[0].strip()
        traceback = traceback.tb_next
    return f", at `{line}`" if line else ""


_KEEP = (
    ": values that decide are computed from channels that were removed; exclude the layers before that line, or decide "
    "outside of the forward"
)
_CONVOLUTION = torch.ops.aten.convolution.default
_CLIP_DIMS = 5


def is_summed(func: torch._ops.OpOverload, args: tuple[Any, ...]) -> bool:
    """Whether a call is a 3d depthwise convolution on the CPU, without stride and not transposed."""
    if func is not _CONVOLUTION or args[6] or args[0].dim() != _CLIP_DIMS or not args[0].is_cpu:
        return False
    return bool(1 < args[8] == args[0].shape[1] == len(args[1]) and set(args[3]) == {1})


def by_taps(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: Any, padding: list[int], dilation: list[int], *rest: Any
) -> Tensor:
    """Such a convolution as a sum over taps; ``x``: (batch, channels, ...), ``weight``: (channels, 1, ...)."""
    x = F.pad(x, [amount for size in reversed(padding) for amount in (size, size)])
    kernel = weight.shape[2:]
    left = [size - d * (k - 1) for size, d, k in zip(x.shape[2:], dilation, kernel, strict=True)]
    taps = weight.flatten(1).unbind(1)
    total = x.new_zeros((*x.shape[:2], *left))
    for values, tap in zip(taps, itertools.product(*map(range, kernel)), strict=True):
        part = x
        for dim, (number, apart, size) in enumerate(zip(tap, dilation, left, strict=True), start=2):
            part = part.narrow(dim, number * apart, size)
        total.addcmul_(part, _per_channel(values, x))
    return total if bias is None else total.add_(_per_channel(bias, x))


def _per_channel(values: Tensor, x: Tensor) -> Tensor:
    return values.reshape(-1, *[1] * (x.dim() - 2))
