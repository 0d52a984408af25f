"""Detectors: lists of images in, dicts out, losses in training; what lies inside the untraceable forward is pruned."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torchvision.models import detection
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import MultiScaleRoIAlign

import fxprune

SIZE = 48
Image = list[torch.Tensor]


class Backbone(nn.Sequential):
    """One feature map, an eighth of the image."""

    out_channels = 32

    def __init__(self) -> None:
        layers: list[nn.Module] = []
        for before, after in ((3, 16), (16, 24), (24, 32)):
            layers += [nn.Conv2d(before, after, 3, 2, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
        super().__init__(*layers)


def faster() -> nn.Module:
    anchors = AnchorGenerator(((8, 16),), ((0.5, 1.0),))
    pool = MultiScaleRoIAlign(["0"], 3, 2)
    head = detection.faster_rcnn.TwoMLPHead(32 * 9, 32)
    predictor = detection.faster_rcnn.FastRCNNPredictor(32, 4)
    sizes = {"min_size": SIZE, "max_size": SIZE, "rpn_post_nms_top_n_test": 20, "rpn_post_nms_top_n_train": 20}
    return detection.FasterRCNN(
        Backbone(),
        rpn_anchor_generator=anchors,
        box_roi_pool=pool,
        box_head=head,
        box_predictor=predictor,
        box_score_thresh=0.0,
        **sizes,
    )


def retina() -> nn.Module:
    anchors = AnchorGenerator(((8, 16),), ((0.5, 1.0),))
    return detection.RetinaNet(
        Backbone(), 4, min_size=SIZE, max_size=SIZE, anchor_generator=anchors, score_thresh=0.0, topk_candidates=50
    )


def fcos() -> nn.Module:
    anchors = AnchorGenerator(((8,),), ((1.0,),))
    return detection.FCOS(
        Backbone(), 4, min_size=SIZE, max_size=SIZE, anchor_generator=anchors, score_thresh=0.0, topk_candidates=50
    )


def images(count: int = 2) -> Image:
    return [torch.rand(3, SIZE, SIZE - 8 * n) for n in range(count)]


def targets(count: int = 2) -> list[dict[str, torch.Tensor]]:
    boxes = torch.tensor([[4.0, 4.0, 20.0, 24.0], [10.0, 12.0, 30.0, 40.0]])
    return [{"boxes": boxes.clone(), "labels": torch.tensor([1, 2])} for _ in range(count)]


DETECTORS: dict[str, Callable[[], nn.Module]] = {"faster_rcnn": faster, "retinanet": retina, "fcos": fcos}


@pytest.mark.parametrize("name", DETECTORS)
def test_detectors_keep_their_interface(name: str) -> None:
    torch.manual_seed(0)
    model = DETECTORS[name]().eval()
    pruned = fxprune.compile(model, images(), 0.4)
    report = fxprune.report(pruned)
    assert type(pruned) is type(model)
    assert report.achieved >= 0.4
    assert report.proof is not None
    assert not report.proof.vacuous
    assert report.proof.batch_sizes == ()
    assert report.proof.resolutions == (f"{SIZE}x{SIZE}", "80x80")
    (row,) = report.opaque
    assert ".py:" in row.reason
    found, expected = pruned(images(3)), model(images(3))
    assert [entry.keys() for entry in found] == [entry.keys() for entry in expected]
    losses = pruned.train()(images(), targets())
    assert losses.keys() == model.train()(images(), targets()).keys()
    torch.stack(list(losses.values())).sum().backward()
    assert all(p.grad is not None for p in pruned.parameters())


@pytest.mark.parametrize("name", DETECTORS)
def test_a_copy_that_lost_nothing_has_the_losses_of_the_original(name: str) -> None:
    torch.manual_seed(0)
    model = DETECTORS[name]().train()
    pruned, twin = fxprune.compile(model, images(), 0.0, verify=False), copy.deepcopy(model)
    sample = images(), targets()
    torch.manual_seed(5)
    found = pruned(*sample)
    torch.manual_seed(5)
    assert found == twin(*sample)
