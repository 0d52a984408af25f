"""Models that cannot be compiled, refused one by one and left bit-equal; and weight norms, which can be compiled."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune
from torch.testing._internal.two_tensor import TwoTensor

import fxprune
from fxprune import errors
from tests.nets.oracles import masked
from tests.refusing import image, mlp, refused, small_net, vector
from tests.snapshots import snapshot

# -- the model --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", [lambda x: x, nn.ReLU, None], ids=["function", "class", "None"])
def test_not_a_module(model: Any) -> None:
    with pytest.raises(errors.ModelError, match="must be a torch.nn.Module, not"):
        fxprune.compile(model, image(), 0.3)


def test_a_file_name_is_no_module() -> None:
    with pytest.raises(errors.ModelError, match="a file name: load it"):
        fxprune.compile("net.pt2", image(), 0.3)  # type: ignore[arg-type]


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


class Bounded(nn.Module):
    """Open bounds and a mask are buffers, and infinite."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 3)
        self.register_buffer("least", torch.tensor(-torch.inf))
        self.register_buffer("mask", torch.full((4, 4), -torch.inf).triu(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.first(x.clamp(min=self.least))
        return self.last((h @ h.transpose(-2, -1) + self.mask).softmax(-1) @ h)


def test_infinite_buffers_are_no_error() -> None:
    pruned = fxprune.compile(Bounded(), torch.randn(2, 4, 6), 0.3)
    assert fxprune.report(pruned).proof is not None
    model = Bounded()
    model.get_buffer("least").fill_(torch.nan)
    refused(errors.ModelError, "least holds NaN", model, torch.randn(2, 4, 6))


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


def test_tensors_that_hold_others() -> None:
    model = small_net()
    model[0].weight = nn.Parameter(TwoTensor(torch.ones(8, 3, 3, 3), torch.ones(8, 3, 3, 3)))  # type: ignore
    with pytest.raises(errors.ModelError, match=r"0 \(Conv2d\) holds a TwoTensor: prune the model with plain tensors"):
        fxprune.compile(model, image(), 0.3)


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


class WithScript(nn.Module):
    """A TorchScript part in a list and one in a dict; the forward may call the second."""

    def __init__(self, calls: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList([torch.jit.script(nn.ReLU()), nn.Linear(6, 8), nn.Linear(8, 8)])
        self.parts = nn.ModuleDict(
            {"odd": torch.jit.trace(nn.Linear(8, 8), torch.randn(2, 8)), "even": nn.Linear(8, 8)}
        )
        self.calls = calls

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.layers[2](torch.relu(self.layers[1](x)))
        return self.parts["odd"](h) if self.calls else h


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torchscript_parts_that_nothing_calls() -> None:
    model = WithScript(calls=False).eval()
    pruned = fxprune.compile(model, torch.randn(2, 6), 0.5)
    assert pruned.get_parameter("layers.1.weight").shape[0] < 8
    assert isinstance(model.parts["odd"], torch.jit.ScriptModule)
    with pytest.raises(errors.ModelError, match=r"parts\.odd is a TorchScript module: pass the Python module"):
        fxprune.compile(WithScript(calls=True).eval(), torch.randn(2, 6), 0.5)


def test_a_wrapper_with_hooks_names_the_way_back() -> None:
    wrapped, compiled = nn.DataParallel(small_net()), torch.compile(small_net(), backend="eager")
    for wrapper, words in ((wrapped, "wrapped by DataParallel: pass its .module"), (compiled, "compile.*_orig_mod")):
        wrapper.register_forward_hook(do_nothing)
        refused(errors.ModelError, words, wrapper, image())


# -- hooks and parametrizations ---------------------------------------------------------------------------------------


def do_nothing(*_: Any) -> None:
    """A hook."""


@pytest.mark.parametrize(
    ("register", "words"),
    [
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
    """A parametrization of its own."""

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return 2 * weight


class Limited(nn.Module):
    """A norm of each row that has a bound, with a parameter of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.5))

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return self.scale * weight.renorm(2, 0, 0.5)


@pytest.mark.parametrize("kind", [Doubled, Limited])
def test_parametrizations_are_traced_with_their_parameters(kind: type[nn.Module], tmp_path: Path) -> None:
    model, x = mlp().eval(), vector()
    parametrize.register_parametrization(model[0], "weight", kind())
    pruned = fxprune.compile(model, x, 0.3)
    kept = fxprune.report(pruned).plan.keep
    rows = kept["0.parametrizations.weight.original"][0]
    weight = kind()(model[0].parametrizations.weight.original[rows])
    hidden = torch.relu(nn.functional.linear(x, weight, model[0].bias[rows]))
    torch.testing.assert_close(pruned(x), nn.functional.linear(hidden, model[2].weight[:, rows], model[2].bias))
    fxprune.save(pruned, tmp_path / "net")
    assert torch.equal(fxprune.load(tmp_path / "net")(x), pruned(x))
    pruned.train()(x).sum().backward()
    assert all(parameter.grad is not None for parameter in pruned.parameters())


def test_an_orthogonal_weight_loses_rows_of_its_base_alone() -> None:
    model, x = mlp(parametrizations.orthogonal(nn.Linear(8, 8))), vector()
    pruned = fxprune.compile(model, x, 0.3)
    rows = fxprune.report(pruned).plan.keep["0.bias"][0]
    assert pruned.state_dict()["0.parametrizations.weight.original"].shape == (8, 8)
    hidden = torch.relu(nn.functional.linear(x, model[0].weight[rows], model[0].bias[rows]))
    torch.testing.assert_close(pruned(x), nn.functional.linear(hidden, model[2].weight[:, rows], model[2].bias))


def test_masks_of_torch_prune_are_hooks_and_traced() -> None:
    model, x = mlp().eval(), vector()
    prune.l1_unstructured(model[0], "weight", 0.5)
    pruned = fxprune.compile(model, x, 0.3)
    plan = fxprune.report(pruned).plan
    assert plan is not None
    with torch.no_grad():
        model(x)  # only then torch copies it
    torch.testing.assert_close(pruned(x), masked(model, plan.keep)(x))
    assert not pruned.get_buffer("0.weight_mask").all()


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


class Listed(nn.Module):
    """Reads all values as a list."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * sum(x[0, :4].numpy())


def line_of(function: Callable[..., Any], text: str) -> int:
    lines, first = inspect.getsourcelines(function)
    return first + next(i for i, line in enumerate(lines) if text in line)


def test_a_loop_over_values_names_module_and_line() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.ModuleDict({"loop": Halving()})["loop"], nn.Linear(8, 4))
    line = line_of(Halving.forward, "while")
    refused(
        errors.ModelError,
        rf"no prunable .*cannot trace 1 at tests/test_bad_models.py:{line}: .*values",
        model,
        vector(),
    )
    refused(errors.ModelError, rf"no prunable .*values at tests/test_bad_models.py:{line} is ", Halving(), vector())


def test_values_read_as_an_array_name_module_and_line() -> None:
    model = nn.Sequential(nn.Linear(8, 8), Listed(), nn.Linear(8, 4))
    line = line_of(Listed.forward, "numpy")
    refused(
        errors.ModelError, rf"no prunable .*cannot trace 1 at tests/test_bad_models.py:{line}: .*numpy", model, vector()
    )


class Broken(nn.Module):
    """Fails by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise KeyError("missing")


def test_a_forward_that_fails_by_itself_is_told_apart() -> None:
    line = line_of(Broken.forward, "raise")
    words = rf"the model itself refuses the sample: KeyError: 'missing' in 1 at tests/test_bad_models.py:{line}; "
    refused(errors.SampleError, words, nn.Sequential(nn.Linear(8, 8), Broken()), vector())


class Picked(nn.Module):
    """Reads each channel by number."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 4), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        return self.second(torch.stack([x[:, 0], x[:, 1], x[:, 2], x[:, 3]], 1))


def test_channels_that_are_read_one_by_one_are_no_single_channel() -> None:
    refused(errors.ModelError, "first.weight dim 0: single channels of it are used apart;", Picked(), vector())


class Recurrent(nn.Module):
    """Returns what an LSTM returns."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.lstm(x)[0]  # type: ignore[no-any-return]


def test_where_all_is_pinned_each_reason_is_given_once() -> None:
    words = (
        r"weight_ih_l0 dim 0, lstm.weight_hh_l0 dim 0: .*weight_hh_l0 dim 1: it is a dim of the network's output; .*"
    )
    refused(errors.ModelError, words + "fxprune.analyze", Recurrent(), vector())


class Silent(nn.Module):
    """Forgets to return what it computes."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> None:
        self.second(self.first(x))


def test_a_forward_without_an_answer() -> None:
    refused(errors.ModelError, "the forward returns no tensor, .*: return what it computes", Silent(), vector())


class Uncopyable(nn.Module):
    """Holds what cannot be copied."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.generator = (number for number in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x)


def test_a_model_that_cannot_be_copied() -> None:
    words = r"cannot be copied .TypeError.*generator.* because of 1.generator \(generator\): make such a value where"
    refused(errors.CaptureError, words, nn.Sequential(nn.Linear(8, 8), Uncopyable()), vector())


class Observable(nn.Module):
    """The floating-point form of a network that is to be quantised: sums and joins are modules."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.leave = torch.ao.quantization.QuantStub(), torch.ao.quantization.DeQuantStub()
        self.first, self.second, self.last = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(16, 3)
        self.add, self.join = torch.ao.nn.quantized.FloatFunctional(), torch.ao.nn.quantized.FloatFunctional()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.first(self.enter(x))
        return self.leave(self.last(self.join.cat([h, self.add.add_relu(h, self.second(h))], 1)))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_floating_point_forms_of_quantised_networks_are_pruned() -> None:
    pruned = fxprune.compile(Observable(), torch.randn(4, 6), 0.4)
    assert fxprune.report(pruned).achieved >= 0.4
    assert pruned.get_parameter("last.weight").shape[1] < 16


def test_two_parameters_over_one_memory_are_refused_and_neighbours_are_not() -> None:
    def model() -> nn.Sequential:
        return nn.Sequential(nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False), nn.Linear(8, 2))

    x, flat, whole = torch.randn(2, 8), model(), model()
    flat[1].weight = nn.Parameter(flat[0].weight.data.T)
    with pytest.raises(errors.ModelError, match="0.weight and 1.weight are two tensors over the same memory"):
        fxprune.compile(flat, x, 0.2)
    memory = torch.randn(8, 16)
    whole[0].weight, whole[1].weight = nn.Parameter(memory[:, :8]), nn.Parameter(memory[:, 8:])
    assert fxprune.report(fxprune.compile(whole, x, 0.2)).proof is not None
