"""Behaviour in training mode: the result has the graph of training mode where that is another one."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree

import fxprune


class TwoModes(nn.Module):
    """Functional dropout and batch norm, a branch that training skips at random, and an auxiliary output."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.branch = nn.Conv2d(16, 16, 3, padding=1)
        self.auxiliary = nn.Sequential(nn.Conv2d(16, 8, 1), nn.ReLU(), nn.Conv2d(8, 2, 1))
        self.last = nn.Conv2d(16, 5, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        norm = self.norm
        h = F.batch_norm(
            self.first(x), norm.running_mean, norm.running_var, norm.weight, norm.bias, training=self.training
        )
        keep = torch.rand(x.shape[0], 1, 1, 1, device=x.device) < 0.5 if self.training else 1.0
        h = F.dropout(F.relu(h + keep * self.branch(h)), 0.3, self.training)
        return (self.last(h), self.auxiliary(h)) if self.training else self.last(h)


def seeded(module: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    torch.manual_seed(7)
    result = module(x)
    return list(result) if isinstance(result, tuple) else [result]


def agree(first: nn.Module, second: nn.Module, x: torch.Tensor) -> bool:
    pairs = zip(seeded(first, x), seeded(second, x), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def test_a_copy_at_ratio_zero_behaves_as_the_original_in_both_modes() -> None:
    model = TwoModes()
    pruned = fxprune.compile(model, torch.randn(1, 3, 8, 8), 0.0)
    x = torch.randn(4, 3, 10, 10)
    assert pruned.training
    assert agree(pruned, model, x)
    assert all(torch.equal(tensor, model.get_buffer(name)) for name, tensor in pruned.named_buffers())
    assert agree(pruned.eval(), model.eval(), x)


def test_the_auxiliary_head_is_pruned_with_the_rest_and_trains() -> None:
    pruned = fxprune.compile(TwoModes(), torch.randn(1, 3, 8, 8), 0.5, budget="params")
    assert pruned.get_parameter("auxiliary.0.weight").shape[1] == pruned.get_parameter("first.weight").shape[0] < 16
    main, auxiliary = pruned.train()(torch.randn(2, 3, 8, 8))
    (main.sum() + auxiliary.sum()).backward()
    assert all(p.grad is not None for p in pruned.parameters())


def test_copies_and_pickles_keep_both_modes() -> None:
    pruned = fxprune.compile(TwoModes(), torch.randn(1, 3, 8, 8), 0.4)
    x = torch.randn(3, 3, 8, 8)
    for twin in (copy.deepcopy(pruned), pickle.loads(pickle.dumps(pruned))):
        assert twin.state_dict().keys() == pruned.state_dict().keys()
        for mode in (True, False):
            start = copy.deepcopy(pruned).train(mode)
            assert agree(copy.deepcopy(twin).train(mode), start, x)


def test_one_graph_serves_both_modes_where_they_are_equal() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Dropout(0.5), nn.Conv2d(8, 2, 1))
    pruned = fxprune.compile(model, torch.randn(1, 3, 8, 8), 0.3)
    graph = pruned.train().graph
    assert pruned.eval().graph is graph


class ConstantInTraining(nn.Module):
    """A constant that only the graph of training mode has, on a width that can be cut."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        if self.training:
            x = x * torch.linspace(0.5, 1.0, 16).reshape(16, 1, 1)
        return self.last(F.relu(x))


def test_a_constant_of_training_mode_alone_is_cut_with_its_channels() -> None:
    model = ConstantInTraining()
    pruned = fxprune.compile(model, torch.randn(2, 3, 8, 8), 0.5)
    keep = fxprune.report(pruned).plan.keep["first.weight"][0]
    with torch.no_grad():
        model.last.weight[:, [i for i in range(16) if i not in keep.tolist()]] = 0
    x = torch.randn(3, 3, 8, 8)
    for mode in (True, False):
        torch.testing.assert_close(pruned.train(mode)(x), model.train(mode)(x))


def _transformer(batch_first: bool) -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    return nn.Transformer(16, 4, 1, 1, 32, 0.2, batch_first=batch_first), (torch.randn(5, 6, 16), torch.randn(5, 6, 16))


def _attention(batch_first: bool, shape: tuple[int, ...] = (5, 6, 16)) -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    x = torch.randn(*shape)
    return nn.MultiheadAttention(16, 4, dropout=0.2, batch_first=batch_first), (x, x, x)


class Flattened(nn.Module):
    """Reads the output of attention as it lies in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mixed: torch.Tensor = self.attention(x, x, x, need_weights=False)[0]
        return mixed.view(len(x), -1)


ATTENTION = {
    "transformer": lambda: _transformer(True),
    "transformer, steps first": lambda: _transformer(False),
    "attention and its weights": lambda: _attention(True),
    "attention, steps first": lambda: _attention(False),
    "attention without a batch": lambda: _attention(False, (6, 16)),
    "a view of attention": lambda: (Flattened(), (torch.randn(5, 6, 16),)),
}


@pytest.mark.parametrize("name", ATTENTION)
def test_attention_draws_the_random_numbers_of_the_original(name: str) -> None:
    model, inputs = ATTENTION[name]()
    pruned = fxprune.compile(model.train(), inputs, 0.0)
    answers = []
    for module in (pruned, model):
        torch.manual_seed(7)
        answers.append(pytree.tree_leaves(module(*inputs)))
    assert len(answers[0]) == len(answers[1])
    for ours, theirs in zip(*answers, strict=True):
        assert torch.equal(ours, theirs)
        assert ours.stride() == theirs.stride()
