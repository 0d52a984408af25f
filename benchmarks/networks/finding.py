"""``LIBRARY:NAME`` to a network and a sample."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from benchmarks.cifar.resnet import cifar_model
from benchmarks.networks import timm_networks, torchvision_networks, transformers_networks
from fxprune.model_sources import find_model

LIBRARIES = ("torchvision", "timm", "transformers", "cifar")


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


def find_network(library: str, name: str, *, meta: bool = False, seed: int = 0) -> Network:
    """Build a network; nothing is downloaded. On ``meta``, neither weights nor sample take memory.

    Raises:
        ValueError: there is no such library or model.
    """
    if library not in LIBRARIES:
        raise ValueError(f"unknown library {library!r}: choose one of {', '.join(LIBRARIES)}")
    torch.manual_seed(seed)
    model: nn.Module
    sample: Any
    with torch.device("meta" if meta else "cpu"):
        if library == "transformers":
            model, sample = transformers_networks.build(name)
        elif library == "cifar":
            model, sample = cifar_model(name), torch.randn(1, 3, 32, 32)
        else:
            return _published(library, name, seed)
    return Network(model.eval(), sample, sample)


def _published(library: str, name: str, seed: int) -> Network:
    found = find_model(f"{library}:{name}", [], seed)
    if library != "torchvision":
        return Network(found.model, found.sample, found.sample)
    sample = torchvision_networks.sample_of(name, found.sample)
    return Network(found.model, sample, torchvision_networks.training_sample_of(name, sample))
