"""Classes of packages that have but a few, with options and samples, and those of packages for series."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from benchmarks.networks.enumerated import Maker, Makers, first_that_runs, modules_of


def tsai_makers() -> Makers:
    """The classes of tsai that are told no more than channels, classes and steps."""
    given = {"c_in": 3, "c_out": 4, "seq_len": 32}

    def maker(cls: type[nn.Module]) -> Maker:
        named = inspect.signature(cls.__init__).parameters
        return lambda: (cls(**{name: value for name, value in given.items() if name in named}), torch.randn(2, 3, 32))

    found: dict[type, str] = {}
    for module in modules_of(importlib.import_module("tsai.models")):
        for name, cls in list(vars(module).items()):
            own = inspect.isclass(cls) and issubclass(cls, nn.Module) and cls.__module__ == module.__name__
            if (
                own
                and not name.startswith("_")
                and {"c_in", "c_out"} <= inspect.signature(cls.__init__).parameters.keys()
            ):
                found.setdefault(cls, name)
    return {name: maker(cls) for cls, name in found.items()}


def small_packages_makers() -> Makers:
    """Classes of packages that have but a few."""
    made: Makers = {}
    for path, options, samples in _FEW:
        module, _, name = path.partition(":")
        try:
            cls = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError):
            continue
        made[f"{module.partition('.')[0]}.{name}"] = partial(first_that_runs, partial(cls, **options), samples)
    return made


Listed = dict[str, tuple[dict[str, Any], Callable[[], Any]]]


def _tokens() -> torch.Tensor:
    return torch.randint(0, 30, (2, 16))


def _randn(*shape: int) -> Callable[[], Any]:
    return partial(torch.randn, *shape)


def _volumes(name: str, **more: Any) -> tuple[str, dict[str, Any], list[Callable[[], Any]]]:
    options = {"input_channels": 1, "n_stages": 3, "features_per_stage": (8, 16, 32), "conv_op": nn.Conv2d} | more
    options |= {"kernel_sizes": 3, "strides": (1, 2, 2), "num_classes": 2, "conv_bias": True, "nonlin": nn.ReLU}
    options |= {"norm_op": nn.InstanceNorm2d, "norm_op_kwargs": {"affine": True}}
    return f"dynamic_network_architectures.architectures.unet:{name}", options, [_randn(2, 1, 32, 32)]


_FEW: list[tuple[str, dict[str, Any], list[Callable[[], Any]]]] = [
    _volumes("PlainConvUNet", n_conv_per_stage=2, n_conv_per_stage_decoder=2),
    _volumes("ResidualEncoderUNet", n_blocks_per_stage=2, n_conv_per_stage_decoder=2),
    (
        "rtdl_revisiting_models:MLP",
        {"d_in": 12, "d_out": 2, "n_blocks": 2, "d_block": 32, "dropout": 0.1},
        [_randn(4, 12)],
    ),
    (
        "rtdl_revisiting_models:ResNet",
        {
            "d_in": 12,
            "d_out": 2,
            "n_blocks": 2,
            "d_block": 32,
            "d_hidden": 48,
            "d_hidden_multiplier": None,
            "dropout1": 0.1,
            "dropout2": 0.1,
        },
        [_randn(4, 12)],
    ),
    (
        "rtdl_revisiting_models:FTTransformer",
        {
            "n_cont_features": 6,
            "cat_cardinalities": [4, 5],
            "d_out": 2,
            "n_blocks": 2,
            "d_block": 32,
            "attention_n_heads": 4,
            "attention_dropout": 0.1,
            "ffn_d_hidden": 64,
            "ffn_d_hidden_multiplier": None,
            "ffn_dropout": 0.1,
            "residual_dropout": 0.0,
        },
        [lambda: (torch.randn(4, 6), torch.randint(0, 4, (4, 2)))],
    ),
    (
        "pytorch_tabnet.tab_network:TabNet",
        {"input_dim": 12, "output_dim": 3, "group_attention_matrix": torch.eye(12)},
        [_randn(8, 12)],
    ),
    (
        "perceiver_pytorch:Perceiver",
        {
            "num_freq_bands": 4,
            "depth": 2,
            "max_freq": 10.0,
            "num_latents": 8,
            "latent_dim": 32,
            "latent_heads": 4,
            "latent_dim_head": 8,
            "cross_dim_head": 8,
            "num_classes": 5,
        },
        [_randn(2, 8, 8, 3)],
    ),
    (
        "perceiver_pytorch:PerceiverIO",
        {
            "dim": 16,
            "queries_dim": 16,
            "logits_dim": 5,
            "depth": 2,
            "num_latents": 8,
            "latent_dim": 32,
            "latent_heads": 4,
            "latent_dim_head": 8,
            "cross_dim_head": 8,
        },
        [lambda: {"data": torch.randn(2, 12, 16), "queries": torch.randn(2, 4, 16)}],
    ),
    (
        "denoising_diffusion_pytorch:Unet",
        {"dim": 16, "dim_mults": (1, 2)},
        [lambda: (torch.randn(2, 3, 16, 16), torch.tensor([3, 7]))],
    ),
    (
        "denoising_diffusion_pytorch:Unet1D",
        {"dim": 16, "dim_mults": (1, 2), "channels": 3},
        [lambda: (torch.randn(2, 3, 16), torch.tensor([3, 7]))],
    ),
    (
        "denoising_diffusion_pytorch:KarrasUnet",
        {"image_size": 16, "dim": 16, "dim_max": 32, "num_downsamples": 1, "attn_res": (8,), "attn_dim_head": 8},
        [lambda: (torch.randn(2, 4, 16, 16), torch.rand(2))],
    ),
    ("facenet_pytorch:InceptionResnetV1", {"classify": True, "num_classes": 5}, [_randn(2, 3, 96, 96)]),
    ("facenet_pytorch.models.mtcnn:PNet", {"pretrained": False}, [_randn(2, 3, 24, 24)]),
    ("facenet_pytorch.models.mtcnn:RNet", {"pretrained": False}, [_randn(2, 3, 24, 24)]),
    ("facenet_pytorch.models.mtcnn:ONet", {"pretrained": False}, [_randn(2, 3, 48, 48)]),
    ("vector_quantize_pytorch:VectorQuantize", {"dim": 16, "codebook_size": 8}, [_randn(2, 8, 16)]),
    ("vector_quantize_pytorch:ResidualVQ", {"dim": 16, "codebook_size": 8, "num_quantizers": 2}, [_randn(2, 8, 16)]),
    ("vector_quantize_pytorch:FSQ", {"levels": [8, 5], "dim": 16}, [_randn(2, 8, 16)]),
    ("linformer:Linformer", {"dim": 32, "seq_len": 16, "depth": 2, "heads": 4, "k": 8}, [_randn(2, 16, 32)]),
    (
        "performer_pytorch:PerformerLM",
        {"num_tokens": 30, "max_seq_len": 16, "dim": 32, "depth": 2, "heads": 4, "dim_head": 8},
        [_tokens],
    ),
    ("performer_pytorch:Performer", {"dim": 32, "depth": 2, "heads": 4, "dim_head": 8}, [_randn(2, 16, 32)]),
    (
        "axial_attention:AxialImageTransformer",
        {"dim": 16, "depth": 2, "heads": 4, "reversible": False},
        [_randn(2, 16, 8, 8)],
    ),
    (
        "g_mlp_pytorch:gMLPVision",
        {"image_size": 32, "patch_size": 8, "num_classes": 5, "dim": 32, "depth": 2},
        [_randn(2, 3, 32, 32)],
    ),
    ("g_mlp_pytorch:gMLP", {"num_tokens": 30, "dim": 32, "depth": 2, "seq_len": 16}, [_tokens]),
    (
        "mlp_mixer_pytorch:MLPMixer",
        {"image_size": 32, "channels": 3, "patch_size": 8, "dim": 32, "depth": 2, "num_classes": 5},
        [_randn(2, 3, 32, 32)],
    ),
    (
        "nystrom_attention:Nystromformer",
        {"dim": 32, "dim_head": 8, "heads": 4, "depth": 2, "num_landmarks": 4},
        [_randn(2, 16, 32)],
    ),
    (
        "tab_transformer_pytorch:TabTransformer",
        {"categories": (4, 5), "num_continuous": 3, "dim": 16, "depth": 2, "heads": 4, "dim_out": 2},
        [lambda: (torch.randint(0, 4, (4, 2)), torch.randn(4, 3))],
    ),
    (
        "tab_transformer_pytorch:FTTransformer",
        {"categories": (4, 5), "num_continuous": 3, "dim": 16, "depth": 2, "heads": 4, "dim_out": 2},
        [lambda: (torch.randint(0, 4, (4, 2)), torch.randn(4, 3))],
    ),
    (
        "lambda_networks:LambdaLayer",
        {"dim": 16, "dim_out": 16, "r": 5, "dim_k": 8, "heads": 4, "dim_u": 1},
        [_randn(2, 16, 8, 8)],
    ),
    (
        "halonet_pytorch:HaloAttention",
        {"dim": 16, "block_size": 4, "halo_size": 2, "dim_head": 8, "heads": 2},
        [_randn(2, 16, 8, 8)],
    ),
    (
        "bottleneck_transformer_pytorch:BottleStack",
        {"dim": 16, "fmap_size": 8, "dim_out": 32, "proj_factor": 4, "downsample": True, "heads": 4, "dim_head": 8},
        [_randn(2, 16, 8, 8)],
    ),
    (
        "linear_attention_transformer:LinearAttentionTransformerLM",
        {"num_tokens": 30, "dim": 32, "heads": 4, "depth": 2, "max_seq_len": 16},
        [_tokens],
    ),
    (
        "uniformer_pytorch:Uniformer",
        {"num_classes": 5, "dims": (64, 64, 64, 64), "depths": (1, 1, 1, 1), "mhsa_types": ("l", "l", "g", "g")},
        [_randn(1, 3, 4, 32, 32)],
    ),
    (
        "hourglass_transformer_pytorch:HourglassTransformerLM",
        {"num_tokens": 30, "dim": 32, "max_seq_len": 16, "shorten_factor": 2, "depth": (1, 1, 1)},
        [_tokens],
    ),
    (
        "egnn_pytorch:EGNN_Network",
        {"num_tokens": 21, "num_positions": 16, "dim": 16, "depth": 2, "num_nearest_neighbors": 4},
        [lambda: (torch.randint(0, 20, (2, 16)), torch.randn(2, 16, 3))],
    ),
    ("egnn_pytorch:EGNN", {"dim": 16}, [lambda: (torch.randn(2, 8, 16), torch.randn(2, 8, 3))]),
    ("soft_moe_pytorch:SoftMoE", {"dim": 32, "seq_len": 16, "num_experts": 4}, [_randn(2, 16, 32)]),
    (
        "iTransformer:iTransformer",
        {"num_variates": 6, "lookback_len": 16, "dim": 32, "depth": 2, "heads": 4, "dim_head": 8, "pred_length": 4},
        [_randn(2, 16, 6)],
    ),
    ("mixture_of_experts:MoE", {"dim": 32, "num_experts": 4, "hidden_dim": 64}, [_randn(2, 16, 32)]),
    (
        "x_unet:XUnet",
        {
            "dim": 16,
            "channels": 3,
            "dim_mults": (1, 2),
            "num_blocks_per_stage": (1, 1),
            "num_self_attn_per_stage": (0, 1),
        },
        [_randn(2, 3, 32, 32)],
    ),
    (
        "res_mlp_pytorch:ResMLP",
        {"image_size": 32, "patch_size": 8, "dim": 32, "depth": 2, "num_classes": 5},
        [_randn(2, 3, 32, 32)],
    ),
    (
        "timesformer_pytorch:TimeSformer",
        {
            "dim": 32,
            "image_size": 32,
            "patch_size": 8,
            "num_frames": 2,
            "num_classes": 5,
            "depth": 2,
            "heads": 4,
            "dim_head": 8,
        },
        [_randn(1, 2, 3, 32, 32)],
    ),
    (
        "segformer_pytorch:Segformer",
        {
            "dims": (16, 16, 32, 32),
            "heads": (1, 2, 2, 4),
            "ff_expansion": (2, 2, 2, 2),
            "reduction_ratio": (4, 2, 1, 1),
            "num_layers": 1,
            "decoder_dim": 32,
            "num_classes": 3,
        },
        [_randn(2, 3, 64, 64)],
    ),
    ("ncps.torch:CfC", {"input_size": 6, "units": 16}, [_randn(2, 8, 6)]),
    ("ncps.torch:LTC", {"input_size": 6, "units": 16}, [_randn(2, 4, 6)]),
    ("pytorch_tcn:TCN", {"num_inputs": 4, "num_channels": [8, 16], "kernel_size": 3}, [_randn(2, 4, 20)]),
    (
        "tabm:TabM",
        {
            "n_num_features": 6,
            "d_out": 2,
            "n_blocks": 2,
            "d_block": 32,
            "k": 4,
            "dropout": 0.1,
            "arch_type": "tabm",
            "start_scaling_init": "random-signs",
        },
        [_randn(4, 6)],
    ),
    ("conformer:ConformerBlock", {"dim": 32, "dim_head": 8, "heads": 4, "conv_kernel_size": 5}, [_randn(2, 16, 32)]),
    (
        "reformer_pytorch:ReformerLM",
        {"num_tokens": 30, "dim": 32, "depth": 1, "max_seq_len": 16, "heads": 4, "bucket_size": 4, "n_hashes": 2},
        [_tokens],
    ),
    (
        "routing_transformer:RoutingTransformerLM",
        {"num_tokens": 30, "dim": 32, "heads": 4, "depth": 1, "max_seq_len": 16, "window_size": 4},
        [_tokens],
    ),
    ("memory_efficient_attention_pytorch:Attention", {"dim": 32, "dim_head": 8, "heads": 4}, [_randn(2, 16, 32)]),
    ("mega_pytorch:Mega", {"dim": 32, "num_tokens": 30, "depth": 2}, [_tokens]),
    ("torchtuples.practical:MLPVanilla", {"in_features": 6, "num_nodes": [16, 16], "out_features": 2}, [_randn(4, 6)]),
    (
        "unet:UNet2D",
        {"out_channels_first_layer": 8, "num_encoding_blocks": 2, "normalization": "batch", "padding": True},
        [_randn(2, 1, 32, 32)],
    ),
    ("antialiased_cnns:resnet18", {"num_classes": 5}, [_randn(2, 3, 64, 64)]),
    ("antialiased_cnns:mobilenet_v2", {"num_classes": 5}, [_randn(2, 3, 64, 64)]),
    ("minGRU_pytorch:minGRULM", {"num_tokens": 30, "dim": 32, "depth": 2}, [_tokens]),
    ("minGRU_pytorch:minGRU", {"dim": 32}, [_randn(2, 16, 32)]),
    (
        "encodec.modules:SEANetEncoder",
        {"channels": 1, "dimension": 16, "n_filters": 4, "ratios": [2, 2]},
        [_randn(2, 1, 64)],
    ),
    (
        "encodec.modules:SEANetDecoder",
        {"channels": 1, "dimension": 16, "n_filters": 4, "ratios": [2, 2]},
        [_randn(2, 16, 16)],
    ),
    (
        "local_attention:LocalTransformer",
        {
            "num_tokens": 30,
            "dim": 32,
            "depth": 2,
            "max_seq_len": 16,
            "local_attn_window_size": 4,
            "heads": 4,
            "dim_head": 8,
        },
        [_tokens],
    ),
    (
        "colt5_attention:ConditionalRoutedFeedForward",
        {"dim": 32, "light_ff_mult": 0.5, "heavy_ff_mult": 4, "num_heavy_tokens": 4},
        [_randn(2, 16, 32)],
    ),
]

_HEADS = {"heads": 4, "dim_head": 8}
# Blocks of one width, for series of 16 steps.
_BLOCKS: dict[str, dict[str, Any]] = {
    "axial_attention:SelfAttention": {"heads": 4},
    "conformer:Conformer": {"depth": 2, "conv_kernel_size": 5, **_HEADS},
    "conformer:ConformerConvModule": {"kernel_size": 5},
    "g_mlp_pytorch:gMLPBlock": {"dim_ff": 64, "seq_len": 16},
    "gateloop_transformer:SimpleGateLoopLayer": {},
    "hourglass_transformer_pytorch:HourglassTransformer": {"depth": (1, 1, 1), **_HEADS},
    "linear_attention_transformer:LinearAttentionTransformer": {"depth": 2, "max_seq_len": 16, "heads": 4},
    "linformer:LinformerSelfAttention": {"seq_len": 16, "heads": 4, "k": 8},
    "local_attention:LocalMHA": {"window_size": 4, **_HEADS},
    "mega_pytorch:MegaLayer": {"ema_heads": 4, "attn_dim_qk": 16, "attn_dim_value": 32},
    "memory_efficient_attention_pytorch:CosineSimAttention": {"seq_len": 16, **_HEADS},
    "memory_efficient_attention_pytorch:FlashAttention": {"q_bucket_size": 8, "k_bucket_size": 8, **_HEADS},
    "minGRU_pytorch.minLSTM:minLSTM": {},
    "mixture_of_experts:HeirarchicalMoE": {"num_experts": (2, 2), "hidden_dim": 64},
    "nystrom_attention:NystromAttention": {"num_landmarks": 4, **_HEADS},
    "performer_pytorch:SelfAttention": _HEADS,
    "product_key_memory:PKM": {"heads": 2, "num_keys": 8, "topk": 4, "dim_head": 16},
    "soft_moe_pytorch:DynamicSlotsSoftMoE": {"num_experts": 4},
    "x_mlps_pytorch:AttnResidualNormedMLP": {"depth": 2},
    "x_mlps_pytorch:Feedforwards": {"depth": 2},
    "x_mlps_pytorch:ResidualNormedMLP": {"depth": 4, "residual_every": 2},
    "x_mlps_pytorch:nFeedforwards": {"depth": 2},
}
_FEW += [(path, {"dim": 32, **options}, [_randn(2, 16, 32)]) for path, options in _BLOCKS.items()]
_LATENTS = {"depth": 2, "num_latents": 8, "latent_dim": 32, "latent_heads": 4, "latent_dim_head": 8}
_OTHERS: Listed = {
    "axial_attention:AxialAttention": ({"dim": 16, "dim_index": 1, "heads": 4}, _randn(2, 16, 8, 8)),
    "bottleneck_transformer_pytorch:BottleBlock": (
        {"dim": 16, "fmap_size": 8, "dim_out": 32, "proj_factor": 4, "downsample": False, **_HEADS},
        _randn(2, 16, 8, 8),
    ),
    "denoising_diffusion_pytorch.simple_diffusion:UViT": (
        {"dim": 16, "dim_mults": (1, 2), "vit_depth": 1, "attn_dim_head": 8},
        lambda: (torch.randn(2, 3, 16, 16), torch.rand(2)),
    ),
    "gateloop_transformer:Transformer": ({"dim": 32, "num_tokens": 30, "depth": 2, **_HEADS}, _tokens),
    "linear_attention_transformer:ImageLinearAttention": (
        {"chan": 16, "key_dim": 8, "value_dim": 8, "heads": 4},
        _randn(2, 16, 8, 8),
    ),
    "linformer:LinformerLM": ({"dim": 32, "num_tokens": 30, "seq_len": 16, "depth": 2, "k": 8, "heads": 4}, _tokens),
    "nflows.nn.nets:ConvResidualNet": (
        {"in_channels": 3, "out_channels": 4, "hidden_channels": 16},
        _randn(2, 3, 8, 8),
    ),
    "nflows.nn.nets:MLP": ({"in_shape": (6,), "out_shape": (4,), "hidden_sizes": [16, 16]}, _randn(4, 6)),
    "nflows.nn.nets:ResidualNet": ({"in_features": 6, "out_features": 4, "hidden_features": 32}, _randn(4, 6)),
    "perceiver_pytorch:PerceiverLM": (
        {"dim": 16, "num_tokens": 30, "max_seq_len": 16, "cross_dim_head": 8, **_LATENTS},
        _tokens,
    ),
    "rtdl_num_embeddings:PeriodicEmbeddings": ({"n_features": 6, "d_embedding": 16, "lite": False}, _randn(4, 6)),
    "unet:UNet3D": (
        {"out_channels_first_layer": 8, "num_encoding_blocks": 2, "padding": True},
        _randn(1, 1, 16, 16, 16),
    ),
}


def _graph() -> tuple[torch.Tensor, torch.Tensor]:
    """Features of eight nodes, and twenty edges."""
    return torch.randn(8, 6), torch.randint(0, 8, (2, 20))


def _image(size: int = 16) -> Callable[[], Any]:
    return _randn(2, 3, size, size)


_LAYERS = {"in_channels": 6, "hidden_channels": 16, "num_layers": 2, "out_channels": 3}
_TIMED = {"dim": 16, "dim_mults": (1, 2)}
_CHUNKS = {"n_filters": 16, "kernel_size": 16, "stride": 8}

_SOUND: Listed = {
    "speechbrain.lobes.models.ECAPA_TDNN:ECAPA_TDNN": (
        {"input_size": 8, "channels": [16, 16, 16, 16, 32], "lin_neurons": 12, "attention_channels": 8,
         "se_channels": 8, "res2net_scale": 4},
        _randn(2, 20, 8),
    ),
    "speechbrain.lobes.models.Xvector:Xvector": (
        {"in_channels": 8, "tdnn_channels": [16, 16, 16, 16, 32], "lin_neurons": 12}, _randn(2, 24, 8),
    ),
    "speechbrain.lobes.models.CRDNN:CRDNN": (
        {"input_shape": (2, 16, 16), "cnn_channels": [8, 16], "rnn_layers": 1, "rnn_neurons": 16, "dnn_neurons": 16},
        _randn(2, 16, 16),
    ),
    "speechbrain.lobes.models.conv_tasnet:MaskNet": (
        {"N": 16, "B": 16, "H": 32, "P": 3, "X": 2, "R": 2, "C": 2}, _randn(2, 16, 20),
    ),
    "speechbrain.lobes.models.HifiGAN:HifiganGenerator": (
        {"in_channels": 8, "out_channels": 1, "resblock_type": "1", "resblock_dilation_sizes": [[1, 3, 5]] * 2,
         "resblock_kernel_sizes": [3, 5], "upsample_kernel_sizes": [4, 4], "upsample_initial_channel": 32,
         "upsample_factors": [2, 2]},
        _randn(2, 8, 12),
    ),
    "asteroid.masknn:TDConvNet": (
        {"in_chan": 16, "n_src": 2, "n_blocks": 2, "n_repeats": 2, "bn_chan": 16, "hid_chan": 32, "skip_chan": 16},
        _randn(2, 16, 40),
    ),
    "asteroid.masknn:DPRNN": (
        {"in_chan": 16, "n_src": 2, "bn_chan": 16, "hid_size": 16, "chunk_size": 8, "n_repeats": 1}, _randn(2, 16, 40),
    ),
    "asteroid.masknn:LSTMMasker": ({"in_chan": 16, "n_src": 2, "n_layers": 1, "hid_size": 16}, _randn(2, 16, 40)),
    "asteroid.models:ConvTasNet": (
        {"n_src": 2, "n_blocks": 2, "n_repeats": 2, "bn_chan": 16, "hid_chan": 32, "skip_chan": 16, **_CHUNKS},
        _randn(2, 1, 400),
    ),
    "asteroid.models:LSTMTasNet": ({"n_src": 2, "n_layers": 1, "hid_size": 16, **_CHUNKS}, _randn(2, 1, 400)),
    "asteroid.models:SuDORMRFNet": (
        {"n_src": 2, "bn_chan": 16, "num_blocks": 1, "n_filters": 32, "upsampling_depth": 3}, _randn(2, 1, 640),
    ),
    "asteroid.models:DPRNNTasNet": (
        {"n_src": 2, "bn_chan": 16, "hid_size": 16, "chunk_size": 8, "n_repeats": 1, **_CHUNKS}, _randn(2, 1, 400),
    ),
    "asteroid.models:DPTNet": (
        {"n_src": 2, "n_heads": 2, "ff_hid": 16, "chunk_size": 8, "n_repeats": 1, **_CHUNKS}, _randn(2, 1, 400),
    ),
    "asteroid.masknn:SuDORMRF": (
        {"in_chan": 16, "n_src": 2, "bn_chan": 16, "num_blocks": 1, "upsampling_depth": 3}, _randn(2, 16, 64),
    ),
    "speechbrain.lobes.models.VanillaNN:VanillaNN": (
        {"input_shape": (2, 16, 8), "dnn_blocks": 2, "dnn_neurons": 32}, _randn(2, 16, 8),
    ),
    "openunmix.model:OpenUnmix": (
        {"nb_bins": 33, "nb_channels": 2, "hidden_size": 32, "nb_layers": 1, "max_bin": 24}, _randn(2, 2, 33, 10),
    ),
}  # fmt: skip

_GRAPHS: Listed = {
    f"torch_geometric.nn.models:{name}": (options, _graph)
    for name, options in {
        "GCN": _LAYERS, "GraphSAGE": _LAYERS, "GIN": _LAYERS, "GAT": {**_LAYERS, "heads": 2}, "EdgeCNN": _LAYERS,
        "PMLP": _LAYERS, "GraphUNet": {"in_channels": 6, "hidden_channels": 16, "out_channels": 3, "depth": 1},
        "LINKX": {"num_nodes": 8, **_LAYERS}, "MLP": {**_LAYERS, "num_layers": 3},
    }.items()
}  # fmt: skip
_OUTER = {"in_channels": 6, "hidden_channels": 16, "out_channels": 3}
_GRAPHS |= {
    "torch_geometric.nn.models:SGFormer": (_OUTER, lambda: (*_graph(), torch.zeros(8, dtype=torch.long))),
    "torch_geometric.nn.models:Polynormer": (
        {**_OUTER, "local_layers": 2, "global_layers": 1}, lambda: (*_graph(), torch.zeros(8, dtype=torch.long)),
    ),
    "torch_geometric.nn.models:NeuralFingerprint": ({**_OUTER, "num_layers": 2}, _graph),
    "torch_geometric.nn.models:AttentiveFP": (
        {**_OUTER, "edge_dim": 4, "num_layers": 2, "num_timesteps": 2},
        lambda: (*_graph(), torch.randn(20, 4), torch.zeros(8, dtype=torch.long)),
    ),
}  # fmt: skip
_GRAPHS |= {
    f"torch_geometric.nn:{name}": ({"in_channels": 6, "out_channels": 16, **options}, _graph)
    for name, options in {
        "TransformerConv": {"heads": 2}, "GENConv": {"num_layers": 2},
    }.items()
}  # fmt: skip

_IMAGES: Listed = {
    f"torchsr.models:{name}": ({"scale": 2}, _image())
    for name in ("ninasr_b0", "edsr_baseline", "carn", "carn_m", "vdsr")
}
_IMAGES |= {
    "open_clip.transformer:VisionTransformer": (
        {"image_size": 32, "patch_size": 8, "width": 32, "layers": 2, "heads": 4, "mlp_ratio": 2.0, "output_dim": 12},
        _image(32),
    ),
    "open_clip.modified_resnet:ModifiedResNet": (
        {"layers": [1, 1, 1, 1], "output_dim": 16, "heads": 4, "image_size": 64, "width": 8}, _image(64),
    ),
    "stam_pytorch:STAM": (
        {"dim": 32, "image_size": 16, "patch_size": 8, "num_frames": 2, "num_classes": 5, "space_depth": 1,
         "space_heads": 4, "space_mlp_dim": 64, "time_depth": 1, "time_heads": 4, "time_mlp_dim": 64,
         "space_dim_head": 8, "time_dim_head": 8},
        _randn(2, 2, 3, 16, 16),
    ),
    "glom_pytorch:Glom": ({"dim": 16, "levels": 3, "image_size": 16, "patch_size": 8}, _image()),
    "video_diffusion_pytorch:Unet3D": (
        {**_TIMED, "attn_heads": 2, "attn_dim_head": 8, "init_kernel_size": 3},
        lambda: (torch.randn(1, 3, 2, 16, 16), torch.tensor([3])),
    ),
    "rin_pytorch:RIN": (
        {"dim": 32, "image_size": 16, "patch_size": 8, "depth": 1, "num_latents": 8, "dim_latent": 32,
         "latent_self_attn_depth": 1, **_HEADS},
        lambda: (torch.randn(2, 3, 16, 16), torch.rand(2)),
    ),
    "slot_attention:SlotAttention": ({"num_slots": 4, "dim": 16, "hidden_dim": 32}, _randn(2, 8, 16)),
}  # fmt: skip
_IMAGES |= {
    f"torchseg:{name}": ({"encoder_name": "resnet18", "encoder_weights": None, "classes": 3}, _image(64))
    for name in ("Unet", "FPN", "MAnet", "Linknet")
}

_SERIES: Listed = {
    "open_clip.transformer:TextTransformer": (
        {"context_length": 16, "vocab_size": 30, "width": 32, "heads": 4, "layers": 2, "output_dim": 12}, _tokens,
    ),
    "palm_pytorch:PaLM": ({"dim": 32, "num_tokens": 30, "depth": 2, **_HEADS}, _tokens),
    "h_transformer_1d:HTransformer1D": (
        {"num_tokens": 30, "dim": 32, "depth": 1, "max_seq_len": 16, "block_size": 4, **_HEADS}, _tokens,
    ),
    "feedback_transformer_pytorch:FeedbackTransformer": (
        {"num_tokens": 30, "dim": 32, "depth": 1, "mem_len": 4, "seq_len": 4, **_HEADS}, _tokens,
    ),
    "charformer_pytorch:GBST": ({"num_tokens": 30, "dim": 16, "max_block_size": 4, "downsample_factor": 4}, _tokens),
    "etsformer_pytorch:ETSFormer": (
        {"time_features": 3, "model_dim": 32, "layers": 1, "heads": 4, "K": 2},
        lambda: {"x": torch.randn(2, 32, 3), "num_steps_forecast": 4},
    ),
    "nbeats_pytorch.model:NBeatsNet": (
        {"stack_types": ("trend", "generic"), "nb_blocks_per_stack": 2, "hidden_layer_units": 16}, _randn(4, 10),
    ),
    "point_transformer_pytorch:PointTransformerLayer": (
        {"dim": 16, "pos_mlp_hidden_dim": 16, "attn_mlp_hidden_mult": 2},
        lambda: (torch.randn(2, 8, 16), torch.randn(2, 8, 3)),
    ),
    "bidirectional_cross_attention:BidirectionalCrossAttention": (
        {"dim": 16, "context_dim": 12, **_HEADS}, lambda: (torch.randn(2, 8, 16), torch.randn(2, 6, 12)),
    ),
}  # fmt: skip

_FEW += [
    (path, options, [sample])
    for listed in (_OTHERS, _SOUND, _GRAPHS, _IMAGES, _SERIES)
    for path, (options, sample) in listed.items()
]
