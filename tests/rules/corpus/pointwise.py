"""Element-wise ops of one, two and three operands, in function, method, operator and in-place form."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.rules.cases import IMAGE, SERIES, TOKENS, VECTOR, VOLUME, Case, Op, everywhere, module_case, op_case

# Names of torch functions that take values between 0 and 1 to finite ones.
_ON_UNIT = """
    abs acos asin asinh atan atanh ceil cos cosh deg2rad digamma erf erfc erfinv exp exp2 expm1 floor frac lgamma log
    log10 log1p log2 logit neg negative positive rad2deg reciprocal relu round rsqrt sigmoid sign sgn sin sinc sinh sqrt
    square tan tanh trunc fix nan_to_num i0 clone detach selu
"""
_ON_UNIT += " arccos arcsin arcsinh arctan arctanh angle conj conj_physical resolve_conj"
_SPECIAL = """
    digamma entr erf erfc erfcx erfinv exp2 expit expm1 gammaln i0 i0e i1 i1e log1p log_ndtr logit ndtr ndtri psi round
    sinc
"""
_QUESTIONS = "isfinite isinf isnan isneginf isposinf signbit logical_not"
_ACTIVATIONS = """
    relu relu6 gelu silu mish selu celu elu leaky_relu rrelu hardtanh hardsigmoid hardswish hardshrink softplus softsign
    softshrink tanhshrink logsigmoid sigmoid tanh dropout alpha_dropout
"""
_METHODS = "contiguous detach double relu_ exp_ sigmoid_ neg_ clone cpu"
_MODULES = """
    ReLU ReLU6 Sigmoid Tanh GELU SiLU Mish SELU CELU ELU LeakyReLU RReLU Hardtanh Hardsigmoid Hardswish Hardshrink
    Softplus Softsign Softshrink Tanhshrink LogSigmoid Identity Dropout AlphaDropout FeatureAlphaDropout PReLU
"""


def _unit(op: Callable[[Tensor], Tensor]) -> Op:
    return lambda h: h + op(0.05 + 0.9 * torch.sigmoid(h))


def _asked(name: str) -> Op:
    return lambda h: h + getattr(torch, name)(h).to(h.dtype)


def _named(owner: object, name: str) -> Op:
    return lambda h: getattr(owner, name)(h)


def _method(name: str) -> Op:
    return lambda h: getattr(h * 1.0, name)()


def _module(name: str) -> Callable[[], nn.Module]:
    return lambda: getattr(nn, name)()


_BINARY: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add": lambda a, b: torch.add(a, b, alpha=2),
    "sub": torch.sub,
    "rsub": lambda a, b: torch.rsub(a, b),
    "mul": torch.mul,
    "div": torch.div,
    "true_divide": torch.true_divide,
    "floor_divide": torch.floor_divide,
    "remainder": torch.remainder,
    "fmod": torch.fmod,
    "pow": torch.pow,
    "float_power": torch.float_power,
    "atan2": torch.atan2,
    "hypot": torch.hypot,
    "maximum": torch.maximum,
    "minimum": torch.minimum,
    "fmax": torch.fmax,
    "fmin": torch.fmin,
    "copysign": torch.copysign,
    "xlogy": torch.xlogy,
    "logaddexp": torch.logaddexp,
    "logaddexp2": torch.logaddexp2,
    "heaviside": torch.heaviside,
    "nextafter": torch.nextafter,
    "arctan2": torch.arctan2,
    "ldexp": torch.ldexp,
    "igamma": torch.special.gammainc,
    "igammac": torch.igammac,
    "special_gammaincc": torch.special.gammaincc,
    "special_zeta": lambda a, b: torch.special.zeta(1.5 + a, b),
    "igamma by its own name": torch.igamma,
    "complex": lambda a, b: torch.complex(a, b).real,
    "polar": lambda a, b: torch.polar(a, b).imag,
    "isclose": lambda a, b: a * torch.isclose(a, b, rtol=0.5),
    "special_xlogy": torch.special.xlogy,
    "special_xlog1py": torch.special.xlog1py,
    "maximum, keyword": lambda a, b: torch.max(a, other=b),
    "pow, keyword": lambda a, b: torch.pow(a, exponent=b),
    "max": torch.max,
    "min": torch.min,
}
_COMPARISONS = "greater_equal less_equal not_equal eq ne gt ge lt le logical_and logical_or logical_xor"


def _with_itself(op: Callable[[Tensor, Tensor], Tensor]) -> Op:
    return lambda h: op(h.sigmoid(), 0.2 + h.flip(-1).sigmoid())


def _compared(name: str) -> Op:
    return lambda h: h + h.tanh() * getattr(torch, name)(h, (0.1 * h).round()).to(h.dtype)


def _bits(name: str) -> Op:
    return lambda h: h * getattr(torch, name)(h > 0, h.flip(-1) > 0)


class TwoProducers(nn.Module):
    """Two layers whose channels meet in one op."""

    def __init__(self, op: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.op = op
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(3, 8, 1)
        self.last = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.op(self.first(x), self.second(x)))


class Scaled(nn.Module):
    """A bare parameter per channel that meets the activation in one op."""

    def __init__(self, op: Callable[[Tensor, Tensor], Tensor], shape: tuple[int, ...] = (8, 1, 1)) -> None:
        super().__init__()
        self.op = op
        self.weight = nn.Parameter(torch.rand(shape) + 0.5)

    def forward(self, h: Tensor) -> Tensor:
        return self.op(h, self.weight)


def _two(name: str, op: Callable[[Tensor, Tensor], Tensor]) -> Case:
    free = ("first.weight", "second.weight", "last.weight:1")
    return Case(f"two producers/{name}", lambda: TwoProducers(op), IMAGE.sample, free, resized=IMAGE.resized)


def _more_in_place(h: Tensor) -> Tensor:
    h = h.sigmoid() + 0.5
    h **= 2
    h //= 0.1
    h %= 7.0
    mask = h > 1
    mask &= h < 5
    mask |= h > 6
    mask ^= h > 5.5
    return h * mask


def _chain_of_in_place(h: Tensor) -> Tensor:
    h += 1.0
    h *= 0.5
    h -= 0.1
    h /= 2.0
    return h.clamp_(-1.0, 1.0).add_(h)


_OPERATORS: dict[str, Op] = {
    "operators": lambda h: (2.0 - h) / 3.0 + h**2 - (-h) * 0.5 + abs(h) + 1.0 / (1.0 + h * h),
    "floor operators": lambda h: h + (h // 0.3) + (h % 0.7) + 2.0**h,
    "comparison operators": lambda h: h * (h > 0) + h * (h <= 0.1) * ~(h == 0.0),
    "bit operators": lambda h: h * (((h > 0) & (h < 1)) | (h < -1) ^ (h > 2)),
    "in-place operators": _chain_of_in_place,
    "more in-place operators": _more_in_place,
    "reversed operators": lambda h: 2 * h + (1 + h) + (3 // (1 + h * h)) + (7 % (1 + h * h)) + (True ^ (h > 0)),
    "resolve_neg": lambda h: torch.resolve_neg(h) + torch.isreal(h),
    "gcd": lambda h: h + torch.gcd((9 * h).int(), (7 * h).int()) + torch.lcm((3 * h).int(), (4 * h).int()),
    "clamp": lambda h: h.clamp(-0.5, 0.5),
    "clamp tensors": lambda h: torch.clamp(h, min=h.flip(-1) - 1, max=h.flip(-1) + 1),
    "clip": lambda h: torch.clip(h, min=-0.5),
    "clamp_min": lambda h: h.clamp_min(0.1),
    "clamp_max": lambda h: torch.clamp_max(h, 0.1),
    "lerp": lambda h: torch.lerp(h, h.sigmoid(), 0.3),
    "lerp tensor": lambda h: torch.lerp(h, h.exp(), h.sigmoid()),
    "addcmul": lambda h: torch.addcmul(h, h.sigmoid(), h.tanh(), value=0.5),
    "addcdiv": lambda h: torch.addcdiv(h, h.tanh(), 1 + h.sigmoid()),
    "where": lambda h: torch.where(h > 0, h, 0.1 * h),
    "where scalar": lambda h: torch.where(h > 0, h, -1.0),
    "where two scalars": lambda h: h * torch.where(h > 0, 1.0, 0.1),
    "where a scalar first": lambda h: torch.where(h > 0, 0.5, h),
    "where method": lambda h: h.where(h > 0, 0.2 * h),
    "masked_fill": lambda h: h.masked_fill(h < 0, 0.3),
    "masked_fill in place": lambda h: (h * 1.0).masked_fill_(h < 0, 0.3),
    "threshold": lambda h: F.threshold(h, 0.1, 0.2),
    "bitwise": lambda h: h * torch.bitwise_not(torch.bitwise_xor(h > 0, h > 1)),
    "int": lambda h: h + h.int().long().to(h.dtype),
    "to": lambda h: h.to(torch.float32).to(h.dtype).type_as(h),
    "type": lambda h: h.type(torch.float64) * h.bool().type(h.dtype),
    "float half": lambda h: h + 0.0 * (h.float().half().bfloat16().double()),
    "zeros_like": lambda h: h + torch.zeros_like(h) + torch.ones_like(h) + torch.full_like(h, 0.5),
    "rand_like": lambda h: h + 0 * torch.rand_like(h) + 0 * torch.randn_like(h) + 0 * torch.randint_like(h, 3),
    "empty_like": lambda h: h + torch.empty_like(h).fill_(0.5) + torch.empty_like(h).zero_(),
    "copy": lambda h: torch.empty_like(h).copy_(h),
    "real": lambda h: torch.real(h) + h.real,
    "random fill": lambda h: h + 0 * torch.empty_like(h).normal_() + 0 * torch.empty_like(h).uniform_(),
    "bernoulli": lambda h: h * torch.bernoulli(torch.ones_like(h)),
    "normal": lambda h: torch.normal(h, 0 * h.abs()) + torch.normal(mean=h, std=0 * h.abs()),
    "bernoulli in place": lambda h: h * torch.empty_like(h).bernoulli_(1.0),
    "dropout2d": lambda h: F.dropout2d(h, training=False),
    "acosh": lambda h: torch.acosh(1.1 + h.abs()),
    "polygamma method": lambda h: (1.1 + h.abs()).polygamma(1),
    "random fill of other kinds": lambda h: (
        h + 0 * torch.empty_like(h).exponential_() + 0 * torch.empty_like(h).log_normal_()
    ),
    "discrete random fill": lambda h: h + 0 * torch.empty_like(h).geometric_(0.5) + 0 * torch.empty_like(h).random_(3),
    "cauchy": lambda h: h + 0 * torch.empty_like(h).cauchy_(),
    "data": lambda h: h.data.requires_grad_(False),
    "small integers": lambda h: h + h.short().char().byte().to(h.dtype),
    "dropout1d": lambda h: F.dropout1d(h.flatten(2), training=False).view_as(h),
    "dropout3d": lambda h: F.dropout3d(h[..., None], training=False)[..., 0],
    "feature_dropout": lambda h: torch.feature_dropout(h, 0.5, False),
    "shifts": lambda h: h + (((h > 0).int() << 2) >> (h > 1).int()).to(h.dtype),
    "bit shifts": lambda h: h + torch.bitwise_right_shift(torch.bitwise_left_shift((h > 0).int(), 2), 1).to(h.dtype),
    "arccosh": lambda h: torch.arccosh(1.1 + h.abs()),
    "bucketize": lambda h: h + torch.bucketize(h, torch.tensor([-0.5, 0.0, 0.5], dtype=h.dtype)),
    "polygamma": lambda h: torch.polygamma(1, 1.1 + h.abs()),
    "fake_quantize": lambda h: torch.fake_quantize_per_tensor_affine(h, 0.1, 3, 0, 15),
    "fake_quantize, tensors": lambda h: torch.fake_quantize_per_tensor_affine(
        h, torch.tensor(0.1), torch.tensor(0), quant_min=-8, quant_max=7
    ),
}

_LEARNT: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mul": lambda h, w: h * w,
    "reversed sub": lambda h, w: w - h,
    "pow": lambda h, w: h.sigmoid() ** w,
    "addcmul": lambda h, w: torch.addcmul(w, h, w),
    "where": lambda h, w: torch.where(h > w, h, w),
    "clamp_max": lambda h, w: torch.clamp(h, max=w),
    "prelu": lambda h, w: F.prelu(h, w.flatten()),
    "lerp": lambda h, w: torch.lerp(h, h.tanh(), w),
    "expand_as": lambda h, w: h * w.expand_as(h),
    "fake_quantize": lambda h, w: torch.fake_quantize_per_channel_affine(
        h, 0.1 + w.detach().flatten().abs().float(), torch.zeros(8, dtype=torch.int32), 1, -8, 7
    ),
}

CASES = [
    *(op_case(f"unary/{n}", IMAGE, _unit(_named(torch, n))) for n in _ON_UNIT.split()),
    *(op_case(f"special/{n}", IMAGE, _unit(_named(torch.special, n))) for n in _SPECIAL.split()),
    *(op_case(f"question/{n}", IMAGE, _asked(n)) for n in _QUESTIONS.split()),
    *(
        op_case(f"functional/{n}", TOKENS, _named(F, n))
        for n in _ACTIVATIONS.split()
        if n not in ("dropout", "alpha_dropout")
    ),
    *(op_case(f"method/{n}", TOKENS, _method(n)) for n in _METHODS.split()),
    *(module_case(f"module/{n}", IMAGE, _module(n)) for n in _MODULES.split()),
    module_case("module/PReLU per channel", IMAGE, lambda: nn.PReLU(8)),
    module_case("module/Threshold", IMAGE, lambda: nn.Threshold(0.1, 0.2)),
    *(
        module_case(f"module/{n}", layout, _module(n))
        for n, layout in (("Dropout1d", SERIES), ("Dropout2d", IMAGE), ("Dropout3d", VOLUME))
    ),
    *(op_case(f"binary/{n}", IMAGE, _with_itself(op)) for n, op in _BINARY.items()),
    *(op_case(f"comparison/{n}", VECTOR, _compared(n)) for n in _COMPARISONS.split()),
    *(op_case(f"bits/{n}", VECTOR, _bits(n)) for n in ("bitwise_and", "bitwise_or", "bitwise_xor")),
    *(op_case(f"pointwise/{n}", IMAGE, op) for n, op in _OPERATORS.items()),
    *(module_case(f"bare parameter/{n}", IMAGE, lambda op=op: Scaled(op)) for n, op in _LEARNT.items()),
    module_case("bare parameter/of rank four", IMAGE, lambda: Scaled(torch.mul, (1, 8, 1, 1))),
    module_case("bare parameter/one for all", IMAGE, lambda: Scaled(torch.mul, (1,))),
    *(
        _two(n, op)
        for n, op in (
            ("add", torch.add),
            ("mul", torch.mul),
            ("max", torch.maximum),
            ("lerp", lambda a, b: torch.lerp(a, b, 0.3)),
        )
    ),
    *everywhere("relu", IMAGE, lambda: torch.relu),
    *everywhere("relu in place", IMAGE, lambda: lambda h: h.clone().relu_()),
    *everywhere("gelu", TOKENS, lambda: F.gelu),
]
