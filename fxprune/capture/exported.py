"""Exported programs and models with TorchScript parts, turned into networks that can be traced.

Each aten op of an exported program is written as the call of torch that it came from. TorchScript parts hold tensors.
"""

from __future__ import annotations

import operator
import sys
from collections.abc import Callable
from pathlib import PurePath
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from fxprune.errors import ModelError
from fxprune.util.paths import modules_of

Call = tuple[str, Any, tuple[Any, ...], dict[str, Any]]


def network_of(model: Any) -> nn.Module:
    """The model, or the network that an exported program describes. Raises ModelError: it cannot be written so."""
    exporter = sys.modules.get("torch.export")  # where it is not loaded, nothing was exported
    if exporter is not None and isinstance(model, exporter.ExportedProgram):
        return _written(model)
    if isinstance(model, (str, PurePath)):
        onnx = str(model).endswith(".onnx")
        do = "make a module of it (onnx2torch.convert)" if onnx else "load it (fxprune.load, torch.export.load)"
        raise ModelError(f"the model is a file name: {do} and pass that")
    scripted = isinstance(model, nn.Module) and any(isinstance(m, torch.jit.ScriptModule) for m in modules_of(model))
    # Whether it is a network is asked when it is captured.
    return model if not scripted or isinstance(model, torch.jit.ScriptModule) else _without_scripts(model, {}, "")


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


def _without_scripts(module: nn.Module, made: dict[int, nn.Module], path: str) -> nn.Module:
    """The module itself if nothing in it is scripted, else a copy of its class around the same tensors and parts."""
    if id(module) not in made and isinstance(module, torch.jit.ScriptModule):
        made[id(module)] = ScriptedPart(path, module)
    elif id(module) not in made:
        held = module._modules.items()
        parts = {n: m if m is None else _without_scripts(m, made, f"{path}.{n}".lstrip(".")) for n, m in held}
        made[id(module)] = module
        if any(parts[name] is not part for name, part in held):
            made[id(module)] = twin = object.__new__(type(module))
            vars(twin).update(vars(module), _modules=parts)
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
