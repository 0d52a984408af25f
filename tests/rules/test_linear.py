"""Products with sparse matrices, beside a narrow network built from scratch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.errors import CaptureError, ModelError, SampleError

MATRIX = (torch.rand(6, 6, generator=torch.Generator().manual_seed(0)) > 0.5).float()
PRODUCTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "torch.sparse.mm": lambda a, h: torch.sparse.mm(a.to_sparse(), h),
    "torch.spmm": lambda a, h: torch.spmm(a.to_sparse(), h),
    "an operator": lambda a, h: a.to_sparse().coalesce() @ h,
    "rows compressed": lambda a, h: torch.mm(a.to_sparse_csr(), h),
}


class Neighbours(nn.Module):
    """Two layers over the nodes of a graph, each followed by a sum over neighbours."""

    def __init__(self, product: Callable[[Tensor, Tensor], Tensor], width: int = 8) -> None:
        super().__init__()
        self.first, self.second, self.product = nn.Linear(5, width), nn.Linear(width, 3), product

    def forward(self, x: Tensor, matrix: Tensor) -> Tensor:
        return self.product(matrix, self.second(self.product(matrix, self.first(x)).relu()))


@pytest.mark.parametrize("name", PRODUCTS)
def test_the_width_behind_a_sparse_product_is_cut(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = Neighbours(PRODUCTS[name]).eval(), torch.randn(6, 5)
    pruned = fxprune.remove(model, (x, MATRIX), {"first": [1, 4, 6]})
    narrow = Neighbours(PRODUCTS[name], 5).eval()
    narrow.load_state_dict(pruned.state_dict())
    torch.testing.assert_close(pruned(x, MATRIX), narrow(x, MATRIX))
    assert torch.equal(narrow.first.weight, model.first.weight[[0, 2, 3, 5, 7]])
    fxprune.save(pruned, tmp_path / "net")
    assert torch.equal(fxprune.load(tmp_path / "net")(x, MATRIX), pruned(x, MATRIX))


def test_sparse_tensors_from_outside_are_refused() -> None:
    sparse, x = MATRIX.to_sparse(), torch.randn(6, 5)
    with pytest.raises(SampleError, match="only dense"):
        fxprune.analyze(Neighbours(torch.sparse.mm), (x, sparse))
    with pytest.raises(CaptureError, match="hold it dense"):
        fxprune.analyze(Neighbours(lambda _, h: torch.sparse.mm(sparse, h)), (x, MATRIX))
    model = Neighbours(lambda _, h: torch.sparse.mm(sparse, h))
    model.register_buffer("matrix", sparse)
    with pytest.raises(ModelError, match="hold it dense"):
        fxprune.analyze(model, (x, MATRIX))
