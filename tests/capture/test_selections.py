"""Rows that values select, a layer for each kind: pruned as one graph if it does not matter that there may be none."""

from __future__ import annotations

import contextlib
import copy
import importlib
from collections.abc import Callable
from contextvars import ContextVar
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import fxprune
from tests.nets.oracles import masked

Loop = Callable[["Mixture", Tensor, Tensor], Tensor]


class Mixture(nn.Module):
    """A layer for each kind of row; ``loop`` calls them one by one."""

    def __init__(self, loop: Loop, norm: type[nn.Module] = nn.Identity, kinds: int = 4) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.kind = nn.Linear(16, 32), nn.Linear(16, kinds)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(32, 96), norm(96), nn.ReLU(), nn.Linear(96, 32)) for _ in range(kinds)
        )
        self.middle, self.last, self.loop = nn.Linear(32, 48), nn.Linear(48, 4), loop
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x).relu()
        return self.last(self.middle(self.loop(self, h, self.kind(x).argmax(-1))).relu())


def skipped(net: Mixture, h: Tensor, kind: Tensor) -> Tensor:
    out = torch.zeros_like(h)
    for number, layer in enumerate(net.layers):
        rows = torch.where(kind == number)[0]
        if rows.numel() == 0:
            continue
        out[rows] = layer(h[rows])
    return out


def added(net: Mixture, h: Tensor, kind: Tensor) -> Tensor:
    out = torch.zeros_like(h)
    for number, layer in enumerate(net.layers):
        rows = (kind == number).nonzero(as_tuple=True)[0]
        if rows.shape[0] > 0:
            out.index_add_(0, rows, layer(h[rows]))
    return out


def under_mask(net: Mixture, h: Tensor, kind: Tensor) -> Tensor:
    out = torch.zeros_like(h)
    for number, layer in enumerate(net.layers):
        mask = kind == number
        if mask.any():
            out[mask] = layer(h[mask])
    return out


def counted_mask(net: Mixture, h: Tensor, kind: Tensor) -> Tensor:
    out = torch.zeros_like(h)
    for number, layer in enumerate(net.layers):
        mask = kind == number
        if mask.sum() > 0:
            out[mask] += layer(h[mask])
    return out


def without_asking(net: Mixture, h: Tensor, kind: Tensor) -> Tensor:
    out = h.new_empty(h.shape)
    for number, layer in enumerate(net.layers):
        rows = (kind == number).nonzero().view(-1)
        out.index_copy_(0, rows, layer(h.index_select(0, rows)))
    return out


def joined(net: Mixture, h: Tensor, kind: Tensor) -> Tensor:
    return torch.cat([layer(h[torch.where(kind == number)[0]]) for number, layer in enumerate(net.layers)])


def otherwise(net: Mixture, h: Tensor, kind: Tensor) -> Tensor:
    out = torch.zeros_like(h)
    for number, layer in enumerate(net.layers):
        rows = torch.where(kind == number)[0]
        if len(rows):
            out[rows] = layer(h[rows])
        else:
            out = out + 1
    return out


def otherwise_by_values(net: Mixture, h: Tensor, kind: Tensor) -> Tensor:
    out = torch.zeros_like(h)
    for number, layer in enumerate(net.layers):
        rows = torch.where(kind == number)[0]
        if len(rows):
            out[rows] = layer(h[rows])
        elif h.max() > 6:
            out = out + 1
    return out


def _counting(finish: Callable[[Tensor, int], Tensor], last: bool = False) -> Loop:
    def loop(net: Mixture, h: Tensor, kind: Tensor) -> Tensor:
        out, count = torch.zeros_like(h), 0
        for number, layer in enumerate(net.layers):
            rows = torch.where(kind == number)[0]
            if len(rows):
                out[rows] = layer(h[rows])
                count = number if last else count + 1
        return finish(out, count)

    return loop


def means(net: Mixture, h: Tensor, kind: Tensor) -> Tensor:
    out = torch.zeros_like(h)
    for number, layer in enumerate(net.layers):
        rows = torch.where(kind == number)[0]
        if len(rows):
            out = out + layer(h[rows]).mean(0)
    return out


def scaled_by_their_mean(net: Mixture, h: Tensor, kind: Tensor) -> Tensor:
    """The gradient of what the mean is multiplied with would be NaN where there are no rows."""
    out = torch.zeros_like(h)
    for number, layer in enumerate(net.layers):
        rows = torch.where(kind == number)[0]
        if len(rows):
            out[rows] = layer(h[rows]) * (h[rows].mean() * net.kind.bias[number])
    return out


def of_two(net: Mixture, h: Tensor, kind: Tensor) -> Tensor:
    out = torch.zeros_like(h)
    for number, layer in enumerate(net.layers):
        rows = torch.where(kind == number)[0]
        if len(rows) > 1:
            out[rows] = layer(h[rows])
    return out


def under_a_mask_that_is_written(net: Mixture, h: Tensor, kind: Tensor) -> Tensor:
    """Whether there are rows is asked of the mask after it took in others."""
    out = torch.zeros_like(h)
    for number, layer in enumerate(net.layers):
        mask = kind == number
        rows = torch.where(mask)[0]
        mask |= h[:, number] > 0.5
        out[rows] = layer(h[rows])
        if mask.any():
            out = out + 1
    return out


def noted(net: Mixture, h: Tensor, kind: Tensor) -> Tensor:
    out, empty = torch.zeros_like(h), []
    for number, layer in enumerate(net.layers):
        rows = torch.where(kind == number)[0]
        empty.append(len(rows) == 0)
        out[rows] = layer(h[rows])
    return out * 2 if empty == [False, True, True, False] else out


def in_new_memory(net: Mixture, h: Tensor, kind: Tensor) -> Tensor:
    out = first = torch.zeros_like(h)
    for number, layer in enumerate(net.layers):
        rows = torch.where(kind == number)[0]
        if len(rows):
            out = out.index_copy(0, rows, layer(h[rows]))
    return out + first


def in_new_memory_and_old(net: Mixture, h: Tensor, kind: Tensor) -> Tensor:
    """What is written into the first memory shows in the result only if no kind has rows."""
    out = first = torch.zeros_like(h)
    for number, layer in enumerate(net.layers):
        rows = torch.where(kind == number)[0]
        if len(rows):
            out = out.index_copy(0, rows, layer(h[rows]))
    first.add_(1)
    return out


def in_new_memory_and_in_place(net: Mixture, h: Tensor, kind: Tensor) -> Tensor:
    """The first memory is written by a layer that writes into its input."""
    out = first = h - 0.5
    for number, layer in enumerate(net.layers):
        rows = torch.where(kind == number)[0]
        if len(rows):
            out = out.index_copy(0, rows, layer(h[rows]))
    net.act(out)
    return out + first


def in_place_by_position(net: Mixture, h: Tensor, kind: Tensor) -> Tensor:
    out = torch.zeros_like(h) - h
    for number, layer in enumerate(net.layers):
        rows = torch.where(kind == number)[0]
        if len(rows):
            out[rows] = layer(h[rows])
            if number == 3:
                nn.functional.relu(out, True)
    return out


def in_place_by_a_layer(net: Mixture, h: Tensor, kind: Tensor) -> Tensor:
    out = torch.zeros_like(h) - h
    for number, layer in enumerate(net.layers):
        rows = torch.where(kind == number)[0]
        if len(rows):
            out[rows] = layer(h[rows])
            if number == 3:
                net.act(out)
    return out


def summed(net: Mixture, h: Tensor, kind: Tensor) -> Tensor:
    out = torch.zeros_like(h)
    for number, layer in enumerate(net.layers):
        mask = kind == number
        if mask.sum() == 0:
            continue
        out[mask] = layer(h[mask])
    return out


def summed_item(net: Mixture, h: Tensor, kind: Tensor) -> Tensor:
    out = torch.zeros_like(h)
    for number, layer in enumerate(net.layers):
        mask = kind == number
        count = torch.count_nonzero(mask).item()
        if count > 0:
            out[mask] = layer(h[mask]) / count
    return out


def two_of_each(net: Mixture, h: Tensor, kind: Tensor) -> Tensor:
    """Each row goes to two layers; sizes are read inside of the code that is skipped."""
    weight, chosen = torch.topk(net.kind.weight @ net.first.weight.T @ h.T, 2, 0)
    weight, out = weight.T.softmax(-1), torch.zeros_like(h)
    taken = nn.functional.one_hot(chosen.T, len(net.layers)).permute(2, 1, 0)
    for number, layer in enumerate(net.layers):
        place, rows = torch.where(taken[number])
        if rows.shape[0] == 0:
            continue
        y = layer(h[None, rows].reshape(-1, h.shape[-1])) * weight[rows, place, None]
        out.index_add_(0, rows, y.to(h.dtype))
    return out


def gated(net: Mixture, h: Tensor, kind: Tensor) -> Tensor:
    """Rows are picked by a mask, and the gates of one kind by the mask and a number."""
    gates = h[:, : len(net.layers)].softmax(-1)
    weight, chosen = gates.topk(2)
    gates, out = torch.zeros_like(gates).scatter(-1, chosen, weight), torch.zeros_like(h)
    for number, layer in enumerate(net.layers):
        mask = (chosen == number).any(dim=-1)
        if mask.any():
            out[mask] += (layer(h[mask]) * gates[mask, number].unsqueeze(1)).squeeze(1)
    return out


def twice(net: Mixture, h: Tensor, kind: Tensor) -> Tensor:
    """Each choice of two has its turn."""
    weight, chosen = h[:, : len(net.layers)].softmax(-1).topk(2)
    out = torch.zeros_like(h)
    for turn in range(2):
        for number, layer in enumerate(net.layers):
            mask = chosen[:, turn] == number
            if mask.any():
                out[mask] += weight[mask, turn, None] * layer(h[mask])
    return out


def asking_inside(net: Mixture, h: Tensor, kind: Tensor) -> Tensor:
    out = torch.zeros_like(h)
    for number, layer in enumerate(net.layers):
        rows = torch.where(kind == number)[0]
        if len(rows):
            y = layer(h[rows])
            out[rows] = y * 2 if y.mean() > 0.2 else y
    return out


def _where_there_are_none(change: Callable[[Mixture, Tensor], Tensor]) -> Loop:
    def loop(net: Mixture, h: Tensor, kind: Tensor) -> Tensor:
        out = torch.zeros_like(h)
        for number, layer in enumerate(net.layers):
            rows = torch.where(kind == number)[0]
            if rows.numel() == 0:
                out = change(net, out)
                continue
            out[rows] = layer(h[rows])
        return out

    return loop


def _by_sums(net: Mixture, h: Tensor, kind: Tensor, compare: Callable[..., Tensor]) -> Tensor:
    out = torch.zeros_like(h)
    for number, layer in enumerate(net.layers):
        mask = kind == number
        out[mask] = layer(h[mask])
        if compare(mask.sum(), 0):
            out = out + 1
    return out


def both_empty(net: Mixture, h: Tensor, kind: Tensor) -> Tensor:
    """Of the second kind it asks only where the first has no rows."""
    first, second = (torch.where(kind == number)[0] for number in (0, 1))
    return h * 2 if len(first) == 0 and len(second) == 0 else h.clone()


def through_hits(net: Mixture, h: Tensor, kind: Tensor) -> Tensor:
    """The loop goes through the numbers of the kinds that have rows."""
    out = torch.zeros_like(h)
    with torch.no_grad():
        taken = nn.functional.one_hot(kind, num_classes=len(net.layers) + 1).permute(1, 0)
        hit = torch.greater(taken.sum(dim=-1), 0).nonzero()
    for number in hit:
        number = number[0]
        if number == len(net.layers):
            continue
        (rows,) = torch.where(taken[number])
        out.index_add_(0, rows, net.layers[number](h[rows]))
    return out


def through_hits_of_some(net: Mixture, h: Tensor, kind: Tensor) -> Tensor:
    """There is one number more than kinds, which no row has; a variable is set in a context."""
    out, taken = torch.zeros_like(h), nn.functional.one_hot(kind, num_classes=len(net.layers) + 1).permute(1, 0)
    for number in torch.greater(taken.sum(dim=-1), 0).nonzero():
        number = number[0]
        with torch.no_grad():
            (rows,) = torch.where(taken[number])
        out.index_add_(0, rows, net.layers[number](h[rows]))
    return out


def _under_product(net: Mixture, h: Tensor, kind: Tensor, factor: Tensor) -> Tensor:
    """The loop goes through what a product of masks leaves, by indices of one element, and then asks for a dtype."""
    out = torch.zeros_like(h)
    taken = nn.functional.one_hot(kind, num_classes=len(net.layers)) * factor
    taken = taken.view(-1, 1, len(net.layers)).permute(2, 1, 0)
    for number in torch.greater(taken.sum(dim=(-1, -2)), 0).nonzero():
        turn, rows = torch.where(taken[number].squeeze(0))
        layer = net.layers[int(f"{number[0]}")]
        out.index_add_(0, rows, layer(h[None, rows].reshape(-1, h.shape[-1])) * (turn[:, None] + 1))
    return out if out.dtype != torch.float16 else out.float()


def under_capacity(net: Mixture, h: Tensor, kind: Tensor) -> Tensor:
    """Each kind takes its first two rows alone."""
    taken = nn.functional.one_hot(kind, num_classes=len(net.layers))
    return _under_product(net, h, kind, taken.cumsum(0) <= 2)


def under_signs(net: Mixture, h: Tensor, kind: Tensor) -> Tensor:
    """A sum that is not above zero may have terms."""
    return _under_product(net, h, kind, (h.sum(-1, keepdim=True) > 3).long() * 2 - 1)


def through_unique(net: Mixture, h: Tensor, kind: Tensor) -> Tensor:
    out = torch.zeros_like(h)
    for number in torch.unique(kind):
        mask = kind == number
        out[mask] = net.layers[number](h[mask])
    return out


def through_unique_list(net: Mixture, h: Tensor, kind: Tensor) -> Tensor:
    out = torch.zeros_like(h)
    for number in kind.unique().tolist():
        rows = (kind == number).nonzero().squeeze(-1)
        out[rows] = net.layers[number](h[rows])
    return out


def counted_by_bincount(net: Mixture, h: Tensor, kind: Tensor) -> Tensor:
    out, counts = torch.zeros_like(h), torch.bincount(kind, minlength=len(net.layers))
    for number, layer in enumerate(net.layers):
        if counts[number] > 0:
            rows = torch.where(kind == number)[0]
            out[rows] = layer(h[rows])
    return out


def listed_counts(net: Mixture, h: Tensor, kind: Tensor) -> Tensor:
    out, counts = torch.zeros_like(h), nn.functional.one_hot(kind, len(net.layers)).sum(0).tolist()
    for number, layer in enumerate(net.layers):
        if counts[number] == 0:
            continue
        mask = kind == number
        out[mask] = layer(h[mask]) / counts[number]
    return out


def counted_by_histc(net: Mixture, h: Tensor, kind: Tensor) -> Tensor:
    most = len(net.layers) - 1
    out, counts = torch.zeros_like(h), torch.histc(kind.float(), bins=most + 1, min=0, max=most)
    for number, layer in enumerate(net.layers):
        if counts[number].item() != 0:
            rows = torch.where(kind == number)[0]
            out[rows] = layer(h[rows])
    return out


def columns_of_a_mask(net: Mixture, h: Tensor, kind: Tensor) -> Tensor:
    """Each row goes to the layers whose share of it is large."""
    out, share = torch.zeros_like(h), h[:, : len(net.layers)].softmax(-1)
    large = share > 0.2
    counts = large.sum(dim=0)
    for number, layer in enumerate(net.layers):
        if counts[number] == 0:
            continue
        rows = torch.where(large[:, number])[0]
        out[rows] = out[rows] + layer(h[rows]) * share[rows, number, None]
    return out


def counts_of_others(net: Mixture, h: Tensor, kind: Tensor) -> Tensor:
    """Whether there are rows is asked of the next kind."""
    out, counts = torch.zeros_like(h), torch.bincount((kind + 1) % len(net.layers), minlength=len(net.layers))
    for number, layer in enumerate(net.layers):
        if counts[number] > 0:
            rows = torch.where(kind == number)[0]
            out[rows] = layer(h[rows])
    return out


def counts_of_some(net: Mixture, h: Tensor, kind: Tensor) -> Tensor:
    """Whether there are rows is asked of the first half of them."""
    out, counts = torch.zeros_like(h), nn.functional.one_hot(kind, len(net.layers))[: len(kind) // 2].sum(0)
    for number, layer in enumerate(net.layers):
        if counts[number] > 0:
            rows = torch.where(kind == number)[0]
            out[rows] = layer(h[rows])
    return out


def counts_before_a_write(net: Mixture, h: Tensor, kind: Tensor) -> Tensor:
    out, counts = torch.zeros_like(h), torch.bincount(kind, minlength=len(net.layers))
    kind[0] = 3
    for number, layer in enumerate(net.layers):
        if counts[number] > 0:
            rows = torch.where(kind == number)[0]
            out[rows] = layer(h[rows])
    return out


def _through(each: Callable[..., Tensor]) -> Loop:
    """A loop through the numbers of the kinds that have rows, after which something else depends on them."""

    def loop(net: Mixture, h: Tensor, kind: Tensor) -> Tensor:
        return each(net, h, kind, torch.zeros_like(h), torch.unique(kind))

    return loop


def number_of_hits(net: Mixture, h: Tensor, kind: Tensor, out: Tensor, hit: Tensor) -> Tensor:
    few = len(hit) == len(net.layers) // 2 + 1
    for number in hit:
        out[kind == number] = net.layers[number](h[kind == number])
    return out * 2 if few else out


def hits_counted(net: Mixture, h: Tensor, kind: Tensor, out: Tensor, hit: Tensor) -> Tensor:
    count = 0
    for number in hit:
        out[kind == number] = net.layers[number](h[kind == number])
        count += 1
    return out * 2 if count == len(net.layers) // 2 + 1 else out


def hits_numbered(net: Mixture, h: Tensor, kind: Tensor, out: Tensor, hit: Tensor) -> Tensor:
    for place, number in enumerate(hit):
        out[kind == number] = net.layers[number](h[kind == number]) * (2 if place == 4 else 1)
    return out


def last_hit(net: Mixture, h: Tensor, kind: Tensor, out: Tensor, hit: Tensor) -> Tensor:
    for number in hit:
        out[kind == number] = net.layers[number](h[kind == number])
    return out * 2 if number == 4 else out


def hit_before(net: Mixture, h: Tensor, kind: Tensor, out: Tensor, hit: Tensor) -> Tensor:
    before = -1
    for number in hit.tolist():
        out[kind == number] = net.layers[number](h[kind == number]) * (2 if before == number - 3 else 1)
        before = number
    return out


def hits_listed(net: Mixture, h: Tensor, kind: Tensor, out: Tensor, hit: Tensor) -> Tensor:
    found = [net.layers[number](h) for number in hit]
    return out + sum(found) if len(found) == len(net.layers) // 2 + 1 else out


FREE = [
    through_hits,
    through_hits_of_some,
    under_capacity,
    through_unique,
    through_unique_list,
    counted_by_bincount,
    listed_counts,
    counted_by_histc,
    columns_of_a_mask,
    skipped,
    added,
    under_mask,
    counted_mask,
    summed,
    summed_item,
    in_new_memory,
    two_of_each,
    gated,
    without_asking,
    joined,
]
OTHERS = {
    "otherwise": otherwise,
    "otherwise by values": otherwise_by_values,
    "counted": _counting(lambda out, count: out / count),
    "counted to the last but one": _counting(lambda out, count: out if count >= 3 else out * 2),
    "counted to two": _counting(lambda out, count: out if count >= 2 else out * 2),
    "counted to just one": _counting(lambda out, count: out if count != 1 else out * 2),
    "counted to just three": _counting(lambda out, count: out if count != 3 else out * 2),
    "the last one": _counting(lambda out, count: out + count, last=True),
    "counts of others": counts_of_others,
    "counts of some": counts_of_some,
    "counts before a write": counts_before_a_write,
    "hits counted": _through(hits_counted),
    "hits listed": _through(hits_listed),
    "last hit": _through(last_hit),
    "means": means,
    "under signs": under_signs,
    "under a mask that is written": under_a_mask_that_is_written,
    "noted": noted,
    "scaled by their mean": scaled_by_their_mean,
    "of two": of_two,
    "in new memory and old": in_new_memory_and_old,
    "in new memory and in place": in_new_memory_and_in_place,
    "in place by position": in_place_by_position,
    "in place by a layer": in_place_by_a_layer,
    "none where the sum says that there are some": lambda net, h, kind: _by_sums(net, h, kind, torch.ne),
    "none where the sum is below one": lambda net, h, kind: _by_sums(net, h, kind, torch.le),
    "in one type": _where_there_are_none(lambda net, out: out + 1 if out.dtype == torch.float64 else out),
    "in training": _where_there_are_none(lambda net, out: out + 1 if net.training else out),
    "without gradients": _where_there_are_none(lambda net, out: out if torch.is_grad_enabled() else out + 1),
    "asking inside": asking_inside,
}


def assert_same(model: nn.Module, pruned: nn.Module) -> None:
    """Outputs, gradients and buffers are those of the masked original, for batches in which kinds are missing."""
    plan = fxprune.report(pruned).plan
    assert plan is not None
    for seed, training in enumerate([False, True] * 8):
        torch.manual_seed(seed)
        dtype = torch.float64 if seed % 3 == 2 else torch.float32
        x = (torch.randn([1, 2, 3, 8, 20][seed % 5], 16) * [1, 4][seed // 2 % 2]).to(dtype)
        wanted, found = masked(model, plan.keep).train(training), copy.deepcopy(pruned).train(training)
        wanted.to(dtype), found.to(dtype)
        try:
            expected = wanted(x)
        except ValueError:  # a batch norm over one row
            with pytest.raises(ValueError, match="Expected more than 1 value"):
                found(x)
            continue
        torch.testing.assert_close(found(x), expected, atol=1e-5, rtol=1e-5)
        for network in (wanted, found):
            network(x).square().sum().backward()
        for name, parameter in found.named_parameters():
            gradient = wanted.get_parameter(name).grad
            gradient = torch.zeros_like(wanted.get_parameter(name)) if gradient is None else gradient
            for dim, kept in enumerate(plan.keep[name]):
                gradient = gradient if kept is None else gradient.index_select(dim, torch.as_tensor(kept))
            if parameter.grad is not None:
                torch.testing.assert_close(parameter.grad, gradient, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("rows", [1, 2, 8])
@pytest.mark.parametrize("loop", FREE, ids=lambda loop: loop.__name__)
def test_kinds_without_rows_are_no_decision(loop: Loop, rows: int) -> None:
    model = Mixture(loop).eval()
    pruned = fxprune.compile(model, torch.randn(rows, 16), 0.5)
    assert list(pruned.graphs) == ["eval"]
    assert not fxprune.report(pruned).opaque
    assert all(pruned.get_parameter(f"layers.{n}.0.weight").shape[1] < 32 for n in range(4))
    assert_same(model, pruned)


@pytest.mark.parametrize("loop", OTHERS.values(), ids=OTHERS)
def test_a_kind_without_rows_that_makes_a_difference_is_not_run(loop: Loop) -> None:
    model = Mixture(loop).eval()
    pruned = fxprune.compile(model, torch.randn(8, 16), 0.2)
    assert not hasattr(pruned, "graphs")  # the forward is kept as it is
    assert_same(model, pruned)


def test_drawing_numbers_for_no_rows_is_no_way_to_leave_out_the_draw() -> None:
    def noisy(net: Mixture, h: Tensor, kind: Tensor) -> Tensor:
        out = torch.zeros_like(h)
        for number, layer in enumerate(net.layers):
            rows = torch.where(kind == number)[0]
            if len(rows):
                out[rows] = layer(h[rows] + torch.randn_like(h[rows]))
        return out

    model = Mixture(noisy).eval()
    pruned = fxprune.compile(model, torch.randn(8, 16), 0.2)
    assert not hasattr(pruned, "graphs")


def test_dropout_of_no_rows_draws_nothing() -> None:
    def dropped(net: Mixture, h: Tensor, kind: Tensor) -> Tensor:
        out = torch.zeros_like(h)
        for number, layer in enumerate(net.layers):
            rows = torch.where(kind == number)[0]
            if len(rows):
                kept = nn.functional.dropout(h.new_ones(len(rows), 1), 0.5, net.training)
                out[rows] = layer(h[rows]) * kept
        return out

    model = Mixture(dropped).eval()
    pruned = fxprune.compile(model, torch.randn(8, 16), 0.4)
    assert list(pruned.graphs) == ["eval", "training"]
    plan = fxprune.report(pruned).plan
    assert plan is not None
    wanted, x = masked(model, plan.keep).train(), torch.randn(3, 16)
    torch.manual_seed(1)
    expected = wanted(x)
    torch.manual_seed(1)
    torch.testing.assert_close(pruned.train()(x), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("count", [pytest.param(n, marks=[pytest.mark.deep] * (n not in (0, 1, 6))) for n in range(7)])
def test_a_count_of_many_kinds_without_rows_that_makes_a_difference_is_seen(count: int) -> None:
    model = Mixture(_counting(lambda out, found: out * 2 if found == count else out), kinds=6).eval()
    pruned = fxprune.compile(model, torch.randn(8, 16), 0.1)
    assert not hasattr(pruned, "graphs")
    assert_same(model, pruned)


# Ways to keep how many kinds have no rows, for code that goes by just that number of them.


def _asked(net: Mixture, h: Tensor, kind: Tensor, note: Callable[[int, bool], None]) -> Tensor:
    """Calls the layers one by one, and notes for each whether there are rows."""
    out = torch.zeros_like(h)
    for number, layer in enumerate(net.layers):
        rows = torch.where(kind == number)[0]
        if len(rows):
            out[rows] = layer(h[rows])
            note(number, True)
        else:
            note(number, False)
    return out


def in_a_number(net: Mixture, h: Tensor, kind: Tensor) -> Tensor:
    out, count = torch.zeros_like(h), 0
    for number, layer in enumerate(net.layers):
        rows = torch.where(kind == number)[0]
        if len(rows):
            out[rows] = layer(h[rows])
            count += 1
    return out * 2 if count == 5 else out


def in_a_list(net: Mixture, h: Tensor, kind: Tensor) -> Tensor:
    found: list[int] = []
    out = _asked(net, h, kind, lambda number, some: found.append(number) if some else None)
    return out * 2 if found == [0, 2, 3, 5, 7] else out


def in_a_dict(net: Mixture, h: Tensor, kind: Tensor) -> Tensor:
    found: dict[str, int] = {"a": 0}
    out = _asked(net, h, kind, lambda number, some: found.update(a=found["a"] + some))
    return out * 2 if found["a"] == 5 else out


class Count:
    """A number in an object."""

    found = 0


def in_an_object(net: Mixture, h: Tensor, kind: Tensor) -> Tensor:
    count, out = Count(), torch.zeros_like(h)
    for number, layer in enumerate(net.layers):
        rows = torch.where(kind == number)[0]
        if len(rows):
            out[rows] = layer(h[rows])
            count.found += 1
    return out * 2 if count.found == 5 else out


def in_the_class(net: Mixture, h: Tensor, kind: Tensor) -> Tensor:
    Count.found, out = 0, torch.zeros_like(h)
    for number, layer in enumerate(net.layers):
        rows = torch.where(kind == number)[0]
        if len(rows):
            out[rows] = layer(h[rows])
            Count.found += 1
    seen, Count.found = Count.found, 0
    return out * 2 if seen == 5 else out


def in_a_module(net: Mixture, h: Tensor, kind: Tensor) -> Tensor:
    net.act.found, out = 0, torch.zeros_like(h)  # type: ignore[assignment]
    for number, layer in enumerate(net.layers):
        rows = torch.where(kind == number)[0]
        if len(rows):
            out[rows] = layer(h[rows])
            net.act.found += 1  # type: ignore[assignment,operator]
    seen, net.act.found = net.act.found, 0  # type: ignore[assignment]
    return out * 2 if seen == 5 else out


def in_an_iterator(net: Mixture, h: Tensor, kind: Tensor) -> Tensor:
    left, out = iter(range(9)), torch.zeros_like(h)
    for number, layer in enumerate(net.layers):
        rows = torch.where(kind == number)[0]
        if len(rows):
            out[rows] = layer(h[rows])
            next(left)
    return out * 2 if len(list(left)) == 4 else out


def in_a_comprehension(net: Mixture, h: Tensor, kind: Tensor) -> Tensor:
    rows = [torch.where(kind == number)[0] for number in range(len(net.layers))]
    out = h * 2 if sum(bool(len(r)) for r in rows) == 5 else h.clone()
    for r, layer in zip(rows, net.layers, strict=True):
        out[r] = layer(h[r])
    return out


def in_an_expression(net: Mixture, h: Tensor, kind: Tensor) -> Tensor:
    a, b, c, d, e, f, g, i = (torch.where(kind == number)[0] for number in range(len(net.layers)))
    some = (len(a) > 0) + (len(b) > 0) + (len(c) > 0) + (len(d) > 0) + (len(e) > 0) + (len(f) > 0) + (len(g) > 0)
    out = h * 2 if some + (1 if len(i) else 0) == 5 else h.clone()
    for r, layer in zip((a, b, c, d, e, f, g, i), net.layers, strict=True):
        out[r] = layer(h[r])
    return out


def _some(rows: Tensor) -> int:
    if len(rows):
        return 1
    return 0


def in_what_functions_return(net: Mixture, h: Tensor, kind: Tensor) -> Tensor:
    rows = [torch.where(kind == number)[0] for number in range(len(net.layers))]
    out = h * 2 if sum(map(_some, rows)) == 5 else h.clone()
    for r, layer in zip(rows, net.layers, strict=True):
        out[r] = layer(h[r])
    return out


def in_c(net: Mixture, h: Tensor, kind: Tensor) -> Tensor:
    rows = [torch.where(kind == number)[0] for number in range(len(net.layers))]
    out = h.clone()
    if [len(r) for r in rows] == [0, len(rows[1]), 0, 1, 1, 0, 1, 1]:
        out = h * 2
    for r, layer in zip(rows, net.layers, strict=True):
        out[r] = layer(h[r])
    return out


class Route(nn.Module):
    """Returns whether there are rows beside what a layer makes of them."""

    def forward(self, net: Mixture, h: Tensor, rows: Tensor, number: int, out: Tensor) -> bool:
        if len(rows):
            out[rows] = net.layers[number](h[rows])
            return True
        return False


def in_what_a_module_returns(net: Mixture, h: Tensor, kind: Tensor) -> Tensor:
    out = torch.zeros_like(h)
    rows = [torch.where(kind == number)[0] for number in range(len(net.layers))]
    found = [net.act.route(net, h, r, number, out) for number, r in enumerate(rows)]  # type: ignore[operator]
    return out * 2 if sum(found) == 5 else out


def in_which_tensor_it_is(net: Mixture, h: Tensor, kind: Tensor) -> Tensor:
    out = first = torch.zeros_like(h)
    for number, layer in enumerate(net.layers):
        rows = torch.where(kind == number)[0]
        if len(rows):
            out = out.index_copy(0, rows, layer(h[rows]))
    return out if out is first else out * 1


def in_a_tensor(net: Mixture, h: Tensor, kind: Tensor) -> Tensor:
    out, h.found = torch.zeros_like(h), 0  # type: ignore[attr-defined]
    for number, layer in enumerate(net.layers):
        rows = torch.where(kind == number)[0]
        if len(rows):
            out[rows] = layer(h[rows])
            h.found += 1  # type: ignore[attr-defined]
    return out * 2 if h.found == 5 else out  # type: ignore[attr-defined]


def in_a_tensor_of_its_own(net: Mixture, h: Tensor, kind: Tensor) -> Tensor:
    out, found = torch.zeros_like(h), torch.tensor(0)
    for number, layer in enumerate(net.layers):
        rows = torch.where(kind == number)[0]
        if len(rows):
            out[rows] = layer(h[rows])
            found += 1
    return out * 2 if found == 5 else out


HITS = [number_of_hits, hits_counted, hits_numbered, last_hit, hit_before, hits_listed]
KEPT = [
    in_a_tensor_of_its_own,
    in_a_tensor,
    in_a_number,
    in_a_list,
    in_a_dict,
    in_an_object,
    in_the_class,
    in_a_module,
    in_an_iterator,
    in_a_comprehension,
    in_an_expression,
    in_what_functions_return,
    in_what_a_module_returns,
    in_which_tensor_it_is,
]


@pytest.mark.parametrize("loop", [*map(_through, HITS), *KEPT], ids=[loop.__name__ for loop in (*HITS, *KEPT)])
def test_code_that_may_count_many_kinds_is_kept(loop: Loop) -> None:
    model = Mixture(loop, kinds=8).eval()
    model.act.route = Route()
    pruned = fxprune.compile(model, torch.randn(40, 16), 0.1)
    assert not hasattr(pruned, "graphs")
    assert_same(model, pruned)


@pytest.mark.parametrize(("loop", "found"), [(both_empty, [2, 3, 3]), (in_c, [1, 3, 4, 6, 7])])
def test_selections_of_which_code_asks_where_others_are_empty_count_too(loop: Loop, found: list[int]) -> None:
    model = Mixture(loop, kinds=8).eval()
    model.kind.weight.data = torch.eye(8, 16) * 100
    pruned = fxprune.compile(model, torch.randn(40, 16), 0.1)
    plan = fxprune.report(pruned).plan
    assert plan is not None
    x = torch.eye(16)[found]
    expected = result = masked(model, plan.keep)(x)
    with contextlib.suppress(AssertionError):  # it refuses a way that was not recorded
        result = pruned(x)
    torch.testing.assert_close(result, expected)


ASKED = [skipped, added, counted_mask, summed, two_of_each, gated, twice]
COUNTED = [through_hits, through_unique, through_unique_list, counted_by_bincount, listed_counts, columns_of_a_mask]
COUNTED += [through_hits_of_some]


@pytest.mark.parametrize(
    ("kinds", "loop"),
    [
        *((kinds, loop) for kinds in (7, 8) for loop in ASKED),
        *((8, loop) for loop in COUNTED),
        *(pytest.param(16, loop, marks=pytest.mark.deep) for loop in ASKED),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_many_kinds_without_rows_are_no_decision(kinds: int, loop: Loop) -> None:
    model = Mixture(loop, kinds=kinds).eval()
    pruned = fxprune.compile(model, torch.randn(3, 16), 0.5)
    assert list(pruned.graphs) == ["eval"]
    assert all(pruned.get_parameter(f"layers.{n}.0.weight").shape[1] < 32 for n in range(kinds))
    assert_same(model, pruned)


class OneRow(Mixture):
    def forward(self, x: Tensor) -> Tensor:
        out = super().forward(x)
        return out if x.shape[0] != 1 else out.tanh()


def test_a_batch_of_one_that_goes_another_way_has_a_graph_beside_mixtures() -> None:
    model = OneRow(through_hits).eval()
    pruned = fxprune.compile(model, torch.randn(3, 16), 0.5)
    assert len(pruned.graphs) == 2
    assert not fxprune.report(pruned).opaque
    assert_same(model, pruned)


_collector: ContextVar[list[Tensor] | None] = ContextVar("_collector", default=None)


class Wrapped(nn.Module):
    """Each subclass gets a forward of its own, which goes around the other, with a variable of the context set."""

    def __init_subclass__(cls, **kwargs: object) -> None:
        super().__init_subclass__(**kwargs)
        inner = cls.forward

        def forward(self: nn.Module, x: Tensor) -> Tensor:
            assert forward is not inner
            token = _collector.set(None)
            try:
                return inner(self, x)
            finally:
                _collector.reset(token)

        cls.forward = forward  # type: ignore[method-assign]

    def forward(self, x: Tensor) -> Tensor:
        raise NotImplementedError


class WrappedMixture(Wrapped):
    def __init__(self, kinds: int) -> None:
        super().__init__()
        self.inner = Mixture(under_capacity, kinds=kinds)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.inner(x)
        return out


def test_many_kinds_inside_a_forward_that_each_class_makes_anew() -> None:
    model = WrappedMixture(7).eval()
    pruned = fxprune.compile(model, torch.randn(3, 16), 0.5)
    assert list(pruned.graphs) == ["eval"]
    assert not fxprune.report(pruned).opaque
    assert_same(model, pruned)


EXPERTS = [("mixtral", 4), ("olmoe", 8), ("qwen2_moe", 7)]


@pytest.mark.parametrize(("family", "count"), EXPERTS)
def test_experts_of_a_library_that_are_called_one_by_one(family: str, count: int) -> None:
    """Beside a block of the library that was built narrower, with the weights that stay."""
    pytest.importorskip("transformers")
    code = importlib.import_module(f"transformers.models.{family}.modeling_{family}")
    name = "".join(part.title() for part in family.split("_"))

    def block(width: int) -> nn.Module:
        sizes = dict.fromkeys(("intermediate_size", "moe_intermediate_size"), width)
        config = getattr(code, f"{name}Config")(hidden_size=16, num_local_experts=count, num_experts_per_tok=2, **sizes)
        config.num_experts, config.shared_expert_intermediate_size = count, 8
        config._experts_implementation = "eager"
        made: nn.Module = getattr(code, f"{name}SparseMoeBlock")(config).eval()
        torch.manual_seed(0)
        for parameter in made.parameters():
            nn.init.normal_(parameter, std=0.3)
        return made

    model = block(12)
    others = ["shared_expert"] if family == "qwen2_moe" else []
    pruned = fxprune.compile(model, torch.randn(2, 5, 16), 0.2, exclude=others, recover=None, verify="full")
    plan = fxprune.report(pruned).plan
    assert plan is not None
    stays = torch.as_tensor(plan.keep["experts.down_proj"][2])
    narrow, state = block(len(stays)), model.state_dict()
    assert len(stays) < 12
    state["experts.gate_up_proj"] = state["experts.gate_up_proj"][:, torch.cat([stays, stays + 12])]
    state["experts.down_proj"] = state["experts.down_proj"][..., stays]
    narrow.load_state_dict(state)
    for seed, training in enumerate([False, True] * 4):
        torch.manual_seed(seed)
        x = torch.randn(1 + seed % 3, [1, 2, 9][seed % 3], 16) * [1, 5][seed // 2 % 2]
        found, expected = pruned.train(training)(x), narrow.train(training)(x)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_many_layers_of_many_kinds_are_one_graph() -> None:
    class Stack(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(Mixture(skipped, kinds=8) for _ in range(3))
            self.joins = nn.ModuleList(nn.Linear(4, 16) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            for block, join in zip(self.blocks, self.joins, strict=True):
                x = x + join(block(x))
            return x

    model = Stack().eval()
    pruned = fxprune.compile(model, torch.randn(3, 16), 0.5)
    assert list(pruned.graphs) == ["eval"]
    assert_same(model, pruned)


@pytest.mark.parametrize("loop", [skipped, added, under_mask, without_asking], ids=lambda loop: loop.__name__)
def test_a_batch_norm_that_is_skipped_counts_no_step(loop: Loop) -> None:
    model = Mixture(loop, nn.BatchNorm1d).eval()
    pruned = fxprune.compile(model, torch.randn(16, 16), 0.2)
    assert_same(model, pruned)
    torch.manual_seed(3)
    x = torch.randn(6, 16).repeat(2, 1)
    plan = fxprune.report(pruned).plan
    assert plan is not None
    wanted = masked(model, plan.keep).train()
    wanted(x), pruned.train()(x)
    for name, buffer in pruned.named_buffers():
        if name.endswith("num_batches_tracked"):
            assert torch.equal(buffer, wanted.get_buffer(name))


@pytest.mark.parametrize("loop", [skipped, under_mask], ids=lambda loop: loop.__name__)
def test_networks_of_selections_are_saved_and_exported(loop: Loop, tmp_path: Path) -> None:
    pruned = fxprune.compile(Mixture(loop).eval(), torch.randn(4, 16), 0.4)
    fxprune.save(pruned, tmp_path / "net")
    fxprune.export(pruned, tmp_path / "net.pt2", sample_input=torch.randn(8, 16))
    loaded, exported = fxprune.load(tmp_path / "net"), torch.export.load(tmp_path / "net.pt2").module()
    for rows in (2, 5):
        x = torch.randn(rows, 16)
        assert torch.equal(loaded(x), pruned(x))
        torch.testing.assert_close(exported(x), pruned(x))


def decided(net: Mixture, h: Tensor, kind: Tensor) -> Tensor:
    out = skipped(net, h, kind)
    return out * 2 if h[:, 0].sum() > h[:, 1].sum() else out.flip(0)


@pytest.mark.parametrize("loop", [decided, _through(number_of_hits)])
def test_a_decision_beside_selections_has_its_two_ways(loop: Loop) -> None:
    model = Mixture(loop).eval()
    pruned = fxprune.compile(model, torch.randn(8, 16), 0.5)
    assert list(pruned.graphs) == ["eval", "eval_1"]
    assert_same(model, pruned)


def test_other_samples_may_be_given_where_no_value_decides() -> None:
    model = Mixture(skipped).eval()
    others = [torch.randn(3, 16), torch.randn(8, 16) * 4]
    pruned = fxprune.compile(model, torch.randn(8, 16), 0.5, other_samples=others)
    assert list(pruned.graphs) == ["eval"]
    assert_same(model, pruned)
