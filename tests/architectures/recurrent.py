"""Recurrent networks: layers, cells in a loop, and an encoder whose states start a decoder."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import rnn

from tests.architectures.architecture import Architecture

_WORDS = 13


def _words(batch: int) -> Tensor:
    return torch.randint(0, _WORDS, (batch, 7))


def _more_words(batch: int) -> Tensor:
    return torch.randint(0, _WORDS, (batch, 11))


class Tagger(nn.Module):
    """A convolution over words, then a stacked bidirectional layer."""

    def __init__(self, kind: type[nn.RNNBase], embedded: int, mixed: int, hidden: int) -> None:
        super().__init__()
        self.table, self.mix = nn.Embedding(_WORDS, embedded), nn.Conv1d(embedded, mixed, 3, padding=1)
        self.layers = kind(mixed, hidden, num_layers=2, bidirectional=True, batch_first=True, dropout=0.1)
        self.head = nn.Linear(2 * hidden, 5)

    def forward(self, words: Tensor) -> Tensor:
        h = self.mix(self.table(words).transpose(1, 2)).relu().transpose(1, 2)
        return self.head(self.layers(h)[0])


class LanguageModel(nn.Module):
    """Time first, a projected LSTM, and an output that shares the table of words."""

    def __init__(self, embedded: int, hidden: int) -> None:
        super().__init__()
        self.table = nn.Embedding(_WORDS, embedded)
        self.layers = nn.LSTM(embedded, hidden, num_layers=2, proj_size=embedded)
        self.head = nn.Linear(embedded, _WORDS, bias=False)
        self.head.weight = self.table.weight

    def forward(self, words: Tensor) -> Tensor:
        h = self.table(words.t())
        return self.head(h + self.layers(h)[0]).transpose(0, 1)


class SeparateLanguageModel(nn.Module):
    """The same with a state of a width of its own, and an output of its own."""

    def __init__(self, embedded: int, hidden: int, projected: int) -> None:
        super().__init__()
        self.table = nn.Embedding(_WORDS, embedded)
        self.layers = nn.LSTM(embedded, hidden, num_layers=2, proj_size=projected)
        self.head = nn.Linear(projected, _WORDS)

    def forward(self, words: Tensor) -> Tensor:
        return self.head(self.layers(self.table(words.t()))[0]).transpose(0, 1)


class Translator(nn.Module):
    """An encoder's last state starts the decoder, whose steps attend to all of the encoder's outputs."""

    def __init__(self, source: int, target: int, hidden: int, mixed: int) -> None:
        super().__init__()
        self.source, self.target = nn.Embedding(_WORDS, source), nn.Embedding(_WORDS, target)
        self.encoder = nn.GRU(source, hidden, batch_first=True)
        self.decoder = nn.GRU(target, hidden, batch_first=True)
        self.mix, self.head = nn.Linear(2 * hidden, mixed), nn.Linear(mixed, _WORDS)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        memory, state = self.encoder(self.source(source))
        h, _ = self.decoder(self.target(target), state)
        weights = torch.softmax(h @ memory.transpose(1, 2), -1)
        return self.head(torch.tanh(self.mix(torch.cat([h, weights @ memory], -1))))


class LearnedState(nn.Module):
    """The first state of each layer is a parameter: its dim 0 numbers the layers and is no width."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.h, self.c = nn.Parameter(torch.randn(2, 1, hidden)), nn.Parameter(torch.randn(2, 1, hidden))
        self.layers, self.head = nn.LSTM(6, hidden, num_layers=2, batch_first=True), nn.Linear(hidden, 3)

    def forward(self, x: Tensor) -> Tensor:
        state = self.h.expand(-1, x.shape[0], -1).contiguous(), self.c.repeat(1, x.shape[0], 1)
        return self.head(self.layers(x, state)[0])


class Cells(nn.Module):
    """Two different cells step over time by hand; the states start as zeros."""

    def __init__(self, embedded: int, first: int, second: int) -> None:
        super().__init__()
        self.enter = nn.Linear(6, embedded)
        self.first, self.second = nn.LSTMCell(embedded, first), nn.GRUCell(first, second)
        self.head = nn.Linear(second, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(x.shape[0], self.first.hidden_size)
        c = torch.zeros_like(h)
        g = x.new_zeros(x.shape[0], self.second.hidden_size)
        outputs = []
        for step in self.enter(x).unbind(1):
            h, c = self.first(step, (h, c))
            g = self.second(h, g)
            outputs.append(g)
        return self.head(torch.stack(outputs, 1))


class ImageToText(nn.Module):
    """Columns of a picture as time steps, as in reading of text lines."""

    def __init__(self, image: int, hidden: int, second: int) -> None:
        super().__init__()
        self.image = nn.Sequential(nn.Conv2d(1, image, 3, padding=1), nn.BatchNorm2d(image), nn.ReLU())
        self.first = nn.LSTM(image * 4, hidden, bidirectional=True, batch_first=True)
        self.second = nn.RNN(2 * hidden, second, batch_first=True, nonlinearity="relu")
        self.head = nn.Linear(second, 6)

    def forward(self, x: Tensor) -> Tensor:
        h = F.avg_pool2d(self.image(x), (2, 1))
        h = h.permute(0, 3, 1, 2).flatten(2)
        h, _ = self.first(h)
        return self.head(self.second(h)[0]).log_softmax(-1)


class Packed(nn.Module):
    """Sentences of several lengths: packed, read in both directions, the last states make the answer."""

    def __init__(self, embedded: int, hidden: int, mixed: int) -> None:
        super().__init__()
        self.table = nn.Embedding(_WORDS, embedded)
        self.layers = nn.LSTM(embedded, hidden, num_layers=2, bidirectional=True, batch_first=True)
        self.mix, self.head = nn.Linear(2 * hidden, mixed), nn.Linear(mixed + 2 * hidden, 5)

    def forward(self, words: Tensor, lengths: Tensor) -> Tensor:
        packed = rnn.pack_padded_sequence(self.table(words), lengths, batch_first=True, enforce_sorted=False)
        outputs, (state, _) = self.layers(packed)
        padded, _ = rnn.pad_packed_sequence(outputs, batch_first=True, total_length=words.shape[1])
        last = torch.cat([state[-2], state[-1]], -1)
        return self.head(torch.cat([self.mix(padded.amax(1)).relu(), last], -1))


_TAGGER = {"embedded": 8, "mixed": 10, "hidden": 6}
_TAGGER_GROUPS = {"embedded": "table", "mixed": "mix", "hidden": "layers.weight_ih_l0"}
NETWORKS = [
    *(
        Architecture(
            f"tagger, {kind.__name__}",
            lambda kind=kind, **widths: Tagger(kind, **widths),
            _TAGGER,
            _TAGGER_GROUPS,
            _words,
            _more_words,
        )
        for kind in (nn.LSTM, nn.GRU, nn.RNN)
    ),
    Architecture(
        "language model, tied",
        LanguageModel,
        {"embedded": 8, "hidden": 12},
        {"embedded": "table", "hidden": "layers.weight_ih_l0"},
        _words,
        _more_words,
    ),
    Architecture(
        "language model, projected",
        SeparateLanguageModel,
        {"embedded": 8, "hidden": 12, "projected": 6},
        {"embedded": "table", "hidden": "layers.weight_ih_l0", "projected": "layers.weight_hr_l0"},
        _words,
        _more_words,
    ),
    Architecture(
        "translator",
        Translator,
        {"source": 8, "target": 10, "hidden": 6, "mixed": 12},
        {"source": "source", "target": "target", "hidden": "encoder.weight_ih_l0", "mixed": "mix"},
        lambda n: (_words(n), _more_words(n)),
        lambda n: (_more_words(n), _words(n)),
    ),
    Architecture(
        "learned state",
        LearnedState,
        {"hidden": 8},
        {"hidden": "layers.weight_ih_l0"},
        lambda n: torch.randn(n, 5, 6),
        lambda n: torch.randn(n, 9, 6),
    ),
    Architecture(
        "cells",
        Cells,
        {"embedded": 8, "first": 10, "second": 6},
        {"embedded": "enter", "first": "first.weight_ih", "second": "second.weight_ih"},
        lambda n: torch.randn(n, 5, 6),
    ),
    Architecture(
        "packed",
        Packed,
        {"embedded": 8, "hidden": 6, "mixed": 10},
        {"embedded": "table", "hidden": "layers.weight_ih_l0", "mixed": "mix"},
        lambda n: (_words(n), torch.arange(n) % 6 + 2),
        lambda n: (_more_words(n), torch.arange(n) % 9 + 3),
    ),
    Architecture(
        "lines of text",
        ImageToText,
        {"image": 6, "hidden": 8, "second": 10},
        {"image": "image.0", "hidden": "first.weight_ih_l0", "second": "second.weight_ih_l0"},
        lambda n: torch.randn(n, 1, 8, 12),
        lambda n: torch.randn(n, 1, 8, 17),
    ),
]
