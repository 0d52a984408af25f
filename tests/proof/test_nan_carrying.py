"""Each operator over NaN-carrying values equals the same operator on tensors without the removed entries."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from fxprune.errors import ProofError
from fxprune.proof.comparing import kept_block, leaves_of
from fxprune.proof.nan_carrying import NanCarrying

WIDTH = 6
KEPT = torch.tensor([0, 2, 3, 5])
C = -1  # stands for the pruned width in the shapes below

Function = Callable[..., object]


def tensor(seed: int, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn([WIDTH if s == C else s for s in shape], generator=generator, dtype=torch.float64)


def narrow(value: Tensor, shape: tuple[int, ...]) -> Tensor:
    for dim, size in enumerate(shape):
        value = value.index_select(dim, KEPT) if size == C else value
    return value


def removed(value: Tensor, shape: tuple[int, ...]) -> Tensor:
    value = value.clone()
    gone = torch.tensor([i for i in range(WIDTH) if i not in KEPT.tolist()])
    for dim, size in enumerate(shape):
        if size == C:
            value.index_fill_(dim, gone, float("nan"))
    return value


def carried(function: Function, *values: Tensor) -> object:
    with torch.no_grad(), NanCarrying(), sdpa_kernel(SDPBackend.MATH):
        return function(*values)


def check(function: Function, *shapes: tuple[int, ...]) -> None:
    values = [tensor(number, *shape) for number, shape in enumerate(shapes)]
    got = carried(function, *(removed(v, s) for v, s in zip(values, shapes, strict=True)))
    with torch.no_grad():
        expected = function(*(narrow(v, s) for v, s in zip(values, shapes, strict=True)))
    got_leaves, expected_leaves = kept_block(leaves_of(got)), leaves_of(expected)
    assert got_leaves.keys() == expected_leaves.keys()
    for path, leaf in expected_leaves.items():
        torch.testing.assert_close(got_leaves[path], leaf, rtol=1e-11, atol=1e-11)


IMAGE, TOKENS = (2, C, 9, 9), (2, 5, C)
# Scales keep their full-width value in a narrower network.
SCALE = WIDTH**-0.5

CONTRACTIONS: dict[str, tuple[Function, tuple[tuple[int, ...], ...]]] = {
    "linear": (F.linear, (TOKENS, (4, C), (4,))),
    "linear rows": (F.linear, ((2, 5, 3), (C, 3), (C,))),
    "linear both": (F.linear, (TOKENS, (C, C), (C,))),
    "linear vector": (F.linear, ((C,), (4, C))),
    "matmul of tokens": (lambda a, b: a @ b.mT, (TOKENS, TOKENS)),
    "matmul 4d": (lambda a, b: a @ b.mT, ((2, 3, 5, C), (2, 3, 7, C))),
    "matmul of whole batches": (lambda a, b: a @ b, ((2, C, 5, 4), (2, C, 4, 3))),
    "mv": (torch.mv, ((4, C), (C,))),
    "dot": (torch.dot, ((C,), (C,))),
    "outer": (torch.outer, ((C,), (4,))),
    "baddbmm": (torch.baddbmm, ((2, 5, 5), (2, 5, C), (2, C, 5))),
    "baddbmm beta": (lambda a, b, c: torch.baddbmm(a, b, c, beta=0.5, alpha=2), ((2, 5, 5), (2, 5, C), (2, C, 5))),
    "addmm in place": (lambda a, b, c: a.addmm_(b, c), ((4, 5), (4, C), (C, 5))),
    "einsum": (lambda a, b: torch.einsum("bnc,bmc->bnm", a, b), (TOKENS, TOKENS)),
    "einsum outer": (lambda a, b: torch.einsum("bnc,dc->bnd", a, b), (TOKENS, (C, C))),
    "tensordot": (lambda a, b: torch.tensordot(a, b, ([2], [0])), (TOKENS, (C, 3))),
    "bilinear": (F.bilinear, (TOKENS, TOKENS, (4, C, C), (4,))),
    "cdist": (torch.cdist, (TOKENS, TOKENS)),
    "attention": (lambda q, k, v: F.scaled_dot_product_attention(q, k, v, scale=SCALE), (TOKENS, TOKENS, TOKENS)),
    "attention causal": (
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=SCALE),
        (TOKENS, TOKENS, TOKENS),
    ),
    "attention heads": (F.scaled_dot_product_attention, ((2, C, 5, 4), (2, C, 5, 4), (2, C, 5, 4))),
    "conv1d": (F.conv1d, ((2, C, 9), (4, C, 3))),
    "conv2d": (lambda x, w, b: F.conv2d(x, w, b, padding=1), (IMAGE, (4, C, 3, 3), (4,))),
    "conv2d rows": (F.conv2d, ((2, 3, 9, 9), (C, 3, 3, 3), (C,))),
    "conv2d both": (F.conv2d, (IMAGE, (C, C, 3, 3), (C,))),
    "conv3d": (F.conv3d, ((2, C, 4, 4, 4), (3, C, 2, 2, 2))),
    "depthwise": (lambda x, w, b: F.conv2d(x, w, b, groups=x.shape[1]), (IMAGE, (C, 1, 3, 3), (C,))),
    "grouped": (lambda x, w: F.conv2d(x.flatten(1, 2), w, groups=2), ((2, 2, C, 5, 5), (4, C, 3, 3))),
    "whole groups": (lambda x, w: F.conv2d(x.flatten(1, 2), w, groups=x.shape[1]), ((2, C, 2, 5, 5), (C, 2, 3, 3))),
    "transposed": (lambda x, w: F.conv_transpose2d(x, w, stride=2), (IMAGE, (C, 4, 2, 2))),
    "transposed columns": (F.conv_transpose2d, ((2, 3, 9, 9), (3, C, 2, 2), (C,))),
    "transposed depthwise": (lambda x, w: F.conv_transpose2d(x, w, groups=x.shape[1]), (IMAGE, (C, 1, 2, 2))),
    "conv over tokens": (F.conv1d, ((2, 5, C), (3, 5, 1))),
    "conv kernel beside the width": (F.conv2d, ((2, 3, 9, C), (4, 3, 3, 1))),
    "lstm": (
        lambda x, h, i, r: torch.lstm(x, (h, h), [i.flatten(0, 1), r.flatten(0, 1)], False, 1, 0.0, False, False, True),
        ((2, 5, 3), (1, 2, C), (4, C, 3), (4, C, C)),
    ),
    "gru": (
        lambda x, h, i, r: torch.gru(x, h, [i.flatten(0, 1), r.flatten(0, 1)], False, 1, 0.0, False, False, True),
        ((2, 5, 3), (1, 2, C), (3, C, 3), (3, C, C)),
    ),
}

REDUCTIONS: dict[str, Function] = {
    "sum": lambda x: x.sum(1),
    "sum of all": lambda x: x.sum(),
    "sum of several": lambda x: x.sum((1, 3), keepdim=True),
    "mean": lambda x: x.mean(1),
    "mean of all": lambda x: x.mean(),
    "mean of the others": lambda x: x.mean((2, 3)),
    "var": lambda x: x.var(1),
    "var biased": lambda x: x.var((1, 2, 3), unbiased=False),
    "std": lambda x: x.std(1, keepdim=True),
    "var_mean": lambda x: torch.var_mean(x, 1, keepdim=True),
    "std_mean": lambda x: torch.std_mean(x, (1, 2)),
    "amax": lambda x: x.amax(1),
    "amin": lambda x: x.amin((0, 1)),
    "max": lambda x: x.max(1).values,
    "min of all": lambda x: x.min(),
    "aminmax": lambda x: tuple(torch.aminmax(x, dim=1)),
    "prod": lambda x: x.prod(1),
    "norm": lambda x: x.norm(dim=1),
    "norm of all": lambda x: x.norm(),
    "norm 1": lambda x: torch.linalg.vector_norm(x, 1, dim=1),
    "norm max": lambda x: torch.linalg.vector_norm(x, float("inf"), dim=(1, 2)),
    "norm min": lambda x: torch.linalg.vector_norm(x, -float("inf"), dim=1),
    "normalize": lambda x: F.normalize(x, dim=1),
    "cosine": lambda x: F.cosine_similarity(x, x.flip(2), dim=1),
    "logsumexp": lambda x: x.logsumexp(1),
    "renorm": lambda x: x.renorm(2, 0, 1.0),
    "softmax": lambda x: x.softmax(1),
    "softmax of others": lambda x: x.softmax(2),
    "log_softmax": lambda x: x.log_softmax(1),
    "softmin": lambda x: F.softmin(x, 1),
    "cumsum": lambda x: x.cumsum(1),
    "cumprod": lambda x: x.cumprod(1),
    "logcumsumexp": lambda x: x.logcumsumexp(1),
    "median of others": lambda x: x.median(2).values,
    "sort of others": lambda x: x.sort(-1).values,
    "topk of others": lambda x: x.topk(2, -1).values,
    "fft of others": lambda x: torch.fft.rfft2(x).abs(),
    "global pooling": lambda x: F.adaptive_avg_pool2d(x, 1),
}

NORMS: dict[str, tuple[Function, tuple[tuple[int, ...], ...]]] = {
    "layer_norm": (lambda x, w, b: F.layer_norm(x, w.shape, w, b), (TOKENS, (C,), (C,))),
    "layer_norm plain": (lambda x: F.layer_norm(x, x.shape[-2:]), (TOKENS,)),
    "rms_norm": (lambda x, w: F.rms_norm(x, w.shape, w), (TOKENS, (C,))),
    "group_norm 1": (lambda x, w, b: F.group_norm(x, 1, w, b), (IMAGE, (C,), (C,))),
    "group_norm": (lambda x: F.group_norm(x.flatten(1, 2), 3), ((2, 3, C, 4),)),
    "group_norm of whole groups": (lambda x: F.group_norm(x.flatten(1, 2), x.shape[1]), ((2, C, 3, 4),)),
    "instance_norm": (lambda x, w, b: F.instance_norm(x, weight=w, bias=b), (IMAGE, (C,), (C,))),
    "batch_norm": (
        lambda x, m, v, w, b: F.batch_norm(x, m, v.abs() + 0.1, w, b),
        (IMAGE, (C,), (C,), (C,), (C,)),
    ),
    "batch_norm of the batch": (lambda x: F.batch_norm(x, None, None, training=True), (IMAGE,)),
    "batch_norm over the width": (lambda x, w: F.batch_norm(x, None, None, w, training=True), ((2, 5, C), (5,))),
    "weight_norm rows": (lambda v, g: torch._weight_norm(v, g, 0), ((C, 4), (C, 1))),
    "weight_norm columns": (lambda v, g: torch._weight_norm(v, g, 0), ((4, C), (4, 1))),
}

ENTRYWISE: dict[str, Function] = {
    "where": lambda x: torch.where(x > 0, x, torch.zeros_like(x)),
    "where of constants": lambda x: torch.where(x > 0, 1.0, -1.0).double().mean(1),
    "mask as a number": lambda x: (x > 0).to(x.dtype).sum(1),
    "mask reshaped": lambda x: (x > 0).flatten(2).transpose(1, 2).to(x.dtype).mean(-1),
    "masked_fill": lambda x: x.masked_fill(x > 0, 1.0),
    "masked_fill in place": lambda x: x.clone().masked_fill_(x > 0, 1.0),
    "sign": torch.sign,
    "power of zero": lambda x: x**0,
    "nan_to_num": lambda x: torch.nan_to_num(x + 1),
    "maximum": lambda x: torch.fmax(x, x.flip(-1)),
    "heaviside": lambda x: torch.heaviside(x, torch.tensor(0.5, dtype=x.dtype)),
    "ones like": lambda x: torch.ones_like(x).sum(1),
    "relu in place": lambda x: F.relu(x.clone(), inplace=True),
    "clamp": lambda x: x.clamp(0, 6),
    "glu": lambda x: F.glu(x, dim=2 if x.shape[2] % 2 == 0 else 0),
    "hardswish": F.hardswish,
    "hardsigmoid": F.hardsigmoid,
    "hardtanh": F.relu6,
    "logsigmoid": F.logsigmoid,
    "threshold": lambda x: F.threshold(x, 0.1, 0.0),
    "hardshrink": F.hardshrink,
    "prelu": lambda x: F.prelu(x, torch.full((1,), 0.2, dtype=x.dtype)),
    "integers": lambda x: (x * 3).long().double().sum(1),
}

MOVES: dict[str, Function] = {
    "flatten": lambda x: x.flatten(2).transpose(1, 2),
    "permute": lambda x: x.permute(2, 3, 0, 1).contiguous(),
    "cat": lambda x: torch.cat([x, x[:, :, :4]], 2),
    "pad": lambda x: F.pad(x, (1, 2, 0, 1), value=2.0),
    "pad then pool": lambda x: F.max_pool2d(F.pad(x, (0, 1, 0, 1), value=-9.0), 3, 2),
    "pad then mean": lambda x: F.pad(x, (0, 1, -1, 2)).mean(1),
    "pad of the width": lambda x: F.pad(x, (0, 0, 0, 0, 1, 2)),
    "cat of zeros then mean": lambda x: torch.cat([x, x.new_zeros(2, x.shape[1], 3, 9)], 2).mean(1),
    "cat of the width": lambda x: torch.cat([x, x.new_zeros(2, 3, 8, 9)], 1),
    "stack of zeros then mean": lambda x: torch.stack([x, torch.zeros(x.shape, dtype=x.dtype)]).mean(2),
    "zeros written": lambda x: x.clone().index_fill_(2, torch.tensor([1]), 0.0).mean(1),
    "copied into": lambda x: torch.empty_like(x).copy_(x).mean(1),
    "masked away": lambda x: torch.index_put(x, (x[:, :1].expand_as(x) > 0,), torch.tensor(0.5).double()).mean(1),
    "padded windows": lambda x: F.unfold(x, 3, padding=1).unflatten(1, (x.shape[1], 9)).mean(1),
    "fold": lambda x: F.fold(F.unfold(x, 2, stride=3), (8, 9), 2, stride=3).mean(1),
    "unpool": lambda x: F.max_unpool2d(*F.max_pool2d(x[..., :8], 2, return_indices=True), 2).mean(1),
    "outside the grid": lambda x: F.grid_sample(x, torch.full((2, 2, 2, 2), 4.0).double()).mean(1),
    "reflect": lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect"),
    "flip": lambda x: x.flip(2),
    "roll": lambda x: x.roll(2, 3),
    "gather": lambda x: x[:, :, torch.tensor([0, 3, 3])],
    "unfold": lambda x: x.unfold(2, 3, 2),
    "im2col": lambda x: F.unfold(x, 3).unflatten(1, (x.shape[1], -1)),
    "max_pool": lambda x: F.max_pool2d(x, 3, 2, 1),
    "avg_pool": lambda x: F.avg_pool2d(x, 3, 2, 1),
    "lp_pool": lambda x: F.lp_pool2d(x.abs(), 2, 3),
    "adaptive": lambda x: F.adaptive_avg_pool2d(x, 4),
    "adaptive max": lambda x: F.adaptive_max_pool2d(x, 4),
    "bilinear": lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"),
    "nearest": lambda x: F.interpolate(x, size=(4, 5)),
    "bicubic": lambda x: F.interpolate(x, size=(4, 5), mode="bicubic"),
    "antialias": lambda x: F.interpolate(x, size=(4, 5), mode="bilinear", antialias=True),
    "grid": lambda x: F.grid_sample(x, torch.rand(2, 3, 3, 2, generator=torch.Generator().manual_seed(0)).double()),
    "pool beside the width": lambda x: F.max_pool2d(x.permute(0, 2, 3, 1), (3, 1)),
    "setitem": lambda x: torch.cat([x[:, :, :2] * 2, x[:, :, 2:]], 2),
    "tril": lambda x: x.tril(),
    "dropout": lambda x: F.dropout(x, 0.5, training=False),
}


@pytest.mark.parametrize("label", CONTRACTIONS)
def test_contractions(label: str) -> None:
    function, shapes = CONTRACTIONS[label]
    check(function, *shapes)


@pytest.mark.parametrize("label", NORMS)
def test_norms(label: str) -> None:
    function, shapes = NORMS[label]
    check(function, *shapes)


@pytest.mark.filterwarnings("ignore:Default grid_sample")
@pytest.mark.parametrize("table", [REDUCTIONS, ENTRYWISE, MOVES], ids=["reductions", "entrywise", "moves"])
def test_of_one_image(table: dict[str, Function]) -> None:
    for label, function in table.items():
        try:
            check(function, (2, C, 8, 9))
        except Exception as error:
            raise AssertionError(label) from error


FAULTS: dict[str, tuple[Function, tuple[tuple[int, ...], ...]]] = {
    "weight lost nothing": (F.linear, (TOKENS, (4, WIDTH))),
    "input lost nothing": (F.linear, ((2, 5, WIDTH), (4, C))),
    "convolution weight lost nothing": (F.conv2d, (IMAGE, (4, WIDTH, 3, 3))),
    "convolution input lost nothing": (F.conv2d, ((2, WIDTH, 9, 9), (4, C, 3, 3))),
    "kernel over removed positions": (F.conv1d, ((2, 5, C), (3, 5, 3))),
    "attention key lost nothing": (F.scaled_dot_product_attention, (TOKENS, (2, 5, WIDTH), TOKENS)),
    "pool over removed positions": (lambda x: F.max_pool1d(x, 3), (TOKENS,)),
    "interpolation over removed positions": (lambda x: F.interpolate(x, 4, mode="linear"), (TOKENS,)),
    "sort": (lambda x: x.sort(-1), (TOKENS,)),
    "running statistics": (
        lambda x: F.batch_norm(x, torch.zeros(5).double(), torch.ones(5).double(), training=True),
        ((2, 5, C),),
    ),
    "unknown operator": (torch.linalg.det, ((C, C),)),
    "unknown count": (lambda x: x.histc(4), (TOKENS,)),
    "grid": (lambda x, g: F.grid_sample(x, g[..., :2]), ((2, 3, 5, 5), (2, 3, C, 4))),
}


@pytest.mark.parametrize("label", FAULTS)
@pytest.mark.filterwarnings("ignore:Default grid_sample")
def test_faults_are_refused(label: str) -> None:
    function, shapes = FAULTS[label]
    with pytest.raises(ProofError):
        carried(function, *(removed(tensor(n, *s), s) for n, s in enumerate(shapes)))


def test_positions_that_differ_between_operands_are_refused() -> None:
    left, right = removed(tensor(0, *TOKENS), TOKENS), tensor(1, 4, C)
    right[:, [1, 2]] = float("nan")
    with pytest.raises(ProofError, match="lost different positions"):
        carried(F.linear, left, right)


def test_exact_zeros_add_nothing() -> None:
    x, weight = tensor(0, *TOKENS), removed(tensor(1, 4, C), (4, C))
    x[..., [1, 4]] = 0
    assert not carried(F.linear, x, weight).isnan().any()
    image, kernel = tensor(0, *IMAGE), removed(tensor(1, 4, C, 3, 3), (4, C, 3, 3))
    image[:, [1, 4]] = 0
    got = carried(F.conv2d, image, kernel)
    torch.testing.assert_close(got, F.conv2d(image[:, KEPT], kernel[:, KEPT]))


def test_an_expanded_dim_may_lose_any_of_its_copies() -> None:
    weight = removed(tensor(1, 4, C), (4, C))
    got = carried(lambda w: F.linear(tensor(0, 2, 5, 1).expand(2, 5, WIDTH), w), weight)
    torch.testing.assert_close(got, F.linear(tensor(0, 2, 5, 1).expand(2, 5, len(KEPT)), weight[:, KEPT]))
    kernel = removed(tensor(1, 4, C, 3, 3), (4, C, 3, 3))
    gray = tensor(0, 2, 1, 9, 9)
    got = carried(lambda w: F.conv2d(gray.repeat(1, WIDTH, 1, 1), w), kernel)
    torch.testing.assert_close(got, F.conv2d(gray.repeat(1, len(KEPT), 1, 1), kernel[:, KEPT]))


def test_copies_within_a_flattened_dim_may_be_lost() -> None:
    """``[2, 3] x 6 copies``, flattened: each of the three keeps the copies that are left."""
    x = tensor(0, 2, 3, 1)
    weight = removed(tensor(1, 4, 3, C), (4, 3, C))
    got = carried(lambda w: F.linear(x.expand(2, 3, WIDTH).flatten(1), w.flatten(1)), weight)
    expected = F.linear(x.expand(2, 3, len(KEPT)).flatten(1), weight[..., KEPT].flatten(1))
    torch.testing.assert_close(got, expected)


def test_one_matrix_for_a_whole_batch_is_not_written_out() -> None:
    check(lambda a, b: a @ b.expand(a.shape[0], *b.shape), (3, 5, C), (C, 4))
    check(lambda a, b: torch.bmm(b.expand(a.shape[0], *b.shape), a), (3, C, 5), (4, C))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [1, 3, 8, 17, 64])
def test_operators_trusted_to_keep_nan_do_so(dtype: torch.dtype, size: int) -> None:
    """Vector and scalar code paths alike: the marks of these operators are not written again."""
    x = torch.full((size,), float("nan"), dtype=dtype)
    half = torch.full((size,), 0.5, dtype=dtype)
    for function in (
        *(F.relu, F.relu6, F.hardtanh, F.hardswish, F.hardsigmoid, F.gelu, F.silu, F.mish, F.elu, F.selu, F.celu),
        *(F.leaky_relu, F.softplus, F.softshrink, F.hardshrink, F.logsigmoid, F.tanhshrink, F.softsign),
        *(torch.tanh, torch.sigmoid, torch.exp, torch.sqrt, torch.rsqrt, torch.abs, torch.square, torch.round),
        *(torch.floor, torch.trunc, torch.erf, torch.log1p, torch.sin, torch.reciprocal, torch.logit, torch.neg),
    ):
        assert function(x.clone()).isnan().all(), function
    for pair in (torch.add, torch.sub, torch.mul, torch.div, torch.maximum, torch.minimum, torch.remainder, torch.fmod):
        assert pair(x, half).isnan().all(), pair
        assert pair(half, x).isnan().all(), pair
    assert x.clamp(0, 6).isnan().all()
    assert torch.lerp(x, half, 0.5).isnan().all()
    assert torch.addcmul(half, x, half).isnan().all()
    assert F.threshold(x, 0.1, 1.0).isnan().all()


def test_multi_head_attention_and_encoder_layers_are_taken_apart() -> None:
    from fxprune.proof.probes import Probe
    from fxprune.proof.running import evaluate

    layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True).eval().double()
    layer.linear1.weight.data[[1, 4]] = float("nan")
    layer.linear1.bias.data[[1, 4]] = float("nan")
    layer.linear2.weight.data[:, [1, 4]] = float("nan")
    from fxprune.capture.samples import Sample

    probe = Probe("", Sample((torch.randn(2, 5, 8),), {}))
    (got,) = evaluate(layer, probe, torch.float64, carry_nan=True).values()
    layer.linear1.weight.data[[1, 4]] = 0
    layer.linear1.bias.data[[1, 4]] = 0
    layer.linear2.weight.data[:, [1, 4]] = 0
    (expected,) = evaluate(layer, probe, torch.float64).values()
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("largest", [True, False])
def test_ranks_of_kept_entries_are_compared_by_their_full_numbers(largest: bool) -> None:
    x, shape = tensor(0, 4, C), (4, C)
    holed = removed(x, shape)
    with NanCarrying():
        values, numbers = holed.topk(2, largest=largest)
        best = holed.argmax(1) if largest else holed.argmin(1)
    expected, places = narrow(x, shape).topk(2, largest=largest)
    assert torch.equal(values, expected)
    assert torch.equal(numbers, KEPT[places])
    assert torch.equal(best, numbers[:, 0])
    with pytest.raises(ProofError, match="are left"), NanCarrying():
        holed.topk(len(KEPT) + 1)
