"""Soft pruning, which sets a plan's entries to zero and back during training, and penalties on batch norm scales."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn

import fxprune.api as passes
from fxprune.analysis.solving import ChannelGraph
from fxprune.capture.samples import Sample
from fxprune.cost.budgets import check_ratio
from fxprune.errors import ModelError, OptionError
from fxprune.options import Level, PlanOptions
from fxprune.planning import Plan
from fxprune.proof.copies import named_tensors
from fxprune.proof.masking import overwrite_removed, removed_entries
from fxprune.schedules.steps import check_unwrapped, checked_state, exclusions, plan_of_first_rank

if TYPE_CHECKING:
    from typing_extensions import Unpack


@torch.no_grad()
def zero_removed(model: nn.Module, plan: Plan) -> dict[str, Tensor]:
    """Set every removed entry to zero, in place: the masked original that the proof compares with.

    Returns:
        The former values of the removed entries of every floating tensor, by name, each of shape ``(entries,)``.
    """
    held = {}
    for name, tensor in named_tensors(model).items():
        removed = _removed(tensor, plan, name)
        if removed is not None:
            held[name] = tensor.detach()[removed].clone()
    overwrite_removed(model, plan.keep, 0.0)
    return held


@torch.no_grad()
def restore_removed(model: nn.Module, plan: Plan, held: Mapping[str, Tensor], filters: Mapping[str, int]) -> None:
    """Restore removed entries in place, except for the rows of ``filters`` (a dim for each tensor name)."""
    for name, tensor in named_tensors(model).items():
        removed = _removed(tensor, plan, name)
        if removed is None or name not in held:
            continue
        values = torch.zeros_like(tensor).masked_scatter_(removed, held[name].to(tensor))
        for dim, index in removed_entries(tensor, plan.keep.get(name, ())):
            if filters.get(name) == dim:
                removed.index_fill_(dim, index, False)
        tensor.copy_(torch.where(removed, values, tensor))


def _removed(tensor: Tensor, plan: Plan, name: str) -> Tensor | None:
    """A mask of the entries that a plan removes from a floating tensor; None if there are none."""
    entries = list(removed_entries(tensor, plan.keep.get(name, ())))
    if not entries or not (tensor.is_floating_point() or tensor.is_complex()):
        return None
    removed = torch.zeros_like(tensor, dtype=torch.bool)
    for dim, index in entries:
        removed.index_fill_(dim, index, True)
    return removed


class SoftPruning:
    """Training in which the channels that a plan removes are silenced (set to zero), with a new plan every epoch.

    He et al., "Soft Filter Pruning", 2018, arXiv 1808.06866, with batch norm included, so that a silenced network
    equals the compacted one::

        schedule = SoftPruning(model, images, 0.5, criterion="fpgm")
        for epoch in range(epochs):
            schedule.wake()
            ...  # train the model for an epoch
            schedule.step()  # here the model is as good as it will be when it is compacted
        pruned = schedule.compact()

    **It changes the given model in place**: :meth:`step` sets every entry of its parameters and buffers that the plan
    removes to zero (filters, their batch norm, the columns that read them, but not the running variance). A channel
    whose scale, shift and filter are all zero gets no gradient through ReLU and could never recover. So :meth:`wake`
    restores everything but the filters, and training continues from zero filters, as in the paper.

    Groups whose channels pass through a norm, softmax or mean over channels keep their widths, because there a silent
    channel differs from a removed one; ``kept_whole`` lists them. Under DistributedDataParallel, pass ``model.module``
    on every rank; all get the first rank's plan.

    Args:
        model: the network that is trained.
        sample_input, options: as for :func:`fxprune.plan`; couplings must be "keep".
        ratio: the fraction of the budget that is silent after every step.

    Raises:
        BudgetError: the ratio is out of reach (raised by the first :meth:`step`).
        ModelError: there is no group that can be silenced.
        OptionError: couplings is not "keep".
        FxpruneError: see :func:`fxprune.compile`.
    """

    def __init__(self, model: nn.Module, sample_input: Any, ratio: float, **options: Unpack[PlanOptions]) -> None:
        self.ratio, self.epoch = check_ratio(ratio), 0
        self._model, self._sample = check_unwrapped(model), Sample.from_input(sample_input)
        if options.get("couplings", "keep") != "keep":
            raise OptionError('soft pruning needs couplings="keep": a model has no selections that could be silenced')
        self._graph = graph = passes.analyze(model, self._sample)
        self.kept_whole = tuple(group.name for group in graph.groups if group.crosses_norm)
        if len(self.kept_whole) == len(graph.groups):
            raise ModelError(f"{type(model).__name__} has no channels that can be silenced without running over a norm")
        self._options: Any = {**options, "exclude": _all_exclusions(options.get("exclude", ()), graph)}
        self._filters = _filters(graph)
        self._plan: Plan | None = None
        self._held: dict[str, Tensor] = {}
        self._silent = False

    @property
    def plan(self) -> Plan:
        """The plan of the last step.

        Raises:
            OptionError: there was no step yet.
        """
        if self._plan is None:
            raise OptionError("nothing is chosen yet: call step() first")
        return self._plan

    @property
    def silent(self) -> float:
        """The fraction of channels that are silent."""
        if not self._silent:
            return 0.0
        masks = self.plan.masks(self._graph).values()
        return 1 - sum(float(mask.sum()) for mask in masks) / sum(len(mask) for mask in masks)

    def step(self) -> Plan:
        """At the end of an epoch, choose the channels again and set them to zero; see the class.

        Returns:
            The plan that :meth:`compact` would apply.

        Raises:
            FxpruneError: see :func:`fxprune.compile`.
        """
        self.wake()
        self._plan = plan_of_first_rank(passes.plan(self._model, self._sample, self.ratio, **self._options))
        self._held = zero_removed(self._model, self._plan)
        self._silent = True
        self.epoch += 1
        return self._plan

    def wake(self) -> None:
        """Before an epoch, restore everything but the filters of silenced channels, if any are silent."""
        if self._silent:
            restore_removed(self._model, self.plan, self._held, self._filters)
        self._held, self._silent = {}, False

    def compact(self, *, verify: Level = True) -> fx.GraphModule:
        """The network without its silent channels; if they were woken, :meth:`step` chooses and silences them again.

        Raises:
            FxpruneError: see :func:`fxprune.apply`.
        """
        if not self._silent:
            self.step()
        return passes.apply(self._model, self._sample, self.plan, verify=verify)

    def state_dict(self) -> dict[str, Any]:
        """The state for :meth:`load_state_dict`: numbers, text, and the values that :meth:`wake` restores."""
        plan = "" if self._plan is None else self._plan.to_json()
        return {"epoch": self.epoch, "plan": plan, "silent": self._silent, "held": dict(self._held)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from the state of another schedule, with the weights that its model had then.

        Raises:
            PlanError: that schedule was for another network.
            OptionError: that schedule was of another kind.
        """
        state = checked_state(state, ("plan", "silent", "held"), "epoch")
        if not isinstance(state["held"], Mapping):
            raise OptionError(f"'held' of the state must hold tensors by name, not {state['held']!r:.80}")
        plan = Plan.from_json(state["plan"]) if state["plan"] != "" else None
        if plan is not None:
            plan.masks(self._graph)
        self._plan, self.epoch, self._silent = plan, state["epoch"], bool(state["silent"])
        self._held = {name: value.clone() for name, value in state["held"].items()}


def _all_exclusions(exclude: Any, graph: ChannelGraph) -> tuple[str, ...]:
    given = (exclude,) if isinstance(exclude, str) else tuple(exclude)
    return (*given, *exclusions(group for group in graph.groups if group.crosses_norm))


def _filters(graph: ChannelGraph) -> dict[str, int]:
    """The tensors whose rows make channels, and the dim of those rows."""
    members = (member for group in graph.groups for member in group.members)
    return {m.tensor: m.dim for m in members if m.role == "out" and len(graph.shapes[m.tensor]) > 1}


def batch_norm_scales(model: nn.Module) -> list[nn.Parameter]:
    """The scales of all batch norms, each of shape ``(channels,)``.

    Raises:
        OptionError: there are none.
    """
    norms = (m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm))
    scales = [norm.weight for norm in norms if norm.weight is not None]
    if not scales:
        raise OptionError(f"{type(model).__name__} has no batch norm with scales, so there is nothing to drive to zero")
    return scales


def at_least_zero(name: str, value: Any) -> float:
    """The number.

    Raises:
        OptionError: it is below 0 or not a number.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value >= 0:
        raise OptionError(f"{name} must be at least 0, not {value!r}")
    return float(value)


class _ScalePenalty:
    """A penalty on batch norm scales: its numbers, how many steps were taken, and both as a state to go on from."""

    strength: float

    def __init__(self, model: nn.Module, **numbers: float) -> None:
        self.model, self.steps, self._names = model, 0, tuple(numbers)
        batch_norm_scales(model)
        for name, value in numbers.items():
            setattr(self, name, at_least_zero(name, value))

    def state_dict(self) -> dict[str, Any]:
        """What :meth:`load_state_dict` reads to go on."""
        return {name: getattr(self, name) for name in (*self._names, "steps")}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where another schedule stood. Raises OptionError: it was of another kind."""
        state = checked_state(state, self._names, "steps")
        numbers = {name: at_least_zero(name, state[name]) for name in self._names}
        vars(self).update(numbers, steps=state["steps"])


class SparseTraining(_ScalePenalty):
    """Training that drives batch norm scales to zero, for the criterion "slimming" (Liu et al., 2017, 1708.06519).

    The subgradient of ``strength * sum(abs(scale))`` is added to the gradients of all batch norm scales. Call
    :meth:`step` between ``loss.backward()`` and ``optimizer.step()``, under DistributedDataParallel on every rank,
    after gradients have been averaged.

    Args:
        model: the network that is trained; only its gradients are changed.
        strength: published values lie between 1e-5 and 1e-4.

    Raises:
        OptionError: the strength is below 0, or the network has no batch norm with scales.
    """

    def __init__(self, model: nn.Module, strength: float = 1e-4) -> None:
        super().__init__(model, strength=strength)

    @torch.no_grad()
    def step(self) -> None:
        """Add the subgradient; scales without a gradient stay as they are."""
        for scale in batch_norm_scales(self.model):
            if scale.grad is not None:
                scale.grad.add_(scale.sign(), alpha=self.strength)
        self.steps += 1


class Polarization(_ScalePenalty):
    """Training that separates batch norm scales into two clusters, for the criterion "slimming".

    Zhuang et al., "Neuron-level Structured Pruning using Polarization Regularizer", NeurIPS 2020, equation 2, with the
    mean m over the scales of all layers: ``strength * sum(pull * abs(scale) - abs(scale - m))``. An L1 penalty alone
    would push every scale to zero. :meth:`step`, called between ``loss.backward()`` and ``optimizer.step()``, adds the
    subgradient, including the part through the mean, to the gradients. The paper keeps scales in ``[0, bound]``: call
    :meth:`clamp` after ``optimizer.step()``. Under DistributedDataParallel, do this on every rank.

    Args:
        model: the network that is trained. :meth:`step` changes gradients, :meth:`clamp` the scales.
        strength: weight of the penalty.
        pull: the paper's t. The larger it is, the more scales go to zero.
        bound: the largest scale that :meth:`clamp` allows, the paper's a.

    Raises:
        OptionError: a number is below 0, or the network has no batch norm scales.
    """

    pull: float
    bound: float

    def __init__(self, model: nn.Module, strength: float = 1e-4, pull: float = 1.2, bound: float = 1.0) -> None:
        super().__init__(model, strength=strength, pull=pull, bound=bound)

    @torch.no_grad()
    def step(self) -> None:
        """Add the subgradient; scales without a gradient are left out, but they count in the mean."""
        scales = batch_norm_scales(self.model)
        values = torch.cat([scale.flatten() for scale in scales])
        mean = values.mean()
        # Moving one scale by d moves the mean by d / n, and with it every term abs(scale - mean).
        through_mean = (values - mean).sign().mean()
        for scale in scales:
            if scale.grad is not None:
                slope = self.pull * scale.sign() - (scale - mean).sign() + through_mean
                scale.grad.add_(slope, alpha=self.strength)
        self.steps += 1

    @torch.no_grad()
    def clamp(self) -> None:
        """Clamp every scale to between 0 and ``bound``."""
        for scale in batch_norm_scales(self.model):
            scale.clamp_(0.0, self.bound)
