"""Names of modules, parameters and buffers are data: any string that torch takes runs, and none is code."""

from __future__ import annotations

import ast
import contextlib
import copy
import pickle
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import nn

import fxprune

HOSTILE = '", 0) or setattr(__import__("builtins"), "ran", True) or getattr(self, "a'
NASTY = [
    HOSTILE,
    '1" pipe',
    "it's",
    "new\nline",
    "\r",
    "back\\slash",
    "\\",
    '"""',
    "'''",
    "\0",
    "\ud800",
    "\u2028",
    "ünï",
    "\ufb01",
    "fi",
    "a b",
    "{x}",
    "%s",
    "#",
    "</script><b>",
    "for",
    "None",
    "self",
    "torch",
    "x",
    "__x",
    "__class__",
    "code",
    "graph",
    "forward",
    "type",
    "meta",
    "graphs",
    "_graph",
    "_code",
    "_lineno_map",
    "_prologue_start",
    "_wrapped_call",
    "_graphs",
    "_modules",
    "_part0",
    "T_destination",
    "a" * 300,
]
ANY = st.text(min_size=1).filter(lambda text: "." not in text) | st.sampled_from(NASTY)
STATEMENTS = (ast.Module, ast.FunctionDef, ast.arguments, ast.arg, ast.Assign, ast.Return, ast.Expr)
EXPRESSIONS = (ast.Name, ast.Load, ast.Store, ast.Attribute, ast.Call, ast.keyword, ast.Constant, ast.Tuple)
OPERATIONS = (ast.BinOp, ast.Add, ast.Mult)
_heard: list[tuple[str, Any]] | None = None


def _hear(event: str, args: Any) -> None:
    if _heard is not None and event in ("compile", "exec", "import", "os.system", "subprocess.Popen"):
        _heard.append((event, args))


sys.addaudithook(_hear)


@contextmanager
def only_plain_forwards() -> Iterator[None]:
    """Whatever is compiled and run meanwhile are forwards of expected statements."""
    global _heard
    _heard = []
    try:
        yield
    finally:
        heard, _heard = _heard, None
    for event, args in heard:
        if event == "compile" and not str(args[1]).endswith(".py"):
            for node in ast.walk(ast.parse(args[0])):
                assert isinstance(node, (*STATEMENTS, *EXPRESSIONS, *OPERATIONS)), ast.dump(node)
                assert not isinstance(node, ast.Name) or node.id not in ("setattr", "__import__")
        elif event == "exec":
            assert args[0].co_filename.startswith("<eval_with_key>") or args[0].co_filename.endswith(".py")
        else:
            assert event in ("compile", "import")
    assert not hasattr(__import__("builtins"), "ran")


class Named(nn.Module):
    """Modules, parameters and buffers of one name, in the network and in a part of it."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.first, self.inner, self.last = nn.Conv2d(2, 6, 1), nn.Module(), nn.Conv2d(6, 3, 1)
        self._modules[name] = nn.Conv2d(6, 6, 1)
        self._parameters[f"{name}'"] = nn.Parameter(torch.rand(6, 1, 1))
        self.inner._modules[name] = nn.BatchNorm2d(6)
        self.inner._buffers[f"{name}'"] = torch.rand(6, 1, 1)
        self.inner._parameters["0" + name] = nn.Parameter(torch.rand(6, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inner: Any = self.inner
        x = inner._modules[self.name](self._modules[self.name](self.first(x)) * self._parameters[f"{self.name}'"])
        return self.last(x + inner._buffers[f"{self.name}'"] * inner._parameters["0" + self.name])


def compiled(name: str) -> tuple[nn.Module, torch.Tensor, Any]:
    model, sample = Named(name).eval(), torch.randn(2, 2, 3, 3)
    return model, sample, fxprune.compile(model, sample, 0.3)


@pytest.fixture(autouse=True, scope="module")
def _all_is_imported() -> None:
    compiled("x")


def check(name: str) -> None:
    with only_plain_forwards():
        model, sample, pruned = compiled(name)
        expected = pruned(sample)
        copies = [copy.deepcopy(pruned), pickle.loads(pickle.dumps(pruned)), copy.deepcopy(pruned).train().eval()]
    assert list(pruned.state_dict()) == list(model.state_dict())
    assert pruned.first.out_channels < 6
    for twin in copies:
        assert torch.equal(twin(sample), expected)
        assert list(twin.state_dict()) == list(model.state_dict())
        assert [n for n, _ in twin.named_parameters()] == [n for n, _ in model.named_parameters()]


@pytest.mark.parametrize("name", NASTY, ids=ascii)
def test_nasty_names(name: str) -> None:
    check(name)


@settings(max_examples=20)
@given(ANY)
def test_any_name(name: str) -> None:
    if name not in ("first", "inner", "last"):
        check(name)


@pytest.mark.parametrize("name", [n for n in NASTY if n not in ("\ud800", "_modules")], ids=ascii)
def test_folders_and_their_source(name: str, tmp_path: Path) -> None:
    _, sample, pruned = compiled(name)
    expected = pruned(sample)
    fxprune.save(pruned, tmp_path / "saved")
    loaded = fxprune.load(tmp_path / "saved")
    assert torch.equal(loaded(sample), expected)
    assert list(loaded.state_dict()) == list(pruned.state_dict())
    source = (tmp_path / "saved" / "model.py").read_text(encoding="utf-8")
    functions = [node.func for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    called = {function.id for function in functions if isinstance(function, ast.Name)}
    assert called <= {"Model", "load_file", "next", "part", "restored", "super"}
    namespace: dict[str, Any] = {"__name__": "model"}
    exec(compile(source, "model.py", "exec"), namespace)
    model = namespace["Model"]().eval()
    model.load_state_dict(load_file(tmp_path / "saved" / "weights.safetensors"))
    torch.testing.assert_close(model(sample), expected)
    assert not hasattr(__import__("builtins"), "ran")


def test_a_name_that_no_file_can_hold_is_refused(tmp_path: Path) -> None:
    with pytest.raises(fxprune.FxpruneError, match="rename it"):
        fxprune.save(compiled("\ud800")[2], tmp_path / "saved")


class Extra(nn.Module):
    """Takes arguments of any name, and cannot be traced."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor, **others: torch.Tensor) -> torch.Tensor:
        return self.layer(x)[x.sum(1) > -1e9] + sum(others.values())


class CallsExtra(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.extra = nn.Linear(8, 8), Extra()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        return self.extra(x, **{'y=1, z=setattr(__import__("builtins"), "ran", True), w': x})


def test_names_of_arguments_never_are_code() -> None:
    with contextlib.suppress(fxprune.FxpruneError):
        fxprune.compile(CallsExtra().eval(), torch.randn(2, 8), 0.0)(torch.randn(2, 8))
    assert not hasattr(__import__("builtins"), "ran")


def test_values_under_odd_names_follow_the_module() -> None:
    _, sample, pruned = compiled("code")
    twin = copy.deepcopy(pruned)
    with torch.no_grad():
        twin.state_dict()["code.weight"].zero_()
        twin.state_dict()["code.bias"].zero_()
        assert not torch.equal(twin(sample), pruned(sample))
    twin.load_state_dict(pruned.state_dict())
    assert torch.equal(twin(sample), pruned(sample))
    double = twin.double()
    assert double(sample.double()).dtype is torch.float64
    assert isinstance(pruned.code, str)


@pytest.mark.parametrize("name", ["code", HOSTILE])
def test_torch_compile(name: str) -> None:
    _, sample, pruned = compiled(name)
    torch._dynamo.reset()
    run = torch.compile(pruned, backend="eager", fullgraph=True)
    assert torch.equal(run(sample), pruned(sample))
    assert not hasattr(__import__("builtins"), "ran")


@pytest.mark.parametrize("name", ["code", HOSTILE])
def test_exported_programs_have_plain_names(name: str, tmp_path: Any) -> None:
    _, sample, pruned = compiled(name)
    fxprune.export(pruned, tmp_path / "net.pt2", "pt2")
    program = torch.export.load(tmp_path / "net.pt2")
    torch.testing.assert_close(program.module()(sample), pruned(sample))
    assert all(re.fullmatch(r"[A-Za-z0-9_.]+", key) for key in program.state_dict)
    assert not hasattr(__import__("builtins"), "ran")


class Chosen(nn.Module):
    """Another way for inputs of odd height, through a layer of an odd name."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleDict({"in": nn.Conv2d(3, 8, 3, padding=1), "o\nut": nn.Conv2d(8, 4, 1)})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.parts["in"](x)
        if x.shape[2] % 2:
            x = x[:, :, 1:].relu()
        return self.parts["o\nut"](x)


def test_specializations_find_parts_of_odd_names() -> None:
    model = Chosen().eval()
    pruned = fxprune.compile(model, torch.randn(2, 3, 16, 16), 0.0)
    for size in (16, 17):
        x = torch.randn(2, 3, size, 16)
        torch.testing.assert_close(pruned(x), model(x))


class Drawn(nn.Module):
    """A module whose own code, which cannot be traced, asks for a part by an odd name."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.table = nn.Conv2d(3, 8, 1), nn.ModuleDict({'a"b': nn.Conv2d(8, 8, 1)})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.table['a"b'](self.first(x))
        return x.sum() if x.detach().numpy().mean() > 100 else x


def test_an_odd_name_in_code_of_its_own_is_not_exported(tmp_path: Any) -> None:
    pruned = fxprune.compile(nn.Sequential(nn.Conv2d(3, 3, 1), Drawn()).eval(), torch.randn(2, 3, 4, 4), 0.0)
    with pytest.raises(fxprune.FxpruneError, match="not a plain name|cannot be exported"):
        fxprune.export(pruned, tmp_path / "net.pt2", "pt2")


def test_names_of_many_parts_are_no_code_that_python_refuses() -> None:
    model: nn.Module = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 3))
    for _ in range(120):
        model = nn.Sequential(model)
    pruned = fxprune.compile(model.eval(), torch.randn(2, 4), 0.4, verify=False)
    assert pruned.state_dict().keys() == model.state_dict().keys()


@pytest.mark.parametrize("name", ["", "a.b"])
def test_a_name_that_torch_does_not_take_is_refused(name: str) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 3, 1))
    model._modules[name] = nn.ReLU()
    with pytest.raises(fxprune.errors.ModelError, match="rename"):
        fxprune.compile(model, torch.randn(2, 3, 4, 4), 0.3)
