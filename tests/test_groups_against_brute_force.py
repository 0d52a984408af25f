"""The channel groups of an analysis are those of the element-level coupling, worked out one channel at a time."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, note

from tests.nets.blocks.composite import Block
from tests.nets.blocks.crossed import FAULTS_SHOW, UNALIGNED
from tests.nets.observed import Comparison, analyzed, compare
from tests.nets.specification import Specification
from tests.nets.strategy import BLOCKS, random_specification, single_block, specifications

# Shares of fewer networks move by more than a point whenever the strategy draws others.
RANDOM_NETS = 320
LEAST_EQUAL = 0.95
SEEDS_OF_A_BLOCK = 6

EVERY_BLOCK = [
    pytest.param(rank, block, id=f"{block.__module__.rpartition('.')[2]}-{block.__name__}")
    for rank, blocks in BLOCKS.items()
    for block in dict.fromkeys(blocks)
    if block not in UNALIGNED
]


def compared(specification: Specification) -> Comparison:
    model = specification.build()
    before = torch.random.get_rng_state()
    comparison = compare(specification, analyzed(specification, model))
    assert torch.equal(before, torch.random.get_rng_state())
    return comparison


@given(specifications())
def test_no_group_is_looser_than_the_coupling(specification: Specification) -> None:
    comparison = compared(specification)
    for unit in comparison.unsound:
        note(f"these entries cannot go alone: {sorted(unit)}")
    assert not comparison.unsound


@pytest.mark.parametrize(("rank", "block"), EVERY_BLOCK)
def test_the_groups_of_a_block_are_exactly_those_of_the_coupling(rank: int, block: Block) -> None:
    for seed in range(SEEDS_OF_A_BLOCK):
        specification = single_block(rank, block, seed)
        comparison = compared(specification)
        missed = [sorted(group.units[0]) for group in comparison.missed]
        assert comparison.equal, f"missed {missed}\nunsound {comparison.unsound}\nin {specification}"


@pytest.mark.parametrize("block", [*UNALIGNED, *FAULTS_SHOW], ids=lambda block: block.__name__)
def test_a_block_whose_sizes_cut_across_one_another_is_never_grouped_more_loosely(block: Block) -> None:
    comparisons = [compared(single_block(4, block, seed)) for seed in range(2 * SEEDS_OF_A_BLOCK)]
    assert not any(comparison.unsound for comparison in comparisons)
    assert any(comparison.equal for comparison in comparisons)


def test_the_groups_of_arbitrary_networks_are_those_of_the_coupling() -> None:
    drawn = [random_specification(seed) for seed in range(RANDOM_NETS)]
    assert not any(compared(s).unsound for s in drawn if s.unaligned)
    comparisons = [compared(s) for s in drawn if not s.unaligned]
    equal = sum(comparison.equal for comparison in comparisons) / len(comparisons)
    free = sum(comparison.free for comparison in comparisons)
    found = 1 - sum(len(comparison.missed) for comparison in comparisons) / free
    print(f"\nnetworks with equal groups: {equal:.1%} of {len(comparisons)}; free groups found: {found:.1%} of {free}")
    assert equal >= LEAST_EQUAL
    assert found >= LEAST_EQUAL
