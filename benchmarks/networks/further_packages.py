"""More classes of packages that have but a few: for sound, graphs, super-resolution, texts, series and video."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

Listed = dict[str, tuple[dict[str, Any], Callable[[], Any]]]


def _randn(*shape: int) -> Callable[[], Any]:
    return partial(torch.randn, *shape)


def _tokens() -> torch.Tensor:
    return torch.randint(0, 30, (2, 16))


def _graph() -> tuple[torch.Tensor, torch.Tensor]:
    """Features of eight nodes, and twenty edges."""
    return torch.randn(8, 6), torch.randint(0, 8, (2, 20))


def _image(size: int = 16) -> Callable[[], Any]:
    return _randn(2, 3, size, size)


_HEADS = {"heads": 4, "dim_head": 8}
_LAYERS = {"in_channels": 6, "hidden_channels": 16, "num_layers": 2, "out_channels": 3}
_TIMED = {"dim": 16, "dim_mults": (1, 2)}
_CHUNKS = {"n_filters": 16, "kernel_size": 16, "stride": 8}

SOUND: Listed = {
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

GRAPHS: Listed = {
    f"torch_geometric.nn.models:{name}": (options, _graph)
    for name, options in {
        "GCN": _LAYERS, "GraphSAGE": _LAYERS, "GIN": _LAYERS, "GAT": {**_LAYERS, "heads": 2}, "EdgeCNN": _LAYERS,
        "PMLP": _LAYERS, "GraphUNet": {"in_channels": 6, "hidden_channels": 16, "out_channels": 3, "depth": 1},
        "LINKX": {"num_nodes": 8, **_LAYERS}, "MLP": {**_LAYERS, "num_layers": 3},
    }.items()
}  # fmt: skip
_OUTER = {"in_channels": 6, "hidden_channels": 16, "out_channels": 3}
GRAPHS |= {
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
GRAPHS |= {
    f"torch_geometric.nn:{name}": ({"in_channels": 6, "out_channels": 16, **options}, _graph)
    for name, options in {
        "TransformerConv": {"heads": 2}, "GENConv": {"num_layers": 2},
    }.items()
}  # fmt: skip

IMAGES: Listed = {
    f"torchsr.models:{name}": ({"scale": 2}, _image())
    for name in ("ninasr_b0", "edsr_baseline", "carn", "carn_m", "vdsr")
}
IMAGES |= {
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
IMAGES |= {
    f"torchseg:{name}": ({"encoder_name": "resnet18", "encoder_weights": None, "classes": 3}, _image(64))
    for name in ("Unet", "FPN", "MAnet", "Linknet")
}

SERIES: Listed = {
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

FURTHER: Listed = {**SOUND, **GRAPHS, **IMAGES, **SERIES}
