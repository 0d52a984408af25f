"""Two small networks of today's kinds, trained here on CIFAR images, and cut by the plain call with calibration.

An inverted-residual network (depthwise convolutions, squeeze and excitation) and a vision transformer are trained for
a few minutes on a part of the training images (random crops, mirror images, AdamW, one cycle of the learning rate). The
plain call then removes half of the MACs, with 1,024 images without labels.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import torch
import torch.nn.functional as F
import typer
from torch import Tensor, nn

import fxprune
from benchmarks.cifar import accuracy, load_images, shared_file
from benchmarks.tables import markdown_table, write_page

_SHOWN = ("network", "MACs removed", "original", "cut only", "plain call", "points lost", "seconds")


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


NETWORKS: dict[str, Callable[[], nn.Module]] = {"inverted": _inverted, "transformer": Transformer}


def trained(name: str, images: Tensor, labels: Tensor, epochs: int, batch: int = 128) -> nn.Module:
    """A network of a name, trained from seed 0; ends in eval mode."""
    torch.manual_seed(0)
    model = NETWORKS[name]().train()
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.05)
    steps = epochs * (len(images) // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, steps)
    for _ in range(epochs):
        for rows in torch.randperm(len(images))[: steps // epochs * batch].split(batch):
            loss = F.cross_entropy(model(_varied(images[rows])), labels[rows])
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


def measured(name: str, model: nn.Module, images: Tensor, tested: Tensor, labels: Tensor) -> list[str]:
    """A row of the table; ``images`` are the calibration's."""
    calibration = list(images.split(256))
    start = time.perf_counter()
    pruned = fxprune.compile(model, images[:2], 0.5, calibration=calibration)
    seconds = time.perf_counter() - start
    report = fxprune.report(pruned)
    plain = fxprune.apply(model, images[:2], report.plan, verify=False)
    before, between, after = (100 * accuracy(network, tested, labels) for network in (model, plain, pruned))
    print(report)
    shown = [f"{value:.2f}" for value in (before, between, after, before - after)]
    return [name, f"{100 * report.achieved:.1f} %", *shown, f"{seconds:.0f}"]


def main(
    network: Annotated[list[str] | None, typer.Option(help=f"One of {', '.join(NETWORKS)}; may be repeated.")] = None,
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
    for name in network or NETWORKS:
        model = trained(name, images, labels, epochs)
        rows.append(measured(name, model, calibration, tested, answers))
    text = markdown_table(_SHOWN, rows)
    print(text)
    if out is not None:
        note = (
            f"Trained from seed 0 for {epochs} epochs on {train} CIFAR-10 images; 2,000 test images; the plain call "
            "at half of the MACs with 1,024 images without labels, and nothing after it. "
            "`python -m benchmarks.small_trained`."
        )
        write_page(out, "Small trained networks: accuracy without training after the cut", note, text)


if __name__ == "__main__":
    typer.run(main)
