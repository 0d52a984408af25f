"""The rewriter: new tensors, repaired literals, modules that agree with their weights, nothing left of the old net."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fxprune
from fxprune.axes.elements import Mask
from fxprune.axes.expressions import Channels
from fxprune.rewriting import rewrite
from fxprune.rewriting.slicing import kept_indices, rebuilt, sliced
from tests.axes.solved import channels
from tests.snapshots import storages


def narrowed(model: nn.Module, sample: Any, share: float = 0.5) -> nn.Module:
    """Analysed, then rewritten with the first part of every group kept."""
    model.eval()
    graph = fxprune.analyze(model, sample)
    masks: dict[Channels, Mask] = {}
    for group in graph.groups:
        masks[group.variable] = np.arange(group.size) < max(1, int(group.size * share))
    return rewrite(graph, model, masks)


def image(size: int = 8) -> torch.Tensor:
    return torch.randn(2, 3, size, size)


# -- tensors ----------------------------------------------------------------------------------------------------------


def test_kept_indices_are_none_where_all_stay() -> None:
    a, b = channels(4), channels(3)
    indices = kept_indices((a, b), {a: np.array([True, False, True, False])})
    assert indices[0] is not None
    assert indices[0].tolist() == [0, 2]
    assert indices[1] is None


@pytest.mark.parametrize("cut", [False, True])
@pytest.mark.parametrize("trainable", [False, True])
def test_a_sliced_parameter_is_a_new_parameter(cut: bool, trainable: bool) -> None:
    original = nn.Parameter(torch.randn(4, 3), requires_grad=trainable)
    index = torch.tensor([1, 3]) if cut else None
    new = sliced(original, (index, None))
    assert isinstance(new, nn.Parameter)
    assert new.requires_grad is trainable
    assert new.is_leaf
    assert new.untyped_storage().data_ptr() != original.untyped_storage().data_ptr()
    assert torch.equal(new, original[index] if cut else original)


def test_a_sliced_buffer_is_a_tensor_of_its_own() -> None:
    base = torch.randn(8)
    new = sliced(base[2:6], (None,))
    assert not isinstance(new, nn.Parameter)
    assert new.untyped_storage().nbytes() == 4 * 4
    assert torch.equal(new, base[2:6])


def test_channels_last_stays_channels_last() -> None:
    weight = torch.randn(4, 6, 3, 3).to(memory_format=torch.channels_last)
    new = sliced(weight, (torch.tensor([0, 2]), None, None, None))
    assert new.is_contiguous(memory_format=torch.channels_last)
    assert not new.is_contiguous()


# -- modules ----------------------------------------------------------------------------------------------------------


class Plain(nn.Linear):
    """Inherits the forward, adds nothing that the forward needs."""

    def __init__(self, *sizes: int) -> None:
        super().__init__(*sizes)
        self.owner = object()


def test_a_subclass_that_inherits_the_forward_becomes_the_class_of_torch() -> None:
    module = Plain(4, 3)
    new = rebuilt(module, {id(module.weight): nn.Parameter(module.weight[:2].detach().clone())}, {"out_features": 2})
    assert type(new) is nn.Linear
    assert (new.out_features, new.weight.shape) == (2, (2, 4))
    assert module.out_features == 3


class Everything(nn.Module):
    """One of every module with widths among its attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.grouped, self.gn = nn.Conv2d(16, 16, 3, padding=1, groups=4), nn.GroupNorm(4, 16)
        self.depthwise, self.inorm = nn.Conv2d(16, 32, 3, padding=1, groups=16), nn.InstanceNorm2d(32, affine=True)
        self.up, self.prelu = nn.ConvTranspose2d(32, 12, 2, stride=2), nn.PReLU(12)
        self.ln, self.linear = nn.LayerNorm(12), nn.Linear(12, 20)
        self.rms, self.bilinear, self.last = nn.RMSNorm(20), nn.Bilinear(20, 20, 6), nn.Linear(6, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.gn(self.grouped(self.bn(self.conv(x)).relu()))
        x = self.prelu(self.up(self.inorm(self.depthwise(x))))
        x = self.rms(self.linear(self.ln(x.flatten(2).transpose(1, 2))))
        return self.last(self.bilinear(x, x.tanh()))


def test_attributes_agree_with_the_weights() -> None:
    new = narrowed(Everything(), image())
    for name, module in new.named_modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            rows, columns = module.weight.shape[:2]
            out, inner = (rows, columns) if isinstance(module, nn.Conv2d) else (columns, rows)
            if isinstance(module, nn.Conv2d):
                assert (module.out_channels, module.in_channels) == (out, inner * module.groups), name
            else:
                assert (module.out_channels, module.in_channels) == (out * module.groups, inner), name
        elif isinstance(module, nn.Linear):
            assert (module.out_features, module.in_features) == module.weight.shape, name
        elif isinstance(module, nn.Bilinear):
            assert (module.out_features, module.in1_features, module.in2_features) == module.weight.shape, name
        elif isinstance(module, (nn.BatchNorm2d, nn.InstanceNorm2d)):
            assert module.num_features == module.weight.shape[0], name
        elif isinstance(module, nn.GroupNorm):
            assert module.num_channels == module.weight.shape[0], name
        elif isinstance(module, (nn.LayerNorm, nn.RMSNorm)):
            assert tuple(module.normalized_shape) == tuple(module.weight.shape), name
        elif isinstance(module, nn.PReLU):
            assert module.num_parameters == module.weight.shape[0], name
    assert new(image()).shape == (2, 256, 5)
    assert "in_features" in repr(new)


def test_attributes_of_the_original_stay() -> None:
    model = Everything()
    before = repr(model)
    narrowed(model, image())
    assert repr(model) == before


def test_modules_keep_what_is_not_a_width() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, stride=2, padding=2, dilation=2, padding_mode="reflect"), nn.Conv2d(16, 4, 1)
    )
    model.add_module("norm", nn.BatchNorm2d(4, eps=0.5, momentum=0.25))
    new = narrowed(model, image(16))
    conv, norm = new.get_submodule("0"), new.get_submodule("norm")
    assert (conv.stride, conv.padding, conv.dilation, conv.padding_mode) == ((2, 2), (2, 2), (2, 2), "reflect")
    assert (norm.eps, norm.momentum) == (0.5, 0.25)


# -- literals ---------------------------------------------------------------------------------------------------------


class Literals(nn.Module):
    """Widths written down wherever the forward can write them."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(8, 16), nn.Linear(16, 24), nn.Linear(24, 4)
        self.scale = nn.Parameter(torch.rand(16))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.a(x) * self.scale.view(1, 16).expand(x.shape[0], 16)
        h = h.reshape(-1, 4, 4).transpose(1, 2).reshape(h.shape[0], 16)
        h = F.layer_norm(h, (16,)) * h.shape[-1] ** -0.5
        h = self.b(F.pad(h[:, :16], (0, 0)))
        left, middle, right = torch.split(h, [8, 8, 8], dim=1)
        first, second = torch.cat([left, middle, right], 1).chunk(2, dim=1)
        return self.c(torch.stack([first, second], 1).view(-1, 24))


def test_literals_follow_and_values_stay() -> None:
    model = Literals()
    new = narrowed(model, torch.randn(2, 8))
    assert new(torch.randn(5, 8)).shape == (5, 4)
    assert "16 ** -0.5" in new.code or str(16**-0.5) in new.code or "** -0.5" in new.code
    pruned = fxprune.compile(model, torch.randn(2, 8), 0.3)
    assert fxprune.report(pruned).proof is not None


def test_index_lists_that_the_rewriter_adds_are_no_state() -> None:
    class Strided(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(8, 15), nn.Linear(8, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h = self.a(x)
            return self.b(h[:, ::2]) + h[:, 1::2].sum(1, keepdim=True)

    model = Strided()
    graph = fxprune.analyze(model, torch.randn(2, 8))
    rng = np.random.default_rng(0)
    masks = {g.variable: rng.random(g.size) < 0.6 for g in graph.groups}
    new = rewrite(graph, model, masks)
    assert set(new.state_dict()) == set(model.state_dict())
    assert new(torch.randn(3, 8)).shape == (3, 4)


# -- the whole --------------------------------------------------------------------------------------------------------


def test_nothing_is_shared_and_nothing_is_left_over() -> None:
    model = Everything()
    new = narrowed(model, image())
    assert not storages(new) & storages(model)
    assert sum(p.untyped_storage().nbytes() for p in new.parameters()) == sum(4 * p.numel() for p in new.parameters())


def test_at_full_width_it_is_the_same_network() -> None:
    model = Everything()
    new = narrowed(model, image(), share=1.0)
    x = image(12)
    assert torch.equal(new(x), model(x))
    assert new.state_dict().keys() == model.state_dict().keys()
    assert repr([(n, str(m)) for n, m in new.named_modules() if n]) == repr(
        [(n, str(m)) for n, m in model.named_modules() if n]
    )


def test_buffers_keep_their_persistence() -> None:
    class Buffered(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(8, 16), nn.Linear(16, 4)
            self.register_buffer("kept", torch.rand(16))
            self.register_buffer("hidden", torch.rand(16), persistent=False)
            self.inner = nn.Module()
            self.inner.register_buffer("deep", torch.rand(16), persistent=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.b(self.a(x) * self.kept + self.hidden * self.inner.deep)

    new = narrowed(Buffered(), torch.randn(2, 8))
    assert {n for n, _ in new.named_buffers()} == {"kept", "hidden", "inner.deep"}
    assert set(new.state_dict()) == set(Buffered().state_dict())
    assert new.hidden.shape == (8,)


def test_modes_of_parts_are_those_of_the_whole() -> None:
    model = Everything().train()
    graph = fxprune.analyze(model, image())
    new = rewrite(graph, model, {})
    assert all(m.training for m in new.modules())


class WritesOut(nn.Module):
    """Halves of a table, and then all of another one, are written through ``out=``."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, width), nn.Linear(2 * width, inner, bias=False)
        self.c = nn.Linear(inner, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            h, width = self.a(x).relu(), self.a.out_features
            table, best = torch.zeros(len(x), 2 * width), (torch.empty(width), torch.empty(width, dtype=torch.int64))
            torch.add(h, 1, out=table[:, :width])
            torch.mul(h, 2, out=table[:, width:])
            torch.max(h, 0, out=best)
            product = torch.empty(len(x), self.b.out_features)
            torch.mm(table, self.b.weight.t(), out=product)
        return self.c(product) + best[0].sum()


@pytest.mark.filterwarnings("error")
def test_what_is_written_through_out_shrinks_with_the_result() -> None:
    pruned = fxprune.compile(WritesOut(16, 12).eval(), torch.randn(3, 8), 0.5, round_to=1)
    width, inner = len(pruned.get_parameter("a.weight")), len(pruned.get_parameter("b.weight"))
    assert width < 16
    assert inner < 12
    twin = WritesOut(width, inner)
    twin.load_state_dict(pruned.state_dict())
    x = torch.randn(5, 8)
    torch.testing.assert_close(pruned(x), twin(x))
