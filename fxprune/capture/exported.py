"""Exported programs, wrapped networks and models with TorchScript parts, turned into networks that can be traced.

Each aten op of an exported program is written as the call of torch that it came from. TorchScript parts hold tensors.
Wrappers, which run the network that they hold on other devices or as compiled code, are taken off.
"""

from __future__ import annotations

import operator
import sys
from collections.abc import Callable, Mapping
from pathlib import PurePath
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from fxprune.errors import ModelError
from fxprune.util.copies import attributes_of
from fxprune.util.paths import modules_of, named_modules

Call = tuple[str, Any, tuple[Any, ...], dict[str, Any]]


def network_of(model: Any) -> nn.Module:
    """The network inside a model's wrappers, or the one that an exported program describes.

    Wrappers of parts become plain calls. Raises ModelError: an exported program cannot be written so.
    """
    exporter = sys.modules.get("torch.export")  # where it is not loaded, nothing was exported
    if exporter is not None and isinstance(model, exporter.ExportedProgram):
        return _written(model)
    if isinstance(model, (str, PurePath)):
        kind, do = "a file name", "load it (fxprune.load, torch.export.load)"
        if str(model).endswith(".onnx"):
            do = "make a module of it (onnx2torch.convert)"
        elif isinstance(model, str) and model.replace("-", "_").isidentifier():
            kind, do = f"the word {model!r}", "build the network (torchvision.models.get_model, timm.create_model)"
        raise ModelError(f"the model is {kind}: {do} and pass that")
    # Whether it is a network is asked when it is captured.
    model = unwrapped(model)
    if not isinstance(model, nn.Module) or isinstance(model, torch.jit.ScriptModule):
        return model
    plain = not any(isinstance(m, torch.jit.ScriptModule) or _name_inside(m) for m in modules_of(model))
    return model if plain else _with_plain_parts(model, {}, "")


def unwrapped(model: Any) -> Any:
    """The network inside all wrappers around it; anything else as it is."""
    while name := _name_inside(model):
        model = model._modules[name]
    return model


def wrappers_in_words(model: Any) -> tuple[str, ...]:
    """A note that names the wrappers that :func:`network_of` takes off; none if there are none."""
    names = []
    while name := _name_inside(model):
        names.append(type(model).__name__)
        model = model._modules[name]
    if isinstance(model, nn.Module):
        names += [f"{type(m).__name__} ({path})" for path, m in named_modules(model) if _name_inside(m)]
    return (f"pruned without {', '.join(names)}: wrap the result again where you need it",) if names else ()


def _name_inside(module: Any) -> str:
    """Under which name a wrapper without hooks holds its network; "" for anything else."""
    kind: Any = type(module)
    if not isinstance(module, nn.Module) or module._forward_hooks or module._forward_pre_hooks:
        return ""
    if kind in (nn.parallel.DistributedDataParallel, nn.DataParallel):
        return "module"
    # By name, because importing torch._dynamo takes seconds.
    return "_orig_mod" if kind.__module__.startswith("torch._dynamo.") and "_orig_mod" in module._modules else ""


class Unwrapped(nn.Module):
    """Stands for a wrapper of a part: it holds the same network under the same name, and calls it."""

    def __init__(self, wrapper: nn.Module, parts: Mapping[str, nn.Module | None]) -> None:
        super().__init__()
        self.training = wrapper.training
        self._modules.update(parts)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        (inside,) = self._modules.values()
        return inside(*args, **kwargs)  # type: ignore[misc]

    def __getattr__(self, name: str) -> Any:
        parts = self.__dict__.get("_modules", {})
        if name in parts:
            return parts[name]
        if not parts or name.startswith("__"):
            raise AttributeError(name)
        return getattr(next(iter(parts.values())), name)


class ScriptedPart(nn.Module):
    """Holds the tensors of a TorchScript module, which has no Python code to trace; calling it raises."""

    def __init__(self, path: str, part: nn.Module) -> None:
        super().__init__()
        self.path, self.training = path, part.training
        self._parameters.update(part._parameters.items())
        self._buffers.update(part._buffers.items())
        self._modules.update((n, ScriptedPart(f"{path}.{n}", m)) for n, m in part._modules.items() if m is not None)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        raise ModelError(f"{self.path} is a TorchScript module: pass the Python module it was made from")


def _with_plain_parts(module: nn.Module, made: dict[int, nn.Module], path: str) -> nn.Module:
    """The module itself if nothing in it is scripted or wrapped, else a copy of its class around the same tensors."""
    if id(module) not in made and isinstance(module, torch.jit.ScriptModule):
        made[id(module)] = ScriptedPart(path, module)
    elif id(module) not in made:
        held = module._modules.items()
        parts = {n: m if m is None else _with_plain_parts(m, made, f"{path}.{n}".lstrip(".")) for n, m in held}
        made[id(module)] = module
        if _name_inside(module):
            made[id(module)] = Unwrapped(module, parts)
        elif any(parts[name] is not part for name, part in held):
            made[id(module)] = twin = object.__new__(type(module))
            vars(twin).update(attributes_of(module), _modules=parts)
    return made[id(module)]


def _written(program: Any) -> fx.GraphModule:
    made = program.module(check_guards=False)
    graph = made.graph
    for node in list(graph.nodes):
        if not isinstance(node.target, torch._ops.OpOverload):
            continue
        call = _as_torch(node.target, node.args, node.kwargs)
        if call is not None:
            with graph.inserting_before(node):
                node.replace_all_uses_with(graph.create_node(*call, name=node.name))
        graph.erase_node(node)
    network = fx.GraphModule(_holder(made), graph, "Exported")
    try:
        _compare(program, network)
    except (AssertionError, RuntimeError, TypeError) as error:
        raise ModelError(
            f"the exported program cannot be written as calls of torch ({str(error).splitlines()[0]:.200}): pass the "
            "module that it was exported from"
        ) from error
    return network


def _holder(made: nn.Module) -> nn.Module:
    """The tensors of the program under their names, without the hooks that check its arguments."""
    root = nn.Module()
    for name, value in made.__dict__.items():
        if isinstance(value, torch.Tensor):
            setattr(root, name, value)
    root._parameters.update(made._parameters)
    root._buffers.update(made._buffers)
    root._modules.update(made._modules)
    return root


def _compare(program: Any, network: nn.Module) -> None:
    """Run both on the program's own example, where it has one, with the same random numbers."""
    tensors = [t for t in pytree.tree_leaves(program.example_inputs) if isinstance(t, torch.Tensor)]
    held = (*tensors, *network.state_dict().values())
    if not tensors or any(t.is_meta or isinstance(t, torch._subclasses.FakeTensor) for t in held):
        return
    args, kwargs = program.example_inputs
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    answers = []
    for run in (program.module(check_guards=False), network):
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(0)
            answers.append(run(*args, **kwargs))
            network.load_state_dict(state)
    torch.testing.assert_close(answers[1], answers[0], equal_nan=True)


def _as_torch(overload: Any, args: tuple[Any, ...], given: dict[str, Any]) -> Call | None:
    """The torch call that an op of a program came from; None for a check added by the exporter."""
    namespace, name = overload._schema.name.split("::")
    kwargs = {key: value for key, value in given.items() if key not in _OF_THE_EXPORTER}
    if namespace != "aten":
        return "call_function", overload, args, given
    if name in _CHECKS:
        return None
    if name in _UNCHECKED:
        raise ModelError(
            f"the exported program calls {name}, whose kernel takes states of a wrong size unasked: pass the "
            "module that it was exported from"
        )
    if name in _DIFFERENT:
        return "call_function", *_DIFFERENT[name](*_in_order(overload, args, kwargs)), {}
    # torch's Python functions are made from the same declarations, and take the same arguments.
    for home in (torch, torch._C._nn):
        if hasattr(home, name):
            return "call_function", getattr(home, name), args, kwargs
    if hasattr(torch.Tensor, name):
        return "call_method", name, args, kwargs
    return "call_function", overload, args, given


def _in_order(overload: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
    """Every argument that the declaration names, with defaults."""
    names = overload._schema.arguments[len(args) :]
    return [*args, *(kwargs.get(argument.name, argument.default_value) for argument in names)]


Rest = tuple[Callable[..., Any], tuple[Any, ...]]


def _slice(x: Any, dim: int, start: Any, end: Any, step: Any) -> Rest:
    # The exporter writes the largest integer where a slice goes to the end.
    stop = None if isinstance(end, int) and end == sys.maxsize else end
    return operator.getitem, (x, (*[slice(None)] * dim, slice(start, stop, step)))


def _index(x: Any, indices: Any) -> Rest:
    return operator.getitem, (x, tuple(slice(None) if index is None else index for index in indices))


def _batch_norm(x: Any, weight: Any, bias: Any, mean: Any, variance: Any, *rest: Any) -> Rest:
    return F.batch_norm, (x, mean, variance, weight, bias, *rest[:3])


_OF_THE_EXPORTER = {"layout", "pin_memory"}
_UNCHECKED = {"gru", "lstm", "quantized_gru", "quantized_lstm", "rnn_relu", "rnn_tanh"}
_CHECKS = {"_assert_tensor_metadata", "sym_constrain_range", "sym_constrain_range_for_size"}
# Ops that torch's functions have under another name, or with another order of arguments.
_DIFFERENT: dict[str, Callable[..., Rest]] = {
    "slice": _slice,
    "index": _index,
    "batch_norm": _batch_norm,
    "pad": lambda *given: (F.pad, given),
    "layer_norm": lambda *given: (F.layer_norm, given[:5]),
    "group_norm": lambda *given: (F.group_norm, given[:5]),
    "embedding": lambda weight, x, *rest: (F.embedding, (x, weight)),
    "sym_size": lambda x, dim: (torch.Tensor.size, (x, dim)),
    "_assert_scalar": lambda condition, message: (torch._assert, (condition, message)),
    "lift_fresh_copy": lambda x: (torch.clone, (x,)),
    "detach_": lambda x: (torch.detach, (x,)),
}
