"""Small networks of today's kinds, trained here on CIFAR images, and cut by the plain call with calibration.

An inverted-residual network (depthwise convolutions, squeeze and excitation) and a vision transformer tell classes
(random crops, mirror images). A network with skips, transposed convolutions and per-pixel classes, and a detector with
a head of classes and one of boxes, find discs, squares and crosses that are painted onto the images. All are trained
for a few minutes on a part of the training images (AdamW, one cycle of the learning rate). The plain call then removes
half of the MACs, with 1,024 images without labels.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.nn.functional as F
import typer
from torch import Tensor, nn

import fxprune
from benchmarks.cifar import accuracy, load_images, shared_file
from benchmarks.tables import markdown_table, write_page

_SHOWN = (
    "network",
    "measure",
    "MACs removed",
    "original",
    "cut only",
    "plain call",
    "points lost",
    "outputs off the original's, cut",
    "plain call",
    "seconds",
)


class Inverted(nn.Module):
    """Expansion, depthwise convolution, squeeze and excitation, projection; a sum where shapes allow it."""

    def __init__(self, given: int, made: int, stride: int, expansion: int = 4) -> None:
        super().__init__()
        inner = given * expansion
        self.expand = nn.Sequential(nn.Conv2d(given, inner, 1, bias=False), nn.BatchNorm2d(inner), nn.SiLU())
        self.depthwise = nn.Sequential(
            nn.Conv2d(inner, inner, 3, stride, 1, groups=inner, bias=False), nn.BatchNorm2d(inner), nn.SiLU()
        )
        self.squeeze = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(inner, given, 1),
            nn.SiLU(),
            nn.Conv2d(given, inner, 1),
            nn.Sigmoid(),
        )
        self.project = nn.Sequential(nn.Conv2d(inner, made, 1, bias=False), nn.BatchNorm2d(made))
        self.adds = stride == 1 and given == made

    def forward(self, x: Tensor) -> Tensor:
        """(N, given, H, W) to (N, made, H / stride, W / stride)."""
        y = self.depthwise(self.expand(x))
        y = self.project(y * self.squeeze(y))
        return x + y if self.adds else y


class Transformer(nn.Module):
    """Patches of 4 x 4 pixels, four blocks of 96 channels with three heads, a mean over tokens."""

    def __init__(self, channels: int = 96, depth: int = 4) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, channels, 4, 4)
        self.places = nn.Parameter(torch.randn(1, 64, channels) * 0.02)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(channels, 3, 4 * channels, 0.0, F.gelu, batch_first=True, norm_first=True)
            for _ in range(depth)
        )
        self.norm, self.head = nn.LayerNorm(channels), nn.Linear(channels, 10)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, 32, 32) to (N, 10)."""
        x = self.patches(x).flatten(2).transpose(1, 2) + self.places
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(1))


def _inverted() -> nn.Module:
    stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.SiLU())
    blocks = [Inverted(16, 24, 1), Inverted(24, 24, 1), Inverted(24, 40, 2), Inverted(40, 40, 1), Inverted(40, 40, 1)]
    return nn.Sequential(stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(40, 10))


def _plain(given: int, made: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(given, made, 3, stride, 1, bias=False), nn.BatchNorm2d(made), nn.ReLU())


class Segmenter(nn.Module):
    """Down twice and up again, with a concatenation at each size; four classes of each pixel."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.first = nn.Sequential(_plain(3, width), _plain(width, width))
        self.second = nn.Sequential(_plain(width, 2 * width, 2), _plain(2 * width, 2 * width))
        self.third = nn.Sequential(_plain(2 * width, 4 * width, 2), _plain(4 * width, 4 * width))
        self.up = nn.ModuleList(nn.ConvTranspose2d(2 * n, n, 2, 2) for n in (2 * width, width))
        self.joined = nn.ModuleList(_plain(2 * n, n) for n in (2 * width, width))
        self.classes = nn.Conv2d(width, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, 32, 32) to (N, 4, 32, 32)."""
        first = self.first(x)
        second = self.second(first)
        x = self.third(second)
        for beside, up, joined in zip((second, first), self.up, self.joined, strict=True):
            x = joined(torch.cat([up(x), beside], 1))
        return self.classes(x)


class Detector(nn.Module):
    """8 x 8 cells; each tells whether an object's centre is in it, of which class, and its box."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stem = nn.Sequential(_plain(3, width), _plain(width, 2 * width, 2), _plain(2 * width, 2 * width, 2))
        self.blocks = nn.ModuleList(
            nn.Sequential(_plain(2 * width, 2 * width), nn.Conv2d(2 * width, 2 * width, 3, 1, 1)) for _ in range(3)
        )
        self.classes = nn.Sequential(_plain(2 * width, 2 * width), nn.Conv2d(2 * width, 4, 1))
        self.boxes = nn.Sequential(_plain(2 * width, 2 * width), nn.Conv2d(2 * width, 3, 1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(N, 3, 32, 32) to classes (N, 4, 8, 8) and centre and half of the size in cells, (N, 3, 8, 8)."""
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x).relu()
        return self.classes(x), self.boxes(x)


def scenes(images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Images (N, 3, 32, 32) with two objects painted onto each, the class of each pixel, and of each cell (N, 4, 8, 8):
    class, centre (down, right) within the cell, and half of the size, in cells. Zero is the class of what is no object.
    """
    count = len(images)
    generator = torch.Generator().manual_seed(count)
    pixels, cells = torch.zeros(count, 32, 32, dtype=torch.long), torch.zeros(count, 4, 8, 8)
    grid, rows = torch.arange(32.0), torch.arange(count)
    for _ in range(2):
        kind = torch.randint(1, 4, (count,), generator=generator)
        half = 3 + 3 * torch.rand(count, generator=generator)
        centre = 6 + 20 * torch.rand(count, 2, generator=generator)
        down, right = ((grid - place[:, None]).abs() / half[:, None] for place in centre.unbind(1))
        down, right = down[:, :, None].expand(-1, -1, 32), right[:, None].expand(-1, 32, -1)
        disc, square = down.square() + right.square() <= 1, torch.maximum(down, right) <= 1
        shapes = torch.stack([disc, square, square & (torch.minimum(down, right) < 0.35)])
        inside = shapes[kind - 1, rows]
        colour = torch.randn(count, 3, 1, 1, generator=generator)
        images = torch.where(inside[:, None], colour + 0.3 * images, images)
        pixels = torch.where(inside, kind[:, None, None], pixels)
        cell, rest = (centre / 4).long(), (centre / 4) % 1
        cells[rows, :, cell[:, 0], cell[:, 1]] = torch.cat([kind[:, None], rest, half[:, None] / 4], 1)
    return images, pixels, cells


def _box_loss(given: tuple[Tensor, Tensor], cells: Tensor) -> Tensor:
    there = cells[:, :1] > 0
    weight = torch.tensor([0.2, 1.0, 1.0, 1.0])
    boxes = ((given[1] - cells[:, 1:]).abs() * there).sum() / there.sum()
    return F.cross_entropy(given[0], cells[:, 0].long(), weight) + boxes


@torch.no_grad()
def _mean_intersection(model: nn.Module, images: Tensor, pixels: Tensor) -> float:
    """Over union, of the four classes, in percent."""
    found = torch.cat([model(part).argmax(1) for part in images.split(250)])
    pairs = [((found == kind), (pixels == kind)) for kind in range(4)]
    return 100 * sum(float((one & other).sum() / (one | other).sum()) for one, other in pairs) / 4


@torch.no_grad()
def _found_and_right(model: nn.Module, images: Tensor, cells: Tensor) -> float:
    """F1 of objects: the cell and the class are right, and boxes meet in half of their union; in percent."""
    parts = [model(part) for part in images.split(250)]
    kinds, boxes = torch.cat([classes.argmax(1) for classes, _ in parts]), torch.cat([box for _, box in parts])
    low = torch.maximum(boxes[:, :2] - boxes[:, 2:], cells[:, 1:3] - cells[:, 3:])
    high = torch.minimum(boxes[:, :2] + boxes[:, 2:], cells[:, 1:3] + cells[:, 3:])
    shared = (high - low).clamp_min(0).prod(1)
    both = (2 * boxes[:, 2]).square() + (2 * cells[:, 3]).square() - shared
    right = ((kinds > 0) & (kinds == cells[:, 0]) & (shared > 0.5 * both)).sum()
    return 100 * float(2 * right / ((kinds > 0).sum() + (cells[:, 0] > 0).sum()))


def _classes(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    return images, labels


@dataclass(frozen=True)
class Task:
    """A network, the inputs and targets that are made of images and labels, and what it is trained and judged by."""

    make: Callable[[], nn.Module]
    measure: str = "accuracy"
    data: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] = _classes
    loss: Callable[[Any, Tensor], Tensor] = F.cross_entropy
    score: Callable[[nn.Module, Tensor, Tensor], float] = lambda *given: 100 * accuracy(*given)


TASKS = {
    "inverted": Task(_inverted),
    "transformer": Task(Transformer),
    "segmenter": Task(
        Segmenter, "mean intersection", lambda images, _: scenes(images)[:2], F.cross_entropy, _mean_intersection
    ),
    "detector": Task(Detector, "F1 of objects", lambda images, _: scenes(images)[::2], _box_loss, _found_and_right),
}


def trained(task: Task, inputs: Tensor, targets: Tensor, epochs: int, batch: int = 128) -> nn.Module:
    """A network of a name, trained from seed 0; ends in eval mode."""
    torch.manual_seed(0)
    model = task.make().train()
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.05)
    steps = epochs * (len(inputs) // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, steps)
    for _ in range(epochs):
        for rows in torch.randperm(len(inputs))[: steps // epochs * batch].split(batch):
            images = _varied(inputs[rows]) if task.data is _classes else inputs[rows]
            loss = task.loss(model(images), targets[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model.eval()


def _varied(images: Tensor) -> Tensor:
    """Moved by up to three pixels, half of the batches mirrored."""
    down, right, turned = (int(torch.randint(0, limit, ())) for limit in (7, 7, 2))
    moved = F.pad(images, (3, 3, 3, 3))[:, :, down : down + 32, right : right + 32]
    return moved.flip(3) if turned else moved


def measured(name: str, model: nn.Module, calibration: Tensor, tested: Tensor, targets: Tensor) -> list[str]:
    """A row of the table."""
    task, start = TASKS[name], time.perf_counter()
    pruned = fxprune.compile(model, calibration[:2], 0.5, calibration=list(calibration.split(256)))
    seconds = time.perf_counter() - start
    report = fxprune.report(pruned)
    plain = fxprune.apply(model, calibration[:2], report.plan, verify=False)
    before, between, after = (task.score(network, tested, targets) for network in (model, plain, pruned))
    print(report)
    shown = [f"{value:.2f}" for value in (before, between, after, before - after)]
    off = [f"{row.error:.1%}" for row in report.fidelity]
    return [name, task.measure, f"{100 * report.achieved:.1f} %", *shown, *off, f"{seconds:.0f}"]


_NOTE = """What was measured: small networks, trained from seed 0 for {epochs} epochs on {train} CIFAR-10 images, before
and after the plain call at half of the MACs with 1,024 images without labels, and nothing after it.

To repeat it: `python -m benchmarks.small_trained`.

How to read it: measures are on 2,000 test images. *Outputs off the original's* are relative errors on calibration
images that were held out."""


def main(
    network: Annotated[list[str] | None, typer.Option(help=f"One of {', '.join(TASKS)}; may be repeated.")] = None,
    train: Annotated[int, typer.Option(help="How many images to train on, spread over the classes.")] = 6000,
    epochs: Annotated[int, typer.Option(help="How often each is seen.")] = 8,
    out: Annotated[Path | None, typer.Option(help="Markdown file to write.")] = None,
) -> None:
    """Train, cut and test; print a row for each network."""
    path = shared_file("data", "cifar10.zip")
    images, labels = load_images(path, "train", train)
    tested, answers = load_images(path, "test", 2000)
    calibration, _ = load_images(path, "train", 1024)
    rows = []
    for name in network or TASKS:
        task = TASKS[name]
        model = trained(task, *task.data(images, labels), epochs)
        rows.append(measured(name, model, task.data(calibration, labels)[0], *task.data(tested, answers)))
    text = markdown_table(_SHOWN, rows)
    print(text)
    if out is not None:
        note = _NOTE.format(epochs=epochs, train=train)
        write_page(out, "Small trained networks: accuracy without training after the cut", note, text)


if __name__ == "__main__":
    typer.run(main)
