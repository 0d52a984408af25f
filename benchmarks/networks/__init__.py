"""Networks to measure, by library and name, with random weights, and what they are called with."""

from __future__ import annotations

import csv
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torchvision.models
from rich.progress import track
from torch import nn
from torch.utils import _pytree as pytree

from benchmarks.cifar import cifar_model
from benchmarks.networks import transformers_networks
from fxprune.capture.samples import Sample
from fxprune.cli.sources import find_model

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


def _torchvision_names() -> list[str]:
    """Every model that torchvision can build."""
    return list(torchvision.models.list_models())


def _sample_of(name: str, image: torch.Tensor) -> Any:
    """What the network takes: a list of two images for detectors, two batches for optical flow, or ``image``."""
    if name in _detectors():
        return [torch.rand(3, _DETECTOR_SIZE, _DETECTOR_SIZE) for _ in range(2)]
    if name in torchvision.models.list_models(module=torchvision.models.optical_flow):
        return torch.rand(1, 3, _FLOW_SIZE, _FLOW_SIZE), torch.rand(1, 3, _FLOW_SIZE, _FLOW_SIZE)
    return image


def _shrink_images(model: Any) -> None:
    """Let a detector that scales its images to a range of sizes scale them to the sample's."""
    if hasattr(model, "transform") and model.transform.fixed_size is None:
        model.transform.min_size, model.transform.max_size = (_DETECTOR_SIZE,), _DETECTOR_SIZE


def _training_sample_of(name: str, sample: Any) -> Any:
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


_LIST = Path(__file__).with_name("timm_families.csv")
_COLUMNS = ("family", "model", "parameters")
# Models of timm's own test suite, too small to stand for their family.
_FOR_TESTS = "test_"


def _timm_names() -> list[str]:
    """Every model that timm can build."""
    import timm

    return list(timm.list_models())


def _smallest_of_families() -> list[str]:
    """The model with the fewest parameters of each family, as listed; of families not listed it is found now."""
    import timm

    with _LIST.open(newline="", encoding="utf-8") as file:
        listed = {row["family"]: row["model"] for row in csv.DictReader(file)}
    return [listed[family] if family in listed else smallest(family)[0] for family in timm.list_modules()]


def smallest(family: str) -> tuple[str, int]:
    """The model of a family with the fewest parameters, and their number."""
    import timm

    candidates = [name for name in timm.list_models(module=family) if not name.startswith(_FOR_TESTS)]
    return min(((name, _parameters(name)) for name in candidates), key=lambda found: found[1])


def _parameters(name: str) -> int:
    import timm

    with torch.device("meta"):
        return sum(parameter.numel() for parameter in timm.create_model(name, pretrained=False).parameters())


def write_timm_families() -> None:
    """Find the smallest model of each of timm's families on the meta device, and write the list that is beside this."""
    import timm

    warnings.simplefilter("ignore")
    with _LIST.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(_COLUMNS)
        writer.writerows((family, *smallest(family)) for family in track(timm.list_modules()))


LIBRARIES = ("torchvision", "timm", "transformers", "cifar")


_IMAGE_DIMS = (4, 5)


@dataclass(frozen=True)
class Network:
    """A network with random weights in eval mode, a ``sample_input`` for it, and one for it in train mode."""

    model: nn.Module
    sample: Any
    training_sample: Any


def model_names(library: str, *, families: bool = False) -> list[str]:
    """Every model of a library, or the smallest of each family.

    Raises:
        ValueError: the library is unknown, or has no families.
    """
    if families and library != "timm":
        raise ValueError(f"only timm has families, not {library!r}")
    if library == "torchvision":
        return _torchvision_names()
    if library == "timm":
        return _smallest_of_families() if families else _timm_names()
    if library == "transformers":
        return transformers_networks.names()
    raise ValueError(f"unknown library {library!r}: choose torchvision, timm or transformers")


def with_images_of(network: Network, size: int) -> Network:
    """The same with images of ``size`` x ``size`` pixels, if the network takes them; one call is tried to find out.

    Clips, which have many frames, get half of that.
    """

    def scaled(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.ndim not in _IMAGE_DIMS or not tensor.is_floating_point():
            return tensor
        edge = size if tensor.ndim == min(_IMAGE_DIMS) else size // 2
        return torch.randn(*tensor.shape[:-2], edge, edge)

    samples = (network.sample, network.training_sample)
    sample, training_sample = pytree.tree_map_only(torch.Tensor, scaled, samples)
    try:
        with torch.no_grad():
            Sample.from_input(sample).call(network.model)
    except Exception:  # whatever the network raises is its refusal
        return network
    return Network(network.model, sample, training_sample)


def find_network(library: str, name: str, *, meta: bool = False, seed: int = 0) -> Network:
    """Build a network; nothing is downloaded. On ``meta``, neither weights nor sample have values.

    Raises:
        ValueError: there is no such library or model.
    """
    if library not in LIBRARIES:
        raise ValueError(f"unknown library {library!r}: choose one of {', '.join(LIBRARIES)}")
    torch.manual_seed(seed)
    return _on_meta(library, name, seed) if meta else _built(library, name, seed)


def _on_meta(library: str, name: str, seed: int) -> Network:
    try:
        with torch.device("meta"):
            return _built(library, name, seed)
    except (NotImplementedError, RuntimeError):
        # Some constructors compute with tensors, which takes values; those models are emptied afterwards.
        network = _built(library, name, seed)
        sample, training_sample = (Sample.from_input(s).to_meta() for s in (network.sample, network.training_sample))
        return Network(network.model.to("meta"), sample, training_sample)


def _built(library: str, name: str, seed: int) -> Network:
    if library == "transformers":
        model, sample = transformers_networks.build(name)
        return Network(model.eval(), sample, sample)
    if library == "cifar":
        image = torch.randn(1, 3, 32, 32)
        return Network(cifar_model(name).eval(), image, image)
    return _published(library, name, seed)


def _published(library: str, name: str, seed: int) -> Network:
    found = find_model(f"{library}:{name}", [], seed)
    if library != "torchvision":
        return Network(found.model, found.sample, found.sample)
    _shrink_images(found.model)
    sample = _sample_of(name, found.sample)
    return Network(found.model, sample, _training_sample_of(name, sample))
