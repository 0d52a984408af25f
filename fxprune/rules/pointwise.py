"""Element-wise ops with any number of operands, broadcasting included, and ops that make tensors of given sizes."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from fxprune.axes.expressions import ONE, Axis
from fxprune.rules.call import Axes, Call, is_tensor
from fxprune.rules.registry import ModuleForm, module_form, repairs, rule
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
    """Tie the operands' axes from the last dim on; a size of one broadcasts and ties nothing."""
    rank = max(len(axes) for axes in operands)
    result: list[Axis] = []
    for back in range(rank, 0, -1):
        column = [axes[-back] for axes in operands if len(axes) >= back]
        wide = [axis for axis in column if axis.size != 1]
        for other in wide[1:]:
            call.unify(wide[0], other)
        result.append(wide[0] if wide else ONE)
    return tuple(result)


def activations(call: Call, names: Sequence[str]) -> list[Axes]:
    """The axes of those arguments that are tensors."""
    return [call.tensor(name) for name in names if call.has(name)]


@rule(UNARY, "input")
def unary(call: Call) -> None:
    call.result = call.tensor("input")


@rule("polygamma", "n, input")
def polygamma(call: Call) -> None:
    call.result = call.tensor("input" if call.has("input") else "n")  # the method has the tensor first


@rule(SAME_AS_FIRST, "input")
def like(call: Call) -> None:
    call.result = call.tensor("input")


def _joined(call: Call, names: Sequence[str]) -> None:
    operands = activations(call, names)
    call.result = broadcast(call, operands)
    if call.name in ("add", "sub") and all(call.is_data(call.arguments[n]) for n in names if call.has(n)):
        shared = [a for a in zip(*(o[::-1] for o in operands), strict=False) if all(axis.size != 1 for axis in a)]
        call.joins(axes[0] for axes in shared if len(operands) > 1)


@rule(BINARY, "input, other")
def binary(call: Call) -> None:
    _joined(call, ("input", "other"))


@rule("normal", "input, std=1.0, mean=0.0")
def normal(call: Call) -> None:
    """The function takes tensors of means and deviations; the method overwrites its tensor."""
    _joined(call, ("input", "mean", "std"))


@rule("bernoulli", "input, p=None")
def bernoulli(call: Call) -> None:
    _joined(call, ("input", "p"))


@rule("where", "condition, input, other")
def where(call: Call) -> None:
    _joined(call, ("condition", "input", "other"))


@rule("clamp", "input, min=None, max=None")
def clamp(call: Call) -> None:
    _joined(call, ("input", "min", "max"))


@rule("clamp_min", "input, min")
def clamp_min(call: Call) -> None:
    _joined(call, ("input", "min"))


@rule("clamp_max", "input, max")
def clamp_max(call: Call) -> None:
    _joined(call, ("input", "max"))


@rule("lerp", "input, end, weight")
def lerp(call: Call) -> None:
    _joined(call, ("input", "end", "weight"))


@rule("addcmul addcdiv", "input, tensor1, tensor2")
def addcmul(call: Call) -> None:
    _joined(call, ("input", "tensor1", "tensor2"))


@rule("masked_fill", "input, mask, value")
def masked_fill(call: Call) -> None:
    _joined(call, ("input", "mask", "value"))


@rule("prelu", "input, weight")
def prelu(call: Call) -> None:
    axes, (slope,) = call.tensor("input"), call.tensor("weight")
    if slope.size != 1:
        call.unify(axes[1] if len(axes) > 1 else axes[0], slope)
        call.role("weight", "scale")
    call.result = axes


@repairs("prelu")
def repair_prelu(repair: Repair) -> None:
    repair.attributes["num_parameters"] = repair.size(repair.call.tensor("weight")[0])


def _no_arguments(module: nn.Module) -> dict[str, object]:
    return {}


for _cls, _name in (
    (nn.ReLU, "relu"),
    (nn.ReLU6, "relu6"),
    (nn.Sigmoid, "sigmoid"),
    (nn.Tanh, "tanh"),
    (nn.GELU, "gelu"),
    (nn.SiLU, "silu"),
    (nn.Mish, "mish"),
    (nn.SELU, "selu"),
    (nn.CELU, "celu"),
    (nn.ELU, "elu"),
    (nn.LeakyReLU, "leaky_relu"),
    (nn.RReLU, "rrelu"),
    (nn.Hardtanh, "hardtanh"),
    (nn.Hardsigmoid, "hardsigmoid"),
    (nn.Hardswish, "hardswish"),
    (nn.Hardshrink, "hardshrink"),
    (nn.Softplus, "softplus"),
    (nn.Softsign, "softsign"),
    (nn.Softshrink, "softshrink"),
    (nn.Tanhshrink, "tanhshrink"),
    (nn.Threshold, "threshold"),
    (nn.LogSigmoid, "logsigmoid"),
    (nn.Identity, "clone"),
    (nn.Dropout, "dropout"),
    (nn.Dropout1d, "dropout1d"),
    (nn.Dropout2d, "dropout2d"),
    (nn.Dropout3d, "dropout3d"),
    (nn.AlphaDropout, "alpha_dropout"),
    (nn.FeatureAlphaDropout, "feature_alpha_dropout"),
):
    module_form(_cls, ModuleForm(_name, _no_arguments))
module_form(nn.PReLU, ModuleForm("prelu", lambda m: {"weight": ".weight"}, (("num_parameters", "num_parameters"),)))


def _fresh_axes(call: Call) -> Axes:
    return tuple(call.fresh(s, d) for d, s in enumerate(call.output_shape))


@rule("zeros ones empty rand randn", "*size")
def sized(call: Call) -> None:
    call.result = _fresh_axes(call)


@repairs("zeros ones empty rand randn")
def repair_sized(repair: Repair) -> None:
    repair.resize_all("size", repair.call.result)


@rule("new_zeros new_ones new_empty", "input, *size")
def new_sized(call: Call) -> None:
    call.result = _fresh_axes(call)


@repairs("new_zeros new_ones new_empty")
def repair_new_sized(repair: Repair) -> None:
    repair.resize_all("size", repair.call.result)


@rule("full", "size, fill_value")
def full(call: Call) -> None:
    call.result = _fresh_axes(call)


@rule("new_full", "input, size, fill_value")
def new_full(call: Call) -> None:
    call.result = _fresh_axes(call)


@repairs("full new_full")
def repair_full(repair: Repair) -> None:
    repair.resize_all("size", repair.call.result)


@rule("arange linspace logspace eye randint randperm tensor scalar_tensor hann_window new_tensor", "start")
def numbered(call: Call) -> None:
    call.result = _fresh_axes(call)


@repairs("arange linspace logspace eye randint randperm tensor scalar_tensor hann_window new_tensor")
def repair_numbered(repair: Repair) -> None:
    """Made at full width with the numbers it had, then cut to what is kept."""
    axes = repair.call.result
    if any(repair.shrinks(a) for a in axes):
        repair.select_result(axes)


@rule("as_tensor", "data")
def as_tensor(call: Call) -> None:
    """A tensor as it is, in another type or not; numbers as a new one."""
    call.result = call.tensor("data") if is_tensor(call.arguments["data"]) else _fresh_axes(call)


@repairs("as_tensor")
def repair_as_tensor(repair: Repair) -> None:
    if not is_tensor(repair.call.arguments["data"]):
        repair_numbered(repair)
