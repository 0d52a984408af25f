"""The modules of torch that a saved network may hold: layers of ``torch.nn`` and containers.

A layer is a class of ``torch.nn`` and its constructor's arguments; a container only holds others and has no state.
"""

from __future__ import annotations

import inspect
from functools import cache
from typing import Any

import torch
from torch import nn

from fxprune.errors import ArtefactError
from fxprune.saving.values import PLAIN
from fxprune.util.paths import PARTS, Parts

_KINDS = (nn.Sequential, nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict, *PARTS)
_CONTAINERS: dict[str, type[nn.Module]] = {"Module": Parts, **{kind.__name__: kind for kind in _KINDS}}
# Classes that are abstract, take modules or functions, do not store their arguments, or have no shapes yet.
_NOT_LAYERS = "Base Container DataParallel Lazy LinearCrossEntropy Transformer TripletMarginWithDistance".split()
# A private class that differs from its public one only in quantisation.
_STAND_INS: dict[type[nn.Module], type[nn.Module]] = {nn.modules.linear.NonDynamicallyQuantizableLinear: nn.Linear}
# Arguments that only set initial values, or that the layer stores under another name (read below).
_NOT_ATTRIBUTES = set("device dtype args kwargs init process_group min_value max_value size_average reduce".split())


@cache
def layer_names() -> frozenset[str]:
    """Names of the classes of ``torch.nn`` that a saved network may hold."""
    classes = {name: kind for name, kind in vars(nn).items() if isinstance(kind, type) and issubclass(kind, nn.Module)}
    return frozenset(
        name
        for name, kind in classes.items()
        if kind.__name__ == name
        and kind.__module__.startswith("torch.nn.modules.")
        and not any(word in name for word in _NOT_LAYERS)
        and name not in _CONTAINERS
    )


def is_container(module: nn.Module) -> bool:
    """Whether a module only holds other modules."""
    return type(module) in (nn.Module, *_CONTAINERS.values())


def empty_container(like: nn.Module) -> nn.Module:
    """An empty container of the class that ``like``, a container, has after saving and loading."""
    return Parts() if type(like) is nn.Module else type(like)()


def container_name(module: nn.Module) -> str | None:
    """The class name of a container without further attributes; None for any other module."""
    if not is_container(module):
        return None
    twin = empty_container(module)
    name = "Module" if type(twin) is Parts else type(twin).__name__
    twin._parameters, twin._buffers, twin._modules = module._parameters, module._buffers, module._modules
    finish_container(twin)
    held = {**module._parameters, **module._buffers, **module._modules}
    as_usual = all(_plain_state(twin).get(key, twin) == value for key, value in _plain_state(module).items())
    return name if as_usual and None not in held.values() else None


def _plain_state(module: nn.Module) -> dict[str, Any]:
    """Attributes except the mode and hooks, which callers check themselves."""
    skipped = {*vars(nn.Module()), "meta"}
    return {key: value for key, value in vars(module).items() if key not in skipped}


def build_container(name: Any) -> nn.Module:
    """An empty container. Raises ArtefactError: there is no container of that name."""
    if not isinstance(name, str) or name not in _CONTAINERS:
        raise ArtefactError(f"{name!r:.80} is not a container")
    return _CONTAINERS[name]()


def finish_container(module: nn.Module) -> None:
    """Set the attributes in which two containers record their tensors, once they hold them."""
    if isinstance(module, nn.ParameterList):
        module._size = len(module._parameters)
    if isinstance(module, nn.ParameterDict):
        module._keys = dict.fromkeys(module._parameters)


def submodule(owner: nn.Module, path: str) -> nn.Module:
    """The module at a path; only registered submodules are looked up. Raises ArtefactError: there is none."""
    module = owner
    for name in path.split(".") if path else []:
        child = module._modules.get(name)
        if child is None:
            raise ArtefactError(f"it names the module {path!r:.80}, which the network does not hold")
        module = child
    return module


def is_layer(module: nn.Module) -> bool:
    """Whether a module's class is one of ``torch.nn`` that a saved network may hold."""
    kind = public_class(module)
    return getattr(nn, kind.__name__, None) is kind and kind.__name__ in layer_names()


def public_class(module: nn.Module) -> type[nn.Module]:
    """The class of a module, or the documented class that it stands in for."""
    return _STAND_INS.get(type(module), type(module))


def describe_layer(path: str, module: nn.Module) -> dict[str, Any]:
    """Class and arguments of a layer as JSON data, without defaults. Raises ArtefactError: it is not such a layer."""
    kind = public_class(module)
    if not is_layer(module):
        raise ArtefactError(
            f"cannot save {path!r}: it is a {kind.__module__}.{kind.__qualname__}, and a saved network is built of "
            "torch.nn layers alone"
        )
    arguments = {}
    for parameter in _constructor(kind):
        value = _read(path, module, parameter)
        if parameter.default is parameter.empty or not _same(value, parameter.default):
            arguments[parameter.name] = PLAIN.write(value)
    dtype = _dtype(module)
    if dtype is not torch.float32 and "dtype" in inspect.signature(kind.__init__).parameters:
        arguments["dtype"] = PLAIN.write(dtype)
    description = {"class": kind.__name__, "arguments": arguments}
    _check_described(path, module, description)
    return description


def _check_described(path: str, module: nn.Module, description: dict[str, Any]) -> None:
    """Raise ArtefactError unless a layer constructed from the arguments has the same attributes."""
    twin = build_layer(path, description)
    for name, value in _plain_state(twin).items():
        if name.startswith("_") or name in _NOT_ATTRIBUTES:
            continue
        if not _equal(vars(module).get(name, value), value):
            raise ArtefactError(
                f"cannot save {path!r}: its {name!r} is {vars(module)[name]!r:.80}, but a {type(module).__name__} made "
                f"of its other attributes has {value!r:.80}, and a folder holds only constructor arguments"
            )


def build_layer(path: str, description: dict[str, Any]) -> nn.Module:
    """The layer that :func:`describe_layer` described, on the meta device. Raises ArtefactError: there is none."""
    name = description["class"]
    if not isinstance(name, str) or name not in layer_names():
        raise ArtefactError(f"{path!r:.80} is a {name!r:.80}, which is not a torch.nn layer that a network may hold")
    arguments = {key: PLAIN.read(value) for key, value in description["arguments"].items()}
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
        # The signatures of the recurrent layers themselves are *args.
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
    if name == "cutoffs":  # the layer appends the number of classes
        return [*module.cutoffs][:-1]  # type: ignore[misc]
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
        # Without affine parameters, bias has no effect; keep its default.
        return True
    return getattr(module, "bias", None) is not None


def _same(value: Any, default: Any) -> bool:
    """Equality that also accepts ``(1, 1)`` for ``1``, because convolutions store their sizes so."""
    if isinstance(value, tuple) and isinstance(default, int) and value:
        return all(_same(item, default) for item in value)
    return type(value) is type(default) and bool(value == default)


def _equal(left: Any, right: Any) -> bool:
    return bool(left == right) or (left != left and right != right) or _same(left, right)


def _dtype(module: nn.Module) -> torch.dtype:
    dtypes = {p.dtype for p in module.parameters(recurse=False)} | {
        b.dtype for b in module.buffers(recurse=False) if b.is_floating_point()
    }
    return dtypes.pop() if len(dtypes) == 1 else torch.float32
