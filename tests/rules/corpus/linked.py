"""Ops as the one thing between two layers; the other families have them beside others or in networks of their own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision import ops

from tests.rules.cases import IMAGE, SERIES, TOKENS, VECTOR, Layout, Op, module_case, op_case


class Twice(nn.Module):
    """A bilinear layer of a value and itself."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(7, 8, 8))

    def forward(self, h: Tensor) -> Tensor:
        return F.bilinear(h, h, self.weight)


class Layer(nn.Module):
    """A recurrent layer's outputs, without its state."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, h: Tensor) -> Any:
        return self.layer(h)[0]


class Deformed(nn.Module):
    """A deformable convolution whose offsets nothing computes."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = ops.DeformConv2d(8, 6, 3, padding=1)

    def forward(self, h: Tensor) -> Tensor:
        return self.layer(h, h.new_full((h.shape[0], 18, *h.shape[2:]), 0.3))


class Numbered(nn.Module):
    """Rows of a table, chosen by signs of the first channels; each bag of rows is added up where ``bags``."""

    def __init__(self, bags: bool) -> None:
        super().__init__()
        self.bags, self.weight = bags, nn.Parameter(torch.randn(2, 6))

    def forward(self, h: Tensor) -> Tensor:
        rows = (h[..., :3] > 0).long()
        return F.embedding_bag(rows, self.weight, mode="sum") if self.bags else F.embedding(rows[..., 0], self.weight)


def _written(h: Tensor) -> Tensor:
    h = h * 1.0
    h[:, :, 0] = 0.5
    return h


def _regions(h: Tensor) -> Tensor:
    return ops.roi_align(h, [torch.tensor([[0.0, 0.0, 4.0, 4.0]], dtype=h.dtype)] * 2, 3)


def _sampled(h: Tensor) -> Tensor:
    theta = torch.eye(2, 3, dtype=h.dtype).expand(h.shape[0], 2, 3)
    return F.grid_sample(h, F.affine_grid(theta, h.shape, align_corners=False), align_corners=False)


_OPS: dict[str, tuple[Layout, Op]] = {
    "unsqueeze": (IMAGE, lambda h: h.unsqueeze(-1)),
    "squeeze": (IMAGE, lambda h: h.squeeze(2)),
    "fold": (SERIES, lambda h: F.fold(h, (4, 5), 2)),
    "narrow": (IMAGE, lambda h: h.narrow(1, 2, 5)),
    "select": (IMAGE, lambda h: h.select(2, 0)),
    "unbind": (IMAGE, lambda h: h.unbind(2)[1]),
    "chunk": (IMAGE, lambda h: h.chunk(2, 1)[1]),
    "dsplit": (TOKENS, lambda h: torch.dsplit(h, 2)[1]),
    "diagonal": (IMAGE, lambda h: h.diagonal(dim1=2, dim2=3)),
    "tril": (IMAGE, lambda h: h.tril()),
    "broadcast_to": (IMAGE, lambda h: h.broadcast_to(h.shape)),
    "broadcast_tensors": (TOKENS, lambda h: torch.broadcast_tensors(h, h[:, :1])[1]),
    "expand_as": (TOKENS, lambda h: h[:, :1].expand_as(h)),
    "index_add": (IMAGE, lambda h: h.index_add(2, torch.tensor([0, 3]), h[:, :, :2])),
    "index_fill": (IMAGE, lambda h: h.index_fill(2, torch.tensor([0, 3]), 0.0)),
    "scatter": (TOKENS, lambda h: h.scatter(1, torch.zeros_like(h[:, :1], dtype=torch.long), h[:, 1:2])),
    "setitem": (IMAGE, _written),
    "kthvalue": (IMAGE, lambda h: h.kthvalue(2, 2)[0]),
    "norm": (IMAGE, lambda h: h.norm(dim=2)),
    "linalg_norm": (IMAGE, lambda h: torch.linalg.norm(h, dim=(2, 3))),
    "linalg_vecdot": (IMAGE, lambda h: torch.linalg.vecdot(h, h, dim=2)),
    "cosine_similarity": (IMAGE, lambda h: F.cosine_similarity(h, h.roll(1, 3), dim=2)),
    "pairwise_distance": (IMAGE, lambda h: F.pairwise_distance(h, h.roll(1, 2))),
    "cdist": (IMAGE, lambda h: torch.cdist(h, h)),
    "regions": (IMAGE, _regions),
    "sampled": (IMAGE, _sampled),
}
CASES = [
    *(op_case(f"linked/{name}", layout, op, fixed_size=True) for name, (layout, op) in _OPS.items()),
    module_case("linked/bilinear", VECTOR, Twice, free=("first.weight", "middle.weight")),
    module_case(
        "linked/lstm", TOKENS, lambda: Layer(nn.LSTM(8, 6)), free=("first.weight", "middle.layer.weight_ih_l0:1")
    ),
    module_case("linked/gru cell", VECTOR, lambda: nn.GRUCell(8, 6), free=("first.weight", "middle.weight_ih:1")),
    module_case("linked/lstm cell", VECTOR, lambda: Layer(nn.LSTMCell(8, 6)), free=("first.weight",)),
    module_case("linked/deformable", IMAGE, Deformed, free=("first.weight", "middle.layer.weight")),
    module_case("linked/embedding", VECTOR, lambda: Numbered(False), free=("middle.weight:1",)),
    module_case("linked/bags", VECTOR, lambda: Numbered(True), free=("middle.weight:1",)),
    op_case("linked/attention", TOKENS, lambda h: F.scaled_dot_product_attention(h, h, h)),
]
