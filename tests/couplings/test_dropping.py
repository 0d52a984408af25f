"""``couplings="drop"``: every reader of a stream chooses its own channels, and nothing else changes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import fx, nn
from torch.utils.flop_counter import FlopCounterMode

import fxprune
from fxprune.criteria import known_criteria
from fxprune.errors import OptionError
from tests.couplings import networks
from tests.nets.oracles import masked
from tests.test_training_mode import TwoModes, seeded

IMAGE = (2, 3, 8, 8)
CONVOLUTIONAL: dict[str, Callable[[], nn.Module]] = {
    "bottlenecks": networks.Bottlenecks,
    "dense": networks.Dense,
    "post-activation": networks.PostActivation,
    "shared reader": networks.SharedReader,
    "in place": lambda: networks.WritesInPlace(False),
    "in place, module": lambda: networks.WritesInPlace(True),
}


def dropped(model: nn.Module, sample: torch.Tensor, ratio: float = 0.4, **options: Any) -> fx.GraphModule:
    return fxprune.compile(model, sample, ratio, couplings="drop", **options)


def keep_of(pruned: nn.Module) -> dict[str, Any]:
    plan = fxprune.report(pruned).plan
    assert plan is not None
    return dict(plan.keep)


def assert_is_the_masked_original(model: nn.Module, pruned: nn.Module, shape: tuple[int, ...] = IMAGE) -> None:
    oracle, pruned = masked(model, keep_of(pruned)).double(), copy.deepcopy(pruned).double()
    for batch in (1, 3):
        x = torch.randn(batch, *shape[1:], dtype=torch.float64)
        torch.testing.assert_close(pruned(x), oracle(x), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("budget", ["macs", "params", "channels"])
@pytest.mark.parametrize("name", CONVOLUTIONAL)
def test_the_result_is_the_masked_original(name: str, budget: str) -> None:
    model = networks.randomised(CONVOLUTIONAL[name]())
    pruned = dropped(model, torch.randn(IMAGE), budget=budget)
    report = fxprune.report(pruned)
    assert report.proof is not None
    assert not report.proof.vacuous
    assert report.achieved >= 0.4
    assert "index_select" in pruned.code
    assert_is_the_masked_original(model, pruned)


def test_each_reader_has_columns_of_its_own_and_the_stream_is_whole() -> None:
    model = networks.randomised(networks.Dense())
    pruned = dropped(model, torch.randn(IMAGE))
    keep = keep_of(pruned)
    for index, conv in enumerate(model.convs):
        narrow = pruned.get_submodule(f"convs.{index}")
        assert narrow.weight.shape[0] == conv.weight.shape[0]
        columns = keep[f"convs.{index}.weight"][1]
        assert columns is None or torch.equal(columns, keep[f"norms.{index}.weight"][0])
        assert narrow.in_channels == pruned.get_submodule(f"norms.{index}").num_features
    chosen = {tuple(keep[f"convs.{i}.weight"][1].tolist()) for i in (1, 2, 3)}
    assert len(chosen) == 3


def test_inner_widths_shrink_too() -> None:
    pruned = dropped(networks.randomised(networks.Bottlenecks()), torch.randn(IMAGE), 0.6)
    assert all(pruned.get_parameter(f"blocks.{i}.conv2.weight").shape[0] < 8 for i in range(3))
    assert all(pruned.get_parameter(f"blocks.{i}.conv3.weight").shape[0] == 16 for i in range(3))
    assert all(pruned.get_parameter(f"blocks.{i}.conv1.weight").shape[1] < 16 for i in range(3))


def test_macs_are_those_of_an_independent_counter() -> None:
    for model in (networks.Dense(), networks.Bottlenecks(), networks.PostActivation()):
        pruned = dropped(networks.randomised(model), torch.randn(IMAGE))
        with FlopCounterMode(display=False) as counter:
            pruned(torch.randn(IMAGE))
        report = fxprune.report(pruned)
        assert counter.get_total_flops() == 2 * report.macs_after
        assert sum(p.numel() for p in pruned.parameters()) == report.parameters_after


def test_a_hand_written_narrow_network() -> None:
    model = networks.randomised(networks.PostActivation())
    pruned = dropped(model, torch.randn(IMAGE))
    keep = keep_of(pruned)

    def conv(module: nn.Conv2d, name: str, x: torch.Tensor) -> torch.Tensor:
        rows, columns = (slice(None) if k is None else k for k in keep[f"{name}.weight"][:2])
        weight, bias = module.weight[rows][:, columns], module.bias[rows]
        return torch.conv2d(x, weight, bias, padding=module.padding)

    x = torch.randn(IMAGE)
    stream = torch.relu(model.stem(x))
    for i in range(3):
        columns = keep[f"first.{i}.weight"][1]
        own = stream if columns is None else stream[:, columns]
        inner = torch.relu(conv(model.first[i], f"first.{i}", own))
        stream = torch.relu(stream + conv(model.second[i], f"second.{i}", inner))
    columns = keep["head.weight"][1]
    expected = conv(model.head, "head", stream if columns is None else stream[:, columns])
    torch.testing.assert_close(pruned(x), expected)


def test_with_nothing_removed_nothing_changes() -> None:
    for model in (networks.Dense(), networks.Bottlenecks()):
        copied = dropped(networks.randomised(model), torch.randn(IMAGE), 0)
        assert "index_select" not in copied.code
        assert "_selection" not in copied.code
        assert not list(copied.named_buffers()) or not any("_selection" in n for n, _ in copied.named_buffers())
        x = torch.randn(IMAGE)
        torch.testing.assert_close(copied(x), model(x), rtol=0, atol=0)


def test_without_shared_streams_nothing_changes() -> None:
    model = networks.randomised(networks.SqueezeExcite())
    graph, as_ever = (
        fxprune.analyze(model, torch.randn(IMAGE), couplings="drop"),
        fxprune.analyze(model, torch.randn(IMAGE)),
    )
    assert [g.name for g in graph.groups] == [g.name for g in as_ever.groups]


def test_layer_norms_stay_with_the_stream() -> None:
    model = networks.Transformer().eval()
    pruned = dropped(model, torch.randn(2, 5, 6), 0.3)
    keep = keep_of(pruned)
    assert all(keep[f"norms.{i}.weight"][0] is None for i in range(3))
    assert keep["up.weight"][1] is not None
    proof = fxprune.report(pruned).proof
    assert proof is not None
    assert proof.relative_error < 1e-9


def test_groups_report_and_explanations_name_the_selection() -> None:
    model = networks.randomised(networks.Bottlenecks())
    graph = fxprune.analyze(model, torch.randn(IMAGE), couplings="drop")
    names = [g.name for g in graph.groups]
    assert [n for n in names if n.startswith("inputs of")] == [
        "inputs of blocks.0.conv1",
        "inputs of blocks.1.conv1",
        "inputs of blocks.2.conv1",
        "inputs of fc",
    ]
    members = next(g for g in graph.groups if g.name == "inputs of fc").members
    assert ("fc.weight", 1, "in") in [(m.tensor, m.dim, m.role) for m in members]
    assert members[0].role == "selection"
    assert "share no channel group" in graph.explain("blocks.0.bn1", "blocks.1.bn1")
    assert "= inputs of blocks.0.conv1 dim 0" in graph.explain("blocks.0.bn1.weight", "blocks.0.conv1.weight:1")
    assert "selects its own" in graph.explain("stem.weight:0")
    assert "inputs of fc" in str(fxprune.report(dropped(model, torch.randn(IMAGE), 0.5)))


def test_a_plan_is_saved_and_replayed_with_its_couplings(tmp_path: Path) -> None:
    model, sample = networks.randomised(networks.Dense()), torch.randn(IMAGE)
    whole = dropped(model, sample)
    plan = fxprune.plan(model, sample, 0.4, couplings="drop")
    plan.save(tmp_path / "plan.json")
    again = fxprune.apply(model, sample, fxprune.Plan.load(tmp_path / "plan.json"))
    assert again.code == whole.code
    assert all(torch.equal(again.state_dict()[n], t) for n, t in whole.state_dict().items())
    kept = [dims for name, dims in plan.keep.items() if name not in model.state_dict()]
    assert kept
    assert all(len(dims) == 1 for dims in kept)


def test_saved_source_and_loaded_network(tmp_path: Path) -> None:
    model, x = networks.randomised(networks.Dense()), torch.randn(IMAGE)
    pruned = dropped(model, x)
    fxprune.save(pruned, tmp_path / "net")
    loaded = fxprune.load(tmp_path / "net")
    assert torch.equal(loaded(x), pruned(x))
    namespace: dict[str, Any] = {}
    exec(compile((tmp_path / "net" / "model.py").read_text(), "model.py", "exec"), namespace)
    written = namespace["Model"]().eval()
    written.load_state_dict(load_file(tmp_path / "net" / "weights.safetensors"))
    assert torch.equal(written(x), pruned(x))
    assert fxprune.report(loaded).settings["couplings"] == "drop"
    assert pruned.state_dict().keys() == model.state_dict().keys()


def test_both_modes_agree_on_the_selection() -> None:
    model = TwoModes()
    pruned = dropped(model, torch.randn(1, 3, 8, 8), 0.3)
    keep, x = keep_of(pruned), torch.randn(2, 3, 8, 8)
    assert keep["auxiliary.0.weight"][1] is not None or keep["branch.weight"][1] is not None
    oracle = masked(model, keep)
    for mode in (True, False):
        for ours, theirs in zip(seeded(pruned.train(mode), x), seeded(oracle.train(mode), x), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_a_pruned_network_is_pruned_again() -> None:
    model = networks.randomised(networks.Dense())
    once = dropped(model, torch.randn(IMAGE), 0.3)
    twice = dropped(once, torch.randn(IMAGE), 0.3)
    assert fxprune.report(twice).proof is not None
    assert fxprune.report(twice).macs_after <= 0.7 * fxprune.report(once).macs_after
    assert_is_the_masked_original(once, twice)


def test_half_precision_and_training() -> None:
    pruned = dropped(networks.randomised(networks.Bottlenecks()).bfloat16(), torch.randn(IMAGE).bfloat16())
    assert pruned(torch.randn(IMAGE).bfloat16()).dtype == torch.bfloat16
    pruned.train().float()(torch.randn(IMAGE)).sum().backward()
    assert all(p.grad is not None for p in pruned.parameters())


def test_the_callers_model_is_not_changed() -> None:
    model = networks.randomised(networks.Bottlenecks())
    before = copy.deepcopy(model.state_dict())
    names = [n for n, _ in model.named_modules()]
    dropped(model, torch.randn(IMAGE))
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())
    assert [n for n, _ in model.named_modules()] == names


def test_an_unknown_choice_is_refused() -> None:
    with pytest.raises(OptionError, match='couplings must be "keep" or "drop", not'):
        fxprune.compile(networks.Dense(), torch.randn(IMAGE), 0.4, couplings="loosen")
    with pytest.raises(OptionError, match="couplings must be"):
        fxprune.analyze(networks.Dense(), torch.randn(IMAGE), couplings="loosen")


def test_selections_can_be_excluded() -> None:
    model, sample = networks.randomised(networks.Bottlenecks()), torch.randn(IMAGE)
    keep = keep_of(dropped(model, sample, exclude=["_selection*_blocks_1_conv1", "bn"]))
    assert keep["blocks.1.conv1.weight"][1] is None
    assert keep["fc.weight"][1] is None
    assert keep["blocks.0.conv1.weight"][1] is not None


def test_structure_alone_on_the_meta_device() -> None:
    with torch.device("meta"):
        model = networks.Bottlenecks()
    pruned = dropped(model, torch.randn(IMAGE, device="meta"))
    assert fxprune.report(pruned).achieved >= 0.4


@pytest.mark.parametrize("criterion", known_criteria())
def test_every_criterion_scores_selections(criterion: str) -> None:
    model, images = networks.randomised(networks.Dense()), torch.randn(6, 3, 8, 8)
    batches = [(images, torch.arange(6) % 5)]
    pruned = dropped(model, images[:2], criterion=criterion, calibration=batches)
    assert fxprune.report(pruned).proof is not None
    assert pruned.get_parameter("convs.3.weight").shape[0] == 6


def test_slimming_takes_the_scales_in_front_of_each_reader() -> None:
    model = networks.randomised(networks.Dense())
    pruned = dropped(model, torch.randn(IMAGE), criterion="slimming")
    keep = keep_of(pruned)
    for i in range(5):
        kept, scales = keep[f"norms.{i}.weight"][0], model.norms[i].weight.abs()
        if kept is not None:
            gone = torch.ones(len(scales), dtype=torch.bool).index_fill(0, kept, False)
            assert scales[gone].max() <= scales[kept].min()
