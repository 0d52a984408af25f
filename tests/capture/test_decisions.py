"""What a forward decides in Python on sizes and flags: the result refuses inputs that it would decide otherwise for."""

from __future__ import annotations

import copy
import functools
import math
import pickle
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fxprune
from tests.capture.compiled import assert_equal_copy, captured, pruned

Forward = Callable[[torch.Tensor], torch.Tensor]
_TABLES = {8: 0.5, 12: 2.0}
_SHAPES = {(5, 9), (9, 9)}


class Net(nn.Module):
    """Two convolutions around a function of an image (batch, 16, height, width)."""

    def __init__(self, between: Forward) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 4, 1)
        self.between = between

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.between(self.first(x)))


def padded(x: torch.Tensor) -> torch.Tensor:
    height, width = x.shape[-2:]
    if height % 4 or width % 4:
        x = F.pad(x, (0, -width % 4, 0, -height % 4)) * 2
    return F.avg_pool2d(x, 4)


def turned(x: torch.Tensor) -> torch.Tensor:
    return x.transpose(2, 3) * 2 if x.shape[2] > x.shape[3] else x


def repeated(x: torch.Tensor) -> torch.Tensor:
    for _ in range(x.shape[-1] // 4):
        x = x.relu() + x
    return x


def clipped(x: torch.Tensor) -> torch.Tensor:
    for _ in range(min(2, x.shape[-1] // 4)):
        x = x.relu() + x
    return x


def rows(x: torch.Tensor) -> torch.Tensor:
    total = x.new_zeros(x.shape[0], x.shape[1], x.shape[3])
    for row in x.unbind(2):
        total = total.tanh() + row
    return x * total[:, :, None]


def tabled(x: torch.Tensor) -> torch.Tensor:
    return x * _TABLES.get(x.shape[-1], 1.0)


def counted(x: torch.Tensor) -> torch.Tensor:
    return x * 2 if x.shape[-1] in {12, 20} or (x.shape[2], 9) in _SHAPES else x


def chunked(x: torch.Tensor) -> torch.Tensor:
    return torch.cat([part.cumsum(2) for part in x.split(4, 2)], 2)


def by_list(x: torch.Tensor) -> torch.Tensor:
    return torch.cat([x.relu()] * (x.shape[2] // 4), 1).unflatten(1, (-1, 16)).sum(1)


def fractional(x: torch.Tensor) -> torch.Tensor:
    return F.interpolate(x, scale_factor=2.0) if x.shape[2] / 8 <= 1.25 else x * 3


def shaped(x: torch.Tensor) -> torch.Tensor:
    return x.flip(2) if x.shape[2:] == (8, 8) else x


@functools.lru_cache
def _halves(height: int, width: int) -> tuple[int, int]:
    return height // 2, width // 2


class Caching:
    halves = staticmethod(functools.cache(lambda shape: (shape[0] // 2, shape[1] // 2)))


def cached(x: torch.Tensor) -> torch.Tensor:
    return x * _halves(x.shape[2], x.shape[3])[0]


def valued(x: torch.Tensor) -> torch.Tensor:
    return x * 2 if torch.arange(x.shape[2]).sum() > 20 else x


# Name: what is between, resolutions that go the way of 8x8, and resolutions that do not.
CASES: dict[str, tuple[Forward, list[tuple[int, int]], list[tuple[int, int]]]] = {
    "pad if not a multiple": (padded, [(12, 12), (16, 8)], [(10, 10), (8, 9)]),
    "turned if upright": (turned, [(12, 12), (6, 9)], [(9, 6)]),
    "as many turns as columns": (repeated, [(4, 8), (9, 11)], [(8, 12), (8, 4)]),
    "no more turns than two": (clipped, [(16, 16)], [(4, 4)]),
    "a step for each row": (rows, [(8, 5)], [(9, 8), (7, 8)]),
    "a table of widths": (tabled, [(9, 8)], [(8, 12), (12, 12)]),
    "a table without the width": (lambda x: tabled(x[..., 1:]), [(9, 8)], [(8, 13), (8, 11)]),
    "a set": (counted, [], [(8, 12), (9, 8)]),
    "pieces of four": (chunked, [(7, 8), (5, 5)], [(4, 8), (9, 9)]),
    "a list as often": (by_list, [(9, 8)], [(12, 8)]),
    "a fraction": (fractional, [(10, 10), (6, 7)], [(11, 8)]),
    "the shape": (shaped, [], [(9, 8), (8, 9)]),
    "a value of the size": (valued, [(8, 9)], [(3, 8)]),
    "a cache": (cached, [(10, 8), (8, 10), (12, 12)], []),
    "a cache of an object": (lambda x: x * Caching.halves(x.shape[2:])[0], [(10, 8), (8, 10)], []),
}

if sys.version_info < (3, 11):  # where the line alone does not tell what a frame is calling
    CASES = {name: case for name, case in CASES.items() if "cache" not in name}


@pytest.mark.parametrize("case", CASES)
def test_a_graph_refuses_other_branches_and_is_right_on_its_own(case: str) -> None:
    between, same, other = CASES[case]
    model = Net(between).eval()
    graph = captured(model, torch.randn(2, 3, 8, 8)).module(model)
    for size in [(8, 8), *same]:
        x = torch.randn(3, 3, *size)
        torch.testing.assert_close(graph(x), model(x))
    for size in other:
        with pytest.raises(AssertionError, match=r"inputs of other sizes: .*test_decisions\.py:\d+ took"):
            graph(torch.randn(2, 3, *size))


@pytest.mark.parametrize("case", CASES)
def test_the_result_is_right_or_refuses(case: str) -> None:
    between, same, other = CASES[case]
    model = Net(between).eval()
    result = fxprune.compile(model, torch.randn(2, 3, 8, 8), 0.0)
    for size in [(8, 8), *same, *other]:
        x = torch.randn(3, 3, *size)
        context = pytest.raises(AssertionError, match="inputs of other sizes") if refuses(result, x) else nullcontext()
        with context:
            torch.testing.assert_close(result(x), model(x))
        assert size in other or not refuses(result, x)


def refuses(network: nn.Module, x: torch.Tensor) -> bool:
    try:
        network(x)
    except AssertionError:
        return True
    return False


def test_what_an_earlier_capture_left_in_a_cache_is_not_used() -> None:
    for _ in range(2):
        assert_equal_copy(Net(cached), torch.randn(2, 3, 6, 6), torch.randn(2, 3, 8, 10))


def roots(x: torch.Tensor) -> torch.Tensor:
    scale = math.sqrt(x.shape[2]) + math.log2(float(x.shape[3])) + max(x.shape[2], 5) + math.ceil(x.shape[3] / 3)
    return x / scale


def test_functions_of_sizes_stay_functions() -> None:
    assert not any(node.target is torch._assert for node in captured(Net(roots), torch.randn(2, 3, 8, 8)).graph.nodes)
    assert_equal_copy(Net(roots), torch.randn(2, 3, 8, 8), torch.randn(1, 3, 4, 12))


class Widths(Net):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        assert x.shape[1] == 16
        assert x.size(0) == len(x.relu())
        if x.shape[1] > 8 and x.shape[1] // 2 in (8, 9):
            x = x * math.sqrt(x.shape[1])
        return self.last(x + (x.sigmoid() if x.shape == self.first(x[:, :3]).shape else 0))


def test_decisions_on_widths_and_the_batch_leave_no_checks() -> None:
    result = pruned(Widths(turned), torch.randn(2, 3, 8, 8))
    sizes = [str(node.args[1]) for node in result.graph.nodes if node.target is torch._assert]
    assert all("dim 2" in text or "dim 3" in text for text in sizes)
    assert result(torch.randn(5, 3, 6, 6)).shape == (5, 4, 6, 6)


def test_checks_travel_with_copies_files_and_exports(tmp_path: Path) -> None:
    result = pruned(Net(repeated), torch.randn(2, 3, 8, 8))
    fxprune.save(result, tmp_path / "folder")
    loaded = fxprune.load(tmp_path / "folder")
    fxprune.export(result, tmp_path / "source", "source")
    assert "torch._assert" in (tmp_path / "source" / "model.py").read_text()
    for twin in (copy.deepcopy(result), pickle.loads(pickle.dumps(result)), loaded, result.train()):
        twin(torch.randn(1, 3, 12, 11))
        with pytest.raises(AssertionError, match="inputs of other sizes"):
            twin(torch.randn(1, 3, 9, 28))


def test_checks_are_exported_and_compiled(tmp_path: Path) -> None:
    result = pruned(Net(repeated), torch.randn(2, 3, 8, 8))
    assert fxprune.export(result, tmp_path / "net.pt2", "pt2").path
    x = torch.randn(3, 3, 12, 11)
    compiled = torch.compile(result, backend="eager", dynamic=True)
    torch.testing.assert_close(compiled(x), result(x))
    with pytest.raises(Exception, match="inputs of other sizes"):
        compiled(torch.randn(3, 3, 9, 28))


class PerImage(Net):
    """A batch of one takes another way than all others."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        return self.last(x[0][None] * 2 if x.shape[0] == 1 else x)


def test_the_batch_of_the_sample_counts() -> None:
    model = PerImage(turned).eval()
    single, several = torch.randn(1, 3, 6, 8), torch.randn(3, 3, 6, 8)
    for sample in (single, several):
        result = fxprune.compile(model, sample, 0.0)
        torch.testing.assert_close(result(single), model(single))
        torch.testing.assert_close(result(several), model(several))


class Flags(Net):
    def forward(self, x: torch.Tensor, times: int = 1, add: torch.Tensor | None = None, kind: str = "a") -> Any:
        x = self.first(x) * times
        for _ in range(times):
            x = x.relu() if kind == "a" else x.tanh()
        return self.last(x if add is None else x + add)


def test_arguments_that_are_no_tensors_are_those_of_the_sample() -> None:
    model = Flags(turned).eval()
    x = torch.randn(2, 3, 8, 8)
    result = pruned(model, {"x": x, "times": 2, "add": None, "kind": "b"})
    result(x, 2, None, "b")
    for other in ((3, None, "b"), (2, torch.ones(()), "b"), (2, None, "a")):
        with pytest.raises(AssertionError, match="this network was made for"):
            result(x, *other)
