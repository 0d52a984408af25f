"""One small configuration of the model classes of public packages, with random weights; nothing is downloaded."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterable
from functools import cache, partial
from itertools import chain, zip_longest
from typing import Any

import torch
from torch import nn

from benchmarks.networks import Network, enumerated, small_packages
from benchmarks.networks.enumerated import Maker, Makers, images, modules_of


def wild_names(packages: Iterable[str]) -> list[str]:
    """``package/model`` of each model, one package after the other in turns, so that a part of a sweep tells of all."""
    columns = []
    for package in packages:
        names, turn = [f"{package}/{name}" for name in _makers(package)], _TURNS.get(package, 1)
        columns.append([names[at : at + turn] for at in range(0, len(names), turn)])
    return [name for names in chain.from_iterable(zip_longest(*columns, fillvalue=[])) for name in names]


def wild_network(name: str) -> Network:
    """The network of that name, in eval mode.

    Raises:
        Exception: whatever its package raises where it cannot be built so.
    """
    package, _, model = name.partition("/")
    torch.manual_seed(0)
    network, sample = _makers(package)[model]()
    return Network(network.eval(), sample, sample)


# Packages of many small networks have several in each turn.
_TURNS = {"transformers": 6, "vit-pytorch": 2, "braindecode": 2, "few": 2, "deepctr-torch": 2}


@cache
def _makers(package: str) -> Makers:
    try:
        return PACKAGES[package]()
    except ImportError:  # a package that is not installed has no models
        return {}


def _with(build: Callable[..., nn.Module], sample: Callable[[], Any], **options: Any) -> Maker:
    return lambda: (build(**options), sample())


# -- packages ----------------------------------------------------------------------------------------------------------


def _segmentation_models() -> Makers:
    import segmentation_models_pytorch as smp

    options: dict[str, Any] = {"encoder_weights": None, "classes": 3}
    made = {
        arch: images(partial(smp.create_model, arch=arch, encoder_name="resnet18", **options), 64, 128)
        for arch in smp.MODEL_ARCHITECTURES_MAPPING
        if arch != "dpt"
    }
    for encoder in _first_of_each(smp.encoders.get_encoder_names(), lambda name: name.rstrip("0123456789bdx_")):
        made[f"unet-{encoder}"] = images(
            partial(smp.create_model, arch="unet", encoder_name=encoder, **options), 64, 128
        )
    return made


def _pytorchcv() -> Makers:
    from pytorchcv.model_provider import _models

    def maker(function: Callable[..., nn.Module]) -> Maker:
        def make() -> tuple[nn.Module, Any]:
            model: Any = function()
            full = min(getattr(model, "in_size", (224,)))
            sizes = [*(size for size in (64, 128) if size < full), full]
            return images(lambda: model, *sizes, channels=getattr(model, "in_channels", 3))()

        return make

    first = _first_of_each(_models, lambda name: _models[name].__module__)
    return {name: maker(_models[name]) for name in first}


def _efficientnet() -> Makers:
    from efficientnet_pytorch import EfficientNet

    return {name: images(partial(EfficientNet.from_name, name), 64) for name in ("efficientnet-b0", "efficientnet-b1")}


# What classes of vit-pytorch call their arguments, and values for a small one.
_VIT: dict[str, Any] = {
    "image_size": 32, "patch_size": 8, "num_classes": 5, "dim": 32, "depth": 2, "heads": 4, "mlp_dim": 64,
    "dim_head": 8, "channels": 3, "cls_depth": 1, "mlp_mult": 2, "seq_len": 64, "frames": 4, "frame_patch_size": 2,
    "image_patch_size": 8, "spatial_depth": 2, "temporal_depth": 2, "local_patch_size": 4, "num_register_tokens": 2,
    "window_size": 4, "num_residual_streams": 2, "num_memories_per_layer": 2, "max_seq_len": 64,
    "max_frames": 4, "max_image_size": 32,
}  # fmt: skip


# Those whose options mean something else, with the height and width of their images.
_VIT_ALONE: dict[str, Any] = {
    "jet_vit.JetViT": ({"dim": 32, "image_size": 32, "patch_size": 8, "depth": 2, "heads": 4, "mlp_dim": 64,
     "dim_head": 8}, 32, 32),
    "look_vit.LookViT": ({"dim": 32, "image_size": 32, "depth": 2, "patch_size": 8, "heads": 4, "mlp_factor": 2,
     "dim_head": 8, "highres_patch_size": 4, "highres_mlp_factor": 2, "cross_attn_heads": 4,
     "cross_attn_dim_head": 8}, 32, 32),
    "looped_vit.LoopedViT": ({"dim": 32, "input_shape": (32, 32), "patch_size": 8, "pre_loop_depth": 1,
     "num_looped_blocks": 1, "post_loop_depth": 1, "loop_depth": 2, "heads": 4, "dim_head": 8, "mlp_dim": 64}, 32, 32),
    "max_vit.MaxViT": ({"dim": 16, "depth": (1, 1), "dim_head": 8, "window_size": 4, "mbconv_expansion_rate": 2},
     64, 64),
    "max_vit_with_registers.MaxViT": ({"dim": 16, "depth": (1, 1), "dim_head": 8, "window_size": 4,
     "mbconv_expansion_rate": 2}, 64, 64),
    "pit.PiT": ({"image_size": 32, "patch_size": 8, "dim": 32, "depth": (1, 1), "heads": 4, "mlp_dim": 64,
     "dim_head": 8}, 32, 32),
    "regionvit.RegionViT": ({"dim": (16, 16, 32, 32), "depth": (1, 1, 1, 1), "window_size": 4}, 128, 128),
    "t2t.T2TViT": ({"image_size": 32, "dim": 32, "depth": 2, "heads": 4, "mlp_dim": 64, "dim_head": 8,
     "t2t_layers": ((7, 4), (3, 2))}, 32, 32),
    "cvt.CvT": ({"s1_emb_dim": 16, "s2_emb_dim": 16, "s3_emb_dim": 32, "s1_depth": 1, "s2_depth": 1, "s3_depth": 1},
     64, 64),
    "cct.CCT": ({"img_size": 32, "embedding_dim": 32, "n_conv_layers": 1, "num_layers": 2, "num_heads": 4,
     "mlp_ratio": 2.0}, 32, 32),
    "cross_vit.CrossViT": ({"image_size": 32, "sm_dim": 16, "lg_dim": 32, "sm_patch_size": 8, "lg_patch_size": 16,
     "depth": 1}, 32, 32),
    "mobile_vit.MobileViT": ({"image_size": (64, 64), "dims": [16, 24, 32],
     "channels": [8, 8, 16, 16, 16, 16, 16, 16, 16, 16, 32]}, 64, 64),
    "scalable_vit.ScalableViT": ({"dim": 16, "heads": (2, 2, 4, 4), "depth": (1, 1, 1, 1), "ssa_dim_key": 8,
     "reduction_factor": (4, 2, 1, 1), "window_size": (None, None, None, None)}, 64, 64),
    "crossformer.CrossFormer": ({"dim": (16, 16, 32, 32), "depth": (1, 1, 1, 1), "local_window_size": 4}, 128, 128),
    "sep_vit.SepViT": ({"dim": 16, "depth": (1, 1), "heads": (2, 2), "window_size": 4, "dim_head": 8}, 32, 32),
    "nest.NesT": ({"image_size": 32, "patch_size": 4, "dim": 16, "heads": 2, "num_hierarchies": 3,
     "block_repeats": (1, 1, 1)}, 32, 32),
    "xcit.XCiT": ({"image_size": 32, "patch_size": 8, "dim": 32, "depth": 2, "cls_depth": 1, "heads": 4,
     "mlp_dim": 64}, 32, 32),
}  # fmt: skip


def _vit_pytorch() -> Makers:
    import vit_pytorch

    made: Makers = {}
    for module in modules_of(vit_pytorch):
        for name, found in vars(module).items():
            if not (inspect.isclass(found) and issubclass(found, nn.Module) and found.__module__ == module.__name__):
                continue
            parameters = inspect.signature(found.__init__).parameters
            needed = [p.name for p in parameters.values() if p.default is p.empty and p.name != "self"]
            known = f"{module.__name__.partition('.')[2]}.{name}"
            if known in _VIT_ALONE:
                options, *size = _VIT_ALONE[known]
                made[known] = _with(found, partial(torch.randn, 2, 3, *size), num_classes=5, **options)
            elif {"dim", "num_classes"} <= parameters.keys() and all(
                p in _VIT or p in ("args", "kwargs") for p in needed
            ):
                options = {key: _VIT[key] for key in needed if key in _VIT}
                made[f"{module.__name__.partition('.')[2]}.{name}"] = _with(found, _vit_sample(options), **options)
    return made


def _vit_sample(options: dict[str, Any]) -> Callable[[], Any]:
    if "seq_len" in options:
        return lambda: torch.randn(2, 3, 64)
    if "frames" in options:
        return lambda: torch.randn(2, 3, 4, 32, 32)
    return lambda: torch.randn(2, 3, options.get("image_size", 64), options.get("image_size", 64))


def _monai() -> Makers:
    import monai.networks.nets as nets

    def volume(*shape: int) -> Callable[[], torch.Tensor]:
        return lambda: torch.randn(*shape)

    flat, deep = {"spatial_dims": 2}, {"spatial_dims": 3}
    through, levels = {"in_channels": 1, "out_channels": 2}, {"channels": (8, 16, 32), "strides": (2, 2)}
    plain, small = volume(2, 1, 32, 32), volume(1, 1, 32, 32, 32)
    return {
        "UNet": _with(nets.UNet, plain, **flat, **through, **levels, num_res_units=2),
        "UNet3d": _with(nets.UNet, small, **deep, **through, **levels),
        "BasicUNet": _with(nets.BasicUNet, plain, **flat, **through, features=(8, 8, 16, 16, 32, 8)),
        "BasicUNetPlusPlus": _with(nets.BasicUNetPlusPlus, plain, **flat, **through, features=(8, 8, 16, 16, 32, 8)),
        "AttentionUnet": _with(nets.AttentionUnet, plain, **flat, **through, **levels),
        "DynUNet": _with(
            nets.DynUNet,
            plain,
            **flat,
            **through,
            kernel_size=[3, 3, 3],
            strides=[1, 2, 2],
            upsample_kernel_size=[2, 2],
            filters=[8, 16, 32],
        ),
        "SegResNet": _with(nets.SegResNet, plain, **flat, **through, init_filters=8),
        "SegResNetDS": _with(nets.SegResNetDS, plain, **flat, **through, init_filters=8),
        "VNet": _with(nets.VNet, plain, **flat, **through),
        "HighResNet": _with(nets.HighResNet, plain, **flat, **through),
        "AutoEncoder": _with(nets.AutoEncoder, plain, **flat, **through, channels=(8, 16), strides=(2, 2)),
        "VarAutoEncoder": _with(
            nets.VarAutoEncoder,
            plain,
            **flat,
            in_shape=(1, 32, 32),
            out_channels=1,
            latent_size=4,
            channels=(8, 16),
            strides=(2, 2),
        ),
        "DenseNet121": _with(nets.DenseNet121, plain, **flat, **through),
        "EfficientNetBN": _with(
            nets.EfficientNetBN,
            plain,
            **flat,
            model_name="efficientnet-b0",
            in_channels=1,
            num_classes=3,
            pretrained=False,
        ),
        "SEResNet50": _with(nets.SEResNet50, plain, **flat, in_channels=1, num_classes=3),
        "resnet10": _with(nets.resnet10, plain, **flat, n_input_channels=1, num_classes=3),
        "UNETR": _with(
            nets.UNETR,
            plain,
            **flat,
            **through,
            img_size=(32, 32),
            feature_size=8,
            hidden_size=24,
            mlp_dim=48,
            num_heads=4,
        ),
        "SwinUNETR": _with(nets.SwinUNETR, volume(1, 1, 64, 64), **flat, **through, feature_size=12),
        "ViT": _with(
            nets.ViT,
            plain,
            **flat,
            in_channels=1,
            img_size=(32, 32),
            patch_size=(8, 8),
            hidden_size=24,
            mlp_dim=48,
            num_heads=4,
            num_layers=2,
            classification=True,
        ),
        "ViTAutoEnc": _with(
            nets.ViTAutoEnc,
            plain,
            **flat,
            in_channels=1,
            img_size=(32, 32),
            patch_size=(4, 4),
            hidden_size=24,
            mlp_dim=48,
            num_heads=4,
            num_layers=2,
        ),
        "MedNeXt": _with(nets.MedNeXt, plain, **flat, init_filters=8, **through),
        "FlexibleUNet": _with(nets.FlexibleUNet, plain, **flat, **through, backbone="efficientnet-b0"),
        "Classifier": _with(nets.Classifier, plain, in_shape=(1, 32, 32), classes=3, channels=(8, 16), strides=(2, 2)),
        "Regressor": _with(
            nets.Regressor, plain, in_shape=(1, 32, 32), out_shape=(2,), channels=(8, 16), strides=(2, 2)
        ),
        "Generator": _with(
            nets.Generator, volume(2, 10), latent_shape=(10,), start_shape=(8, 4, 4), channels=(16, 8), strides=(2, 2)
        ),
        "FullyConnectedNet": _with(
            nets.FullyConnectedNet, volume(2, 10), in_channels=10, out_channels=3, hidden_channels=[32, 16]
        ),
        "AutoencoderKL": _with(
            nets.AutoencoderKL,
            plain,
            **flat,
            in_channels=1,
            out_channels=1,
            num_res_blocks=(1, 1),
            channels=(8, 16),
            attention_levels=(False, False),
            latent_channels=4,
            norm_num_groups=4,
        ),
        "VQVAE": _with(
            nets.VQVAE,
            plain,
            **flat,
            in_channels=1,
            out_channels=1,
            channels=(8, 16),
            num_res_layers=1,
            num_res_channels=(8, 16),
            num_embeddings=16,
            embedding_dim=8,
            downsample_parameters=((2, 4, 1, 1), (2, 4, 1, 1)),
            upsample_parameters=((2, 4, 1, 1, 0), (2, 4, 1, 1, 0)),
        ),
        "DiffusionModelUNet": _with(
            nets.DiffusionModelUNet,
            lambda: (torch.randn(2, 1, 32, 32), torch.tensor([3, 7])),
            **flat,
            in_channels=1,
            out_channels=1,
            channels=(8, 16),
            attention_levels=(False, True),
            num_res_blocks=1,
            num_head_channels=8,
            norm_num_groups=4,
        ),
        "Quicknat": _with(nets.Quicknat, plain, num_classes=3, num_channels=1, num_filters=8),
        "HoVerNet": _with(nets.HoVerNet, volume(1, 3, 256, 256), mode="fast", out_classes=3),
        "PatchDiscriminator": _with(nets.PatchDiscriminator, plain, **flat, channels=8, in_channels=1),
    }


# Those whose networks take no dense features.
_SPARSE = ("AFM", "CCPM")


def _deepctr() -> Makers:
    models = importlib.import_module("deepctr_torch.models")
    inputs = importlib.import_module("deepctr_torch.inputs")

    def maker(found: Any) -> Maker:
        def make() -> tuple[nn.Module, Any]:
            columns = [inputs.SparseFeat(f"s{i}", 6, embedding_dim=4) for i in range(4)]
            columns += [inputs.DenseFeat(f"d{i}", 1) for i in range(3)]
            named = inspect.signature(found.__init__).parameters
            tasks = {"task_types": ["binary", "binary"], "task_names": ["a", "b"]} if "task_types" in named else {}
            sparse = columns[:4] if found.__name__ in _SPARSE else columns
            both = (columns, sparse) if "linear_feature_columns" in named else (sparse,)
            rows = torch.cat([torch.randint(0, 6, (4, 4)).float(), torch.rand(4, 3)], 1)
            return found(*both, **tasks), rows

        return make

    return {
        name: maker(found)
        for name, found in vars(models).items()
        if inspect.isclass(found) and issubclass(found, nn.Module) and name not in ("BaseModel", "DIN", "DIEN")
    }


def _torchaudio() -> Makers:
    import torchaudio.models as models

    lengths = torch.tensor([20, 20])
    speech = {"extractor_mode": "group_norm", "extractor_conv_layer_config": [(16, 10, 5), (16, 3, 2)]}
    speech |= {"extractor_conv_bias": False, "encoder_embed_dim": 32, "encoder_projection_dropout": 0.0}
    speech |= {"encoder_pos_conv_kernel": 8, "encoder_pos_conv_groups": 4, "encoder_num_layers": 2}
    speech |= {"encoder_num_heads": 4, "encoder_attention_dropout": 0.0, "encoder_ff_interm_features": 64}
    speech |= {"encoder_ff_interm_dropout": 0.0, "encoder_dropout": 0.0, "encoder_layer_norm_first": False}
    speech |= {"encoder_layer_drop": 0.0, "aux_num_out": 7}
    return {
        "Conformer": _with(
            models.Conformer,
            lambda: (torch.randn(2, 20, 16), lengths),
            input_dim=16,
            num_heads=4,
            ffn_dim=32,
            num_layers=2,
            depthwise_conv_kernel_size=5,
        ),
        "ConvTasNet": _with(
            models.ConvTasNet,
            lambda: torch.randn(2, 1, 800),
            enc_num_feats=32,
            msk_num_feats=16,
            msk_num_hidden_feats=32,
            msk_num_layers=2,
            msk_num_stacks=2,
        ),
        "DeepSpeech": _with(models.DeepSpeech, lambda: torch.randn(2, 1, 20, 16), n_feature=16, n_hidden=32, n_class=7),
        "Emformer": _with(
            models.Emformer,
            lambda: (torch.randn(2, 20, 16), lengths - 4),
            input_dim=16,
            num_heads=4,
            ffn_dim=32,
            num_layers=2,
            segment_length=4,
            right_context_length=4,
        ),
        "HDemucs": _with(models.HDemucs, lambda: torch.randn(1, 2, 22050), sources=["a", "b"], channels=8),
        "Wav2Letter": _with(models.Wav2Letter, lambda: torch.randn(2, 1, 1600), num_classes=7),
        "Wav2Vec2": _with(models.wav2vec2_model, lambda: torch.randn(2, 1600), **speech),
        "WaveRNN": _with(
            models.WaveRNN,
            lambda: (torch.randn(2, 1, 80), torch.randn(2, 1, 8, 8)),
            upsample_scales=[2, 2, 5],
            n_classes=8,
            hop_length=20,
            n_res_block=2,
            n_rnn=16,
            n_fc=16,
            n_hidden=16,
            n_freq=8,
            n_output=16,
        ),
        "RNNT": _with(
            models.emformer_rnnt_model,
            lambda: (torch.randn(2, 24, 8), torch.tensor([16, 16]), torch.randint(0, 9, (2, 5)), torch.tensor([5, 5])),
            input_dim=8,
            encoding_dim=16,
            num_symbols=9,
            segment_length=8,
            right_context_length=4,
            time_reduction_input_dim=8,
            time_reduction_stride=2,
            transformer_num_heads=2,
            transformer_ffn_dim=32,
            transformer_num_layers=1,
            transformer_dropout=0.0,
            transformer_activation="gelu",
            transformer_left_context_length=4,
            transformer_max_memory_size=0,
            transformer_weight_init_scale_strategy="depthwise",
            transformer_tanh_on_mem=True,
            symbol_embedding_dim=16,
            num_lstm_layers=1,
            lstm_layer_norm=True,
            lstm_layer_norm_epsilon=1e-3,
            lstm_dropout=0.0,
        ),
    }


def _x_transformers() -> Makers:
    import x_transformers as x

    def tokens() -> torch.Tensor:
        return torch.randint(0, 30, (2, 12))

    def wrapper(layers: type, **options: Any) -> Maker:
        return lambda: (
            x.TransformerWrapper(
                num_tokens=30, max_seq_len=16, attn_layers=layers(dim=32, depth=2, heads=4, **options)
            ),
            tokens(),
        )

    options: dict[str, dict[str, Any]] = {
        "plain": {}, "rotary": {"rotary_pos_emb": True}, "alibi": {"alibi_pos_bias": True}, "glu": {"ff_glu": True},
        "rmsnorm": {"use_rmsnorm": True}, "flash": {"attn_flash": True}, "one_kv_head": {"attn_one_kv_head": True},
        "kv_heads": {"attn_kv_heads": 2}, "t5": {"rel_pos_bias": True}, "sandwich": {"sandwich_norm": True},
        "macaron": {"macaron": True}, "gate_residual": {"gate_residual": True}, "qk_norm": {"attn_qk_norm": True},
        "relu_squared": {"ff_relu_squared": True}, "no_bias": {"ff_no_bias": True}, "swish": {"ff_swish": True},
        "talking_heads": {"attn_pre_talking_heads": True, "attn_post_talking_heads": True},
        "memories": {"attn_num_mem_kv": 2}, "head_scale": {"attn_head_scale": True},
        "gate_values": {"attn_gate_values": True}, "on_attention": {"attn_on_attn": True},
        "sparse_topk": {"attn_sparse_topk": 4}, "scalenorm": {"use_scalenorm": True},
        "dynamic_bias": {"dynamic_pos_bias": True}, "xpos": {"rotary_xpos": True}, "shift": {"shift_tokens": 1},
        "post_norm": {"pre_norm": False}, "normed_hidden": {"ff_post_act_ln": True},
        "value_head": {"attn_value_dim_head": 24}, "scaled_residual": {"scale_residual": True},
    }  # fmt: skip
    made = {f"decoder-{name}": wrapper(x.Decoder, **given) for name, given in options.items()}
    made |= {f"encoder-{name}": wrapper(x.Encoder, **given) for name, given in options.items()}
    made["vit"] = lambda: (
        x.ViTransformerWrapper(
            image_size=32, patch_size=8, num_classes=5, attn_layers=x.Encoder(dim=32, depth=2, heads=4)
        ),
        torch.randn(2, 3, 32, 32),
    )
    made["continuous"] = lambda: (
        x.ContinuousTransformerWrapper(
            dim_in=6, dim_out=7, max_seq_len=16, attn_layers=x.Encoder(dim=32, depth=2, heads=4)
        ),
        torch.randn(2, 12, 6),
    )
    return made


def _kornia() -> Makers:
    import kornia.feature as features

    patches = {name: _with(getattr(features, name), _patches, pretrained=False) for name in _KORNIA_PATCHES}
    return patches | {
        "KeyNet": _with(features.KeyNet, lambda: torch.randn(2, 1, 64, 64), pretrained=False),
        "OriNet": _with(features.OriNet, _patches, pretrained=False),
    }


_KORNIA_PATCHES = ("HardNet", "HardNet8", "HyNet", "SOSNet", "TFeat")


def _patches() -> torch.Tensor:
    return torch.randn(2, 1, 32, 32)


def _diffusers() -> Makers:
    import diffusers as d

    step = torch.tensor([3, 7])
    unet = {"block_out_channels": (16, 32), "layers_per_block": 1, "norm_num_groups": 8, "sample_size": 16}
    image = torch.randn(2, 4, 16, 16)
    text = torch.randn(2, 6, 12)
    joint = {"num_attention_heads": 2, "attention_head_dim": 8}
    return {
        "UNet2DModel": _with(
            d.UNet2DModel,
            lambda: (torch.randn(2, 3, 16, 16), step),
            **unet,
            down_block_types=("DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D"),
            attention_head_dim=8,
        ),
        "UNet2DConditionModel": _with(
            d.UNet2DConditionModel,
            lambda: (image, step, text),
            **unet,
            cross_attention_dim=12,
            attention_head_dim=4,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        ),
        "AutoencoderKL": _with(
            d.AutoencoderKL,
            lambda: torch.randn(2, 3, 16, 16),
            block_out_channels=(16, 32),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            norm_num_groups=8,
        ),
        "AsymmetricAutoencoderKL": _with(
            d.AsymmetricAutoencoderKL,
            lambda: torch.randn(2, 3, 16, 16),
            down_block_types=("DownEncoderBlock2D",) * 2,
            down_block_out_channels=(16, 32),
            up_block_types=("UpDecoderBlock2D",) * 2,
            up_block_out_channels=(16, 32),
            norm_num_groups=8,
        ),
        "VQModel": _with(
            d.VQModel,
            lambda: torch.randn(2, 3, 16, 16),
            block_out_channels=(16, 32),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            norm_num_groups=8,
        ),
        "AutoencoderTiny": _with(
            d.AutoencoderTiny,
            lambda: torch.randn(2, 3, 16, 16),
            encoder_block_out_channels=(16, 16),
            decoder_block_out_channels=(16, 16),
            num_encoder_blocks=(1, 1),
            num_decoder_blocks=(1, 1),
        ),
        "AutoencoderDC": _with(
            d.AutoencoderDC,
            lambda: torch.randn(2, 3, 32, 32),
            latent_channels=4,
            attention_head_dim=8,
            encoder_block_types=("ResBlock", "ResBlock"),
            decoder_block_types=("ResBlock", "ResBlock"),
            encoder_block_out_channels=(16, 32),
            decoder_block_out_channels=(16, 32),
            encoder_layers_per_block=(1, 1),
            decoder_layers_per_block=(1, 1),
            encoder_qkv_multiscales=((), ()),
            decoder_qkv_multiscales=((), ()),
        ),
        "UNet1DModel": _with(
            d.UNet1DModel,
            lambda: (torch.randn(2, 2, 32), step),
            block_out_channels=(16, 16, 32),
            in_channels=2,
            out_channels=2,
            extra_in_channels=32,
        ),
        "UNet3DConditionModel": _with(
            d.UNet3DConditionModel,
            lambda: (torch.randn(1, 4, 4, 16, 16), torch.tensor([3]), torch.randn(1, 6, 12)),
            **unet,
            cross_attention_dim=12,
            attention_head_dim=4,
            down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
            up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
        ),
        "ControlNetModel": _with(
            d.ControlNetModel,
            lambda: (image, step, text, torch.randn(2, 3, 128, 128)),
            block_out_channels=(16, 32),
            layers_per_block=1,
            norm_num_groups=8,
            cross_attention_dim=12,
            attention_head_dim=4,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            conditioning_embedding_out_channels=(8, 8, 16, 16),
        ),
        "DiTTransformer2DModel": _with(
            d.DiTTransformer2DModel,
            lambda: (image, step, torch.tensor([1, 2])),
            **joint,
            num_layers=2,
            sample_size=16,
            in_channels=4,
            out_channels=8,
            num_embeds_ada_norm=10,
            norm_num_groups=8,
        ),
        "Transformer2DModel": _with(
            d.Transformer2DModel,
            lambda: (torch.randn(2, 16, 8, 8),),
            **joint,
            num_layers=2,
            in_channels=16,
            norm_num_groups=8,
        ),
        "PixArtTransformer2DModel": _with(
            d.PixArtTransformer2DModel,
            lambda: {"hidden_states": image, "encoder_hidden_states": text, "timestep": step},
            **joint,
            num_layers=2,
            sample_size=16,
            cross_attention_dim=16,
            caption_channels=12,
            in_channels=4,
            out_channels=8,
            use_additional_conditions=False,
        ),
        "SD3Transformer2DModel": _with(
            d.SD3Transformer2DModel,
            lambda: (image, text, torch.randn(2, 20), step),
            **joint,
            num_layers=2,
            sample_size=16,
            in_channels=4,
            out_channels=4,
            joint_attention_dim=12,
            caption_projection_dim=16,
            pooled_projection_dim=20,
            pos_embed_max_size=16,
        ),
        "SanaTransformer2DModel": _with(
            d.SanaTransformer2DModel,
            lambda: (image, text, step),
            num_attention_heads=2,
            attention_head_dim=8,
            num_cross_attention_heads=2,
            cross_attention_head_dim=8,
            cross_attention_dim=16,
            num_layers=2,
            sample_size=16,
            patch_size=1,
            in_channels=4,
            out_channels=4,
            caption_channels=12,
        ),
        "Lumina2Transformer2DModel": _with(
            d.Lumina2Transformer2DModel,
            lambda: (image, step, text, torch.ones(2, 6, dtype=torch.bool)),
            sample_size=16,
            in_channels=4,
            hidden_size=24,
            num_layers=1,
            num_refiner_layers=1,
            num_attention_heads=3,
            num_kv_heads=1,
            multiple_of=8,
            cap_feat_dim=12,
            axes_dim_rope=(4, 2, 2),
            axes_lens=(32, 32, 32),
        ),
        "FluxTransformer2DModel": _with(
            d.FluxTransformer2DModel,
            lambda: {
                "hidden_states": torch.randn(1, 16, 4),
                "encoder_hidden_states": torch.randn(1, 6, 12),
                "pooled_projections": torch.randn(1, 20),
                "timestep": torch.tensor([0.3]),
                "img_ids": torch.zeros(16, 3),
                "txt_ids": torch.zeros(6, 3),
            },
            in_channels=4,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=12,
            pooled_projection_dim=20,
            axes_dims_rope=(2, 2, 4),
        ),
    }


PACKAGES: dict[str, Callable[[], Makers]] = {
    "segmentation-models-pytorch": _segmentation_models,
    "pytorchcv": _pytorchcv,
    "efficientnet-pytorch": _efficientnet,
    "vit-pytorch": _vit_pytorch,
    "monai": _monai,
    "deepctr-torch": _deepctr,
    "torchaudio": _torchaudio,
    "x-transformers": _x_transformers,
    "kornia": _kornia,
    "diffusers": _diffusers,
    "ultralytics": enumerated.ultralytics_makers,
    "torchvision": enumerated.torchvision_makers,
    "timm": enumerated.timm_makers,
    "braindecode": enumerated.braindecode_makers,
    "spandrel": enumerated.spandrel_makers,
    "pretrainedmodels": enumerated.pretrainedmodels_makers,
    "tsai": small_packages.tsai_makers,
    "few": small_packages.small_packages_makers,
    "transformers": enumerated.transformers_makers,
}


# What all processes of a sweep share.
IMPORTS = """
    benchmarks.wild benchmarks.networks.enumerated segmentation_models_pytorch pytorchcv.model_provider vit_pytorch
    monai.networks.nets deepctr_torch.models torchaudio.models x_transformers kornia.feature torch.export
    diffusers.models.modeling_utils diffusers.models.unets.unet_2d_condition transformers.modeling_utils
    transformers.models.auto.modeling_auto ultralytics.nn.tasks braindecode.models spandrel
""".split()


def _first_of_each(names: Iterable[str], family: Callable[[str], str]) -> list[str]:
    return list({family(name): name for name in reversed(list(names))}.values())[::-1]
