"""Networks and calibration images for accounting: trained weights where there are some, else random ones that do."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from benchmarks.accounting.rows import PublishedRow
from benchmarks.cifar.files import shared_file
from benchmarks.cifar.images import load_images
from benchmarks.networks.papers import PAPER_NETWORKS, paper_network
from fxprune.cli.sources import load_weights

_BATCH = {32: 128, 112: 16, 224: 8}


@dataclass(frozen=True)
class Subject:
    """A network in eval mode, calibration images, and where both come from."""

    model: nn.Module
    images: torch.Tensor
    weights: str
    data: str


def subject_of(row: PublishedRow, *, seed: int = 0) -> Subject:
    """The network of a row.

    The trained ResNet-56 for CIFAR-10 is used if its file is there. All other weights are random; their batch norms get
    random scales and shifts and the statistics of the images, because scales of one and means of zero would leave
    every criterion that reads them with nothing but ties.
    """
    model = paper_network(row.network, row.classes, seed=seed)
    images, data = _images(PAPER_NETWORKS[row.network].shape, seed)
    trained = shared_file("weights", "cifar_resnet56.safetensors")
    if row.network == "ResNet-56" and row.dataset == "CIFAR-10" and trained.exists():
        load_weights(model, trained)
        return Subject(model.eval(), images, "trained", data)
    settle(model, images, seed)
    return Subject(model, images, "random", data)


def settle(model: nn.Module, images: torch.Tensor, seed: int) -> None:
    """Random affine parameters for the batch norms, and running statistics of the images; ends in eval mode."""
    generator = torch.Generator().manual_seed(seed)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        nn.init.uniform_(norm.weight, 0.05, 1.0, generator=generator)
        nn.init.normal_(norm.bias, 0.0, 0.1, generator=generator)
        norm.reset_running_stats()
        norm.momentum = None
    with torch.no_grad():
        model.train()(images)
    for norm in norms:
        norm.momentum = 0.1
    model.eval()


def _images(shape: tuple[int, ...], seed: int) -> tuple[torch.Tensor, str]:
    count = _BATCH.get(shape[-1], 2)
    archive = shared_file("data", "cifar10.zip")
    if shape[-1] == 32 and archive.exists():
        return load_images(archive, "train", count)[0], "CIFAR-10"
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed)), "noise"
