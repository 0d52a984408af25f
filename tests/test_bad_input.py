"""Every mistake has an exception of its own that says what, where and what to do, and the model stays bit-equal."""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import fxprune
from fxprune import errors
from fxprune.calibration.batches import Calibration
from fxprune.capture.samples import Sample
from tests.refusing import Options, image, refused, small_net, vector
from tests.snapshots import snapshot

# -- the ratio --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ratio", [-0.1, 1, 1.0, 1.5, float("nan"), float("inf"), "0.5", None, True, 1 + 2j, [0.5]])
def test_ratio_is_a_number_from_zero_to_below_one(ratio: Any) -> None:
    refused(errors.RatioError, "0 <= ratio < 1", small_net(), image(), ratio)


@pytest.mark.parametrize("ratio", [0, 0.0, torch.tensor(0.25)])
def test_other_spellings_of_a_good_ratio_are_taken(ratio: Any) -> None:
    assert fxprune.report(fxprune.compile(small_net(), image(), ratio, verify=False)).ratio == float(ratio)


# -- the budget and its limits ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", ["macs", "params"])
def test_an_unreachable_budget_is_refused_with_the_largest_ratio_and_the_pins(budget: str) -> None:
    error = refused(errors.BudgetError, "at most 0.9", small_net(), image(), 0.999, budget=budget)
    assert isinstance(error, errors.BudgetError)
    assert error.reachable is not None
    assert 0.9 < error.reachable < 0.999
    assert set(error.pinned) == {"0.weight dim 1", "5.weight dim 0"}
    assert "dim of the network's input" in str(error)
    assert "dim of the network's output" in str(error)


def test_the_reachable_ratio_is_reached() -> None:
    error = refused(errors.BudgetError, "out of reach", small_net(), image(), 0.999, max_ratio=1)
    assert isinstance(error, errors.BudgetError)
    assert error.reachable is not None
    pruned = fxprune.compile(small_net(), image(), error.reachable, max_ratio=1)
    assert fxprune.report(pruned).budget_after <= fxprune.report(pruned).budget_before * (1 - error.reachable) + 1e-6


def test_limits_that_prevent_a_ratio_are_named() -> None:
    options: Options = {"min_channels": 6, "round_to": 2, "max_ratio": 0.5, "exclude": ["3"]}
    error = refused(errors.BudgetError, "out of reach", small_net(), image(), 0.9, **options)
    for words in ("min_channels=6", "round_to=2", "max_ratio=0.5", "kept whole by exclude"):
        assert words in str(error)


@pytest.mark.parametrize(
    ("options", "kind", "words"),
    [
        ({"budget": "flops"}, errors.BudgetError, "unknown budget 'flops'; choose one of channels, latency, macs"),
        ({"scope": "local"}, errors.BudgetError, "scope must be .*not 'local'"),
        ({"residual": "outer"}, errors.BudgetError, "residual must be .*not 'outer'"),
        ({"criterion": "magic"}, errors.CriterionError, "unknown criterion 'magic'; choose one of .*magnitude"),
        ({"criterion": 3}, errors.CriterionError, "criterion must be"),
        ({"exclude": ["layer4*"]}, errors.ExcludeError, "'layer4\\*' matches no parameter and no module"),
        ({"exclude": ["3", "9"]}, errors.ExcludeError, "'9' matches no"),
        ({"exclude": "3"}, errors.ExcludeError, r"write exclude=\['3'\]"),
        ({"exclude": [3]}, errors.ExcludeError, "patterns as strings"),
        ({"round_to": 0}, errors.BudgetError, "round_to must be a whole number of at least 1"),
        ({"round_to": 1.5}, errors.BudgetError, "round_to must be a whole number"),
        ({"min_channels": -1}, errors.BudgetError, "min_channels must be a whole number"),
        ({"max_ratio": 2}, errors.BudgetError, "max_ratio must be a number between 0 and 1"),
        ({"max_ratio": float("nan")}, errors.BudgetError, "max_ratio must be a number between 0 and 1"),
        ({"seed": "a"}, errors.OptionError, "seed must be a whole number, not 'a'"),
        ({"seed": 0.5}, errors.OptionError, "seed must be a whole number"),
        ({"seed": True}, errors.OptionError, "seed must be a whole number"),
        ({"seed": 2**64}, errors.OptionError, r"seed must be a whole number from -2\*\*63 to 2\*\*64 - 1"),
        ({"seed": -(2**63) - 1}, errors.OptionError, "seed must be a whole number from"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_an_unknown_choice_is_refused_with_the_known_ones(options: Options, kind: type[Exception], words: str) -> None:
    refused(kind, words, small_net(), image(), **options)


@pytest.mark.parametrize("function", [fxprune.compile, fxprune.plan])
def test_an_unknown_option_is_a_type_error_as_everywhere_in_python(function: Callable[..., Any]) -> None:
    with pytest.raises(TypeError, match=rf"{function.__name__}\(\) got an unexpected keyword argument 'rato'"):
        function(small_net(), image(), 0.3, rato=0.5)


# -- the sample -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sample", "words"),
    [
        (image(2, 4, 8, 8), "to have 3 channels, but got 4 channels"),
        (image(1, 4, 8, 8), r"\[1, 4, 8, 8\] to have 3 channels"),
        (image(2, 3), r"input of size: \[2, 3\]"),
        (image(2, 3, 9, 9), "2x200 and 128x5"),
        (image().double(), r"args\[0\] has dtype torch.float64, the model torch.float32"),
        (image().half(), r"args\[0\] has dtype torch.float16, the model torch.float32"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.int64), "long int"),
        (image().to("meta"), r"args\[0\] is on meta, the model on cpu"),
        ((image(), image()), "takes 2 positional arguments but 3 were given|too many positional arguments"),
        ({"picture": image()}, "unexpected keyword argument 'picture'"),
        (image() * float("nan"), r"args\[0\] holds NaN"),
        (torch.eye(3).to_sparse(), "sparse"),
        (None, "holds no tensor .got NoneType"),
        ((1, 2), "holds no tensor .got tuple"),
        ({}, "holds no tensor"),
        ("image", "holds no tensor .got str"),
    ],
)
def test_a_sample_that_does_not_fit(sample: Any, words: str) -> None:
    refused(errors.SampleError, words, small_net(), sample)


def test_the_wrong_argument_of_several_is_named() -> None:
    class TwoInputs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
            return self.second(self.first(left) + right)

    sample = {"left": vector(), "right": vector().double()}
    refused(errors.SampleError, r"kwargs\['right'\] has dtype torch.float64", TwoInputs(), sample)


# -- plans ------------------------------------------------------------------------------------------------------------


def wider() -> nn.Module:
    layers = [nn.Conv2d(3, 12, 3), nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 8, 3), nn.Flatten(), nn.Linear(128, 5)]
    return nn.Sequential(*layers).eval()


def renamed() -> nn.Module:
    return nn.Sequential(small_net())


def tied_otherwise() -> nn.Module:
    """The same tensors under the same names, but the two convolutions' widths are coupled by an addition."""

    class Residual(nn.Sequential):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            first = self[2](self[1](self[0](x)))
            return self[5](self[4](self[3](first) + first[..., 1:-1, 1:-1]))

    return Residual(*small_net())


@pytest.mark.parametrize("other", [wider, renamed, tied_otherwise])
def test_a_plan_for_another_network(other: Callable[[], nn.Module]) -> None:
    plan = fxprune.plan(small_net(), image(), 0.4)
    model = other()
    before = snapshot(model)
    with pytest.raises(errors.PlanError, match="for another network"):
        fxprune.apply(model, image(), plan)
    assert snapshot(model) == before


@pytest.mark.parametrize("plan", [{"keep": {}}, None, "plan.json", 0.5], ids=str)
def test_not_a_plan(plan: Any) -> None:
    with pytest.raises(errors.PlanError, match="plan must be a Plan"):
        fxprune.apply(small_net(), image(), plan)


# -- the other entrances ----------------------------------------------------------------------------------------------


def test_analyze_plan_and_apply_refuse_like_compile() -> None:
    plan = fxprune.plan(small_net(), image(), 0.3)
    bad = image(2, 4, 8, 8)
    for call in (
        lambda: fxprune.analyze(small_net(), bad),
        lambda: fxprune.plan(small_net(), bad, 0.3),
        lambda: fxprune.apply(small_net(), bad, plan),
    ):
        with pytest.raises(errors.SampleError, match="3 channels"):
            call()


@pytest.mark.parametrize("thing", [small_net(), None, 3], ids=["a network", "None", "a number"])
def test_a_report_of_something_else(thing: Any) -> None:
    with pytest.raises(fxprune.FxpruneError, match="carries no report"):
        fxprune.report(thing)


@pytest.mark.parametrize(
    ("options", "hint"),
    [({"criterion": "l1"}, "magnitude"), ({"criterion": "magnitud"}, "magnitude"), ({"budget": "FLOPs"}, "macs")],
)
def test_common_words_of_other_libraries_are_suggested(options: dict[str, str], hint: str) -> None:
    with pytest.raises(fxprune.FxpruneError, match=f"did you mean '{hint}'"):
        fxprune.compile(small_net(), image(), 0.3, **options)  # type: ignore[arg-type]


def test_explain_suggests_names_near_to_a_wrong_one() -> None:
    with pytest.raises(fxprune.FxpruneError, match=r"did you mean"):
        fxprune.analyze(small_net(), image()).explain("conv1.wieght")


def test_explain_lists_names_where_none_is_near() -> None:
    with pytest.raises(errors.AnalysisError, match="is named 'stem'; there are 0.weight, 0.bias, 1.weight, 1.bias, "):
        fxprune.analyze(small_net(), image()).explain("stem")


def fails(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    raise KeyError("missing")


LABELS = torch.tensor([0, 5])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"calibration": [(image(), LABELS)]}, r"loss fails on a tensor of shape \(2, 5\) .*Target 5 is out of bounds"),
        ({"calibration": [(image(), LABELS)], "loss": fails}, "loss fails on .*KeyError: 'missing'; give targets"),
        ({"calibration": [image().half()]}, r"a batch of calibration, .*float16\): RuntimeError: .*; give batches"),
        ({"calibration": [{"image": image()}]}, "a dict with the keys 'image'; expected .*collate_fn"),
    ],
)
def test_data_that_do_not_fit(options: dict[str, Any], words: str) -> None:
    error = refused(errors.CalibrationError, words, small_net(), image(), criterion="taylor", **options)
    assert "torch/" not in str(error)


@pytest.mark.parametrize(
    ("sample", "words"),
    [((1, 3, 8, 8), r"torch.randn\(1, 3, 8, 8\)"), ([2, 3, 8, 8], r"torch.randn\(2, 3, 8, 8\)")],
)
def test_a_shape_is_no_sample(sample: Any, words: str) -> None:
    refused(errors.SampleError, words, small_net(), sample)


def test_percent_and_unknown_scopes_are_explained() -> None:
    refused(errors.RatioError, r"50 does not \(50 % is 0.5\)", small_net(), image(), 50)
    refused(errors.BudgetError, '"auto", "global", "uniform" or "reconstruction"', small_net(), image(), scope="local")


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("resnet50", "the word 'resnet50': build the network"),
        ("runs/best.pt", "a file name: load it"),
        (nn.Linear, "the class Linear: make an object of it"),
        (small_net().state_dict(), "OrderedDict: build the network, and load this with load_state_dict"),
        (image(), "not Tensor: pass the network itself"),
    ],
)
def test_what_is_no_network(model: Any, words: str) -> None:
    with pytest.raises(errors.ModelError, match=words):
        fxprune.compile(model, small_net(), 0.3)


def without_end(value: float) -> list[torch.Tensor]:
    return [torch.full_like(image(), 0.5), torch.full_like(image(), value)]


@pytest.mark.parametrize(
    ("call", "kind", "words"),
    [
        (lambda m: fxprune.compile(m, image(), 0.3, calibration=without_end(float("nan"))), "Calibration", "batch 1 "),
        (lambda m: fxprune.compile(m, image(), 0.3, calibration=without_end(float("inf"))), "Calibration", "batch 1 "),
        (lambda m: fxprune.compile(m, image(), 0.3, exclude=None), "Exclude", "list of patterns"),
        (lambda m: fxprune.compile(m, image(), 0.3, exclude=m), "Exclude", "list of patterns"),
        (lambda m: fxprune.compile(m, image(), {3: 0.3}), "Option", "patterns of paths, or modules"),
        (lambda m: fxprune.compile(m, image(), budget={}), "Budget", "names with a fraction each"),
        (lambda m: fxprune.remove(m, image(), {"0": 3}), "Option", "indices from 0"),
        (lambda m: fxprune.remove(m, image(), {"0": [[1], [2, 3]]}), "Option", "indices from 0"),
        (lambda m: fxprune.remove(m, image(), None), "Option", "must map layers"),
        (lambda m: fxprune.remove(m, image(), ["0"]), "Option", "must map layers"),
        (lambda m: fxprune.analyze(m, image()).explain(3), "Analysis", "names of tensors"),
        (lambda m: fxprune.recover(fxprune.compile(m, image(), 0), None), "Model", "cut from"),
        (lambda m: fxprune.export(None, "x.pt2"), "Export", "only a network"),
        (lambda m: fxprune.export(m, "x.pt2", dynamic=3), "Option", "choice of batch"),
    ],
)
def test_an_argument_of_another_kind(call: Any, kind: str, words: str) -> None:
    with pytest.raises(getattr(errors, f"{kind}Error"), match=words):
        call(small_net())


@pytest.mark.parametrize("path", ["", "\0", "a\0b", "\ud800", "/", pathlib.Path("/"), b"x", 3, None], ids=ascii)
def test_a_path_that_names_nothing(path: Any) -> None:
    network = fxprune.compile(small_net(), image(), 0, verify=False)
    report = fxprune.report(network)
    assert report.plan is not None
    calls = [fxprune.Plan.load, fxprune.load, report.plan.save, report.save_html]
    for call in [*calls, lambda p: fxprune.save(network, p), lambda p: fxprune.export(network, p)]:
        with pytest.raises(errors.OptionError, match="path must be the name"):
            call(path)


def test_masks_with_infinity_are_calibration() -> None:
    mask = torch.zeros(2, 8).index_fill(1, torch.tensor([0]), -torch.inf)
    batch = next(iter(Calibration([mask], Sample.from_input(mask))))
    assert torch.equal(batch.sample.args[0], mask)
