"""Ops that number, order or slide over channels: those stay, with a reason, and all others still shrink."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.rules.cases import IMAGE, TOKENS, VECTOR, Case, Layout, Op


class Through(nn.Module):
    """first (pinned by the op), inner (free), last."""

    def __init__(self, layout: Layout, middle: Op, width: int = 8) -> None:
        super().__init__()
        self.first, self.middle = layout.first(width), middle
        with torch.no_grad():
            result = middle(self.first(*layout.sample(2)))
        rank = result.dim()
        self.inner, self.last = layout.last(rank, result.shape[layout.dim]), layout.last(rank, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.inner(self.middle(self.first(x))).relu())


def _efficient_attention(h: Tensor) -> Tensor:
    """A kernel that slides over the channels' means."""
    kernel = torch.tensor([[[0.3, 0.5, 0.2]]], dtype=h.dtype)
    scale = F.conv1d(h.mean((2, 3)).unsqueeze(1), kernel, padding=1).squeeze(1)
    return h * scale.sigmoid()[..., None, None]


def _spatial_transformer(h: Tensor) -> Tensor:
    """The map is made of the channels' means, all six of which it needs."""
    grid = F.affine_grid(h.mean((2, 3)).view(-1, 2, 3), [h.shape[0], 1, 4, 4], align_corners=False)
    return F.grid_sample(h, grid, align_corners=False)


def _step_written(h: Tensor) -> Tensor:
    h = h * 1.0
    h[:, ::2].mul_(3.0)
    return h


def _two_lists_written(h: Tensor) -> Tensor:
    h = h * 1.0
    h[:, [1, 4], [0, 2]] = 0.5
    return h


def _put(h: Tensor) -> Tensor:
    return h.index_put((torch.tensor([0, 1]), torch.tensor([3, 5])), torch.tensor([1.0, 2.0], dtype=h.dtype))


_ORDERED: dict[str, tuple[Layout, Op]] = {
    "sort": (VECTOR, lambda h: h.sort(1)[0]),
    "argsort": (VECTOR, lambda h: h.argsort(-1).to(h.dtype) + h),
    "topk": (VECTOR, lambda h: h + h.topk(1, 1).indices),
    "kthvalue": (VECTOR, lambda h: h + h.kthvalue(2, 1, keepdim=True)[0]),
    "argmax": (VECTOR, lambda h: h + h.argmax(1, keepdim=True)),
    "argmin": (VECTOR, lambda h: h + torch.argmin(h, 1)[:, None]),
    "argmax of everything": (TOKENS, lambda h: h + h.argmax()),
    "index of the maximum": (VECTOR, lambda h: h + h.max(1, keepdim=True)[1]),
    "index of the median": (VECTOR, lambda h: h + torch.median(h, 1, keepdim=True).indices),
    "index of a running maximum": (VECTOR, lambda h: h + torch.cummax(h, 1)[1]),
    "index of a running minimum": (VECTOR, lambda h: h + torch.cummin(h, 1).indices),
    "quantile": (VECTOR, lambda h: h + torch.quantile(h, 0.3, dim=1, keepdim=True)),
    "nanquantile": (VECTOR, lambda h: h + torch.nanquantile(h, h.new_tensor([0.3, 0.5]), dim=1)[0][:, None]),
    "gather": (VECTOR, lambda h: h.gather(1, h.argsort(1))),
    "take_along_dim": (VECTOR, lambda h: torch.take_along_dim(h, h.argsort(1), 1)),
    "take": (VECTOR, lambda h: h + torch.take(h, torch.tensor([0, 3]))[0]),
    "put": (VECTOR, lambda h: h.put(torch.tensor([1, 5]), torch.tensor([1.0, 2.0], dtype=h.dtype))),
    "scatter": (VECTOR, lambda h: torch.zeros_like(h).scatter(1, h.argsort(1), h)),
    "scatter_reduce": (VECTOR, lambda h: h.scatter_reduce(1, h.argsort(1), h, "sum")),
    "index_add": (VECTOR, lambda h: h.index_add(1, torch.tensor([0, 3]), h[:, :2])),
    "index_reduce": (VECTOR, lambda h: h.index_reduce(1, torch.tensor([0, 3]), h[:, :2], "prod")),
    "index_put": (VECTOR, _put),
    "masked_scatter": (VECTOR, lambda h: h.masked_scatter(h > 0, h.abs())),
    "histc": (VECTOR, lambda h: h + torch.histc(h.detach(), 4, -3.0, 3.0).sum()),
    "cov": (VECTOR, lambda h: h * torch.cov(h).mean()),
    "cov of one variable": (VECTOR, lambda h: h * torch.cov(h[0], correction=0)),
    "corrcoef": (VECTOR, lambda h: h * torch.corrcoef(h).mean()),
    "searchsorted": (VECTOR, lambda h: h + torch.searchsorted(h.sort(1)[0], h)),
    "computed index": (VECTOR, lambda h: h[:, h.argsort(1)[0]]),
    "two lists": (TOKENS, lambda h: h[:, [0, 2, 4], [1, 3, 5]].unsqueeze(1).expand(-1, 2, -1)),
    "list and number": (TOKENS, lambda h: h[:, 0, [1, 3, 5]]),
    "iteration": (VECTOR, lambda h: torch.stack([c * i for i, c in enumerate(h.unbind(1))], 1)),
    "rolled flat": (VECTOR, lambda h: torch.roll(h, 3)),
    "tril": (TOKENS, lambda h: torch.tril(h)),
    "diagonal": (TOKENS, lambda h: h + torch.diagonal(h.mT @ h, dim1=1, dim2=2).unsqueeze(1)),
    "diag_embed": (VECTOR, lambda h: torch.diag_embed(h).flatten(1)),
    "diag": (VECTOR, lambda h: h + torch.diag(h.t() @ h)),
    "matrix_exp": (VECTOR, lambda h: h @ torch.matrix_exp(h.t() @ h / 100)),
    "linalg_matrix_exp": (VECTOR, lambda h: h @ torch.linalg.matrix_exp(h.t() @ h / 100)),
    "inverse": (VECTOR, lambda h: h @ torch.inverse(h.t() @ h + torch.eye(8, dtype=h.dtype))),
    "solution": (VECTOR, lambda h: torch.linalg.solve(torch.diag(torch.arange(1, 9).to(h.dtype)) + 0.1, h.t()).t()),
    "bincount": (VECTOR, lambda h: h * torch.bincount(h.argmax(1)).sum()),
    "trace": (VECTOR, lambda h: h + torch.trace(h.t() @ h)),
    "tensor of repeats": (VECTOR, lambda h: h.repeat_interleave(torch.arange(1, 9), 1, output_size=36)),
    "diff": (VECTOR, lambda h: torch.diff(h, dim=1)),
    "meshgrid": (VECTOR, lambda h: h + torch.meshgrid(h[0], torch.arange(3.0, dtype=h.dtype), indexing="ij")[0].T[0]),
    "two lists written": (IMAGE, _two_lists_written),
    "step written in place": (IMAGE, _step_written),
}
_SLID: dict[str, tuple[Layout, Op]] = {
    "convolution": (IMAGE, _efficient_attention),
    "pooling": (TOKENS, lambda h: F.max_pool1d(h, 2)),
    "adaptive pooling": (TOKENS, lambda h: F.adaptive_avg_pool1d(h, 3)),
    "interpolation": (TOKENS, lambda h: F.interpolate(h, scale_factor=2)),
    "local response norm": (IMAGE, lambda h: F.local_response_norm(h, 3)),
    "windows": (VECTOR, lambda h: h.unfold(1, 2, 2).flatten(1)),
    "reflected padding": (TOKENS, lambda h: F.pad(h, (1, 1), mode="reflect")),
}
_COMPARED: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "binary_cross_entropy": lambda a, b: F.binary_cross_entropy(a.sigmoid(), b.sigmoid()),
    "binary_cross_entropy_with_logits": lambda a, b: F.binary_cross_entropy_with_logits(a, b.sigmoid()),
    "cosine_embedding_loss": lambda a, b: F.cosine_embedding_loss(a, b, torch.ones(a.shape[0], dtype=a.dtype)),
    "cross_entropy": lambda a, b: F.cross_entropy(a, b.softmax(1)),
    "hinge_embedding_loss": lambda a, b: F.hinge_embedding_loss(a, b.sign()),
    "huber_loss": F.huber_loss,
    "kl_div": lambda a, b: F.kl_div(a.log_softmax(1), b.softmax(1), reduction="batchmean"),
    "l1_loss": F.l1_loss,
    "margin_ranking_loss": lambda a, b: F.margin_ranking_loss(a, b, b.sign()),
    "mse_loss": F.mse_loss,
    "multi_margin_loss": lambda a, b: F.multi_margin_loss(a, b.argmax(1)),
    "multilabel_margin_loss": lambda a, b: F.multilabel_margin_loss(a, b.argsort(1)),
    "multilabel_soft_margin_loss": lambda a, b: F.multilabel_soft_margin_loss(a, b.sigmoid()),
    "nll_loss": lambda a, b: F.nll_loss(a.log_softmax(1), b.argmax(1)),
    "poisson_nll_loss": F.poisson_nll_loss,
    "smooth_l1_loss": F.smooth_l1_loss,
    "soft_margin_loss": lambda a, b: F.soft_margin_loss(a, b.sign()),
    "triplet_margin_loss": lambda a, b: F.triplet_margin_loss(a, b, a + b),
}


def _compared(loss: Callable[[Tensor, Tensor], Tensor]) -> Op:
    return lambda h: h + loss(h, 0.5 * h.flip(0))


_MODULES: dict[str, tuple[Layout, Callable[[], nn.Module]]] = {
    "LocalResponseNorm": (IMAGE, lambda: nn.LocalResponseNorm(3)),
    "ReflectionPad1d": (TOKENS, lambda: nn.ReflectionPad1d(1)),
    "AvgPool1d": (TOKENS, lambda: nn.AvgPool1d(2)),
}


def through(name: str, layout: Layout, middle: Callable[[], Op], width: int = 8) -> Case:
    """A case around what ``middle()`` makes, which pins the layer before it."""
    return Case(
        name,
        lambda: Through(layout, middle(), width),
        layout.sample,
        ("inner.weight",),
        pinned=("first.weight",),
    )


CASES = [
    through("pinned/affine map", IMAGE, lambda: _spatial_transformer, 6),
    *(through(f"pinned/{n}", layout, lambda op=op: op) for n, (layout, op) in (_ORDERED | _SLID).items()),
    *(through(f"pinned/{n}", layout, make) for n, (layout, make) in _MODULES.items()),
    *(through(f"pinned/loss/{n}", VECTOR, lambda loss=loss: _compared(loss)) for n, loss in _COMPARED.items()),
]
