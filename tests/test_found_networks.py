"""Networks that long runs over arbitrary ones have found, each with what it taught."""

from __future__ import annotations

import copy
import runpy
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fxprune
from tests.nets.gradients import Gradients, assert_equal, gradients, moved_by_rounding
from tests.nets.kept import kept_tensor
from tests.nets.oracles import masked
from tests.nets.specification import randomise
from tests.nets.values import relative_error
from tests.rules.oracles import random_plan


class SumOfCopies(nn.Module):
    """Copies of channels that a sum reads: what goes was no zero, so zeros cannot stand in for it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head, self.map = nn.Conv2d(3, 3, 3, padding=1), nn.Linear(36, 3), nn.Conv2d(9, 3, 1)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        copies = F.leaky_relu(self.first(x)).repeat_interleave(3, dim=1)
        return self.head(copies.sum(dim=1).flatten(1)), self.map(copies)


def test_removed_copies_are_not_zeros() -> None:
    model, x = SumOfCopies().double().eval(), torch.randn(2, 3, 6, 6).double()
    graph = fxprune.analyze(model, x)
    (group,) = [g for g in graph.groups if {m.tensor for m in g.members} == {"map.weight"}]
    for gone in range(3):
        mask = torch.arange(3).ne(gone).numpy()
        plan = fxprune.Plan.from_masks(graph, {group: mask}, {})
        pruned = fxprune.apply(model, x, plan)
        proof = fxprune.report(pruned).proof
        assert proof is not None
        assert proof.method == "nan-carrying"
        kept = plan.keep["map.weight"][1]
        assert kept is not None
        fewer = F.leaky_relu(model.first(x)).repeat_interleave(3, dim=1)[:, kept]
        expected = (model.head(fewer.sum(dim=1).flatten(1)), F.conv2d(fewer, model.map.weight[:, kept], model.map.bias))
        assert relative_error(pruned(x), expected) < 1e-9


class NothingButRounding(nn.Module):
    """The mean of an instance norm is zero: outputs and gradients are rounding, and no comparison may trip on them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(2, 8, 3, padding=1), nn.InstanceNorm2d(8)
        self.up, self.head = nn.ConvTranspose2d(8, 8, 2, stride=2, groups=4, bias=False), nn.Linear(8, 3, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.up(self.norm(self.first(x))).mean(dim=(2, 3)))


def test_a_network_whose_output_is_rounding_is_proven() -> None:
    model, x = NothingButRounding().eval(), torch.randn(2, 2, 4, 4)
    pruned = fxprune.compile(model, x, 0.5)
    assert fxprune.report(pruned).proof is not None
    assert pruned(x).abs().max() < 1e-5


class CancelledMean(nn.Module):
    """The same behind layers that add up in another order once they are narrower: only their rounding is left."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(1, 11, 3, padding=1, bias=False), nn.Conv2d(3, 4, 1)
        self.mix, self.up = nn.Conv2d(15, 7, 1, bias=False), nn.ConvTranspose2d(4, 7, 3, padding=1, bias=False)
        self.again = nn.ConvTranspose2d(7, 8, 3, padding=1, bias=False)
        self.norm, self.head = nn.InstanceNorm2d(8), nn.Linear(11, 3, bias=False)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        h = self.mix(torch.cat((self.left(x), self.right(y)), 1))
        h = self.up(h[:, 0:4] + F.pad(h[:, 4:7], (0, 0, 0, 0, 0, 1)))
        h = F.pad(self.norm(self.again(h)), (0, 0, 0, 0, 0, 3))
        return self.head(F.adaptive_avg_pool2d(h, 1).flatten(1))


def test_a_proof_does_not_compare_values_that_are_only_rounding() -> None:
    model, sample = CancelledMean().eval(), (torch.randn(2, 1, 6, 6), torch.randn(2, 3, 6, 6))
    randomise(model, 98)
    notes = []
    for twentieths in range(1, 13):
        proof = fxprune.report(fxprune.compile(model, sample, twentieths / 20, verify="full")).proof
        assert proof is not None
        notes += proof.notes
    assert any("zero but for rounding" in note for note in notes)


class SaturatedAttention(nn.Module):
    """Attention whose softmax is all but a maximum: the last digits of its inputs change its gradients by far more."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(6, 12), nn.Linear(12, 12), nn.Linear(12, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = 60 * self.first(x)
        h = 60 * self.second(F.scaled_dot_product_attention(h, h, h))
        return self.head(F.scaled_dot_product_attention(h, h, h))


def test_gradients_that_rounding_decides_are_compared_as_far_as_they_are_known() -> None:
    torch.manual_seed(14)
    model, sample = SaturatedAttention().eval(), (torch.randn(2, 5, 6),)
    pruned = fxprune.compile(model, sample, 0.3).double()
    plan = fxprune.report(pruned).plan
    assert plan is not None
    keep, sample = plan.keep, (sample[0].double(),)
    oracle = masked(model.double(), keep)

    def kept(network: nn.Module) -> Gradients:
        return {name: kept_tensor(gradient, keep[name]) for name, gradient in gradients(network, sample).items()}

    assert_equal(gradients(pruned, sample), kept(oracle), lambda: kept(moved_by_rounding(oracle)))


class SteppedOverGroups(nn.Module):
    """A slice with a step over groups that stay, of channels that may go: what it keeps can be a run by chance."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(4, 6, 3, padding=1, groups=2)
        self.stepped = nn.Conv2d(3, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.stepped(self.up(x)[:, 1::2])


def test_a_step_over_a_run_takes_no_more_than_the_run() -> None:
    model, x = SteppedOverGroups().double().eval(), torch.randn(2, 4, 4, 4).double()
    graph = fxprune.analyze(model, x)
    assert [group.size for group in graph.groups] == [3]
    for seed in range(8):
        plan = random_plan(graph, seed)
        pruned = fxprune.apply(model, x, plan)
        assert relative_error(pruned(x), masked(model, plan.keep)(x)) < 1e-9


class FilledBuffer(nn.Module):
    """A buffer that is empty until the first call makes it: a dim of no channels is no group."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 2, 1)
        self.register_buffer("ramp", torch.zeros(0), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.first(x)
        if self.ramp.shape[0] != h.shape[3]:
            self.ramp = torch.linspace(0, 1, h.shape[3])
        return self.last(h * self.ramp)


def test_a_dim_of_no_channels_is_no_group() -> None:
    model, x = FilledBuffer().eval(), torch.randn(2, 3, 4, 4)
    graph = fxprune.analyze(model, x)
    assert [group.size for group in graph.groups] == [6]
    pruned = fxprune.compile(model, x, 0.3)
    plan = fxprune.report(pruned).plan
    assert plan is not None
    assert relative_error(pruned(x), masked(model, plan.keep)(x)) < 1e-5


class StateOfTheBatch(nn.Module):
    """The batch of a recurrent layer's input is that of its state, so a table of rows cannot lose any."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(6, 16))
        self.first, self.layer, self.head = nn.Linear(8, 24), nn.GRU(16, 24, batch_first=True), nn.Linear(24, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.layer(self.table[:, None], torch.relu(self.first(x))[None])[1])


def test_input_and_state_of_a_recurrent_layer_share_a_batch() -> None:
    model, x = StateOfTheBatch().eval(), torch.randn(6, 8)
    pruned = fxprune.compile(model, x, 0.5)
    assert pruned.table.shape[0] == 6
    assert pruned(x).shape == model(x).shape


class NumbersInAColumn(nn.Module):
    """The first of several float features is the number of a row of a table."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.up, self.head = nn.Embedding(10, 8), nn.Linear(11, 16), nn.Linear(16, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.up(torch.cat([self.table(x[:, 0].long()), x[:, 1:]], 1))))


def test_random_inputs_keep_to_row_numbers_that_were_given() -> None:
    x = torch.cat([torch.randint(0, 10, (4, 1)).float(), torch.randn(4, 3)], 1)
    proof = fxprune.report(fxprune.compile(NumbersInAColumn().eval(), x, 0.3)).proof
    assert proof is not None
    assert proof.randomised


class ChecksUnlessTraced(nn.Module):
    """Refuses sizes, but not while it is traced."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not torch.jit.is_tracing() and x.shape[-1] % 32:
            raise RuntimeError("wrong input shape")
        return self.down(self.up(x))


def test_sizes_that_the_model_refuses_unless_it_is_traced_make_no_variant() -> None:
    pruned = fxprune.compile(ChecksUnlessTraced().eval(), torch.randn(2, 3, 64, 64), 0.3)
    assert pruned(torch.randn(1, 3, 32, 32)).shape == (1, 4, 32, 32)


class HeadsInTheBatch(nn.Module):
    """Heads go into the dim of the batch, and a table that the forward computes loses positions."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.of_time, self.out, self.head = (nn.Linear(a, b) for a, b in ((6, 8), (8, 8), (8, 8), (8, 3)))
        self.parts = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))

    def forward(self, x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        h = self.up(x)
        (batch, tokens, _), waves = h.shape, (time[:, None] * torch.arange(8, dtype=x.dtype)[None]).cos()
        h = h + self.of_time(waves)[:, None]
        q, k, v = (p(h).view(batch, tokens, 2, -1).transpose(1, 2).reshape(batch * 2, tokens, -1) for p in self.parts)
        mixed = torch.bmm(torch.bmm(q, k.transpose(1, 2)).softmax(-1), v).view(batch, 2, tokens, -1)
        return self.head(self.out(mixed.transpose(1, 2).reshape(batch, tokens, -1)) + h)


def test_what_is_kept_of_heads_in_the_batch_is_known_of_the_traced_batch_alone() -> None:
    model, sample = HeadsInTheBatch().eval(), (torch.randn(1, 5, 6), torch.rand(1))
    pruned = fxprune.compile(model, sample, 0.5, scope="uniform")
    assert pruned.of_time.in_features < 8
    assert pruned.parts[0].out_features < 8
    assert pruned(torch.randn(3, 5, 6), torch.rand(3)).shape == (3, 5, 3)


class Centred(nn.Module):
    """Of one channel, what is left behind its mean is zero: no output says what could stand for those that went."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 2, 1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.first(x)
        return self.head(h - h.mean(dim=1, keepdim=True))


def test_outputs_that_are_zero_show_no_stand_in_for_gradients() -> None:
    model, x = Centred().eval(), torch.randn(2, 2, 6, 6)
    pruned = fxprune.compile(model, x, 0.75, round_to=1, max_ratio=1.0, verify="full")
    assert pruned.first.out_channels == 1
    assert pruned(x).abs().max() < 1e-6


class Positions(nn.Module):
    """A table made in float32 whatever the type of the network, half of it written through a step from float64."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(6, 16), nn.Linear(16, 3)
        self.offset = torch.linspace(0, 3, 16)  # a tensor that no conversion of the module reaches

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        angles = 3 * torch.arange(x.size(1))[:, None] * torch.exp(-torch.arange(0, 16, 2) / 16)
        table = torch.zeros(x.size(1), 16) + (self.offset * 40).sin()
        table[:, 0::2], table[:, 1::2] = angles.sin().double(), angles.cos()
        return self.head((self.first(x) + 4 * table.to(x.dtype)).relu())


def test_constants_keep_their_type_when_the_network_is_converted(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = Positions().eval(), torch.randn(2, 200, 6)
    pruned = fxprune.compile(model, x, 0.5, round_to=1)
    assert pruned.first.out_features == 8
    plan = fxprune.report(pruned).plan
    assert plan is not None
    full = masked(model, {name: kept for name, kept in plan.keep.items() if name in model.state_dict()})
    torch.testing.assert_close(pruned(x), full(x))
    fxprune.save(pruned, tmp_path / "net")
    scope = runpy.run_path(str(tmp_path / "net" / "model.py"))
    alone = scope["Model"]()
    alone.load_state_dict(pruned.state_dict())
    expected = full.bfloat16()(x.bfloat16())
    for network in (pruned, fxprune.load(tmp_path / "net"), alone.eval()):
        answer = copy.deepcopy(network).bfloat16()(x.bfloat16())
        assert relative_error([answer], [expected]) < 0.02
        assert all(b.dtype == torch.float32 for b in copy.deepcopy(network).half().buffers() if b.is_floating_point())


class GrowingDropout(nn.Module):
    """In front of zeros, which equal rows give behind a batch norm, no answer tells one probability from another."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.drop = nn.Linear(2, 8), nn.BatchNorm1d(8, affine=False), nn.Dropout(0.0)
        self.head = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = F.gelu(self.norm(self.first(x)))
        if self.training:
            self.drop.p = min(0.5, self.drop.p + 0.1)
        return self.head(self.drop(h))


def test_a_layer_that_training_changes_is_refused_where_one_graph_serves_both_modes() -> None:
    pruned = fxprune.compile(GrowingDropout().eval(), torch.randn(1, 2), 0.5)
    with pytest.raises(fxprune.errors.ModeError):
        pruned.train()(torch.randn(4, 2))
    assert pruned.eval()(torch.randn(4, 2)).shape == (4, 3)


class AsksStridesOfOne(nn.Module):
    """A map of one position lies in either memory format at once, and its strides say which."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(2, 8, 3, stride=2, padding=1), nn.Conv2d(8, 3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.first(x.permute(0, 2, 1).reshape(x.shape[0], 2, 2, 2))
        return self.last(h.clamp(max=0.1) if h.stride()[-1] == 1 else h * 3)


def test_strides_of_dims_of_one_are_not_answered() -> None:
    with pytest.raises(fxprune.errors.FxpruneError, match="a dim of one"):
        fxprune.compile(AsksStridesOfOne().eval(), torch.randn(2, 4, 2), 0.5)


class ListedConstants(nn.Module):
    """Numbers written as lists are rounded to single precision before a function takes them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 12), nn.Linear(12, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.first(x).relu() * torch.sqrt(torch.FloatTensor([0.5]).to(x.device))
        return self.last(h) * torch.tensor([0.3] * 4).cos()


def test_constants_of_one_number_are_alike_in_a_graph_and_in_its_source() -> None:
    pruned = fxprune.compile(ListedConstants().eval(), torch.randn(3, 6), 0.5)
    assert fxprune.report(pruned).proof is not None


class CutByATensor(nn.Module):
    """A slice whose end is computed from a buffer, into which another value may be loaded."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.inner, self.last = nn.Linear(6, 12), nn.Linear(4, 8), nn.Linear(8, 4)
        self.register_buffer("ends", torch.tensor([4, 2]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.inner(self.first(x)[:, : self.ends.max()]).relu())


def test_a_slice_up_to_what_a_tensor_says_keeps_what_it_cuts() -> None:
    pruned = fxprune.compile(CutByATensor().eval(), torch.randn(3, 6), 0.2)
    assert pruned.get_parameter("first.weight").shape == (12, 6)
    assert len(pruned.get_parameter("inner.weight")) < 8


class TypedByPython(nn.Module):
    """Dtypes under the names of Python's own types."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 12), nn.Linear(12, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.first(x).relu()
        mask = torch.ones((len(h), 1), dtype=bool, device=h.device)
        return self.last(h.where(mask, 0.0)) + torch.zeros(4).to(int)


def test_dtypes_may_be_types_of_python() -> None:
    model, x = TypedByPython().eval(), torch.randn(3, 6)
    pruned = fxprune.compile(model, x, 0.5)
    torch.testing.assert_close(pruned(x), masked(model, fxprune.report(pruned).plan.keep)(x))
