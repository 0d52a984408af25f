"""Output shapes of common ops without running their kernels on the meta device, which are slow.

Convolution, linear layers, norms and many element-wise ops are Python code there, and recurrent layers step
through time there. Each function here answers only for plain uses. For all others, wrong ones included, it returns
None, and the kernel is run.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.rnn import PackedSequence

from fxprune.capture import lowering
from fxprune.capture.clone import meta_like
from fxprune.capture.numbers import OF_SIZES

_SAME_SHAPE = (
    *(nn.ReLU, nn.ReLU6, nn.GELU, nn.SiLU, nn.Sigmoid, nn.Tanh, nn.Hardswish, nn.Hardsigmoid, nn.LeakyReLU),
    *(nn.Dropout, nn.Dropout2d, nn.Identity),
)
_RANKS = {"1d": (2, 3), "2d": (4,), "3d": (5,)}
_POINTWISE = frozenset(
    """add sub mul div relu gelu silu sigmoid hardswish tanh exp sqrt rsqrt relu6 hardsigmoid leaky_relu elu selu mish
    softplus abs neg square""".split()
)
_IN_PLACE = frozenset(("add_", "sub_", "mul_", "div_", "bernoulli_"))
_SMOOTH = ("bilinear", "bicubic")


def known_result(module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """The output of a leaf module on the meta device, or None where its kernel must be run."""
    if isinstance(module, nn.RNNBase) and args and isinstance(args[0], PackedSequence):
        return _recurrent_of_packed(module, args[0])
    if len(args) != 1 or kwargs or not isinstance(args[0], Tensor) or not args[0].is_meta:
        return None
    if isinstance(module, nn.RNNBase):
        return _recurrent(module, args[0])
    known = _MODULES.get(type(module).forward)
    return None if known is None else known(module, args[0])


def known_function_result(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """The same for a function by its name."""
    if name in _WITHOUT_KERNEL:
        words = sorted((word for word in kwargs if not word.endswith("weights")), key=lambda word: word != "input")
        return _WITHOUT_KERNEL[name]((*args, *(kwargs[word] for word in words)))
    if not args:
        return None
    if name in (lowering.PACK, lowering.PAD):
        return lowering.known(name, args, kwargs)
    if name == "linear" and not kwargs and len(args) in (2, 3):
        return _linear_of(*args[:2])
    if name == "cat" and not kwargs:
        return _joined(args[0], args[1] if len(args) > 1 else 0)
    if name in _FUNCTIONS:
        return _FUNCTIONS[name](*args, **kwargs)
    if name == "scaled_dot_product_attention" and len(args) == 3 and kwargs.keys() <= {"dropout_p"}:
        return _attention(*args)
    if name == "_grouped_mm" and len(args) == 2 and args[1].dim() == 3 and kwargs.get("out_dtype") is None:
        return args[0].new_empty(*args[0].shape[:-1], args[1].shape[-1])  # its kernel on meta knows bfloat16 alone
    if name in _POINTWISE and kwargs in ({}, {"inplace": False}) and len(args) <= 2:
        return _pointwise(*args)
    return _written(*args) if name in _IN_PLACE and not kwargs and len(args) == 2 else None


def _is_plain(*tensors: Any) -> bool:
    """Whether all are contiguous floating tensors of one dtype on the meta device."""
    return all(
        isinstance(t, Tensor)
        and t.is_meta
        and t.is_floating_point()
        and t.is_contiguous()
        and t.dtype == tensors[0].dtype
        for t in tensors
    )


def _covariance(given: Sequence[Any]) -> Tensor | None:
    """A row and a column for each row of ``cov``'s input."""
    table = next((value for value in given if isinstance(value, Tensor)), None)
    if table is None or not table.is_meta or not table.is_floating_point():
        return None
    return table.new_empty(() if table.dim() < 2 or len(table) == 1 else (len(table), len(table)))


def _signal(
    spectrum: Tensor,
    n_fft: int,
    hop_length: int | None = None,
    win_length: int | None = None,
    window: Tensor | None = None,
    center: bool = True,
    normalized: bool = False,
    onesided: bool | None = None,
    length: int | None = None,
    return_complex: bool = False,
) -> Tensor | None:
    """The output of ``istft``, whose kernel reads values: whether the windows add up to zero somewhere."""
    if not spectrum.is_meta or return_complex:
        return None
    dims = 2 if spectrum.is_complex() else 3
    frames = spectrum.shape[-1 if dims == 2 else -2]
    hop = n_fft // 4 if hop_length is None else hop_length
    size = n_fft + hop * (frames - 1) - (2 * (n_fft // 2) if center else 0)
    real = spectrum.real if dims == 2 else spectrum
    return real.new_empty(*spectrum.shape[:-dims], size if length is None else length)


# -- modules ----------------------------------------------------------------------------------------------------------


def _same(module: Any, x: Tensor) -> Tensor:
    gives_its_input_back = getattr(module, "inplace", False) or isinstance(module, nn.Identity)
    return x if gives_its_input_back else meta_like(x)


def _batch_norm(module: Any, x: Tensor) -> Tensor | None:
    if type(module).__name__[-2:] not in _RANKS or module.running_mean is None:
        return None
    fits = x.dtype == module.running_mean.dtype and x.dim() in _RANKS[type(module).__name__[-2:]]
    return meta_like(x) if fits and x.shape[1] == module.num_features else None


def _convolution(module: Any, x: Tensor) -> Tensor | None:
    spatial: int = len(module.kernel_size)
    # The kernel of the meta device forgets the memory format, which those of devices keep.
    layout = torch.channels_last if _is_channels_last(x) else torch.contiguous_format
    plain = _is_plain(module.weight) and x.dtype == module.weight.dtype and x.is_contiguous(memory_format=layout)
    fits = plain and x.dim() == spatial + 2 and x.shape[1] == module.in_channels
    if not fits or isinstance(module.padding, str) or module.padding_mode != "zeros":
        return None
    geometry = zip(x.shape[2:], module.kernel_size, module.stride, module.padding, module.dilation, strict=True)
    sizes: list[int] = [
        (size + 2 * pad - dilation * (kernel - 1) - 1) // stride + 1 for size, kernel, stride, pad, dilation in geometry
    ]
    if min(sizes) < 1:
        return None
    shape = (x.shape[0], module.out_channels, *sizes)
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=layout)


def _is_channels_last(x: Tensor) -> bool:
    return x.dim() == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)


def _linear(module: Any, x: Tensor) -> Tensor | None:
    return _linear_of(x, module.weight)


def _layer_norm(module: Any, x: Tensor) -> Tensor | None:
    return _normalised(x, module.normalized_shape, module.weight)


def _recurrent(module: nn.RNNBase, sequence: Tensor) -> tuple[Any, ...] | None:
    """Outputs for a sequence (T, N, F), (N, T, F) or (T, F)."""
    if sequence.dim() not in (2, 3) or sequence.shape[-1] != module.input_size:
        return None
    directions = 2 if module.bidirectional else 1
    width = module.proj_size or module.hidden_size
    by_time = sequence.transpose(0, 1) if module.batch_first and sequence.dim() == 3 else sequence
    output = sequence.new_empty(*by_time.shape[:-1], directions * width)
    if by_time is not sequence:
        output = output.transpose(0, 1)  # a view, as it is in a real run
    batch = by_time.shape[1:-1]
    final = sequence.new_empty(directions * module.num_layers, *batch, width)
    if module.mode != "LSTM":
        return output, final
    cell = sequence.new_empty(directions * module.num_layers, *batch, module.hidden_size)
    return output, (final, cell)


def _recurrent_of_packed(module: nn.RNNBase, sequence: PackedSequence) -> tuple[Any, ...] | None:
    """The same for a packed sequence; the output is packed in the same way."""
    batch = lowering.batch_of(sequence)
    sizes = (batch, -1) if module.batch_first else (-1, batch)
    result = _recurrent(module, sequence.data.reshape(*sizes, sequence.data.shape[-1]))
    if result is None:
        return None
    data = sequence.data.new_empty(sequence.data.shape[0], result[0].shape[-1])
    return lowering.like(sequence, data), result[1]


_MODULES: dict[Callable[..., Any], Callable[[Any, Tensor], Tensor | None]] = {
    **{cls.forward: _same for cls in _SAME_SHAPE},
    **{cls.forward: _batch_norm for cls in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)},
    **{cls.forward: _convolution for cls in (nn.Conv1d, nn.Conv2d, nn.Conv3d)},
    nn.Linear.forward: _linear,
    nn.LayerNorm.forward: _layer_norm,
    nn.AdaptiveAvgPool2d.forward: lambda module, x: _averaged(x, module.output_size),
    nn.Upsample.forward: lambda module, x: _resized(x, module.size, module.scale_factor, module.mode),
}


# -- functions --------------------------------------------------------------------------------------------------------


def _linear_of(x: Any, weight: Any) -> Tensor | None:
    if not _is_plain(x, weight) or weight.dim() != 2 or x.dim() < 2 or x.shape[-1] != weight.shape[1]:
        return None
    made: Tensor = x.new_empty(*x.shape[:-1], weight.shape[0])
    return made


def _averaged(x: Any, size: Any = None) -> Tensor | None:
    """Of an adaptive average over images."""
    wanted = (size, size) if isinstance(size, int) else size
    if not _is_plain(x) or x.dim() != 4 or 0 in x.shape or not isinstance(wanted, (tuple, list)) or len(wanted) != 2:
        return None
    return x.new_empty(*x.shape[:2], *wanted) if all(isinstance(side, int) for side in wanted) else None


def _reduced(x: Any, dim: Any = None, keepdim: Any = False, **others: Any) -> Tensor | None:
    """Of a mean or a sum over some dims."""
    if others or not _is_plain(x) or not x.dim() or type(keepdim) is not bool:
        return None
    dims = range(x.dim()) if dim is None else dim if isinstance(dim, (tuple, list)) else (dim,)
    if not dims or not all(type(d) is int and -x.dim() <= d < x.dim() for d in dims):
        return None
    gone = {d % x.dim() for d in dims}
    shape = [1 if d in gone else size for d, size in enumerate(x.shape) if keepdim or d not in gone]
    return x.new_empty(shape) if len(gone) == len(dims) else None


def _softmax(x: Any, dim: Any = None, *rest: Any, **others: Any) -> Tensor | None:
    known = _is_plain(x) and isinstance(dim, int) and -x.dim() <= dim < x.dim() and not rest and not others
    return meta_like(x) if known else None


def _resized(
    x: Any, size: Any = None, scale_factor: Any = None, mode: str = "nearest", *rest: Any, **others: Any
) -> Tensor | None:
    """Of images interpolated in a smooth way, whatever the grid and the filter."""
    if not _is_plain(x) or x.dim() != 4 or 0 in x.shape or mode not in _SMOOTH:
        return None
    given = scale_factor if size is None else size
    pair = (given, given) if isinstance(given, (int, float)) else tuple(given or ())
    if len(pair) != 2 or not _is_literal(pair) or (size is not None) is (scale_factor is not None):
        return None
    sides = pair if size is not None else [int(side * by) for side, by in zip(x.shape[2:], pair, strict=True)]
    return x.new_empty(*x.shape[:2], *sides) if min(sides) > 0 else None


def _scaled(x: Any, *literals: Any, **named: Any) -> Tensor | None:
    """Of a tensor whose entries are multiplied, with literals beside it."""
    known = isinstance(x, Tensor) and x.is_meta and x.is_floating_point() and 1 not in x.shape
    return meta_like(x) if known and x.dim() and all(map(_is_literal, (*literals, *named.values()))) else None


def _rolled(x: Any, *literals: Any, **named: Any) -> Tensor | None:
    return _scaled(x, *literals, **named) if _is_plain(x) else None


def _is_literal(value: Any) -> bool:
    return all(map(_is_literal, value)) if isinstance(value, (tuple, list)) else type(value) in (int, float)


def _normalised(x: Any, shape: Any = (), *affine: Any, **others: Any) -> Tensor | None:
    """Of a layer norm, which is contiguous whatever the strides of its input."""
    shape = tuple(shape) if isinstance(shape, (list, tuple)) else ()
    tensors = [t for t in (*affine, *others.values()) if isinstance(t, Tensor)]
    if not isinstance(x, Tensor) or not x.is_meta or not shape or tuple(x.shape[-len(shape) :]) != shape:
        return None
    if not x.is_floating_point() or any(tuple(t.shape) != shape or t.dtype != x.dtype for t in tensors):
        return None
    return x.new_empty(x.shape)


def _attention(query: Any, key: Any, value: Any) -> Tensor | None:
    tensors = (query, key, value)
    if not all(isinstance(t, Tensor) and t.is_meta and t.dtype == query.dtype for t in tensors):
        return None
    if not query.is_floating_point() or not query.dim() == key.dim() == value.dim():
        return None
    if query.shape[:-2] != key.shape[:-2] or query.shape[-1] != key.shape[-1] or key.shape[:-1] != value.shape[:-1]:
        return None
    made: Tensor = query.new_empty(*query.shape[:-1], value.shape[-1])
    return made


def _joined(tensors: Any, dim: Any) -> Tensor | None:
    if not isinstance(tensors, (list, tuple)) or not tensors or not _is_plain(*tensors) or not isinstance(dim, int):
        return None
    first: Tensor = tensors[0]
    dim = dim % max(first.dim(), 1)
    rest = {(t.dim(), *t.shape[:dim], *t.shape[dim + 1 :]) for t in tensors}
    if len(rest) > 1 or first.dim() < 2:
        return None
    return first.new_empty(*first.shape[:dim], sum(t.shape[dim] for t in tensors), *first.shape[dim + 1 :])


def _pointwise(x: Any, other: Any = 0.0) -> Tensor | None:
    """Of one tensor, of a tensor and a number, or of two where one broadcasts to the other."""
    if not isinstance(x, Tensor) or not x.is_meta or not x.is_floating_point():
        return None
    if type(other) in (int, float) or (isinstance(other, Tensor) and _alike(x, other)):
        return meta_like(x)
    if not _is_plain(x, other):
        return None
    larger, smaller = (x, other) if x.dim() >= other.dim() and x.numel() >= other.numel() else (other, x)
    pairs = zip(reversed(smaller.shape), reversed(larger.shape), strict=False)
    broadcasts = smaller.dim() <= larger.dim() and all(small in (1, large) for small, large in pairs)
    return meta_like(larger) if broadcasts else None


def _written(x: Tensor, other: Any) -> Tensor | None:
    """Of an op that writes to its first tensor, which it gives back; torch counts such writes."""
    made = _pointwise(x, other)
    if made is None or made.shape != x.shape or made.dtype != x.dtype or x.is_inference():
        return None
    torch.autograd.graph.increment_version(x)
    return x


def _alike(x: Tensor, other: Tensor) -> bool:
    return other.is_meta and other.shape == x.shape and other.dtype == x.dtype


class OnMeta(fx.Interpreter):
    """Runs a graph on the meta device, without the kernels whose results are known."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module, garbage_collect_values=False)
        self.extra_traceback = False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the graph gives for the arguments of its module."""
        bound = inspect.signature(self.module.forward).bind(*args, **kwargs)
        bound.apply_defaults()
        return self.run(*bound.arguments.values())

    def run_node(self, n: fx.Node) -> Any:
        """One node; numbers read from tensors made of sizes are computed from those."""
        return n.meta[OF_SIZES](n, self.env.__getitem__) if OF_SIZES in n.meta else super().run_node(n)

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        """One node."""
        known = known_result(self.fetch_attr(target), args, kwargs)
        return super().call_module(target, args, kwargs) if known is None else known

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        """One node."""
        known = known_function_result(getattr(target, "__name__", ""), args, kwargs)
        return super().call_function(target, args, kwargs) if known is None else known


# Those for which torch has no kernel on meta, of their tensors in whatever form they are given.
_WITHOUT_KERNEL: dict[str, Callable[[Sequence[Any]], Any]] = {
    **dict.fromkeys(("cov", "corrcoef"), _covariance),
    **{f"fake_quantize_per_{what}_affine": lambda given: meta_like(given[0]) for what in ("tensor", "channel")},
}
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "softmax": _softmax,
    "mean": _reduced,
    "sum": _reduced,
    "adaptive_avg_pool2d": _averaged,
    "layer_norm": _normalised,
    "interpolate": _resized,
    "istft": _signal,
    "normalize": _scaled,
    "roll": _rolled,
}
