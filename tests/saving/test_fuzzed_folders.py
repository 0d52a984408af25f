"""Folders of any content: loading them, and running what loads, does nothing but compute on tensors.

Each folder is drawn by a grammar that knows the format and the pieces from which attacks are made, so that many load
and their graphs run; the interpreter is watched meanwhile (``tests/auditing.py``).
"""

from __future__ import annotations

import builtins
import contextlib
import copy
import io
import json
import operator
import os
import random
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import fx, nn

from fxprune.errors import ArtefactError
from fxprune.saving import load, targets
from fxprune.saving.folders import FORMAT, FORMAT_VERSION, MANIFEST, _fingerprint
from fxprune.saving.layers import layer_names
from fxprune.saving.saving import write_source
from tests.auditing import audited

Json = dict[str, Any]
FEW, MANY = 500, int(os.environ.get("FXPRUNE_FOLDERS", "50000"))

FUNCTIONS = sorted(targets._names_of_functions().values())
METHODS = sorted(targets._namespaces()["torch.Tensor"][1] | targets._DUNDER_METHODS | targets._CONTAINER_METHODS)
ANY_FUNCTIONS = [
    f"{prefix}.{name}"
    for prefix, holder in {
        "builtins": builtins,
        "operator": operator,
        "torch": torch,
        "torch.nn.functional": nn.functional,
        "torch.Tensor": torch.Tensor,
        "torch.linalg": torch.linalg,
        "os": os,
        "torch.utils": torch.utils,
        "torch.ops": torch.ops,
    }.items()
    for name in dir(holder)
]
ANY_METHODS = sorted({n for kind in (torch.Tensor, nn.Module, fx.GraphModule, dict, list, str) for n in dir(kind)})
ATTRIBUTES = sorted(targets._ATTRIBUTES | targets._NUMBER_ATTRIBUTES)
PATHS = ["", "a", "a.b", "g", "h", "h.c", "h.m", "conv", "lin", "p"]
KINDS = [f"torch.nn.modules.{path}" for path in ("container:Sequential", "module:Module", "container:ParameterDict")]
KINDS += ["torch.fx.graph_module:GraphModule", "torch.nn.modules.linear:Linear", "GraphModule", "os:system"]
KINDS += ["builtins:exec"]
HARMLESS = [kind for kind in KINDS if kind.startswith("torch.nn.modules")]
STATES = (
    "_compiled_call_impl forward __call__ _call_impl __class__ _keys _key_to_attr python_code _codegen src globals "
    "_lineno_map _body_transformer _graph graph recompile train eval _forward_hooks _forward_pre_hooks _modules "
    "_parameters meta _size _wrapped_call_impl hook __getattr__ __dict__ _flat_weights weight padding_mode _version"
).split()
CODE = "open('hacked', 'w').close()\ndef forward(self, x):\n    return x\n"
STRINGS = [
    "",
    "x",
    "cpu",
    "float",
    "same",
    "relu",
    "start",
    "_graph",
    "recompile",
    "__class__",
    "{0.__class__}",
    "ij->j",
]
STRINGS += [CODE]
LAYERS: list[tuple[str, Json]] = [
    *[(name, {}) for name in ("ReLU", "Identity", "GELU", "Flatten", "Dropout", "Softmax", "MSELoss")],
    ("AvgPool1d", {"kernel_size": 1}),
    ("LayerNorm", {"normalized_shape": 3, "elementwise_affine": False}),
    ("Upsample", {"scale_factor": 2.0}),
]
TYPICAL: list[tuple[str, list[Any]]] = [
    *[(f"torch.{name}", []) for name in ("relu", "exp", "sum", "clone", "abs", "sin", "zeros_like", "is_tensor")],
    *[(name, []) for name in ("mean", "size", "tolist", "contiguous", "float", "item", "unbind", "items", "sort")],
    *[(f"operator.{name}", [2]) for name in ("add", "mul", "pow", "getitem", "eq")],
    *[("builtins.getattr", [name]) for name in ("shape", "dtype", "device", "data", "T", "grad", "start")],
    *[(f"builtins.{name}", []) for name in ("list", "len", "tuple", "max", "sum", "slice", "dict", "float", "bool")],
    ("operator.setitem", [0, 1.0]),
    ("operator.getitem", [0]),
    ("__setitem__", [0, 2.0]),
    ("torch.nn.functional.softmax", [-1]),
]
NUMBERS = [0, 1, 2, 3, 4, -1, -2, 0.5, 1.0, True, False, None]


class Grammar:
    """Draws one folder's ``graph.json``."""

    def __init__(self, seed: int) -> None:
        self.r = random.Random(seed)
        self.wild = self.r.choice([0.0, 0.01, 0.05, 0.3])  # how often something is of any other kind
        self.tensor_names: list[str] = []
        self.layers: list[str] = []

    def odd(self) -> bool:
        return self.r.random() < self.wild

    def description(self) -> Json:
        paths = sorted(self.r.sample(PATHS[1:], self.r.randint(1, 6)), key=lambda path: path.count("."))
        whole = [path for path in paths if path.rpartition(".")[0] in ("", *paths) or self.odd()]
        modules = [self.module(path) for path in whole]
        self.tensor_names = self.held_tensors(modules)
        self.layers = [entry["path"] for entry in modules if "class" in entry or "kind" in entry]
        data: Json = {"class_name": self.r.choice(["__import__", "x\ny", "class"]) if self.odd() else "Net"}
        data |= {"training": self.r.random() < 0.3, "modules": modules, "tensors": self.tensors()}
        if self.odd():
            data["imports"] = self.r.sample(KINDS, 2)
        if self.r.random() < 0.15 or self.odd():
            modules.insert(0, self.module(""))
        else:
            data["eval_graph"] = self.graph()
            if self.r.random() < 0.2:
                data["training_graph"] = self.graph()
        return data

    def module(self, path: str) -> Json:
        choice = self.r.random()
        if self.odd():
            graphs = {"eval_graph": self.graph()} if self.r.random() < 0.5 else {}
            return {"path": path, "kind": self.r.choice(KINDS), "name": "G", "state": self.state(), **graphs}
        if choice < 0.3:
            names = ["Sequential", "ModuleList", "ModuleDict", "ParameterList", "ParameterDict", "Module"]
            return {"path": path, "container": self.r.choice(names), **({"state": self.state()} if self.odd() else {})}
        if choice < 0.5:
            return {"path": path, "kind": "GraphModule", "name": "G", "eval_graph": self.graph(), "state": {}}
        if choice < 0.6 or self.odd():
            return {"path": path, "shared_with": self.r.choice(PATHS)}
        if self.odd():
            return {"path": path, "class": self.r.choice(sorted(layer_names())), "arguments": {"p": self.value([])}}
        name, arguments = self.r.choice(LAYERS)
        return {"path": path, "class": name, "arguments": arguments}

    def held_tensors(self, modules: list[Json]) -> list[str]:
        holders = ["", *(entry["path"] for entry in modules if "container" in entry or self.odd())]
        return [f"{self.r.choice(holders)}.w{i}".lstrip(".") for i in range(self.r.randint(0, 3))]

    def tensors(self) -> list[Json]:
        return [
            {"name": name, "kind": self.r.choice(["parameter", "buffer", "constant"])} for name in self.tensor_names
        ]

    def state(self) -> Json:
        return {self.r.choice(STATES): self.held(3) for _ in range(self.r.randint(1, 3))}

    def held(self, depth: int) -> Any:
        inner = (lambda: self.held(depth - 1)) if depth else (lambda: 1)
        return self.r.choice(
            [
                lambda: {"module": self.r.choice(PATHS)},
                lambda: {"partial": [inner(), {"tuple": [inner(), inner()]}, {"dict": []}]},
                lambda: {"function": self.r.choice(FUNCTIONS if self.r.random() < 0.5 else ANY_FUNCTIONS)},
                lambda: {"import": self.r.choice(KINDS)},
                lambda: {"object": [self.r.choice(KINDS), self.state() if depth else {}]},
                lambda: {"member": [self.r.choice(KINDS), "forward"]},
                lambda: {"tensor": "_state.0"},
                lambda: {"dict": [[self.r.choice(STATES), inner()]]},
                lambda: [inner(), inner()],
                lambda: self.r.choice(STRINGS),
                lambda: self.value([]),
            ]
        )()

    def graph(self) -> list[Json]:
        nodes: list[Json] = [{"name": "x", "op": "placeholder", "target": "x"}]
        if self.r.random() < 0.3:
            nodes.append({"name": "y", "op": "placeholder", "target": self.r.choice(["y", "*y", "**y"]), "args": []})
        for i in range(self.r.randint(1, 7)):
            nodes.append(self.node(f"n{i}", [node["name"] for node in nodes]))
        result = self.value([node["name"] for node in nodes])
        nodes.append({"name": "output", "op": "output", "target": "output", "args": [result]})
        return nodes

    def node(self, name: str, earlier: list[str]) -> Json:
        first = {"node": self.r.choice(earlier)}
        if self.r.random() < 0.6:  # one that runs on most values
            target, args = self.r.choice(TYPICAL)
            op = "call_function" if "." in target else "call_method"
            return {"name": name, "op": op, "target": target, "args": [first, *args]}
        op = self.r.choice(["call_function"] * 5 + ["call_method"] * 4 + ["call_module", "get_attr"])
        args = [first, *(self.value(earlier) for _ in range(self.r.choice([0, 0, 1, 1, 2])))]
        data: Json = {"name": name, "op": op, "target": self.target(op), "args": args}
        if data["target"] is None:
            return self.node(name, earlier)
        if data["target"] == "builtins.getattr" and not self.odd():
            data["args"] = [first, self.r.choice(ATTRIBUTES if not self.odd() else ANY_METHODS)]
        if op == "get_attr":
            data["args"] = []
        if self.r.random() < 0.1:
            keys = ["key", "out", "dim", "dtype", "default", "self", "cdata", "device", "func", "keepdim"]
            data["kwargs"] = {self.r.choice(keys): self.value(earlier)}
        return data

    def target(self, op: str) -> Any:
        if op == "call_function":
            return self.r.choice(ANY_FUNCTIONS if self.odd() else ["builtins.getattr", *self.r.sample(FUNCTIONS, 6)])
        if op == "call_method":
            return self.r.choice(ANY_METHODS if self.odd() else METHODS)
        known = self.tensor_names if op == "get_attr" else self.layers
        odd = [path + ".weight" * (op == "get_attr") for path in PATHS[1:]] + ["conv._modules", "training"]
        return self.r.choice(odd) if self.odd() else self.r.choice([*known, None])

    def value(self, nodes: list[str], depth: int = 2) -> Any:
        inner = (lambda: self.value(nodes, depth - 1)) if depth else (lambda: 1)
        return self.r.choice(
            [
                *[lambda: {"node": self.r.choice(nodes)} if nodes else 1] * 5,
                *[lambda: self.r.choice(NUMBERS)] * 4,
                lambda: self.r.choice(STRINGS),
                lambda: [inner(), inner()],
                lambda: {"tuple": [inner() for _ in range(self.r.randint(0, 3))]},
                lambda: {"dict": [[self.r.choice(["x", "y", 1]), inner()]]},
                lambda: {"slice": [inner(), inner(), None]},
                lambda: {"dtype": self.r.choice(["float32", "int64", "bool", "load", "ops"])},
                lambda: {"ellipsis": None},
                lambda: {"device": self.r.choice(["cpu", "meta"])},
                lambda: {self.r.choice(["module", "function", "import", "pickle"]): inner()} if self.odd() else 2,
            ]
        )()


class Checked(fx.Interpreter):
    """Runs a graph and notes any value that is none of a saved graph's."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.strange: list[str] = []

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        self.strange += [f"{n.format_node()} made a {kind}" for kind in strange_kinds(value)]
        return value


PLAIN = (torch.Tensor, int, float, complex, str, type(None), type(...), range, torch.dtype, torch.device, torch.layout)
PLAIN += (torch.memory_format, torch.finfo, torch.iinfo, type(NotImplemented))


def strange_kinds(value: Any) -> list[type]:
    """Types of what is in a value but is none of a saved graph's values."""
    if isinstance(value, slice):
        value = (value.start, value.stop, value.step)
    if isinstance(value, dict):
        value = (*value.keys(), *value.values())
    if isinstance(value, (list, tuple, set, frozenset, type({}.keys()), type({}.items()), type({}.values()))):
        return [kind for item in value for kind in strange_kinds(item)]
    return [] if isinstance(value, PLAIN) else [type(value)]


def write(folder: Path, description: Json, weights: dict[str, torch.Tensor]) -> None:
    (folder / "graph.json").write_text(json.dumps(description))
    save_file(weights, folder / "weights.safetensors")
    files = {name: _fingerprint(folder / name) for name in ("graph.json", "weights.safetensors")}
    (folder / MANIFEST).write_text(json.dumps({"format": FORMAT, "version": FORMAT_VERSION, "files": files}))


def try_folder(folder: Path, seed: int) -> tuple[bool, bool]:
    """Whether the folder loads, and whether what it holds runs."""
    torch.manual_seed(seed)
    description = Grammar(seed).description()
    write(folder, description, {entry["name"]: torch.randn(3, 3) for entry in description["tensors"]})
    x = torch.randn(2, 3)
    loaded, ran = False, False
    with audited() as done, contextlib.suppress(ArtefactError):
        # Classes of torch's own that a caller may be talked into allowing are no way in either.
        network: Any = load(folder, allow=HARMLESS if seed % 2 else ())
        loaded = True
        with contextlib.suppress(Exception):  # what torch makes of such arguments is its own affair
            network(x.clone())
            ran = True
        with contextlib.suppress(Exception):
            network.train()(x.clone())
        for graph in getattr(network, "graphs", {}).values():
            checked = Checked(fx.GraphModule(network, graph))
            with contextlib.suppress(Exception):
                checked.run(x.clone())
            assert not checked.strange, f"seed {seed}: {checked.strange}\n{json.dumps(description)}"
        with contextlib.suppress(Exception):
            copy.deepcopy(network)
    assert not done, f"seed {seed}: {done}\n{json.dumps(description)}"
    return loaded, ran


def try_source(folder: Path, network: Any, seed: int) -> bool:
    """Whether ``model.py`` can be written and answers; it does nothing else, and answers as the network does."""
    folder.mkdir(exist_ok=True)
    try:
        write_source(network, folder)
    except ArtefactError:
        return False
    code = compile((folder / "model.py").read_text(), "model.py", "exec")  # compiling is watched, too
    found: dict[str, Any] = {"__name__": "model"}
    exec(code, found)
    printed = found["Model"]().eval()
    printed.load_state_dict(network.state_dict())
    answers = []
    with audited() as done:
        for each in (network.eval(), printed):
            torch.manual_seed(seed)
            with contextlib.suppress(Exception):
                answers.append(each(torch.ones(2, 3)))
    assert not done, f"seed {seed}: {done}"
    assert len(answers) != 1, f"seed {seed}: only one of both answers"
    if len(answers) == 2 and all(isinstance(answer, torch.Tensor) for answer in answers):
        torch.testing.assert_close(*answers, equal_nan=True, msg=f"seed {seed}")
    return len(answers) == 2


def test_source_of_any_folder_does_what_its_graph_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net").mkdir()
    ran = 0
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        for seed in range(FEW):
            torch.manual_seed(seed)
            description = Grammar(seed).description()
            write(tmp_path / "net", description, {entry["name"]: torch.randn(3, 3) for entry in description["tensors"]})
            with contextlib.suppress(ArtefactError):
                network = load(tmp_path / "net")
                ran += isinstance(network, fx.GraphModule) and try_source(tmp_path / "source", network, seed)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net", "source"]
    assert ran > FEW // 50


def try_folders(folder: Path, seeds: range) -> None:
    (folder / "net").mkdir()
    with warnings.catch_warnings(), contextlib.ExitStack() as stack:
        warnings.simplefilter("ignore")
        stack.enter_context(contextlib.redirect_stderr(io.StringIO()))  # torch.fx tells there where a graph failed
        found = [try_folder(folder / "net", seed) for seed in seeds]
    assert [path.name for path in folder.iterdir()] == ["net"]
    assert len(list((folder / "net").iterdir())) == 3
    # The grammar would tell nothing if all were refused at once.
    assert sum(loaded for loaded, _ in found) > len(seeds) // 5
    assert sum(ran for _, ran in found) > len(seeds) // 40


def test_any_folder_does_nothing_but_compute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    try_folders(tmp_path, range(FEW))


@pytest.mark.deep
@pytest.mark.parametrize("part", range(10))
def test_many_folders(part: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    try_folders(tmp_path, range(FEW + part * MANY // 10, FEW + (part + 1) * MANY // 10))


def test_the_watch_notices_forbidden_calls(tmp_path: Path) -> None:
    def tries() -> None:
        for bad in (
            lambda: exec("1"),
            lambda: __import__("antigravity"),
            lambda: (tmp_path / "x").write_text(""),
            lambda: os.system("true"),
            lambda: compile("def forward(self, x):\n    return eval(x)", "<eval_with_key>.1", "exec"),
            lambda: compile("def forward(self, x):\n    return x.__class__", "<eval_with_key>.1", "exec"),
            lambda: compile("import os\ndef forward(self, x):\n    return x", "<eval_with_key>.1", "exec"),
        ):
            with pytest.raises(RuntimeError, match="data made the interpreter do this"):
                bad()

    with audited() as done:
        tries()
    assert len(done) == 7
