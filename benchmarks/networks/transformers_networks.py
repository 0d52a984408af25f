"""Encoders and decoders of the transformers library, built from their config classes with small sizes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

Sample = dict[str, Any]

_VOCABULARY = 96
_TOKENS = 12
_IMAGE = 64
_FRAMES = 20
_TEXT = {"vocab_size": _VOCABULARY}
_ENCODER = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "max_position_embeddings": 64,
}
_VISION = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128} | {
    "image_size": _IMAGE,
    "patch_size": 16,
}


@dataclass(frozen=True)
class Entry:
    """A network: names of its config and model classes, its sizes, and its sample."""

    config: str
    model: str
    sample: Callable[[], Sample]
    sizes: Mapping[str, Any] = field(default_factory=dict)


def _image() -> Sample:
    return {"pixel_values": torch.randn(2, 3, _IMAGE, _IMAGE)}


def _text() -> Sample:
    return {"input_ids": torch.randint(3, _VOCABULARY, (2, _TOKENS))}


def _masked_text() -> Sample:
    # Made by pieces, as the meta device has no values to assign to.
    mask = torch.cat([torch.ones(2, _TOKENS - 2, dtype=torch.long), torch.zeros(2, 2, dtype=torch.long)], 1)
    return _text() | {"attention_mask": mask}


def _text_alone() -> Sample:
    return _text() | {"use_cache": False}


def _pair_of_texts() -> Sample:
    return _text() | {"decoder_input_ids": torch.randint(3, _VOCABULARY, (2, _TOKENS // 2))}


def _pair_alone() -> Sample:
    return _pair_of_texts() | {"use_cache": False}


def _sound() -> Sample:
    return {"input_values": torch.randn(2, 3200)}


def _spectrum_and_text() -> Sample:
    tokens = {f"decoder_{name}": value for name, value in _text().items()}
    return tokens | {"input_features": torch.randn(2, 8, 2 * _FRAMES), "use_cache": False}


def _image_and_text() -> Sample:
    return _image() | _text()


def _image_and_mask() -> Sample:
    return _image() | {"pixel_mask": torch.ones(2, _IMAGE, _IMAGE, dtype=torch.long)}


_SWIN = {"image_size": _IMAGE, "embed_dim": 32, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4}
_SEGFORMER = {"depths": [1, 1, 1, 1], "hidden_sizes": [16, 32, 40, 64], "decoder_hidden_size": 32}
_DETR = {"use_timm_backbone": False, "use_pretrained_backbone": False, "d_model": 64, "num_queries": 8} | {
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 128,
    "decoder_ffn_dim": 128,
}
_CLIP = {"projection_dim": 32, "vision_config": _VISION, "text_config": {**_TEXT, **_ENCODER}}
_DISTILBERT = {**_TEXT, "dim": 64, "n_layers": 2, "n_heads": 4, "hidden_dim": 128, "max_position_embeddings": 64}
_GPT2 = {**_TEXT, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 64}
_T5 = {**_TEXT, "d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 0}
_LLAMA = {**_TEXT, **_ENCODER, "num_key_value_heads": 2}
_GROUPED = {**_LLAMA, "head_dim": 16}
_MAMBA = {**_TEXT, "hidden_size": 64, "num_hidden_layers": 2, "state_size": 8}
_MAMBA2 = {**_MAMBA, "num_heads": 8, "head_dim": 16, "n_groups": 2, "chunk_size": 8}
_BART = {k: v for k, v in _DETR.items() if k.startswith(("d_model", "encoder", "decoder"))} | {
    **_TEXT,
    "max_position_embeddings": 64,
}
_WHISPER = {**_BART, "num_mel_bins": 8, "max_source_positions": _FRAMES, "max_target_positions": 64} | {
    name: number for number, name in enumerate(("pad_token_id", "bos_token_id", "eos_token_id"))
}
_OPT = {**_TEXT, "hidden_size": 64, "word_embed_proj_dim": 64, "num_hidden_layers": 2, "num_attention_heads": 4} | {
    "ffn_dim": 128,
    "max_position_embeddings": 64,
}
_FALCON = {**_TEXT, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
_BLOOM = {**_TEXT, "hidden_size": 64, "n_layer": 2, "n_head": 4}
_GPTJ = {**_TEXT, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 64, "rotary_dim": 8}
_XLNET = {**_TEXT, "d_model": 64, "n_layer": 2, "n_head": 4, "d_inner": 128}
_FUNNEL = {**_TEXT, "block_sizes": [1, 1], "d_model": 64, "n_head": 4, "d_head": 16, "d_inner": 128}
_DEBERTA = {**_TEXT, **_ENCODER, "relative_attention": True, "pos_att_type": ["c2p", "p2c"]}
_DINO = {k: v for k, v in _VISION.items() if k != "intermediate_size"}
_CONVNEXT = {"hidden_sizes": [16, 32, 40, 64], "depths": [1, 1, 1, 1]}
_WAV2VEC = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128, **_TEXT} | {
    "conv_dim": [32, 32, 32],
    "conv_stride": [5, 4, 4],
    "conv_kernel": [10, 3, 3],
    "num_feat_extract_layers": 3,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
}

_ENTRIES = {
    "vit": Entry("ViTConfig", "ViTForImageClassification", _image, _VISION),
    "deit": Entry("DeiTConfig", "DeiTForImageClassification", _image, _VISION),
    "swin": Entry("SwinConfig", "SwinForImageClassification", _image, _SWIN),
    "segformer": Entry("SegformerConfig", "SegformerForSemanticSegmentation", _image, _SEGFORMER),
    "detr": Entry("DetrConfig", "DetrForObjectDetection", _image_and_mask, _DETR),
    "clip": Entry("CLIPConfig", "CLIPModel", _image_and_text, _CLIP),
    "bert": Entry("BertConfig", "BertForSequenceClassification", _masked_text, {**_TEXT, **_ENCODER}),
    "roberta": Entry("RobertaConfig", "RobertaForSequenceClassification", _masked_text, {**_TEXT, **_ENCODER}),
    "distilbert": Entry("DistilBertConfig", "DistilBertForSequenceClassification", _masked_text, _DISTILBERT),
    "gpt2": Entry("GPT2Config", "GPT2LMHeadModel", _text_alone, _GPT2),
    "t5": Entry("T5Config", "T5ForConditionalGeneration", _pair_alone, _T5),
    "llama": Entry("LlamaConfig", "LlamaForCausalLM", _text_alone, _LLAMA),
    "mamba": Entry("MambaConfig", "MambaForCausalLM", _text_alone, _MAMBA),
    # Caches are on by default: then keys and values are outputs, and their widths stay.
    "gpt2 with cache": Entry("GPT2Config", "GPT2LMHeadModel", _text, _GPT2),
    "t5 with cache": Entry("T5Config", "T5ForConditionalGeneration", _pair_of_texts, _T5),
    "llama with cache": Entry("LlamaConfig", "LlamaForCausalLM", _text, _LLAMA),
    "mamba with cache": Entry("MambaConfig", "MambaForCausalLM", _text, _MAMBA),
    "bart": Entry("BartConfig", "BartForConditionalGeneration", _pair_alone, _BART),
    "whisper": Entry("WhisperConfig", "WhisperForConditionalGeneration", _spectrum_and_text, _WHISPER),
    "albert": Entry("AlbertConfig", "AlbertForSequenceClassification", _masked_text, {**_TEXT, **_ENCODER}),
    "electra": Entry("ElectraConfig", "ElectraForSequenceClassification", _masked_text, {**_TEXT, **_ENCODER}),
    "mpnet": Entry("MPNetConfig", "MPNetForSequenceClassification", _masked_text, {**_TEXT, **_ENCODER}),
    "deberta_v2": Entry("DebertaV2Config", "DebertaV2ForSequenceClassification", _masked_text, _DEBERTA),
    "xlnet": Entry("XLNetConfig", "XLNetForSequenceClassification", _text, _XLNET),
    "funnel": Entry("FunnelConfig", "FunnelForSequenceClassification", _masked_text, _FUNNEL),
    "opt": Entry("OPTConfig", "OPTForCausalLM", _text_alone, _OPT),
    "mistral": Entry("MistralConfig", "MistralForCausalLM", _text_alone, {**_LLAMA, "sliding_window": 8}),
    "qwen2": Entry("Qwen2Config", "Qwen2ForCausalLM", _text_alone, _LLAMA),
    "gemma2": Entry("Gemma2Config", "Gemma2ForCausalLM", _text_alone, _GROUPED),
    "phi": Entry("PhiConfig", "PhiForCausalLM", _text_alone, {**_TEXT, **_ENCODER}),
    "falcon": Entry("FalconConfig", "FalconForCausalLM", _text_alone, _FALCON),
    "gpt_neox": Entry("GPTNeoXConfig", "GPTNeoXForCausalLM", _text_alone, {**_TEXT, **_ENCODER}),
    "gptj": Entry("GPTJConfig", "GPTJForCausalLM", _text_alone, _GPTJ),
    "bloom": Entry("BloomConfig", "BloomForCausalLM", _text_alone, _BLOOM),
    "mixtral": Entry("MixtralConfig", "MixtralForCausalLM", _text_alone, {**_LLAMA, "num_local_experts": 4}),
    "mamba2": Entry("Mamba2Config", "Mamba2ForCausalLM", _text_alone, _MAMBA2),
    "beit": Entry("BeitConfig", "BeitForImageClassification", _image, _VISION),
    "dinov2": Entry("Dinov2Config", "Dinov2ForImageClassification", _image, _DINO),
    "siglip": Entry("SiglipVisionConfig", "SiglipVisionModel", _image, _VISION),
    "convnext": Entry("ConvNextConfig", "ConvNextForImageClassification", _image, _CONVNEXT),
    "wav2vec2": Entry("Wav2Vec2Config", "Wav2Vec2ForCTC", _sound, _WAV2VEC),
    "hubert": Entry("HubertConfig", "HubertForCTC", _sound, _WAV2VEC),
}


def names() -> list[str]:
    """The networks that are built here."""
    return list(_ENTRIES)


def build(name: str) -> tuple[nn.Module, Sample]:
    """The network with random weights, and keyword arguments for it.

    Raises:
        ValueError: there is no such network here.
        ImportError: transformers is not installed.
    """
    import transformers  # type: ignore[import-not-found, unused-ignore]

    if name not in _ENTRIES:
        raise ValueError(f"unknown transformers network {name!r}: choose one of {', '.join(_ENTRIES)}")
    entry = _ENTRIES[name]
    config = getattr(transformers, entry.config)(**entry.sizes)
    model: nn.Module = getattr(transformers, entry.model)(config)
    return model, entry.sample()
