"""einsum in its explicit, implicit, ellipsis, repeated-letter and sublist forms."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.rules.cases import IMAGE, TOKENS, Case, module_case, op_case


class Contracted(nn.Module):
    """einsum with a bare weight."""

    def __init__(self, equation: str, *shape: int) -> None:
        super().__init__()
        self.equation = equation
        self.weight = nn.Parameter(torch.randn(shape))

    def forward(self, h: Tensor) -> Tensor:
        return torch.einsum(self.equation, h, self.weight)


class Heads(nn.Module):
    """Attention written with einsum and a scale that is a number of the full width."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.key, self.last = nn.Linear(5, 8), nn.Linear(5, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        q = self.first(x).unflatten(-1, (2, 4))
        k = self.key(x).unflatten(-1, (2, 4))
        scores = torch.einsum("b i h d, b j h d -> b h i j", q, k) * q.shape[-1] ** -0.5
        return self.last(torch.einsum("bhij,bjhd->bihd", scores.tanh(), k).flatten(2))


class Weighed(nn.Module):
    """Three operands at once."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, 8), nn.Linear(6, 4)
        self.left, self.right = nn.Parameter(torch.randn(8, 3)), nn.Parameter(torch.randn(3, 6))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.einsum("btc,cr,ro->bto", self.first(x), self.left, self.right))


_FORMS = {
    "explicit": ("btc,co->bto", (8, 6)),
    "spaces": (" b t c , c o -> b t o ", (8, 6)),
    "capitals": ("bTc,cO->bTO", (8, 6)),
    "ellipsis": ("...c,co->...o", (8, 6)),
    "ellipsis on both": ("...tc,...co->...to", (8, 6)),
    "permuted": ("btc,oc->bto", (6, 8)),
    "scaled": ("btc,c->btc", (8,)),
    "implicit": ("btc,cz->btz", (8, 6)),
    "no arrow": ("btc,cz", (8, 6)),
    "no arrow with ellipsis": ("...c,cz", (8, 6)),
    "diagonal of the weight": ("btc,cc->btc", (8, 8)),
}

CASES = [
    *(module_case(f"einsum/{n}", TOKENS, lambda e=e, s=s: Contracted(e, *s)) for n, (e, s) in _FORMS.items()),
    module_case(
        "einsum/image", IMAGE, lambda: Contracted("bchw,oc->bohw", 6, 8), free=("first.weight", "middle.weight")
    ),
    op_case("einsum/gram", TOKENS, lambda h: torch.einsum("btc,buc->btu", h, h) @ h),
    op_case("einsum/one operand", TOKENS, lambda h: torch.einsum("btc->bct", h).transpose(1, 2)),
    op_case("einsum/summed", TOKENS, lambda h: torch.einsum("btc->bc", h)),
    op_case("einsum/list of operands", TOKENS, lambda h: torch.einsum("btc,btc->btc", [h, h.tanh()])),
    op_case("einsum/sublists", TOKENS, lambda h: torch.einsum(h, [0, 1, 2], h.tanh(), [0, 1, 2], [0, 1, 2])),
    Case("einsum/attention", Heads, TOKENS.sample, ("first.weight", "key.weight"), resized=TOKENS.resized),
    Case("einsum/three operands", Weighed, TOKENS.sample, ("first.weight", "left:1"), resized=TOKENS.resized),
]
