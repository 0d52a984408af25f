"""Random numbers that two networks of different widths draw alike: they depend on the first dim alone.

A mask drawn entry by entry has other numbers for a kept channel once channels before it are gone. In a comparison of
training mode every draw therefore gives one number a row, from its distribution's range, so that whether it is there,
where, and with which probability still shows in the result.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

_TRIALS = ("bernoulli", "bernoulli_")
_UNIFORM = ("rand", "rand_like", "uniform_")
_NORMAL = ("randn", "randn_like", "normal_", "exponential_")


class RowChance(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Replaces random draws by one number a row.

    Attributes:
        draws: name and number of rows of each draw so far, and for an operator that is not replaced its whole shape.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._generator = torch.Generator().manual_seed(seed)
        self.draws: list[tuple[str, tuple[int, ...]]] = []

    def __torch_dispatch__(
        self,
        func: torch._ops.OpOverload,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name.removeprefix("aten::")
        if name in _TRIALS:
            return self._trial(name, args, kwargs)
        if name in (*_UNIFORM, *_NORMAL):
            return self._replaced(func, name, args, kwargs)
        result = func(*args, **kwargs)
        if torch.Tag.nondeterministic_seeded in func.tags and isinstance(result, Tensor):
            self.draws.append((name, tuple(result.shape)))
        return result

    def _trial(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        """A number about the probability, instead of zero or one; those that are divided by it come out about one."""
        given: Tensor = args[0]
        chance = args[1] if len(args) > 1 else kwargs.get("p", given if name == "bernoulli" else 0.5)
        rows = self._rows(name, given.shape, given.device)
        drawn = chance + chance * (1 - chance) * rows if given.is_floating_point() else (rows > 0)
        target = given if name.endswith("_") else torch.empty_like(given)
        return target.copy_(drawn)

    def _replaced(self, func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        result: Tensor = func(*args, **kwargs)
        if not result.is_floating_point():
            return result
        rows = self._rows(name, result.shape, result.device)
        if name in _UNIFORM:
            low, high = _two(args) if name == "uniform_" else (0.0, 1.0)
            return result.copy_(low + (high - low) * (rows + 1) / 2)
        if name == "normal_":
            mean, deviation = _two(args)
            return result.copy_(mean + deviation * rows)
        return result.copy_(rows.abs() if name == "exponential_" else rows)

    def _rows(self, name: str, shape: torch.Size, device: torch.device) -> Tensor:
        """A number between -1 and 1 for each row, which broadcasts to ``shape``."""
        rows = shape[:1]
        self.draws.append((name, tuple(rows)))
        values = torch.rand(tuple(rows), generator=self._generator, dtype=torch.float64) * 2 - 1
        return values.reshape(*rows, *[1] * (len(shape) - 1)).to(device)


def _two(args: tuple[Any, ...]) -> tuple[float, float]:
    """The two numbers behind the tensor, by default 0 and 1."""
    return args[1] if len(args) > 1 else 0.0, args[2] if len(args) > 2 else 1.0
