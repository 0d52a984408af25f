"""What is saved comes back equal, through ``load`` and through the generated ``model.py``."""

from __future__ import annotations

import ast
import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.fx import GraphModule, symbolic_trace
from torch.utils import _pytree as pytree

import fxprune
import fxprune.saving.folders as folders
from fxprune.capture.samples import Sample
from fxprune.errors import ArtefactError
from fxprune.planning.plan import Plan
from fxprune.saving import load, load_report, save
from tests.saving.networks import CASES, make
from tests.test_reporting import make_report


def assert_equal(left: Any, right: Any) -> None:
    left_leaves, left_spec = pytree.tree_flatten(left)
    right_leaves, right_spec = pytree.tree_flatten(right)
    assert left_spec == right_spec
    for a, b in zip(left_leaves, right_leaves, strict=True):
        if isinstance(a, torch.Tensor):
            torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)
        else:
            assert a == b or a != a


def run_source(folder: Path) -> nn.Module:
    namespace: dict[str, Any] = {}
    exec(compile((folder / "model.py").read_text(), "model.py", "exec"), namespace)
    return namespace["Model"]()


@pytest.mark.parametrize("name", CASES)
def test_load_gives_the_same_network(name: str, tmp_path: Path) -> None:
    network, inputs = make(name)
    expected = network(*copy.deepcopy(inputs))
    save(network, tmp_path / "net")
    loaded = load(tmp_path / "net")
    assert isinstance(loaded, GraphModule)
    assert type(loaded).__name__ == type(network).__name__
    assert_equal(loaded(*copy.deepcopy(inputs)), expected)
    assert_equal(loaded.state_dict(), network.state_dict())
    assert [(n, p.requires_grad) for n, p in loaded.named_parameters()] == [
        (n, p.requires_grad) for n, p in network.named_parameters()
    ]
    assert_equal(copy.deepcopy(loaded)(*copy.deepcopy(inputs)), expected)


@pytest.mark.parametrize("name", CASES)
def test_model_py_gives_the_same_network(name: str, tmp_path: Path) -> None:
    network, inputs = make(name)
    expected = network(*copy.deepcopy(inputs))
    save(network, tmp_path / "net")
    model = run_source(tmp_path / "net").eval()
    weights = load_file(tmp_path / "net" / "weights.safetensors")
    assert set(weights) == set(model.state_dict()) == set(network.state_dict())
    model.load_state_dict(weights)
    assert_equal(model(*copy.deepcopy(inputs)), expected)
    assert {n: p.requires_grad for n, p in model.named_parameters()} == {
        n: p.requires_grad for n, p in network.named_parameters()
    }
    assert {n: p.dtype for n, p in model.state_dict().items()} == {n: p.dtype for n, p in weights.items()}


@pytest.mark.parametrize("name", CASES)
def test_model_py_imports_torch_alone_and_is_not_wide(name: str, tmp_path: Path) -> None:
    network, _ = make(name)
    save(network, tmp_path / "net")
    source = (tmp_path / "net" / "model.py").read_text()
    imported = [n for n in ast.walk(ast.parse(source)) if isinstance(n, (ast.Import, ast.ImportFrom))]
    names = {alias.name for n in imported if isinstance(n, ast.Import) for alias in n.names}
    names |= {n.module for n in imported if isinstance(n, ast.ImportFrom) and n.module}
    assert {name.split(".")[0] for name in names} - sys.stdlib_module_names == {"torch"}
    assert max(len(line) for line in source.splitlines()) <= 120


def test_model_py_runs_where_there_is_no_fxprune(tmp_path: Path) -> None:
    network, inputs = make("residual")
    save(network, tmp_path / "net")
    torch.save((inputs[0], network(*inputs)), tmp_path / "net" / "expected.pt")
    code = (
        "import sys, torch; sys.modules['fxprune'] = None; import model; from safetensors.torch import load_file\n"
        "net = model.Model().eval(); net.load_state_dict(load_file('weights.safetensors'))\n"
        "x, y = torch.load('expected.pt'); assert torch.equal(net(x), y)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path / "net", check=True)


def test_model_py_reads_like_handwritten_code(tmp_path: Path) -> None:
    network, _ = make("residual")
    save(network, tmp_path / "net")
    source = (tmp_path / "net" / "model.py").read_text()
    assert "self.conv = nn.Conv2d(3, 8, (3, 3), padding=(1, 1), bias=False)" in source
    assert source.endswith(
        """\
    def forward(self, x):
        x = self.conv(x)
        x = self.bn(x)
        # blocks
        y = self.blocks[0](x)
        y = self.blocks[1](y)
        x = x + y
        x = x.mean((2, 3))
        x = self.head(x)
        return x
"""
    )


def test_ties_are_one_again(tmp_path: Path) -> None:
    network, _ = make("tied")
    save(network, tmp_path / "net")
    for model in (load(tmp_path / "net"), run_source(tmp_path / "net")):
        assert model.decode.weight is model.embed.weight


def test_shared_modules_are_one_again(tmp_path: Path) -> None:
    network, _ = make("shared")
    save(network, tmp_path / "net")
    for model in (load(tmp_path / "net"), run_source(tmp_path / "net")):
        assert model.get_submodule("2") is model.get_submodule("0") is model.get_submodule("held.1")


def test_constants_stay_out_of_the_state_dict(tmp_path: Path) -> None:
    network, _ = make("buffers")
    save(network, tmp_path / "net")
    # torch 2.13 traces all buffers as if they were saved, later ones do not.
    assert set(load(tmp_path / "net").state_dict()) == set(network.state_dict()) >= {"index"}
    assert (
        dict(run_source(tmp_path / "net").named_buffers()).keys() == dict(load(tmp_path / "net").named_buffers()).keys()
    )


def test_modes_come_back(tmp_path: Path) -> None:
    network, _ = make("residual")
    network.train()
    network.bn.eval()
    save(network, tmp_path / "net")
    loaded = load(tmp_path / "net")
    assert loaded.training
    assert not loaded.bn.training


def test_both_graphs_come_back(tmp_path: Path) -> None:
    network, inputs = make("two-modes")
    save(network, tmp_path / "net")
    loaded, model = load(tmp_path / "net"), run_source(tmp_path / "net")
    model.load_state_dict(load_file(tmp_path / "net" / "weights.safetensors"))
    assert loaded.graphs.keys() == network.graphs.keys() == {"eval", "training"}
    for mode in (True, False, True):
        results = []
        for net in (network, loaded, model):
            torch.manual_seed(0)
            results.append(net.train(mode)(*inputs))
        assert [type(result).__name__ for result in results] == ["Outputs" if mode else "Tensor"] * 3
        assert getattr(results[0], "_fields", None) == getattr(results[2], "_fields", None)
        for result in results[1:]:
            assert_equal([*result], [*results[0]])
    save(loaded.eval(), tmp_path / "again")
    assert not load(tmp_path / "again").training
    assert_equal([*load(tmp_path / "again").train().state_dict()], [*network.state_dict()])


def test_the_order_of_parameters_comes_back(tmp_path: Path) -> None:
    network, _ = make("residual")
    save(network, tmp_path / "net")
    assert [n for n, _ in load(tmp_path / "net").named_parameters()] == [n for n, _ in network.named_parameters()]


def test_a_loaded_network_trains(tmp_path: Path) -> None:
    network, inputs = make("residual")
    save(network, tmp_path / "net")
    loaded = load(tmp_path / "net").train()
    optimiser = torch.optim.SGD(loaded.parameters(), lr=0.1)
    before = loaded.conv.weight.clone()
    loaded(*inputs).square().sum().backward()
    optimiser.step()
    assert not torch.equal(loaded.conv.weight, before)
    assert torch.equal(load(tmp_path / "net").conv.weight, before)


def test_report_plan_and_sample_come_back(tmp_path: Path) -> None:
    network, inputs = make("residual")
    report = make_report()
    sample = Sample.from_input({"x": [inputs[0], (3, None)], "flag": True}).to_meta()
    network.meta["fxprune"] = {"report": report, "sample": sample}
    save(copy.deepcopy(network), tmp_path / "net")
    about = load(tmp_path / "net").meta["fxprune"]
    assert about["report"] == report == load_report(tmp_path / "net")
    assert about["sample"].kwargs["x"][0].shape == inputs[0].shape
    assert about["sample"].kwargs["x"][1] == (3, None)
    assert about["sample"].kwargs["flag"] is True
    assert Plan.load(tmp_path / "net" / "plan.json") == report.plan
    assert json.loads((tmp_path / "net" / "report.json").read_text())["network"] == "ResNet"
    assert "50.6% of the multiply-accumulates" in (tmp_path / "net" / "model.py").read_text()


def test_a_network_without_report_says_so(tmp_path: Path) -> None:
    save(make("half")[0], tmp_path / "net")
    with pytest.raises(ArtefactError, match="holds no report"):
        load_report(tmp_path / "net")


def test_the_same_network_saves_to_the_same_bytes(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        save(make("attention")[0], tmp_path / folder)
    for file in (tmp_path / "one").iterdir():
        assert file.read_bytes() == (tmp_path / "two" / file.name).read_bytes()


def test_saving_a_loaded_network_changes_nothing(tmp_path: Path) -> None:
    save(make("attention")[0], tmp_path / "one")
    save(load(tmp_path / "one"), tmp_path / "two")
    for file in (tmp_path / "one").iterdir():
        assert file.read_bytes() == (tmp_path / "two" / file.name).read_bytes()


# -- what cannot be saved ------------------------------------------------------------------------------------------


def own_layer() -> nn.Module:
    """A subclass of a torch layer that no import path leads to."""

    class Own(nn.ReLU):
        pass

    return Own()


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (own_layer(), "the class of 0 is .*Own, which cannot be imported"),
        (nn.Linear(2, 2, device="meta"), "meta device"),
    ],
)
def test_layers_that_cannot_be_saved(layer: nn.Module, message: str, tmp_path: Path) -> None:
    class Leaves(torch.fx.Tracer):
        def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
            return True

    root = nn.Sequential(layer)
    network = GraphModule(root, symbolic_trace(nn.Sequential(nn.ReLU())).graph)
    with pytest.raises(ArtefactError, match=message):
        save(network, tmp_path / "net")
    assert list(tmp_path.iterdir()) == []


def test_one_number_for_all_dims_may_be_written_for_each(tmp_path: Path) -> None:
    pool = nn.MaxPool2d((3, 2), stride=(1, 1), padding=(0, 0), dilation=(1, 1))
    net, x = nn.Sequential(nn.Conv2d(3, 8, 3), pool, nn.Conv2d(8, 4, 1)).eval(), torch.randn(2, 3, 9, 9)
    pruned = fxprune.compile(net, x, 0.3)
    fxprune.save(pruned, tmp_path / "saved")
    assert torch.equal(fxprune.load(tmp_path / "saved")(x), pruned(x))


def test_a_layer_that_became_another_than_its_arguments_tell_is_refused(tmp_path: Path) -> None:
    network = symbolic_trace(nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Upsample(scale_factor=2)))
    network.get_submodule("1").scale_factor = 3.0
    save(network, tmp_path / "net")
    assert_equal(load(tmp_path / "net")(x := torch.randn(1, 3, 4, 4)), network(x))
    network.get_submodule("0").transposed = True
    with pytest.raises(ArtefactError, match="cannot save '0': its 'transposed' is True"):
        save(network, tmp_path / "net")


def test_hooks_on_layers_are_not_dropped(tmp_path: Path) -> None:
    network = symbolic_trace(nn.Sequential(nn.Linear(3, 4)))
    network.get_submodule("0").register_forward_hook(lambda *_: None)
    with pytest.raises(ArtefactError, match="cannot save 0: it has hooks"):
        save(network, tmp_path / "net")


@pytest.mark.parametrize(("path", "where"), [("", "the network"), ("0", "0")])
def test_replaced_methods_are_not_dropped(path: str, where: str, tmp_path: Path) -> None:
    network = symbolic_trace(nn.Sequential(nn.Linear(3, 4)))
    part = network.get_submodule(path)
    vars(part)["forward"] = lambda x: x * 2
    with pytest.raises(ArtefactError, match=f"cannot save {where}: one of its methods is replaced by an attribute"):
        save(network, tmp_path / "net")
    del vars(part)["forward"]
    save(network, tmp_path / "net")


def my_function(x: torch.Tensor) -> torch.Tensor:
    return x


def test_functions_of_others_cannot_be_saved(tmp_path: Path) -> None:
    network = symbolic_trace(nn.Sequential(nn.ReLU()))
    next(n for n in network.graph.nodes if n.op == "call_module").op = "call_function"
    next(n for n in network.graph.nodes if n.op == "call_function").target = my_function
    with pytest.raises(ArtefactError, match="test_saving.my_function, which is not a function"):
        save(network, tmp_path / "net")


def test_overlapping_tensors_cannot_be_saved(tmp_path: Path) -> None:
    network = symbolic_trace(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)))
    network.get_submodule("1").weight = nn.Parameter(network.get_submodule("0").weight.detach().t())
    with pytest.raises(ArtefactError, match="views of the same memory"):
        save(network, tmp_path / "net")


def test_a_quantised_network_is_to_be_saved_before(tmp_path: Path) -> None:
    from torch.testing._internal.two_tensor import TwoTensor

    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
    pruned = fxprune.compile(net, torch.randn(1, 4), 0.5, verify=False)
    layer = pruned.get_submodule("0")
    layer.weight = nn.Parameter(TwoTensor(layer.weight.detach(), layer.weight.detach()))
    with pytest.raises(ArtefactError, match=r"0.weight is a .*TwoTensor, no plain tensor: save the network before"):
        save(pruned, tmp_path / "net")
    assert not (tmp_path / "net").exists()


def test_only_graph_modules_can_be_saved(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match="not a Linear"):
        save(nn.Linear(2, 2), tmp_path / "net")  # type: ignore[arg-type]


# -- the folder ----------------------------------------------------------------------------------------------------


def test_an_earlier_folder_is_replaced(tmp_path: Path) -> None:
    save(make("buffers")[0], tmp_path / "net")
    save(make("residual")[0], tmp_path / "net")
    assert type(load(tmp_path / "net")).__name__ == "Residual"
    assert [p.name for p in tmp_path.iterdir()] == ["net"]
    assert not (tmp_path / "net" / "constants.safetensors").exists()


def test_missing_parents_and_empty_folders_are_fine(tmp_path: Path) -> None:
    save(make("half")[0], tmp_path / "a" / "b")
    (tmp_path / "empty").mkdir()
    save(make("half")[0], str(tmp_path / "empty"))
    assert load(str(tmp_path / "empty")) is not None


def test_files_of_others_are_not_deleted(tmp_path: Path) -> None:
    save(make("half")[0], tmp_path / "net")
    (tmp_path / "net" / "notes.txt").write_text("mine")
    with pytest.raises(ArtefactError, match=r"not saved by fxprune \(notes.txt\)"):
        save(make("half")[0], tmp_path / "net")
    assert (tmp_path / "net" / "notes.txt").read_text() == "mine"
    load(tmp_path / "net")


def test_a_file_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "net").write_text("mine")
    with pytest.raises(ArtefactError, match="is a file"):
        save(make("half")[0], tmp_path / "net")


@pytest.mark.parametrize("step", ["write_json", "_flush"])
def test_a_failure_leaves_the_old_folder(step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(make("residual")[0], tmp_path / "net")

    def full_disk(*_: Any) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(folders, step, full_disk)
    with pytest.raises(OSError, match="No space"):
        save(make("half")[0], tmp_path / "net")
    assert [p.name for p in tmp_path.iterdir()] == ["net"]
    assert type(load(tmp_path / "net")).__name__ == "Residual"


def test_an_interrupted_swap_puts_the_old_folder_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folders, "_exchanged", lambda *_: False)
    save(make("residual")[0], tmp_path / "net")
    rename = Path.rename

    def interrupted(self: Path, target: Path) -> Path:
        if ".saving-" in self.name:
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save(make("half")[0], tmp_path / "net")
    assert [p.name for p in tmp_path.iterdir()] == ["net"]
    assert type(load(tmp_path / "net")).__name__ == "Residual"
