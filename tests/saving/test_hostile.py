"""Folders made to harm: none runs anything, claims memory or raises what is not ours; each is refused or loads."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from fxprune.errors import ArtefactError, PlanError
from fxprune.planning.plan import Plan
from fxprune.saving import load, load_report, save
from fxprune.saving.folders import MANIFEST
from tests.saving.networks import make
from tests.saving.test_loading import edit_graph, sign_again
from tests.test_reporting import make_report

Json = dict[str, Any]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    network, _ = make("residual")
    network.meta["fxprune"] = {"report": make_report()}
    save(network, tmp_path_factory.mktemp("saved") / "net")
    return tmp_path_factory.getbasetemp() / "saved0" / "net"


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "net"))


def edit_manifest(folder: Path, edit: Callable[[Json], Any]) -> None:
    manifest = json.loads((folder / MANIFEST).read_text())
    edit(manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest))


def refused(folder: Path, words: str | None = None) -> None:
    with pytest.raises(ArtefactError, match=words) as caught:
        load(folder)
    assert len(str(caught.value)) < 3000


# -- what data could make a network do ------------------------------------------------------------------------------


PLAIN = "torch.nn.modules.module:Module"
GLOBALS = {"partial": [{"function": "builtins.getattr"}, {"tuple": [{"function": "torch.abs"}, "__globals__"]}, {}]}
TO_RUN = "open('hacked', 'w').close()"


def graph_that_calls(callable_node: dict[str, str]) -> list[Json]:
    return [
        {"name": "d", "op": "placeholder", "target": "d"},
        {"name": "b", "op": "call_method", "target": "get", "args": [{"node": "d"}, "__builtins__"]},
        {"name": "e", "op": "call_method", "target": "get", "args": [{"node": "b"}, "exec"]},
        {
            "name": "m",
            "op": "call_function",
            "target": "builtins.max",
            "args": [[TO_RUN, "1"]],
            "kwargs": {"key": callable_node},
        },
        {"name": "output", "op": "output", "target": "output", "args": [{"node": "m"}]},
    ]


def sequence_of(state: Json, graph: list[Json] | None = None) -> Callable[[Json], None]:
    """A plain container whose first part has the given attributes and whose second runs the graph."""

    def edit(data: Json) -> None:
        island = {"path": "1", "kind": "GraphModule", "name": "Second", "eval_graph": graph}
        data["modules"] = [{"path": "", "kind": "torch.nn.modules.container:Sequential"}]
        data["modules"] += [{"path": "0", "kind": PLAIN, "state": state}, *([island] if graph else [])]
        data["tensors"] = []
        data.pop("eval_graph")

    return edit


ATTRIBUTES: list[Json] = [
    {"forward": GLOBALS},
    {"forward": {"function": "builtins.getattr"}},
    {"forward": {"function": "torch.abs"}},
    {"train": {"function": "torch.abs"}},
    {"state_dict": {"partial": [{"function": "torch.abs"}, {"tuple": []}, {"dict": []}]}},
    {"held": {"function": "builtins.getattr"}},
    {"held": {"partial": [{"function": "builtins.getattr"}, {"tuple": []}, {"dict": []}]}},
    {"held": {"function": "torch.nn.functional.triplet_margin_with_distance_loss"}},
    {"held": {"object": [PLAIN, {"_forward_hooks": {"dict": [[0, {"function": "torch.abs"}]]}}]}},
    {"held": {"object": ["os:system", {}]}},
    {"held": {"import": "os:system"}},
    {"held": {"member": [PLAIN, "forward"]}},
    {"_forward_hooks": {"dict": [[0, {"function": "torch.abs"}]]}},
    {"__class__": {"import": PLAIN}},
    {"__reduce__": {"function": "torch.abs"}},
]


@pytest.mark.parametrize("state", ATTRIBUTES, ids=str)
def test_attributes_cannot_be_made_to_run_things(
    folder: Path, state: Json, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    save_file({}, folder / "weights.safetensors")
    edit_graph(folder, sequence_of(state, graph_that_calls({"node": "e"})))
    refused(folder)
    edit_graph(folder, lambda data: data["modules"].pop())
    refused(folder)
    assert not (tmp_path / "hacked").exists()


@pytest.mark.parametrize("target", ["builtins.max", "builtins.min"])
def test_a_graph_cannot_hand_on_a_function(folder: Path, target: str) -> None:
    call = {"name": "m", "op": "call_function", "target": target, "args": [["a", "b"]], "kwargs": {"key": "a"}}
    edit_graph(folder, lambda data: data["eval_graph"].insert(1, call))
    refused(folder, "a function to call")


# -- files --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["a" * 5000, "a\0b", "a\udc80b", "", "con", "~root", "$HOME", "../net/model.py", "C:\\a"]
)
def test_names_that_are_no_files(folder: Path, name: str) -> None:
    edit_manifest(folder, lambda manifest: manifest["files"].update({name: {"bytes": 0, "sha256": ""}}))
    refused(folder, "is missing")


@pytest.mark.parametrize("name", ["graph.json", "weights.safetensors"])
def test_a_file_that_the_manifest_does_not_vouch_for(folder: Path, name: str) -> None:
    edit_manifest(folder, lambda manifest: manifest["files"].pop(name))
    refused(folder, f"does not list {name}")


@pytest.mark.parametrize("target", ["/dev/zero", "/dev/stdin", "weights.safetensors", "/nowhere/at/all", "."])
@pytest.mark.parametrize("name", ["weights.safetensors", "graph.json", MANIFEST])
def test_links_to_things_that_are_not_files(folder: Path, name: str, target: str) -> None:
    (folder / name).unlink()
    (folder / name).symlink_to(name if target == "weights.safetensors" else target)
    refused(folder)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
@pytest.mark.parametrize("name", ["weights.safetensors", "graph.json", MANIFEST])
def test_pipes_are_not_waited_for(folder: Path, name: str) -> None:
    (folder / name).unlink()
    os.mkfifo(folder / name)
    refused(folder)


def test_links_to_other_places_are_files(folder: Path, tmp_path: Path) -> None:
    """Caches of downloaded files are made of links."""
    blob = tmp_path / "blob"
    (folder / "weights.safetensors").rename(blob)
    (folder / "weights.safetensors").symlink_to(blob)
    load(folder)


# -- sizes ----------------------------------------------------------------------------------------------------------


def tensor_file(header: bytes, body: bytes = b"", claimed: int | None = None) -> bytes:
    return struct.pack("<Q", len(header) if claimed is None else claimed) + header + body


def one(shape: list[int], size: int, dtype: str = "F32", name: str = "conv.weight") -> bytes:
    return json.dumps({name: {"dtype": dtype, "shape": shape, "data_offsets": [0, size]}}).encode()


TENSOR_FILES = {
    "a header longer than any file": tensor_file(b"{}", claimed=2**63),
    "a header longer than this file": tensor_file(b"{}", claimed=90_000_000),
    "a shape beyond the data": tensor_file(one([2**62, 4], 16), bytes(16)),
    "a shape that overflows": tensor_file(one([2**32, 2**32, 2], 0)),
    "a shape of nothing": tensor_file(one([0, 2**60], 0)),
    "a negative shape": tensor_file(one([-1], 4), bytes(4)),
    "an unknown dtype": tensor_file(one([1], 4, "F4"), bytes(4)),
    "one name twice": tensor_file(one([1], 4)[:-1] + b"," + one([1], 4)[1:], bytes(4)),
    "deep nesting": tensor_file(b'{"a":' + b"[" * 100_000),
    "a tensor that nobody knows": tensor_file(one([1], 4, name="nowhere.weight"), bytes(4)),
}


@pytest.mark.parametrize("content", TENSOR_FILES.values(), ids=TENSOR_FILES)
def test_tensor_files_that_lie(folder: Path, content: bytes) -> None:
    (folder / "weights.safetensors").write_bytes(content)
    sign_again(folder)
    refused(folder)


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.uint8])
def test_weights_of_another_kind(folder: Path, dtype: torch.dtype) -> None:
    file = folder / "weights.safetensors"
    for name in ("conv.weight", "bn.running_var"):
        weights = load_file(file)
        save_file({**weights, name: weights[name].to(dtype)}, file)
        sign_again(folder)
        refused(folder, f"{name}.* holds torch.{dtype}".replace("torch.torch", "torch"))
        save_file(weights, file)


def deep(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    "edit",
    [
        lambda data: data["modules"][0]["arguments"].update(out_channels=10**12),
        lambda data: data["modules"][0]["arguments"].update(out_channels=10**30),
        lambda data: data["modules"][0]["arguments"].update(out_channels=-5),
        lambda data: data["modules"][0]["arguments"].update(kernel_size={"tuple": [3] * 10_000}),
        lambda data: data["modules"][0]["arguments"].update(padding_mode="x" * 100_000),
        lambda data: data["eval_graph"][1].update(args=deep(900)),
        lambda data: data["eval_graph"][0].update(name="a" * 1_000_000),
        lambda data: data.update(sample={"args": deep(900), "kwargs": {}}),
        lambda data: data.update(sample={"args": [{"tensor": [[2**40, 2**40], {"dtype": "float32"}]}], "kwargs": {}}),
        lambda data: data.update(sample={"args": [{"tensor": [[1] * 100_000, {"dtype": "float32"}]}], "kwargs": {}}),
        lambda data: data.update(sample={"args": [{"tensor": [[True], {"dtype": "float32"}]}], "kwargs": {}}),
        lambda data: data.update(training="yes"),
        lambda data: data["modules"][0].update(training=1),
        lambda data: data["modules"].append(dict(data["modules"][0])),
        lambda data: data["tensors"].append(dict(data["tensors"][0])),
        lambda data: data["modules"].append({"path": "conv.again", "shared_with": "conv"}),
        lambda data: data["modules"].append({"path": "conv.again", "shared_with": ""}),
        lambda data: data["tensors"][0].update(tied_to=data["tensors"][0]["name"]),
        lambda data: data.update(imports=["os:system"]),
        lambda data: data.update(imports="os:system"),
        lambda data: data["modules"].append({"path": "training"}),
        lambda data: data["modules"].append({"path": "conv.weight"}),
        lambda data: data["tensors"].append({"name": "conv.forward", "kind": "buffer", "tied_to": "bn.running_mean"}),
    ],
)
def test_descriptions_that_claim_too_much(folder: Path, edit: Callable[[Json], Any]) -> None:
    edit_graph(folder, edit)
    refused(folder)


def test_shared_parts_cannot_make_paths_without_end(folder: Path) -> None:
    """Each level holds the next one twice, so forty levels of two entries would have 2**40 paths."""

    def edit(data: Json) -> None:
        path = "deep"
        data["modules"].append({"path": path})
        for _ in range(40):
            data["modules"] += [{"path": f"{path}.left"}, {"path": f"{path}.right", "shared_with": f"{path}.left"}]
            path += ".left"

    edit_graph(folder, edit)
    refused(folder, r"a shared module has a part at 'deep\.")


# -- anything at all --------------------------------------------------------------------------------------------------

NASTY = st.sampled_from(
    [
        None,
        True,
        -1,
        0,
        2**63,
        10**400,
        1e308,
        float("nan"),
        float("inf"),
        "",
        "x" * 200,
        "\0",
        "../x",
        "__class__",
        [],
        {},
    ]
) | st.recursive(
    st.integers(-3, 3) | st.sampled_from(["x", "conv", "torch.abs", "builtins.getattr", "os:system"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from("node tuple dict slice function import object partial dtype device shared_with".split()),
            inner,
            max_size=2,
        )
    ),
    max_leaves=5,
)


@pytest.mark.parametrize("name", [MANIFEST, "graph.json", "plan.json", "report.json"])
def test_any_value_in_any_place_of_any_file(saved: Path, tmp_path: Path, name: str) -> None:
    folder = Path(shutil.copytree(saved, tmp_path / "net"))
    text = (saved / name).read_text()

    @settings(max_examples=max(30, settings.default.max_examples))
    @given(st.data())
    def check(data: st.DataObject) -> None:
        document = json.loads(text)
        holder: Any = document
        while True:
            key = data.draw(st.sampled_from(sorted(holder) if isinstance(holder, dict) else range(len(holder))))
            if not isinstance(holder[key], (dict, list)) or not holder[key] or data.draw(st.integers(0, 3)) == 0:
                break
            holder = holder[key]
        if data.draw(st.booleans()) and isinstance(holder, dict):
            holder.pop(key)
        else:
            holder[key] = data.draw(NASTY)
        (folder / name).write_text(json.dumps(document))
        if name != MANIFEST:
            sign_again(folder)
        with contextlib.suppress(ArtefactError):
            str(load(folder).meta["fxprune"].get("report"))
        with contextlib.suppress(ArtefactError):
            load_report(folder)

    check()


@pytest.mark.parametrize("name", [MANIFEST, "graph.json", "plan.json", "report.json", "weights.safetensors"])
def test_any_change_of_bytes(saved: Path, tmp_path: Path, name: str) -> None:
    folder = Path(shutil.copytree(saved, tmp_path / "net"))
    whole = (saved / name).read_bytes()

    @given(st.integers(0, len(whole) - 1), st.binary(max_size=6), st.integers(0, 6), st.booleans())
    def check(at: int, new: bytes, gone: int, cut: bool) -> None:
        (folder / name).write_bytes(whole[:at] + new + (b"" if cut else whole[at + gone :]))
        if name != MANIFEST:
            sign_again(folder)
        with contextlib.suppress(ArtefactError):
            load(folder)

    check()


# -- reports, plans and files without end ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", [MANIFEST, "model.py", "graph.json"])
def test_a_file_without_end_is_not_read(folder: Path, name: str) -> None:
    os.truncate(folder / name, 1 << 35)
    refused(folder, "more text than any|changed or cut short")


def test_a_stack_of_layers_needs_tensors(folder: Path) -> None:
    layer = {"class": "LSTM", "arguments": {"input_size": 3, "hidden_size": 1, "num_layers": 10**8}}
    edit_graph(folder, lambda graph: graph["modules"].append({"path": "stack", **layer}))
    refused(folder, "100000000 layers")


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("drawing", [["a", ["b"], [], ""]]),
        ("drawing", [[{}, [], [], ""]]),
        ("drawing", [["a", [], [{}], ""]]),
        ("drawing", [["a", [7], [], ""]]),
        ("costs", [{"name": "a", "macs": [1, 2], "parameters": []}]),
        ("settings", {"couplings": "\ud800"}),
    ],
)
def test_a_report_that_was_edited_by_hand(folder: Path, part: str, value: Any) -> None:
    report = json.loads((folder / "report.json").read_text())
    (folder / "report.json").write_text(json.dumps({**report, part: value}))
    sign_again(folder)
    refused(folder, "report.json is malformed")


def test_half_of_a_character_is_no_plan() -> None:
    with pytest.raises(PlanError, match="surrogates"):
        Plan.from_json('{"format": "fxprune-plan-1", "groups": {}, "settings": {"a": "\\ud800"}, "tensors": {}}')


def test_networks_that_could_not_be_loaded_are_not_saved(tmp_path: Path) -> None:
    network, _ = make("residual")
    type(network).__name__ = "class"
    with pytest.raises(ArtefactError, match="'class' cannot be the name of a class"):
        save(network, tmp_path / "net")
