"""Kept classes where their libraries use them; each test runs where its library is installed."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import fxprune

IMAGES = torch.randn(2, 3, 64, 64)


@pytest.mark.parametrize("name", ["resnet10t", "regnetx_002", "mobilenetv3_small_050", "convnext_atto"])
def test_methods_of_timm(name: str) -> None:
    timm = pytest.importorskip("timm")
    model = timm.create_model(name, num_classes=7).eval()
    pruned: Any = fxprune.compile(model, IMAGES, 0.3, keep_class=True)
    assert type(pruned) is type(model)
    torch.testing.assert_close(fxprune.compile(model, IMAGES, 0.3)(IMAGES), pruned(IMAGES), rtol=0, atol=0)
    assert torch.equal(pruned.forward_head(pruned.forward_features(IMAGES)), pruned(IMAGES))
    pruned.reset_classifier(3)
    pruned.set_grad_checkpointing(True)
    out = pruned.train()(IMAGES)
    assert out.shape == (2, 3)
    out.sum().backward()
    assert all(p.grad is not None for p in pruned.parameters())


@pytest.mark.parametrize("name", ["resnet10t", "mobilenetv3_small_050"])
def test_features_of_timm(name: str) -> None:
    timm = pytest.importorskip("timm")
    model = timm.create_model(name, features_only=True).eval()
    pruned: Any = fxprune.compile(model, IMAGES, 0.3, keep_class=True)
    assert [maps.shape[1] for maps in pruned(IMAGES)] == pruned.feature_info.channels()


def test_an_encoder_works_again_in_its_segmentation_model() -> None:
    smp = pytest.importorskip("segmentation_models_pytorch")
    model = smp.Unet("resnet18", encoder_weights=None, classes=2).eval()
    whole: Any = fxprune.compile(model, IMAGES, 0.3, keep_class=True)
    assert whole.predict(IMAGES).shape == (2, 2, 64, 64)
    model.encoder = fxprune.compile(model.encoder, IMAGES, 0.3, keep_class=True)
    assert model(IMAGES).shape == (2, 2, 64, 64)


def test_a_window_slides_over_a_pruned_network() -> None:
    monai = pytest.importorskip("monai")
    from monai.inferers import sliding_window_inference

    model = monai.networks.nets.UNet(2, 1, 2, (8, 16, 32), (2, 2), num_res_units=1).eval()
    pruned: Any = fxprune.compile(model, torch.randn(1, 1, 32, 32), 0.3, keep_class=True)
    assert sliding_window_inference(torch.randn(1, 1, 80, 70), (32, 32), 2, pruned).shape == (1, 2, 80, 70)


def test_a_denoiser_works_again_in_its_pipeline() -> None:
    diffusers = pytest.importorskip("diffusers")
    model = diffusers.UNet2DModel(
        sample_size=16,
        layers_per_block=1,
        block_out_channels=(16, 32),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
    ).eval()
    sample = (torch.randn(2, 3, 16, 16), torch.tensor([3, 7]))
    pruned: Any = fxprune.compile(model, sample, 0.3, keep_class=True)
    pipeline = diffusers.DDPMPipeline(pruned, diffusers.DDPMScheduler(num_train_timesteps=10))
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline(num_inference_steps=2, output_type="np").images.shape == (1, 16, 16, 3)
