"""The proof accepts right twins, refuses wrong ones, and leaves no trace."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx, nn

import fxprune
from fxprune.errors import ProofError
from fxprune.proof import Proof, prove
from fxprune.proof.attributes import check_code
from fxprune.proof.masking import check_tensors
from tests.proof import twins
from tests.proof.twins import Twin


def run(case: Twin, **changes: object) -> Proof:
    arguments = {**vars(case), **changes}
    return prove(**arguments)


@pytest.mark.parametrize("make", twins.ALL)
def test_right_twins_pass(make: Callable[[], Twin]) -> None:
    case = make()
    proof = run(case)
    assert proof.method == ("nan-carrying" if case.crosses_norm else "masked")
    assert proof.relative_error <= proof.tolerance == 1e-9
    assert proof.dtype == "float64"
    assert not proof.vacuous
    assert len(proof.batch_sizes) == 2
    assert proof.tensors_checked == len(case.pruned.state_dict())


@pytest.mark.parametrize("make", twins.ALL)
def test_nan_carrying_agrees_where_zeros_would_do(make: Callable[[], Twin]) -> None:
    assert run(make(), crosses_norm=True).method == "nan-carrying"


def test_crossing_a_norm_is_noticed_when_the_caller_does_not_say_so() -> None:
    proof = run(twins.norm_crossing(), crosses_norm=False)
    assert proof.method == "nan-carrying"
    assert any("outputs (masked)" in note for note in proof.notes)


def test_batch_sizes_and_resolutions() -> None:
    proof = run(twins.conv_chain())
    assert proof.batch_sizes == (2, 12)
    assert proof.resolutions == ("8x8", "16x16")


def test_proof_is_plain_data() -> None:
    proof = run(twins.attention())
    assert pickle.loads(pickle.dumps(proof)) == proof
    assert json.loads(json.dumps(proof.as_dict()))["method"] == "masked"


# ---- faults ----


def swap_rows(pruned: fx.GraphModule, name: str) -> None:
    tensor = pruned.get_parameter(name).data
    tensor.copy_(tensor[torch.arange(len(tensor)).roll(1)])


def swap_columns(pruned: fx.GraphModule, name: str) -> None:
    tensor = pruned.get_parameter(name).data
    tensor.copy_(tensor[:, torch.arange(tensor.shape[1]).roll(1)])


@pytest.mark.parametrize("name", ["conv1.weight", "depthwise.weight", "norm1.weight", "norm2.bias", "conv2.bias"])
def test_permuted_rows_are_refused(name: str) -> None:
    case = twins.conv_chain()
    swap_rows(case.pruned, name)
    with pytest.raises(ProofError, match=f"kept tensors.*{name}"):
        run(case)


def test_not_a_number_equals_only_itself() -> None:
    full = {"table": torch.tensor([1.0, float("nan"), float("inf")])}
    keep: dict[str, tuple[torch.Tensor | None, ...]] = {"table": (None,)}
    assert check_tensors(full, {"table": full["table"].clone()}, keep) == 1
    for other in (0.0, float("inf")):
        with pytest.raises(ProofError, match="1 of 3 entries"):
            check_tensors(full, {"table": torch.tensor([1.0, other, float("inf")])}, keep)


@pytest.mark.parametrize("name", ["conv2.weight", "head.weight"])
def test_permuted_columns_are_refused(name: str) -> None:
    case = twins.conv_chain()
    swap_columns(case.pruned, name)
    with pytest.raises(ProofError, match=name):
        run(case)


@pytest.mark.parametrize("crosses_norm", [False, True])
@pytest.mark.parametrize(
    ("name", "dim"),
    [("conv2.weight", 1), ("norm1.running_mean", 0), ("norm2.weight", 0), ("depthwise.weight", 0), ("head.weight", 1)],
)
def test_a_plan_with_one_wrong_index_is_refused(name: str, dim: int, crosses_norm: bool) -> None:
    """The twin follows the plan to the letter, so only outputs can tell that the plan is wrong."""
    case = twins.conv_chain()
    kept = list(case.keep[name])
    size = case.captured.state_dict()[name].shape[dim]
    absent = next(i for i in range(size) if i not in kept[dim].tolist())
    kept[dim] = torch.cat([kept[dim][1:], torch.tensor([absent])]).sort().values
    keep = {**case.keep, name: tuple(kept)}
    pruned = twins.cut(case.captured, keep, lambda p: setattr(p.get_submodule("depthwise"), "groups", 5))
    with pytest.raises(ProofError, match="outputs"):
        run(case, keep=keep, pruned=pruned, crosses_norm=crosses_norm)


def test_an_unsorted_index_on_one_side_is_refused() -> None:
    case = twins.conv_chain()
    keep = {**case.keep, "conv2.weight": (case.keep["conv2.weight"][0], twins.index(2, 0, 3, 6, 7), None, None)}
    pruned = twins.cut(case.captured, keep, lambda p: setattr(p.get_submodule("depthwise"), "groups", 5))
    with pytest.raises(ProofError, match="outputs"):
        run(case, keep=keep, pruned=pruned)


def test_a_forgotten_batch_norm_slice_is_refused() -> None:
    case = twins.conv_chain()
    case.pruned.get_submodule("norm1").running_mean = case.captured.get_submodule("norm1").running_mean
    with pytest.raises(ProofError, match=r"norm1.running_mean"):
        run(case)


def test_a_shifted_scale_is_refused() -> None:
    case = twins.attention()
    for node in case.pruned.graph.nodes:
        if 0.5 in node.args:
            node.args = (node.args[0], 3**-0.5)
    case.pruned.recompile()
    with pytest.raises(ProofError, match="outputs"):
        run(case)


def test_a_shifted_pad_is_refused_and_located() -> None:
    case = twins.residual()
    for node in case.pruned.graph.nodes:
        if node.target is nn.functional.pad:
            node.args = (node.args[0], (0, 0, 0, 0, 2, 1))
    case.pruned.recompile()
    with pytest.raises(ProofError, match="they part at node"):
        run(case)


def test_a_wrong_reshape_literal_is_refused() -> None:
    case = twins.attention()
    for node in case.pruned.graph.nodes:
        if node.target == "unflatten" and node.args[2] == (2, 3):
            node.args = (node.args[0], -1, (3, 2))
    case.pruned.recompile()
    with pytest.raises(ProofError, match="pruned network: it refuses the sample"):
        run(case)


def test_an_uneven_choice_across_query_and_key_is_refused() -> None:
    case = twins.attention()
    other = twins.index(0, 1, 2, 4, 5, 6)
    keep = {**case.keep, "key.weight": (other, None), "key.bias": (other,)}
    pruned = copy.deepcopy(case.pruned)
    full = case.captured.get_submodule("key")
    pruned.get_submodule("key").weight.data.copy_(full.weight.data[other])
    pruned.get_submodule("key").bias.data.copy_(full.bias.data[other])
    with pytest.raises(ProofError, match="lost different positions"):
        run(case, keep=keep, pruned=pruned, crosses_norm=True)
    with pytest.raises(ProofError):
        run(case, keep=keep, pruned=pruned)


@pytest.mark.parametrize("name", ["norm", "rms"])
def test_a_norm_over_the_wrong_width_is_refused(name: str) -> None:
    case = twins.norm_crossing()
    full = int(case.captured.get_submodule(name).normalized_shape[0])

    def norm_over_zeros_too(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        gap = full - x.shape[-1]
        weight, wide = nn.functional.pad(weight, (0, gap)), nn.functional.pad(x, (0, gap))
        kind = nn.functional.rms_norm if bias is None else nn.functional.layer_norm
        shift = () if bias is None else (nn.functional.pad(bias, (0, gap)),)
        return kind(wide, (full,), weight, *shift)[..., : x.shape[-1]]

    graph = case.pruned.graph
    for node in graph.nodes:
        if node.target == name:
            with graph.inserting_before(node):
                weight = graph.get_attr(f"{name}.weight")
                bias = graph.get_attr(f"{name}.bias") if name == "norm" else None
                node.replace_all_uses_with(graph.call_function(norm_over_zeros_too, (node.args[0], weight, bias)))
            graph.erase_node(node)
    case.pruned.recompile()
    with pytest.raises(ProofError, match="outputs"):
        run(case)


def test_a_trace_that_is_not_the_original_is_refused() -> None:
    case = twins.conv_chain()
    for node in case.captured.graph.nodes:
        if node.target is torch.relu:
            node.target = torch.tanh
            break
    case.captured.recompile()
    with pytest.raises(ProofError, match="traced network: .* the first layer that answers otherwise is"):
        run(case)


def test_code_that_calls_another_function_than_the_graph_is_refused() -> None:
    """The C++ function takes one tuple; torch has a Python function with any number of arguments by its name."""
    graph = fx.Graph()
    inner = graph.call_function(torch._C._VariableFunctions.block_diag, ((graph.placeholder("x"),),))
    graph.output(inner)
    with pytest.raises(ProofError, match="by the name of another function"):
        check_code(fx.GraphModule(nn.Module(), graph))


def test_a_changed_weight_is_refused() -> None:
    case = twins.attention()
    case.pruned.get_submodule("out").weight.data[0, 0] += 1e-6
    with pytest.raises(ProofError, match=r"1 of \d+ entries of 'out.weight' differ"):
        run(case)


def test_a_baked_batch_size_is_refused() -> None:
    case = twins.attention()
    for node in case.pruned.graph.nodes:
        if node.target == "flatten":
            node.target, node.args = "reshape", (node.args[0], 2, 5, -1)
    case.pruned.recompile()
    with pytest.raises(ProofError, match="refuses random inputs, batch 12"):
        run(case)


def test_a_malformed_plan_is_refused() -> None:
    case = twins.attention()
    with pytest.raises(ProofError, match="no such parameter"):
        run(case, keep={**case.keep, "nothing": (None,)})
    with pytest.raises(ProofError, match="1 dims"):
        run(case, keep={**case.keep, "query.weight": (None,)})
    with pytest.raises(ProofError, match="beyond its dim"):
        run(case, keep={**case.keep, "query.bias": (twins.index(0, 8),)})
    with pytest.raises(ProofError, match="twice"):
        run(case, keep={**case.keep, "query.bias": (twins.index(0, 0),)})


class Reshaping(nn.Module):
    """Takes 4 x 4 pixels literally: at another resolution, pixels are taken for channels."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Conv2d(3, 8, 1)
        self.down = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.tanh(self.up(x))
        y = y.reshape(y.shape[0], -1, 8, 4, 4).transpose(1, 2).flatten(1, 2)
        return self.down(y.reshape(y.shape[0], 8, 4, -1))


def reshaping(repaired: int) -> Twin:
    kept = twins.index(0, 2, 3, 7)
    keep: twins.Kept = {
        "up.weight": (kept, None, None, None),
        "up.bias": (kept,),
        "down.weight": (None, kept, None, None),
    }

    def repair(pruned: fx.GraphModule) -> None:
        for node in pruned.graph.nodes:
            if node.target == "reshape":
                node.args = tuple(repaired if a == 8 else a for a in node.args)
        pruned.recompile()

    return twins.twin(Reshaping(), keep, torch.randn(2, 3, 4, 4), repair=repair)


def test_a_resolution_at_which_the_plan_removes_no_channels_is_left_out() -> None:
    proof = run(reshaping(4))
    assert proof.resolutions == ("4x4",)
    assert len(proof.batch_sizes) == 2
    assert any("no whole channels" in note for note in proof.notes)
    with pytest.raises(ProofError):
        run(reshaping(2))


def test_a_baked_resolution_is_refused() -> None:
    case = twins.conv_chain()
    for node in case.pruned.graph.nodes:
        if node.target == "mean":
            with case.pruned.graph.inserting_before(node):
                node.args = (case.pruned.graph.call_method("reshape", (node.args[0], -1, 3, 8, 8)), node.args[1])
    case.pruned.recompile()
    with pytest.raises(ProofError, match="another resolution"):
        run(case)


class TwoSteps(nn.Module):
    """A gate by a direction of length one, and two steps over a graph as a product of sparse matrices."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 3)
        self.direction = nn.Parameter(torch.randn(8))

    def forward(self, x: torch.Tensor, adjacency: torch.Tensor) -> torch.Tensor:
        h = self.first(x).relu()
        gate = ((h * self.direction).sum(-1, keepdim=True) / self.direction.norm()).tanh()
        steps = adjacency.to_sparse_csr()
        return self.last((steps @ steps).to_dense() @ (h * gate))


def test_zeros_show_what_nan_cannot_be_carried_through() -> None:
    model, sample = TwoSteps().eval(), (torch.randn(8, 6), (torch.rand(8, 8) < 0.3).float())
    pruned = fxprune.compile(model, sample, 0.5)
    report = fxprune.report(pruned)
    assert report.proof is not None
    assert report.proof.method == "masked"
    gone = [channel for channel in range(8) if channel not in report.plan.keep["first.weight"][0]]
    with torch.no_grad():
        for tensor in (model.first.weight, model.first.bias, model.direction):
            tensor[gone] = 0
    torch.testing.assert_close(pruned(*sample), model(*sample))
