"""The checks on a model before it is compiled. Each refusal says what was found, where, and what to do."""

from __future__ import annotations

import cmath
import copy
import functools
import itertools
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.ao.nn.quantized import FloatFunctional, FXFloatFunctional
from torch.ao.quantization import FakeQuantizeBase, ObserverBase
from torch.nn.parameter import is_lazy
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm
from torch.utils import _pytree as pytree

from fxprune.capture.capturing import Captured
from fxprune.capture.reachable import reachable
from fxprune.capture.samples import Sample
from fxprune.capture.sources import line_of
from fxprune.capture.state import Place, PythonState, shared_objects_restored
from fxprune.errors import ModelError, SampleError, described
from fxprune.util.copies import private_copy, share_elements
from fxprune.util.modes import switch
from fxprune.util.paths import named_buffers, named_modules, named_parameters

_NORM_HOOKS = (WeightNorm, SpectralNorm)
# Those of the forward are traced with it.
_HOOKS = {"_backward_hooks": "a backward hook", "_backward_pre_hooks": "a backward pre-hook"}
# Ordinary functions as modules, which floating-point models hold where a later quantisation wants to observe.
_FLOAT_FORMS = (FloatFunctional, FXFloatFunctional)
_STATISTICS = ("running_mean", "running_var")
_TENSOR_HOOKS = ("_backward_hooks", "_post_accumulate_grad_hooks")


def check_model(model: nn.Module) -> None:
    """Raise ModelError for what cannot be compiled, and for weights that are NaN or infinite."""
    if not isinstance(model, nn.Module):
        raise ModelError(f"model must be a torch.nn.Module, not {_no_network(model)}")
    if isinstance(model, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
        raise ModelError(f"the model is wrapped by {type(model).__name__}: pass its .module, and wrap the result again")
    for path, module in named_modules(model):
        where = path or "the model"
        _check_kind(where, module)
        _check_hooks(where, module)
        _check_names(where, module)
    tensors = _tensors(model)
    _check_memory(tensors)
    for name, tensor in _floating(tensors):
        is_weight = isinstance(tensor, nn.Parameter) or name.endswith(_STATISTICS)
        if not tensor.is_meta and not _is_usable(tensor, is_weight):
            raise ModelError(f"{name} holds NaN or infinite values: mend the weights before pruning")


def _no_network(given: Any) -> str:
    if isinstance(given, type):
        return f"the class {given.__name__}: make an object of it"
    loads = isinstance(given, Mapping)
    do = "build the network, and load this with load_state_dict" if loads else "pass the network itself"
    return f"{type(given).__name__}: {do}"


def _check_names(where: str, module: nn.Module) -> None:
    """Refuse names that torch itself does not allow, since paths of modules could not be told apart."""
    for name in (*module._modules, *module._parameters, *module._buffers):
        if not name or "." in name:
            raise ModelError(f"{where} holds {name!r}: names are not empty and have no dot: rename it")


def _check_memory(tensors: Sequence[tuple[str, torch.Tensor]]) -> None:
    """Refuse tensors that training changes and that share memory with others: copies would not share it."""
    by_memory: dict[int, list[tuple[str, torch.Tensor]]] = {}
    for name, tensor in tensors:
        if not is_lazy(tensor) and not tensor.is_meta and tensor.layout is torch.strided and tensor.numel():
            by_memory.setdefault(tensor.untyped_storage().data_ptr(), []).append((name, tensor))
    for held in by_memory.values():
        for (first, left), (second, right) in itertools.combinations(held, 2):
            learns = isinstance(left, nn.Parameter) or first.endswith(_STATISTICS) or second.endswith(_STATISTICS)
            if learns and share_elements(left, right):
                raise ModelError(
                    f"{first} and {second} are two tensors over the same memory, which copies of them would not share: "
                    "let both names hold one tensor, or give each its own (clone)"
                )


def _check_kind(where: str, module: nn.Module) -> None:
    cls: Any = type(module)
    if odd := _odd_class(cls) or next(filter(None, map(_odd_tensor, _own(module))), ""):
        raise ModelError(f"{where} {odd.replace('{}', f'({cls.__name__})')}")


_QUANTISED = "{} is quantised: prune the floating-point model, then quantise"


@functools.lru_cache(maxsize=4096)
def _odd_class(cls: Any) -> str:
    """Why modules of a class cannot be compiled, or ""."""
    place = f"{cls.__module__}."
    if ".quantized." in place and not issubclass(cls, _FLOAT_FORMS):
        return _QUANTISED
    if ".qat." in place or issubclass(cls, (FakeQuantizeBase, ObserverBase)):
        return "{} is prepared for quantisation: prune the floating-point model, then prepare it"
    if place.startswith("torch.distributed.fsdp."):
        return "{} is sharded: prune the model before it is sharded"
    if issubclass(cls, torch.jit.ScriptModule):
        return "is a TorchScript module: pass the Python module it was made from"
    if place.startswith("torch._dynamo."):  # with hooks of its own
        return "was wrapped by torch.compile: pass its _orig_mod and compile the pruned network"
    return ""


def _odd_tensor(tensor: torch.Tensor) -> str:
    """Why modules that hold a tensor cannot be compiled, or ""."""
    if is_lazy(tensor):
        return "{} is lazy: run the model once so that its shapes are known"
    if tensor.is_quantized:
        return _QUANTISED
    kind: Any = type(tensor)
    if hasattr(kind, "__tensor_flatten__"):
        return f"{{}} holds a {kind.__name__}: prune the model with plain tensors, then shard or quantise it"
    if tensor.layout is not torch.strided:
        return f"{{}} holds a tensor of layout {tensor.layout}: hold it dense"
    if tensor.dtype.itemsize == 1 and tensor.is_floating_point():
        return f"{{}} holds {tensor.dtype}, in which torch computes little: widen it first"
    return ""


def _check_hooks(where: str, module: nn.Module) -> None:
    for attribute, words in _HOOKS.items():
        hooks = list(getattr(module, attribute).values())
        if hooks:
            name = getattr(hooks[0], "__qualname__", type(hooks[0]).__name__)
            raise ModelError(f"{where} has {words} ({name}): remove it, because what it does would be lost")
    for name, parameter in module._parameters.items():
        if any(getattr(parameter, attribute, None) for attribute in _TENSOR_HOOKS):
            raise ModelError(
                f"{where}.{name} has a gradient hook: remove it and register it on the pruned network, "
                "because it would be lost"
            )


def traced_hooks(model: nn.Module) -> list[str]:
    """The modules with hooks that run in a forward, torch's own norms of weights aside."""
    held = ((path, (*m._forward_pre_hooks.values(), *m._forward_hooks.values())) for path, m in named_modules(model))
    return [path or "the model" for path, hooks in held if any(not isinstance(h, _NORM_HOOKS) for h in hooks)]


def _is_usable(tensor: torch.Tensor, is_weight: bool) -> bool:
    """Whether the values can be used: infinity is fine in masks and bounds, but not in weights and statistics."""
    return _is_finite(tensor) or not (is_weight or bool(tensor.isnan().any()))


def _is_finite(tensor: torch.Tensor) -> bool:
    # A finite sum proves finite terms and allocates nothing; only a sum that overflows needs the second look.
    return cmath.isfinite(tensor.detach().sum().item()) or bool(torch.isfinite(tensor).all())


def _own(module: nn.Module) -> list[torch.Tensor]:
    return [t for t in (*module._parameters.values(), *module._buffers.values()) if t is not None]


def _tensors(model: nn.Module) -> list[tuple[str, torch.Tensor]]:
    return [*named_parameters(model), *named_buffers(model)]


def _floating(tensors: Iterable[tuple[str, torch.Tensor]]) -> Iterator[tuple[str, torch.Tensor]]:
    for name, tensor in tensors:
        if (tensor.is_floating_point() or tensor.is_complex()) and not is_lazy(tensor):
            yield name, tensor


def check_sample(model: nn.Module, sample: Sample) -> None:
    """Raise SampleError where the sample is on another device or of another floating dtype than the model."""
    tensors = [tensor for _, tensor in _tensors(model)]
    devices = {t.device for t in tensors}
    dtypes = {t.dtype for t in tensors if t.is_floating_point()}
    for name, tensor in sample.named_tensors():
        given = f"sample_input {name}"
        if len(devices) == 1 and tensor.device not in devices and torch.device("meta") not in devices:
            (device,) = devices
            raise SampleError(f"{given} is on {tensor.device}, the model on {device}: put both on one device")
        if len(dtypes) == 1 and tensor.is_floating_point() and tensor.dtype not in dtypes:
            (dtype,) = dtypes
            raise SampleError(f"{given} has dtype {tensor.dtype}, the model {dtype}: convert one of them")


def refuses(model: nn.Module, sample: Sample) -> str | None:
    """The error of a private copy on a copy of the sample, in one line, or None.

    Raises ModelError: a part is TorchScript.
    """
    if is_meta(model):
        return None
    try:
        duplicate, sample = private_copy(model).eval(), copy.deepcopy(sample.map(torch.Tensor.detach))
    except Exception:  # copying runs the user's own code: it may raise anything
        return None
    try:
        with torch.random.fork_rng(devices=_cuda_devices(model)), torch.no_grad():
            sample.map(torch.clone).call(duplicate)
    except RuntimeError as error:
        # What registers hooks runs with gradients alone.
        return None if "require gradient" in str(error) else _told(error, duplicate)
    except ModelError:  # a part of it is none that can be used
        raise
    except Exception as error:  # so may the forward
        return _told(error, duplicate)
    return None


def _told(error: Exception, network: nn.Module) -> str:
    """An error of a network, with the innermost module and the last line of its own code that it went through."""
    paths = {id(module): path for path, module in named_modules(network)}
    callers = (frame.f_locals.get("self") for frame, _ in traceback.walk_tb(error.__traceback__))
    inside = [path for path in (paths.get(id(caller)) for caller in callers) if path]
    return f"{described(error)}{f' in {inside[-1]}' if inside else ''}{line_of(error)}"


def counters(model: nn.Module, sample: Sample, modes: Sequence[bool]) -> dict[Place, Any]:
    """What each call of a model changes for the next one outside of tensors.

    A private copy is called twice with the sample in each of ``modes`` (``training``), and in the first mode once more
    after all the others. Parameters and buffers are put back in between, as a graph keeps them as the model does; but
    not those that changed their shape, which serve as a cache. What only the first call changes is a cache, too.
    """
    if not modes or is_meta(model):
        return {}
    found: dict[Place, Any] = {}
    called: set[bool] = set()
    with torch.random.fork_rng(devices=_cuda_devices(model)), shared_objects_restored(model):
        try:
            duplicate = private_copy(model)
            tensors = {name: tensor.clone() for name, tensor in duplicate.state_dict().items()}
        except Exception:  # the user's own code; what cannot be copied cannot be compared
            return {}
        try:
            for training in (*(mode for mode in modes for _ in range(2)), modes[0]):
                switch(duplicate, "train" if training else "eval")
                state = PythonState(duplicate, reachable(model))
                _answer(duplicate, sample, training)
                found |= state.written() if training in called else {}
                called.add(training)
                with torch.no_grad():
                    for name, tensor in duplicate.state_dict().items():
                        if name in tensors and tensors[name].shape == tensor.shape:
                            tensor.copy_(tensors[name])
        except Exception:  # what does not run cannot be compared
            return {}
    return found


def modes_that_forget(model: nn.Module, captured: Captured) -> list[bool]:
    """The modes (``training``) in which repeated calls of the graphs stop giving the answers of the model.

    Both are run on private copies, in each mode twice and in training once more, with the same random numbers. Between
    the calls inputs become smaller and what a call has written into tensors moves: a tensor that the first call fills,
    and later ones keep, would else be filled with the same again.
    """
    if "" in captured.opaque or is_meta(model):
        return []
    modes = [mode for mode in (False, True) if not (mode and captured.untraced)]
    unlike: set[bool] = set()
    heard: dict[bool, bool] = {}  # by mode, in which the model takes the sample, whether its graph answers to the bit
    with torch.random.fork_rng(devices=_cuda_devices(model)), shared_objects_restored(model):
        copies = [private_copy(model) for _ in range(2)]
        shapes = {name: tensor.shape for name, tensor in _floating(_tensors(model))}
        graphs = {mode.training: mode.module(copies[1]) for mode in captured.modes()}
        calls = (*(mode for mode in modes for _ in range(2)), modes[-1])
        for number, training in enumerate(calls):
            sample = captured.sample.map(partial(_smaller, share=0.75**number))
            before = {name: tensor.detach().clone() for name, tensor in _floating(_tensors(copies[0]))}
            for duplicate in copies:
                switch(duplicate, "train" if training else "eval")
            pair = copies[0], graphs.get(training, graphs[False])
            expected, answer = (_answer(network, sample, training) for network in pair)
            exact = training in heard and heard[training]
            if not (_alike(expected, answer, exact) and _same_state(copies, shapes)):
                unlike.add(training)
            if not isinstance(expected, str):
                heard.setdefault(training, _alike(expected, answer, exact=True))
            _move_written(copies, before)
    return sorted(unlike | ({True} & set(modes)) - heard.keys())


def fails_for(model: nn.Module, captured: Captured, sample: Sample) -> bool:
    """Whether a graph gives another answer for a sample than the model."""
    if is_meta(model):
        return True
    answers = []
    for whole in (False, True):
        with torch.random.fork_rng(devices=_cuda_devices(model)), shared_objects_restored(model):
            duplicate = private_copy(model)
            switch(duplicate, "train" if captured.training else "eval")
            answers.append(_answer(duplicate if whole else captured.module(duplicate), sample, captured.training))
    return not _alike(*answers)


def _same_state(copies: Sequence[nn.Module], shapes: Mapping[str, torch.Size]) -> bool:
    """Whether both copies hold equal tensors; those that changed their shape are caches and do not count."""
    kept = [{n: t for n, t in _floating(_tensors(duplicate)) if shapes.get(n) == t.shape} for duplicate in copies]
    return all(_equal(kept[0][name], kept[1][name], exact=False) for name in kept[0].keys() & kept[1].keys())


def _move_written(copies: Sequence[nn.Module], before: Mapping[str, torch.Tensor]) -> None:
    """Change the tensors that the first copy has written, in the same way in all copies."""
    tensors = [dict(_floating(_tensors(duplicate))) for duplicate in copies]
    for name, old in before.items():
        new = tensors[0].get(name)
        if new is not None and new.shape == old.shape and not torch.equal(new, old):
            for held in tensors:
                held[name].data = 1.25 * held[name].data + 0.1


def _smaller(tensor: torch.Tensor, share: float) -> torch.Tensor:
    return tensor * share if tensor.is_floating_point() else tensor


def _answer(network: nn.Module, sample: Sample, training: bool) -> Any:
    """The output of a network, or its error. In training, inputs need gradients, as some code adds hooks to them."""
    torch.manual_seed(0)
    try:
        with torch.set_grad_enabled(training):
            return sample.map(torch.clone).call(network)
    except Exception as error:  # the user's own code: it may raise anything
        return type(error).__name__


def _alike(first: Any, second: Any, exact: bool = False) -> bool:
    leaves = [pytree.tree_leaves(answer) for answer in (first, second)]
    return len(leaves[0]) == len(leaves[1]) and all(map(partial(_equal, exact=exact), *leaves))


def _equal(first: Any, second: Any, exact: bool) -> bool:
    if not (isinstance(first, torch.Tensor) and isinstance(second, torch.Tensor)):
        literals = (bool, int, str, type(None))
        return type(first) is type(second) and (first == second or not isinstance(first, literals))
    if (first.dtype, first.shape) != (second.dtype, second.shape):
        return False
    if torch.equal(first, second):  # most are: no copies in float64
        return True
    left, right = (tensor if tensor.is_complex() else tensor.double() for tensor in (first, second))
    relative, absolute = (0.0, 0.0) if exact else (1e-4, 1e-6)
    return torch.allclose(left, right, relative, absolute, equal_nan=True)


def _cuda_devices(model: nn.Module) -> list[int]:
    return sorted({t.device.index or 0 for t in model.parameters() if t.is_cuda})


def is_meta(model: nn.Module) -> bool:
    """Whether the model has no values, only shapes."""
    return any(t is not None and t.is_meta for _, part in named_modules(model) for t in part._parameters.values())
