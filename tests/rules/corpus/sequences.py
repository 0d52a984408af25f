"""Recurrent layers and cells, embeddings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import rnn

from tests.rules.cases import TOKENS, VECTOR, Case, Sample

WEIGHTS = ("first.weight", "cell.weight_ih_l0:1")


class Recurrent(nn.Module):
    """A recurrent layer between two linear ones; ``call(layer, h)`` says what is read of it."""

    def __init__(self, cls: type[nn.Module], width: int, call: Callable[[Any, Tensor], Tensor], **options: Any) -> None:
        super().__init__()
        self.call = call
        self.first, self.cell, self.last = nn.Linear(5, 6), cls(6, 8, **options), nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.call(self.cell, self.first(x)))


def _sequence(layer: Any, h: Tensor) -> Tensor:
    return layer(h)[0]


def _final(layer: Any, h: Tensor) -> Tensor:
    state = layer(h)[1]
    return (state[0] if isinstance(state, tuple) else state)[-1]


def _final_cell(layer: Any, h: Tensor) -> Tensor:
    _, (_, cell) = layer(h)
    return cell[-1]


def _last_step(layer: Any, h: Tensor) -> Tensor:
    return layer(h)[0][:, -1]


def _with_state(layer: Any, h: Tensor) -> Tensor:
    return layer(h, torch.zeros(layer.num_layers, h.shape[0], layer.hidden_size, dtype=h.dtype))[0]


def _with_states(layer: Any, h: Tensor) -> Tensor:
    zeros = h.new_zeros(layer.num_layers, h.shape[0], layer.hidden_size)
    return layer(h, (zeros, zeros))[0]


def _continued(layer: Any, h: Tensor) -> Tensor:
    first, state = layer(h[:, :3])
    return torch.cat((first, layer(h[:, 3:], state)[0]), 1)


def _both_ends(layer: Any, h: Tensor) -> Tensor:
    state = layer(h)[1]
    return torch.cat((state[-2], state[-1]), -1)


class Cell(nn.Module):
    """A cell stepped by hand."""

    def __init__(self, cls: type[nn.Module], **options: Any) -> None:
        super().__init__()
        self.first, self.cell, self.last = nn.Linear(5, 6), cls(6, 8, **options), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        state: Any = None
        for step in range(3):
            state = self.cell(h[:, step], state)
        return self.last(state[0] if isinstance(state, tuple) else state)


class Packed(nn.Module):
    """Sequences of several lengths, packed for two layers and padded again."""

    def __init__(self, cls: Any, batch_first: bool, enforce_sorted: bool, **options: Any) -> None:
        super().__init__()
        self.first, self.cell = nn.Linear(5, 8), cls(8, 6, batch_first=batch_first, **options)
        self.last = nn.Linear(6 * (2 if self.cell.bidirectional else 1), 4)
        self.batch_first, self.enforce_sorted = batch_first, enforce_sorted

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        h = self.first(x if self.batch_first else x.transpose(0, 1))
        h = rnn.pack_padded_sequence(h, lengths, self.batch_first, self.enforce_sorted)
        h, _ = self.cell(h)
        return self.last(rnn.pad_packed_sequence(h, self.batch_first)[0])


def _packed(name: str, cls: Any, batch_first: bool = True, enforce_sorted: bool = False, **options: Any) -> Case:
    return Case(
        f"recurrent/packed {name}",
        lambda: Packed(cls, batch_first, enforce_sorted, **options),
        lambda n: (torch.randn(n, 7, 5), torch.tensor([7 - i if enforce_sorted else 3 + i for i in range(n)])),
        ("first.weight", "cell.weight_hh_l0:1"),
    )


class Functional(nn.Module):
    """A cell as one function of bare parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, 6), nn.Linear(8, 4)
        self.inner, self.hidden = nn.Parameter(torch.randn(8, 6)), nn.Parameter(torch.randn(8, 8))

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        return self.last(torch.rnn_relu_cell(h, h.new_zeros(h.shape[0], 8), self.inner, self.hidden))


class Looked(nn.Module):
    """A table of rows, looked up by number; ``look(table, words)``."""

    def __init__(self, look: Callable[[Any, Tensor], Tensor], table: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.look = look
        self.table, self.norm, self.last = table(), nn.Linear(8, 6), nn.Linear(6, 4)

    def forward(self, words: Tensor) -> Tensor:
        return self.last(self.norm(self.look(self.table, words)).relu())


class TiedEmbedding(nn.Module):
    """A table that is also the last layer."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.inner = nn.Embedding(11, 8), nn.Linear(8, 8)
        self.last = nn.Linear(8, 11, bias=False)
        self.last.weight = self.table.weight

    def forward(self, words: Tensor) -> Tensor:
        return self.last(self.inner(self.table(words)).tanh())


class TiedByHand(TiedEmbedding):
    """The same with the product written out."""

    def forward(self, words: Tensor) -> Tensor:
        return self.inner(self.table(words)) @ self.table.weight.t()


def _words(batch: int) -> tuple[Tensor]:
    return (torch.randint(0, 11, (batch, 7)),)


def _steps_first(batch: int) -> tuple[Tensor]:
    return (torch.randn(7, batch, 5),)


def _layer(
    name: str,
    cls: type[nn.Module],
    call: Any,
    width: int = 8,
    sample: Sample = TOKENS.sample,
    hidden: str = "cell.weight_hh_l0:1",
    **options: Any,
) -> Case:
    resized = TOKENS.resized if options.get("batch_first") else None
    return Case(
        f"recurrent/{cls.__name__}, {name}",
        lambda: Recurrent(cls, width, call, **options),
        sample,
        (*WEIGHTS, *hidden.split()),
        resized=resized,
    )


_EACH = (nn.LSTM, nn.GRU, nn.RNN)
_FORMS: list[tuple[str, Any, int, dict[str, Any]]] = [
    ("sequence", _sequence, 8, {"batch_first": True}),
    ("last step", _last_step, 8, {"batch_first": True}),
    ("final state", _final, 8, {"batch_first": True}),
    ("stacked", _sequence, 8, {"batch_first": True, "num_layers": 2}),
    ("bidirectional", _sequence, 16, {"batch_first": True, "bidirectional": True}),
    (
        "stacked and bidirectional",
        _sequence,
        16,
        {"batch_first": True, "num_layers": 3, "bidirectional": True, "dropout": 0.1},
    ),
    ("without bias", _sequence, 8, {"batch_first": True, "bias": False}),
    ("continued", _continued, 8, {"batch_first": True}),
]

CASES = [
    *(_layer(name, cls, call, width, **options) for cls in _EACH for name, call, width, options in _FORMS),
    *(_layer("sequence first", cls, _sequence, sample=_steps_first) for cls in _EACH),
    *(_layer("unbatched", cls, _sequence, sample=lambda n: (torch.randn(7, 5),)) for cls in _EACH),
    *(_layer("given state", cls, _with_state, batch_first=True, num_layers=2) for cls in (nn.GRU, nn.RNN)),
    _layer("given state", nn.LSTM, _with_states, batch_first=True, num_layers=2),
    _layer("cell state", nn.LSTM, _final_cell, batch_first=True),
    _layer(
        "projected",
        nn.LSTM,
        _sequence,
        3,
        batch_first=True,
        proj_size=3,
        hidden="cell.weight_hr_l0 cell.weight_hr_l0:1",
    ),
    _layer(
        "projected, stacked and bidirectional",
        nn.LSTM,
        _sequence,
        6,
        batch_first=True,
        proj_size=3,
        num_layers=2,
        bidirectional=True,
        hidden="cell.weight_hr_l0 cell.weight_hr_l1_reverse:1",
    ),
    _layer("relu", nn.RNN, _sequence, batch_first=True, nonlinearity="relu"),
    _layer("both final states", nn.GRU, _both_ends, 16, batch_first=True, bidirectional=True),
    *(
        Case(
            f"recurrent/{cls.__name__}", lambda cls=cls: Cell(cls), TOKENS.sample, ("first.weight", "cell.weight_hh:1")
        )
        for cls in (nn.LSTMCell, nn.GRUCell, nn.RNNCell)
    ),
    _packed("LSTM", nn.LSTM, num_layers=2),
    _packed("GRU", nn.GRU, bidirectional=True),
    _packed("RNN, steps first", nn.RNN, batch_first=False, enforce_sorted=True),
    Case(
        "recurrent/RNNCell, relu",
        lambda: Cell(nn.RNNCell, nonlinearity="relu", bias=False),
        TOKENS.sample,
        ("first.weight", "cell.weight_hh:1"),
    ),
    Case("recurrent/functional cell", Functional, VECTOR.sample, ("first.weight", "inner", "hidden:1")),
    Case(
        "embedding/module",
        lambda: Looked(lambda t, w: t(w), lambda: nn.Embedding(11, 8)),
        _words,
        ("table.weight:1", "norm.weight"),
    ),
    Case(
        "embedding/module with padding",
        lambda: Looked(lambda t, w: t(w), lambda: nn.Embedding(11, 8, padding_idx=0)),
        _words,
        ("table.weight:1", "norm.weight"),
    ),
    Case(
        "embedding/function",
        lambda: Looked(lambda t, w: F.embedding(w, t.weight), lambda: nn.Embedding(11, 8)),
        _words,
        ("table.weight:1", "norm.weight"),
    ),
    Case(
        "embedding/torch function",
        lambda: Looked(lambda t, w: torch.embedding(t.weight, w), lambda: nn.Embedding(11, 8)),
        _words,
        ("table.weight:1", "norm.weight"),
    ),
    Case(
        "embedding/indexing",
        lambda: Looked(lambda t, w: t.weight[w], lambda: nn.Embedding(11, 8)),
        _words,
        ("table.weight:1", "norm.weight"),
    ),
    Case(
        "embedding/one hot",
        lambda: Looked(lambda t, w: F.one_hot(w, 11).to(t.weight.dtype) @ t.weight, lambda: nn.Embedding(11, 8)),
        _words,
        ("table.weight:1", "norm.weight"),
    ),
    Case(
        "embedding/positions",
        lambda: Looked(lambda t, w: t(w) + t(torch.arange(w.shape[1])), lambda: nn.Embedding(11, 8)),
        _words,
        ("table.weight:1", "norm.weight"),
    ),
    Case(
        "embedding/bag",
        lambda: Looked(lambda t, w: t(w), lambda: nn.EmbeddingBag(11, 8)),
        _words,
        ("table.weight:1", "norm.weight"),
    ),
    Case(
        "embedding/bag of sums",
        lambda: Looked(lambda t, w: F.embedding_bag(w, t.weight, mode="sum"), lambda: nn.EmbeddingBag(11, 8)),
        _words,
        ("table.weight:1", "norm.weight"),
    ),
    Case("embedding/tied", TiedEmbedding, _words, ("table.weight:1", "inner.weight")),
    Case("embedding/tied by hand", TiedByHand, _words, ("table.weight:1", "inner.weight")),
]
