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


def _decoder_text() -> Sample:
    return _text() | {"use_cache": False}


def _pair_of_texts() -> Sample:
    return _decoder_text() | {"decoder_input_ids": torch.randint(3, _VOCABULARY, (2, _TOKENS // 2))}


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
_MAMBA = {**_TEXT, "hidden_size": 64, "num_hidden_layers": 2, "state_size": 8}

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
    "gpt2": Entry("GPT2Config", "GPT2LMHeadModel", _decoder_text, _GPT2),
    "t5": Entry("T5Config", "T5ForConditionalGeneration", _pair_of_texts, _T5),
    "llama": Entry("LlamaConfig", "LlamaForCausalLM", _decoder_text, _LLAMA),
    "mamba": Entry("MambaConfig", "MambaForCausalLM", _decoder_text, _MAMBA),
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
