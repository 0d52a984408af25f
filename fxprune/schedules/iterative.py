"""Pruning in several steps, with training in between."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar, overload

from torch import fx, nn
from torch.optim import Optimizer

import fxprune.api as passes
from fxprune.analysis.groups import Group
from fxprune.capture.samples import Sample
from fxprune.errors import BudgetError, OptionError, PlanError
from fxprune.options import Level, PlanOptions, by_path
from fxprune.planning import Plan, budget_model
from fxprune.planning.composing import composed, migrate
from fxprune.planning.limits import MAX_RATIO, limits_of
from fxprune.planning.plan_text import kept_shapes
from fxprune.program import kernel_multiple
from fxprune.recovery import Recovery, resolve_recoveries
from fxprune.reporting.summarising import summarise
from fxprune.schedules.steps import check_trained, check_unwrapped, checked_state, plan_of_first_rank, ratio_at

if TYPE_CHECKING:
    from typing_extensions import Unpack

Kind = TypeVar("Kind", bound=Optimizer)


class IterativePruning:
    """Pruning to a ratio in several steps. Each step scores the current network again and makes it smaller.

    Train between the steps::

        schedule = IterativePruning(model, images, 0.5, steps=5, criterion="filter_similarity")
        while not schedule.finished:
            network, optimizer = schedule.step(network, optimizer)
            ...  # train the network for a while

    Ratios and limits refer to the original network, whatever the number of steps. The report and the plan of the result
    of :meth:`step` are for the original too, so that :func:`fxprune.apply`, :func:`fxprune.recover` and
    :func:`fxprune.save` work with it. The proof in the report is that of the last step, against the network before it.
    The networks that are passed in are not changed.

    To continue after an interruption, create the schedule again from the original, load its state, and load the weights
    into ``fxprune.apply(model, sample_input, schedule.plan)``. Under DistributedDataParallel, pass ``model.module`` on
    every rank and wrap the result again; all ranks get the first rank's plan.

    Args:
        model: the original; it is not changed.
        sample_input, options: as for :func:`fxprune.plan`.
        ratio: the fraction of the original budget that is removed after the last step.
        steps: the number of steps.
        shape: how the ratio grows: "linear" (the same share of the original each time), "cubic" (more at first; Zhu and
            Gupta, 2017, arXiv 1710.01878) or "geometric" (the same share of the rest each time).
        recover, keep_class: as for :func:`fxprune.compile`, for each step; not both.
        verify: prove each step.

    Raises:
        BudgetError: the ratio is out of reach; the message gives the largest that can be reached.
        OptionError: an unknown shape, an invalid number of steps, couplings="drop", or budget="latency".
        FxpruneError: see :func:`fxprune.compile`.
    """

    def __init__(
        self,
        model: nn.Module,
        sample_input: Any,
        ratio: float,
        *,
        steps: int = 5,
        shape: str = "linear",
        recover: str | Recovery | Sequence[str | Recovery] | None = None,
        keep_class: bool = False,
        verify: Level = True,
        **options: Unpack[PlanOptions],
    ) -> None:
        self.ratio, self.steps, self.shape = ratio_at(steps, steps, ratio, shape), steps, shape
        self.done, self.keep_class = 0, keep_class
        if keep_class and recover:
            raise OptionError(
                "a result that keeps its class is not a graph, which a recovery needs: leave out recover, and train"
            )
        self._sample, self._network = Sample.from_input(sample_input), type(check_unwrapped(model)).__name__
        self._recover, self._verify, self._options = resolve_recoveries(recover), verify, options
        _check_composable(options)
        self._graph = passes.analyze(model, self._sample)
        self._cost = budget_model(self._graph, str(options.get("budget", "macs")))
        self._plan = Plan.from_masks(self._graph, {}, {})
        given = by_path(model, "max_ratio", options.get("max_ratio"))
        self._max_ratio = MAX_RATIO if given is None else given
        self._floors = limits_of(self._graph, max_ratio=self._max_ratio).fewest
        self._multiples = self._rounding(model)

    @property
    def finished(self) -> bool:
        """Whether the last step is done."""
        return self.done >= self.steps

    @property
    def removed(self) -> float:
        """The fraction of the original's budget that is removed after the steps so far."""
        return 1 - self._cost.exact(self._plan.masks(self._graph)) / self._cost.full

    @property
    def plan(self) -> Plan:
        """The plan for the original after the steps so far."""
        return self._plan

    @overload
    def step(self, network: nn.Module, optimizer: None = None) -> tuple[fx.GraphModule, None]: ...

    @overload
    def step(self, network: nn.Module, optimizer: Kind) -> tuple[fx.GraphModule, Kind]: ...

    def step(self, network: nn.Module, optimizer: Optimizer | None = None) -> tuple[fx.GraphModule, Optimizer | None]:
        """Take the next step.

        Args:
            network: the current network: at first the original, then the result of the last step, trained.
            optimizer: the optimiser of its parameters.

        Returns:
            The smaller network, and its optimiser with the state of the kept entries (:func:`fxprune.migrate`).

        Raises:
            OptionError: all steps are done, or the optimiser trains another network.
            PlanError: ``network`` is not the result of the last step.
            FxpruneError: see :func:`fxprune.compile`.
        """
        pruned, moved = self.advance(network, [] if optimizer is None else [optimizer])
        return pruned, moved[0] if moved else None

    def advance(self, network: nn.Module, optimizers: Sequence[Kind]) -> tuple[fx.GraphModule, list[Kind]]:
        """:meth:`step` for any number of optimisers, each of which may have some of the parameters."""
        if self.finished:
            raise OptionError(f"all {self.steps} steps of this schedule are done")
        self._check_present(network)
        if optimizers:
            check_trained(network, optimizers)
        target = ratio_at(self.done + 1, self.steps, self.ratio, self.shape)
        options: Any = {**self._options, "max_ratio": self._max_ratio_of, "round_to": self._round_to_of}
        ratio = self._ratio_of_current(target)
        cut = plan_of_first_rank(passes.plan(network, self._sample, ratio, keep_class=self.keep_class, **options))
        pruned = passes.apply(network, self._sample, cut, keep_class=self.keep_class, verify=self._verify)
        if self._recover:
            calibration = self._options.get("calibration")
            pruned = passes.recover(pruned, network, self._recover, calibration=calibration)
        moved = [migrate(optimizer, cut, network, pruned) for optimizer in optimizers]
        self._plan, self.done = composed(self._graph, self._plan, cut, self._settings(cut, target)), self.done + 1
        self._report(pruned)
        return pruned, moved

    def state_dict(self) -> dict[str, Any]:
        """The state for :meth:`load_state_dict`: numbers and text."""
        return {"steps": self.steps, "ratio": self.ratio, "shape": self.shape, "done": self.done} | {
            "plan": self._plan.to_json()
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from the state of another schedule of the same network.

        Raises:
            OptionError: that schedule had another ratio, shape or number of steps, or was of another kind.
            PlanError: that schedule was for another network.
        """
        state = checked_state(state, ("steps", "ratio", "shape", "plan"), "done", self.steps)
        for name in ("steps", "ratio", "shape"):
            if state[name] != getattr(self, name):
                raise OptionError(
                    f"the state is of a schedule with {name}={state[name]!r}, not {getattr(self, name)!r}"
                )
        plan = Plan.from_json(state["plan"])
        plan.masks(self._graph)
        self._plan, self.done = plan, state["done"]

    def _ratio_of_current(self, target: float) -> float:
        """The fraction to remove of the current network's budget so that ``target`` of the original's is removed."""
        present = self._cost.exact(self._plan.masks(self._graph))
        need = present - (1 - target) * self._cost.full
        if need <= 0:
            return 0.0
        ratio = need / present
        # If rounding raised the ratio by one digit, it would ask for one channel more than the original's ratio.
        while ratio * present > need:
            ratio = math.nextafter(ratio, 0.0)
        return ratio

    def _max_ratio_of(self, present: Group) -> float:
        """``max_ratio`` for the current width of a group, from the limit on the original's width."""
        return (present.size - max((self._floors[g] for g in self._originals(present)), default=1)) / present.size

    def _round_to_of(self, present: Group) -> int:
        """``round_to`` for a group: the original's multiple, whatever the current width."""
        return math.gcd(*(self._multiples[g] for g in self._originals(present))) or 1

    def _originals(self, present: Group) -> list[Group]:
        """The original's groups that a group of the current network may come from, matched by tensors, not by names."""
        first = (present.members[0].tensor, present.members[0].dim)
        wide = [g for g in self._graph.groups if len(self._plan.groups[g.name]) == present.size]
        return [g for g in wide if any((m.tensor, m.dim) == first for m in g.members)]

    def _rounding(self, model: nn.Module) -> Mapping[Group, int]:
        """The multiples for which the whole ratio is within reach.

        Raises:
            BudgetError: it is out of reach.
        """
        given = by_path(model, "round_to", self._options.get("round_to", "auto"))
        multiple = kernel_multiple(model) if given == "auto" else 1
        while True:
            found = limits_of(self._graph, round_to=given, multiple=multiple).round_to
            try:
                self._check_reach(model, found)
            except BudgetError:
                if multiple == 1:
                    raise
                multiple //= 2
            else:
                return found

    def _check_reach(self, model: nn.Module, multiples: Mapping[Group, int]) -> None:
        """Plan the whole ratio by structure alone, which raises BudgetError if it is out of reach."""
        by_name = {group.name: multiple for group, multiple in multiples.items()}
        structure = {"criterion": "random", "scope": "global", "calibration": None, "loss": None}
        options: Any = {**self._options, **structure, "round_to": lambda group: by_name[group.name]}
        passes.plan(model, self._sample, self.ratio, **options)

    def _check_present(self, network: nn.Module) -> None:
        expected = kept_shapes(self._plan)
        found = {n: tuple(t.shape) for n, t in (*check_unwrapped(network).named_parameters(), *network.named_buffers())}
        odd = next((n for n, shape in found.items() if expected.get(n, shape) != shape), None)
        if odd is not None:
            raise PlanError(
                f"this is not the network that step {self.done} returned: {odd!r} has shape {found[odd]} and there it "
                f"had {expected[odd]}"
            )

    def _settings(self, cut: Plan, target: float) -> dict[str, Any]:
        given = self._options.get("round_to", "auto")
        multiples = {group.name: multiple for group, multiple in self._multiples.items()}
        limits = {"max_ratio": self._max_ratio, "round_to": given if isinstance(given, (int, str)) else multiples}
        about = f"iterative: step {self.done + 1} of {self.steps}, {self.shape} to {self.ratio:g}"
        return {**cut.settings, **limits, "ratio": target, "schedule": about}

    def _report(self, pruned: fx.GraphModule) -> None:
        """Replace the report about the current network by one about the original."""
        about: Any = pruned.meta["fxprune"]
        step = about["report"]
        masks = self._plan.masks(self._graph)
        made = summarise(self._graph, pruned, self._plan, masks, step.proof, step.unproven, step.seconds)
        pruned.meta["fxprune"] = {**about, "report": replace(made, network=self._network, recovery=step.recovery)}


def _check_composable(options: PlanOptions) -> None:
    if options.get("couplings", "keep") != "keep":
        raise OptionError(
            'iterative pruning needs couplings="keep": after a first step whose layers select their channels, further '
            "steps could not be written as one plan for the original"
        )
    budget = options.get("budget", "macs")
    if budget == "latency" or not isinstance(budget, str):
        raise OptionError(
            'iterative pruning takes one of the budgets "macs", "params", "channels" and "memory": a latency is '
            "measured for one network, and the ratios of the steps refer to the original"
        )
