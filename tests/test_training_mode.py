"""Behaviour in training mode: the result has the graph of training mode where that is another one."""

from __future__ import annotations

import copy
import operator
import pickle
import runpy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree

import fxprune


class TwoModes(nn.Module):
    """Functional dropout and batch norm, a branch that training skips at random, and an auxiliary output."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.branch = nn.Conv2d(16, 16, 3, padding=1)
        self.auxiliary = nn.Sequential(nn.Conv2d(16, 8, 1), nn.ReLU(), nn.Conv2d(8, 2, 1))
        self.last = nn.Conv2d(16, 5, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        norm = self.norm
        h = F.batch_norm(
            self.first(x), norm.running_mean, norm.running_var, norm.weight, norm.bias, training=self.training
        )
        keep = torch.rand(x.shape[0], 1, 1, 1, device=x.device) < 0.5 if self.training else 1.0
        h = F.dropout(F.relu(h + keep * self.branch(h)), 0.3, self.training)
        return (self.last(h), self.auxiliary(h)) if self.training else self.last(h)


def seeded(module: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    torch.manual_seed(7)
    result = module(x)
    return list(result) if isinstance(result, tuple) else [result]


def agree(first: nn.Module, second: nn.Module, x: torch.Tensor) -> bool:
    pairs = zip(seeded(first, x), seeded(second, x), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def test_a_copy_at_ratio_zero_behaves_as_the_original_in_both_modes() -> None:
    model = TwoModes()
    pruned = fxprune.compile(model, torch.randn(1, 3, 8, 8), 0.0)
    x = torch.randn(4, 3, 10, 10)
    assert pruned.training
    assert agree(pruned, model, x)
    assert all(torch.equal(tensor, model.get_buffer(name)) for name, tensor in pruned.named_buffers())
    assert agree(pruned.eval(), model.eval(), x)


def test_the_auxiliary_head_is_pruned_with_the_rest_and_trains() -> None:
    pruned = fxprune.compile(TwoModes(), torch.randn(1, 3, 8, 8), 0.5, budget="params")
    assert pruned.get_parameter("auxiliary.0.weight").shape[1] == pruned.get_parameter("first.weight").shape[0] < 16
    main, auxiliary = pruned.train()(torch.randn(2, 3, 8, 8))
    (main.sum() + auxiliary.sum()).backward()
    assert all(p.grad is not None for p in pruned.parameters())


def test_copies_and_pickles_keep_both_modes() -> None:
    pruned = fxprune.compile(TwoModes(), torch.randn(1, 3, 8, 8), 0.4)
    x = torch.randn(3, 3, 8, 8)
    for twin in (copy.deepcopy(pruned), pickle.loads(pickle.dumps(pruned))):
        assert twin.state_dict().keys() == pruned.state_dict().keys()
        for mode in (True, False):
            start = copy.deepcopy(pruned).train(mode)
            assert agree(copy.deepcopy(twin).train(mode), start, x)


def test_one_graph_serves_both_modes_where_they_are_equal() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Dropout(0.5), nn.Conv2d(8, 2, 1))
    pruned = fxprune.compile(model, torch.randn(1, 3, 8, 8), 0.3)
    graph = pruned.train().graph
    assert pruned.eval().graph is graph


class ConstantInTraining(nn.Module):
    """A constant that only the graph of training mode has, on a width that can be cut."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        if self.training:
            x = x * torch.linspace(0.5, 1.0, 16).reshape(16, 1, 1)
        return self.last(F.relu(x))


def test_a_constant_of_training_mode_alone_is_cut_with_its_channels() -> None:
    model = ConstantInTraining()
    pruned = fxprune.compile(model, torch.randn(2, 3, 8, 8), 0.5)
    keep = fxprune.report(pruned).plan.keep["first.weight"][0]
    with torch.no_grad():
        model.last.weight[:, [i for i in range(16) if i not in keep.tolist()]] = 0
    x = torch.randn(3, 3, 8, 8)
    for mode in (True, False):
        torch.testing.assert_close(pruned.train(mode)(x), model.train(mode)(x))


def _transformer(batch_first: bool) -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    return nn.Transformer(16, 4, 1, 1, 32, 0.2, batch_first=batch_first), (torch.randn(5, 6, 16), torch.randn(5, 6, 16))


def _attention(batch_first: bool, shape: tuple[int, ...] = (5, 6, 16)) -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    x = torch.randn(*shape)
    return nn.MultiheadAttention(16, 4, dropout=0.2, batch_first=batch_first), (x, x, x)


class Flattened(nn.Module):
    """Reads the output of attention as it lies in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mixed: torch.Tensor = self.attention(x, x, x, need_weights=False)[0]
        return mixed.view(len(x), -1)


class FrozenNorm(nn.BatchNorm2d):
    """Never trains."""

    def train(self, mode: bool = True) -> FrozenNorm:
        return super().train(False)


class Stage(nn.Module):
    """A layer, a norm, and dropout as a function."""

    def __init__(self, norm: type[nn.BatchNorm2d] = nn.BatchNorm2d) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(8, 8, 3, padding=1), norm(8)
        self.norm.running_mean.normal_()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.dropout(F.relu(self.norm(self.conv(x))), 0.2, self.training)


class Staged(nn.Module):
    def __init__(self, norm: type[nn.BatchNorm2d] = nn.BatchNorm2d) -> None:
        super().__init__()
        self.stem, self.first, self.second = nn.Conv2d(3, 8, 3), Stage(norm), Stage()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(self.stem(x)))


class FrozenStage(Staged):
    """Its first stage never trains, as in detectors."""

    frozen = True

    def train(self, mode: bool = True) -> FrozenStage:
        super().train(mode)
        if self.frozen:
            self.first.eval()
        return self


class OwnEval(Staged):
    """Keeps dropout in eval mode, as Monte Carlo dropout does."""

    def eval(self) -> OwnEval:
        super().eval()
        self.second.training = True
        return self


class SetsAFlag(Staged):
    """Keeps its mode under a name of its own."""

    doubled = False

    def train(self, mode: bool = True) -> SetsAFlag:
        self.doubled = mode
        return super().train(mode)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * (2.0 if self.doubled else 1.0)


class ForgetsModes(Staged):
    """Its own train() touches no other module."""

    def __init__(self) -> None:
        super().__init__()
        super().train(False)

    def train(self, mode: bool = True) -> ForgetsModes:
        self.training = mode
        return self


OWN_MODES = {
    "a frozen stage": FrozenStage,
    "a norm that never trains": lambda: Staged(FrozenNorm),
    "an eval() of its own": OwnEval,
    "an attribute that train() sets": SetsAFlag,
    "a train() that leaves the parts alone": ForgetsModes,
}


def as_it_is(module: nn.Module) -> nn.Module:
    return module


def saved(folder: Path) -> Callable[[nn.Module], nn.Module]:
    def reloaded(module: nn.Module) -> nn.Module:
        fxprune.save(module, folder / "saved")
        return fxprune.load(folder / "saved")

    return reloaded


@pytest.mark.parametrize("start", ["train", "eval"])
@pytest.mark.parametrize("name", OWN_MODES)
def test_modes_are_those_that_the_model_itself_sets(name: str, start: str, tmp_path: Path) -> None:
    model = OWN_MODES[name]()
    getattr(model, start)()
    pruned = fxprune.compile(model, torch.randn(2, 3, 8, 8), 0.0)
    x = torch.randn(4, 3, 8, 8)
    for made in (copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), saved(tmp_path), as_it_is):
        twin, original = made(pruned), copy.deepcopy(model)
        for call in (None, "train", "eval", "train", "first.norm.train", "first.norm.eval", "first.train"):
            if call is not None:
                for module in (twin, original):
                    operator.attrgetter(call)(module)()
            flags = {path: module.training for path, module in original.named_modules()}
            assert all(part.training is flags[path] for path, part in twin.named_modules())
            twin.load_state_dict(original.state_dict())
            try:
                assert agree(twin, original, x)
            except fxprune.errors.ModeError:
                assert call == "first.train"


def test_modes_of_single_parts_are_kept_as_they_were() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 2, 1)).train()
    model[1].eval()
    pruned = fxprune.compile(model, torch.randn(2, 3, 8, 8), 0.0)
    assert (pruned.training, pruned.get_submodule("1").training) == (True, False)
    assert pruned.train().get_submodule("1").training


def test_a_call_looks_at_modes_that_were_set_without_train() -> None:
    model = Staged().eval()
    pruned = fxprune.compile(model, torch.randn(2, 3, 8, 8), 0.0)
    for module in (*model.modules(), *pruned.modules()):
        module.training = True
    assert agree(pruned, model, torch.randn(4, 3, 8, 8))


def test_a_mixture_of_modes_without_a_graph_is_refused() -> None:
    pruned = fxprune.compile(Staged(), torch.randn(2, 3, 8, 8), 0.0).train()
    pruned.get_submodule("first").eval()
    with pytest.raises(fxprune.errors.ModeError, match="first is in eval mode and other parts are not"):
        pruned(torch.randn(2, 3, 8, 8))


class Merges(nn.Module):
    """Adds a correction to its weight when it stops training."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.correction = nn.Conv2d(3, 8, 3), nn.Parameter(torch.ones(8, 3, 3, 3))

    def train(self, mode: bool = True) -> Merges:
        if self.training and not mode:
            self.conv.weight.data += self.correction
        return super().train(mode)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x)


class FreezesLate(Staged):
    def train(self, mode: bool = True) -> FreezesLate:
        self.first.requires_grad_(False)
        return super().train(mode)


@pytest.mark.parametrize(("kind", "words"), [(Merges, "values of a tensor"), (FreezesLate, "requires_grad of first")])
def test_a_train_that_does_more_than_set_modes_is_refused(kind: type[nn.Module], words: str) -> None:
    with pytest.raises(fxprune.errors.ModelError, match=words):
        fxprune.compile(kind(), torch.randn(2, 3, 8, 8), 0.0)


class Functional(nn.Module):
    """Calls its layer in one mode, and in the other only reads the weight."""

    def __init__(self, called_in_training: bool) -> None:
        super().__init__()
        self.first, self.inner, self.last = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3), nn.Conv2d(16, 4, 1)
        self.called_in_training = called_in_training

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.first(x))
        called = self.training is self.called_in_training
        return self.last(self.inner(x) if called else F.conv2d(x, self.inner.weight, self.inner.bias))


@pytest.mark.parametrize("called_in_training", [True, False])
def test_a_layer_of_one_mode_is_a_layer_though_the_other_reads_its_weight(called_in_training: bool) -> None:
    pruned = fxprune.compile(Functional(called_in_training), torch.randn(2, 3, 16, 16), 0.5)
    inner = pruned.get_submodule("inner")
    assert isinstance(inner, nn.Conv2d)
    assert inner.weight is pruned.get_parameter("inner.weight")
    x = torch.randn(2, 3, 16, 16)
    for twin in (pruned, copy.deepcopy(pruned), pickle.loads(pickle.dumps(pruned))):
        torch.testing.assert_close(twin.train()(x), twin.eval()(x))


class OtherStructure(nn.Module):
    """An opaque head that gives a dict in training and a list in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 3, 1)

    def forward(self, x: torch.Tensor) -> object:
        y = self.conv(x)
        return {"maps": [y, y, y]} if self.training else [y, y[y > 0].sum()]


def test_an_opaque_part_computes_in_training_what_the_original_does() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), OtherStructure())
    pruned = fxprune.compile(model, torch.randn(2, 3, 8, 8), 0.3)
    assert len(pruned.train()(torch.randn(2, 3, 8, 8))["maps"]) == 3
    assert len(pruned.eval()(torch.randn(2, 3, 8, 8))) == 2


ATTENTION = {
    "transformer": lambda: _transformer(True),
    "transformer, steps first": lambda: _transformer(False),
    "attention and its weights": lambda: _attention(True),
    "attention, steps first": lambda: _attention(False),
    "attention without a batch": lambda: _attention(False, (6, 16)),
    "a view of attention": lambda: (Flattened(), (torch.randn(5, 6, 16),)),
}


@pytest.mark.parametrize("name", ATTENTION)
def test_attention_draws_the_random_numbers_of_the_original(name: str) -> None:
    model, inputs = ATTENTION[name]()
    pruned = fxprune.compile(model.train(), inputs, 0.0)
    answers = []
    for module in (pruned, model):
        torch.manual_seed(7)
        answers.append(pytree.tree_leaves(module(*inputs)))
    assert len(answers[0]) == len(answers[1])
    for ours, theirs in zip(*answers, strict=True):
        assert torch.equal(ours, theirs)
        assert ours.stride() == theirs.stride()


def test_the_source_of_a_saved_network_keeps_a_frozen_stage(tmp_path: Path) -> None:
    fxprune.save(fxprune.compile(FrozenStage().eval(), torch.randn(2, 3, 8, 8), 0.0), tmp_path / "saved")
    namespace = runpy.run_path(str(tmp_path / "saved" / "model.py"))
    network = namespace["Model"]().train()
    assert [network.training, network.first.norm.training, network.second.norm.training] == [True, False, True]
    assert not any(part.training for part in network.eval().modules())


@pytest.mark.parametrize(
    "asked",
    [
        lambda net: vars(net)["training"],
        lambda net: net.__dict__["training"],
        lambda net: dict(copy.copy(net.__dict__).items())["training"],
        lambda net: operator.attrgetter("first.__dict__")(net)["training"],
        lambda net: operator.attrgetter("first.training")(net),
    ],
)
def test_a_mode_that_is_read_from_the_dict_of_attributes_is_seen(asked: Callable[[nn.Module], bool]) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 8, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h = self.first(x).relu()
            return self.last(h * 3 if asked(self) else h)

    model, x = Net().eval(), torch.randn(2, 3, 4, 4)
    pruned = fxprune.compile(model, x, 0.0)
    for training in (True, False):
        torch.testing.assert_close(pruned.train(training)(x), model.train(training)(x))
