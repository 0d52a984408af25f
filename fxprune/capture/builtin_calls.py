"""``int(size)``, ``len(tensor)``, ``math.sqrt(size)`` and the like, which forget what their numbers were computed from.

While a model is captured, such calls in the code that its forward reaches go to variants that remember. The names keep
their meaning: the functions get code in which calls alone, and reads of ``math`` and ``numpy``, name a variant, so that
``type(n) is int`` and ``dtype=int`` are what they are. For numbers that are no sizes, which are all numbers of other
threads, a variant does what the original does. Functions that cannot be reached by name keep their code: there a call
reads a plain number, which is a decision.
"""

from __future__ import annotations

import builtins
import dis
import functools
import math
import operator
import re
import sys
import threading
import types
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from fxprune.capture.numbers import Traced, TracedFloat, TracedInt, computed, decided, plain, traced, watching
from fxprune.capture.reachable import names_in
from fxprune.capture.sources import is_called
from fxprune.errors import CaptureError

_TENSOR_TYPE = type(torch.FloatTensor)


def _int(*args: Any, **kwargs: Any) -> Any:
    """``int`` that keeps traced numbers traced, also those read from a tensor."""
    args = (args[0].item(),) if len(args) == 1 and _is_watched(args[0]) else args
    value = int(*map(plain, args), **kwargs)
    return traced(value, int, args) if len(args) == 1 and isinstance(args[0], Traced) else value


def _float(*args: Any) -> Any:
    """The same for ``float``."""
    args = (args[0].item(),) if len(args) == 1 and _is_watched(args[0]) else args
    value = float(*map(plain, args))
    return traced(value, float, args) if args and isinstance(args[0], Traced) else value


def _is_watched(value: Any) -> bool:
    if not isinstance(value, torch.Tensor) or watching() is None:
        return False
    with torch._C.DisableTorchFunction():
        return value.is_meta


def _is_integer(value: Any) -> bool:
    """Whether a value is a watched tensor of one integer."""
    if not _is_watched(value):
        return False
    with torch._C.DisableTorchFunction():
        return bool(value.dim() == 0 and value.dtype is torch.int64)


def _type(*args: Any, **kwargs: Any) -> Any:
    """``type`` that gives int or float for a traced number."""
    kind = type(*args, **kwargs)
    return int if kind is TracedInt else float if kind is TracedFloat else kind


def _length(value: Any, /) -> int:
    """``len`` that gives the traced size of a tensor's first dim."""
    if isinstance(value, torch.Tensor) and value.dim() > 0:
        return value.shape[0]
    return len(value)


def _range(*given: Any) -> Any:
    """``range`` in steps, of which the forward decides by their number alone, as a list."""
    start, stop, step = given if len(given) == 3 else (0, 0, 1)
    if not any(isinstance(number, Traced) for number in given) or plain(step) in (0, 1):
        return range(*given)
    count, left = len(range(*map(plain, given))), -((start - stop) // step)
    decided(*((operator.eq, (left, count)) if count else (operator.le, (left, 0))))
    return [start + number * step for number in range(count)]


def _is_instance(value: Any, classes: Any, /) -> bool:
    """``isinstance`` that treats ``torch.FloatTensor`` and the like as questions about dtype and device."""
    kinds = classes if isinstance(classes, tuple) else (classes,)
    kinds = tuple(torch.Tensor if kind is _variable else kind for kind in kinds)
    if isinstance(value, torch.Tensor) and any(isinstance(kind, _TENSOR_TYPE) for kind in kinds):
        return any(
            value.type() == f"{kind.__module__}.{kind.__name__}"
            if isinstance(kind, _TENSOR_TYPE)
            else isinstance(value, kind)
            for kind in kinds
        )
    return isinstance(value, kinds)


def _remembered(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of numbers whose results keep their origin."""

    def variant(*args: Any, **kwargs: Any) -> Any:
        if function in (max, min) and len(args) == 1 and not kwargs and _is_watched(args[0]) and args[0].dim() == 1:
            # Of floats that tie, the first one alone would learn.
            return function(args[0]) if args[0].is_floating_point() else getattr(args[0], function.__name__)()
        if function in (max, min) and len(args) == 2 and not kwargs and all(map(_is_integer, args)):
            return (torch.maximum if function is max else torch.minimum)(*args)
        numbers = len(args) > 0 and not kwargs and all(isinstance(a, (int, float)) for a in args)
        if not numbers or not any(isinstance(a, Traced) for a in args):
            return function(*args, **kwargs)
        return computed(function, args)

    return variant


_MATHS = {
    name: _remembered(getattr(math, name))
    for name in "ceil cos exp floor gcd isqrt log log10 log2 pow sin sqrt".split()
}


class _Math(types.ModuleType):
    """``math`` whose functions of one number keep its origin."""

    def __getattr__(self, name: str) -> Any:
        return _MATHS.get(name) or getattr(math, name)


def _product(numbers: Any, *args: Any, **kwargs: Any) -> Any:
    """``numpy.prod`` of sizes."""
    plain_call = not args and not kwargs and isinstance(numbers, (list, tuple))
    if not plain_call or not any(isinstance(n, Traced) for n in numbers):
        return np.prod(numbers, *args, **kwargs)
    return functools.reduce(operator.mul, numbers)


class _Numpy(types.ModuleType):
    """``numpy`` whose functions of one number, and product of sizes, keep their origin."""

    def __getattr__(self, name: str) -> Any:
        if name == "prod":
            return _product
        function, variant = getattr(np, name), _MATHS.get(name)
        if variant is None:
            return function
        return lambda *args, **kwargs: (
            variant(*args) if any(isinstance(a, Traced) for a in args) else function(*args, **kwargs)
        )


def _variable(data: Any = None, requires_grad: bool = False, **kwargs: Any) -> Any:
    """``torch.autograd.Variable``, once needed around each tensor; today it returns the tensor."""
    if not isinstance(data, torch.Tensor) or kwargs:
        return torch.autograd.Variable(data, requires_grad, **kwargs)
    return data.detach().requires_grad_(requires_grad) if requires_grad else data.detach()


def _sized(kind: Any) -> Callable[..., Any]:
    """``torch.FloatTensor`` or the like, which takes plain numbers alone as sizes of a new tensor."""

    def variant(*args: Any, **kwargs: Any) -> Any:
        sizes = args[0] if len(args) == 1 and isinstance(args[0], torch.Size) else args
        traced_sizes = not kwargs and any(isinstance(size, Traced) for size in sizes)
        return torch.empty(tuple(sizes), dtype=kind.dtype) if traced_sizes else kind(*args, **kwargs)

    return variant


def _seeding(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function that seeds torch's generator, or reads or restores its state, which a graph cannot do."""

    @functools.wraps(function)
    def variant(*args: Any, **kwargs: Any) -> Any:
        if watching() is not None:
            raise CaptureError(
                f"the forward calls torch.{function.__name__}(), and no graph does: leave it to the caller"
            )
        return function(*args, **kwargs)

    return variant


@contextmanager
def refusing_seeds() -> Iterator[None]:
    """Raises CaptureError if the code inside seeds torch's generator by a function that it holds under another name."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(_SEED)
        yield
        if torch.default_generator.initial_seed() != _SEED:
            raise CaptureError("the forward seeds torch's generator, and no graph does: leave it to the caller")


# One that nobody else would choose.
_SEED = 0x6678_7072_756E_65
_STATES = "manual_seed seed initial_seed get_rng_state set_rng_state fork_rng".split()
_SEEDS = {name: _seeding(getattr(torch.random, name)) for name in _STATES}
_SIZED = {
    f"{kind}Tensor": _sized(getattr(torch, f"{kind}Tensor")) for kind in "Float Double Long Int Bool Byte".split()
}
_CHANGED: dict[str, Any] = {"Variable": _variable, **_SEEDS}
_OF_TORCH = frozenset((*_CHANGED, *_SIZED))


class _Torch(types.ModuleType):
    """``torch``, ``torch.autograd`` or ``torch.random`` with such variants."""

    def __init__(self, original: types.ModuleType) -> None:
        super().__init__(original.__name__)
        self.original = original

    def __getattr__(self, name: str) -> Any:
        if name in _SIZED and is_called(sys._getframe(1)):
            return _SIZED[name]
        return _CHANGED.get(name) or _TORCH.get(id(getattr(self.original, name))) or getattr(self.original, name)


_TORCH = {id(module): _Torch(module) for module in (torch, torch.autograd, torch.random)}

# Names of variants in code: no name that anybody else could write.
_NAME = "fxprune's {}"
_BUILTINS: dict[str, Any] = {"int": _int, "float": _float, "type": _type, "len": _length, "range": _range}
_BUILTINS |= {"isinstance": _is_instance, "max": _remembered(max), "min": _remembered(min)}
_MODULES: dict[int, Any] = {id(math): _Math("math"), id(np): _Numpy("numpy")}
_FUNCTIONS: dict[int, Any] = {id(getattr(math, name)): variant for name, variant in _MATHS.items()}
_FUNCTIONS |= {id(torch.autograd.Variable): _variable, **{id(getattr(torch.random, n)): v for n, v in _SEEDS.items()}}
_VARIANTS = {_NAME.format(name): variant for name, variant in (*_BUILTINS.items(), *_MATHS.items())}
_VARIANTS |= {_NAME.format(name): variant for name, variant in _CHANGED.items()}
_VARIANTS |= (_OF_MODULES := {_NAME.format(v.__name__): v for v in (*_TORCH.values(), *_MODULES.values())})
# An interruption between the lines of a `with` may leave it held: the same thread must be able to go on.
_LOCK = threading.RLock()
# How many captures need each function's other code, and what it had before.
_changed: dict[types.FunctionType, tuple[int, types.CodeType]] = {}


# They stay, because a frame of another thread may run the code of a forward that was captured meanwhile.
vars(builtins).update(_VARIANTS)
sys.modules.update(_OF_MODULES)  # for functions that import them


@contextmanager
def remembering(functions: Iterable[types.FunctionType]) -> Iterator[None]:
    """Let calls in these functions go to the variants."""
    mine: list[types.FunctionType] = []
    try:
        with _LOCK:
            mine.extend(function for function in functions if _change(function))
        yield
    finally:
        with _LOCK:
            for function in mine:
                _change_back(function)


def _change(function: types.FunctionType) -> bool:
    count, original = _changed.get(function, (0, function.__code__))
    if not count:
        renames = _renames(original, function.__globals__)
        if not renames and not _asks_identity(original):
            return False
        function.__code__ = _with_variants(original, frozenset(renames.items()))
    _changed[function] = count + 1, original
    return True


def _change_back(function: types.FunctionType) -> None:
    count, original = _changed.pop(function)
    if count > 1:
        _changed[function] = count - 1, original
    else:
        function.__code__ = original


def _renames(code: types.CodeType, namespace: dict[str, Any]) -> dict[str, tuple[str, bool]]:
    """For names in code that stand for a builtin or a module, the variant's name, and whether calls alone take it.

    The name of a module that the code may import itself begins with ``import``.
    """
    found: dict[str, tuple[str, bool]] = {}
    names = names_in(code)
    for name in names:
        value: Any = namespace.get(name)
        new = _NAME.format(name)
        if new in _OF_MODULES and (id(sys.modules[name]) in _MODULES or not _OF_TORCH.isdisjoint(names)):
            found[f"import {name}"] = new, False
        if name in _BUILTINS and name not in namespace:
            found[name] = _NAME.format(name), True
        elif id(value) in _FUNCTIONS:
            found[name] = _NAME.format(value.__name__), True
        elif id(value) in _MODULES or (id(value) in _TORCH and not _OF_TORCH.isdisjoint(names)):
            found[name] = _NAME.format(value.__name__), False
    return found


@functools.lru_cache(maxsize=65536)
def _with_variants(code: types.CodeType, renames: frozenset[tuple[str, tuple[str, bool]]]) -> types.CodeType:
    """The same code, inner functions included, in which loads of global names load variants, and sizes are compared
    with numbers by value (``size is 8``)."""
    known = dict(renames)
    consts = tuple(_with_variants(c, renames) if isinstance(c, types.CodeType) else c for c in code.co_consts)
    if questions := list(_identities(code))[:100]:
        raw = bytearray(code.co_code)
        for at in questions:
            number: Any = consts[raw[at + 1]]
            raw[at + 1], raw[at + 2] = len(consts), dis.opmap["CONTAINS_OP"]
            consts += (_Value(number),)
        code = code.replace(co_code=bytes(raw), co_consts=consts)
    if not {name.removeprefix("import ") for name in known} & set(code.co_names):
        return code.replace(co_consts=consts) if consts != code.co_consts else code
    raw, names = bytearray(code.co_code), list(code.co_names)
    for at, name, is_call, shift in (*_loads_of_globals(code), *_imports(code)):
        new, calls_alone = known.get(name, ("", True))
        if new and (is_call or not calls_alone):
            names += [new] * (new not in names)
            argument = (names.index(new) << shift) | (raw[at + 1] & shift)
            if argument < 256 and raw[at - 2] != dis.EXTENDED_ARG:  # else there is no room for it
                raw[at + 1] = argument
    return code.replace(co_code=bytes(raw), co_names=tuple(names), co_consts=consts)


class _Value:
    """Takes the number's place in ``size is 8``, which is written ``size in`` this."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __contains__(self, other: Any) -> bool:
        return bool(other == self.number) if isinstance(other, Traced) else other is self.number


# It looks ahead, as the bytes of two other instructions may look like one.
_QUESTION = re.compile(b"(?=%c.%c)" % (dis.opmap["LOAD_CONST"], dis.opmap["IS_OP"]), re.DOTALL)


def _identities(code: types.CodeType) -> Iterator[int]:
    """Where code loads a number that it compares by ``is``. From Python 3.13 on, ``in`` takes more room than ``is``."""
    raw = code.co_code
    for found in _QUESTION.finditer(raw) if sys.version_info < (3, 13) and len(code.co_consts) < 128 else ():
        at = found.start()
        if not at % 2 and raw[at - 2] != dis.EXTENDED_ARG and type(code.co_consts[raw[at + 1]]) is int:
            yield at


def _asks_identity(code: types.CodeType) -> bool:
    inner = (c for c in code.co_consts if isinstance(c, types.CodeType))
    return any(True for _ in _identities(code)) or any(map(_asks_identity, inner))


# Since Python 3.11 the lowest bit of such an instruction's argument says whether it loads what is called.
_SHIFT = int(sys.version_info >= (3, 11))


_Load = tuple[int, str, bool, int]


def _imports(code: types.CodeType) -> Iterator[_Load]:
    """Each import in code whose value is the module of that name, not the package that holds it."""
    before: Any = None
    for instruction in dis.get_instructions(code):
        if instruction.opname == "IMPORT_NAME" and ("." not in instruction.argval or before is not None):
            yield instruction.offset, f"import {instruction.argval}", False, 0
        before = instruction.argval


def _loads_of_globals(code: types.CodeType) -> Iterator[_Load]:
    """Each load of a global name: where, the name, whether the value is only called there, and bits below the name."""
    instructions = list(dis.get_instructions(code))
    for number, instruction in enumerate(instructions):
        if instruction.opname == "LOAD_GLOBAL":
            name = code.co_names[(instruction.arg or 0) >> _SHIFT]
            is_call = bool((instruction.arg or 0) & 1) if _SHIFT else _is_called(instructions[number + 1 :])
            before = instructions[number - 1]
            is_mapped = before.opname == "LOAD_GLOBAL" and before.argval == "map"
            yield instruction.offset, name, is_call or is_mapped, _SHIFT


def _is_called(following: list[dis.Instruction]) -> bool:
    """In Python 3.10: whether the next call at this stack depth calls the value on top of the stack."""
    depth = 1
    for instruction in following:
        below = {"CALL_FUNCTION": 1, "CALL_FUNCTION_KW": 2}.get(instruction.opname)
        if below is not None and depth == below + (instruction.arg or 0):
            return True
        if depth == 1 and not instruction.opname.startswith("LOAD_"):
            return False
        depth += dis.stack_effect(instruction.opcode, instruction.arg, jump=False)
        if depth < 1 or (instruction.opname in ("LOAD_ATTR", "LOAD_METHOD") and depth < 2):
            return False
    return False
