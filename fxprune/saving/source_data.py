"""Expressions in a generated ``model.py`` that make one given tensor, and the packed constants at its end."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import torch

from fxprune.saving.source_names import call, quoted
from fxprune.saving.values import decode, to_source

_LONGEST_LITERAL = 48
_LINE = 100
_UNPACK = '''
def unpack(text: str, stored: torch.dtype, dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
    """A constant from its compressed bytes."""
    data = zlib.decompress(base64.b85decode(text.replace("\\n", "")))
    return torch.frombuffer(bytearray(data), dtype=stored).to(dtype).reshape(shape)
'''


def literal_source(value: Any) -> str:
    """Python source of a value that holds no node."""

    def refuse(node: Any) -> str:
        raise AssertionError(f"{node} inside a plain value")

    return to_source(value, refuse)


def zeros_source(tensor: torch.Tensor) -> str:
    """Zeros of the tensor's shape and dtype, to be filled from the state dict."""
    dtype = "" if tensor.dtype is torch.float32 else f", dtype={tensor.dtype}"
    sizes = ", ".join(map(str, tensor.shape)) or "()"
    return f"torch.zeros({sizes}{dtype})"


class ConstantTable:
    """Writes constants as expressions; those without a short one are packed and defined once, at the file's end."""

    def __init__(self) -> None:
        self._names: dict[str, str] = {}

    def expression(self, tensor: torch.Tensor) -> str:
        """An expression that makes exactly this tensor."""
        tensor = tensor.detach().cpu().contiguous()
        short = _short_source(tensor)
        if short is not None:
            return short
        call = _packed_source(tensor)
        return self._names.setdefault(call, f"CONSTANT_{len(self._names) + 1}") + ".clone()"

    def definitions(self) -> str:
        """The source that defines the packed constants; empty where there are none."""
        lines = [f"{name} = {call}\n" for call, name in self._names.items()]
        return "".join(["\n", _UNPACK, "\n\n", *lines]) if lines else ""


def _short_source(tensor: torch.Tensor) -> str | None:
    shape, dtype = tuple(tensor.shape), f"dtype={tensor.dtype}"
    if tensor.numel() == 0:
        return f"torch.zeros({shape}, {dtype})"
    if tensor.numel() <= 16 and len(literal := literal_source(tensor.tolist())) <= _LONGEST_LITERAL:
        return f"torch.tensor({literal}, {dtype})"
    first = tensor.flatten()[0]
    if _same_bits(tensor, first.expand(shape).contiguous()):
        return f"torch.full({shape}, {literal_source(first.item())}, {dtype})"
    if not tensor.is_complex() and tensor.dtype is not torch.bool:
        steps = torch.arange(tensor.numel(), dtype=tensor.dtype)
        if _same_bits(tensor, steps):
            return f"torch.arange({tensor.numel()}, {dtype}).reshape({shape})"
    return None


def _packed_source(tensor: torch.Tensor) -> str:
    stored = _narrowest(tensor)
    text = base64.b85encode(zlib.compress(_bytes(tensor.to(stored)), 9)).decode("ascii")
    # The alphabet of this encoding has neither quotes nor backslashes.
    lines = "\n".join(text[i : i + _LINE] for i in range(0, len(text), _LINE))
    return f'unpack(\n    """\n{lines}\n""",\n    {stored},\n    {tensor.dtype},\n    {tuple(tensor.shape)},\n)'


def _narrowest(tensor: torch.Tensor) -> torch.dtype:
    """The smallest integer dtype that holds an index table, as tables of positions are long and their values small."""
    if tensor.dtype not in (torch.int64, torch.int32):
        return tensor.dtype
    low, high = int(tensor.min()), int(tensor.max())
    fitting = (d for d in (torch.uint8, torch.int16) if torch.iinfo(d).min <= low and high <= torch.iinfo(d).max)
    return next(fitting, tensor.dtype)


def _bytes(tensor: torch.Tensor) -> bytes:
    data: bytes = tensor.flatten().view(torch.uint8).numpy().tobytes()
    return data


def _same_bits(left: torch.Tensor, right: torch.Tensor) -> bool:
    # Bits and not values: zero equals minus zero, and no NaN equals itself.
    return torch.equal(left.flatten().view(torch.uint8), right.flatten().view(torch.uint8))


RESTORED = '''
def restored(kind: type, /, **modules: nn.Module) -> nn.Module:
    """A module made without its constructor, with the submodules that it had."""
    module = kind.__new__(kind)
    nn.Module.__init__(module)
    module._modules.update(modules)
    return module
'''
RESTORED_OBJECT = '''
def restored_object(kind: type, attributes: dict) -> object:
    """An object made without its constructor, with the attributes that it had."""
    made = object.__new__(kind)
    vars(made).update(attributes)
    return made
'''


class StateSource:
    """Prints what :class:`fxprune.saving.states.StateWriter` wrote.

    ``access`` gives the expression that reaches a module; ``tensors`` the tensors by name.
    """

    def __init__(
        self, access: Callable[[str], str], tensors: Mapping[str, torch.Tensor], constants: ConstantTable
    ) -> None:
        self._access = access
        self._tensors = tensors
        self._constants = constants
        self._names: dict[str, str] = {}
        self._kinds: dict[str, Callable[[Any], str]] = {
            "tuple": self._tuple,
            "set": lambda items: f"set({self.expression(items)})",
            "frozenset": lambda items: f"frozenset({self.expression(items)})",
            "dict": lambda pairs: f"{{{', '.join(': '.join(map(self.expression, pair)) for pair in pairs)}}}",
            "member": lambda parts: f"{self.name(parts[0])}.{parts[1]}",
            "partial": lambda parts: f"functools.partial({self._partial(*parts)})",
            "module": access,
            "tensor": lambda name: constants.expression(self._tensors[name]),
            "function": lambda name: str(name).removeprefix("builtins."),
            "import": self.name,
            "object": lambda parts: f"restored_object({self.name(parts[0])}, {self.attributes(parts[1])})",
        }

    def name(self, path: str) -> str:
        """The name under which a class or function is imported."""
        last = path.rpartition(":")[2].replace(".", "_")
        if path not in self._names:
            taken = {*self._names.values(), "Model", "restored", "restored_object", "named", "part", "torch", "nn", "F"}
            candidates = [last, *(f"{last}_{i}" for i in range(2, len(taken) + 3))]
            self._names[path] = next(name for name in candidates if name not in taken)
        return self._names[path]

    def imports(self) -> list[str]:
        """The import statements of everything that was named so far."""
        named: dict[str, list[str]] = {}
        nested = []
        for path, name in sorted(self._names.items()):
            module, _, qualified = path.partition(":")
            outer, _, inner = qualified.partition(".")
            nested += [f"{name} = {qualified}"] if inner else []
            named.setdefault(module, []).append(outer if inner or outer == name else f"{outer} as {name}")
        lines = [call(f"from {module} import ", list(dict.fromkeys(n)), 0, "") for module, n in named.items()]
        return lines + nested

    def attributes(self, state: Mapping[str, Any]) -> str:
        """A dictionary display of attributes by name."""
        return f"{{{', '.join(self.items(state))}}}"

    def items(self, state: Mapping[str, Any]) -> list[str]:
        """The entries of that display."""
        return [f"{quoted(name)}: {self.expression(value)}" for name, value in state.items()]

    def expression(self, data: Any) -> str:
        """An expression that makes one value."""
        if isinstance(data, list):
            return f"[{', '.join(self.expression(item) for item in data)}]"
        if isinstance(data, dict) and len(data) == 1:
            ((kind, content),) = data.items()
            if kind in self._kinds:
                return self._kinds[kind](content)
        return literal_source(decode(data, {}))

    def _tuple(self, items: list[Any]) -> str:
        return f"({', '.join(map(self.expression, items))}{',' if len(items) == 1 else ''})"

    def _partial(self, function: Any, args: Any, kwargs: Any) -> str:
        parts = [self.expression(function), f"*{self.expression(args)}"]
        return ", ".join([*parts, f"**{self.expression(kwargs)}"])
