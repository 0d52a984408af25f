"""What the values of single nodes show: wrong sizes, wrong picks and wrong claims are refused where they are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import fx, nn
from torch.nn import functional as F

import fxprune
from fxprune.errors import OptionError, ProofError
from fxprune.proof import Proof, UnjudgedError, prove_nodes
from fxprune.proof.nodes import Pair
from tests.proof.nodes.pairing import Rewritten, mixed, rewritten


def proven(given: Rewritten, pairs: list[Pair] | None = None) -> Proof:
    return prove_nodes(given.model, given.pruned, pairs or given.pairs, given.plan.keep)


# With which channels of the last layer go that leave no run of neighbours.
SEED = 1


class Shuffled(nn.Module):
    """Channels regrouped by numbers: views, picks, a grouped convolution, and arithmetic on sizes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.inner = nn.Conv2d(3, 12, 1), nn.Conv2d(12, 12, 3, padding=1, groups=3)
        self.last, self.head = nn.Conv2d(12, 8, 1), nn.Conv2d(4, 5, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.inner(self.first(x)))
        x = x.view(x.shape[0], 3, -1, *x.shape[2:]).transpose(1, 2).flatten(1, 2)
        x = self.last(x)
        return self.head(x[:, ::2] * (x.shape[2] // 2))


def shuffled() -> Rewritten:
    return rewritten(Shuffled(), torch.randn(2, 3, 8, 8), 0.4, criterion="random", seed=SEED)


# Views and picks by numbers are judged at two sizes; laws hold at all.
@pytest.mark.parametrize(("make", "batch_sizes"), [(mixed, (2,)), (shuffled, (2, 17))])
def test_a_right_rewrite_is_proven_node_by_node(make: Callable[[], Rewritten], batch_sizes: tuple[int, ...]) -> None:
    given = make()
    proof = proven(given)
    assert proof.nodes >= sum(len(pair.full.nodes) for pair in given.pairs) - 8
    assert proof.batch_sizes == batch_sizes
    assert len(proof.resolutions) == len(batch_sizes)
    assert proof.relative_error <= proof.tolerance == 1e-11


def changed(given: Rewritten, target: Any, change: Callable[[Any], Any]) -> None:
    """Change the whole numbers in the arguments of the first node with such a target."""
    node = next(n for n in given.pairs[0].narrow.nodes if target in (n.target, getattr(n.target, "__name__", "")))
    node.args = fx.node.map_aggregate(node.args, lambda a: change(a) if isinstance(a, int) else a)
    given.pruned.recompile()


@pytest.mark.parametrize(
    ("target", "change"),
    [
        ("transpose", lambda number: 3 - number if number == 1 else number),
        ("floordiv", lambda number: number + 1),
        ("view", lambda number: number + 1 if number > 1 else number),
    ],
)
def test_other_numbers_are_refused_where_they_stand(target: str, change: Callable[[Any], Any]) -> None:
    given = shuffled()
    changed(given, target, change)
    with pytest.raises((ProofError, UnjudgedError), match=f"{target}|flatten"):
        proven(given)


def test_another_pick_is_refused() -> None:
    given = shuffled()
    index = next(b for name, b in given.pruned.named_buffers() if "_kept_index" in name)
    index.copy_(index.flip(0))
    with pytest.raises(ProofError, match="node getitem"):
        proven(given)


def test_another_group_count_is_refused() -> None:
    class Grouped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.norm, self.last = nn.Conv2d(3, 12, 1), nn.GroupNorm(3, 12), nn.Conv2d(12, 4, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(self.norm(self.first(x)))

    given = rewritten(Grouped(), torch.randn(2, 3, 6, 6), 0.3)
    assert proven(given).nodes
    given.pruned.norm.num_groups = 1
    with pytest.raises(ProofError, match="node norm .*module norm"):
        proven(given)


def test_a_batch_that_was_written_down_is_refused() -> None:
    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Conv2d(3, 8, 1), nn.Linear(8, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.first(x).mean((2, 3))
            return self.last(x.view(x.shape[0], -1))

    given = rewritten(Flat(), torch.randn(2, 3, 4, 4), 0.3)
    assert proven(given).nodes
    node = next(n for n in given.pairs[0].narrow.nodes if n.target == "view")
    node.args = (node.args[0], 2, -1)
    given.pruned.recompile()
    with pytest.raises((ProofError, UnjudgedError), match="view|at other sizes|linear|last"):
        proven(given)


def test_false_claims_about_what_is_kept_fail() -> None:
    given = mixed()
    kept = dict(given.pairs[0].kept)
    name = "relu"
    index = kept[name][1]
    for wrong in (index.flip(0), index[:-1], (index + 1) % 12):
        claim = (None, wrong, None, None)
        with pytest.raises((ProofError, UnjudgedError)):
            proven(given, given.claiming(kept={**kept, name: claim}))


def test_entries_are_lost_only_after_an_operand_loses_some() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(self.first(x)[:, 0:4].softmax(1).mean(1))

    given = rewritten(Tokens(), torch.randn(2, 5, 6), 0.3)
    assert proven(given).nodes
    node = next(n for n in given.pairs[0].narrow.nodes if "getitem" in n.name)
    node.args = (node.args[0], (slice(None), slice(0, 3)))
    given.pruned.recompile()
    kept = dict(given.pairs[0].kept)
    lost = torch.arange(3)
    for name in ("getitem", "softmax"):
        kept[name] = (None, lost, kept[name][2])
    with pytest.raises((ProofError, UnjudgedError)):
        proven(given, given.claiming(kept=kept))


def test_a_forward_of_its_own_is_seen() -> None:
    given = mixed()
    type(given.pruned).forward = lambda self, x: torch.zeros(x.shape[0], 5)
    with pytest.raises(ProofError, match="forward"):
        proven(given)


def test_a_step_of_training_is_judged() -> None:
    given = rewritten(nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1)), torch.randn(4, 3, 5, 5))
    assert proven(given).nodes
    for network in (given.model, given.pruned):
        network.get_submodule("1").momentum = 0.0
    assert proven(given).nodes


def test_nothing_of_the_caller_changes() -> None:
    given = mixed()
    before = {name: tensor.clone() for name, tensor in given.model.state_dict().items()}
    generator, flags = torch.get_rng_state(), [m.training for m in given.pruned.modules()]
    narrow = {name: tensor.clone() for name, tensor in given.pruned.state_dict().items()}
    proven(given)
    for now, then in ((given.model.state_dict(), before), (given.pruned.state_dict(), narrow)):
        assert all(torch.equal(now[name], then[name]) for name in then)
    assert torch.equal(generator, torch.get_rng_state())
    assert flags == [m.training for m in given.pruned.modules()]


class Written(nn.Module):
    """Writes to a view of what is read later, and with ``twice`` another view is read, too."""

    def __init__(self, *, twice: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.twice, self.first, self.last = twice, nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        rows, columns = x[:, :, 1:3], x[..., 1]
        rows.zero_()
        return self.last(x + columns.mean() if self.twice else x)


def test_a_write_through_a_view_is_judged_in_what_others_read() -> None:
    given = rewritten(Written(), torch.randn(2, 3, 4, 5))
    assert proven(given).nodes
    changed(given, "getitem", lambda number: 4 if number == 3 else number)
    with pytest.raises(ProofError, match="node getitem"):
        proven(given)


def test_memory_that_others_read_is_left_to_whole_networks() -> None:
    pruned = fxprune.compile(Written(twice=True).eval(), torch.randn(2, 3, 4, 5), 0.3)
    proof = fxprune.report(pruned).proof
    assert proof is not None
    assert proof.nodes == 0
    assert "node by node it cannot be judged" in proof.notes[-1]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_types_are_proven(dtype: torch.dtype) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.GELU(), nn.Conv2d(8, 4, 1)).to(dtype).eval()
    proof = fxprune.report(fxprune.compile(model, torch.randn(2, 3, 5, 5).to(dtype), 0.3)).proof
    assert proof is not None
    assert proof.nodes == 4


def test_levels() -> None:
    model, sample = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(2, 4)
    proofs = [fxprune.report(fxprune.compile(model, sample, 0.3, verify=v)).proof for v in (True, "full", False)]
    assert [proof and bool(proof.nodes) for proof in proofs] == [True, False, None]
    with pytest.raises(OptionError, match="verify must be True, False or 'full'"):
        fxprune.compile(model, sample, 0.3, verify="fast")
    assert "nodes equals the masked original's" in str(fxprune.report(fxprune.compile(model, sample, 0.3)))


def test_a_network_of_another_pair_is_not_proven() -> None:
    given = mixed()
    with pytest.raises((ProofError, UnjudgedError)):
        proven(given, [replace(given.pairs[0], full=given.pairs[-1].full), *given.pairs[1:]])


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("cls", [nn.RNN, nn.LSTM, nn.GRU])
def test_recurrent_layers_of_usual_widths_do_not_magnify_rounding(cls: type[nn.RNNBase], layers: int) -> None:
    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.states, self.classes = cls(5, 48, layers, batch_first=True), nn.Linear(48, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.classes(self.states(x)[0][:, -1])

    torch.manual_seed(0)
    for ratio in (0.0, 0.5):
        proof = fxprune.report(fxprune.compile(Last().eval(), torch.randn(2, 24, 5), ratio)).proof
        assert proof is not None
        assert proof.nodes > 0
        assert proof.relative_error < 1e-11


class Noisy(nn.Module):
    """The mean over the steps of a series, with noise that is scaled to a range by its own extremes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Conv1d(6, 12, 3), nn.Linear(12, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean = self.first(x.transpose(1, 2)).mean(2)
        noise = torch.randn(mean.size())
        noise -= noise.min()
        noise /= noise.max()
        return self.last(mean + noise)


def test_noise_is_reduced_over_the_channels_that_stay() -> None:
    pruned = fxprune.compile(Noisy().eval(), torch.randn(2, 9, 6), 0.5)
    proof = fxprune.report(pruned).proof
    assert proof is not None
    assert proof.nodes
    assert len(proof.batch_sizes) == 2
    x = torch.randn(3, 11, 6)
    answer, noise = ((torch.manual_seed(5), draw())[1] for draw in (lambda: pruned(x), lambda: torch.randn(3, 6)))
    mean = F.conv1d(x.transpose(1, 2), pruned.first.weight, pruned.first.bias).mean(2)
    noise = (noise - noise.min()) / (noise - noise.min()).max()
    torch.testing.assert_close(answer, F.linear(mean + noise, pruned.last.weight, pruned.last.bias))
