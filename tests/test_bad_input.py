"""Every mistake has an exception of its own that says what, where and what to do, and the model stays bit-equal."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

import fxprune
from fxprune import errors

from .snapshots import process, snapshot

Options = dict[str, Any]


def small_net() -> nn.Module:
    layers = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(128, 5)]
    return nn.Sequential(*layers).eval()


def mlp(first: nn.Module | None = None) -> nn.Module:
    return nn.Sequential(first or nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4)).eval()


def image(*shape: int) -> torch.Tensor:
    return torch.randn(shape or (2, 3, 8, 8))


def vector() -> torch.Tensor:
    return torch.randn(2, 8)


def refused(
    kind: type[Exception], words: str, model: nn.Module, sample: Any, ratio: Any = 0.3, **options: Any
) -> Exception:
    """Compile, expect the exception, and check that nothing was changed by the attempt."""
    before, around = snapshot(model), process()
    with pytest.raises(kind, match=words) as caught:
        fxprune.compile(model, sample, ratio, **options)
    assert type(caught.value) is kind
    assert isinstance(caught.value, fxprune.FxpruneError)
    assert snapshot(model) == before
    assert process() == around
    return caught.value


# -- the ratio --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ratio", [-0.1, 1, 1.0, 1.5, float("nan"), float("inf"), "0.5", None, True, 1 + 2j, [0.5]])
def test_ratio_is_a_number_from_zero_to_below_one(ratio: Any) -> None:
    refused(errors.RatioError, "0 <= ratio < 1", small_net(), image(), ratio)


@pytest.mark.parametrize("ratio", [0, 0.0, torch.tensor(0.25)])
def test_other_spellings_of_a_good_ratio_are_taken(ratio: Any) -> None:
    assert fxprune.report(fxprune.compile(small_net(), image(), ratio, verify=False)).ratio == float(ratio)


# -- the budget and its limits ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", ["macs", "params"])
def test_a_budget_out_of_reach_says_how_far_and_what_stands_in_the_way(budget: str) -> None:
    error = refused(errors.BudgetError, "at most 0.9", small_net(), image(), 0.999, budget=budget)
    assert isinstance(error, errors.BudgetError)
    assert error.reachable is not None
    assert 0.9 < error.reachable < 0.999
    assert set(error.pinned) == {"0.weight dim 1", "5.weight dim 0"}
    assert "dim of the network's input" in str(error)
    assert "dim of the network's output" in str(error)


def test_the_reachable_ratio_is_reached() -> None:
    error = refused(errors.BudgetError, "out of reach", small_net(), image(), 0.999)
    assert isinstance(error, errors.BudgetError)
    assert error.reachable is not None
    pruned = fxprune.compile(small_net(), image(), error.reachable)
    assert fxprune.report(pruned).budget_after <= fxprune.report(pruned).budget_before * (1 - error.reachable) + 1e-6


def test_limits_that_stand_in_the_way_are_named() -> None:
    options: Options = {"min_channels": 6, "round_to": 2, "max_ratio": 0.5, "exclude": ["3"]}
    error = refused(errors.BudgetError, "out of reach", small_net(), image(), 0.9, **options)
    for words in ("min_channels=6", "round_to=2", "max_ratio=0.5", "kept whole by exclude"):
        assert words in str(error)


@pytest.mark.parametrize(
    ("options", "kind", "words"),
    [
        ({"budget": "flops"}, errors.BudgetError, "unknown budget 'flops'; choose one of macs, params, channels"),
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
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_an_unknown_choice_is_named_with_what_there_is(options: Options, kind: type[Exception], words: str) -> None:
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


# -- the model --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", [lambda x: x, nn.ReLU, None, "resnet18"], ids=["function", "class", "None", "name"])
def test_what_is_no_module(model: Any) -> None:
    with pytest.raises(errors.ModelError, match="must be a torch.nn.Module, not"):
        fxprune.compile(model, image(), 0.3)


def test_no_layers_at_all() -> None:
    refused(errors.ModelError, "no prunable channels .it has no layers with weights", nn.ReLU(), image())


def test_only_layers_between_input_and_output() -> None:
    error = refused(errors.ModelError, "no prunable channels", nn.Linear(8, 8), vector())
    assert "weight dim 0: it is a dim of the network's output" in str(error)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", ["0.weight", "1.running_var"])
def test_weights_that_are_no_numbers(name: str, value: float) -> None:
    model = small_net()
    model.state_dict()[name].view(-1)[1] = value
    refused(errors.ModelError, f"{name} holds NaN or infinite values", model, image())


def test_large_but_finite_weights_are_no_error() -> None:
    model = small_net()
    with torch.no_grad():
        model[0].weight.fill_(torch.finfo(torch.float32).max / 2)
    fxprune.analyze(model, image())


def test_lazy_modules() -> None:
    refused(errors.ModelError, r"0 \(LazyLinear\) is lazy: run the model once", mlp(nn.LazyLinear(8)), vector())


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_quantised_modules() -> None:
    dynamic = torch.ao.quantization.quantize_dynamic(mlp(), {nn.Linear})
    refused(errors.ModelError, r"0 \(Linear\) is quantised: prune the floating-point model", dynamic, vector())
    static = mlp(torch.ao.nn.quantized.Linear(8, 8))
    refused(errors.ModelError, r"0 \(Linear\) is quantised", static, vector())


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_modules_prepared_for_quantisation() -> None:
    aware = torch.ao.nn.qat.Linear(8, 8, qconfig=torch.ao.quantization.get_default_qat_qconfig())
    refused(errors.ModelError, r"0 \(Linear\) is prepared for quantisation", mlp(aware), vector())


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("convert", [torch.jit.script, lambda m: torch.jit.trace(m, image())], ids=["script", "trace"])
def test_torchscript(convert: Callable[[nn.Module], nn.Module]) -> None:
    with pytest.raises(errors.ModelError, match="TorchScript module: pass the Python module"):
        fxprune.compile(convert(small_net()), image(), 0.3)


def test_a_compiled_module_names_the_way_back() -> None:
    compiled = torch.compile(small_net(), backend="eager")
    refused(errors.ModelError, "torch.compile.*_orig_mod", compiled, image())


# -- hooks and parametrizations ---------------------------------------------------------------------------------------


def do_nothing(*_: Any) -> None:
    """A hook."""


@pytest.mark.parametrize(
    ("register", "words"),
    [
        ("register_forward_hook", "0 has a forward hook .do_nothing"),
        ("register_forward_pre_hook", "0 has a forward pre-hook .do_nothing"),
        ("register_full_backward_hook", "0 has a backward hook .do_nothing"),
        ("register_full_backward_pre_hook", "0 has a backward pre-hook .do_nothing"),
    ],
)
def test_hooks_of_modules(register: str, words: str) -> None:
    model = small_net()
    getattr(model[0], register)(do_nothing)
    refused(errors.ModelError, words, model, image())


def test_hooks_of_parameters() -> None:
    model = small_net()
    model[0].weight.register_hook(lambda grad: grad)
    refused(errors.ModelError, "0.weight has a gradient hook", model, image())


def test_hooks_after_accumulation() -> None:
    model = small_net()
    model[0].weight.register_post_accumulate_grad_hook(do_nothing)
    refused(errors.ModelError, "0.weight has a gradient hook", model, image())


class Doubled(nn.Module):
    """An unknown parametrization."""

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return 2 * weight


def test_unknown_parametrizations_are_named() -> None:
    model = mlp()
    parametrize.register_parametrization(model[0], "weight", Doubled())
    refused(errors.ModelError, "0.weight has the parametrization Doubled.*remove_parametrizations", model, vector())


def test_known_parametrizations_of_torch_are_named_too() -> None:
    model = mlp(parametrizations.orthogonal(nn.Linear(8, 8)))
    refused(errors.ModelError, "0.weight has the parametrization _Orthogonal", model, vector())


def test_an_unknown_one_behind_a_known_one_is_found() -> None:
    model = mlp(parametrizations.weight_norm(nn.Linear(8, 8)))
    parametrize.register_parametrization(model[0], "weight", Doubled())
    refused(errors.ModelError, "Doubled", model, vector())


def test_masks_of_torch_prune_are_hooks_and_named() -> None:
    model = mlp()
    prune.l1_unstructured(model[0], "weight", 0.5)
    refused(errors.ModelError, "L1Unstructured", model, vector())


def normalised(style: str) -> nn.Module:
    wrap = {
        "weight norm, old": torch.nn.utils.weight_norm,
        "weight norm, new": parametrizations.weight_norm,
        "spectral norm, old": torch.nn.utils.spectral_norm,
        "spectral norm, new": parametrizations.spectral_norm,
    }[style]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return nn.Sequential(wrap(nn.Linear(8, 16)), nn.ReLU(), wrap(nn.Linear(16, 16)), nn.ReLU(), nn.Linear(16, 4))


STYLES = ["weight norm, old", "weight norm, new", "spectral norm, old", "spectral norm, new"]


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("style", STYLES)
def test_weight_norm_and_spectral_norm_are_pruned(style: str, training: bool) -> None:
    model = normalised(style)
    if "spectral" in style:
        model.train()(vector())
    model.train(training)
    before = snapshot(model)
    pruned = fxprune.compile(model, vector(), 0.4)
    assert snapshot(model) == before
    report = fxprune.report(pruned)
    assert report.proof is not None
    assert {group.before for group in report.groups} == {16}
    assert len(report.groups) == 2
    assert report.macs_after <= 0.6 * report.macs_before
    assert set(pruned.state_dict()) <= set(model.state_dict())


# -- what cannot be traced --------------------------------------------------------------------------------------------


class Halving(nn.Module):
    """Loops until its values are small."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        while x.abs().max() > 1:
            x = self.linear(x) / 2
        return x


class Scaled(nn.Module):
    """Reads one value as a Python number."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * int(x[0, 0].item())


def line_of(function: Callable[..., Any], text: str) -> int:
    import inspect

    lines, first = inspect.getsourcelines(function)
    return first + next(i for i, line in enumerate(lines) if text in line)


def test_a_loop_over_values_names_module_and_line() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.ModuleDict({"loop": Halving()})["loop"], nn.Linear(8, 4))
    line = line_of(Halving.forward, "while")
    refused(errors.CaptureError, rf"cannot trace 1 at tests/test_bad_input.py:{line}: .*values", model, vector())


def test_a_value_read_as_a_number_names_module_and_line() -> None:
    model = nn.Sequential(nn.Linear(8, 8), Scaled(), nn.Linear(8, 4))
    line = line_of(Scaled.forward, "item")
    refused(errors.CaptureError, rf"cannot trace 1 at tests/test_bad_input.py:{line}: .*item", model, vector())


class Broken(nn.Module):
    """Fails by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise KeyError("missing")


def test_a_forward_that_fails_by_itself_is_told_apart() -> None:
    refused(errors.SampleError, "the model itself refuses the sample: KeyError: 'missing'", Broken(), vector())


class Uncopyable(nn.Module):
    """Holds what cannot be copied."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.generator = (number for number in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x)


def test_a_model_that_cannot_be_copied() -> None:
    refused(errors.CaptureError, "the model cannot be copied .TypeError.*generator", Uncopyable(), vector())


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
def test_what_is_no_plan(plan: Any) -> None:
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
