"""One call of one torch function on tensors of given shapes, as a line of text that a table can be keyed by."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

__all__ = ["Kernel", "TensorSpec", "function_of"]

_FILLING = 0.5


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Shape and dtype of a tensor."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    def made(self, device: torch.device) -> torch.Tensor:
        """Such a tensor; its values are small and not denormal, which some processors are slow with."""
        floats = self.dtype.is_floating_point or self.dtype.is_complex
        return torch.full(self.shape, _FILLING if floats else 0, dtype=self.dtype, device=device)

    def __str__(self) -> str:
        return f"{str(self.dtype).removeprefix('torch.')}[{'x'.join(map(str, self.shape))}]"


@dataclass(frozen=True)
class Kernel:
    """A call of a torch function by its name.

    Attributes:
        name: what the rules call it, such as "conv2d".
        arguments: names and values; tensors are given as :class:`TensorSpec`.
    """

    name: str
    arguments: tuple[tuple[str, Any], ...]

    @property
    def key(self) -> str:
        """The call as text: equal calls have equal keys."""
        return f"{self.name}({', '.join(f'{name}={value}' for name, value in self.arguments)})"

    def prepared(self, device: torch.device) -> Callable[[], object]:
        """The call, with its tensors made.

        Raises:
            LookupError: torch has no function of that name.
        """
        function = function_of(self.name)
        values = {n: v.made(device) if isinstance(v, TensorSpec) else v for n, v in self.arguments}
        return lambda: function(**values)


def function_of(name: str) -> Callable[..., Any]:
    """torch's function of a canonical name.

    Raises:
        LookupError: there is none.
    """
    for namespace in (functional, torch):
        if callable(function := getattr(namespace, name, None)):
            found: Callable[..., Any] = function
            return found
    raise LookupError(f"torch has no function {name}")
