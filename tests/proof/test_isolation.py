"""The caller's model is only read, whatever it is made of."""

from __future__ import annotations

import copy
import dataclasses
import random

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrizations

from fxprune.errors import ProofError
from fxprune.proof import prove
from fxprune.proof.copies import named_tensors, private_copy
from tests.proof import twins
from tests.proof.test_proving import run
from tests.proof.twins import Kept


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in named_tensors(model).items()}


@pytest.mark.parametrize("fail", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_nothing_of_the_caller_changes(fail: bool, training: bool) -> None:
    case = twins.conv_chain()
    for module in (case.original, case.captured, case.pruned):
        module.train(training)
    for module in (case.original, case.pruned):
        module.norm1.train(False)
        module.norm2.train(False)
    case.original(torch.randn(2, 3, 8, 8)).sum().backward()
    calls: list[int] = []
    case.original.conv1.register_forward_hook(lambda *_: calls.append(1))
    modules = {"original": case.original, "captured": case.captured, "pruned": case.pruned}
    before = {name: state(module) for name, module in modules.items()}
    grads = {name: p.grad.clone() for name, p in case.original.named_parameters()}
    training_flags = {n: m.training for module in modules.values() for n, m in module.named_modules()}
    generators = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    if fail:
        case.pruned.head.bias.data += 1
        before["pruned"] = state(case.pruned)
        with pytest.raises(ProofError):
            run(case)
    else:
        run(case)
    for name, module in modules.items():
        for key, tensor in state(module).items():
            assert torch.equal(tensor, before[name][key])
            assert tensor.dtype == before[name][key].dtype
    assert all(torch.equal(p.grad, grads[name]) for name, p in case.original.named_parameters())
    assert training_flags == {n: m.training for module in modules.values() for n, m in module.named_modules()}
    assert all(p.requires_grad for p in case.original.parameters())
    assert torch.equal(torch.get_rng_state(), generators[0])
    assert random.getstate() == generators[1]
    assert np.random.get_state()[1].tolist() == generators[2]
    assert torch.backends.mha.get_fastpath_enabled()
    assert torch.backends.mkldnn.enabled


def test_copies_keep_ties_and_take_non_leaf_tensors() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    model.cache = model[0].weight * 2
    model.table = {"scales": [torch.ones(2, dtype=torch.bfloat16)]}
    duplicate = private_copy(model, torch.float64)
    assert duplicate[1].weight is duplicate[0].weight
    assert duplicate[0].weight is not model[0].weight
    assert duplicate.cache.dtype == duplicate.table["scales"][0].dtype == torch.float64
    assert not duplicate.training
    assert model.training


def test_parts_that_cannot_be_copied_are_named() -> None:
    model = nn.Linear(2, 2)
    model.lines = (line for line in ())
    with pytest.raises(ProofError, match="cannot be copied"):
        private_copy(model, torch.float64)


class Tied(nn.Module):
    """Token embedding whose table is also the output projection, and a layer used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(9, 6)
        self.twice = nn.Linear(6, 6)
        self.head = nn.Linear(6, 9, bias=False)
        self.head.weight = self.table.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(torch.tanh(self.twice(torch.tanh(self.twice(self.table(tokens))))))


@pytest.mark.parametrize("name", ["table.weight", "head.weight"])
def test_a_tie_may_be_listed_under_one_of_its_names(name: str) -> None:
    kept = twins.index(0, 1, 4, 5)
    keep: Kept = {"twice.weight": (kept, kept), "twice.bias": (kept,)}
    model = Tied()
    captured = fx.symbolic_trace(model)
    pruned = twins.cut(captured, {**keep, "table.weight": (None, kept)})
    pruned.head.weight, pruned.head.in_features = pruned.table.weight, 4
    sample = ((torch.randint(0, 9, (3, 5)),), {})
    proof = prove(model, captured, pruned, {**keep, name: (None, kept)}, sample, crosses_norm=False)
    assert proof.tensors_checked == 4


@dataclasses.dataclass
class Answer:
    logits: Tensor
    parts: list[Tensor]
    note: str | None = None


class Structured(nn.Module):
    """Keyword inputs and outputs of every shape."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(6, 8)
        self.down = nn.Linear(8, 4)

    def forward(self, x: Tensor, scale: Tensor) -> dict[str, object]:
        y = self.down(torch.tanh(self.up(x))) * scale
        return {"logits": y, "parts": (y.sum(-1), [y.argmax(-1)]), "nothing": None}


def structured(columns: Tensor | None = None) -> tuple[nn.Module, fx.GraphModule, fx.GraphModule, Kept]:
    torch.manual_seed(0)
    model = Structured()
    captured = fx.symbolic_trace(model)
    kept = twins.index(0, 2, 3, 7)
    keep: Kept = {
        "up.weight": (kept, None),
        "up.bias": (kept,),
        "down.weight": (None, kept if columns is None else columns),
    }
    return model, captured, twins.cut(captured, keep), keep


def test_keyword_inputs_and_structured_outputs() -> None:
    model, captured, pruned, keep = structured()
    sample = ((torch.randn(2, 6),), {"scale": torch.rand(2, 1)})
    assert prove(model, captured, pruned, keep, sample, crosses_norm=False).batch_sizes == (2, 12)


def test_the_leaf_that_differs_is_named() -> None:
    model, captured, pruned, keep = structured(twins.index(0, 2, 3, 6))
    sample = ((torch.randn(2, 6),), {"scale": torch.rand(2, 1)})
    with pytest.raises(ProofError, match=r"output\["):
        prove(model, captured, pruned, keep, sample, crosses_norm=False)


class Parametrized(nn.Module):
    """Weight norm: zeroed rows would divide zero by zero."""

    def __init__(self) -> None:
        super().__init__()
        self.up = parametrizations.weight_norm(nn.Linear(6, 8))
        self.down = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(torch.relu(self.up(x)))


def test_weight_norm_is_compared_over_its_kept_rows() -> None:
    torch.manual_seed(0)
    model = Parametrized()

    class Leaves(fx.Tracer):
        def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
            return isinstance(m, nn.Linear)

    captured = fx.GraphModule(model, Leaves().trace(model))
    kept = twins.index(0, 2, 3, 7)
    prefix = "up.parametrizations.weight.original"
    keep: Kept = {
        f"{prefix}0": (kept, None),
        f"{prefix}1": (kept, None),
        "up.bias": (kept,),
        "down.weight": (None, kept),
    }
    pruned = twins.cut(captured, keep)
    proof = prove(model, captured, pruned, keep, ((torch.randn(2, 6),), {}), crosses_norm=False)
    assert proof.method == "nan-carrying"


class FixedBatch(nn.Module):
    """Refuses any batch but the one it was written for."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(6, 8)
        self.down = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(torch.relu(self.up(x.reshape(6, 6))))


def test_a_fixed_batch_is_no_error() -> None:
    kept = twins.index(0, 2, 3, 7)
    keep: Kept = {"up.weight": (kept, None), "up.bias": (kept,), "down.weight": (None, kept)}
    model = FixedBatch()
    captured = fx.symbolic_trace(model)
    sample = ((torch.randn(6, 6),), {})
    proof = prove(model, captured, twins.cut(captured, keep), keep, sample, crosses_norm=False)
    assert proof.batch_sizes == (6,)
    assert any("refuses" in note for note in proof.notes)


class NarrowTypes(nn.Module):
    """Writes float32 into its own forward, as mixed-precision code does."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(6, 8)
        self.down = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.softmax(self.up(x).float(), -1, dtype=torch.float32) + torch.linspace(0.3, 1, 1).exp() * 0.1
        return self.down(x.to(torch.float32)).float()


def test_narrow_types_in_the_source_cost_no_precision() -> None:
    kept = twins.index(0, 2, 3, 7)
    keep: Kept = {"up.weight": (kept, None), "up.bias": (kept,), "down.weight": (None, kept)}
    model = NarrowTypes()
    captured = fx.symbolic_trace(model)
    sample = ((torch.randn(2, 6),), {})
    proof = prove(model, captured, twins.cut(captured, keep), keep, sample, crosses_norm=True)
    assert proof.relative_error < 1e-13


def test_bfloat16_models_are_proven_in_float64() -> None:
    kept = twins.index(0, 2, 3, 7)
    keep: Kept = {"up.weight": (kept, None), "up.bias": (kept,), "down.weight": (None, kept)}
    model = FixedBatch().bfloat16()
    captured = fx.symbolic_trace(model)
    sample = ((torch.randn(6, 6, dtype=torch.bfloat16),), {})
    proof = prove(model, captured, twins.cut(captured, keep), keep, sample, crosses_norm=False)
    assert proof.relative_error < 1e-13


class Specialised(nn.Module):
    """Control flow on the resolution, which a trace cannot keep."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Conv2d(3, 8, 3)
        self.down = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(torch.relu(self.up(x))) * self.factor(x.shape[-1])

    @staticmethod
    def factor(width: int) -> float:
        return 1.0 if not isinstance(width, int) or width < 10 else 2.0


def test_a_trace_that_fits_one_resolution_is_proven_there_only() -> None:
    kept = twins.index(0, 2, 3, 7)
    keep: Kept = {
        "up.weight": (kept, None, None, None),
        "up.bias": (kept,),
        "down.weight": (None, kept, None, None),
    }
    model = Specialised()
    captured = fx.symbolic_trace(model)
    sample = ((torch.randn(1, 3, 8, 8),), {})
    proof = prove(model, captured, twins.cut(captured, keep), keep, sample, crosses_norm=False)
    assert proof.resolutions == ("8x8",)
    assert proof.batch_sizes == (1, 12)
    assert any("fits the sample's own sizes only" in note for note in proof.notes)


def test_narrower_outputs_are_compared_at_the_kept_positions() -> None:
    kept = twins.index(0, 2, 3)
    keep: Kept = {"down.weight": (kept, None), "down.bias": (kept,)}
    model = nn.Sequential()
    model.add_module("up", nn.Linear(6, 8))
    model.add_module("down", nn.Linear(8, 4))
    captured = fx.symbolic_trace(model)
    pruned = twins.cut(captured, keep)
    sample = ((torch.randn(2, 6),), {})
    assert prove(model, captured, pruned, keep, sample, crosses_norm=False).method == "nan-carrying"
    pruned = copy.deepcopy(pruned)
    output = list(pruned.graph.nodes)[-1]
    with pruned.graph.inserting_before(output):
        output.args = (pruned.graph.call_method("flip", (output.args[0], (-1,))),)
    pruned.recompile()
    with pytest.raises(ProofError, match="outputs"):
        prove(model, captured, pruned, keep, sample, crosses_norm=False)


def test_index_lists_may_be_added_and_values_may_not() -> None:
    case = twins.attention()
    graph = case.pruned.graph
    first = next(iter(graph.nodes))
    for name, tensor in (("_index", torch.arange(3)), ("_value", torch.rand(3))):
        case.pruned.register_buffer(name, tensor, persistent=False)
        with graph.inserting_before(first):
            graph.get_attr(name)
        case.pruned.recompile()
        if name == "_index":
            run(case)
    with pytest.raises(ProofError, match="no counterpart"):
        run(case)


def test_random_numbers_in_eval_mode_are_named() -> None:
    class Noisy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.rand(int(torch.randint(1, 9, ())), 1).mean()

    model = Noisy()
    captured = fx.symbolic_trace(nn.Identity())
    with pytest.raises(ProofError, match="draws random numbers"):
        prove(model, captured, copy.deepcopy(captured), {}, ((torch.randn(2, 3),), {}), crosses_norm=False)


def test_state_between_calls_is_named() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.calls: list[int] = []

        def forward(self, x: Tensor) -> Tensor:
            self.calls.append(1)
            return x + len(self.calls)

    captured = fx.symbolic_trace(nn.Identity())
    with pytest.raises(ProofError, match="keeps state between calls"):
        prove(Counting(), captured, copy.deepcopy(captured), {}, ((torch.randn(2, 3),), {}), crosses_norm=False)
