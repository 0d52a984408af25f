"""Reductions over channels, over space and over both, and ops that run along a dim and keep it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.rules.cases import IMAGE, TOKENS, VECTOR, Op, everywhere, module_case, op_case
from tests.rules.narrow import around, same_op


def _gate(reduce: Op) -> Op:
    """The input times what a reduction makes of it, so that channels reach the reader."""
    return lambda h: h * reduce(h)


_OVER_CHANNELS: dict[str, Op] = {
    "topk": lambda h: h.topk(1, 1).values,
    "sum": lambda h: h.sum(1, keepdim=True),
    "sum, dim of the end": lambda h: torch.sum(h, dim=-3, keepdim=True),
    "mean": lambda h: h.mean(1, keepdim=True),
    "mean, no keepdim": lambda h: torch.mean(h, 1).unsqueeze(1),
    "mean of two dims": lambda h: h.mean((1, 2), keepdim=True),
    "mean of all": lambda h: h.mean((-3, -2, -1), keepdim=True),
    "amax": lambda h: h.amax(1, keepdim=True),
    "amin": lambda h: torch.amin(h, dim=1, keepdim=True),
    "max values": lambda h: h.max(1, keepdim=True).values,
    "max first": lambda h: torch.max(h, 1)[0].unsqueeze(1),
    "max unpacked": lambda h: torch.max(h, dim=1, keepdim=True)[0],
    "min values": lambda h: torch.min(h, dim=1, keepdim=True)[0],
    "median": lambda h: torch.median(h, dim=1, keepdim=True).values,
    "aminmax": lambda h: torch.aminmax(h, dim=1, keepdim=True).max,
    "nansum": lambda h: torch.nansum(h, 1, keepdim=True),
    "nanmean": lambda h: torch.nanmean(h, 1, keepdim=True),
    "prod": lambda h: h.prod(1, keepdim=True),
    "logsumexp": lambda h: torch.logsumexp(h, 1, keepdim=True),
    "special logsumexp": lambda h: torch.special.logsumexp(h, 1, keepdim=True),
    "any": lambda h: (h > 1).any(1, keepdim=True).to(h.dtype),
    "all": lambda h: torch.all(h > -1, 1, keepdim=True).to(h.dtype),
    "var": lambda h: h.var(1, keepdim=True),
    "var, biased": lambda h: h.var(1, unbiased=False, keepdim=True),
    "var, correction": lambda h: torch.var(h, dim=1, correction=0, keepdim=True),
    "std": lambda h: h.std(dim=1, keepdim=True),
    "std_mean": lambda h: torch.std_mean(h, 1, keepdim=True)[0],
    "norm": lambda h: h.norm(dim=1, keepdim=True),
    "norm, p of one": lambda h: torch.norm(h, 1, 1, keepdim=True),
    "vector_norm": lambda h: torch.linalg.vector_norm(h, dim=1, keepdim=True),
    "linalg norm": lambda h: torch.linalg.norm(h, dim=1, keepdim=True),
    "mode": lambda h: torch.mode(h.round(), 1, keepdim=True).values,
    "count_nonzero": lambda h: torch.count_nonzero(h > 0, 1).unsqueeze(1).to(h.dtype),
    "dist": lambda h: torch.dist(h, h.tanh()),
    "nanmedian": lambda h: torch.nanmedian(h, 1, keepdim=True).values,
    "sum of everything": lambda h: h.sum(),
    "mean of everything": lambda h: h.mean(),
    "max of everything": lambda h: h.max(),
    "norm of everything": lambda h: h.norm(),
    "std of everything": lambda h: h.std(),
}
_OVER_SPACE: dict[str, Op] = {
    "mean": lambda h: h.mean((2, 3)),
    "mean of the end": lambda h: torch.mean(h, [-1, -2], keepdim=True),
    "sum twice": lambda h: h.sum(3).sum(2),
    "amax": lambda h: h.amax(dim=(2, 3)),
    "max of a flattened view": lambda h: h.flatten(2).max(-1)[0],
    "var": lambda h: h.var((2, 3)),
    "logsumexp": lambda h: h.logsumexp((2, 3)),
    "quantile": lambda h: torch.quantile(h, 0.3, dim=2),
    "std": lambda h: torch.std(h, dim=(2, 3)),
    "cumsum": lambda h: h.cumsum(2),
    "cummax": lambda h: torch.cummax(h, 3).values,
    "sort": lambda h: h.flatten(2).sort(-1)[0],
    "topk": lambda h: h.flatten(2).topk(3, -1)[0],
    "argmax": lambda h: h.flatten(2).argmax(-1).to(h.dtype) * h.mean((2, 3)),
    "kthvalue": lambda h: h.flatten(2).kthvalue(2, -1)[0],
    "diff": lambda h: torch.diff(h, dim=2),
    "diff of more": lambda h: h.diff(1, -1, prepend=h[..., :1], append=h[..., :1]),
    "cross": lambda h: torch.cross(h[..., :3], h[..., 1:4], dim=-1),
    "linalg cross": lambda h: torch.linalg.cross(h[:, :, :3], h[:, :, 1:4], dim=2),
    "argsort": lambda h: h + h.argsort(-1).to(h.dtype),
}
_ALONG_CHANNELS: dict[str, Op] = {
    "softmax": lambda h: F.softmax(h, dim=1),
    "softmax method": lambda h: h.softmax(1),
    "special softmax": lambda h: torch.special.softmax(h, 1) + torch.special.log_softmax(h, 1),
    "log_softmax": lambda h: torch.log_softmax(h, 1),
    "softmin": lambda h: F.softmin(h, dim=1),
    "renorm": lambda h: h.renorm(2, 0, 1.5),
    "normalize": lambda h: F.normalize(h, dim=1),
    "normalize, p of one": lambda h: F.normalize(h, p=1.0, dim=1),
    "cumsum": lambda h: h.cumsum(1),
    "logcumsumexp": lambda h: torch.logcumsumexp(h, 1),
    "cumprod": lambda h: torch.cumprod(h, dim=1),
    "cummax": lambda h: torch.cummax(h, 1)[0],
    "cummin": lambda h: h.cummin(1).values,
    "cdist": lambda h: h * torch.cdist(h.permute(0, 2, 3, 1), h.permute(0, 2, 3, 1).tanh()).mean(-1).unsqueeze(1),
    "cosine_similarity": lambda h: h * F.cosine_similarity(h, h.flip(-1), dim=1).unsqueeze(1),
    "cov": lambda h: torch.einsum("cd,bdhw->bchw", torch.cov(h.transpose(0, 1).flatten(1)), h),
    "cov, weighted": lambda h: torch.einsum(
        "cd,bdhw->bchw", torch.cov(h[0].flatten(1), correction=0, aweights=h[0].abs().mean(0).flatten()), h
    ),
    "corrcoef": lambda h: torch.einsum("cd,bdhw->bchw", torch.corrcoef(h.transpose(0, 1).flatten(1)), h),
    "pairwise_distance": lambda h: (
        h * F.pairwise_distance(h.permute(0, 2, 3, 1), h.permute(0, 2, 3, 1).flip(1)).unsqueeze(1)
    ),
}
_MODULES: dict[str, Callable[[], nn.Module]] = {
    "Softmax": lambda: nn.Softmax(1),
    "LogSoftmax": lambda: nn.LogSoftmax(dim=1),
    "Softmin": lambda: nn.Softmin(1),
    "Softmax2d": nn.Softmax2d,
}


class Compared(nn.Module):
    """Channels times a measure of two tensors, channels last."""

    def __init__(self, measure: nn.Module) -> None:
        super().__init__()
        self.measure = measure

    def forward(self, h: Tensor) -> Tensor:
        distance = self.measure(h, h.tanh())
        return h * (distance if distance.dim() == h.dim() else distance.unsqueeze(-1))


class Excited(nn.Module):
    """Squeeze and excite: channels gated by what two layers make of their means over space."""

    def __init__(self) -> None:
        super().__init__()
        self.squeeze, self.excite = nn.Conv2d(8, 3, 1), nn.Conv2d(3, 8, 1)

    def forward(self, h: Tensor) -> Tensor:
        scale = h.mean((2, 3), keepdim=True)
        return h * torch.sigmoid(self.excite(self.squeeze(scale).relu()))


class Spatial(nn.Module):
    """Spatial attention over the mean and the maximum of the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 1, 3, padding=1)

    def forward(self, h: Tensor) -> Tensor:
        pooled = torch.cat((h.mean(1, keepdim=True), torch.max(h, 1, keepdim=True)[0]), 1)
        return h * self.conv(pooled).sigmoid()


_MEASURES: dict[str, Callable[[], nn.Module]] = {
    "CosineSimilarity": lambda: nn.CosineSimilarity(dim=-1),
    "PairwiseDistance": lambda: nn.PairwiseDistance(),
    "PairwiseDistance, keepdim": lambda: nn.PairwiseDistance(1.0, keepdim=True),
}
_EXCITED = ("first.weight", "middle.squeeze.weight", "middle.excite.weight")

CASES = [
    *(
        module_case(
            f"along channels/{n}",
            TOKENS,
            lambda make=make: Compared(make()),
            narrow=around(TOKENS, lambda net, kept, h: net.middle(h)),
        )
        for n, make in _MEASURES.items()
    ),
    *(
        op_case(f"over channels/{n}", IMAGE, _gate(op), narrow=same_op(IMAGE, _gate(op)))
        for n, op in _OVER_CHANNELS.items()
    ),
    *(op_case(f"over space/{n}", IMAGE, op) for n, op in _OVER_SPACE.items()),
    *(op_case(f"along channels/{n}", IMAGE, op, narrow=same_op(IMAGE, op)) for n, op in _ALONG_CHANNELS.items()),
    *(
        module_case(f"along channels/{n}", IMAGE, op, narrow=around(IMAGE, lambda net, kept, h: net.middle(h)))
        for n, op in _MODULES.items()
    ),
    op_case(
        "along channels/implicit softmax dim",
        VECTOR,
        lambda h: F.softmax(h),
        narrow=same_op(VECTOR, lambda h: h.softmax(1)),
    ),
    op_case("over tokens/softmax", TOKENS, lambda h: h.softmax(1) * h),
    op_case("over tokens/mean", TOKENS, lambda h: h.mean(1)),
    op_case("over tokens/attention pooling", TOKENS, lambda h: (h * h[..., :1].softmax(1)).sum(1)),
    *everywhere("reduction/squeeze and excite", IMAGE, Excited, free=_EXCITED),
    module_case(
        "reduction/spatial attention", IMAGE, Spatial, narrow=around(IMAGE, lambda net, kept, h: net.middle(h))
    ),
]
