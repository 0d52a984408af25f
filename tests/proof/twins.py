"""Small nets with a narrower twin of each, cut by hand, to feed the proof."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

Kept = dict[str, tuple[Tensor | None, ...]]


@dataclass
class Twin:
    """A model, its trace, the narrower network and the plan that made it."""

    original: nn.Module
    captured: fx.GraphModule
    pruned: fx.GraphModule
    keep: Kept
    sample: tuple[tuple[Any, ...], dict[str, Any]]
    crosses_norm: bool


def index(*kept: int) -> Tensor:
    return torch.tensor(kept)


def give_random_statistics(model: nn.Module) -> None:
    """Random biases, scales and running statistics, so that no two channels of a fresh norm are equal."""
    generator = torch.Generator().manual_seed(1)
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.is_floating_point() and tensor.ndim == 1:
            values = torch.rand(tensor.shape, generator=generator)
            tensor.data.copy_(values + 0.5 if name.endswith(("var", "weight")) else values - 0.5)


def cut(captured: fx.GraphModule, keep: Kept, repair: Callable[[fx.GraphModule], None] | None = None) -> fx.GraphModule:
    """A copy of the graph with each tensor sliced and the attributes that norms and grouped convolutions check."""
    pruned = copy.deepcopy(captured)
    for name, kept in keep.items():
        owner_name, _, leaf = name.rpartition(".")
        owner = pruned.get_submodule(owner_name)
        tensor = getattr(owner, leaf).detach()
        for dim, chosen in enumerate(kept):
            tensor = tensor if chosen is None else tensor.index_select(dim, chosen)
        if isinstance(getattr(owner, leaf), nn.Parameter):
            setattr(owner, leaf, nn.Parameter(tensor.clone()))
        else:
            owner._buffers[leaf] = tensor.clone()
    if repair is not None:
        repair(pruned)
    for module in pruned.modules():
        _set_sizes(module)
    return pruned


def _set_sizes(module: Any) -> None:
    """The attributes that tell widths, for the tensors that the module holds now."""
    if isinstance(module, (nn.LayerNorm, nn.RMSNorm)):
        module.normalized_shape = tuple(module.weight.shape)
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, nn.Embedding):
        module.num_embeddings, module.embedding_dim = module.weight.shape
    elif isinstance(module, nn.Conv2d):
        module.out_channels, module.in_channels = len(module.weight), module.weight.shape[1] * module.groups
    elif isinstance(module, nn.BatchNorm2d):
        module.num_features = len(module.running_mean)
    elif isinstance(module, nn.GroupNorm):
        module.num_channels = len(module.weight)


def twin(
    model: nn.Module,
    keep: Kept,
    *sample: Any,
    crosses_norm: bool = False,
    repair: Callable[[fx.GraphModule], None] | None = None,
) -> Twin:
    """The narrower twin of ``model`` under ``keep``."""
    give_random_statistics(model)
    captured = fx.symbolic_trace(model)
    return Twin(model, captured, cut(captured, keep, repair), keep, (sample, {}), crosses_norm)


class ConvChain(nn.Module):
    """conv, norm, relu, depthwise conv, conv, global pooling, linear."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1)
        self.norm1 = nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.norm2 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 6, 1)
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm1(self.conv1(x)))
        x = torch.relu(self.norm2(self.depthwise(x)))
        return self.head(self.conv2(x).mean((2, 3)))


def norm_rows(name: str, kept: Tensor) -> Kept:
    return {f"{name}.{leaf}": (kept,) for leaf in ("weight", "bias", "running_mean", "running_var")}


def conv_chain() -> Twin:
    kept, last = index(0, 2, 3, 6, 7), index(1, 2, 5)
    keep: Kept = {
        "conv1.weight": (kept, None, None, None),
        "conv1.bias": (kept,),
        **norm_rows("norm1", kept),
        "depthwise.weight": (kept, None, None, None),
        "depthwise.bias": (kept,),
        **norm_rows("norm2", kept),
        "conv2.weight": (last, kept, None, None),
        "conv2.bias": (last,),
        "head.weight": (None, last),
    }

    def repair(pruned: fx.GraphModule) -> None:
        pruned.get_submodule("depthwise").groups = 5

    return twin(ConvChain(), keep, torch.randn(2, 3, 8, 8), repair=repair)


class Residual(nn.Module):
    """A residual add with option-A padding: channels are padded with zeros on both sides."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.inner = nn.Conv2d(4, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.last = nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = self.norm(self.inner(torch.relu(x))) + torch.nn.functional.pad(x, (0, 0, 0, 0, 2, 2))
        return self.last(torch.relu(x))


def residual() -> Twin:
    stem, wide = index(0, 3), index(1, 2, 5, 6, 7)
    keep: Kept = {
        "stem.weight": (stem, None, None, None),
        "stem.bias": (stem,),
        "inner.weight": (wide, stem, None, None),
        "inner.bias": (wide,),
        **norm_rows("norm", wide),
        "last.weight": (None, wide, None, None),
    }

    def repair(pruned: fx.GraphModule) -> None:
        for node in pruned.graph.nodes:
            if node.target is torch.nn.functional.pad:
                node.args = (node.args[0], (0, 0, 0, 0, 1, 2))
        pruned.recompile()

    return twin(Residual(), keep, torch.randn(3, 3, 6, 6), repair=repair)


class NormCrossing(nn.Module):
    """Embedding, layer norm over the pruned width, linear, softmax over the pruned width, mean over it."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(11, 8)
        self.norm = nn.LayerNorm(8)
        self.wide = nn.Linear(8, 6)
        self.rms = nn.RMSNorm(6)
        self.head = nn.Linear(6, 4)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.wide(self.norm(self.table(tokens)))
        x = self.rms(x) + x.softmax(-1) - x.mean(-1, keepdim=True) + x.std(-1, keepdim=True) + x.amax(-1, keepdim=True)
        return self.head(x)


def norm_crossing() -> Twin:
    width, wide = index(0, 1, 4, 6, 7), index(0, 2, 3, 5)
    keep: Kept = {
        "table.weight": (None, width),
        "norm.weight": (width,),
        "norm.bias": (width,),
        "wide.weight": (wide, width),
        "wide.bias": (wide,),
        "rms.weight": (wide,),
        "head.weight": (None, wide),
    }
    return twin(NormCrossing(), keep, torch.randint(0, 11, (2, 7)), crosses_norm=True)


class GroupNormNet(nn.Module):
    """conv, group norm of four groups, conv."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 12, 3)
        self.norm = nn.GroupNorm(4, 12)
        self.conv2 = nn.Conv2d(12, 4, 1, groups=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(torch.nn.functional.silu(self.norm(self.conv1(x))))


def group_norm() -> Twin:
    kept = index(0, 2, 3, 4, 7, 8, 10, 11)
    half = torch.tensor([0, 2, 3, 4])
    # The two groups of conv2 lose different channels: each row keeps its own columns, so no single index describes
    # its columns; two equal groups do.
    kept = torch.cat([half, half + 6])
    keep: Kept = {
        "conv1.weight": (kept, None, None, None),
        "conv1.bias": (kept,),
        "norm.weight": (kept,),
        "norm.bias": (kept,),
        "conv2.weight": (None, half, None, None),
    }
    return twin(GroupNormNet(), keep, torch.randn(2, 3, 7, 7), crosses_norm=True)


class Attention(nn.Module):
    """Two-head attention whose head dim, heads and value dim are factors of the projections."""

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Linear(6, 8)
        self.key = nn.Linear(6, 8)
        self.value = nn.Linear(6, 8)
        self.out = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (p(x).unflatten(-1, (2, 4)).transpose(1, 2) for p in (self.query, self.key, self.value))
        mixed = torch.softmax(q @ k.transpose(-2, -1) * 0.5, dim=-1) @ v
        return self.out(mixed.transpose(1, 2).flatten(2))


def head_dims() -> tuple[Tensor, Tensor]:
    """Kept rows of the two heads: dims 0, 1, 3 of query and key, dims 1, 2 of the value."""
    return index(0, 1, 3, 4, 5, 7), index(1, 2, 5, 6)


def attention() -> Twin:
    inner, value = head_dims()
    keep: Kept = {
        "query.weight": (inner, None),
        "query.bias": (inner,),
        "key.weight": (inner, None),
        "key.bias": (inner,),
        "value.weight": (value, None),
        "value.bias": (value,),
        "out.weight": (None, value),
    }

    def repair(pruned: fx.GraphModule) -> None:
        sizes = iter([(2, 3), (2, 3), (2, 2)])
        for node in pruned.graph.nodes:
            if node.target == "unflatten":
                node.args = (node.args[0], -1, next(sizes))
        pruned.recompile()

    return twin(Attention(), keep, torch.randn(2, 5, 6), repair=repair)


def attention_without_a_head() -> Twin:
    """The second head removed as a whole."""
    head = index(0, 1, 2, 3)
    rows: Kept = {f"{n}.weight": (head, None) for n in ("query", "key", "value")}
    rows.update({f"{n}.bias": (head,) for n in ("query", "key", "value")})

    def repair(pruned: fx.GraphModule) -> None:
        for node in pruned.graph.nodes:
            if node.target == "unflatten":
                node.args = (node.args[0], -1, (1, 4))
        pruned.recompile()

    keep: Kept = {**rows, "out.weight": (None, head)}
    return twin(Attention(), keep, torch.randn(2, 5, 6), crosses_norm=True, repair=repair)


ALL = [conv_chain, residual, norm_crossing, group_norm, attention, attention_without_a_head]
