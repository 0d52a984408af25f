"""Training at compact width, with kernels that are fused from all filters."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import fx, nn

import fxprune.compiling as passes
from fxprune.axes.elements import Mask
from fxprune.criteria.information_fusion import check_fusion, temperature_at
from fxprune.errors import OptionError
from fxprune.groups import Group
from fxprune.model_paths import attribute
from fxprune.planning import Plan
from fxprune.samples import Sample
from fxprune.schedules.fused_layers import fuse_rows
from fxprune.schedules.options import exclusions, unwrapped
from fxprune.schedules.widths import fused_groups, why_not, widths_of_plan, widths_of_rates
from fxprune.summarising import summarise
from fxprune.verifying.selecting import select

__all__ = ["FusedTraining"]


class FusedTraining:
    """Training from scratch at compact width: every filter is a mixture of all filters, less and less so.

    Qu et al. 2022 ("APBM"), in the formulation of DCFF (Lin et al., arXiv 2107.06916), which its text does not settle.
    In each epoch a layer of N filters, of which m stay, convolves with ``P[kept] @ W``: W are all N filters, which are
    what is trained, P their similarity distributions at the epoch's temperature, in the log domain, and kept the m
    filters whose distributions are least like the others'. Nothing is pruned in the end, and nothing fine-tuned::

        schedule = FusedTraining(model, images, rates={"layer*.conv1": 0.5}, epochs=300)
        network = schedule.network  # narrow; train this one
        for epoch in range(300):
            schedule.step()
            ...  # train the network for an epoch
        pruned = schedule.compact()

    The model is only read: ``network`` starts from its weights, so pass one that is freshly initialised. Coupled layers
    (a residual stream) are compared by their filters side by side and fused by the same shares; the paper's text does
    not say, and the released code of DCFF leaves such streams whole, as ``ratio`` does here. Wrap ``network`` for
    DistributedDataParallel; every rank calls :meth:`step` and gets the first rank's shares.

    Args:
        model: the network at full width.
        sample_input: as for :func:`fxprune.compile`.
        epochs: over how many the temperature rises from 1 to ``end``.
        rates: share of the filters that goes, by patterns of the layers' paths, as published; the others stay whole.
        ratio: instead of rates, fraction of the MACs that goes, the same share of every layer outside residual streams.
        plan: instead of rates, a plan for the model, whose widths are taken.
        kappa: how fast the temperature rises. The published 1 leaves hardly any fusion after the first epoch;
            ``10 / epochs`` is gentler.
        end: the last temperature.
        beta, fusion: the proportion that is fused in, and its form; see
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
        verify: bool = True,
    ) -> None:
        self.epochs, self.kappa, self.end = _checked(epochs, kappa, end)
        self.beta, self.fusion = check_fusion(beta, fusion)
        self.epoch = 0
        self._network_name = type(unwrapped(model)).__name__
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
        """That of the present epoch."""
        return temperature_at(min(self.epoch, self.epochs), self.epochs, end=self.end, kappa=self.kappa)

    @property
    def plan(self) -> Plan:
        """Which filters stand for the others at present."""
        kept = {group.name: group.kept for group in self._groups}
        masks = {group: _mask(group, kept[group.name]) for group in self._graph.groups if group.name in kept}
        names = ("epochs", "kappa", "end", "beta", "fusion")
        about = {"criterion": "information_fusion", "budget": "macs", "schedule": "fused in training"}
        return Plan.from_masks(self._graph, masks, {**about, **{name: getattr(self, name) for name in names}})

    def step(self) -> None:
        """At the start of an epoch: its temperature, the filters that stay, and new shares."""
        self._refresh()
        self.epoch += 1

    def compact(self) -> fx.GraphModule:
        """An ordinary narrow network with the fused filters as they are, equal to ``network`` in its outputs."""
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
        """What :meth:`load_state_dict` reads to go on; the filters and shares are in ``network.state_dict()``."""
        return {"epochs": self.epochs, "epoch": self.epoch, "kept": {g.name: list(g.kept) for g in self._groups}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where another schedule of the same network stood, after loading ``network``.

        Raises:
            OptionError: it had other epochs, groups or widths.
        """
        widths = {name: len(kept) for name, kept in state["kept"].items()}
        if widths != {g.name: g.width for g in self._groups} or state["epochs"] != self.epochs:
            raise OptionError("the state is of a schedule with other epochs, groups or widths")
        self.epoch = int(state["epoch"])
        for group in self._groups:
            group.kept = tuple(int(index) for index in state["kept"][group.name])

    # -- making the network --------------------------------------------------------------------------------------------

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
        return widths_of_plan(self._graph, plan)

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


def _mask(group: Group, kept: tuple[int, ...]) -> Mask:
    mask = np.zeros(group.size, dtype=np.bool_)
    mask[list(kept)] = True
    return mask


def _checked(epochs: Any, kappa: Any, end: Any) -> tuple[int, float, float]:
    if isinstance(epochs, bool) or not isinstance(epochs, int) or epochs < 1:
        raise OptionError(f"epochs must be a whole number of at least 1, not {epochs!r}")
    if not kappa > 0 or not end >= 1:
        raise OptionError(f"kappa must be above 0 and end at least 1, not {kappa!r} and {end!r}")
    return epochs, float(kappa), float(end)
