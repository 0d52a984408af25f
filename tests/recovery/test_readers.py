"""Reconstruction of transposed convolutions and of weights that are read at several places, against torch's lstsq."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxprune
from fxprune.recovery import Reconstruct
from tests.recovery.test_reconstruct import half

EXACT = Reconstruct(ridge=0.0, positions=1000, hold_out=False)


class Upwards(nn.Module):
    """A transposed convolution behind a cut."""

    def __init__(self, **options: object) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, padding=1)
        self.second = nn.ConvTranspose2d(6, 4, **{"kernel_size": 3, **options})
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return self.second(F.relu(self.first(x)))


def design(layer: nn.Module, x: Tensor) -> Tensor:
    """What each weight and the bias by itself makes of x, (outputs, parameters): the layer is linear in them."""
    columns = []
    parameters = [layer.weight, *([] if layer.bias is None else [layer.bias])]
    with torch.no_grad():
        kept = [p.clone() for p in parameters]
        for parameter in parameters:
            for index in range(parameter.numel()):
                for other in parameters:
                    other.zero_()
                parameter.view(-1)[index] = 1
                columns.append(layer(x).reshape(-1))
        for parameter, value in zip(parameters, kept, strict=True):
            parameter.copy_(value)
    return torch.stack(columns, dim=1)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"stride": 2, "padding": 1, "output_padding": 1},
        {"stride": (2, 3), "padding": (0, 2), "kernel_size": (2, 5)},
        {"dilation": 2, "padding": 1},
        {"groups": 2, "stride": 2},
        {"bias": False, "stride": 2, "kernel_size": 2},
    ],
)
def test_transposed_convolutions_equal_lstsq(options: dict[str, object]) -> None:
    model = Upwards(**options)
    x = torch.randn(12, 3, 4, 5, dtype=torch.float64)
    back = half(model, x, calibration=[x[:5], x[5:]], recover=EXACT)
    assert back.second.in_channels < 6
    with torch.no_grad():
        matrix = design(back.second, F.relu(back.first(x)))
        expected = torch.linalg.lstsq(matrix, model(x).reshape(-1)).solution
    found = torch.cat([p.detach().reshape(-1) for p in back.second.parameters()])
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)


class Twice(nn.Module):
    """One layer that reads two branches, or one after the other."""

    def __init__(self, in_a_row: bool) -> None:
        super().__init__()
        self.in_a_row = in_a_row
        self.left, self.right = nn.Linear(5, 8), nn.Linear(5, 8)
        self.shared, self.head = nn.Linear(8, 8 if in_a_row else 3), nn.Linear(8, 3)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        if self.in_a_row:
            return self.head(self.shared(torch.tanh(self.shared(torch.tanh(self.left(x))))))
        return torch.cat([self.shared(torch.tanh(self.left(x))), self.shared(torch.tanh(self.right(x)))], dim=1)


def test_a_weight_that_two_branches_read_is_fitted_to_both() -> None:
    model = Twice(in_a_row=False)
    x = torch.randn(40, 5, dtype=torch.float64)
    cut, back = half(model, x), half(model, x, calibration=[x], recover=EXACT)
    (row,) = fxprune.report(back).recovery
    assert (row.changed, row.left) == (("shared.weight",), {})
    assert cut.shared.in_features == 4
    with torch.no_grad():
        rows = torch.cat([torch.tanh(branch(x)) for branch in (back.left, back.right)])
        wanted = torch.cat([model.shared(torch.tanh(branch(x))) for branch in (model.left, model.right)])
        expected = torch.linalg.lstsq(torch.cat([rows, rows.new_ones(80, 1)], 1), wanted).solution.T
    torch.testing.assert_close(back.shared.weight.detach(), expected[:, :-1], rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(back.shared.bias.detach(), expected[:, -1], rtol=1e-7, atol=1e-9)


def test_a_layer_that_reads_itself_comes_closer() -> None:
    model = Twice(in_a_row=True)
    x = torch.randn(60, 5, dtype=torch.float64)
    cut, back = half(model, x), half(model, x, calibration=[x[:25], x[25:]], recover="reconstruct")
    (row,) = fxprune.report(back).recovery
    assert row.changed == ("shared.weight", "head.weight")
    assert row.error_after < row.error_before
    with torch.no_grad():
        before, after = ((net(x) - model(x)).square().mean() for net in (cut, back))
    assert after < before


class Tied(nn.Module):
    """The output layer's weight is that of the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.inner = nn.Embedding(7, 6), nn.Linear(6, 6)
        self.head = nn.Linear(6, 7, bias=False)
        self.head.weight = self.embedding.weight
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.inner(self.embedding(x))))


def test_a_weight_that_an_embedding_reads_too_stays() -> None:
    model = Tied()
    x = torch.randint(0, 7, (20, 3))
    back = half(model, x, calibration=[x], recover="reconstruct")
    (row,) = fxprune.report(back).recovery
    assert any("embedding" in reason for reason in row.left.values())
