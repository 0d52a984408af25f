"""Loading runs nothing that a folder brings along, and says what is wrong with a folder that is not as it was saved."""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

from fxprune.errors import ArtefactError
from fxprune.saving import load, load_report, save, targets
from fxprune.saving.folders import MANIFEST, _fingerprint
from fxprune.saving.layers import build_layer, describe_layer, layer_names
from fxprune.saving.targets import function_name, resolve_function
from tests.saving.networks import make
from tests.test_reporting import make_report

Edit = Callable[[dict[str, Any]], None]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    network, _ = make("residual")
    network.meta["fxprune"] = {"report": make_report()}
    save(network, tmp_path / "net")
    return tmp_path / "net"


def sign_again(folder: Path) -> None:
    """What an attacker would do: make the manifest agree with the changed files."""
    manifest = json.loads((folder / MANIFEST).read_text())
    for name in manifest["files"]:
        manifest["files"][name] = _fingerprint(folder / name)
    (folder / MANIFEST).write_text(json.dumps(manifest))


def edit_graph(folder: Path, edit: Edit) -> None:
    data = json.loads((folder / "graph.json").read_text())
    edit(data)
    (folder / "graph.json").write_text(json.dumps(data))
    sign_again(folder)


def node(data: dict[str, Any], op: str) -> dict[str, Any]:
    found: dict[str, Any] = next(entry for entry in data["eval_graph"] if entry["op"] == op)
    return found


# -- folders that are not what was saved ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["model.py", "weights.safetensors", "graph.json", "plan.json", "report.json"])
def test_a_changed_file_is_noticed(folder: Path, name: str) -> None:
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / name).write_bytes(bytes(data))
    with pytest.raises(ArtefactError, match=f"{name} was changed"):
        load(folder)


@pytest.mark.parametrize("name", ["model.py", "weights.safetensors", "graph.json", "plan.json", "report.json"])
def test_a_truncated_or_missing_file_is_noticed(folder: Path, name: str) -> None:
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[: len(data) // 2])
    with pytest.raises(ArtefactError, match=f"{name} was changed or cut short"):
        load(folder)
    (folder / name).unlink()
    with pytest.raises(ArtefactError, match=f"incomplete: '{name}' is missing"):
        load(folder)


@pytest.mark.parametrize("name", [MANIFEST, "weights.safetensors", "net"])
def test_a_file_that_one_may_not_read_is_not_called_missing(
    folder: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    really = os.open

    def guarded(path: Any, *args: Any, **kwargs: Any) -> int:
        if Path(path).name == (folder.name if name == "net" else name):
            raise PermissionError(errno.EACCES, "Permission denied")
        return really(path, *args, **kwargs)

    monkeypatch.setattr(os, "open", guarded)
    with pytest.raises(ArtefactError, match="cannot be (read|opened).*Permission denied") as caught:
        load(folder)
    assert "missing" not in str(caught.value)


@pytest.mark.parametrize("name", ["weights.safetensors", "graph.json", "plan.json", "report.json"])
@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b'"text"', b"\xff\xfe", b"[" * 100_000])
def test_nonsense_with_a_fresh_manifest_is_refused(folder: Path, name: str, content: bytes) -> None:
    (folder / name).write_bytes(content)
    sign_again(folder)
    with pytest.raises(ArtefactError):
        load(folder)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"format": "other", "files": {}}', "[" * 100_000])
def test_a_broken_manifest_is_refused(folder: Path, content: str) -> None:
    (folder / MANIFEST).write_text(content)
    with pytest.raises(ArtefactError):
        load(folder)


def test_a_later_format_is_refused(folder: Path) -> None:
    manifest = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps({**manifest, "version": 99}))
    with pytest.raises(ArtefactError, match="format version 99, this fxprune reads 2"):
        load(folder)


@pytest.mark.parametrize("name", ["../escape", "/etc/passwd", "..", "a\\b"])
def test_a_manifest_cannot_point_outside(folder: Path, name: str) -> None:
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["files"][name] = {"bytes": 0, "sha256": ""}
    (folder / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(ArtefactError, match="is missing"):
        load(folder)


def test_a_foreign_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match="not a folder saved by fxprune"):
        load(tmp_path)
    with pytest.raises(ArtefactError, match="not a folder saved by fxprune"):
        load_report(tmp_path / "nowhere")


def test_another_torch_is_named(folder: Path) -> None:
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["versions"]["torch"] = "2.6.0"
    (folder / MANIFEST).write_text(json.dumps(manifest))
    load(folder)

    def unknown_argument(data: dict[str, Any]) -> None:
        data["modules"][0]["arguments"]["colour"] = "red"

    edit_graph(folder, unknown_argument)
    with pytest.raises(ArtefactError, match=r"cannot build 'conv' .*saved with torch 2\.6\.0, this is"):
        load(folder)


# -- graphs that want to run something ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "posix.system",
        "builtins.eval",
        "builtins.exec",
        "builtins.open",
        "builtins.__import__",
        "operator.attrgetter",
        "operator.methodcaller",
        "operator.call",
        "torch.load",
        "torch.save",
        "torch.from_file",
        "torch.hub.load",
        "torch.ops.load_library",
        "torch.jit.load",
        "torch.compile",
        "torch.Tensor.numpy",
        "torch.Tensor.__reduce_ex__",
        "torch.nn.functional.os.system",
        "torch.nn.functional.handle_torch_function",
        "fxprune.load",
        "math.__loader__.load_module",
        "",
        "eval",
        None,
        3,
        ["operator", "add"],
    ],
)
def test_unlisted_functions_are_refused(folder: Path, target: Any) -> None:
    edit_graph(folder, lambda data: node(data, "call_function").update(target=target, args=["touch hacked"]))
    with pytest.raises(ArtefactError, match="may call"):
        load(folder)


@pytest.mark.parametrize(
    "target",
    [
        "numpy",
        "apply_",
        "register_hook",
        "share_memory_",
        "untyped_storage",
        "tofile",
        "__class__",
        "__reduce__",
        "__setstate__",
        "mean(); import os; os.system('touch hacked'); x.mean",
        "",
        None,
    ],
)
def test_unlisted_methods_are_refused(folder: Path, target: Any) -> None:
    edit_graph(folder, lambda data: node(data, "call_method").update(target=target))
    with pytest.raises(ArtefactError, match="may not call|cannot be the target"):
        load(folder)


@pytest.mark.parametrize(
    "args",
    [
        [{"node": "x"}, "__class__"],
        [{"node": "x"}, "grad_fn"],
        [{"node": "x"}, "min"],
        [{"node": "x"}, "values"],
        [[{"node": "x"}], "shape"],
        [{"node": "x"}, {"node": "x"}],
        [{"node": "x"}, "no_such_thing", 3],
        [{"node": "x"}],
    ],
)
def test_unlisted_attributes_are_refused(folder: Path, args: list[Any]) -> None:
    edit_graph(folder, lambda data: node(data, "call_function").update(target="builtins.getattr", args=args))
    with pytest.raises(ArtefactError, match="getattr|may not read"):
        load(folder)


@pytest.mark.parametrize(("op", "target"), [("call_method", "new"), ("call_function", "torch.Tensor.new")])
def test_a_graph_gives_no_addresses(folder: Path, op: str, target: str) -> None:
    address = {"args": [{"node": "x"}], "kwargs": {"cdata": 1 << 20}}
    edit_graph(folder, lambda data: node(data, "call_method").update(op=op, target=target, **address))
    with pytest.raises(ArtefactError, match="gives Tensor.new a keyword"):
        load(folder)


def test_attributes_of_number_types_are_read(folder: Path) -> None:
    def edit(data: dict[str, Any]) -> None:
        data["eval_graph"][-1:] = [
            {"name": "f", "op": "call_function", "target": "torch.finfo", "args": [{"dtype": "float32"}]},
            {"name": "m", "op": "call_function", "target": "builtins.getattr", "args": [{"node": "f"}, "min"]},
            {"name": "output", "op": "output", "target": "output", "args": [{"node": "m"}]},
        ]

    edit_graph(folder, edit)
    assert load(folder)(torch.randn(1, 3, 4, 4)) == torch.finfo(torch.float32).min


def test_no_attribute_that_a_graph_reads_is_a_method_of_a_value() -> None:
    kinds = (torch.Tensor, str, int, float, complex, list, tuple, dict, slice, range, torch.Size, torch.dtype)
    kinds += (torch.device, torch.layout, torch.memory_format, type(None), type(...))
    assert not [(kind, name) for kind in kinds for name in targets._ATTRIBUTES if callable(getattr(kind, name, None))]


INJECTION = 'x"); __import__("os").system("touch hacked"); ("'


@pytest.mark.parametrize(
    "edit",
    [
        lambda data: node(data, "placeholder").update(name=INJECTION),
        lambda data: node(data, "placeholder").update(target=INJECTION),
        lambda data: node(data, "placeholder").update(target="***x"),
        lambda data: node(data, "call_module").update(target=INJECTION),
        lambda data: node(data, "call_function").update(kwargs={INJECTION: 1}),
        lambda data: data.update(class_name=INJECTION),
        lambda data: data.update(class_name="class"),
        lambda data: data["modules"].append({"path": INJECTION}),
        lambda data: data["modules"].append({"path": "a..b"}),
        lambda data: data["tensors"].append({"name": INJECTION, "kind": "constant", "tied_to": "bn.running_mean"}),
        lambda data: node(data, "call_module").update(name="import"),
        lambda data: node(data, "call_module").update(op="call_everything"),
        lambda data: node(data, "call_module").update(op="get_attr", target="training"),
        lambda data: node(data, "call_module").update(op="get_attr", target="conv.__class__"),
        lambda data: node(data, "call_module").update(target="blocks"),
        lambda data: node(data, "call_module").update(target="nowhere"),
        lambda data: node(data, "call_module").update(target=["conv"]),
    ],
)
def test_names_cannot_carry_code(folder: Path, edit: Edit, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    edit_graph(folder, edit)
    with pytest.raises(ArtefactError):
        load(folder)
    assert not (tmp_path / "hacked").exists()


@pytest.mark.parametrize(
    "target",
    [
        {"namedtuple": []},
        {"namedtuple": ["A", INJECTION]},
        {"namedtuple": [INJECTION]},
        {"namedtuple": ["A", "a", "a"]},
        {"namedtuple": ["A", "_a"]},
        {"namedtuple": "A"},
        {"class": ["A"]},
        {},
    ],
)
def test_named_tuples_are_only_names(folder: Path, target: Any) -> None:
    edit_graph(folder, lambda data: node(data, "call_function").update(target=target, args=[]))
    with pytest.raises(ArtefactError):
        load(folder)


def test_strings_are_data(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    edit_graph(folder, lambda data: node(data, "output").update(args=[{"dict": [[INJECTION, INJECTION]]}]))
    assert load(folder)(torch.randn(1, 3, 4, 4)) == {INJECTION: INJECTION}
    assert not (tmp_path / "hacked").exists()


@pytest.mark.parametrize(
    "value",
    [
        {"node": "output"},
        {"node": 3},
        {"pickle": "gASVIAAAAA=="},
        {"dtype": "load"},
        {"dtype": 3},
        {"layout": "float32"},
        {"device": "nowhere"},
        {"slice": [1, 2, 3, 4, 5]},
        {"float": "1.5"},
        {"complex": ["a"]},
        {"tuple": 3},
        {"tuple": [], "slice": []},
        {},
    ],
)
def test_malformed_values_are_refused(folder: Path, value: Any) -> None:
    edit_graph(folder, lambda data: node(data, "call_function").update(args=[value, 1]))
    with pytest.raises(ArtefactError):
        load(folder)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda data: data["modules"][0].update({"class": "Sequential"}), "not a torch.nn layer"),
        (lambda data: data["modules"][0].update({"class": "os.system"}), "not a torch.nn layer"),
        (lambda data: data["modules"][0]["arguments"].update(out_channels=9), "has shape"),
        (lambda data: data["modules"][0]["arguments"].update(bias=True), "lists no values for 'conv.bias'"),
        (lambda data: data["modules"][0]["arguments"].update(groups="two"), "cannot build 'conv'"),
        (lambda data: data["modules"].pop(0), "cannot be loaded"),
        (lambda data: data["modules"].append({"path": "conv.a.b"}), "does not hold"),
        (lambda data: data["modules"].append({"path": "conv.a"}), "cannot be put in its place"),
        (lambda data: data["modules"].append({"path": "blocks.training"}), "cannot be put in its place"),
        (lambda data: data["modules"][0].update(container="Sequential"), "two kinds at once"),
        (lambda data: data["modules"].append({"path": "a", "container": "Transformer"}), "not a container"),
        (lambda data: data["modules"].append({"path": "again", "shared_with": "nowhere"}), "does not hold"),
        (lambda data: data["tensors"].append({"name": "conv.colour", "kind": "parameter"}), "lack 'conv.colour'"),
        (
            lambda data: data["tensors"].append({"name": "conv.bias", "kind": "parameter", "tied_to": "bn.bias"}),
            "no place",
        ),
        (lambda data: data["tensors"].append({"name": "q", "kind": "buffer", "tied_to": "r"}), "tied to 'r'"),
        (lambda data: data["tensors"][0].update(kind="secret"), "no kind of tensor"),
        (lambda data: data["tensors"].pop(0), "lists no values"),
        (lambda data: data["eval_graph"].pop(), "does not end in one output"),
        (lambda data: data["eval_graph"].append(data["eval_graph"][0]), "two nodes"),
        (lambda data: data["eval_graph"].reverse(), "refers to"),
        (lambda data: data.pop("eval_graph"), "malformed"),
        (lambda data: data.update(eval_graph={}), "cannot be loaded"),
        (lambda data: data.update(modules=3), "malformed"),
    ],
)
def test_inconsistent_descriptions_are_refused(folder: Path, edit: Edit, message: str) -> None:
    edit_graph(folder, edit)
    with pytest.raises(ArtefactError, match=message):
        load(folder)


def test_weights_of_another_shape_or_fewer_are_refused(folder: Path) -> None:
    file = folder / "weights.safetensors"
    weights = load_file(file)
    save_file({**weights, "head.weight": torch.zeros(4, 9)}, file)
    sign_again(folder)
    with pytest.raises(ArtefactError, match=r"'head.weight' has shape \(4, 9\)"):
        load(folder)
    weights.pop("head.weight")
    save_file(weights, file)
    sign_again(folder)
    with pytest.raises(ArtefactError, match="the weights lack 'head.weight'"):
        load(folder)


NONSENSE = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.text("ab._\"'(", max_size=4) | st.sampled_from(["x", "conv"]),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["node", "tuple", "op"]), inner, max_size=2)
    ),
    max_leaves=4,
)


@settings(max_examples=150)
@given(data=st.data())
def test_any_change_of_the_graph_loads_or_is_refused(data: st.DataObject, tmp_path_factory: Any) -> None:
    folder = tmp_path_factory.getbasetemp() / "fuzzed"
    if not folder.exists():
        save(make("attention")[0], folder)
        (folder / "original.json").write_text((folder / "graph.json").read_text())
    graph = json.loads((folder / "original.json").read_text())
    holder = graph
    # Walk down at random, then put nonsense where the walk ended.
    while True:
        key = data.draw(st.sampled_from(sorted(holder) if isinstance(holder, dict) else range(len(holder))))
        if not isinstance(holder[key], (dict, list)) or not holder[key] or data.draw(st.integers(0, 4)) == 0:
            break
        holder = holder[key]
    holder[key] = data.draw(NONSENSE)
    (folder / "graph.json").write_text(json.dumps(graph))
    sign_again(folder)
    with contextlib.suppress(ArtefactError):
        load(folder)


# -- the tables --------------------------------------------------------------------------------------------------------

POSITIONAL: dict[str, list[Any]] = {
    **{
        name: [4]
        for name in ("GroupNorm", "LayerNorm", "RMSNorm", "SyncBatchNorm", "LocalResponseNorm", "CrossMapLRN2d")
    },
    **{name: [3, 4] for name in ("GRU", "LSTM", "RNN", "GRUCell", "LSTMCell", "RNNCell", "Linear", "Embedding")},
    **{name: [2] for name in ("ChannelShuffle", "PixelShuffle", "PixelUnshuffle", "Unfold")},
    "GroupNorm": [2, 4],
    "Bilinear": [2, 3, 4],
    "EmbeddingBag": [5, 3],
    "AdaptiveLogSoftmaxWithLoss": [8, 12, [2, 5]],
    "FractionalMaxPool2d": [2, 3],
    "FractionalMaxPool3d": [2, 3],
    "Fold": [(4, 4), 2],
    "MultiheadAttention": [8, 2],
    "Threshold": [0.5, 1.0],
    "Unflatten": [1, (2, 2)],
}


def positional(name: str) -> list[Any]:
    if name in POSITIONAL:
        return POSITIONAL[name]
    patterns = {
        "Loss": [],
        "Conv": [3, 4, 3],
        "ConstantPad": [1, 0.5],
        "Pad": [1],
        "Norm": [4],
        "LPPool": [2, 3],
        "ool": [2],
    }
    return next((arguments for part, arguments in patterns.items() if part in name), [])


@pytest.mark.parametrize("name", sorted(layer_names()))
def test_every_layer_on_the_list_is_built_again(name: str) -> None:
    layer = getattr(nn, name)(*positional(name))
    again = build_layer("it", json.loads(json.dumps(describe_layer("it", layer))))
    assert repr(again) == repr(layer)
    assert [(n, p.shape) for n, p in again.state_dict().items()] == [
        (n, p.shape) for n, p in layer.state_dict().items()
    ]


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 8, (3, 1), stride=2, padding="valid", bias=False, padding_mode="reflect", groups=2, dilation=2),
        nn.ConvTranspose1d(4, 8, 2, stride=2, output_padding=1, dtype=torch.float64),
        nn.RNN(3, 4, 2, nonlinearity="relu", bidirectional=True),
        nn.LSTM(3, 8, 2, proj_size=2, batch_first=True, bias=False, dropout=0.5),
        nn.BatchNorm2d(4, eps=1e-3, momentum=None, affine=False),
        nn.BatchNorm1d(4, track_running_stats=False),
        nn.LayerNorm((3, 4), bias=False),
        nn.LayerNorm(4, elementwise_affine=False),
        nn.Embedding(5, 4, padding_idx=-1, max_norm=2.0),
        nn.Upsample(scale_factor=(2.0, 3.0), mode="bilinear", align_corners=True),
        nn.AdaptiveAvgPool2d((None, 1)),
        nn.MultiheadAttention(8, 2, add_bias_kv=True, add_zero_attn=True, bias=False, kdim=4, batch_first=True),
        nn.PairwiseDistance(p=1, keepdim=True),
        nn.PReLU(3, init=0.1),
        nn.Hardtanh(-2, 3, inplace=True),
        nn.GELU("tanh"),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_arguments_are_read_back(layer: nn.Module) -> None:
    again = build_layer("it", json.loads(json.dumps(describe_layer("it", layer))))
    assert repr(again) == repr(layer)
    constants = getattr(type(layer), "__constants__", None) or []
    assert {name: getattr(again, name, None) for name in constants} == {n: getattr(layer, n, None) for n in constants}
    assert [(n, p.shape, p.dtype) for n, p in again.state_dict().items()] == [
        (n, p.shape, p.dtype) for n, p in layer.state_dict().items()
    ]


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (torch.cat, "torch.cat"),
        (nn.functional.relu, "torch.nn.functional.relu"),
        (torch._C._nn.avg_pool2d, "torch.nn.functional.avg_pool2d"),
        (torch._C._nn.upsample_bilinear2d, "torch._C._nn.upsample_bilinear2d"),
        (torch.Tensor.add, "torch.Tensor.add"),
        (getattr, "builtins.getattr"),
    ],
)
def test_functions_have_names(function: Any, name: str) -> None:
    assert function_name(function) == name
    assert resolve_function(name) is function
