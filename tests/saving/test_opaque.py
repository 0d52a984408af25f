"""Networks with opaque modules: their classes are imported only where the caller names them."""

from __future__ import annotations

import copy
import enum
import functools
import importlib.util
import json
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import fxprune
from fxprune.errors import ArtefactError, OptionError
from fxprune.saving.opaque import allowed_imports, resolve_imports
from tests.capture.test_partial import Net, Pictures
from tests.saving.test_loading import edit_graph

HERE = "tests.saving.test_opaque"
GATE = "tests.capture.test_partial:Gate"


class Mode(enum.Enum):
    ADD = "add"


class Coder:
    def __init__(self, weights: tuple[float, ...]) -> None:
        self.weights, self.name = weights, 'a "quoted" name'


def widen(x: torch.Tensor, by: float) -> torch.Tensor:
    return x * by


class Cube(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return 3 * ctx.saved_tensors[0] ** 2 * gradient


class Rich(nn.Module):
    """Holds what the attributes of real opaque modules hold, and chooses by value."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 5, 1))
        self.blocks = nn.ModuleDict({"in-side": nn.Conv2d(5, 5, 1)})
        self.again = self.blocks["in-side"]
        self.scales = nn.ParameterList([torch.rand(5, 1, 1)])
        self.table = [torch.arange(5.0).reshape(5, 1, 1), {1: torch.Size([2])}]
        self.mode, self.coder, self.act = Mode.ADD, Coder((1.0, 2.0)), functools.partial(widen, by=3.0)
        self.choices, self.nothing = {"relu": torch.relu, "cube": Cube.apply}, None
        self.settings = types.SimpleNamespace(by=3.0, names=["a"])
        self.register_buffer("shift", torch.rand(5, 1, 1), persistent=False)
        self.register_parameter("bias", None)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.blocks["in-side"](self.layers(x))
        if bool(y.mean() > 100) or self.bias is not None or self.nothing is not None:
            return y
        y = self.act(self.choices["relu"](y)) / self.settings.by * self.table[0] + self.shift * self.scales[0]
        y = self.choices["cube"](y)
        return y * self.coder.weights[1] if self.mode is Mode.ADD else x


class Whole(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rich = Rich()
        self.head = nn.Sequential(nn.Conv2d(5, 7, 1), nn.ReLU(), nn.Conv2d(7, 2, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.rich(x))


def pruned(build: Callable[[], nn.Module]) -> tuple[nn.Module, tuple[Any, ...]]:
    torch.manual_seed(0)
    sample: tuple[Any, ...] = (torch.randn(2, 3, 12, 12),)
    if build is Pictures:
        sample = ([torch.rand(3, 9, 8), torch.rand(3, 7, 7)],)
    return fxprune.compile(build().eval(), sample, 0.3, verify=False), sample


def imports_of(folder: Path) -> list[str]:
    found: list[str] = json.loads((folder / "graph.json").read_text())["imports"]
    return found


def run_model_py(folder: Path) -> nn.Module:
    spec = importlib.util.spec_from_file_location("model", folder / "model.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model: nn.Module = module.Model()
    return model


def assert_same(left: Any, right: Any) -> None:
    leaves = [torch.utils._pytree.tree_leaves(v) for v in (left, right)]
    assert len(leaves[0]) == len(leaves[1])
    assert all(torch.equal(a, b) for a, b in zip(*leaves, strict=True))


@pytest.mark.parametrize("build", [Net, Pictures, Whole])
def test_opaque_modules_come_back(build: Callable[[], nn.Module], tmp_path: Path) -> None:
    network, sample = pruned(build)
    expected = network(*copy.deepcopy(sample))
    fxprune.save(network, tmp_path / "net")
    loaded = fxprune.load(tmp_path / "net", allow=imports_of(tmp_path / "net"))
    assert_same(loaded(*copy.deepcopy(sample)), expected)
    assert_same(copy.deepcopy(loaded)(*copy.deepcopy(sample)), expected)
    assert_same(dict(loaded.state_dict()), dict(network.state_dict()))
    assert str(fxprune.report(loaded)) == str(fxprune.report(network))
    for one, two in zip(loaded.modules(), network.modules(), strict=True):
        assert one.training == two.training
        assert type(one).__name__ == type(two).__name__
    fxprune.save(loaded, tmp_path / "again")
    for file in (tmp_path / "net").iterdir():
        assert file.read_bytes() == (tmp_path / "again" / file.name).read_bytes()


@pytest.mark.parametrize("build", [Net, Pictures, Whole])
def test_model_py_imports_their_classes(build: Callable[[], nn.Module], tmp_path: Path) -> None:
    network, sample = pruned(build)
    fxprune.save(network, tmp_path / "net")
    model = run_model_py(tmp_path / "net").eval()
    model.load_state_dict(load_file(tmp_path / "net" / "weights.safetensors"))
    assert_same(model(*copy.deepcopy(sample)), network(*copy.deepcopy(sample)))
    source = (tmp_path / "net" / "model.py").read_text()
    imported = {line.split()[1] for line in source.splitlines() if line.startswith("from ")}
    assert imported - {"torch"} == {path.partition(":")[0] for path in imports_of(tmp_path / "net")} | (
        {"torch.nn.modules.container"} & imported
    )


def test_sharing_inside_comes_back(tmp_path: Path) -> None:
    network, _ = pruned(Whole)
    fxprune.save(network, tmp_path / "net")
    rich = fxprune.load(tmp_path / "net", allow=imports_of(tmp_path / "net")).get_submodule("rich")
    assert rich.again is rich.blocks["in-side"]
    assert type(rich.blocks) is nn.ModuleDict
    assert list(rich.blocks) == ["in-side"]


def test_a_loaded_network_trains(tmp_path: Path) -> None:
    network, sample = pruned(Whole)
    fxprune.save(network, tmp_path / "net")
    loaded = fxprune.load(tmp_path / "net", allow=imports_of(tmp_path / "net")).train()
    loaded(*sample).sum().backward()
    assert any(p.grad is not None for p in loaded.parameters())


def test_nothing_is_imported_unless_named(tmp_path: Path) -> None:
    network, _ = pruned(Net)
    fxprune.save(network, tmp_path / "net")
    assert imports_of(tmp_path / "net") == [GATE]
    with pytest.raises(ArtefactError, match=r"allow=\['tests.capture.test_partial:Gate'\]"):
        fxprune.load(tmp_path / "net")
    with pytest.raises(ArtefactError, match="allow="):
        fxprune.load(tmp_path / "net", allow=["tests.capture.test_partial:Net"])
    for allow in ([GATE], GATE, ["tests.capture.test_partial.Gate"], [type(network.get_submodule("gate"))]):
        fxprune.load(tmp_path / "net", allow=allow)  # type: ignore[arg-type]


def test_an_import_runs_only_after_all_are_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "harm.py").write_text("raise SystemExit('ran')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ArtefactError, match="allow="):
        resolve_imports(["harm:Thing", "other:Thing"], allowed_imports(["harm:Thing"]))
    assert "harm" not in sys.modules


@pytest.mark.parametrize("allow", [None, 5, b"a:b", [None], [b"a:b"], [GATE, 5]], ids=str)
def test_allow_holds_paths_classes_and_functions(allow: Any, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="allow takes import paths, classes and functions, not"):
        fxprune.load(tmp_path / "nowhere", allow=allow)


@pytest.mark.parametrize("code", ["raise RuntimeError('no such device')", "def (:", "1 / 0", "raise SystemExit(0)"])
def test_code_that_fails_while_it_is_imported_is_named(
    code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, _ = pruned(Net)
    fxprune.save(network, tmp_path / "net")
    (tmp_path / "broken_on_import.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    edit_graph(tmp_path / "net", lambda data: data.update(imports=["broken_on_import:Gate"]))
    with pytest.raises(ArtefactError, match="broken_on_import:Gate cannot be imported here: [A-Z]"):
        fxprune.load(tmp_path / "net", allow=["broken_on_import:Gate"])


def module_entry(data: dict[str, Any], path: str) -> dict[str, Any]:
    found: dict[str, Any] = next(entry for entry in data["modules"] if entry["path"] == path)
    return found


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda d: module_entry(d, "rich").update(kind="os:system"), "not a module class"),
        (lambda d: module_entry(d, "rich").update(kind=f"{HERE}:Coder"), "not a module class"),
        (lambda d: module_entry(d, "rich")["state"].update(act={"import": "os:system"}), "list of imports lacks"),
        (lambda d: module_entry(d, "rich")["state"].update(act={"function": "os.system"}), "not among the functions"),
        (lambda d: module_entry(d, "rich")["state"].update(_forward_hooks={"dict": []}), "its class keeps for itself"),
        (lambda d: module_entry(d, "rich")["state"].update(__class__=1), "name of an attribute"),
        (lambda d: module_entry(d, "rich")["state"].update(_compiled_call_impl=None), "keeps for itself"),
        (lambda d: module_entry(d, "rich")["state"].update(forward="text"), "keeps for itself"),
        (lambda d: module_entry(d, "rich")["state"].update(eval={"function": "torch.abs"}), "keeps for itself"),
        (lambda d: module_entry(d, "rich")["state"].update(act={"function": "builtins.getattr"}), "not one of torch's"),
        (lambda d: module_entry(d, "rich")["state"].update(act={"function": "operator.setitem"}), "not one of torch's"),
        (lambda d: module_entry(d, "rich")["state"].update(act={"partial": [{"module": "rich"}, [], {}]}), "partial"),
        (lambda d: module_entry(d, "rich")["state"].update(mode={"member": [f"{HERE}:Coder", "x"]}), "no enumeration"),
        (lambda d: module_entry(d, "rich").update(absent={"__class__": ["x"]}), "not a table"),
        (lambda d: module_entry(d, "rich")["state"].update(act={"tensor": "absent"}), "malformed"),
        (lambda d: d["imports"].append("os:system"), "allow="),
    ],
)
def test_tampered_attributes_are_refused(edit: Callable[[dict[str, Any]], None], message: str, tmp_path: Path) -> None:
    network, _ = pruned(Whole)
    fxprune.save(network, tmp_path / "net")
    allow = imports_of(tmp_path / "net")
    edit_graph(tmp_path / "net", edit)
    with pytest.raises(ArtefactError, match=message):
        fxprune.load(tmp_path / "net", allow=allow)


def test_modes_that_earlier_versions_noted_twice_are_read_once(tmp_path: Path) -> None:
    network, sample = pruned(Whole)
    fxprune.save(network, tmp_path / "net")
    allow = imports_of(tmp_path / "net")
    harm = {"dict": [["effects", {"dict": []}], ["flags", {"dict": [["", [True, True]]]}], ["untraced", "a lie"]]}
    edit_graph(tmp_path / "net", lambda d: module_entry(d, "rich.layers").update(state={"_modes": harm}))
    loaded = fxprune.load(tmp_path / "net", allow=allow)
    assert loaded.get_submodule("rich.layers").modes == network.get_submodule("rich.layers").modes
    assert_same(loaded(*copy.deepcopy(sample)), network(*copy.deepcopy(sample)))


class Odd:
    __slots__ = ("x",)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (lambda x: x, "cannot be imported"),
        (Odd(), "no way to write"),
        (nn.Linear(1, 1).forward, "no way to write"),
        ([nn.Linear(1, 1)], "not registered"),
        ([nn.Parameter(torch.ones(1))], "must be registered"),
    ],
)
def test_attributes_that_cannot_be_saved(value: Any, message: str, tmp_path: Path) -> None:
    network, _ = pruned(Net)
    network.get_submodule("gate").thing = value
    with pytest.raises(ArtefactError, match=message):
        fxprune.save(network, tmp_path / "net")
    assert list(tmp_path.iterdir()) == []


def test_hooks_cannot_be_saved(tmp_path: Path) -> None:
    network, _ = pruned(Net)
    network.get_submodule("gate").register_forward_hook(lambda *_: None)
    with pytest.raises(ArtefactError, match="gate: it has hooks"):
        fxprune.save(network, tmp_path / "net")


def test_values_that_contain_themselves_cannot_be_saved(tmp_path: Path) -> None:
    network, _ = pruned(Net)
    gate = network.get_submodule("gate")
    gate.thing = [gate]
    gate.thing.append(gate.thing)
    with pytest.raises(ArtefactError, match="holds itself"):
        fxprune.save(network, tmp_path / "net")
