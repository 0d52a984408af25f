"""Exported programs are pruned as the modules that they were exported from."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.export import Dim
from torch.nn import functional as F

import fxprune
from fxprune.errors import ModelError


class Image(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16)
        self.second, self.head = nn.Conv2d(16, 8, 3), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.max_pool2d(torch.relu(self.norm(self.first(x))), 2)
        return self.head(torch.relu(self.second(x))[:, :, 1:-1].mean((2, 3)))


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm, self.qkv = nn.Embedding(9, 16), nn.LayerNorm(16), nn.Linear(16, 48)
        self.back, self.up, self.down = nn.Linear(16, 16), nn.Linear(16, 64), nn.Linear(64, 16)
        self.register_buffer("order", torch.tensor([2, 0, 1]))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.embed(tokens))
        q, k, v = (part.unflatten(2, (4, 4)).transpose(1, 2) for part in self.qkv(x).chunk(3, 2))
        x = x + self.back(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return (x + self.down(F.gelu(self.up(x))))[:, self.order]


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.steps = nn.LSTM(4, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.steps(x)[0]


@pytest.mark.parametrize(
    ("build", "sample", "other"),
    [
        (Image, torch.randn(2, 3, 16, 16), torch.randn(5, 3, 16, 16)),
        (Tokens, torch.randint(0, 9, (2, 6)), torch.randint(0, 9, (5, 6))),
    ],
)
def test_a_program_is_pruned_as_its_module(build: Any, sample: Any, other: Any) -> None:
    torch.manual_seed(0)
    model = build().eval()
    program = torch.export.export(model, (sample,), dynamic_shapes=({0: Dim.AUTO},))
    plan = fxprune.plan(model, sample, 0.4)
    of_program, of_module = (fxprune.apply(given, sample, plan) for given in (program, model))
    torch.testing.assert_close(of_program(other), of_module(other))
    assert fxprune.report(fxprune.compile(program, sample, 0.4)).achieved >= 0.4


def test_kernels_that_check_no_sizes_are_refused() -> None:
    program = torch.export.export(Recurrent().eval(), (torch.randn(5, 2, 4),))
    with pytest.raises(ModelError, match="lstm.*pass the module"):
        fxprune.compile(program, torch.randn(5, 2, 4), 0.3)


@pytest.mark.parametrize(("name", "told"), [("net.onnx", "onnx2torch"), ("net.pt2", "torch.export.load")])
def test_a_file_name_is_told_how_to_become_a_model(name: str, told: str) -> None:
    with pytest.raises(ModelError, match=told):
        fxprune.analyze(name, torch.randn(1, 3, 8, 8))
