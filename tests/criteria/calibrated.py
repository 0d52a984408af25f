"""A small network with everything that matters to taps, and data for it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxprune
from fxprune.analysis.solving import ChannelGraph
from fxprune.axes.elements import FloatArray
from fxprune.calibration import Calibration, Collector
from fxprune.capture.samples import Sample
from fxprune.criteria import Criterion, judge

Batches = list[tuple[Tensor, Tensor]]


class Small(nn.Module):
    """A stem, one residual block, and a classifier behind a flatten; in float64, so that sums are exact enough."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.stem, self.bn0 = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv1, self.bn1 = nn.Conv2d(8, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12)
        self.conv2, self.bn2 = nn.Conv2d(12, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.last = nn.Conv2d(8, 6, 3, stride=2, padding=1)
        self.head = nn.Linear(6 * 9, 5)
        for norm in (self.bn0, self.bn1, self.bn2):
            nn.init.uniform_(norm.weight, 0.2, 1.5)
            nn.init.normal_(norm.bias, 0, 0.3)
            nn.init.normal_(norm.running_mean, 0, 0.2)
            nn.init.uniform_(norm.running_var, 0.5, 1.5)
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn0(self.stem(x)))
        y = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(x + self.bn2(self.conv2(y)), inplace=True)
        return self.head(F.relu(self.last(x)).flatten(1))


def images(count: int = 12, seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 3, 6, 6, generator=generator, dtype=torch.float64)
    return x, torch.randint(0, 5, (count,), generator=generator)


def batches(size: int = 5, count: int = 12) -> Batches:
    x, y = images(count)
    return list(zip(x.split(size), y.split(size), strict=True))


def scores(
    criterion: Criterion, model: nn.Module | None = None, data: Batches | None = None
) -> Mapping[str, FloatArray]:
    """Scores by group name."""
    model = model or Small()
    sample = Sample.from_input(images(2)[0])
    graph: ChannelGraph = fxprune.analyze(model, images(2)[0])
    tensors = dict(model.state_dict())
    found = judge(criterion, graph, tensors, Collector(graph, model, Calibration(data or batches(), sample)))
    assert isinstance(found, dict)
    return {group.name: values for group, values in found.items()}
