"""Checks the modules of a pruned network beyond their tensors: classes, hyper-parameters, modes, hooks and code."""

from __future__ import annotations

import copy
import functools
import itertools
import operator
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import CodeType, FrameType, FunctionType
from typing import Any

import torch
from torch import fx, nn
from torch.fx.node import _get_qualified_name

from fxprune.errors import ProofError
from fxprune.util.copies import attributes_of
from fxprune.util.inheriting import runs_as
from fxprune.util.paths import Parts, named_modules

_BASE = frozenset(vars(nn.Module()))
_HOOKS = tuple(sorted(name for name in _BASE if name.endswith("hooks")))
_CALLED = "forward __call__ _wrapped_call _call_impl _wrapped_call_impl __getattr__ __getattribute__".split()
_MODES = ("train", "eval")
_ASIDE = _BASE | {*_MODES}
_PLAIN = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.memory_format)


def _dim(name: str, dim: int, times: str = "") -> Callable[[Any], int | None]:
    """Returns the size of a dim of one of a module's tensors, or None if the module lacks the tensor."""

    def size(module: Any) -> int | None:
        tensor = getattr(module, name, None)
        return None if tensor is None else int(tensor.shape[dim]) * (getattr(module, times) if times else 1)

    return size


def _shape(module: Any) -> tuple[int, ...] | None:
    return None if module.weight is None else tuple(module.weight.shape)


_GATES = {"LSTM": 4, "GRU": 3, "RNN_TANH": 1, "RNN_RELU": 1}


def _hidden(module: Any) -> int:
    return int(module.weight_ih_l0.shape[0]) // _GATES[module.mode]


def _projected(module: Any) -> int:
    return int(module.weight_hr_l0.shape[0]) if module.proj_size else 0


_UNKNOWN: Callable[[Any], None] = lambda module: None  # noqa: E731  outputs are compared instead
_NORM = {"num_features": lambda m: _dim("weight", 0)(m) or _dim("running_mean", 0)(m)}
_CONVOLUTION = {"out_channels": _dim("weight", 0), "in_channels": _dim("weight", 1, "groups"), "groups": _UNKNOWN}
_TRANSPOSED = {"in_channels": _dim("weight", 0), "out_channels": _dim("weight", 1, "groups"), "groups": _UNKNOWN}
_CELL = {"input_size": _dim("weight_ih", 1), "hidden_size": _dim("weight_hh", 1)}
_RECURRENT = {"input_size": _dim("weight_ih_l0", 1), "hidden_size": _hidden, "proj_size": _projected}
_SIZES: tuple[tuple[tuple[type[nn.Module], ...], Mapping[str, Callable[[Any], Any]]], ...] = (
    ((nn.Linear,), {"out_features": _dim("weight", 0), "in_features": _dim("weight", 1)}),
    (
        (nn.Bilinear,),
        {"out_features": _dim("weight", 0), "in1_features": _dim("weight", 1), "in2_features": _dim("weight", 2)},
    ),
    ((nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d), _TRANSPOSED),
    ((nn.Conv1d, nn.Conv2d, nn.Conv3d), _CONVOLUTION),
    ((nn.modules.batchnorm._NormBase,), _NORM),
    ((nn.GroupNorm,), {"num_channels": _dim("weight", 0), "num_groups": _UNKNOWN}),
    ((nn.LayerNorm, nn.RMSNorm), {"normalized_shape": _shape}),
    ((nn.Embedding, nn.EmbeddingBag), {"embedding_dim": _dim("weight", 1), "num_embeddings": _dim("weight", 0)}),
    ((nn.PReLU,), {"num_parameters": _dim("weight", 0)}),
    ((nn.RNNBase,), _RECURRENT),
    ((nn.RNNCellBase,), _CELL),
    ((nn.ChannelShuffle,), {"groups": _UNKNOWN}),
    ((nn.Unflatten,), {"unflattened_size": _UNKNOWN}),
    ((nn.modules.padding._ConstantPadNd,), {"padding": _UNKNOWN}),
)
"""The attributes that hold widths, and the values that fit a module's tensors; no other attribute may change."""


def check_attributes(original: nn.Module, pruned: nn.Module) -> None:
    """Compare all modules of both networks by path.

    Raises:
        ProofError: a module has no counterpart, is of another class or in another mode, has another hyper-parameter, a
            new hook, an attribute that replaces a method, or an attribute that does not fit its tensors.
    """
    full = dict(named_modules(original, again=True))
    for path, module in named_modules(pruned, again=True):
        where = path or "the pruned network"
        if path not in full:
            if type(module) is not nn.Module and not isinstance(module, Parts):
                raise _error(f"{where} ({type(module).__name__}) has no counterpart in the original")
            continue
        _check_methods(where, full[path], module)
        _check_hooks(where, full[path], module)
        if full[path].training != module.training:
            raise _error(f"{where}.training is {module.training}, and {full[path].training} in the original")
        if isinstance(module, (fx.GraphModule, Parts)) or type(module) is nn.Module:
            continue
        _check_class(where, full[path], module)
        _check_values(where, full[path], module)


def _error(text: str) -> ProofError:
    return ProofError(f"modules: {text}; this is a fault of the pass, pass verify=False to look at it")


def _check_methods(where: str, full: nn.Module, narrow: nn.Module) -> None:
    """No attribute of an instance may replace a method, unless it does so in the original.

    ``train`` and ``eval`` are exempt: their effect is compared by a step in training mode.
    """
    for name in vars(narrow).keys() - _ASIDE:
        inherits = callable(getattr(type(narrow), name, None))
        if inherits and (isinstance(narrow, fx.GraphModule) or name not in vars(full)):
            raise _error(f"{where} has an attribute of its own in the place of its method {name!r}")


def _check_hooks(where: str, full: nn.Module, narrow: nn.Module) -> None:
    for hooks in _HOOKS:
        ours, theirs = getattr(full, hooks, None), getattr(narrow, hooks, None)
        if theirs and (isinstance(narrow, fx.GraphModule) or len(theirs) != len(ours or ())):
            raise _error(f"{where} has {len(theirs)} {hooks.strip('_')}, and {len(ours or ())} in the original")


def _check_class(where: str, full: nn.Module, narrow: nn.Module) -> None:
    """The class must be the same, or a base class whose code the original runs."""
    ours, theirs = type(full), type(narrow)
    if ours is not theirs and not (theirs in ours.__mro__ and runs_as(full, theirs)):
        raise _error(f"{where} is a {ours.__name__} and became a {theirs.__name__}")
    for held in ("_parameters", "_buffers"):
        before = {name: tensor is None for name, tensor in getattr(full, held).items()}
        after = {name: tensor is None for name, tensor in getattr(narrow, held).items()}
        if before != after:
            wrong = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
            raise _error(f"{where} ({theirs.__name__}) lost or gained {', '.join(wrong)} among its {held[1:]}")


def _check_values(where: str, full: nn.Module, narrow: nn.Module) -> None:
    widths = next((sizes for classes, sizes in _SIZES if isinstance(narrow, classes)), {})
    held = vars(narrow), attributes_of(full)
    own, before = ({n: v for n, v in values.items() if n not in _ASIDE} for values in held)
    if own.keys() != before.keys():
        wrong = sorted(own.keys() ^ before.keys())
        raise _error(f"{where} ({type(narrow).__name__}) lost or gained the attributes {', '.join(wrong)}")
    for name, value in own.items():
        fitting = widths[name](narrow) if name in widths else None
        if fitting is not None and fitting != value:
            raise _error(f"{where}.{name} is {value!r}, and its tensors need {fitting!r}")
        if name not in widths and not _alike(before[name], value):
            raise _error(f"{where}.{name} was {before[name]!r} and became {value!r}")


def _alike(ours: Any, theirs: Any, depth: int = 4) -> bool:
    """Whether two attributes are equal as plain data; for other objects the same class is enough."""
    if type(ours) is not type(theirs):
        return isinstance(ours, nn.Module) and isinstance(theirs, nn.Module)
    if isinstance(ours, _PLAIN):
        return bool(ours == theirs or ours != ours)
    if isinstance(ours, (list, tuple)) and depth:
        return len(ours) == len(theirs) and all(_alike(a, b, depth - 1) for a, b in zip(ours, theirs, strict=True))
    if isinstance(ours, Mapping) and depth:
        return list(ours) == list(theirs) and all(_alike(ours[key], theirs[key], depth - 1) for key in ours)
    return ours is theirs if isinstance(ours, (FunctionType, type)) else True


def check_code(pruned: nn.Module) -> dict[fx.Graph, FunctionType]:
    """Check that each GraphModule runs its graph: its class has the code that torch.fx prints, or that a copy gets.

    Returns:
        By graph, the function that torch.fx prints for it.

    Raises:
        ProofError: a method differs from that of a copy.
    """
    printed: dict[fx.Graph, FunctionType] = {}
    for path, module in named_modules(pruned):
        if isinstance(module, fx.GraphModule):
            getattr(module, "forward", None)  # a module may generate its code when that is first looked up
            printed[module.graph] = printed_function(module.graph)
            if _is_as_made(module, printed[module.graph]):
                continue
            parts = (*module.modules(), *module.parameters(), *module.buffers())
            made = vars(type(copy.deepcopy(module, {id(part): part for part in parts if part is not module})))
            for name in sorted(vars(type(module)).keys() | made.keys(), key=lambda name: (name != "forward", name)):
                if not _same_code(vars(type(module)).get(name), made.get(name)):
                    raise _error(f"{path or 'the pruned network'}: its method {name!r} is not what its graph says")
    return printed


@functools.cache
def _plain_class() -> type:
    """The class that torch.fx makes for a GraphModule."""
    return type(fx.GraphModule(nn.Module(), fx.Graph()))


def _is_as_made(module: fx.GraphModule, printed: FunctionType) -> bool:
    """Whether its class is a plain GraphModule's, with the printed code, perhaps wrapped by its base's module."""
    own, made = dict(vars(type(module))), vars(_plain_class())
    forward = own["forward"]
    around = isinstance(forward, FunctionType) and forward.__code__ in _inner_codes(type(module).__mro__[1].__module__)
    inner = [cell for cell in _cells(forward) if isinstance(cell, FunctionType)] if around else [forward]
    known = _codes_of_properties(type(module)) if own.keys() - made.keys() else frozenset()
    if any(not (name == "_names" or _is_property(own[name], known)) for name in own.keys() - made.keys()):
        return False
    plain = made.keys() <= own.keys() and all(_same_code(own[name], made[name]) for name in made if name != "forward")
    return plain and len(inner) == 1 and _same_code(inner[0], printed)


def _codes_of_properties(cls: type) -> frozenset[CodeType]:
    """The code of functions that methods of the bases define; properties with such code look up parts."""
    between = itertools.takewhile(lambda base: base is not fx.GraphModule, cls.__mro__[1:])
    methods = [value for base in between for value in vars(base).values() if isinstance(value, FunctionType)]
    return frozenset(c for method in methods for c in method.__code__.co_consts if isinstance(c, CodeType))


def _is_property(value: Any, known: frozenset[CodeType]) -> bool:
    """Whether ``value`` is a read-only property whose getter has one of the ``known`` codes."""
    if not isinstance(value, property) or value.fset is not None or value.fdel is not None:
        return False
    return isinstance(value.fget, FunctionType) and value.fget.__code__ in known


@functools.cache
def _inner_codes(name: str) -> frozenset[CodeType]:
    """The code of functions that are defined inside functions of a module."""
    outer = [v for v in vars(sys.modules[name]).values() if isinstance(v, FunctionType) and v.__module__ == name]
    return frozenset(c for function in outer for c in function.__code__.co_consts if isinstance(c, CodeType))


def printed_function(graph: fx.Graph) -> FunctionType:
    """The function that torch.fx prints for a graph. Raises ProofError: it would call another one than a node does."""
    printed = graph.python_code("self")
    names: dict[str, Any] = dict(printed.globals)
    held = set(map(id, names.values()))
    for node in graph.nodes:
        if node.op == "call_function" and id(node.target) not in held and not _is_found(node.target):
            raise _error(f"{node.name}: torch.fx prints its target by the name of another function")
    exec(compile(printed.src, "<eval_with_key>", "exec"), names)
    made: FunctionType = names["forward"]
    return made


@functools.cache
def _is_found(target: Any) -> bool:
    """Whether the name that torch.fx prints for a function is that function, where it is a path in torch."""
    root, _, path = _get_qualified_name(target).partition(".")
    return root != "torch" or operator.attrgetter(path)(torch) is target


class _ReachedError(Exception):
    """Raised instead of running a graph's code, once a call reaches it."""


def runs_its_graph(
    pruned: nn.Module,
    printed: FunctionType,
    others: Sequence[FunctionType],
    call: Callable[[], Any],
    given: Mapping[str, Any],
) -> bool:
    """Whether a call of a GraphModule runs the code that torch.fx prints for a graph, on unchanged inputs.

    ``printed``: that code. ``others``: the code of all graphs of its mode; a call runs the first that accepts the
    inputs. ``call``: calls the module on the inputs ``given``, by name. The code around the graph's is that of a copy,
    as :func:`check_code` shows. The call ends where the graph's code begins.
    """
    between = itertools.takewhile(lambda cls: cls is not fx.GraphModule, type(pruned).__mro__[1:])
    if not isinstance(pruned, fx.GraphModule) or any(name in vars(cls) for cls in between for name in _CALLED):
        return False
    several = getattr(pruned, "forwards", None)
    if several is not None and len(others) > 1:
        forward: Any = type(pruned).forward
        run = several(next(_cells(forward), None))
        return all(any(_is_code(f, f.__globals__, other) for other in others) for f in run) and any(
            _is_code(f, f.__globals__, printed) for f in run
        )
    frame = _frame_reached(call)
    if frame is None or not all(_is_given(frame.f_locals.get(n), v) for n, v in {"self": pruned, **given}.items()):
        return False
    return _is_code(frame, frame.f_globals, printed)


def _is_given(found: Any, value: Any) -> bool:
    """Whether an argument is the given object itself."""
    if isinstance(value, tuple) and isinstance(found, tuple):  # ``*args`` is a new tuple at every call
        return len(value) == len(found) and all(map(operator.is_, found, value))
    return found is value


def _is_code(run: Any, names: Mapping[str, Any], printed: FunctionType) -> bool:
    """Whether a function or frame has a printed function's instructions, and its names have the same values."""
    code: CodeType = run.f_code if isinstance(run, FrameType) else run.__code__
    known = printed.__globals__
    return _same_instructions(code, printed.__code__) and all(
        names.get(name) is known[name] for name in code.co_names if name in known
    )


def _frame_reached(call: Callable[[], Any]) -> FrameType | None:
    """The frame in which a call starts a graph's code; None if it does not, or if this thread is being profiled."""
    if sys.getprofile() is not None:
        return None
    frames: list[FrameType] = []

    def watch(frame: FrameType, event: str, _: Any) -> None:
        if event == "call" and frame.f_code.co_filename.startswith("<eval_with_key>"):
            frames.append(frame)
            raise _ReachedError

    sys.setprofile(watch)
    try:
        call()
    except _ReachedError:
        return frames[0]
    except Exception:  # a check may refuse the call before the graph's code
        return None
    finally:
        sys.setprofile(None)
    return None


def _same_code(ours: Any, theirs: Any) -> bool:
    if not (isinstance(ours, FunctionType) and isinstance(theirs, FunctionType)):
        return type(ours) is type(theirs)
    pairs = itertools.zip_longest(_cells(ours), _cells(theirs))
    return _same_instructions(ours.__code__, theirs.__code__) and all(
        _same_code(a, b) for a, b in pairs if isinstance(a, FunctionType) or isinstance(b, FunctionType)
    )


def _cells(function: FunctionType) -> Iterator[Any]:
    yield from (cell.cell_contents for cell in function.__closure__ or ())


def _same_instructions(ours: CodeType, theirs: CodeType) -> bool:
    if (ours.co_code, ours.co_names, ours.co_varnames) != (theirs.co_code, theirs.co_names, theirs.co_varnames):
        return False
    return all(
        _same_instructions(a, b) if isinstance(a, CodeType) and isinstance(b, CodeType) else repr(a) == repr(b)
        for a, b in itertools.zip_longest(ours.co_consts, theirs.co_consts)
    )
