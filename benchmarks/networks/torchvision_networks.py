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

# Small, as one image of the published 800 pixels takes 130 G multiply-accumulates.
_DETECTOR_SIZE = 256
_BOXES = [[20.0, 20.0, 120.0, 140.0], [50.0, 60.0, 240.0, 220.0]]
_KEYPOINTS = 17
# The smallest that optical flow networks take: their coarsest correlation has 1/64 of the pixels in each direction.
_FLOW_SIZE = 128


def names() -> list[str]:
    """Every model that torchvision can build."""
    return list(torchvision.models.list_models())


def sample_of(name: str, image: torch.Tensor) -> Any:
    """What the network takes: a list of two images for detectors, two batches for optical flow, or ``image``."""
    if name in _detectors():
        return [torch.rand(3, _DETECTOR_SIZE, _DETECTOR_SIZE) for _ in range(2)]
    if name in torchvision.models.list_models(module=torchvision.models.optical_flow):
        return torch.rand(1, 3, _FLOW_SIZE, _FLOW_SIZE), torch.rand(1, 3, _FLOW_SIZE, _FLOW_SIZE)
    return image


def shrink_images(model: Any) -> None:
    """Let a detector that scales its images to a range of sizes scale them to the sample's."""
    if hasattr(model, "transform") and model.transform.fixed_size is None:
        model.transform.min_size, model.transform.max_size = (_DETECTOR_SIZE,), _DETECTOR_SIZE


def training_sample_of(name: str, sample: Any) -> Any:
    """What the network takes in train mode: detectors want targets as well."""
    return (sample, [_target() for _ in sample]) if name in _detectors() else sample


def _target() -> dict[str, torch.Tensor]:
    boxes = torch.tensor(_BOXES)
    corners = boxes[:, :2]
    points = torch.cat([corners, torch.ones(len(boxes), 1)], 1)
    return {
        "boxes": boxes,
        "labels": torch.ones(len(boxes), dtype=torch.int64),
        "masks": torch.ones(len(boxes), _DETECTOR_SIZE, _DETECTOR_SIZE, dtype=torch.uint8),
        "keypoints": points[:, None].repeat(1, _KEYPOINTS, 1),
    }


def _detectors() -> list[str]:
    return list(torchvision.models.list_models(module=torchvision.models.detection))
