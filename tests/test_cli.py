"""The command line as a user meets it: what it prints, what it saves, how it refuses."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import safetensors.torch
import torch
from rich.console import Console

import fxprune
from fxprune import cli
from fxprune.cli import sources
from fxprune.cli.sources import batches_of
from fxprune.errors import FxpruneError, ModelError, SampleError
from fxprune.saving import targets
from fxprune.util.tables import add_row, new_table
from tests.saving.test_loading import sign_again

NETS = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3, padding=1)
        self.block = nn.Sequential(nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1))
        self.head = nn.Linear(16, 5)

    def forward(self, x):
        x = self.conv(x)
        return self.head((x + self.block(x)).mean((2, 3)))

def with_sample():
    return Net(), torch.randn(1, 3, 8, 8)

class Loud(Net):
    def __init__(self):
        super().__init__()
        print("made")

    def forward(self, x):
        print("called")
        return super().forward(x)

def broken():
    raise ValueError("no such file")

def not_a_model():
    return 3

class Window(Net):
    def forward(self, x):
        return super().forward(x) * (2 if (x.shape[2], x.shape[3]) in ((20, 31), (8, 9)) else 1)

class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(7, 8)
        self.middle = nn.Linear(8, 8)
        self.head = nn.Linear(8, 2)

    def forward(self, tokens):
        return self.head(self.middle(self.embed(tokens)).relu())

constant = 3
"""


@dataclass
class Result:
    code: int
    out: str
    err: str


@pytest.fixture
def nets(tmp_path: Path) -> str:
    (tmp_path / "nets.py").write_text(NETS)
    return str(tmp_path / "nets.py")


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    def run_cli(*arguments: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["fxprune", *map(str, arguments)])
        try:
            cli.main()
            code = 0
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 0
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

    return run_cli


def test_compile_reports_and_saves(run: Callable[..., Result], nets: str, tmp_path: Path) -> None:
    result = run("compile", f"{nets}:with_sample", "--ratio", 0.5, "-o", tmp_path / "out")
    assert result.code == 0, result.err
    assert "50.0 % asked" in result.out
    assert "multiply-accumulates of convolution, linear and matmul" in result.out
    assert "nodes equals the masked original's" in result.out
    assert f"saved to {tmp_path / 'out'}" in result.out
    assert all(line == line.rstrip() and len(line) <= 100 for line in result.out.splitlines() if "saved to" not in line)
    pruned = fxprune.load(tmp_path / "out")
    assert fxprune.report(pruned).achieved >= 0.5
    assert pruned(torch.randn(2, 3, 8, 8)).shape == (2, 5)


def test_compile_takes_other_sizes(run: Callable[..., Result], nets: str, tmp_path: Path) -> None:
    given = ("compile", f"{nets}:Window", "--input-size", "1,3,8,8", "--ratio", 0.3, "--other-size", "20x31")
    assert run(*given, "-o", tmp_path / "out").code == 0
    pruned = fxprune.load(tmp_path / "out")
    assert pruned(torch.randn(2, 3, 20, 31)).shape == (2, 5)
    with pytest.raises(AssertionError, match="other sizes"):
        pruned(torch.randn(2, 3, 8, 9))


def test_compile_takes_its_options(run: Callable[..., Result], nets: str) -> None:
    result = run(
        *("compile", f"{nets}:Net", "--input-size", "1,3,8,8", "--ratio", 0.3, "--budget", "params", "--no-verify"),
        *("--scope", "uniform", "--exclude", "head*", "--round-to", 4, "--seed", 3, "--criterion", "random", "--json"),
    )
    assert result.code == 0, result.err
    report = json.loads(result.out)
    assert report["budget"] == "params"
    assert report["unproven"] == "verify=False"
    settings = report["settings"]
    assert (settings["scope"], settings["exclude"], settings["round_to"], settings["seed"]) == (
        "uniform",
        ["head*"],
        4,
        3,
    )
    assert all(row["after"] % 4 == 0 for row in report["groups"])


def test_zeros_need_no_ratio(run: Callable[..., Result], nets: str) -> None:
    result = run("compile", f"{nets}:with_sample", "--criterion", "zeros")
    assert result.code == 0, result.err
    assert "0 of 16 channels were exactly zero" in result.out
    result = run("compile", f"{nets}:with_sample")
    assert result.code == 2
    assert "--ratio" in result.err


def test_two_saved_networks_beside_one_another(run: Callable[..., Result], nets: str, tmp_path: Path) -> None:
    for name, ratio in (("a", 0.3), ("b", 0.6)):
        assert run("compile", f"{nets}:with_sample", "--ratio", ratio, "-o", tmp_path / name).code == 0
    result = run("compare", tmp_path / "a", tmp_path / "b")
    assert result.code == 0, result.err
    assert "a beside b" in result.out
    data = json.loads(run("compare", tmp_path / "a", tmp_path / "b", "--json").out)
    first, second = data["costs"][0]["removed"]
    assert 0.3 <= first < 0.6 <= second
    assert "written to" in run("compare", tmp_path / "a", tmp_path / "b", "--html", tmp_path / "both.html").out
    assert (tmp_path / "both.html").stat().st_size > 1000


def test_without_output_nothing_is_saved(run: Callable[..., Result], nets: str, tmp_path: Path) -> None:
    result = run("compile", f"{nets}:with_sample", "--ratio", 0.2, "--no-verify")
    assert "not saved: give a folder with -o" in result.out
    assert {path.name for path in tmp_path.iterdir()} - {"__pycache__"} == {"nets.py"}


def test_a_saved_folder_can_be_compiled_again(run: Callable[..., Result], nets: str, tmp_path: Path) -> None:
    run("compile", f"{nets}:with_sample", "--ratio", 0.3, "--no-verify", "-o", tmp_path / "once")
    result = run("compile", tmp_path / "once", "--ratio", 0.3, "-o", tmp_path / "twice")
    assert result.code == 0, result.err
    once, twice = (fxprune.report(fxprune.load(tmp_path / name)) for name in ("once", "twice"))
    assert twice.macs_before == once.macs_after


def test_report_prints_what_was_saved(run: Callable[..., Result], nets: str, tmp_path: Path) -> None:
    compiled = run("compile", f"{nets}:with_sample", "--ratio", 0.3, "--no-verify", "-o", tmp_path / "out")
    assert run("report", tmp_path / "out").out.strip() == compiled.out.rpartition("saved to")[0].strip()
    assert json.loads(run("report", tmp_path / "out", "--json").out)["ratio"] == 0.3
    assert "block.1.bias" in run("report", tmp_path / "out", "--verbose").out


def test_analyze(run: Callable[..., Result], nets: str) -> None:
    result = run("analyze", f"{nets}:with_sample")
    assert result.code == 0, result.err
    assert "1 channel groups, 2 pinned widths" in result.out
    assert "it is a dim of the network's output" in result.out
    data = json.loads(run("analyze", f"{nets}:with_sample", "--json").out)
    assert [(group["name"], group["size"]) for group in data["groups"]] == [("conv", 16)]
    assert 0 < data["prunable"]["params"] <= data["prunable"]["macs"] <= 1
    assert "block.1.weight dim 0" in run("analyze", f"{nets}:with_sample", "-v").out


def test_explain(run: Callable[..., Result], nets: str) -> None:
    assert "by add" in run("explain", f"{nets}:with_sample", "conv", "block.1").out
    assert "output" in json.loads(run("explain", f"{nets}:with_sample", "head", "--json").out)["answer"]


def test_weights_are_loaded(run: Callable[..., Result], nets: str, tmp_path: Path) -> None:
    model = sources.find_model(f"{nets}:Net", [], seed=5).model
    safetensors.torch.save_file(model.state_dict(), tmp_path / "w.safetensors")
    torch.save(model.state_dict(), tmp_path / "w.pt")
    torch.save({"state_dict": model.state_dict(), "epoch": 3}, tmp_path / "checkpoint.pt")
    for name in ("w.safetensors", "w.pt", "checkpoint.pt"):
        result = run(
            *("compile", f"{nets}:Net", "--input-size", "1,3,8,8", "--ratio", 0, "--no-verify"),
            *("--weights", tmp_path / name, "-o", tmp_path / "out"),
        )
        assert result.code == 0, result.err
        assert torch.equal(fxprune.load(tmp_path / "out").state_dict()["conv.weight"], model.conv.weight)


def test_integer_inputs(run: Callable[..., Result], nets: str) -> None:
    result = run("compile", f"{nets}:Tokens", "--input-size", "2,5:int64", "--ratio", 0.3)
    assert result.code == 0, result.err


def test_torchvision_by_name() -> None:
    source = sources.find_model("torchvision:mobilenet_v3_small", ["1,3,64,64"], seed=0)
    assert not source.model.training
    assert source.sample[0].shape == (1, 3, 64, 64)


@pytest.mark.parametrize(
    ("name", "size"),
    [("inception_v3", (1, 3, 299, 299)), ("r3d_18", (1, 3, 16, 112, 112)), ("resnet18", (1, 3, 224, 224))],
)
def test_torchvision_sizes(name: str, size: tuple[int, ...]) -> None:
    assert sources._torchvision_size(name) == size


@pytest.mark.parametrize("fault", ["absent", "built for another torch"])
def test_torchvision_may_be_missing(
    run: Callable[..., Result], nets: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    """As where a torch for CPUs is installed, and the registry's torchvision was built for CUDA."""
    (tmp_path / "torchvision").mkdir()
    text = "raise ImportError('no')" if fault == "absent" else "raise RuntimeError('operator nms does not exist')"
    (tmp_path / "torchvision" / "__init__.py").write_text(text)
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(str(tmp_path))
    caches = (targets._namespaces, targets._names_of_functions)
    for cache in caches:
        cache.cache_clear()
    try:
        found = run("compile", f"{nets}:with_sample", "--ratio", "0.3", "-o", str(tmp_path / "out"))
        assert (found.code, found.err) == (0, "")
        assert run("report", str(tmp_path / "out")).code == 0
        found = run("analyze", "torchvision:resnet18")
        assert found.code == 2
        assert "install the one that belongs to torch" in found.err
    finally:
        for cache in caches:
            cache.cache_clear()


def test_timm_by_name() -> None:
    pytest.importorskip("timm")
    source = sources.find_model("timm:resnet10t", [], seed=0)
    assert source.sample.shape == (1, 3, 176, 176)


def test_seeds_give_weights(nets: str) -> None:
    first, again, other = (sources.find_model(f"{nets}:Net", [], seed).model for seed in (1, 1, 2))
    assert torch.equal(first.conv.weight, again.conv.weight)
    assert not torch.equal(first.conv.weight, other.conv.weight)


# -- plans, exports, timings -------------------------------------------------------------------------------------------


@pytest.fixture
def saved(run: Callable[..., Result], nets: str, tmp_path: Path) -> Path:
    for ratio in (0.3, 0.5):
        folder = tmp_path / f"net{ratio}"
        assert run("compile", f"{nets}:with_sample", "--ratio", ratio, "--no-verify", "-o", folder).code == 0
    return tmp_path / "net0.5"


def test_diff(run: Callable[..., Result], saved: Path, tmp_path: Path) -> None:
    same = run("diff", saved, saved / "plan.json")
    assert (same.code, same.out) == (0, "the plans are equal; channel groups: 1\n")
    other = run("diff", tmp_path / "net0.3", saved)
    assert other.code == 1
    assert "ratio" in other.out
    assert "groups keep other channels" in other.out
    data = json.loads(run("diff", tmp_path / "net0.3", saved, "--json").out)
    assert not data["equal"]
    assert data["settings"] == {"ratio": [0.3, 0.5]}
    first, second = (fxprune.Plan.load(place / "plan.json") for place in (tmp_path / "net0.3", saved))
    for row in data["groups"]:
        gone = set(first.groups[row["name"]]) - set(second.groups[row["name"]])
        assert row["kept"] == [len(first.groups[row["name"]]), len(second.groups[row["name"]])]
        assert bool(row["only_first"]) == bool(gone)


def test_diff_of_plans_for_different_networks(run: Callable[..., Result], saved: Path, nets: str) -> None:
    other = saved.parent / "tokens"
    assert (
        run("compile", f"{nets}:Tokens", "--ratio", 0.3, "--input-size", "2,5:int64", "--no-verify", "-o", other).code
        == 0
    )
    result = run("diff", saved, other)
    assert result.code == 1
    assert "for different networks" in result.out


def test_export(run: Callable[..., Result], saved: Path, tmp_path: Path) -> None:
    result = run("export", saved, "-o", tmp_path / "net.pt2")
    assert result.code == 0, result.err
    assert "equals the pruned network to" in result.out
    assert torch.export.load(tmp_path / "net.pt2").module()(torch.randn(3, 3, 8, 8)).shape == (3, 5)
    data = json.loads(run("export", saved, "-o", tmp_path / "net", "-f", "source", "--json").out)
    assert data["format"] == "source"


def test_benchmark(run: Callable[..., Result], saved: Path, nets: str) -> None:
    quick = ("--original", f"{nets}:with_sample", "--runtime", "eager", "--seconds", 0.01)
    result = run("benchmark", saved, *quick, "--threads", 1)
    assert result.code == 0, result.err
    assert "1 thread;" in result.out
    assert [line.split()[:2] for line in result.out.splitlines() if line.startswith("eager")] == [
        ["eager", "1"],
        ["eager", "8"],
    ]
    data = json.loads(run("benchmark", saved, *quick, "--batch", 2, "--json").out)
    assert [(row["runtime"], row["batch"]) for row in data["latency"]] == [("eager", 2)]
    assert data["latency"][0]["gain"] == data["latency"][0]["original"] / data["latency"][0]["pruned"]


def test_a_folder_cannot_name_a_file_to_run(run: Callable[..., Result], saved: Path, tmp_path: Path) -> None:
    """The report of a folder from elsewhere may name any file as the original."""
    harm = tmp_path / "harm.py"
    harm.write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\ndef factory(): ...\n")
    report = json.loads((saved / "report.json").read_text())
    (saved / "report.json").write_text(json.dumps({**report, "source": f"{harm}:factory"}))
    sign_again(saved)
    result = run("benchmark", saved, "--runtime", "eager", "--seconds", 0.01)
    assert result.code == 2
    assert "whose code would be run" in result.err
    assert "--original" in result.err
    for command in (["report"], ["analyze"], ["compile", "--ratio", "0.1"], ["export", "-o", tmp_path / "net.pt2"]):
        run(command[0], saved, *command[1:])
    assert not (tmp_path / "ran").exists()


def test_an_original_that_is_a_saved_folder_is_only_data(run: Callable[..., Result], saved: Path) -> None:
    report = json.loads((saved / "report.json").read_text())
    (saved / "report.json").write_text(json.dumps({**report, "source": str(saved)}))
    sign_again(saved)
    result = run("benchmark", saved, "--runtime", "eager", "--seconds", 0.01, "--batch", 1)
    assert result.code == 0, result.err


def test_criteria(run: Callable[..., Result]) -> None:
    data = json.loads(run("criteria", "--json").out)
    assert list(data) == fxprune.criteria.known_criteria()
    assert all(data.values())
    assert "magnitude" in run("criteria").out


def test_an_interruption_leaves_nothing(
    run: Callable[..., Result], nets: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fxprune.saving import saving

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(saving, "encode_sample", stop)
    result = run("compile", f"{nets}:with_sample", "--ratio", 0.2, "--no-verify", "-o", tmp_path / "out")
    assert result.code == 130
    assert result.err == "error: interrupted; nothing was left half written\n"
    assert {path.name for path in tmp_path.iterdir()} <= {"nets.py", "__pycache__"}


def test_calibration_files(tmp_path: Path) -> None:
    from fxprune.cli.sources import BatchFolder

    safetensors.torch.save_file({"input": torch.ones(2), "target": torch.zeros(2)}, tmp_path / "a.safetensors")
    safetensors.torch.save_file({"input": torch.ones(3)}, tmp_path / "b.safetensors")
    torch.save((torch.ones(4), torch.zeros(1)), tmp_path / "c.pt")
    batches = BatchFolder(tmp_path)
    for _ in range(2):
        first, second, third = batches
        assert torch.equal(first[1], torch.zeros(2))
        assert torch.equal(second, torch.ones(3))
        assert torch.equal(third[0], torch.ones(4))
    assert len(batches) == 3
    torch.save(os.getcwd, tmp_path / "d.pt")
    with pytest.raises(SampleError, match="not a batch that can be read safely"):
        list(batches.__class__(tmp_path))


# -- refusing ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["analyze", "resnet18"], "unknown network 'resnet18': write torchvision:NAME"),
        (["analyze", "torchvision:resnet19"], "torchvision has no model 'resnet19'; did you mean"),
        (["analyze", "NETS:missing"], "has no function or class 'missing'"),
        (["analyze", "NETS:constant"], "has no function or class 'constant'"),
        (["analyze", "NETS:broken"], "nets.py:broken raised ValueError: no such file"),
        (["analyze", "NETS:not_a_model"], "returned a int, not a torch.nn.Module"),
        (["analyze", "nowhere.py:Net"], "there is no file nowhere.py"),
        (["analyze", "BAD:Net"], "bad.py cannot be imported: SyntaxError"),
        (["analyze", "QUIT:Net"], "quit.py ends the process while it is imported (SystemExit: 0)"),
        (["analyze", "ENDS:ends"], "ends.py:ends raised SystemExit: 3"),
        (["analyze", "NETS:Net", "--input-size", "1,x"], "cannot read the input size '1,x'"),
        (["analyze", "NETS:Net", "--input-size", "1,3,8,8:colour"], "cannot read the input size"),
        (["analyze", "NETS:Net", "--input-size", "1,3,0,8"], "cannot read the input size"),
        (["analyze", "NETS:Net", "--input-size", "1,4,8,8"], "sample"),
        (["compile", "NETS:Net", "--input-size", "1,3,8,8", "--ratio", "0.3", "--other-size", "9"], "320x480"),
        (["compile", "NETS:Net", "--input-size", "1,3,8,8", "--ratio", "0.3", "--other-size", "0x9"], "320x480"),
        (["analyze", "."], "not a folder saved by fxprune"),
        (["report", "nowhere"], "not a folder saved by fxprune"),
        (["export", "nowhere", "-o", "x.pt2"], "not a folder saved by fxprune"),
        (["benchmark", "nowhere"], "not a folder saved by fxprune"),
        (["diff", "nowhere", "NETS"], "there is no plan at nowhere"),
        (["diff", "NETS", "NETS"], "nets.py: the plan: not JSON"),
        (
            ["compile", "NETS:with_sample", "--ratio", "0.5", "--calibration", "no"],
            "there is no folder no of images",
        ),
        (
            ["compile", "NETS:with_sample", "--ratio", "0.5", "--calibration", "EMPTY"],
            "holds neither images nor batches",
        ),
        (["explain", "NETS:with_sample", "colour"], "colour"),
        (["compile", "NETS:with_sample", "--ratio", "1.5"], "ratio"),
        (["compile", "NETS:with_sample", "--ratio", "nan"], "ratio"),
        (["compile", "NETS:with_sample", "--ratio", "0.2", "--ratio", "0.4"], "takes one value, or NAME=VALUE"),
        (["compile", "NETS:with_sample", "--ratio", "0.2", "--seed", str(2**64)], "seed must be a whole number from"),
        (["compile", "NETS:with_sample", "--ratio", "0.99999"], "reach"),
        (["compile", "NETS:with_sample", "--ratio", "0.5", "--budget", "colours"], "unknown budget 'colours'"),
        (["compile", "NETS:with_sample", "--ratio", "0.5", "--criterion", "taste"], "unknown criterion 'taste'"),
        (["compile", "NETS:with_sample", "--ratio", "0.5", "--scope", "town"], "town"),
        (["compile", "NETS:with_sample", "--ratio", "0.5", "--exclude", "tail*"], "tail*"),
        (["compile", "NETS:with_sample", "--ratio", "0.5", "--weights", "no.pt"], "no weights file no.pt"),
        (
            ["compile", "NETS:with_sample", "--ratio", "0.5", "--weights", "NETS"],
            "not a state dict that can be read safely",
        ),
        (
            ["compile", "NETS:with_sample", "--ratio", "0.5", "--weights", "PICKLE"],
            "cannot be read safely|can be read safely",
        ),
        (["compile", "NETS:with_sample", "--ratio", "0.5", "--weights", "OTHER"], "do not fit the network"),
        (["compile", "NETS:with_sample", "--ratio", "0.2", "--no-verify", "-o", "NETS"], "is a file"),
    ],
)
def test_user_errors_are_one_line(
    run: Callable[..., Result],
    nets: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.py").write_text("def Net(:")
    (tmp_path / "quit.py").write_text("import sys\nsys.exit(0)")
    (tmp_path / "ends.py").write_text("def ends():\n    raise SystemExit(3)")
    torch.save(os.getcwd, tmp_path / "pickle.pt")
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pt")
    (tmp_path / "empty").mkdir()
    places = {"EMPTY": "empty", "NETS": nets, "BAD": "bad.py", "QUIT": "quit.py", "ENDS": "ends.py"}
    places |= {"PICKLE": "pickle.pt", "OTHER": "other.pt"}
    for short, place in places.items():
        arguments = [argument.replace(short, place) for argument in arguments]
    result = run(*arguments)
    assert result.code == 2
    assert result.out == ""
    assert result.err.startswith("error: ")
    assert result.err.count("\n") == 1
    assert any(part in result.err for part in message.split("|"))
    assert "Traceback" not in result.err


@pytest.mark.parametrize("arguments", [["compile"], ["compile", "x"], ["fly"], ["compile", "x", "--ratio", "much"]])
def test_wrong_usage_exits_with_2(run: Callable[..., Result], arguments: list[str]) -> None:
    result = run(*arguments)
    assert result.code == 2
    assert "Traceback" not in result.err


def test_a_full_disk_is_a_user_error(
    run: Callable[..., Result], nets: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(fxprune, "save", full)
    result = run("compile", f"{nets}:with_sample", "--ratio", 0.2, "--no-verify", "-o", tmp_path / "out")
    assert (result.code, result.err) == (2, "error: [Errno 28] No space left on device\n")


def test_a_bug_is_not_hidden(run: Callable[..., Result], nets: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def bug(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(fxprune, "analyze", bug)
    with pytest.raises(ZeroDivisionError):
        run("analyze", f"{nets}:with_sample")


def test_names_in_errors_are_not_markup(run: Callable[..., Result]) -> None:
    assert "'[red]x'" in run("analyze", "[red]x").err


def test_missing_timm_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(FxpruneError, match=r"pip install 'fxprune\[timm\]'"):
        sources.find_model("timm:resnet18", [], 0)


def test_python_callers_get_the_same_errors() -> None:
    with pytest.raises(ModelError):
        sources.find_model("nonsense", [], 0)
    with pytest.raises(SampleError):
        sources.sample_of_size("")


# -- help --------------------------------------------------------------------------------------------------------------


def test_help_and_version(run: Callable[..., Result]) -> None:
    names = ("compile", "analyze", "explain", "report", "export", "benchmark", "criteria", "diff", "Exit codes")
    assert all(name in run("--help").out for name in names)
    assert all(run(name, "--help").out for name in names[:-1])
    assert "--round-to" in run("compile", "-h").out
    assert "torch" in run("--version").out


def test_the_module_runs_too() -> None:
    result = subprocess.run([sys.executable, "-m", "fxprune", "--help"], capture_output=True, text=True, check=True)
    assert "compile" in result.stdout


def test_every_command_speaks_json(run: Callable[..., Result]) -> None:
    for command in cli.app.registered_commands:
        assert "--json" in run(command.name, "--help").out


def test_shells_can_complete(run: Callable[..., Result]) -> None:
    assert "--install-completion" in run("--help").out
    environment = os.environ | {"_FXPRUNE_COMPLETE": "complete_bash", "COMP_WORDS": "fxprune com", "COMP_CWORD": "1"}
    code = "import sys; sys.argv[0] = 'fxprune'; from fxprune.cli import app; app(prog_name='fxprune')"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert "compile" in result.stdout


def test_json_stays_pure_where_a_model_prints(run: Callable[..., Result], nets: str) -> None:
    result = run("compile", f"{nets}:Loud", "--input-size", "1,3,8,8", "--ratio", 0.3, "--no-verify", "--json")
    assert json.loads(result.out)["groups"]
    assert "made" in result.err
    assert "called" in result.err


def test_names_are_whole_in_a_pipe(run: Callable[..., Result], tmp_path: Path) -> None:
    long = "a_layer_with_a_name_that_is_longer_than_any_column_would_be_on_a_terminal_of_a_hundred"
    (tmp_path / "long.py").write_text(
        "import torch\n"
        "def net():\n"
        f"    inner = torch.nn.Sequential(); inner.add_module({long!r}, torch.nn.Linear(6, 16))\n"
        "    return torch.nn.Sequential(inner, torch.nn.ReLU(), torch.nn.Linear(16, 3)), torch.randn(2, 6)\n"
    )
    out = run("compile", f"{tmp_path / 'long.py'}:net", "--ratio", 0.3, "--no-verify").out
    assert f"0.{long} " in out
    assert "…" not in out


def test_names_are_shortened_in_the_middle_on_a_terminal() -> None:
    stream = io.StringIO()
    table = new_table("name", ["number"], last="why")
    add_row(table, "layers.0." + 60 * "x" + ".weight", "3", "because")
    Console(file=stream, width=70, force_terminal=True, color_system=None).print(table)
    row = stream.getvalue().splitlines()[-1]
    assert "layers.0.xx" in row
    assert "…" in row
    assert "x.weight" in row
    assert "because" in row


def test_every_verb_has_an_example_and_names_its_choices(run: Callable[..., Result]) -> None:
    for command in cli.app.registered_commands:
        assert f"Example: fxprune {command.name}" in " ".join(run(command.name, "--help").out.split())
    shown = run("compile", "--help").out
    for choices in ("auto|global|uniform|reconstruction", "keep|drop", "macs"):
        assert choices in shown


def test_criteria_say_what_they_need(run: Callable[..., Result]) -> None:
    rows = json.loads(run("criteria", "--json").out)
    assert rows["magnitude"]["needs_data"] is False
    assert rows["parallel"]["needs_data"] is rows["taylor"]["needs_data"] is True
    assert "p=2" in rows["magnitude"]["defaults"]


def test_a_folder_of_images_calibrates(run: Callable[..., Result], nets: str, tmp_path: Path) -> None:
    images = pytest.importorskip("PIL.Image")
    for number, place in enumerate(("cat", "dog", "cat")):
        (tmp_path / "photos" / place).mkdir(parents=True, exist_ok=True)
        colour = (50 * number, 9, 200)
        images.new("RGB" if number else "L", (20 + number, 12), colour if number else 7).save(
            tmp_path / "photos" / place / f"{number}.png"
        )
    images_of = batches_of(tmp_path / "photos", torch.randn(1, 3, 8, 8))
    ((batch, targets),) = images_of
    assert batch.shape == (3, 3, 8, 8)
    assert targets.tolist() == [0, 0, 1]
    dog = (torch.tensor([50, 9, 200]) / 255 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    torch.testing.assert_close(batch[2, :, 4, 4], dog, rtol=0, atol=1e-4)
    given = ("--ratio", 0.3, "--no-verify", "--calibration", tmp_path / "photos", "--criterion", "taylor", "--json")
    assert "3 samples" in run("compile", f"{nets}:with_sample", *given).out
    with pytest.raises(SampleError, match="takes something else"):
        batches_of(tmp_path / "photos", torch.zeros(2, 5, dtype=torch.long))


def test_output_below_python_of_a_factory_is_no_answer(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(
        "import os, torch\n"
        "def make():\n"
        "    os.write(1, b'from below')\n"
        "    print('from above')\n"
        "    return torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.Linear(4, 2)).eval(), torch.randn(1, 2)\n"
    )
    command = [sys.executable, "-m", "fxprune", "analyze", f"{tmp_path / 'net.py'}:make", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert [group["size"] for group in json.loads(done.stdout)["groups"]] == [4]
    assert "from below" in done.stderr
    assert "from above" in done.stderr
