"""Inputs a proof runs."""

from __future__ import annotations

import pytest
import torch

import fxprune
from fxprune.capture.samples import Sample
from fxprune.proof.probes import batch_sizes, candidates


@pytest.mark.parametrize(
    ("shape", "sizes"),
    [
        ((1, 3, 32, 32), (1, 3)),
        ((2, 3, 32, 32), (2, 3)),
        ((4, 3, 32, 32), (4, 5)),
        ((64, 3, 32, 32), (2, 3)),
        ((2, 10), (2, 12)),
    ],
)
def test_batch_sizes(shape: tuple[int, ...], sizes: tuple[int, int]) -> None:
    assert batch_sizes(Sample((torch.randn(shape),), {})) == sizes


def test_inputs_without_a_common_batch_keep_their_shapes() -> None:
    sample = Sample((torch.randn(3, 4), torch.randn(5, 4)), {})
    assert batch_sizes(sample) == ()
    first, others = candidates(sample, seed=0)
    assert [len(first), len(others)] == [1, 4]
    assert [t.shape for t in others[0].sample.tensors] == [(3, 4), (5, 4)]


@pytest.mark.parametrize(
    ("size", "expected"), [(224, [64, 192]), (384, [128, 352]), (96, [32, 64]), (32, [64]), (8, [16]), (2, [4])]
)
def test_the_second_resolution(size: int, expected: list[int]) -> None:
    _, others = candidates(Sample((torch.randn(1, 3, size, size),), {}), seed=0)
    assert [probe.resolutions for probe in others if probe.resized][: len(expected)] == [
        (f"{other}x{other}",) for other in expected
    ]
    assert others[len(expected)].resolutions == (f"{size}x{size}",)


def test_random_values_stay_in_the_range_of_the_sample() -> None:
    tokens = torch.tensor([[3, 9, 4], [5, 5, 3]])
    mask = torch.tensor([[True, False, True], [True, True, True]])
    bias = torch.tensor([[0.0, -torch.inf, 1.0], [0.5, 0.0, 0.0]])
    _, others = candidates(Sample((tokens, torch.zeros(2, 3)), {"mask": mask, "bias": bias}), seed=0)
    drawn, zeros = others[0].sample.args
    assert drawn.dtype == tokens.dtype
    assert 3 <= int(drawn.min()) <= int(drawn.max()) <= 9
    assert zeros.abs().sum() > 0
    assert torch.equal(others[0].sample.kwargs["mask"][:2], mask)
    assert torch.equal(torch.isinf(others[0].sample.kwargs["bias"][:2]), torch.isinf(bias))


def test_the_same_seed_draws_the_same_values() -> None:
    sample = Sample((torch.randn(2, 3, 8, 8),), {})
    one, two = (candidates(sample, seed=3)[1][0].sample.args[0] for _ in range(2))
    assert torch.equal(one, two)


def test_tokens_of_another_length() -> None:
    tokens, mask, other = torch.randint(0, 9, (2, 12)), torch.ones(2, 12), torch.randint(0, 9, (2, 6))
    _, probes = candidates(Sample((tokens, mask, other, torch.randn(2, 5)), {}), seed=0)
    assert [t.shape[1] for t in probes[0].sample.tensors] == [9, 9, 5, 5]
    assert probes[0].resized
    assert not probes[0].guessed
    assert not probes[1].resized


def test_a_series_may_have_its_steps_last_or_in_the_middle() -> None:
    _, probes = candidates(Sample((torch.randn(2, 8, 12),), {}), seed=0)
    assert [tuple(p.sample.tensors[0].shape[1:]) for p in probes[:3]] == [(8, 9), (6, 12), (8, 12)]
    assert [p.guessed for p in probes[:3]] == [True, True, False]


class Summed(torch.nn.Module):
    """Tokens whose number is written down in the trace, as a loop over them is."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = torch.nn.Embedding(9, 8), torch.nn.Linear(8, 3)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(torch.stack([self.table(t) for t in tokens.unbind(1)]).sum(0))


def test_a_trace_that_fits_one_length_is_noted() -> None:
    tokens = torch.randint(0, 9, (2, 8))
    proof = fxprune.report(fxprune.compile(Summed(), tokens, 0.3, verify="full")).proof
    assert proof is not None
    assert any("another length: the traced network fits the sample's own sizes only" in note for note in proof.notes)
