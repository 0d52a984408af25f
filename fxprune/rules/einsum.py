"""einsum and tensordot: one letter, one axis."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from fxprune.axes.expressions import Axis
from fxprune.rules.call import Axes, Call
from fxprune.rules.registry import rule

Labels = tuple[str, ...]


def _operand_labels(term: str, rank: int) -> Labels:
    """The letters of one operand; dims under an ellipsis are numbered from the last, as they broadcast."""
    front, dots, back = term.partition("...")
    hidden = rank - len(front) - len(back) if dots else 0
    return (*front, *(f".{n}" for n in range(hidden, 0, -1)), *back)


def _output_labels(output: str | None, operands: Sequence[Labels]) -> Labels:
    """The letters after the arrow; without one, the ellipsis and then the letters that occur once, in order."""
    counts = Counter(label for labels in operands for label in labels)
    hidden = sorted((label for label in counts if label.startswith(".")), reverse=True)
    if output is None:
        return (*hidden, *sorted(label for label, n in counts.items() if n == 1 and not label.startswith(".")))
    front, dots, back = output.partition("...")
    return (*front, *(hidden if dots else ()), *back)


@rule("einsum", "equation, *operands")
def einsum(call: Call) -> None:
    equation = str(call.arguments["equation"]).replace(" ", "")
    operands = call.tensors("operands")
    left, arrow, right = equation.partition("->")
    labels = [_operand_labels(term, len(axes)) for term, axes in zip(left.split(","), operands, strict=True)]
    known: dict[str, Axis] = {}
    for names, axes in zip(labels, operands, strict=True):
        for name, axis in zip(names, axes, strict=True):
            if name not in known or known[name].size == 1:
                known[name] = axis
            elif axis.size != 1:
                call.unify(known[name], axis)
    output = _output_labels(right if arrow else None, labels)
    call.crosses(axis for name, axis in known.items() if name not in output)
    call.result = tuple(known[name] for name in output)
    if len(operands) > 1:
        call.macs(known.values())


@rule("tensordot", "a, b, dims=2")
def tensordot(call: Call) -> None:
    left, right = call.tensor("a"), call.tensor("b")
    dims = call.number("dims")
    if isinstance(dims, int):
        ours, theirs = tuple(range(len(left) - dims, len(left))), tuple(range(dims))
    else:
        ours, theirs = (tuple(d % len(axes) for d in given) for given, axes in zip(dims, (left, right), strict=True))
    summed = tuple(left[d] for d in ours)
    call.unify_all(summed, [right[d] for d in theirs])
    call.crosses(summed)
    call.result = (*_without(left, ours), *_without(right, theirs))
    call.macs((*call.result, *summed))


def _without(axes: Axes, dims: Sequence[int]) -> Axes:
    return tuple(axis for d, axis in enumerate(axes) if d not in dims)
