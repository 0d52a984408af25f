"""The networks of the filter-pruning papers under their own names, with random weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torchvision import models
from torchvision.models.segmentation import deeplabv3_resnet50

from benchmarks.cifar.resnet import cifar_resnet
from benchmarks.networks.cifar_densenet import CifarDenseNet
from benchmarks.networks.cifar_preresnet import CifarPreResNet
from benchmarks.networks.cifar_vgg import CifarVGG
from benchmarks.networks.dabnet import DABNet
from benchmarks.networks.mobilefacenet import MobileFaceNet
from benchmarks.networks.unet import UNet

_IMAGE = (3, 32, 32)


@dataclass(frozen=True)
class PaperNetwork:
    """How to build a network for a number of classes, and the shape of one input."""

    build: Callable[[int], nn.Module]
    shape: tuple[int, ...]


def _deeplab(classes: int) -> nn.Module:
    network: nn.Module = deeplabv3_resnet50(weights=None, weights_backbone=None, num_classes=classes, aux_loss=False)
    return network


PAPER_NETWORKS = {
    "VGG-16": PaperNetwork(lambda classes: CifarVGG(16, classes), _IMAGE),
    "VGG-19": PaperNetwork(lambda classes: CifarVGG(19, classes), _IMAGE),
    "ResNet-56": PaperNetwork(lambda classes: cifar_resnet(56, classes), _IMAGE),
    "ResNet-110": PaperNetwork(lambda classes: cifar_resnet(110, classes), _IMAGE),
    "ResNet-164": PaperNetwork(lambda classes: CifarPreResNet(164, classes), _IMAGE),
    "DenseNet-40": PaperNetwork(lambda classes: CifarDenseNet(40, 12, classes), _IMAGE),
    "ResNet-50": PaperNetwork(lambda classes: models.resnet50(num_classes=classes), (3, 224, 224)),
    "MobileFaceNet": PaperNetwork(MobileFaceNet, (3, 112, 112)),
    "U-Net": PaperNetwork(UNet, (3, 64, 64)),
    "DABNet": PaperNetwork(DABNet, (3, 128, 256)),
    "DeepLabV3": PaperNetwork(_deeplab, (3, 65, 65)),
}


def paper_network(name: str, classes: int = 10, *, seed: int = 0) -> nn.Module:
    """The network in eval mode with random weights; for MobileFaceNet ``classes`` is the size of the embedding.

    Raises:
        ValueError: there is no network of that name.
    """
    if name not in PAPER_NETWORKS:
        raise ValueError(f"unknown network {name!r}: choose one of {', '.join(PAPER_NETWORKS)}")
    torch.manual_seed(seed)
    return PAPER_NETWORKS[name].build(classes).eval()
