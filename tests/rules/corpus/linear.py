"""Contractions: linear layers, matrix products of every rank, bilinear, outer and tensor products."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.rules.cases import IMAGE, TOKENS, VECTOR, Case, Layout, Op, module_case, op_case


class Weighted(nn.Module):
    """An op with a bare weight."""

    def __init__(self, op: Callable[[Tensor, Tensor], Tensor], *shape: int) -> None:
        super().__init__()
        self.op = op
        self.weight = nn.Parameter(torch.randn(shape))

    def forward(self, h: Tensor) -> Tensor:
        return self.op(h, self.weight)


class Biased(nn.Module):
    """An op with a bare weight and bias."""

    def __init__(self, op: Callable[[Tensor, Tensor, Tensor], Tensor], weight: tuple[int, ...], bias: int) -> None:
        super().__init__()
        self.op = op
        self.weight, self.bias = nn.Parameter(torch.randn(weight)), nn.Parameter(torch.randn(bias))

    def forward(self, h: Tensor) -> Tensor:
        return self.op(h, self.weight, self.bias)


class TwoInputs(nn.Module):
    """Two projections of one input that meet in a product."""

    def __init__(self, op: Callable[[Tensor, Tensor], Tensor], out: int, second: int = 8) -> None:
        super().__init__()
        self.op = op
        self.first, self.second, self.last = nn.Linear(5, 8), nn.Linear(5, second), nn.Linear(out, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.op(self.first(x), self.second(x)))


class Bilinear(nn.Module):
    """A bilinear layer of two projections."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.middle = nn.Linear(5, 8), nn.Linear(5, 6), nn.Bilinear(8, 6, 7)
        self.last = nn.Linear(7, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.middle(self.first(x), self.second(x)).relu())


class Tied(nn.Module):
    """One weight used forwards and, transposed, backwards."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.inner = nn.Linear(5, 8), nn.Linear(8, 6, bias=False)
        self.last = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.inner(self.first(x)).relu()
        return self.last(F.linear(hidden, self.inner.weight.t()))


class Twice(nn.Module):
    """A layer called two times: what it reads and what it makes are the same channels."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.inner, self.last = nn.Linear(5, 8), nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.inner(self.inner(self.first(x)).relu()))


class SharedModule(nn.Module):
    """One module under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(5, 8)
        self.second = self.first
        self.last = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.cat((self.first(x), self.second(x.flip(0)).tanh()), -1))


_BARE: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], tuple[int, ...]]] = {
    "linear": (F.linear, (6, 8)),
    "matmul": (torch.matmul, (8, 6)),
    "at operator": (lambda h, w: h @ w, (8, 6)),
    "transposed": (lambda h, w: h @ w.t(), (6, 8)),
    "T": (lambda h, w: h @ w.T, (6, 8)),
    "mT": (lambda h, w: h @ w.mT, (6, 8)),
    "reversed at": (lambda h, w: (w @ h.transpose(1, 2)).transpose(1, 2), (6, 8)),
    "batched weight": (lambda h, w: torch.matmul(h.unsqueeze(1), w).sum(1), (3, 8, 6)),
    "tensordot": (lambda h, w: torch.tensordot(h, w, dims=([2], [0])), (8, 6)),
    "tensordot count": (lambda h, w: torch.tensordot(h, w, dims=1), (8, 6)),
    "linalg matmul": (torch.linalg.matmul, (8, 6)),
    "inner": (lambda h, w: torch.inner(h, w), (6, 8)),
}
_VECTORS: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], tuple[int, ...]]] = {
    "vecdot": (lambda h, w: h * torch.linalg.vecdot(h, w)[:, None], (8,)),
    "kron": (lambda h, w: torch.kron(h, w), (1, 3)),
    "kron of ranks": (lambda h, w: torch.kron(w, h), (2,)),
    "mm": (torch.mm, (8, 6)),
    "mv": (lambda h, w: torch.mv(h, w).unsqueeze(-1) * w, (8,)),
    "dot with a vector": (lambda h, w: (h @ w).unsqueeze(-1) + h, (8,)),
    "linear to one": (lambda h, w: F.linear(h, w).unsqueeze(-1) + h, (8,)),
    "multi_dot": (lambda h, w: torch.linalg.multi_dot([h, w, w.t()]), (8, 6)),
    "chain_matmul": (lambda h, w: torch.chain_matmul(h, w, w.t()), (8, 6)),
}


def _outer(h: Tensor) -> Tensor:
    return torch.outer(torch.ones(h.shape[0], dtype=h.dtype), torch.ones(8, dtype=h.dtype)) * h


def _gram(h: Tensor) -> Tensor:
    return torch.bmm(h, h.transpose(1, 2)) @ h


def _addmm(h: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return torch.addmm(bias, h, weight, beta=0.5, alpha=2.0)


def _baddbmm(h: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return torch.baddbmm(bias, h, weight.expand(h.shape[0], -1, -1))


def _addbmm(h: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return torch.addbmm(bias, batch1=h, batch2=weight.expand(h.shape[0], -1, -1))


def _addr(h: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return torch.addr(h, h[:, 0], vec2=bias) + h @ weight


def _addmv(h: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return h + torch.addmv(h[:, 0], h, bias).unsqueeze(-1) @ weight


def _two(name: str, op: Callable[[Tensor, Tensor], Tensor], out: int, second: int = 8, **about: Any) -> Case:
    about.setdefault("free", ("first.weight", "second.weight"))
    return Case(f"linear/{name}", lambda: TwoInputs(op, out, second), TOKENS.sample, **about)


def _of_matrices(function: Callable[[Tensor], Tensor]) -> Op:
    """Each channel's own matrix; what comes first of the result, as real numbers."""

    def op(h: Tensor) -> Tensor:
        made = function(h @ h.mT / 10 + 2 * torch.eye(h.shape[-1], dtype=h.dtype))
        return (made if isinstance(made, Tensor) else made[0]).abs().to(h.dtype)

    return op


def _triangle(h: Tensor) -> Tensor:
    """An invertible triangular matrix over seven tokens."""
    return torch.eye(7, dtype=h.dtype) + torch.full((7, 7), 0.1, dtype=h.dtype).tril()


def _solved_vectors(h: Tensor) -> Tensor:
    """The solution for a vector of each sample."""
    matrices = h @ h.mT / 10 + torch.eye(h.shape[1], dtype=h.dtype)
    return h * torch.linalg.solve(matrices, h.sum(-1))[..., None]


_MATRICES: dict[str, Callable[[Tensor], Any]] = {
    **{name: getattr(torch, name) for name in "cholesky_inverse det inverse logdet".split()},
    **{name: getattr(torch, name) for name in "matrix_exp pinverse slogdet svd".split()},
    "matrix_power": lambda m: torch.matrix_power(m, 3),
    "orgqr": lambda m: torch.orgqr(m, m[..., 0]),
    **{f"linalg.{name}": getattr(torch.linalg, name) for name in "cholesky cholesky_ex cond det eig eigh".split()},
    **{f"linalg.{name}": getattr(torch.linalg, name) for name in "eigvals eigvalsh inv_ex lu lu_factor".split()},
    **{f"linalg.{name}": getattr(torch.linalg, name) for name in "matrix_exp matrix_rank pinv qr".split()},
    **{f"linalg.{name}": getattr(torch.linalg, name) for name in "slogdet svd svdvals".split()},
    "linalg.inv, keyword": lambda m: torch.linalg.inv(A=m),
    "linalg.matrix_power": lambda m: torch.linalg.matrix_power(m, 3),
    "linalg.householder_product": lambda m: torch.linalg.householder_product(m, m[..., 0]),
}
_SOLVED: dict[str, tuple[Layout, Op]] = {
    "columns": (TOKENS, lambda h: torch.linalg.solve(_triangle(h), h)),
    "rows": (TOKENS, lambda h: torch.linalg.solve(_triangle(h), h.mT, left=False).mT),
    "triangular": (TOKENS, lambda h: torch.linalg.solve_triangular(_triangle(h), h, upper=False)),
    "cholesky": (TOKENS, lambda h: torch.cholesky_solve(h, _triangle(h))),
    "vectors": (TOKENS, _solved_vectors),
    "each channel's": (IMAGE, lambda h: torch.linalg.solve(h @ h.mT + torch.eye(h.shape[-1], dtype=h.dtype), h)),
}

CASES = [
    *(op_case(f"matrices/{n}", IMAGE, _of_matrices(op), fixed_size=True) for n, op in _MATRICES.items()),
    *(op_case(f"solved/{n}", layout, op, fixed_size=True) for n, (layout, op) in _SOLVED.items()),
    module_case("linear/module", TOKENS, lambda: nn.Linear(8, 6), free=("first.weight", "middle.weight")),
    module_case("linear/no bias", TOKENS, lambda: nn.Linear(8, 6, bias=False), free=("first.weight", "middle.weight")),
    *(
        module_case(f"linear/{n}", TOKENS, lambda op=op, shape=shape: Weighted(op, *shape))
        for n, (op, shape) in _BARE.items()
    ),
    *(
        module_case(f"linear/{n}", VECTOR, lambda op=op, shape=shape: Weighted(op, *shape))
        for n, (op, shape) in _VECTORS.items()
    ),
    module_case(
        "linear/functional with bias",
        TOKENS,
        lambda: Biased(F.linear, (6, 8), 6),
        free=("first.weight", "middle.weight"),
    ),
    module_case("linear/addmm", VECTOR, lambda: Biased(_addmm, (8, 6), 6), free=("first.weight", "middle.weight:1")),
    module_case(
        "linear/baddbmm", TOKENS, lambda: Biased(_baddbmm, (8, 6), 6), free=("first.weight", "middle.weight:1")
    ),
    module_case(
        "linear/addmm, keywords",
        VECTOR,
        lambda: Biased(lambda h, w, b: torch.addmm(b, mat1=h, mat2=w), (8, 6), 6),
        free=("first.weight", "middle.weight:1"),
    ),
    module_case("linear/addbmm", TOKENS, lambda: Biased(_addbmm, (8, 6), 6), free=("first.weight", "middle.weight:1")),
    module_case("linear/addr", VECTOR, lambda: Biased(_addr, (8, 8), 8)),
    module_case("linear/addmv", VECTOR, lambda: Biased(_addmv, (1, 8), 8)),
    op_case("linear/outer", VECTOR, _outer),
    op_case("linear/ger", VECTOR, lambda h: torch.ger(h.sum(1), h.new_ones(h.shape[1])) + h),
    op_case("linear/bmm of activations", TOKENS, _gram),
    _two(
        "product of activations",
        lambda a, b: a.transpose(1, 2) @ b,
        8,
        free=("second.weight",),
        pinned=("first.weight",),
    ),
    _two("product over channels", lambda a, b: (a @ b.transpose(1, 2)) @ b, 8),
    _two("outer product by broadcasting", lambda a, b: (a.unsqueeze(-1) * b.unsqueeze(-2)).flatten(2), 48, 6),
    Case("linear/bilinear", Bilinear, TOKENS.sample, ("first.weight", "second.weight", "middle.weight")),
    Case("linear/tied and transposed", Tied, TOKENS.sample, ("first.weight", "inner.weight", "inner.weight:1")),
    Case("linear/called twice", Twice, TOKENS.sample, ("first.weight", "inner.weight", "inner.weight:1")),
    Case("linear/one module, two names", SharedModule, TOKENS.sample),
    op_case("linear/of a flattened image", IMAGE, lambda h: h.flatten(1), fixed_size=True),
]
