"""Layers that run at narrow width but hold and train all of their filters."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

import fxprune.api as passes
from fxprune.analysis.groups import Group
from fxprune.analysis.solving import ChannelGraph
from fxprune.capture.samples import Sample
from fxprune.criteria.information_fusion import (
    check_fusion,
    divergence_importance,
    fusion_shares,
    log_similarity_distributions,
    temperature_at,
)
from fxprune.criteria.rows import settled
from fxprune.errors import OptionError, check_count
from fxprune.options import Level
from fxprune.planning import Plan
from fxprune.proof.masking import select
from fxprune.reporting.summarising import summarise
from fxprune.schedules.steps import check_unwrapped, checked_state, exclusions, values_of_first_rank
from fxprune.util.paths import attribute


class FusedRows(nn.Module):
    """A parametrisation: the layer uses ``shares @ rows``, and the rows are trained.

    Args:
        rows: all rows, ``(filters, ...)``, which the layer holds from now on.
        kept: the number of rows that the layer uses.
    """

    shares: Tensor

    def __init__(self, rows: Tensor, kept: int) -> None:
        super().__init__()
        self.register_buffer("shares", rows.new_zeros((kept, len(rows))))
        self._rows: Tensor | None = rows

    def forward(self, rows: Tensor) -> Tensor:
        """Fuse all rows ``(filters, ...)`` into ``(kept, ...)``."""
        return (self.shares @ rows.reshape(len(rows), -1)).reshape(-1, *rows.shape[1:])

    def right_inverse(self, _: Tensor) -> Tensor:
        """The tensor that the layer holds instead of its narrow one: all rows."""
        rows, self._rows = self._rows, None
        assert rows is not None, "a narrow tensor does not tell the rows that it was fused from"
        return rows


def fuse_rows(network: nn.Module, name: str, rows: Tensor) -> None:
    """Compute a parameter of a narrow network from ``rows`` from now on, in place."""
    path, _, leaf = name.rpartition(".")
    narrow = attribute(network, name)
    with torch.no_grad():
        layer = FusedRows(rows.detach().clone().to(narrow), len(narrow))
    # unsafe=True is how torch allows a parametrisation to change a shape; it then makes no checks.
    parametrize.register_parametrization(network.get_submodule(path), leaf, layer, unsafe=True)


@dataclass
class FusedGroup:
    """The layers of one channel group, all fused by the same shares."""

    name: str  # the group's name
    kernels: tuple[str, ...]  # parameters whose rows are compared, those of coupled layers side by side
    biases: tuple[str, ...]  # parameters that are fused with them
    width: int  # the number of filters that stay
    kept: tuple[int, ...] = field(default=())  # their indices, ascending

    def choose(self, filters: Sequence[Tensor], temperature: float) -> Tensor:
        """Rank the filters, note which stay, and return the rows that were compared: ``(filters, features)``."""
        rows = torch.cat([f.detach().reshape(len(f), -1).to("cpu", torch.float64) for f in filters], dim=1)
        rows = values_of_first_rank(rows)
        scores = settled(divergence_importance(log_similarity_distributions(rows, temperature)).numpy())
        # Ascending indices, so that channels, and the statistics of their batch norms, keep their order.
        self.kept = tuple(sorted(np.argsort(-scores, kind="stable")[: self.width].tolist()))
        return rows

    @torch.no_grad()
    def refresh(self, network: nn.Module, temperature: float, beta: float, fusion: str) -> None:
        """Recompute the shares from the current filters, in place."""
        found = [_parametrisation(network, name) for name in (*self.kernels, *self.biases)]
        rows = self.choose([filters for filters, _ in found[: len(self.kernels)]], temperature)
        shares = fusion_shares(rows, self.kept, temperature, beta, fusion)
        for _, layer in found:
            layer.shares.copy_(shares)


def _parametrisation(network: nn.Module, name: str) -> tuple[Tensor, FusedRows]:
    """All rows of a parameter, and the parametrisation that computes it from them."""
    path, _, leaf = name.rpartition(".")
    held = attribute(network, f"{path}.parametrizations".lstrip("."))[leaf]
    layer, rows = held[0], held.original
    assert isinstance(layer, FusedRows)
    return rows, layer


def widths_of_rates(graph: ChannelGraph, rates: Mapping[str, float]) -> dict[Group, int]:
    """Kept widths from removed shares of filters, by pattern of the layers' paths; rounded down, as in DCFF.

    Raises:
        OptionError: a pattern matches no layer, a share is invalid, or one group gets two shares.
    """
    found: dict[Group, float] = {}
    for pattern, rate in rates.items():
        if isinstance(rate, bool) or not isinstance(rate, (int, float)) or not 0 <= rate < 1:
            raise OptionError(f"the rate of {pattern!r} must be a number with 0 <= rate < 1, not {rate!r}")
        groups = [group for group in graph.groups if any(fnmatchcase(path, pattern) for path in _layers(group))]
        if not groups:
            known = ", ".join(path for group in graph.groups for path in _layers(group)[:1])
            raise OptionError(f"no layer with prunable channels is called {pattern!r}: there are {known}")
        for group in groups:
            if found.setdefault(group, float(rate)) != rate:
                raise OptionError(
                    f"{group.name} is given the rates {found[group]:g} and {rate:g}: its layers are coupled"
                )
    # The small number: 10 * (1 - 0.9) is 0.9999999999999998.
    return {group: max(1, math.floor(group.size * (1 - rate) + 1e-9)) for group, rate in found.items()}


def why_not(group: Group, graph: ChannelGraph, model: nn.Module) -> str:
    """The reason why the filters of a group cannot be fused; empty if they can."""
    kernels = [m for m in group.members if m.role == "out" and len(graph.shapes[m.tensor]) > 1]
    called = {str(n.target) for c in graph.captured.everything() for n in c.graph.nodes if n.op == "call_module"}
    if not kernels:
        return "no layer's filters make its channels"
    for member in kernels:
        path = member.tensor.rpartition(".")[0]
        if member.dim != 0 or member.axis is not group.variable:
            return f"the rows of {member.tensor} are not its channels one by one"
        if path not in called or parametrize.is_parametrized(model.get_submodule(path)):
            return f"{member.tensor} is not the weight of a layer that the network calls"
        if member.tensor not in dict(model.named_parameters()):
            return f"{member.tensor} is not a parameter of its own"
    return ""


def fused_groups(graph: ChannelGraph, model: nn.Module, widths: Mapping[Group, int]) -> list[FusedGroup]:
    """The groups that become narrower, with the parameters that are fused.

    Raises:
        OptionError: a group cannot be fused, or none becomes narrower.
    """
    found = []
    for group, width in widths.items():
        if width >= group.size:
            continue
        reason = why_not(group, graph, model)
        if reason:
            raise OptionError(f"the filters of {group.name} cannot be fused: {reason}; leave this group whole")
        kernels = tuple(m.tensor for m in group.members if m.role == "out" and len(graph.shapes[m.tensor]) > 1)
        own = {name.rpartition(".")[0] + ".bias" for name in kernels}
        biases = tuple(m.tensor for m in group.members if m.tensor in own)
        found.append(FusedGroup(group.name, kernels, biases, width))
    if not found:
        raise OptionError("no layer would become narrower: give a rate or a ratio above 0")
    return found


def _layers(group: Group) -> list[str]:
    """The paths of the layers that make a group's channels."""
    return [m.tensor.rpartition(".")[0] for m in group.members if m.role == "out"]


class FusedTraining:
    """Training from scratch at compact width: every filter is a mixture of all filters, with less mixing each epoch.

    Qu et al. 2022 ("APBM"), in the formulation of DCFF (Lin et al., arXiv 2107.06916), as the text of APBM leaves it
    open. In each epoch, a layer of N filters, of which m stay, convolves with ``P[kept] @ W``. W are all N filters,
    which are trained; P are their similarity distributions at the epoch's temperature; kept are the m filters whose
    distributions differ most from the others'. At the end, nothing needs to be pruned or fine-tuned::

        schedule = FusedTraining(model, images, rates={"layer*.conv1": 0.5}, epochs=300)
        network = schedule.network  # narrow; train this one
        for epoch in range(300):
            schedule.step()
            ...  # train the network for an epoch
        pruned = schedule.compact()

    The model is not changed: ``network`` starts from its weights, so pass a freshly initialised model. Coupled layers
    (a residual stream) are compared by their filters side by side and fused by the same shares. The paper does not
    define this, and the released code of DCFF leaves such streams whole, as ``ratio`` does here. For
    DistributedDataParallel, wrap ``network``; every rank calls :meth:`step` and gets the first rank's shares.

    Args:
        model: the network at full width.
        sample_input: as for :func:`fxprune.compile`.
        epochs: the number of epochs in which the temperature rises from 1 to ``end``.
        rates: the share of filters to remove, by patterns of the layers' paths, as published; other layers stay whole.
        ratio: instead of rates, the fraction of the MACs to remove, by one share for layers outside residual streams.
        plan: instead of rates, a plan for the model; its widths are used.
        kappa: the speed at which the temperature rises. The published 1 leaves hardly any fusion after the first epoch;
            ``10 / epochs`` is gentler.
        end: the last temperature.
        beta, fusion: the proportion of fusion, and its form; see
            :func:`fxprune.criteria.information_fusion.fused_filters`.
        verify: prove the narrow network before training.

    Raises:
        OptionError: not exactly one of rates, ratio and plan, a rate for no layer, or filters that cannot be fused.
        FxpruneError: see :func:`fxprune.compile`.
    """

    def __init__(
        self,
        model: nn.Module,
        sample_input: Any,
        *,
        epochs: int,
        rates: Mapping[str, float] | None = None,
        ratio: float | None = None,
        plan: Plan | None = None,
        kappa: float = 1.0,
        end: float = 10000.0,
        beta: float = 1.0,
        fusion: str = "proxy",
        verify: Level = True,
    ) -> None:
        self.epochs, self.kappa, self.end = _checked(epochs, kappa, end)
        self.beta, self.fusion = check_fusion(beta, fusion)
        self.epoch = 0
        self._network_name = type(check_unwrapped(model)).__name__
        sample = Sample.from_input(sample_input)
        self._graph = passes.analyze(model, sample)
        self._groups = fused_groups(self._graph, model, self._widths(model, sample, rates, ratio, plan))
        for group in self._groups:
            group.choose([attribute(model, name) for name in group.kernels], self.temperature)
        self._narrow = passes.apply(model, sample, self.plan, verify=verify)
        self.network = copy.deepcopy(self._narrow)
        self._fuse(model)

    @property
    def temperature(self) -> float:
        """The temperature of the epoch that the last :meth:`step` began; before the first step, that of epoch 0."""
        return temperature_at(min(max(self.epoch - 1, 0), self.epochs), self.epochs, end=self.end, kappa=self.kappa)

    @property
    def plan(self) -> Plan:
        """The plan that keeps the filters chosen at present."""
        kept = {group.name: group.kept for group in self._groups}
        masks = {group: group.keeping(kept[group.name]) for group in self._graph.groups if group.name in kept}
        names = ("epochs", "kappa", "end", "beta", "fusion")
        about = {"criterion": "information_fusion", "budget": "macs", "schedule": "fused in training"}
        return Plan.from_masks(self._graph, masks, {**about, **{name: getattr(self, name) for name in names}})

    def step(self) -> None:
        """Begin an epoch: set its temperature, choose the filters that stay, and compute new shares."""
        self.epoch += 1
        self._refresh()

    def compact(self) -> fx.GraphModule:
        """An ordinary narrow network with the current fused filters; its outputs equal those of ``network``."""
        like = next(self.network.parameters())
        pruned = copy.deepcopy(self._narrow).to(device=like.device, dtype=like.dtype)
        with torch.no_grad():
            for name in self._narrow.state_dict():
                attribute(pruned, name).copy_(attribute(self.network, name))
        pruned.train(self.network.training)
        plan, masks = self.plan, self.plan.masks(self._graph)
        made = summarise(self._graph, pruned, plan, masks, None, "trained with fused filters", {})
        about: Any = pruned.meta["fxprune"]
        pruned.meta["fxprune"] = {**about, "report": replace(made, network=self._network_name)}
        return pruned

    def state_dict(self) -> dict[str, Any]:
        """The state for :meth:`load_state_dict`; the filters and shares are in ``network.state_dict()``."""
        return {"epochs": self.epochs, "epoch": self.epoch, "kept": {g.name: list(g.kept) for g in self._groups}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from the state of another schedule of the same network, after loading ``network``.

        Raises:
            OptionError: that schedule had other epochs, groups or widths, or was of another kind.
        """
        state = checked_state(state, ("epochs", "kept"), "epoch")
        kept = state["kept"] if isinstance(state["kept"], Mapping) else {}
        widths = {name: len(indices) for name, indices in kept.items()}
        if widths != {g.name: g.width for g in self._groups} or state["epochs"] != self.epochs:
            raise OptionError("the state is of a schedule with other epochs, groups or widths")
        self.epoch = state["epoch"]
        for group in self._groups:
            group.kept = tuple(int(index) for index in kept[group.name])

    def _widths(
        self,
        model: nn.Module,
        sample: Sample,
        rates: Mapping[str, float] | None,
        ratio: float | None,
        plan: Plan | None,
    ) -> dict[Group, int]:
        if (rates is not None) + (ratio is not None) + (plan is not None) != 1:
            raise OptionError("give exactly one of rates, ratio and plan")
        if rates is not None:
            return widths_of_rates(self._graph, rates)
        if plan is None:
            assert ratio is not None
            whole = exclusions(group for group in self._graph.groups if why_not(group, self._graph, model))
            plan = passes.plan(model, sample, ratio, scope="uniform", residual="inner", exclude=whole)
        masks = plan.masks(self._graph)
        return {group: int(masks[group.variable].sum()) for group in self._graph.groups}

    def _fuse(self, model: nn.Module) -> None:
        keep = self.plan.keep
        for group in self._groups:
            for name in (*group.kernels, *group.biases):
                rows = select(attribute(model, name).detach(), (None, *keep[name][1:]))
                fuse_rows(self.network, name, rows)
        self._refresh()

    def _refresh(self) -> None:
        for group in self._groups:
            group.refresh(self.network, self.temperature, self.beta, self.fusion)


def _checked(epochs: Any, kappa: Any, end: Any) -> tuple[int, float, float]:
    check_count(OptionError, "epochs", epochs)
    if not kappa > 0 or not end >= 1:
        raise OptionError(f"kappa must be above 0 and end at least 1, not {kappa!r} and {end!r}")
    return epochs, float(kappa), float(end)
