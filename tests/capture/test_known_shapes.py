"""Shapes that are known beforehand are those that the kernels give."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fxprune.capture.known_results import known_function_result, known_result

Function = Callable[..., Any]

MODULES: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "conv1d": (nn.Conv1d(4, 6, 3, 2, 1), (2, 4, 11)),
    "conv2d": (nn.Conv2d(4, 6, (3, 1), (2, 1), (1, 0), (2, 1)), (2, 4, 9, 8)),
    "conv2d, groups": (nn.Conv2d(4, 8, 3, groups=2), (2, 4, 9, 8)),
    "conv3d": (nn.Conv3d(2, 3, 2, 2), (1, 2, 4, 6, 5)),
    "linear": (nn.Linear(4, 3), (2, 5, 4)),
    "layer norm": (nn.LayerNorm((5, 4)), (2, 5, 4)),
    "layer norm without weights": (nn.LayerNorm(4, elementwise_affine=False), (2, 5, 4)),
    "batch norm": (nn.BatchNorm2d(3).eval(), (2, 3, 4, 4)),
    "adaptive pool": (nn.AdaptiveAvgPool2d((2, 3)), (2, 3, 4, 6)),
    "adaptive pool to one": (nn.AdaptiveAvgPool2d(1), (2, 3, 4, 6)),
    "activation": (nn.Hardswish(), (2, 3)),
    "upsampled": (nn.Upsample(scale_factor=(1.7, 0.6), mode="bilinear"), (2, 3, 5, 7)),
    "lstm": (nn.LSTM(3, 4, 2, bidirectional=True, proj_size=2), (5, 2, 3)),
    "gru": (nn.GRU(3, 4, batch_first=True), (2, 5, 3)),
}
UNKNOWN: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "padding in words": (nn.Conv2d(4, 6, 3, padding="same"), (2, 4, 9, 8)),
    "reflected padding": (nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"), (2, 4, 9, 8)),
    "no batch": (nn.Conv2d(4, 6, 3), (4, 9, 8)),
    "other channels": (nn.Conv2d(4, 6, 3), (2, 5, 9, 8)),
    "smaller than the kernel": (nn.Conv2d(4, 6, 3), (2, 4, 2, 8)),
    "other features": (nn.Linear(4, 3), (2, 5)),
    "other normalised shape": (nn.LayerNorm(4), (2, 5)),
    "upsampled to nothing": (nn.Upsample(scale_factor=0.1, mode="bilinear"), (2, 3, 5, 7)),
    "upsampled twice": (nn.Upsample(4, 2.0, mode="bilinear"), (2, 3, 5, 7)),
    "open size": (nn.AdaptiveAvgPool2d((None, 2)), (2, 3, 4, 6)),
}
FUNCTIONS: dict[str, tuple[Function, tuple[Any, ...]]] = {
    "linear": (F.linear, (torch.rand(2, 5, 4), torch.rand(3, 4), torch.rand(3))),
    "cat": (torch.cat, ([torch.rand(2, 3, 4), torch.rand(2, 5, 4)], 1)),
    "cat from the back": (torch.cat, ([torch.rand(2, 3), torch.rand(2, 1)], -1)),
    "mul": (torch.mul, (torch.rand(2, 3, 1, 1), torch.rand(2, 3, 4, 5))),
    "mul by a row": (torch.mul, (torch.rand(2, 3, 4), torch.rand(4))),
    "add": (torch.add, (torch.rand(2, 3), 2.0)),
    "softmax": (F.softmax, (torch.rand(2, 3), -1)),
    "layer norm": (F.layer_norm, (torch.rand(2, 4, 3), (4, 3), torch.rand(4, 3))),
    "layer norm, channels last": (F.layer_norm, (torch.rand(2, 4, 3).transpose(1, 2), (4,))),
    "relu": (F.relu, (torch.rand(2, 3),)),
    "normalize": (F.normalize, (torch.rand(2, 3, 4).transpose(1, 2), 2.0, -1)),
    "normalize every second": (F.normalize, (torch.rand(2, 6, 4)[:, ::2], 2.0, 1)),
    "interpolate": (F.interpolate, (torch.rand(2, 3, 5, 7), (9, 4), None, "bicubic", True)),
    "interpolate to one size": (F.interpolate, (torch.rand(2, 3, 1, 1), 6, None, "bilinear", False)),
    "interpolate by a factor": (F.interpolate, (torch.rand(2, 1, 5, 7), None, 2, "bilinear")),
    "elu": (F.elu, (torch.rand(2, 3, 4).transpose(1, 2), 0.5)),
    "roll": (torch.roll, (torch.rand(2, 3, 4), (1, -1), (0, 2))),
    "mean of all": (torch.mean, (torch.rand(2, 3, 4),)),
    "mean of images": (torch.mean, (torch.rand(2, 3, 4, 5), (2, -1))),
    "mean of one dim that stays": (torch.mean, (torch.rand(2, 3, 4), 1, True)),
    "sum": (torch.sum, (torch.rand(2, 3, 4), -2)),
    "adaptive average": (F.adaptive_avg_pool2d, (torch.rand(2, 3, 4, 5), 1)),
    "adaptive average to a rectangle": (F.adaptive_avg_pool2d, (torch.rand(2, 3, 4, 5), (2, 3))),
    "add to a tensor": (Tensor.add_, (torch.rand(2, 3, 4).transpose(1, 2), torch.rand(2, 3, 4).transpose(1, 2))),
    "multiply a tensor by a broadcast one": (Tensor.mul_, (torch.rand(2, 3, 4), torch.rand(3, 1))),
    "draw into a tensor": (Tensor.bernoulli_, (torch.rand(2, 3), 0.5)),
    "divide a tensor by a number": (Tensor.div_, (torch.rand(2, 3), 2)),
}


def on_meta(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.to("meta")
    return [on_meta(v) for v in value] if isinstance(value, list) else value


def layout(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.shape, value.stride(), value.dtype
    return [layout(v) for v in value]


@pytest.mark.parametrize("name", MODULES)
def test_modules(name: str) -> None:
    module, shape = MODULES[name]
    known = known_result(module.to("meta"), (torch.empty(shape, device="meta"),), {})
    assert known is not None
    with torch.no_grad():
        real = module.to_empty(device="cpu")(torch.rand(shape))
    assert layout(known) == layout(real)


@pytest.mark.parametrize("name", UNKNOWN)
def test_other_uses_are_left_to_the_kernel(name: str) -> None:
    module, shape = UNKNOWN[name]
    assert known_result(module.to("meta"), (torch.empty(shape, device="meta"),), {}) is None


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions(name: str) -> None:
    function, arguments = FUNCTIONS[name]
    known = known_function_result(function.__name__, [on_meta(a) for a in arguments], {})
    assert layout(known) == layout(function(*arguments))


def test_functions_of_other_shapes_are_left_to_the_kernel() -> None:
    def empty(*shape: int) -> Tensor:
        return torch.empty(shape, device="meta")

    assert known_function_result("mul", (empty(2, 1), empty(1, 3)), {}) is None
    assert known_function_result("mul", (empty(2, 3), empty(2)), {}) is None
    assert known_function_result("cat", ([empty(2, 3), empty(3, 3)], 1), {}) is None
    assert known_function_result("linear", (empty(2, 3), empty(4, 5)), {}) is None
    assert known_function_result("add", (empty(2, 3), empty(2, 3).to(torch.float64)), {}) is None
    assert known_function_result("add", (empty(2, 3), empty(2, 3)), {"alpha": 2}) is None
    assert known_function_result("normalize", (empty(2, 1, 4).transpose(1, 2),), {}) is None
    assert known_function_result("normalize", (empty(2, 3),), {"out": empty(2, 3)}) is None
    assert known_function_result("mean", (empty(2, 3), 2), {}) is None
    assert known_function_result("mean", (empty(2, 3), (1, -1)), {}) is None
    assert known_function_result("mean", (empty(2, 3), 1), {"dtype": torch.float64}) is None
    assert known_function_result("sum", (empty(2, 3).to(torch.int8), 1), {}) is None
    assert known_function_result("add_", (empty(2, 1), empty(2, 3)), {}) is None
    assert known_function_result("add_", (empty(2, 3), empty(2, 3).to(torch.float64)), {}) is None
    assert known_function_result("adaptive_avg_pool2d", (empty(2, 3, 4, 4), (2, None)), {}) is None


def test_an_op_that_writes_gives_its_tensor_back_and_counts_as_a_write() -> None:
    tensor = torch.empty(2, 3, device="meta")
    before = tensor._version
    assert known_function_result("add_", (tensor, torch.empty(3, device="meta")), {}) is tensor
    assert tensor._version == before + 1
