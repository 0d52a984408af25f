"""Matrix products over the positions that both operands keep.

The NaNs of the operands show which positions are kept. If one operand lost a position that the other kept, the narrower
network would pair the wrong rows and columns: an error, unless the position adds nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fxprune.proof.nan_carrying.calls import Handler, OperatorCall, filled, gone, with_nan
from fxprune.proof.nan_carrying.structural import fill_slices_with_nan, lost_slices


def product(left: Tensor, right: Tensor, call: OperatorCall) -> Tensor:
    """``left @ right`` for shapes [b, n, k] and [b, k, m], without the removed positions of k.

    An output entry is removed if its row of ``left`` or its column of ``right`` is removed as a whole. Raises
    ProofError: the operands of a kept output entry lost different positions.
    """
    if left.shape[-1] == 0:
        return torch.bmm(left, right)
    if len(right) > 1 and right.stride(0) == 0:
        # One matrix for the whole batch: an expanded view must not be copied once per row.
        return product(left.flatten(0, 1)[None], right[:1], call).reshape(*left.shape[:2], right.shape[-1])
    if len(left) > 1 and left.stride(0) == 0:
        return product(right.mT, left.mT, call).mT
    result = _product_by_slices(left, right)
    return _product_by_entries(left, right, call) if result is None else result


def _product_by_slices(left: Tensor, right: Tensor) -> Tensor | None:
    """The product if both lost only whole slices, and the same ones of the contracted dim; else None."""
    ours = lost_slices(left)
    theirs = None if ours is None else lost_slices(right)
    if ours is None or theirs is None or not _alike(ours[2], theirs[1]):
        return None
    result = _times(filled(left), filled(right))
    return fill_slices_with_nan(fill_slices_with_nan(result, (*ours[:2], None)), (theirs[0], None, theirs[2]))


def _alike(left: Tensor | None, right: Tensor | None) -> bool:
    if left is None or right is None:
        return left is right
    return torch.equal(left, right)


def _times(left: Tensor, right: Tensor) -> Tensor:
    return torch.mm(left[0], right[0])[None] if len(left) == 1 else torch.bmm(left, right)


def _product_by_entries(left: Tensor, right: Tensor, call: OperatorCall) -> Tensor:
    left_gone, right_gone = gone(left), gone(right)
    rows, columns = left_gone.all(-1, keepdim=True), right_gone.all(-2, keepdim=True)
    kept_left, kept_right = filled(left), filled(right)
    _check_positions(kept_left, kept_right, (left_gone & ~rows, right_gone & ~columns), (rows, columns), call)
    return with_nan(_times(kept_left, kept_right), rows | columns)


def _check_positions(
    left: Tensor, right: Tensor, removed: tuple[Tensor, Tensor], dead: tuple[Tensor, Tensor], call: OperatorCall
) -> None:
    """Raise if a kept row and a kept column pair a removed entry with a kept one that is not zero."""
    (left_gone, right_gone), (rows, columns) = removed, dead
    in_all = (left_gone | rows).all(1).all(0) & (right_gone | columns).all(2).all(0)
    doubtful = (left_gone.any(1).any(0) | right_gone.any(2).any(0)) & ~in_all
    if not bool(doubtful.any()):
        return
    index = doubtful.nonzero().flatten()
    left_only = _pairs(left_gone[..., index], (right[:, index] != 0) & ~right_gone[:, index])
    right_only = _pairs((left[..., index] != 0) & ~left_gone[..., index], right_gone[:, index])
    live = ~(rows | columns)
    if bool((left_only & live).any()) and not _is_free(right, right_gone, 1, left_gone.any(1).any(0)):
        raise call.mismatch(_mismatch(index, left_gone, right_gone))
    if bool((right_only & live).any()) and not _is_free(left, left_gone, 2, right_gone.any(2).any(0)):
        raise call.mismatch(_mismatch(index, left_gone, right_gone))


def _pairs(left: Tensor, right: Tensor) -> Tensor:
    return torch.bmm(left.float(), right.float()) > 0


def _is_free(tensor: Tensor, removed: Tensor, dim: int, lost: Tensor) -> bool:
    """Whether the operand ``tensor`` lost nothing, and its slices at the other's ``lost`` positions copy kept ones."""
    return not bool(removed.any()) and has_copies(tensor, dim, lost)


def has_copies(tensor: Tensor, dim: int, lost: Tensor) -> bool:
    """Whether every slice along ``dim`` at a ``lost`` position equals a kept one, as in an expanded dim."""
    slices = tensor.movedim(dim, 0).reshape(tensor.shape[dim], -1)
    left = slices[~lost]
    return all(_is_among(row, left) for row in slices[lost])


def _is_among(row: Tensor, rows: Tensor) -> bool:
    # A few columns rule out most rows, so few rows are compared in full.
    alike = rows[(rows[:, :16] == row[:16]).all(1)]
    return any(torch.equal(row, other) for other in alike)


def _mismatch(index: Tensor, left_gone: Tensor, right_gone: Tensor) -> str:
    left = int(left_gone.any(1).any(0)[index].sum())
    right = int(right_gone.any(2).any(0)[index].sum())
    return (
        f"its operands lost different positions of the contracted dim (size {left_gone.shape[-1]}): among the first "
        f"doubtful ones {index[:8].tolist()}, {left} are removed from the left and {right} from the right operand only"
    )


def _matmul(left: str, right: str, *, added: bool = False, summed: bool = False) -> Handler:
    """Products of vectors, matrices or batches of them, the arguments of these names.

    ``added``: the result is scaled and added to ``self``; ``summed``: over the batch.
    """

    def handler(call: OperatorCall) -> Any:
        a, b = call[left], call.get(right, call.get("other"))
        if call.func._schema.name == "aten::vdot":
            a = a.conj()
        rows = a if a.ndim > 1 else a[None]
        columns = b if b.ndim > 1 else b[:, None]
        batches = rows.ndim > 2
        result = product(rows, columns, call) if batches else product(rows[None], columns[None], call)[0]
        result = result.sum(0) if summed else result
        result = result if b.ndim > 1 else result[..., 0]
        result = result if a.ndim > 1 else result[0]
        return _scaled(call, result) if added else result

    return handler


def by_groups(
    left: Tensor, right: Tensor, offs: Tensor | None, times: Callable[[Tensor, Tensor], Tensor] = torch.mm
) -> Tensor:
    """``torch._grouped_mm``, whose kernels support few types; ``offs``: ends of groups of rows or summed positions."""
    if offs is None:
        return torch.stack([times(a, b) for a, b in zip(left, right, strict=True)])
    ends = offs.tolist()
    groups = [slice(start, end) for start, end in zip([0, *ends], ends, strict=False)]
    if left.dim() == right.dim():
        return torch.stack([times(left[:, group], right[group]) for group in groups])
    filled = [(group, matrix) for group, matrix in zip(groups, right, strict=True) if group.stop > group.start]
    parts = [times(left[group], matrix) for group, matrix in filled]
    rest = left.new_zeros(len(left) - ends[-1], right.shape[-1])  # rows of no group, which the kernel leaves unwritten
    return torch.cat([*parts, rest])


def _grouped_mm(call: OperatorCall) -> Any:
    def times(left: Tensor, right: Tensor) -> Tensor:
        return product(left[None], right[None], call)[0]

    return by_groups(call["self"], call["mat2"], call.get("offs"), times)


def _scaled(call: OperatorCall, result: Tensor) -> Tensor:
    """``beta * self + alpha * result``; a ``beta`` of 0 ignores ``self``, even its NaN, as in torch."""
    alpha, beta = call.get("alpha", 1), call.get("beta", 1)
    if alpha != 1:
        result = alpha * result
    if beta != 0:
        result = result + (call["self"] if beta == 1 else beta * call["self"])
    return result


def _addr(call: OperatorCall) -> Any:
    return _scaled(call, call["vec1"][:, None] * call["vec2"])


def _linear(call: OperatorCall) -> Any:
    x, weight, bias = call["input"], call["weight"], call.get("bias")
    result = product(x.reshape(1, -1, x.shape[-1]), weight.t()[None], call)[0]
    result = result.reshape(*x.shape[:-1], weight.shape[0])
    return result if bias is None else result + bias


def _trilinear(call: OperatorCall) -> Any:
    """``sum(i1 * i2 * i3)``, by which torch computes nn.Bilinear."""
    factors = []
    for number in (1, 2, 3):
        factor = call[f"i{number}"]
        for dim in sorted(call[f"expand{number}"]):
            factor = factor.unsqueeze(dim)
        factors.append(factor)
    terms = factors[0] * factors[1] * factors[2]
    dims = tuple(call["sumdim"])
    removed = gone(terms)
    return with_nan(terms.masked_fill(removed, 0).sum(dims), removed.all(dim=dims)) if dims else terms


CONTRACTIONS: dict[str, Handler] = {
    **dict.fromkeys(("mm", "bmm"), _matmul("self", "mat2")),
    "_grouped_mm": _grouped_mm,
    "mv": _matmul("self", "vec"),
    **dict.fromkeys(("dot", "vdot"), _matmul("self", "tensor")),
    "addmm": _matmul("mat1", "mat2", added=True),
    "addmv": _matmul("mat", "vec", added=True),
    "baddbmm": _matmul("batch1", "batch2", added=True),
    "addbmm": _matmul("batch1", "batch2", added=True, summed=True),
    "addr": _addr,
    "linear": _linear,
    "_trilinear": _trilinear,
}
