"""Elementwise ops with any number of operands, with broadcasting, and ops that create tensors of given sizes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from torch import nn

from fxprune.axes.expressions import ONE, Axis
from fxprune.rules.call import Axes, Call, is_tensor
from fxprune.rules.registry import module_form, parse, repairs, rule
from fxprune.rules.repair import Repair

UNARY = """
    abs acos acosh angle arccos arccosh arcsin arcsinh arctan arctanh asin asinh atan atanh bitwise_not ceil conj
    conj_physical cos cosh deg2rad digamma erf erfc erfinv exp exp2 expm1 fix floor frac i0 imag isfinite isinf isnan
    isneginf isposinf isreal lgamma log log10 log1p log2 logical_not logit nan_to_num neg negative positive rad2deg real
    reciprocal resolve_conj resolve_neg round rsqrt sgn sigmoid sign signbit sin sinc sinh sqrt square tan tanh trunc
    special_digamma special_entr special_erf special_erfc special_erfcx special_erfinv special_exp2 special_expit
    special_expm1 special_gammaln special_i0 special_i0e special_i1 special_i1e special_log1p special_log_ndtr
    special_logit special_ndtr special_ndtri special_psi special_round special_sinc
    celu elu gelu hardshrink hardsigmoid hardswish hardtanh leaky_relu log_sigmoid logsigmoid mish relu relu6 rrelu selu
    silu softplus softshrink softsign tanhshrink threshold
    alpha_dropout dropout dropout1d dropout2d dropout3d feature_alpha_dropout feature_dropout
    bfloat16 bool byte char clone contiguous cpu cuda data detach double float half int long requires_grad short to
    type type_as
    cauchy exponential fill geometric log_normal random uniform zero
"""
SAME_AS_FIRST = "zeros_like ones_like full_like empty_like rand_like randn_like randint_like"
BINARY = """
    add arctan2 atan2 bitwise_and bitwise_left_shift bitwise_or bitwise_right_shift bitwise_xor complex copy copysign
    div eq float_power floor_divide fmax fmin fmod ge gt gcd heaviside hypot igamma igammac isclose lcm ldexp le
    logaddexp logaddexp2 logical_and logical_or logical_xor lshift lt maximum minimum mul ne nextafter polar pow
    remainder rshift rsub special_gammainc special_gammaincc special_xlog1py special_xlogy special_zeta sub xlogy
"""


def broadcast(call: Call, operands: Sequence[Axes]) -> Axes:
    """Tie the operands' axes, aligned at the last dim; an axis of size one broadcasts and is not tied."""
    rank = max(len(axes) for axes in operands)
    result: list[Axis] = []
    for back in range(rank, 0, -1):
        column = [axes[-back] for axes in operands if len(axes) >= back]
        wide = [axis for axis in column if axis.size != 1]
        for other in wide[1:]:
            call.unify(wide[0], other)
        result.append(wide[0] if wide else ONE)
    return tuple(result)


@rule(UNARY, "input")
@rule(SAME_AS_FIRST, "input")
def unary(call: Call) -> None:
    call.result = call.tensor("input")


@rule("fake_quantize_per_tensor_affine", "input, scale, zero_point")
def quantised(call: Call) -> None:
    """Rounded to the numbers that a quantised network has, with one scale for all of them."""
    call.result = call.tensor("input")


@rule("fake_quantize_per_channel_affine", "input, scale, zero_point, axis")
def quantised_by_channel(call: Call) -> None:
    axes, dim = call.tensor("input"), call.dim("axis")
    for name in ("scale", "zero_point"):
        call.unify(axes[dim], call.tensor(name)[0])
        call.role(name, "scale")
    call.result = axes


@rule("polygamma", "n, input")
def polygamma(call: Call) -> None:
    call.result = call.tensor("input" if call.has("input") else "n")  # the method has the tensor first


def _joined(call: Call, names: Sequence[str]) -> None:
    if call.name == "where" and "input" not in call.arguments:
        call.pin_inputs("it gives positions as numbers")
        call.output_fixed("as many as values say")
        return
    operands = [call.tensor(name) for name in names if call.has(name)]
    call.result = broadcast(call, operands)
    if call.name in ("add", "sub") and all(call.is_data(call.arguments[n]) for n in names if call.has(n)):
        shared = [a for a in zip(*(o[::-1] for o in operands), strict=False) if all(axis.size != 1 for axis in a)]
        call.joins(axes[0] for axes in shared if len(operands) > 1)


for _names, _signature in {
    BINARY: "input, other",
    "normal": "input, std=1.0, mean=0.0",  # the function takes tensors mean and std; the method overwrites its tensor
    "bernoulli": "input, p=None",
    "where": "condition, input, other",
    "clamp": "input, min=None, max=None",
    "clamp_min": "input, min",
    "clamp_max": "input, max",
    "lerp": "input, end, weight",
    "addcmul addcdiv": "input, tensor1, tensor2",
    "masked_fill": "input, mask, value",
}.items():
    rule(_names, _signature)(partial(_joined, names=[parameter.name for parameter in parse(_signature)]))


@rule("prelu", "input, weight")
def prelu(call: Call) -> None:
    axes, (slope,) = call.tensor("input"), call.tensor("weight")
    if slope.size != 1:
        call.unify(axes[1] if len(axes) > 1 else axes[0], slope)
        call.role("weight", "scale")
    call.stores(num_parameters=slope)
    call.result = axes


_LAYERS = """
    ReLU=relu ReLU6=relu6 Sigmoid=sigmoid Tanh=tanh GELU=gelu SiLU=silu Mish=mish SELU=selu CELU=celu ELU=elu
    LeakyReLU=leaky_relu RReLU=rrelu Hardtanh=hardtanh Hardsigmoid=hardsigmoid Hardswish=hardswish Hardshrink=hardshrink
    Softplus=softplus Softsign=softsign Softshrink=softshrink Tanhshrink=tanhshrink Threshold=threshold
    LogSigmoid=logsigmoid Identity=clone Dropout=dropout Dropout1d=dropout1d Dropout2d=dropout2d Dropout3d=dropout3d
    AlphaDropout=alpha_dropout FeatureAlphaDropout=feature_alpha_dropout
"""
for _cls, _name in (pair.split("=") for pair in _LAYERS.split()):
    module_form(getattr(nn, _cls), _name)
module_form(nn.PReLU, "prelu", "weight")


_NUMBERED = "arange linspace logspace eye randint randperm scalar_tensor hann_window"


@rule("zeros ones empty rand randn", "*size")
@rule("new_zeros new_ones new_empty", "input, *size")
@rule("full", "size, fill_value")
@rule("new_full", "input, size, fill_value")
@rule(_NUMBERED, "start")
def made(call: Call) -> None:
    call.result = tuple(call.fresh(s, d) for d, s in enumerate(call.output_shape))


@repairs("zeros ones empty rand randn new_zeros new_ones new_empty full new_full")
def repair_sized(repair: Repair) -> None:
    repair.resize_all("size", repair.call.result)


@repairs(_NUMBERED)
def repair_numbered(repair: Repair) -> None:
    """The tensor is created at full width with its old values, then narrowed to the kept elements."""
    axes = repair.call.result
    if any(repair.shrinks(a) for a in axes):
        repair.select_result(axes)


@rule("tensor as_tensor", "data")
@rule("new_tensor", "input, data")
def as_tensor(call: Call) -> None:
    """A tensor keeps its axes, whatever the dtype; numbers become a new tensor."""
    if is_tensor(call.arguments["data"]):
        call.result = call.tensor("data")
    else:
        made(call)


@repairs("tensor as_tensor new_tensor")
def repair_as_tensor(repair: Repair) -> None:
    if not is_tensor(repair.call.arguments["data"]):
        repair_numbered(repair)
