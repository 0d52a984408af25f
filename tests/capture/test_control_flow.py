"""Python control flow on shapes, modes and types; sizes that depend on the input stay so."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from .compiled import assert_equal_copy, captured, image, pruned, vector


class Conv(nn.Module):
    """Three convolutions; subclasses write the forward."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(i, o, 3, padding=1) for i, o in ((3, 12), (12, 12), (12, 5)))


class Branches(Conv):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, channels, height, width = x.shape
        x = self.a(x)
        if height != width or x.size(1) == channels:
            x = x.transpose(2, 3)
        if len(x) >= 1 and x.ndim == 4 and x.dim() > 3 and x.numel() > batch:
            x = self.b(x).relu()
        for _ in range(min(2, height // 4)):
            x = F.max_pool2d(x, 2) if x.shape[-1] % 2 == 0 else x
        return self.c(x)


def test_branches_and_loops_on_shapes() -> None:
    result = pruned(Branches(), image())
    assert result(image(5)).shape == (5, 5, 2, 2)


class Flattened(Conv):
    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(12, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.b(self.a(x).relu())
        b, c, h, w = x.size()
        tokens = x.view(b, c, h * w).permute(0, 2, 1)
        tokens = tokens.reshape(-1, c).unflatten(0, (b, h * w))
        return self.last(tokens.reshape(b, tokens.shape[1], tokens.shape[-1]))


def test_batch_and_resolution_stay_symbolic() -> None:
    result = pruned(Flattened(), image())
    assert result(image(5, 10)).shape == (5, 100, 4)
    assert_equal_copy(Flattened(), image(), image(3, 12))


class Upsampled(Conv):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        small = F.avg_pool2d(self.b(self.a(x).relu()), 2)
        large = F.interpolate(small, size=x.shape[2:], mode="bilinear", align_corners=False)
        crop = large[:, :, : x.shape[2] - 1, 1:]
        return F.pad(self.c(crop), (0, 1, x.shape[-1] - crop.shape[-1], 0))


def test_sizes_as_arguments_stay_symbolic() -> None:
    result = pruned(Upsampled(), image())
    assert result(image(3, 12)).shape == (3, 5, 12, 12)


class ScaledByWidth(nn.Module):
    """A size used as a value keeps the value it had; used in a shape it follows the width."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 16), nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.a(x)
        width = hidden.shape[-1]
        hidden = hidden * width**-0.5 + math.sqrt(width) / width + float(width) / 100
        return self.b(hidden.view(-1, width) + hidden.new_ones(hidden.shape[0], width) * (width // 3))


def test_a_width_used_as_a_value_keeps_its_value() -> None:
    result = pruned(ScaledByWidth(), vector())
    assert result(vector(7)).shape == (7, 4)


class MeanByHand(nn.Module):
    """Divides by a number of elements in which batch, space and channels meet."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.a(x)
        total = hidden.abs().sum() / hidden.numel()
        return self.b(hidden / (1 + hidden.shape[1]) + total)


def test_a_number_of_elements_keeps_its_channels_and_follows_the_batch() -> None:
    pruned(MeanByHand(), image())
    assert_equal_copy(MeanByHand(), image(), image(3, 10))


class ManyHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out, self.last = nn.Linear(8, 48), nn.Linear(16, 8), nn.Linear(8, 4)
        self.heads = 4

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, n, _ = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        scores = (q @ k.transpose(-2, -1)) * q.shape[-1] ** -0.5
        mixed = (scores.softmax(-1) @ v).transpose(1, 2).reshape(b, n, -1)
        return self.last(F.gelu(self.out(mixed)) + x)


def test_attention_written_by_hand() -> None:
    result = pruned(ManyHeads(), torch.randn(2, 5, 8))
    assert result(torch.randn(3, 9, 8)).shape == (3, 9, 4)


class Asking(nn.Module):
    """Control flow on type, device and dtype."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 16), nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not isinstance(x, torch.Tensor) or x.is_cuda or x.device.type != "cpu":
            raise TypeError
        if torch.is_floating_point(x) and x.is_floating_point() and not x.is_complex() and x.dtype.is_floating_point:
            x = self.a(x)
        if torch.jit.is_scripting() or torch.jit.is_tracing() or torch.is_grad_enabled() or x.requires_grad:
            x = x * 1
        if x.is_contiguous():
            x = x.relu()
        return self.b(x)


def test_decisions_that_the_sample_answers() -> None:
    pruned(Asking(), vector())


class WhileShrinking(Conv):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.a(x)
        while x.shape[-1] > 2:
            x = F.avg_pool2d(self.b(x), 2)
        assert x.shape[-1] == x.shape[-2], "square"
        return self.c(x)


def test_a_loop_over_a_shape_that_calls_a_layer_again() -> None:
    pruned(WhileShrinking(), image())


@pytest.mark.parametrize("size", [8, 9])
def test_padding_to_a_multiple(size: int) -> None:
    class Padded(Conv):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            height, width = x.shape[-2:]
            x = F.pad(x, (0, -width % 4, 0, (4 - height % 4) % 4))
            b, _, h, w = x.shape
            windows = self.a(x).view(b, -1, h // 4, 4, w // 4, 4).permute(0, 2, 4, 1, 3, 5).flatten(0, 2)
            windows = self.b(windows).relu()
            x = windows.unflatten(0, (b, h // 4, w // 4)).permute(0, 3, 1, 4, 2, 5).reshape(b, -1, h, w)
            return self.c(x)[..., :height, :width]

    result = pruned(Padded(), image(2, size))
    assert result(image(3, size)).shape == (3, 5, size, size)


class Windows(nn.Module):
    """Finds the batch again the way window attention was first written."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 12), nn.Linear(12, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        size = 4
        b, h, w, c = x.shape
        windows = x.view(b, h // size, size, w // size, size, c).permute(0, 1, 3, 2, 4, 5)
        windows = self.a(windows.reshape(-1, size, size, c)).relu()
        batch = int(windows.shape[0] / (h * w / size / size))
        x = windows.view(batch, h // size, w // size, size, size, -1).permute(0, 1, 3, 2, 4, 5)
        rows, columns = divmod(h * w, w)
        return self.b(x.reshape(len(x), int(rows), int(columns + w), -1))


def test_int_and_len_of_sizes_stay_symbolic() -> None:
    result = pruned(Windows(), torch.randn(2, 8, 8, 3))
    assert result(torch.randn(5, 12, 8, 3)).shape == (5, 12, 8, 4)
    assert "int(" in result.code


def test_int_and_len_are_what_they_were_afterwards_and_while_capturing() -> None:
    seen: list[bool] = []

    class Curious(Conv):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            kinds = [isinstance(3, int), isinstance(x.shape[0], int), not isinstance(2.5, int), issubclass(bool, int)]
            kinds += [type(kinds[0]) in (int, bool), int("7") == 7, int("ff", 16) == 255, int(2.9) == 2]
            kinds += [len([1, 2]) == 2, len("abc") == 3, np.dtype(int) == np.int64, type(int(2.5)) in (int, float)]
            seen.append(all(kinds))
            return self.c(self.b(self.a(x)))

    pruned(Curious(), image())
    assert seen
    assert all(seen)
    assert "int" not in globals()
    assert "len" not in globals()


def test_every_node_knows_its_value_module_and_source_line() -> None:
    found = captured(Branches(), image())
    for node in found.graph.nodes:
        if node.op == "output":
            continue
        assert "val" in node.meta
        if node.op in ("call_function", "call_method"):
            assert node.meta["source"].startswith("capture/test_control_flow.py:")
