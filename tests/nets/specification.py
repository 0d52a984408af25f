"""A network as data: prints itself as ordinary source, builds itself from it, and states its element-level coupling."""

from __future__ import annotations

import linecache
import sys
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import sha256
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from tests.nets.coupling import ALIVE, Coupling
from tests.nets.habits.outputs import STYLES, Returned
from tests.nets.steps.step import Kept, Step

IMPORTS = """\
import array, bisect, collections, copy, decimal, fractions, functools, heapq, itertools, json, math, operator, random
import statistics, struct

import numpy as np
import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from torch import nn

from tests.nets.narrow_attention import NarrowAttention
"""


@dataclass(frozen=True)
class Input:
    """An input: its name, its shape without the batch, and the vocabulary of integer tokens (0: floats)."""

    name: str
    shape: tuple[int, ...]
    vocabulary: int = 0

    def sample(self, batch: int, generator: torch.Generator) -> Tensor:
        """Return random values of shape ``(batch, *shape)``."""
        if self.vocabulary:
            return torch.randint(self.vocabulary, (batch, *self.shape), generator=generator)
        return torch.randn((batch, *self.shape), generator=generator)


@dataclass(frozen=True, repr=False)
class Specification:
    """Inputs, steps and outputs. ``output_style``: ``dict`` or a key of ``STYLES``. ``seed`` draws the weights.

    ``unaligned``: sizes may cut across one another, so that an analysis may pin more than the coupling does.
    """

    inputs: tuple[Input, ...]
    steps: tuple[Step, ...]
    outputs: tuple[str, ...]
    output_style: str = "single"
    seed: int = 0
    unaligned: bool = False

    def __repr__(self) -> str:
        return f"\n{self.source()}"

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """Print as source in hypothesis's reports too, which would otherwise spell the fields out."""
        printer.text(repr(self))

    def source(self) -> str:
        """Return Python source that defines ``class Net(nn.Module)``."""
        returned = STYLES.get(self.output_style, Returned(""))
        init = dict.fromkeys(line for step in self.steps for line in step.init_lines())
        forward = [line for step in self.steps for line in step.forward_line().splitlines()]
        body = [
            *dict.fromkeys((*(block for step in self.steps for block in step.above_lines()), returned.above)),
            "class Net(nn.Module):",
            "    def __init__(self):",
            *(f"        {line}" for line in ("super().__init__()", *init, returned.init)),
            *self._train_lines(),
            f"    def forward(self, {', '.join(entry.name for entry in self.inputs)}):",
            *(f"        {line}" for line in (*forward, f"return {self._returned()}")),
        ]
        shapes = ", ".join(f"{entry.name}: (batch, {', '.join(map(str, entry.shape))})" for entry in self.inputs)
        lines = (line.rstrip() for line in body)
        return "\n".join([f"# {shapes}; weights drawn from seed {self.seed}", *filter(None, lines), ""])

    def _train_lines(self) -> list[str]:
        lines = list(dict.fromkeys(line for step in self.steps for line in step.train_lines()))
        if not lines:
            return []
        wrapped = (f"        {line}" for line in ("super().train(mode)", *lines, "return self"))
        return ["    def train(self, mode=True):", *wrapped]

    def _returned(self) -> str:
        if self.output_style == "dict":
            return "{" + ", ".join(f'"{name}": {name}' for name in self.outputs) + "}"
        return STYLES[self.output_style].expression.format(values=", ".join(self.outputs), first=self.outputs[0])

    def module(self) -> nn.Module:
        """Execute the source and return the module, its weights not yet drawn."""
        source = f"{IMPORTS}\n{self.source()}"
        filename = f"<net {sha256(source.encode()).hexdigest()[:12]}>"
        linecache.cache[filename] = (len(source), None, source.splitlines(keepends=True), filename)
        module = sys.modules[filename] = ModuleType(filename)
        exec(compile(source, filename, "exec"), vars(module))
        made: nn.Module = module.Net()
        return made

    def build(self) -> nn.Module:
        """Return the module in evaluation mode with weights drawn from ``seed``."""
        module = self.module().eval()
        randomise(module, self.seed)
        return module

    def sample(self, batch: int = 2, seed: int = 0) -> tuple[Tensor, ...]:
        """Return one random tensor for each input."""
        generator = torch.Generator().manual_seed(seed)
        return tuple(entry.sample(batch, generator) for entry in self.inputs)

    @cached_property
    def coupling(self) -> Coupling:
        """The element-level coupling of the whole network, inputs and outputs fixed."""
        net = Coupling()
        for entry in self.inputs:
            net.define(entry.name, tuple(net.fixed(size) for size in (1, *entry.shape)))
        for step in self.steps:
            step.couple(net)
        for name in self.outputs:
            for axis in net.values[name]:
                net.fix(axis)
        return net

    def macs(self) -> int:
        """Return multiply-accumulates per example."""
        return sum(step.macs(self.coupling) for step in self.steps)

    def narrowed(self, kept: Kept) -> Specification:
        """Return the same network with the kept sizes only."""
        return replace(self, steps=tuple(step.narrowed(kept) for step in self.steps))

    def masking_is_exact(self) -> bool:
        """Whether zeroed entries are the same as removed ones everywhere: no normalisation over what may go, and no
        contraction without a weight of values that a function has moved off zero."""
        net = self.coupling
        moved = any(not step.zero_preserving for step in self.steps)
        cells = [cell for step in self.steps for cell in step.normalised(net)]
        cells += [cell for step in self.steps if moved for cell in step.contracted(net)]
        return all(net.root(cell) == ALIVE for cell in cells)


def randomise(module: nn.Module, seed: int) -> None:
    """Draw every float parameter and buffer, none of them near zero, so that no branch is silent."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if not tensor.is_floating_point():
                continue
            if name.endswith("running_var"):
                tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
            else:
                fan_in = max(1, tensor[0].numel()) if tensor.dim() > 1 else 1
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * fan_in**-0.5 + 0.1)
