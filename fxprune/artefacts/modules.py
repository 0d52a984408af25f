"""The ``torch.nn`` layers that a saved network may hold, and how each is built again from its own attributes."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn

from fxprune.artefacts.values import decode, encode
from fxprune.errors import ArtefactError

__all__ = ["build_layer", "describe_layer", "is_container", "is_layer"]

_LAYERS = (
    "AdaptiveAvgPool1d AdaptiveAvgPool2d AdaptiveAvgPool3d AdaptiveMaxPool1d AdaptiveMaxPool2d AdaptiveMaxPool3d "
    "AlphaDropout AvgPool1d AvgPool2d AvgPool3d BatchNorm1d BatchNorm2d BatchNorm3d Bilinear CELU ChannelShuffle "
    "CircularPad1d CircularPad2d CircularPad3d ConstantPad1d ConstantPad2d ConstantPad3d Conv1d Conv2d Conv3d "
    "ConvTranspose1d ConvTranspose2d ConvTranspose3d CosineSimilarity CrossMapLRN2d Dropout Dropout1d Dropout2d "
    "Dropout3d ELU Embedding EmbeddingBag FeatureAlphaDropout Flatten Fold GELU GLU GRU GRUCell GroupNorm Hardshrink "
    "Hardsigmoid Hardswish Hardtanh Identity InstanceNorm1d InstanceNorm2d InstanceNorm3d LPPool1d LPPool2d LPPool3d "
    "LSTM LSTMCell LayerNorm LeakyReLU Linear LocalResponseNorm LogSigmoid LogSoftmax MaxPool1d MaxPool2d MaxPool3d "
    "Mish MultiheadAttention PReLU PairwiseDistance PixelShuffle PixelUnshuffle "
    "RMSNorm RNN RNNCell RReLU ReLU ReLU6 ReflectionPad1d ReflectionPad2d ReflectionPad3d ReplicationPad1d "
    "ReplicationPad2d ReplicationPad3d SELU SiLU Sigmoid Softmax Softmax2d Softmin Softplus Softshrink Softsign "
    "SyncBatchNorm Tanh Tanhshrink Threshold Unflatten Unfold Upsample UpsamplingBilinear2d UpsamplingNearest2d "
    "ZeroPad1d ZeroPad2d ZeroPad3d"
).split()
_CONTAINERS = (nn.Module, nn.Sequential, nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)
# A private class that differs from its public one only in how it is quantised.
_STAND_INS: dict[type[nn.Module], type[nn.Module]] = {nn.modules.linear.NonDynamicallyQuantizableLinear: nn.Linear}
# Arguments that only set initial values, or that the layer keeps under another name and that are read below.
_NOT_ATTRIBUTES = {"device", "dtype", "args", "kwargs", "init", "process_group", "min_value", "max_value"}


def is_container(module: nn.Module) -> bool:
    """Whether a module only holds others, so that a plain ``nn.Module`` can stand in for it."""
    return type(module) in _CONTAINERS or isinstance(module, torch.fx.GraphModule)


def is_layer(module: nn.Module) -> bool:
    """Whether a module is of a class of ``torch.nn`` itself that a saved network may hold."""
    kind = _public_class(module)
    return getattr(nn, kind.__name__, None) is kind and kind.__name__ in _LAYERS


def _public_class(module: nn.Module) -> type[nn.Module]:
    return _STAND_INS.get(type(module), type(module))


def describe_layer(path: str, module: nn.Module) -> dict[str, Any]:
    """The class and the constructor arguments of a layer, as JSON data; arguments equal to their default are left out.

    Raises:
        ArtefactError: the layer is not one of ``torch.nn``, or an argument cannot be read back from it.
    """
    kind = _public_class(module)
    if not is_layer(module):
        raise ArtefactError(
            f"cannot save {path!r}: it is a {kind.__module__}.{kind.__qualname__}, and a saved network is built of "
            "torch.nn layers alone"
        )
    arguments = {}
    for parameter in _constructor(kind):
        value = _read(path, module, parameter)
        if parameter.default is parameter.empty or not _same(value, parameter.default):
            arguments[parameter.name] = encode(value)
    dtype = _dtype(module)
    if dtype is not torch.float32:
        arguments["dtype"] = encode(dtype)
    return {"class": kind.__name__, "arguments": arguments}


def build_layer(path: str, description: dict[str, Any]) -> nn.Module:
    """The layer that :func:`describe_layer` described, on the meta device, to be given its tensors.

    Raises:
        ArtefactError: the description names no known layer, or arguments that this version of torch does not take.
    """
    name = description["class"]
    if name not in _LAYERS:
        raise ArtefactError(f"{path!r:.80} is to be a {name!r:.80}, which is no torch.nn layer that a network may hold")
    arguments = {key: decode(value, {}) for key, value in description["arguments"].items()}
    try:
        with torch.device("meta"):
            layer: nn.Module = getattr(nn, name)(**arguments)
    except Exception as error:
        raise ArtefactError(
            f"torch {torch.__version__} cannot build {path!r:.80} as {name}({arguments}): {error}"
        ) from error
    return layer


def _constructor(kind: type[nn.Module]) -> list[inspect.Parameter]:
    parameters = inspect.signature(kind.__init__).parameters
    if issubclass(kind, nn.RNNBase):
        # The recurrent layers themselves take *args.
        extra = inspect.Parameter("nonlinearity", inspect.Parameter.KEYWORD_ONLY, default="tanh")
        parameters = inspect.signature(nn.RNNBase.__init__).parameters
        known = [p for p in parameters.values() if p.name != "mode"]
        return _readable(known + [extra] * (kind is nn.RNN))
    return _readable(list(parameters.values()))


def _readable(parameters: list[inspect.Parameter]) -> list[inspect.Parameter]:
    skipped = _NOT_ATTRIBUTES | {"self"}
    return [p for p in parameters if p.name not in skipped and not p.name.startswith("_")]


def _read(path: str, module: nn.Module, parameter: inspect.Parameter) -> Any:
    name = parameter.name
    if name == "bias":
        return _has_bias(module)
    if name == "nonlinearity" and isinstance(module, nn.RNN):
        return "relu" if module.mode == "RNN_RELU" else "tanh"
    if isinstance(module, nn.MultiheadAttention) and name in ("add_bias_kv", "add_zero_attn"):
        return module.bias_k is not None if name == "add_bias_kv" else module.add_zero_attn
    if name == "p" and isinstance(module, nn.PairwiseDistance):
        return module.norm
    if not hasattr(module, name):
        raise ArtefactError(
            f"cannot save {path!r}: {type(module).__name__} does not keep its argument {name!r} in torch "
            f"{torch.__version__}"
        )
    return getattr(module, name)


def _has_bias(module: nn.Module) -> bool:
    if isinstance(module, nn.MultiheadAttention):
        return module.in_proj_bias is not None
    if isinstance(module, (nn.modules.rnn.RNNCellBase, nn.RNNBase)):
        return bool(module.bias)
    if getattr(module, "weight", None) is None:
        # Without affine parameters, bias says nothing; keep its default.
        return True
    return getattr(module, "bias", None) is not None


def _same(value: Any, default: Any) -> bool:
    """Equality that also knows ``(1, 1)`` for ``1``, as convolutions store their sizes."""
    if isinstance(value, tuple) and isinstance(default, int) and value:
        return all(_same(item, default) for item in value)
    return type(value) is type(default) and bool(value == default)


def _dtype(module: nn.Module) -> torch.dtype:
    dtypes = {p.dtype for p in module.parameters(recurse=False)} | {
        b.dtype for b in module.buffers(recurse=False) if b.is_floating_point()
    }
    return dtypes.pop() if len(dtypes) == 1 else torch.float32
