"""CIFAR ResNets, their trained weights and images, and a short training."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.io import ImageReadMode, decode_image

import fxprune

_VARIABLE = "FXPRUNE_SHARED"
_BESIDE_THE_REPOSITORY = Path(__file__).resolve().parents[2] / "shared"


def shared_folder() -> Path:
    """The folder of ``data/`` and ``weights/``: what FXPRUNE_SHARED says, or ``shared`` beside the repository."""
    return Path(os.environ.get(_VARIABLE) or _BESIDE_THE_REPOSITORY)


def shared_file(kind: str, name: str) -> Path:
    """The path of a file of a ``kind`` ("data" or "weights"); it need not exist."""
    return shared_folder() / kind / name


_SUFFIXES = (".jpg", ".jpeg", ".png")
_MEAN = (0.485, 0.456, 0.406)
_STD = (0.229, 0.224, 0.225)


def load_images(path: Path, split: str, limit: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (N, 3, 32, 32), scaled to [0, 1] and normalised, and class indices (N,) in the order of class names.

    With a ``limit``, so many images spread evenly over the classes.

    Raises:
        FileNotFoundError: there is no such path, or no image of the split in it.
    """
    if not path.exists():
        raise FileNotFoundError(f"there is no folder or zip file {path}")
    if path.is_dir():
        names = [str(found.relative_to(path)) for found in path.rglob("*")]
        return _load(path, names, lambda name: (path / name).read_bytes(), split, limit)
    with zipfile.ZipFile(path) as archive:
        return _load(path, archive.namelist(), archive.read, split, limit)


def _load(
    path: Path, names: list[str], read: Callable[[str], bytes], split: str, limit: int | None
) -> tuple[torch.Tensor, torch.Tensor]:
    found = sorted(name for name in names if _split_of(name) == split)
    if not found:
        raise FileNotFoundError(f"{path} holds no image like {split}/CLASS/NAME.jpg")
    classes = {name: index for index, name in enumerate(sorted({_class_of(name) for name in found}))}
    chosen = _spread(found, limit)
    pixels = torch.stack([_decode(read(name)) for name in chosen])
    return _normalised(pixels), torch.tensor([classes[_class_of(name)] for name in chosen])


def _split_of(name: str) -> str:
    parts = PurePosixPath(name).parts
    return parts[-3] if len(parts) >= 3 and name.lower().endswith(_SUFFIXES) else ""


def _class_of(name: str) -> str:
    return PurePosixPath(name).parts[-2]


def _spread(names: list[str], limit: int | None) -> list[str]:
    if limit is None or limit >= len(names):
        return names
    return [names[index * len(names) // limit] for index in range(limit)]


def _decode(data: bytes) -> torch.Tensor:
    pixels: torch.Tensor = decode_image(torch.frombuffer(bytearray(data), dtype=torch.uint8), ImageReadMode.RGB)
    return pixels


def _normalised(pixels: torch.Tensor) -> torch.Tensor:
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (_MEAN, _STD))
    return (pixels.float() / 255 - mean) / std


@torch.no_grad()
def accuracy(model: nn.Module, images: torch.Tensor, labels: torch.Tensor, batch_size: int = 250) -> float:
    """The share of ``images`` (N, 3, H, W) whose largest logit is at their label (N,), in eval mode."""
    model.eval()
    batches = zip(torch.split(images, batch_size), torch.split(labels, batch_size), strict=True)
    right = sum(int((model(x).argmax(1) == y).sum()) for x, y in batches)
    return right / len(labels)


@torch.no_grad()
def recalibrate(model: nn.Module, images: torch.Tensor, batch_size: int = 128) -> None:
    """Set the running statistics of batch norms to their mean over ``images``, in place; ends in eval mode."""
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.reset_running_stats()
            # None makes torch average over all batches.
            module.momentum = None
    model.train()
    for batch in images.split(batch_size):
        model(batch)
    model.eval()


_WIDTHS = (16, 32, 64)
_PREFIX = "cifar_resnet"


class OptionAShortcut(nn.Module):
    """Every second pixel, and zeros for half of the output's channels, a quarter on each side."""

    def __init__(self, out_channels: int) -> None:
        super().__init__()
        self.side = out_channels // 4

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) to (N, 2C, H/2, W/2)."""
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.side, self.side))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut = nn.Identity() if in_channels == out_channels else OptionAShortcut(out_channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) to (N, C', H/stride, W/stride)."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += self.shortcut(x)
        return F.relu(out)


class CifarResNet(nn.Module):
    """A network of ``6 * blocks + 2`` layers for images of 32x32 pixels."""

    def __init__(self, blocks: int, num_classes: int = 10) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.conv1 = nn.Conv2d(3, _WIDTHS[0], 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(_WIDTHS[0])
        self.layer1 = _stage(_WIDTHS[0], _WIDTHS[0], blocks, 1)
        self.layer2 = _stage(_WIDTHS[0], _WIDTHS[1], blocks, 2)
        self.layer3 = _stage(_WIDTHS[1], _WIDTHS[2], blocks, 2)
        self.linear = nn.Linear(_WIDTHS[2], num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images (N, 3, H, W) to logits (N, classes)."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.layer3(self.layer2(self.layer1(out)))
        out = F.avg_pool2d(out, out.shape[3])
        logits: torch.Tensor = self.linear(out.view(out.size(0), -1))
        return logits


def _stage(in_channels: int, out_channels: int, blocks: int, stride: int) -> nn.Sequential:
    first = BasicBlock(in_channels, out_channels, stride)
    return nn.Sequential(first, *(BasicBlock(out_channels, out_channels, 1) for _ in range(blocks - 1)))


def cifar_resnet(depth: int, num_classes: int = 10) -> CifarResNet:
    """The network with ``depth`` layers: 20, 32, 44, 56, 110, 1202, ...

    Raises:
        ValueError: ``depth`` is not 6n+2.
    """
    blocks, rest = divmod(depth - 2, 6)
    if rest or blocks < 1:
        raise ValueError(f"a CIFAR ResNet has 6n+2 layers (8, 14, 20, ...), not {depth}")
    return CifarResNet(blocks, num_classes)


def cifar_model(name: str, num_classes: int = 10) -> CifarResNet:
    """``cifar_resnetDEPTH`` to the network.

    Raises:
        ValueError: no such name.
    """
    depth = name.removeprefix(_PREFIX)
    if depth == name or not depth.isdecimal():
        raise ValueError(f"unknown model {name!r}: write {_PREFIX}20, {_PREFIX}56, ...")
    return cifar_resnet(int(depth), num_classes)


@dataclass(frozen=True)
class Budget:
    """What every network may spend.

    Attributes:
        steps: of stochastic gradient descent with momentum 0.9 and a cosine schedule.
        batch_size: images of a step.
        learning_rate: at the first step.
        weight_decay: of all parameters.
    """

    steps: int = 150
    batch_size: int = 64
    learning_rate: float = 0.01
    weight_decay: float = 1e-4


class ShiftedImages:
    """Batches of images (N, 3, 32, 32), shifted by up to four pixels and mirrored, with labels; shuffled every pass."""

    def __init__(self, images: Tensor, labels: Tensor, batch_size: int) -> None:
        self.images, self.labels, self.batch_size = images, labels, batch_size

    def __len__(self) -> int:
        return len(self.labels) // self.batch_size

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(len(self.labels))
        for chosen in order[: len(self) * self.batch_size].split(self.batch_size):
            yield self._moved(self.images[chosen]), self.labels[chosen]

    def _moved(self, images: Tensor) -> Tensor:
        padded = F.pad(images, (4, 4, 4, 4))
        down, right = torch.randint(0, 9, (2,)).tolist()
        cut = padded[:, :, down : down + 32, right : right + 32]
        mirrored = torch.rand(len(images)) < 0.5
        cut = torch.where(mirrored.view(-1, 1, 1, 1), cut.flip(3), cut)
        return cut.contiguous(memory_format=torch.channels_last)


def fine_tuned(network: nn.Module, teacher: nn.Module, data: ShiftedImages, budget: Budget, seed: int) -> nn.Module:
    """A copy trained on labels alone; ``teacher`` is not looked at, and stands in for an absent one."""
    return _trained(network, _Silent(), data, budget, seed, lambda student, _, labels: F.cross_entropy(student, labels))


def distilled(network: nn.Module, teacher: nn.Module, data: ShiftedImages, budget: Budget, seed: int) -> nn.Module:
    """A copy trained towards the teacher's outputs, with labels at their default weight."""
    return _trained(network, teacher, data, budget, seed, fxprune.distillation.SoftTargets())


class _Silent(nn.Module):
    """A teacher that says nothing and costs nothing."""

    def forward(self, images: Tensor) -> Tensor:
        return images.new_zeros(())


def _trained(
    network: nn.Module, teacher: nn.Module, data: ShiftedImages, budget: Budget, seed: int, loss: object
) -> nn.Module:
    found = fxprune.distill(
        network,
        teacher,
        data,
        steps=budget.steps,
        loss=loss,  # type: ignore[arg-type]
        learning_rate=budget.learning_rate,
        weight_decay=budget.weight_decay,
        seed=seed,
    )
    return found.network
