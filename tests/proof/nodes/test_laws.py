"""What a law accepts holds for values, whatever is claimed of what an op reads and gives; what is true is accepted."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from fxprune.proof.masking import removed_entries, select
from fxprune.proof.nodes.claims import Claim, Kept
from fxprune.proof.nodes.drawing import Patterns
from fxprune.proof.nodes.laws import Reading, Verdict, judged

EVEN, ODD, HALF = torch.tensor([0, 2]), torch.tensor([1, 3]), torch.tensor([2, 3])
INDICES = (torch.tensor([0, 2]), torch.tensor([1, 3]), torch.tensor([2, 0]))
SHAPE = (2, 4, 4, 4)


def one_dim_each(ndim: int) -> list[Kept]:
    """Nothing goes, or entries of one dim."""
    found: list[Kept] = [()]
    found += [tuple(index if n == dim else None for n in range(ndim)) for dim in range(ndim) for index in INDICES]
    return found


def fits(shape: Sequence[int], kept: Kept) -> bool:
    return len(kept) <= len(shape) and all(k is None or int(k.max()) < n for n, k in zip(shape, kept, strict=False))


def drawn(shape: Sequence[int], kept: Kept, silent: bool, seed: int) -> tuple[Tensor, Tensor]:
    full = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) + 0.5
    for dim, index in removed_entries(full, kept) if silent else ():
        full.index_fill_(dim, index, 0)
    return full, select(full, kept)


def read(op: Any, values: Sequence[tuple[Tensor, Tensor]], kepts: Sequence[Kept], kept: Kept, silent: bool) -> Reading:
    """A call of ``op``, which takes nodes and gives a call, in two graphs that are alike."""
    graphs, placeholders, calls = [fx.Graph(), fx.Graph()], [], []
    for graph in graphs:
        inputs = [graph.placeholder(f"x{number}") for number in range(len(values))]
        placeholders.append(inputs)
        calls.append(op(graph, *inputs))
    claims = {
        node: Claim(pair, own, domain="positive", silent=silent)
        for node, pair, own in zip(placeholders[0], values, kepts, strict=True)
    }
    images = dict(zip(placeholders[0], placeholders[1], strict=True))
    owners = {image: node for node, image in images.items()}
    patterns = Patterns(torch.float32, torch.device("cpu"), 0)
    return Reading(calls[0], calls[1], kept, claims, owners, images, None, {}, patterns)


def function(target: Any, *args: Any, **kwargs: Any) -> Callable[..., fx.Node]:
    return lambda graph, *nodes: graph.call_function(target, (*nodes, *args), kwargs)


def method(name: str, *args: Any, **kwargs: Any) -> Callable[..., fx.Node]:
    return lambda graph, *nodes: graph.call_method(name, (*nodes, *args), kwargs)


def called(node: fx.Node, values: Sequence[Tensor]) -> Any:
    inputs = dict(zip([n for n in node.graph.nodes if n.op == "placeholder"], values, strict=True))
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), inputs.get)
    if node.op == "call_method":
        return getattr(args[0], str(node.target))(*args[1:], **kwargs)
    return node.target(*args, **kwargs)  # type: ignore[operator]


ONE: dict[str, Callable[..., fx.Node]] = {
    "relu": function(F.relu),
    "sigmoid": method("sigmoid"),
    "exp": function(torch.exp),
    "softmax": method("softmax", 1),
    "log_softmax": function(F.log_softmax, dim=-1),
    "cumsum": method("cumsum", 2),
    "normalize": function(F.normalize),
    "mean": method("mean", (2, 3)),
    "sum": method("sum", 1, True),
    "amax": function(torch.amax, dim=-1),
    "flip": function(torch.flip, (2,)),
    "flip of two dims": method("flip", 2, 3),
    "roll": function(torch.roll, (1,), (1,)),
    "layer_norm": function(F.layer_norm, (4, 4)),
    "pad": function(F.pad, (1, 0)),
    "pad channels": function(F.pad, (0, 0, 0, 0, 1, 1)),
    "interpolate": function(F.interpolate, scale_factor=2),
    "max_pool2d": function(F.max_pool2d, 2),
    "adaptive_avg_pool2d": function(F.adaptive_avg_pool2d, 1),
    "transpose": method("transpose", 1, 3),
    "permute": method("permute", 0, 2, 3, 1),
    "flatten": method("flatten", 2),
    "expand": method("expand", 3, -1, -1, -1, -1),
    "unsqueeze": method("unsqueeze", 2),
    "contiguous": method("contiguous"),
    "rows": function(operator.getitem, (slice(None), slice(1, 3))),
    "an entry": function(operator.getitem, 0),
    "the last, from the end": function(operator.getitem, (Ellipsis, -1)),
    "by number": function(operator.getitem, (slice(None), None)),
}


def options(
    reading_of: Callable[[Kept], Reading], ndim: int, shape: Sequence[int]
) -> Iterator[tuple[Reading, Verdict]]:
    for kept in one_dim_each(ndim):
        if fits(shape, kept):
            reading = reading_of(kept)
            verdict = judged(reading)
            if verdict is not None:
                yield reading, verdict


def without(claim: Claim, values: tuple[Tensor, Tensor]) -> Tensor:
    found = values[0].clone()
    for dim, index in removed_entries(found, claim.kept):
        found.index_fill_(dim, index, 0)
    return found


def check(reading: Reading, verdict: Verdict, values: Sequence[tuple[Tensor, Tensor]]) -> None:
    """The narrow call gives the kept part of what the full call gives."""
    full = called(reading.node, [pair[0] for pair in values])
    if verdict.over_kept:
        # Then a sum has no part of what goes.
        full = called(reading.node, [without(*pair) for pair in zip(reading.claims.values(), values, strict=True)])
    narrow = called(reading.other, [pair[1] for pair in values])
    assert tuple(verdict.shape) == tuple(full.shape)
    torch.testing.assert_close(narrow, select(full, reading.kept), rtol=1e-5, atol=1e-6)
    if verdict.silent:
        assert all(not full.index_select(d, index).any() for d, index in removed_entries(full, reading.kept))


@pytest.mark.parametrize("silent", [True, False])
@pytest.mark.parametrize("name", ONE)
def test_ops_on_one_tensor(name: str, silent: bool) -> None:
    lossy = 0
    for given in one_dim_each(len(SHAPE)):
        if not fits(SHAPE, given):
            continue
        values = [drawn(SHAPE, given, silent, 1)]
        shape = called(read(ONE[name], values, [given], (), silent).node, [values[0][0]]).shape

        def reading_of(kept: Kept, given: Kept = given, values: Any = values) -> Reading:
            return read(ONE[name], values, [given], kept, silent)

        for reading, verdict in options(reading_of, len(shape), shape):
            check(reading, verdict, values)
            lossy += bool(given)
    # Dims that are given one by one are left to values.
    assert lossy == 0 if name == "flip of two dims" else lossy >= 3


TWO: dict[str, tuple[Callable[..., fx.Node], tuple[int, ...], tuple[int, ...]]] = {
    "add": (function(operator.add), (2, 4, 4), (2, 4, 4)),
    "a stretched product": (function(torch.mul), (2, 4, 4), (4, 1)),
    "matmul": (function(torch.matmul), (2, 4, 4), (2, 4, 4)),
    "a stretched matmul": (function(operator.matmul), (2, 4, 4), (4, 4)),
    "einsum": (lambda graph, x, y: graph.call_function(torch.einsum, ("bik,bjk->jbi", x, y)), (2, 4, 4), (2, 4, 4)),
    "einsum of one": (lambda graph, x, y: graph.call_function(torch.einsum, ("bik,kj->b", x, y)), (2, 4, 4), (4, 4)),
    "cat": (lambda graph, x, y: graph.call_function(torch.cat, ((x, y), 1)), (2, 4, 4), (2, 4, 4)),
    "linear": (function(F.linear), (2, 4, 4), (4, 4)),
}


@pytest.mark.parametrize("silent", [True, False])
@pytest.mark.parametrize("name", TWO)
def test_ops_on_two_tensors(name: str, silent: bool) -> None:
    op, *shapes = TWO[name]
    lossy = 0
    for kepts in itertools.product(*(filter(lambda k, s=s: fits(s, k), one_dim_each(len(s))) for s in shapes)):
        values = [drawn(s, kept, silent, n) for n, (s, kept) in enumerate(zip(shapes, kepts, strict=True))]
        shape = called(read(op, values, kepts, (), silent).node, [pair[0] for pair in values]).shape

        def reading_of(kept: Kept, kepts: Any = kepts, values: Any = values) -> Reading:
            return read(op, values, kepts, kept, silent)

        kept_options = [*one_dim_each(len(shape))]
        if name == "cat":
            kept_options += [(None, torch.cat((a, b + 4))) for a in INDICES for b in INDICES]
        for kept in kept_options:
            if fits(shape, kept) and (verdict := judged(reading_of(kept))) is not None:
                check(reading_of(kept), verdict, values)
                lossy += any(map(bool, kepts))
    # Products over values that are not zero where they go are right only where nothing is summed over.
    assert lossy >= (0 if name == "linear" and not silent else 3)


def test_zero_against_a_value_of_any_sign_is_not_silent() -> None:
    kept = (None, EVEN)
    pairs = [drawn((2, 4), kept, True, 0), drawn((2, 4), kept, False, 1)]
    for op, silent in ((torch.maximum, False), (torch.minimum, False), (torch.mul, True), (torch.add, False)):
        reading = read(function(op), pairs, [kept, kept], kept, True)
        for claim, own in zip(reading.operands, (True, False), strict=True):
            claim.silent, claim.domain = own, "any"
        verdict = judged(reading)
        assert verdict is not None
        assert verdict.silent is silent


def test_a_view_keeps_blocks_of_channels() -> None:
    index = torch.tensor([0, 1, 4, 5])
    values = [drawn((2, 8, 3), (None, index), True, 0)]

    def heads(graph: fx.Graph, x: fx.Node) -> fx.Node:
        return graph.call_method("view", (x, 2, -1, 2, 3))

    for kept, accepted in ((torch.tensor([0, 2]), True), (torch.tensor([0, 1]), False), (torch.tensor([2, 0]), False)):
        reading = read(heads, values, [(None, index)], (None, kept), True)
        verdict = judged(reading)
        assert (verdict is not None) is accepted
        if verdict:
            assert not verdict.at_any_size
            check(reading, verdict, values)


def test_pieces_end_at_the_same_entries() -> None:
    index = torch.tensor([0, 2, 5, 7])
    for sizes, accepted in (([2, 2], True), ([1, 3], False)):
        reading = read(method("split", 4, 1), [drawn((2, 8), (None, index), True, 0)], [(None, index)], (), True)
        reading.other.args = (reading.other.args[0], sizes, 1)
        verdict = judged(reading)
        assert (verdict is not None) is accepted
        if verdict:
            assert [piece.kept[1].tolist() for piece in verdict.pieces if piece.kept[1] is not None] == [[0, 2], [1, 3]]


@pytest.mark.parametrize("other", [{"dim": 2}, {"dtype": torch.float64, "dim": 1}])
def test_another_literal_is_no_law(other: dict[str, Any]) -> None:
    values = [drawn(SHAPE, (), True, 0)]
    reading = read(method("softmax", dim=1), values, [()], (), True)
    assert judged(reading) is not None
    reading = read(method("softmax", dim=1), values, [()], (), True)
    reading.other.kwargs = other
    assert judged(reading) is None


def test_another_scale_is_no_law() -> None:
    index = torch.tensor([0, 2])
    values = [drawn((2, 2, 3, 4), (None, None, None, index), True, n) for n in range(3)]
    kepts = [(None, None, None, index)] * 3
    for scale, accepted in ((0.5, True), (None, False), (0.0, False), (0.4999, False)):
        reading = read(function(F.scaled_dot_product_attention), values, kepts, kepts[0], True)
        reading.other.kwargs = {} if scale is None else {"scale": scale}
        verdict = judged(reading)
        assert (verdict is not None) is accepted
        if verdict:
            check(reading, verdict, values)


def normed(kepts: Sequence[Kept], result: Kept, narrow_size: int = 2, eps: float = 1e-5) -> Verdict | None:
    """A norm over four channels beside one over fewer, which the rewritten graph says."""
    shapes = [(2, 3, 4), (4,), (4,)]
    values = [drawn(shape, kept, True, 0) for shape, kept in zip(shapes, kepts, strict=True)]
    made = read(function(F.layer_norm), values, kepts, result, True)
    for node, size, own in ((made.node, 4, 1e-5), (made.other, narrow_size, eps)):
        x, weight, bias = node.args
        node.args, node.kwargs = (x, (size,)), {"weight": weight, "bias": bias, "eps": own}
    return judged(made)


def test_a_norm_over_what_is_kept() -> None:
    along, one = (None, None, ODD), (ODD,)
    verdict = normed((along, one, one), along)
    assert verdict is not None
    assert (verdict.over_kept, verdict.silent, tuple(verdict.shape)) == (True, True, (2, 3, 4))
    assert normed((along, one, one), along, narrow_size=3) is None
    assert normed((along, one, one), along, eps=1e-6) is None
    assert normed((along, (EVEN,), one), along) is None
    assert normed((along, one, ()), along) is None
    assert normed((along, one, one), (None, None, EVEN)) is None


def test_zeros_around_channels_are_as_many_as_stay() -> None:
    given, accepted = (None, EVEN), 0
    values = [drawn((2, 3), given, False, 0)]
    for low, high, count in itertools.product(range(2), range(3), range(2, 5)):
        for index in map(torch.tensor, itertools.permutations(range(5), count)):
            reading = read(function(F.pad, (1, 1)), values, [given], (None, index), False)
            reading.other.args = (reading.other.args[0], (low, high))
            if (verdict := judged(reading)) is not None:
                check(reading, verdict, values)
                accepted += 1
    assert accepted == 4
    assert judged(read(function(F.pad, (1, 1), value=1.0), values, [given], given, False)) is None


def test_a_view_of_its_rows_holds_at_any_size() -> None:
    for rows, at_any_size in ((lambda x: x.graph.call_method("size", (x, 0)), True), (lambda x: 2, False)):
        op = lambda graph, x, rows=rows: graph.call_method("view", (x, rows(x), -1))  # noqa: E731
        reading = read(op, [drawn((2, 4, 1), (None, EVEN), True, 0)], [(None, EVEN)], (None, EVEN), True)
        if at_any_size:
            size, other = reading.node.args[1], reading.other.args[1]
            assert isinstance(size, fx.Node)
            assert isinstance(other, fx.Node)
            reading.claims[size], reading.images[size], reading.owners[other] = Claim((2, 2)), other, size  # type: ignore[index]
        verdict = judged(reading)
        assert verdict is not None
        assert verdict.at_any_size is at_any_size


def test_a_mask_of_other_sizes_is_no_law() -> None:
    q, mask = torch.randn(2, 3, 5, 4), torch.randn(1, 3, 5, 5)

    def call(graph: fx.Graph, x: fx.Node, m: fx.Node) -> fx.Node:
        return graph.call_function(F.scaled_dot_product_attention, (x, x, x), {"attn_mask": m})

    for own, found in ((mask, True), (mask[..., :4, :4], False)):
        verdict = judged(read(call, [(q, q), (own, own)], [(), ()], (), True))
        assert (verdict is not None) is found


def test_a_function_that_is_called_like_one_of_torch_has_no_law() -> None:
    def relu(x: Tensor) -> Tensor:
        return x.flip(1)

    assert judged(read(function(relu), [drawn(SHAPE, (), True, 0)], [()], (), True)) is None


def narrowed(module: nn.Module, keep: dict[str, Kept], **sizes: Any) -> tuple[nn.Module, nn.Module]:
    """A layer and a narrow one built from scratch; what goes of the full one's tensors is zero."""
    narrow = type(module)(**sizes).eval()
    with torch.no_grad():
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
            for dim, index in removed_entries(tensor, keep.get(name, ())) if name != "running_var" else ():
                tensor.index_fill_(dim, index, 0)
            narrow.get_parameter(name).copy_(select(tensor, keep.get(name, ()))) if isinstance(
                tensor, nn.Parameter
            ) else narrow.get_buffer(name).copy_(select(tensor, keep.get(name, ())))
    return module.eval(), narrow


def layers() -> Iterator[tuple[str, nn.Module, dict[str, Kept], dict[str, Any], tuple[int, ...], Kept, Kept]]:
    """A name, the layer, what its tensors keep, the sizes of the narrow one, its input, and what both ends keep."""
    cut: dict[str, Kept] = {"weight": (ODD, EVEN), "bias": (ODD,)}
    channels = (None, EVEN), (None, ODD)
    yield "linear", nn.Linear(4, 4), cut, {"in_features": 2, "out_features": 2}, (3, 4), *channels
    size = {"in_channels": 2, "out_channels": 2, "kernel_size": 3, "padding": 1}
    yield "conv", nn.Conv2d(4, 4, 3, padding=1), cut, size, (2, 4, 5, 6), *channels
    turned: dict[str, Kept] = {"weight": (EVEN, ODD), "bias": (ODD,)}
    size = {"in_channels": 2, "out_channels": 2, "kernel_size": 2, "stride": 2}
    yield "transposed", nn.ConvTranspose2d(4, 4, 2, stride=2), turned, size, (2, 4, 5, 6), *channels
    grouped: dict[str, Kept] = {"weight": (HALF,), "bias": (HALF,)}
    size = {"in_channels": 2, "out_channels": 2, "kernel_size": 1, "groups": 1}
    yield "a group", nn.Conv2d(4, 4, 1, groups=2), grouped, size, (2, 4, 2, 3), (None, HALF), (None, HALF)
    size = {"in_channels": 2, "out_channels": 2, "kernel_size": 1, "groups": 2}
    each: dict[str, Kept] = {"weight": (ODD,), "bias": (ODD,)}
    yield "depthwise", nn.Conv2d(4, 4, 1, groups=4), each, size, (2, 4, 2, 3), (None, ODD), (None, ODD)
    norm: dict[str, Kept] = dict.fromkeys(("weight", "bias", "running_mean", "running_var"), (ODD,))
    yield "norm", nn.BatchNorm2d(4), norm, {"num_features": 2}, (2, 4, 2, 3), (None, ODD), (None, ODD)


@pytest.mark.parametrize("case", list(layers()), ids=lambda case: case[0])
def test_layers(case: Any) -> None:
    _, module, keep, sizes, shape, given, result = case
    modules = narrowed(module, keep, **sizes)
    values = [drawn(shape, given, False, 0)]

    def reading_of(given: Kept, result: Kept, keep: dict[str, Kept] = keep) -> Reading:
        made = read(lambda graph, x: graph.call_module("layer", (x,)), values, [given], result, False)
        named = {f"layer.{tensor}": kept for tensor, kept in keep.items()}
        return Reading(
            made.node, made.other, result, made.claims, made.owners, made.images, modules, named, made.patterns
        )

    verdict = judged(reading_of(given, result))
    assert verdict is not None
    with torch.no_grad():
        full, narrow = (module(value) for module, value in zip(modules, values[0], strict=True))
    assert tuple(verdict.shape) == tuple(full.shape)
    torch.testing.assert_close(narrow, select(full, result))
    # Any other word about the channels is refused.
    wrong = (None, torch.tensor([0, 3]))
    flipped = (None, result[1].flip(0))
    assert all(judged(reading_of(*ends)) is None for ends in ((wrong, result), (given, wrong), (given, flipped)))
    assert judged(reading_of((wrong[1], *given[1:]), result)) is None
    assert judged(reading_of(given, result, {**keep, "bias": wrong[1:]})) is None


class Doubled(nn.Conv2d):
    """Another way to convolve under the forward of torch."""

    def _conv_forward(self, *args: Any) -> Tensor:
        return 2 * super()._conv_forward(*args)


class Striding(nn.Conv2d):
    """The same layer with a method more."""

    def step(self) -> int:
        return int(self.stride[0])


@pytest.mark.parametrize(("kind", "has_one"), [(Doubled, False), (Striding, True)])
def test_a_class_of_its_own_has_the_law_of_what_it_runs(kind: type[nn.Conv2d], has_one: bool) -> None:
    values = [drawn((2, 4, 3, 3), (None, EVEN), True, 0)]
    keep: dict[str, Kept] = {"layer.weight": (None, EVEN)}
    modules = kind(4, 4, 1), kind(2, 4, 1)
    made = read(lambda graph, x: graph.call_module("layer", (x,)), values, [(None, EVEN)], (), True)
    reading = Reading(made.node, made.other, (), made.claims, made.owners, made.images, modules, keep, made.patterns)
    assert (judged(reading) is not None) is has_one
    vars(modules[0])["_conv_forward"] = lambda *args: args[0]
    assert judged(reading) is None
