"""torch's own composite modules, which are entered: every width inside is found, and the pass's proof holds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxprune


class Wrapped(nn.Module):
    """A linear layer, ``call(inner, h)``, a linear layer."""

    def __init__(self, inner: nn.Module, call: Callable[[Any, Tensor], Tensor], width: int = 8) -> None:
        super().__init__()
        self.inner, self.call = inner, call
        self.first, self.last = nn.Linear(5, 8), nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Any:
        return self.last(self.call(self.inner, self.first(x)))


def _mask(h: Tensor) -> Tensor:
    return nn.Transformer.generate_square_subsequent_mask(h.shape[1], dtype=h.dtype)


def _functional(module: Any, h: Tensor) -> Tensor:
    h = h.transpose(0, 1)
    weights = (module.in_proj_weight, module.in_proj_bias, None, None, False, 0.0)
    projection = (module.out_proj.weight, module.out_proj.bias)
    return F.multi_head_attention_forward(h, h, h, 8, 2, *weights, *projection, training=False)[0].transpose(0, 1)


def _encoder(**options: Any) -> nn.Module:
    return nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 12, batch_first=True, **options), 2)


def _decoder() -> nn.Module:
    return nn.TransformerDecoder(nn.TransformerDecoderLayer(8, 2, 12, batch_first=True), 2)


_NETS: dict[str, Callable[[], nn.Module]] = {
    "encoder": lambda: Wrapped(_encoder(), lambda m, h: m(h)),
    "encoder, norm first": lambda: Wrapped(_encoder(norm_first=True, activation="gelu"), lambda m, h: m(h)),
    "encoder with a mask": lambda: Wrapped(_encoder(), lambda m, h: m(h, mask=_mask(h))),
    "decoder": lambda: Wrapped(_decoder(), lambda m, h: m(h, h.flip(1))),
    "decoder with a mask": lambda: Wrapped(_decoder(), lambda m, h: m(h, h.flip(1), tgt_mask=_mask(h))),
    "transformer": lambda: Wrapped(nn.Transformer(8, 2, 1, 1, 12, batch_first=True), lambda m, h: m(h, h.flip(1))),
    "functional attention": lambda: Wrapped(nn.MultiheadAttention(8, 2), _functional),
    "gumbel softmax": lambda: Wrapped(nn.Linear(8, 8), lambda m, h: m(h) + 0 * F.gumbel_softmax(h, dim=-1)),
    "sequential": lambda: Wrapped(nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 8)), lambda m, h: m(h)),
    "module list": lambda: Wrapped(nn.ModuleList([nn.Linear(8, 8)] * 3), lambda m, h: sum((f(h) for f in m), h)),
    "parameter list": lambda: Wrapped(nn.ParameterList([torch.randn(8, 8)] * 2), lambda m, h: h @ m[0] + h * m[1][0]),
}


@pytest.mark.parametrize("name", _NETS)
def test_composites_compile_and_are_proven(name: str) -> None:
    torch.manual_seed(3)
    net, x = _NETS[name]().double().eval(), torch.randn(2, 7, 5, dtype=torch.float64)
    graph = fxprune.analyze(net, x)
    assert graph.opaque == ()
    inner = {p.tensor for p in graph.pinned if p.tensor not in ("first.weight", "last.weight")}
    assert inner == set(), "a width inside stays"
    pruned = fxprune.compile(net, x, 0.3)
    proof = fxprune.report(pruned).proof
    assert proof is not None
    assert proof.relative_error <= proof.tolerance
