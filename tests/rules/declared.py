"""What a module's attributes say of the shapes of its tensors: after pruning they have to say what is so."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

Shapes = dict[str, tuple[int, ...]]


def _convolution(m: Any) -> Shapes:
    if isinstance(m, _ConvTransposeNd):
        return {"weight": (m.in_channels, m.out_channels // m.groups, *m.kernel_size), "bias": (m.out_channels,)}
    return {"weight": (m.out_channels, m.in_channels // m.groups, *m.kernel_size), "bias": (m.out_channels,)}


def _recurrent(m: Any) -> Shapes:
    gates = m.weight_hh_l0.shape[0] // m.hidden_size
    out = m.proj_size or m.hidden_size
    return {
        "weight_ih_l0": (gates * m.hidden_size, m.input_size),
        "weight_hh_l0": (gates * m.hidden_size, out),
        "weight_hr_l0": (m.proj_size, m.hidden_size),
    }


_DECLARED: dict[type[nn.Module], Callable[[Any], Shapes]] = {
    nn.Linear: lambda m: {"weight": (m.out_features, m.in_features), "bias": (m.out_features,)},
    nn.Bilinear: lambda m: {"weight": (m.out_features, m.in1_features, m.in2_features)},
    _ConvNd: _convolution,
    _NormBase: lambda m: {"weight": (m.num_features,), "running_mean": (m.num_features,)},
    nn.GroupNorm: lambda m: {"weight": (m.num_channels,)},
    nn.LayerNorm: lambda m: {"weight": tuple(m.normalized_shape)},
    nn.RMSNorm: lambda m: {"weight": tuple(m.normalized_shape)},
    nn.PReLU: lambda m: {"weight": (m.num_parameters,)},
    nn.Embedding: lambda m: {"weight": (m.num_embeddings, m.embedding_dim)},
    nn.EmbeddingBag: lambda m: {"weight": (m.num_embeddings, m.embedding_dim)},
    nn.RNNBase: _recurrent,
    nn.RNNCellBase: lambda m: (
        {"weight_ih": (m.weight_hh.shape[0], m.input_size), "bias_hh": (m.weight_hh.shape[0],)}
        | {"weight_hh": (m.weight_hh.shape[0] // m.hidden_size * m.hidden_size, m.hidden_size)}
    ),
}


def contradictions(net: nn.Module) -> list[str]:
    """Modules whose attributes say another shape than their tensors have."""
    found = []
    for path, module in net.named_modules():
        for cls, shapes in _DECLARED.items():
            if isinstance(module, cls) and not hasattr(module, "parametrizations"):
                for name, shape in shapes(module).items():
                    tensor = getattr(module, name, None)
                    if tensor is not None and tuple(tensor.shape) != shape:
                        found.append(f"{path}.{name} is {tuple(tensor.shape)}, its module says {shape}")
    return found
