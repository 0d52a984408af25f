"""Normalisation: batch, layer, group, instance and root mean square."""

from __future__ import annotations

from dataclasses import dataclass, replace

from tests.nets.coupling import Axis, Coupling
from tests.nets.steps.step import Kept, Step, join


@dataclass(frozen=True)
class BatchNorm(Step):
    """``nn.BatchNorm1d/2d`` over dim 1, in evaluation a fixed affine map of each channel."""

    out: str
    source: str
    module: str
    channels: int
    rank: int = 2
    affine: bool = True

    def outputs(self) -> tuple[str, ...]:
        return (self.out,)

    def init_lines(self) -> tuple[str, ...]:
        arguments = join(str(self.channels), "" if self.affine else "affine=False")
        return (f"self.{self.module} = nn.BatchNorm{self.rank}d({arguments})",)

    def forward_line(self) -> str:
        return f"{self.out} = self.{self.module}({self.source})"

    def couple(self, net: Coupling) -> None:
        axes = net.values[self.source]
        for kind in ("running_mean", "running_var", *(("weight", "bias") if self.affine else ())):
            net.parameter(f"{self.module}.{kind}", (axes[1],))
        net.define(self.out, axes)

    def narrowed(self, kept: Kept) -> Step:
        return replace(self, channels=kept.size(self.source, 1))


@dataclass(frozen=True)
class LayerNorm(Step):
    """``nn.LayerNorm`` (or ``nn.RMSNorm``) over the last dims; what is left is normalised by itself."""

    out: str
    source: str
    module: str
    shape: tuple[int, ...]
    affine: bool = True
    root_mean_square: bool = False
    functional: bool = False

    def outputs(self) -> tuple[str, ...]:
        return (self.out,)

    def normalised(self, net: Coupling) -> Axis:
        return tuple(cell for axis in net.values[self.source][-len(self.shape) :] for cell in axis)

    def _kinds(self) -> tuple[str, ...]:
        if not self.affine:
            return ()
        return ("weight",) if self.root_mean_square else ("weight", "bias")

    def _parameter(self, kind: str) -> str:
        return f"{self.module}_{kind}" if self.functional else f"{self.module}.{kind}"

    def init_lines(self) -> tuple[str, ...]:
        if self.functional:
            return tuple(
                f"self.{self._parameter(kind)} = nn.Parameter(torch.empty({self.shape}))" for kind in self._kinds()
            )
        name, epsilon = ("RMSNorm", "eps=1e-5") if self.root_mean_square else ("LayerNorm", "")
        arguments = join(str(self.shape), epsilon, "" if self.affine else "elementwise_affine=False")
        return (f"self.{self.module} = nn.{name}({arguments})",)

    def forward_line(self) -> str:
        if not self.functional:
            return f"{self.out} = self.{self.module}({self.source})"
        name, epsilon = ("rms_norm", "eps=1e-5") if self.root_mean_square else ("layer_norm", "")
        affine = [f"self.{self._parameter(kind)}" for kind in self._kinds()]
        return f"{self.out} = F.{name}({join(self.source, str(self.shape), *affine, epsilon)})"

    def couple(self, net: Coupling) -> None:
        axes = net.values[self.source]
        for kind in self._kinds():
            net.parameter(self._parameter(kind), axes[-len(self.shape) :])
        net.define(self.out, axes)

    def narrowed(self, kept: Kept) -> Step:
        count = len(self.shape)
        return replace(self, shape=tuple(kept.size(self.source, dim - count) for dim in range(count)))


@dataclass(frozen=True)
class GroupNorm(Step):
    """``nn.GroupNorm``: whole groups can go, or the same slice of every group."""

    out: str
    source: str
    module: str
    groups: int
    channels: int

    def outputs(self) -> tuple[str, ...]:
        return (self.out,)

    def normalised(self, net: Coupling) -> Axis:
        return net.values[f"{self.module}#width"][0]

    def init_lines(self) -> tuple[str, ...]:
        return (f"self.{self.module} = nn.GroupNorm({self.groups}, {self.channels})",)

    def forward_line(self) -> str:
        return f"{self.out} = self.{self.module}({self.source})"

    def couple(self, net: Coupling) -> None:
        axes = net.values[self.source]
        groups = net.note(f"{self.module}#groups", net.new(self.groups))
        width = net.note(f"{self.module}#width", net.new(self.channels // self.groups))
        net.product(axes[1], (groups, width))
        for kind in ("weight", "bias"):
            net.parameter(f"{self.module}.{kind}", (axes[1],))
        net.define(self.out, axes)

    def narrowed(self, kept: Kept) -> Step:
        return replace(self, groups=kept.size(f"{self.module}#groups", 0), channels=kept.size(self.source, 1))


@dataclass(frozen=True)
class InstanceNorm(Step):
    """``nn.InstanceNorm2d``: each channel of each example by itself, so channels stay independent."""

    out: str
    source: str
    module: str
    channels: int
    affine: bool = True

    def outputs(self) -> tuple[str, ...]:
        return (self.out,)

    def init_lines(self) -> tuple[str, ...]:
        arguments = join(str(self.channels), "affine=True" if self.affine else "")
        return (f"self.{self.module} = nn.InstanceNorm2d({arguments})",)

    def forward_line(self) -> str:
        return f"{self.out} = self.{self.module}({self.source})"

    def couple(self, net: Coupling) -> None:
        axes = net.values[self.source]
        for kind in ("weight", "bias") if self.affine else ():
            net.parameter(f"{self.module}.{kind}", (axes[1],))
        for positions in axes[2:]:
            net.fix(positions)
        net.define(self.out, axes)

    def narrowed(self, kept: Kept) -> Step:
        return replace(self, channels=kept.size(self.source, 1))
