"""Normalisation: per channel, over channels, over groups of channels, as modules and on bare parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.rules.cases import IMAGE, SERIES, TOKENS, VECTOR, VOLUME, Layout, everywhere, module_case, op_case
from tests.rules.narrow import around, same_op
from tests.rules.oracles import Kept


class Affine(nn.Module):
    """A functional norm with bare weight and bias; ``op(h, weight, bias, mean, variance)``."""

    def __init__(self, op: Callable[..., Tensor], size: int = 8) -> None:
        super().__init__()
        self.op = op
        self.weight, self.bias = nn.Parameter(torch.randn(size)), nn.Parameter(torch.randn(size))
        self.register_buffer("mean", torch.randn(size))
        self.register_buffer("running_var", torch.rand(size))

    def forward(self, h: Tensor) -> Tensor:
        return self.op(h, self.weight, self.bias, self.mean, self.running_var)


class ChannelsFirst(nn.Module):
    """Layer norm over the channels of an image by permuting them to the end and back."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8)

    def forward(self, h: Tensor) -> Tensor:
        return self.norm(h.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ByHand(nn.Module):
    """Layer norm written out with means, over the channels of an image."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(8)), nn.Parameter(torch.randn(8))

    def forward(self, h: Tensor) -> Tensor:
        mean = h.mean(1, keepdim=True)
        variance = (h - mean).pow(2).mean(1, keepdim=True)
        return (h - mean) / torch.sqrt(variance + 1e-6) * self.weight[:, None, None] + self.bias[:, None, None]


class Response(nn.Module):
    """Global response normalisation, channels last."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(1, 1, 8)), nn.Parameter(torch.randn(1, 1, 8))

    def forward(self, h: Tensor) -> Tensor:
        size = torch.norm(h, p=2, dim=1, keepdim=True)
        return self.weight * (h * (size / (size.mean(-1, keepdim=True) + 1e-6))) + self.bias + h


def _layer(net: Any, kept: Kept, h: Tensor) -> Tensor:
    norm = net.middle.norm if isinstance(net.middle, ChannelsFirst) else net.middle
    name = "middle.norm.weight" if isinstance(net.middle, ChannelsFirst) else "middle.weight"
    columns = kept(name)
    weight = None if norm.weight is None else norm.weight[columns]
    bias = None if norm.bias is None else norm.bias[columns]
    if isinstance(net.middle, ChannelsFirst):
        return F.layer_norm(h.permute(0, 2, 3, 1), (len(columns),), weight, bias).permute(0, 3, 1, 2)
    return F.layer_norm(h, (h.shape[-1],), weight, bias)


def _root(net: Any, kept: Kept, h: Tensor) -> Tensor:
    return F.rms_norm(h, (h.shape[-1],), net.middle.weight[kept("middle.weight")])


def _by_hand(net: Any, kept: Kept, h: Tensor) -> Tensor:
    columns = kept("middle.weight")
    centred = h - h.mean(1, keepdim=True)
    scaled = centred / torch.sqrt(centred.pow(2).mean(1, keepdim=True) + 1e-6)
    return scaled * net.middle.weight[columns, None, None] + net.middle.bias[columns, None, None]


def _response(net: Any, kept: Kept, h: Tensor) -> Tensor:
    columns, size = kept("middle.weight", 2), h.norm(p=2, dim=1, keepdim=True)
    scaled = h * (size / (size.mean(-1, keepdim=True) + 1e-6))
    return net.middle.weight[..., columns] * scaled + net.middle.bias[..., columns] + h


def _grouped(net: Any, kept: Kept, h: Tensor) -> Tensor:
    """Groups keep their boundaries: a whole group may go, and of the rest each keeps the same number."""
    columns, norm = kept("middle.weight"), net.middle
    inner = norm.weight.shape[0] // 4
    groups = len(torch.unique(columns // inner))
    return F.group_norm(h, groups, norm.weight[columns], norm.bias[columns])


def _over_image(h: Tensor) -> Tensor:
    return F.layer_norm(h, h.shape[1:])


def _standardised(h: Tensor) -> Tensor:
    variance, mean = torch.var_mean(h, dim=1, keepdim=True, unbiased=False)
    return (h - mean) * torch.rsqrt(variance + 1e-5)


def _functional_group(h: Tensor, weight: Tensor, bias: Tensor, *_: Tensor) -> Tensor:
    return F.group_norm(h, 4, weight, bias)


def _functional_layer(h: Tensor, weight: Tensor, bias: Tensor, *_: Tensor) -> Tensor:
    return F.layer_norm(h, (8,), weight, bias)


def _functional_layer_of_shape(h: Tensor, weight: Tensor, bias: Tensor, *_: Tensor) -> Tensor:
    return F.layer_norm(h, h.shape[-1:], weight, bias)


def _functional_layer_of_weight(h: Tensor, weight: Tensor, bias: Tensor, *_: Tensor) -> Tensor:
    return F.layer_norm(h, weight.shape, weight, bias, eps=1e-5)


_PER_CHANNEL: dict[str, Callable[..., Tensor]] = {
    "batch_norm": lambda h, w, b, m, v: F.batch_norm(h, m, v, w, b),
    "batch_norm without affine": lambda h, w, b, m, v: F.batch_norm(h, m, v),
    "batch_norm, keywords": lambda h, w, b, m, v: F.batch_norm(
        h, running_mean=m, running_var=v, weight=w, bias=b, training=False
    ),
    "instance_norm": lambda h, w, b, m, v: F.instance_norm(h, weight=w, bias=b),
    "frozen": lambda h, w, b, m, v: h * (w / (v + 1e-5).sqrt())[:, None, None] + (b - m * w)[:, None, None],
}
UNBATCHED = Layout(
    lambda n: (torch.randn(3, 12),), lambda width: nn.Conv1d(3, width, 3), lambda rank, width: nn.Conv1d(width, 4, 1), 0
)
_MODULES: list[tuple[str, Any, Callable[[], nn.Module]]] = [
    ("BatchNorm1d", SERIES, lambda: nn.BatchNorm1d(8)),
    ("BatchNorm1d of vectors", VECTOR, lambda: nn.BatchNorm1d(8)),
    ("BatchNorm2d", IMAGE, lambda: nn.BatchNorm2d(8)),
    ("BatchNorm2d without affine", IMAGE, lambda: nn.BatchNorm2d(8, affine=False)),
    ("BatchNorm2d without statistics", IMAGE, lambda: nn.BatchNorm2d(8, track_running_stats=False)),
    ("BatchNorm3d", VOLUME, lambda: nn.BatchNorm3d(8)),
    ("SyncBatchNorm", IMAGE, lambda: nn.SyncBatchNorm(8)),
    ("InstanceNorm1d", SERIES, lambda: nn.InstanceNorm1d(8)),
    ("InstanceNorm1d, unbatched", UNBATCHED, lambda: nn.InstanceNorm1d(8, affine=True)),
    ("InstanceNorm2d", IMAGE, lambda: nn.InstanceNorm2d(8)),
    ("InstanceNorm2d, affine", IMAGE, lambda: nn.InstanceNorm2d(8, affine=True, track_running_stats=True)),
    ("InstanceNorm3d", VOLUME, lambda: nn.InstanceNorm3d(8, affine=True)),
    ("GroupNorm with one channel a group", IMAGE, lambda: nn.GroupNorm(8, 8)),
]
_WITH_NORM = ("first.weight", "middle.weight")

CASES = [
    *(module_case(f"norm/{name}", layout, make) for name, layout, make in _MODULES),
    *everywhere("norm/BatchNorm2d in place", IMAGE, lambda: nn.BatchNorm2d(8), free=_WITH_NORM)[1:],
    *(module_case(f"norm/functional {n}", IMAGE, lambda op=op: Affine(op)) for n, op in _PER_CHANNEL.items()),
    *everywhere("norm/LayerNorm", TOKENS, lambda: nn.LayerNorm(8), free=_WITH_NORM, narrow=around(TOKENS, _layer)),
    module_case(
        "norm/LayerNorm without bias",
        TOKENS,
        lambda: nn.LayerNorm(8, bias=False),
        free=_WITH_NORM,
        narrow=around(TOKENS, _layer),
    ),
    module_case(
        "norm/LayerNorm without affine",
        TOKENS,
        lambda: nn.LayerNorm(8, elementwise_affine=False),
        narrow=same_op(TOKENS, lambda h: F.layer_norm(h, h.shape[-1:])),
    ),
    module_case("norm/LayerNorm of an image", IMAGE, ChannelsFirst, narrow=around(IMAGE, _layer)),
    module_case("norm/layer norm by hand", IMAGE, ByHand, free=_WITH_NORM, narrow=around(IMAGE, _by_hand)),
    module_case("norm/RMSNorm", TOKENS, lambda: nn.RMSNorm(8), free=_WITH_NORM, narrow=around(TOKENS, _root)),
    module_case(
        "norm/response norm",
        TOKENS,
        Response,
        free=("first.weight", "middle.weight:2"),
        narrow=around(TOKENS, _response),
    ),
    *everywhere(
        "norm/GroupNorm", IMAGE, lambda: nn.GroupNorm(4, 12), 12, free=_WITH_NORM, narrow=around(IMAGE, _grouped)
    ),
    module_case(
        "norm/functional group_norm",
        IMAGE,
        lambda: Affine(_functional_group, 12),
        12,
        free=_WITH_NORM,
        narrow=around(IMAGE, _grouped),
    ),
    *(
        module_case(
            f"norm/{op.__name__[1:]}", TOKENS, lambda op=op: Affine(op), free=_WITH_NORM, narrow=around(TOKENS, _layer)
        )
        for op in (_functional_layer, _functional_layer_of_shape, _functional_layer_of_weight)
    ),
    op_case(
        "norm/functional rms_norm",
        TOKENS,
        lambda h: F.rms_norm(h, (8,)),
        narrow=same_op(TOKENS, lambda h: F.rms_norm(h, h.shape[-1:])),
    ),
    op_case("norm/functional layer_norm of an image", IMAGE, _over_image, narrow=same_op(IMAGE, _over_image)),
    op_case("norm/standardised by var_mean", IMAGE, _standardised, narrow=same_op(IMAGE, _standardised)),
]
