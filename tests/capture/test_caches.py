"""What user code keeps for later: nothing of a trace or a proof stays in it, and what it holds fixes no size."""

from __future__ import annotations

import functools
import queue
import threading
from collections import deque
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.capture.builtin_calls import _VARIANTS
from fxprune.capture.reachable import reachable
from tests.capture.compiled import captured

_GRIDS: dict[Any, Any] = {}
_NESTED: dict[str, dict[Any, Any]] = {"grids": {}}
_LIST: list[Any] = []
_LAST: deque[Any] = deque(maxlen=2)
_grid: Any = None


def made(x: Tensor) -> Tensor:
    return torch.linspace(0, 1, x.shape[-1], device=x.device, dtype=x.dtype)


@functools.lru_cache(8)
def cached(n: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    return torch.arange(0.5, n, device=device, dtype=dtype) / n


@functools.cache
def without_size(device: torch.device) -> Tensor:
    return torch.ones(1, device=device) / 3


def of_any_type(x: Tensor) -> Tensor:
    if "grid" not in _GRIDS:  # the type of whoever comes first
        _GRIDS["grid"] = made(x)
    return _GRIDS["grid"]  # type: ignore[no-any-return]


def in_a_dict(x: Tensor) -> Tensor:
    return _GRIDS.setdefault(str(x.size()), made(x))  # type: ignore[no-any-return]


def nested(x: Tensor) -> Tensor:
    return _NESTED["grids"].setdefault(x.shape[-1], made(x))  # type: ignore[no-any-return]


def in_lists(x: Tensor) -> Tensor:
    if not _LIST:
        _LIST.append(made(x))
    _LAST.append(_LIST[0])
    return _LIST[0]  # type: ignore[no-any-return]


def in_a_global(x: Tensor) -> Tensor:
    global _grid
    if _grid is None:
        _grid = made(x)
    return _grid  # type: ignore[no-any-return]


def in_a_default(x: Tensor, kept: dict[int, Tensor] = {}) -> Tensor:  # noqa: B006  such a cache is the point
    return kept.setdefault(0, made(x))


def in_an_attribute(x: Tensor) -> Tensor:
    if not hasattr(in_an_attribute, "grid"):
        in_an_attribute.grid = made(x)  # type: ignore[attr-defined]
    return in_an_attribute.grid  # type: ignore[attr-defined, no-any-return]


def _enclosed() -> Any:
    kept: Any = None

    def in_a_closure(x: Tensor) -> Tensor:
        nonlocal kept
        if kept is None:
            kept = made(x)
        return kept  # type: ignore[no-any-return]

    return in_a_closure


class Table:
    """A helper with a cache in the class and one in the object."""

    shared: Any = None

    def __init__(self) -> None:
        self.own: dict[str, Tensor] = {}

    def __call__(self, x: Tensor) -> Tensor:
        if Table.shared is None:
            Table.shared = made(x)
        return self.own.setdefault("grid", Table.shared)


def by_cache(x: Tensor) -> Tensor:
    return cached(x.shape[-1], x.device, x.dtype) * without_size(x.device)


KEEPERS = {
    "lru_cache": by_cache,
    "dict": in_a_dict,
    "without dtype": of_any_type,
    "dict in a dict": nested,
    "lists": in_lists,
    "global": in_a_global,
    "default": in_a_default,
    "function attribute": in_an_attribute,
    "closure": _enclosed(),
    "object": Table(),
}


class Net(nn.Module):
    def __init__(self, keeper: Any) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 12, 3, padding=1), nn.Conv2d(12, 4, 1)
        self.keeper = [keeper]  # a list, so that copies of the model have the same function

    def __deepcopy__(self, memo: Any) -> Net:
        twin = self.__class__.__new__(self.__class__)
        nn.Module.__init__(twin)
        twin.first, twin.last = (__import__("copy").deepcopy(m, memo) for m in (self.first, self.last))
        twin.training, twin.keeper = self.training, self.keeper
        return twin

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        return self.last(y * KEEPERS[self.keeper[0]](y))


@pytest.mark.parametrize("keeper", KEEPERS)
def test_no_tensor_of_a_trace_or_a_proof_stays(keeper: str) -> None:
    model, sample = Net(keeper).eval(), torch.randn(2, 3, 16, 16)
    assert KEEPERS[keeper] is not by_cache or cached.cache_info().currsize == 0
    pruned = fxprune.compile(model, sample, 0.0)
    answer = model(sample)  # the first run that the user makes
    assert answer.dtype is torch.float32
    torch.testing.assert_close(pruned(sample), answer)
    other = Net(keeper).eval()
    assert other(sample).dtype is torch.float32


def test_a_failed_capture_leaves_nothing_either() -> None:
    @functools.cache
    def grid(device: torch.device) -> Tensor:
        return torch.ones(8, device=device)

    class Fails(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            y = self.layer(x) * grid(x.device)
            return y[y > 0].sum() + np.random.rand()

    model, sample = Fails().eval(), torch.randn(2, 8)
    with pytest.raises(fxprune.FxpruneError):
        fxprune.compile(model, sample, 0.3)
    assert model(sample).isfinite()


class Recipes(nn.Module):
    """Shapes come out of a cache that earlier runs have filled."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(32, 64), nn.Linear(64, 8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        return self.last(y.reshape(_recipe(tuple(y.shape))).softmax(-1).flatten(2))


@functools.lru_cache(64)
def _recipe(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (shape[0], shape[1], 4, int(shape[2] / 4))


def test_a_warm_cache_of_shapes_fixes_no_size() -> None:
    model, sample = Recipes().eval(), torch.randn(2, 10, 32)
    for batch in (1, 2, 3):
        model(sample[:1].expand(batch, -1, -1))
    pruned = fxprune.compile(model, sample, 0.0)
    for batch, length in ((1, 10), (3, 10), (5, 7)):
        x = torch.randn(batch, length, 32)
        torch.testing.assert_close(pruned(x), model(x))


# -- einops -----------------------------------------------------------------------------------------------------------


def _einops_nets() -> dict[str, tuple[nn.Module, tuple[int, ...]]]:
    einops = pytest.importorskip("einops")
    layers = pytest.importorskip("einops.layers.torch")

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.packed, self.last = nn.Linear(32, 96), nn.Linear(32, 8)

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = einops.rearrange(self.packed(x), "b n (three h d) -> three b h n d", three=3, h=4)
            mixed = (q @ k.transpose(-1, -2)).softmax(-1) @ v
            return self.last(einops.rearrange(mixed, "b h n d -> b n (h d)"))

    class Token(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last, self.token = nn.Linear(16, 32), nn.Linear(32, 8), nn.Parameter(torch.randn(1, 1, 32))

        def forward(self, x: Tensor) -> Tensor:
            y = torch.cat([einops.repeat(self.token, "1 1 d -> b 1 d", b=x.shape[0]), self.first(x)], 1)
            return self.last(einops.reduce(y, "b n d -> b d", "mean"))

    patches = layers.Rearrange("b c (h p1) (w p2) -> b (h w) (p1 p2 c)", p1=4, p2=4)
    shuffle, pool = layers.Rearrange("b (g c) h w -> b (c g) h w", g=4), layers.Reduce("b c h w -> b c", "mean")
    return {
        "patches": (nn.Sequential(patches, nn.Linear(48, 32), nn.ReLU(), nn.Linear(32, 8)), (3, 16, 16)),
        "shuffle": (nn.Sequential(nn.Conv2d(3, 16, 1), shuffle, pool, nn.Linear(16, 4)), (3, 8, 8)),
        "attention": (Attention(), (10, 32)),
        "token": (Token(), (10, 16)),
    }


@pytest.mark.parametrize("name", ["patches", "shuffle", "attention", "token"])
def test_einops_after_a_run_takes_other_batches(name: str) -> None:
    model, shape = _einops_nets()[name]
    model.eval()
    for batch in (1, 2, 3):
        model(torch.randn(batch, *shape))
    pruned = fxprune.compile(model, torch.randn(2, *shape), 0.0)
    for batch in (1, 2, 3, 5):
        x = torch.randn(batch, *shape)
        torch.testing.assert_close(pruned(x), model(x), rtol=1e-4, atol=1e-5)


# -- names that keep their meaning ------------------------------------------------------------------------------------

# A list would get its entries back.
_seen: queue.SimpleQueue[Any] = queue.SimpleQueue()


class Asks(nn.Module):
    """Asks for types in every way, converts sizes, and has another thread look around."""

    step = 2

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        thread = threading.Thread(target=_look)
        thread.start()
        thread.join()
        right = type(self.step) is int and float is float and isinstance(y.shape[0], int)
        right = right and type(y.shape[0]) is int and {int: True}[type(self.step)] and int in (int,)
        right = (
            right and torch.zeros(1, dtype=int).dtype is torch.int64 and np.zeros(1, dtype=float).dtype == np.float64
        )
        y = y if right else -y
        length = int(y.shape[1] * 2 / 2)
        first, second = map(int, (y.shape[0], y.shape[1]))
        return self.last(y.reshape(first, max(length * second // length, 1), 16))


def _look() -> None:
    _seen.put((int, type, len, int is int, _look.__globals__.get("int")))


def test_names_keep_their_meaning() -> None:
    model, sample = Asks().eval(), torch.randn(2, 5, 8)
    codes = {f: f.__code__ for f in reachable(model).functions}
    names = dict(vars(__import__("builtins")))
    pruned = fxprune.compile(model, sample, 0.0)
    assert {f: f.__code__ for f in codes} == codes
    assert vars(__import__("builtins")) == names
    assert not any(name.isidentifier() for name in _VARIANTS)  # what stays there nobody else can name
    assert {_seen.get() for _ in range(_seen.qsize())} == {(int, type, len, True, None)}
    for batch, length in ((2, 5), (3, 5), (4, 9)):  # sizes stay sizes through int, max and map
        x = torch.randn(batch, length, 8)
        torch.testing.assert_close(pruned(x), model(x))


def test_another_thread_runs_the_model_meanwhile() -> None:
    model, sample = Net("lru_cache").eval(), torch.randn(2, 3, 16, 16)
    expected, wrong, done = model(sample), list[Any](), threading.Event()

    def run() -> None:
        while not done.is_set():
            try:
                if not torch.allclose(model(sample), expected, atol=1e-5):  # a proof may switch kernels
                    wrong.append("another answer")
            except Exception as error:  # whatever it is, it is wrong
                wrong.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        fxprune.compile(model, sample, 0.3)
    finally:
        done.set()
        thread.join()
    assert wrong == []


def test_only_tensors_and_sizes_are_taken_out_of_a_shared_list() -> None:
    kept: list[Any] = [torch.ones(1)]
    before = kept[0]

    class Keeps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            kept.extend((x.shape[0], made(x), "a word"))
            return self.last(self.first(x))

    captured(Keeps(), torch.randn(2, 4))
    assert kept[0] is before
    assert kept[1:] == ["a word"]


_WAKES = threading.Event()


class Watcher(threading.Thread):
    def run(self) -> None:
        _WAKES.wait()


_WATCHER = Watcher(daemon=True)


class Watched(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if _WATCHER is None else 2 * x


def test_what_a_running_thread_holds_is_its_own() -> None:
    """It may change between two traces, and the forward has no part in that."""

    def is_looked_at() -> bool:
        return any(held is vars(_WATCHER) for held in reachable(Watched()).containers)

    assert is_looked_at()
    _WATCHER.start()
    assert not is_looked_at()
    _WAKES.set()
    _WATCHER.join()
    assert is_looked_at()
