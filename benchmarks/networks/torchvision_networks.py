"""torchvision's networks, and the samples of those that do not take a batch of images."""

from __future__ import annotations

from typing import Any

import torch
import torchvision.models

COMMON = """
    alexnet vgg16_bn resnet18 resnet50 resnext50_32x4d wide_resnet50_2 densenet121 densenet201 mobilenet_v2
    mobilenet_v3_large mnasnet1_0 shufflenet_v2_x1_0 squeezenet1_1 googlenet inception_v3 efficientnet_b0
    efficientnet_v2_s regnet_y_400mf convnext_tiny vit_b_16 swin_t swin_v2_t maxvit_t deeplabv3_resnet50 fcn_resnet50
    lraspp_mobilenet_v3_large r3d_18 mvit_v2_s
""".split()
"""One network of each kind: classification, segmentation and video."""

_DETECTOR_SIZE = 320
# The smallest that optical flow networks take: their coarsest correlation has 1/64 of the pixels in each direction.
_FLOW_SIZE = 128


def names() -> list[str]:
    """Every model that torchvision can build."""
    return list(torchvision.models.list_models())


def sample_of(name: str, image: torch.Tensor) -> Any:
    """What the network takes: a list of two images for detectors, two batches for optical flow, or ``image``."""
    if name in torchvision.models.list_models(module=torchvision.models.detection):
        return [torch.rand(3, _DETECTOR_SIZE, _DETECTOR_SIZE) for _ in range(2)]
    if name in torchvision.models.list_models(module=torchvision.models.optical_flow):
        return torch.rand(1, 3, _FLOW_SIZE, _FLOW_SIZE), torch.rand(1, 3, _FLOW_SIZE, _FLOW_SIZE)
    return image
