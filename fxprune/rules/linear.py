"""Contractions: linear layers, matrix products, attention."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from math import gcd

import torch
from torch import nn

from fxprune.axes.expressions import ONE, Axis, concat, product
from fxprune.errors import AnalysisError
from fxprune.rules.call import Axes, Call, is_tensor
from fxprune.rules.pointwise import broadcast
from fxprune.rules.registry import module_form, repairs, rule
from fxprune.rules.repair import Repair


@rule("linear", "input, weight, bias=None")
def linear(call: Call) -> None:
    axes, weight = call.tensor("input"), call.tensor("weight")
    if len(weight) == 1:
        call.unify(axes[-1], weight[0])
        call.role("weight", "in")
        call.result = axes[:-1]
        return
    out, inner = weight
    call.stores(out_features=out, in_features=inner)
    call.unify(axes[-1], inner)
    call.role("weight", "out", "in")
    if call.has("bias"):
        _bias(call, call.tensor("bias"), out)
    call.result = (*axes[:-1], out)
    call.macs((*axes[:-1], out, inner))


def _bias(call: Call, bias: Axes, out: Axis) -> None:
    if bias[-1].size == out.size:
        call.unify(bias[-1], out)
        call.role("bias", "scale")


module_form(nn.Linear, "linear", "weight bias")


def contract(call: Call, left: Axis, right: Axis) -> None:
    """Tie the axes that are summed over; a sum over two activations is a crossing."""
    call.unify(left, right)
    call.crosses((left,))


def matrix_product(call: Call, left: Axes, right: Axes) -> Axes:
    """The axes of ``left @ right`` by torch's rules for vectors and batches; counts its MACs."""
    rows: Axes = left[-2:-1] if len(left) > 1 else ()
    columns: Axes = right[-1:] if len(right) > 1 else ()
    contract(call, left[-1], right[-2] if len(right) > 1 else right[0])
    batch = broadcast(call, [left[:-2], right[:-2]]) if max(len(left), len(right)) > 2 else ()
    call.macs((*batch, *rows, *columns, left[-1]))
    return (*batch, *rows, *columns)


@rule("matmul mm bmm dot vdot mv spmm _sparse_mm", "input, other")
def matmul(call: Call) -> None:
    call.result = matrix_product(call, call.tensor("input"), call.tensor("other"))


@rule("addmm baddbmm addmv", "input, mat1, mat2")
def addmm(call: Call) -> None:
    result = matrix_product(call, call.tensor("mat1"), call.tensor("mat2"))
    call.result = broadcast(call, [result, call.tensor("input")])


@rule("addbmm", "input, mat1, mat2")
def addbmm(call: Call) -> None:
    batch, *rest = matrix_product(call, call.tensor("mat1"), call.tensor("mat2"))
    call.crosses((batch,))
    call.result = broadcast(call, [tuple(rest), call.tensor("input")])


@rule("addr", "input, vec1, vec2")
def addr(call: Call) -> None:
    outer_product = (*call.tensor("vec1"), *call.tensor("vec2"))
    call.result = broadcast(call, [outer_product, call.tensor("input")])


@rule("bilinear", "input1, input2, weight, bias=None")
def bilinear(call: Call) -> None:
    first, second, weight = call.tensor("input1"), call.tensor("input2"), call.tensor("weight")
    call.stores(out_features=weight[0], in1_features=weight[1], in2_features=weight[2])
    call.unify(first[-1], weight[1])
    call.unify(second[-1], weight[2])
    call.role("weight", "out", "in", "in")
    if call.has("bias"):
        _bias(call, call.tensor("bias"), weight[0])
    call.result = (*broadcast(call, [first[:-1], second[:-1]]), weight[0])
    call.macs((*call.result, weight[1], weight[2]))


module_form(nn.Bilinear, "bilinear", "weight bias")


@rule("scaled_dot_product_attention", "query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None")
def attention(call: Call) -> None:
    query, key, value = call.tensor("query"), call.tensor("key"), call.tensor("value")
    contract(call, query[-1], key[-1])
    contract(call, key[-2], value[-2])
    grouped = bool(call.number("enable_gqa"))
    batch = broadcast(call, [query[:-2], key[:-2], value[:-2]]) if not grouped else _grouped(call, query, key, value)
    if call.has("attn_mask"):
        broadcast(call, [(*batch, query[-2], key[-2]), call.tensor("attn_mask")])
    call.result = (*batch, query[-2], value[-1])
    call.macs((*batch, query[-2], key[-2], query[-1]))
    call.macs((*batch, query[-2], key[-2], value[-1]))


def _grouped(call: Call, query: Axes, key: Axes, value: Axes) -> Axes:
    """Each key head serves several adjacent query heads: query heads are key heads times that number."""
    call.unify(key[-3], value[-3])
    shares = query[-3].size // key[-3].size
    heads = call.solver.factor(query[-3], [key[-3].size, shares], call.cause) if shares > 1 else [query[-3], ONE]
    call.unify(heads[0], key[-3])
    return (*broadcast(call, [query[:-3], key[:-3], value[:-3]]), query[-3])


@repairs("scaled_dot_product_attention")
def repair_attention(repair: Repair) -> None:
    """The softmax scale keeps the value it had at full width."""
    width = repair.call.tensor("query")[-1]
    if repair.arguments.get("scale") is None and repair.shrinks(width):
        repair.set("scale", width.size**-0.5)


@rule("outer ger", "input, other")
def outer(call: Call) -> None:
    call.result = (*call.tensor("input"), *call.tensor("other"))


@rule("inner", "input, other")
def inner(call: Call) -> None:
    left, right = call.tensor("input"), call.tensor("other")
    contract(call, left[-1], right[-1])
    call.result = (*left[:-1], *right[:-1])
    call.macs((*call.result, left[-1]))


@rule("_grouped_mm", "input, mat2, offs=None, bias=None, out_dtype=None")
def grouped_mm(call: Call) -> None:
    """Rows (n, inner), sorted by group, times the matrix (inner, outer) of their group; or one batch of rows per group.

    A group is removed together with its entry of ``offs``; a proof shows that it has no rows.
    """
    rows, matrices = call.tensor("input"), call.tensor("mat2")
    if len(matrices) != 3 or call.has("bias"):
        raise AnalysisError("groups along the sum, or a bias")
    (*front, inner), (groups, other, outer) = rows, matrices
    (ends,) = call.tensor("offs") if call.has("offs") else front[:1]
    call.unify(groups, ends)
    call.ledger.selected.append(groups)
    call.unify(inner, other)
    for axis in (inner, outer):  # the kernel needs multiples of 16 bytes, in half precision too
        step = gcd(axis.size, 8)
        call.unify(axis, product((call.fresh(axis.size // step), call.fixed(step, "the kernel takes multiples of it"))))
    call.result = (*front, outer)
    call.macs((*front, inner, outer))


@rule("linalg_vecdot", "input, other, dim=-1")
def vecdot(call: Call) -> None:
    axes = broadcast(call, [call.tensor("input"), call.tensor("other")])
    dim = call.dim(ndim=len(axes))
    call.crosses((axes[dim],))
    call.result = (*axes[:dim], *axes[dim + 1 :])


@rule("kron", "input, other")
def kron(call: Call) -> None:
    left, right = call.tensor("input"), call.tensor("other")
    rank = max(len(left), len(right))
    left, right = ((ONE,) * (rank - len(axes)) + axes for axes in (left, right))
    call.result = tuple(product(pair) for pair in zip(left, right, strict=True))


@rule("linalg_multi_dot chain_matmul", "*tensors")
def multi_dot(call: Call) -> None:
    result, *rest = call.tensors("tensors")
    for factor in rest:
        result = matrix_product(call, result, factor)
    call.result = result


_WHOLE = "each entry of the result is made of the whole matrix"
_OF_INPUT = "cholesky_inverse det inverse logdet matrix_exp matrix_power orgqr pinverse slogdet svd"
_OF_A = """
    cholesky cholesky_ex cond det eig eigh eigvals eigvalsh householder_product inv inv_ex lu lu_factor matrix_exp
    matrix_power matrix_rank pinv qr slogdet svd svdvals
"""


@rule(_OF_INPUT, "input")
@rule(" ".join(f"linalg_{name}" for name in _OF_A.split()), "A")
def of_matrices(call: Call) -> None:
    """The last two dims are a matrix; each of a batch is treated by itself, with its own part of other operands."""
    first, *others = (call.tensor(name) for name, value in call.arguments.items() if is_tensor(value))
    rank = len(first) - 2
    call.pin_all((axis for axes in (first, *others) for axis in axes[rank:]), _WHOLE)
    batch = broadcast(call, [axes[:rank] for axes in (first, *others)])

    def of(value: torch.Tensor) -> Axes:
        return (*batch, *(call.fixed(size, _WHOLE) for size in value.shape[len(batch) :]))

    call.result = of(call.value) if isinstance(call.value, torch.Tensor) else [of(value) for value in call.value]


@rule("linalg_solve", "A, B, left=True")
@rule("linalg_solve_triangular", "A, B, upper, left=True")
@rule("cholesky_solve", "input, input2, upper=False")
def solve(call: Call) -> None:
    """Each column of ``B``, or each row if not ``left``, has a solution of its own; ``B`` may be vectors."""
    matrix, right = (call.tensor(name) for name in (("A", "B") if "A" in call.arguments else ("input2", "input")))
    vectors = len(call.output_shape) < len(matrix)
    rows, columns = (*right, ONE)[-2:] if vectors else right[-2:]
    batch = broadcast(call, [matrix[:-2], right[: -1 if vectors else -2]])
    left = call.arguments.get("left", True)
    call.pin_all((*matrix[-2:], rows if left else columns), _WHOLE)
    call.result = (*batch, rows) if vectors else (*batch, rows, columns)


Labels = tuple[str, ...]


def _operand_labels(term: str, rank: int) -> Labels:
    """The letters of one operand; dims in an ellipsis are numbered from the last, because they broadcast."""
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


@rule("embedding", "input, weight")
def embedding(call: Call) -> None:
    # torch.embedding takes the two in the opposite order.
    table, numbers = ("input", "weight") if call.node.target is torch.embedding else ("weight", "input")
    rows, channels = call.tensor(table)
    call.pin(rows, "its rows are looked up by number")
    call.role(table, "in", "out")
    call.stores(embedding_dim=channels)
    call.result = (*call.tensor(numbers), channels)


@rule("embedding_bag", "input, weight")
def embedding_bag(call: Call) -> None:
    """The sum, mean or maximum of the rows of each bag."""
    rows, channels = call.tensor("weight")
    call.pin(rows, "its rows are looked up by number")
    for name in ("input", "offsets", "per_sample_weights"):
        if call.has(name):
            call.pin_all(call.tensor(name), "a bag adds up all rows that it numbers")
    call.role("weight", "in", "out")
    call.stores(embedding_dim=channels)
    call.result = (call.fixed(call.output_shape[0], "it numbers the bags"), channels)


@rule("one_hot", "input, num_classes=-1")
def one_hot(call: Call) -> None:
    """One class for each element that the input's values index, and possibly classes that never occur."""
    classes, numbered = call.output_shape[-1], call.numbered_by(call.arguments["input"])
    last = call.fixed(classes, "its elements are classes by number")
    if numbered is not None and call.arguments["num_classes"] == classes >= numbered.size:
        last = concat((numbered, call.fixed(classes - numbered.size, "nothing is numbered so")))
    else:
        call.understood.clear()
    call.result = (*call.tensor("input"), last)


@repairs("one_hot")
def repair_one_hot(repair: Repair) -> None:
    last = repair.call.result[-1]
    if repair.shrinks(last):
        repair.set("num_classes", repair.size(last))


module_form(nn.Embedding, "embedding", "weight")
module_form(nn.EmbeddingBag, "embedding_bag", "weight")
