"""Samples for networks by name have the size that the network takes."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torchvision.models import VisionTransformer

from fxprune.cli.sources import find_model


def test_a_network_that_states_its_size_gets_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def builder(weights: None = None) -> VisionTransformer:
        return VisionTransformer(image_size=32, patch_size=16, num_layers=1, num_heads=2, hidden_dim=8, mlp_dim=8)

    # The published weights of this one are for images of 518 pixels, its builder's own are 224.
    monkeypatch.setattr(torchvision.models, "get_model_builder", lambda name: builder)
    source = find_model("torchvision:vit_h_14", [], 0)
    assert source.sample.shape == (1, 3, 32, 32)
    with torch.no_grad():
        assert source.model(source.sample).shape == (1, 1000)
