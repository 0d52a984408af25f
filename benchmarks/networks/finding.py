"""``LIBRARY:NAME`` to a network and a sample."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from benchmarks.cifar import cifar_model
from benchmarks.networks import timm_networks, torchvision_networks, transformers_networks
from fxprune.capture.samples import Sample
from fxprune.cli.sources import find_model

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
        return torchvision_networks.names()
    if library == "timm":
        return timm_networks.smallest_of_families() if families else timm_networks.names()
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
    torchvision_networks.shrink_images(found.model)
    sample = torchvision_networks.sample_of(name, found.sample)
    return Network(found.model, sample, torchvision_networks.training_sample_of(name, sample))
