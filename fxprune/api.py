"""The public passes: ``analyze``, ``plan``, ``apply``, ``remove``, ``compile``, ``recover`` and ``report``."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import fx, nn

from fxprune.analysis.groups import Group
from fxprune.analysis.solving import ChannelGraph, analyze_capture
from fxprune.analysis.uncoupling import check_couplings, drop_couplings
from fxprune.calibration import Loss
from fxprune.capture.checking import check_model, check_sample, is_meta
from fxprune.capture.samples import Sample
from fxprune.capture.tracing import trace
from fxprune.cost.latency import compared, measured_latency
from fxprune.criteria import Criterion, judge, resolve_criterion
from fxprune.errors import FxpruneError, ModelError, PlanError, RecoveryError
from fxprune.options import Feed, Options, by_path, kernel_multiple, setting
from fxprune.pipeline import one_pass, prove_plan, recovered, uncollected
from fxprune.planning import Plan, allocate
from fxprune.planning.by_hand import as_lists, masks_without
from fxprune.planning.protecting import width_scores
from fxprune.proof import Proof
from fxprune.recovery import Recovery, resolve_recoveries
from fxprune.reporting import Report, versions
from fxprune.reporting.summarising import summarise
from fxprune.rewriting import certified
from fxprune.util.paths import ModelPaths
from fxprune.util.progress import Steps

Scores = Mapping[Group, NDArray[np.float64]] | None
Shares = Mapping[str | nn.Module, float]
Counts = Mapping[str | nn.Module, int]
Ratio = float | Shares | Mapping[str, float] | None


def compile(  # noqa: A001  the public name says what it does
    model: nn.Module,
    sample_input: Any,
    ratio: Ratio = None,
    *,
    budget: str | Mapping[str, float] = "macs",
    criterion: str | Criterion = "magnitude",
    calibration: Iterable[Any] | None = None,
    loss: Loss | None = None,
    exclude: Sequence[str | nn.Module] = (),
    scope: str = "global",
    alike: str = "free",
    residual: str = "coupled",
    couplings: str = "keep",
    round_to: int | str | Counts = "auto",
    min_channels: int | Counts = 1,
    max_ratio: float | Shares | None = None,
    recover: str | Recovery | Sequence[str | Recovery] | None = None,
    other_samples: Sequence[Any] = (),
    verify: bool = True,
    seed: int = 0,
    progress: bool | None = None,
) -> fx.GraphModule:
    """Prune ``model`` by ``ratio`` of a budget: trace, solve the channel groups, score, plan, rewrite and prove.

    Args:
        model: any live network; it is only read.
        sample_input: one call's arguments: a tensor or a list is one positional argument, a tuple the positional
            arguments, a dict with string keys the keyword arguments.
        ratio: fraction of the budget to remove, ``0 <= ratio < 1``; at least that much goes. 0 gives an equal copy. Or
            the share of channels to remove from single layers, ``{"layer1.*": 0.2, model.fc: 0.5}``, by fnmatch
            patterns of module paths or by modules: the first that matches a group decides, at least that share goes,
            and other layers stay whole.
        budget: "macs" (multiply-accumulates of convolution, linear and matmul), "params", "channels", "memory" (bytes
            of the parameters and of the activations alive at the worst moment, for the sample), or "latency" (seconds
            of one call with the sample in eval mode, added up from a table of single operations that is measured on
            this machine once and kept in the user's cache directory; the report shows predicted beside measured).
            Several at once with their fractions, ``{"macs": 0.5, "params": 0.3}``, are all met; ``ratio`` is then left
            out.
        criterion: name or object that scores channels; higher scores stay. :func:`known_criteria` lists the names.
        calibration: for recovery, and for criteria that look at activations or gradients: batches that can be iterated
            again, each what the model takes, or ``(input, target)``, or ``((a, b), target)``. Where
            ``torch.distributed`` is initialised every rank passes its own shard, and all get the plan of one process
            with all data.
        loss: of the output and the target, the mean over the batch, for criteria that look at gradients; by default
            cross-entropy where outputs are logits and targets are classes.
        exclude: fnmatch patterns of module or parameter paths, or modules, whose output channels stay.
        scope: "global" ranks all groups together; "uniform" takes the same share of each, to the nearest step, so that
            layers of one width get one width; "reconstruction" chooses the
            widths by the error that a least-squares fit of the next layers leaves for what each channel saves (it needs
            calibration), while the criterion says which channels of a group go first.
        alike: "free", or "equal" to give layers in the same place of repeated blocks (equal but for the numbers in
            their paths) one width.
        residual: "coupled", or "inner" to keep the width of groups that cross an addition.
        couplings: "keep", or "drop" to let every convolution and linear layer that reads a residual stream or a
            concatenation select input channels of its own (an ``index_select`` in front of it), while the stream keeps
            its width.
        round_to: a narrowed group's width is a multiple of this. "auto" is what kernels like: 8, for half precision on
            a GPU 64; less for groups that would have fewer than four such widths, and for all where the budget cannot
            be met otherwise; 1 where ``ratio`` names layers. What the rounding overshoots is in the report.
        min_channels: a narrowed group keeps at least this many channels.
        max_ratio: at most this share of a group's channels goes: by default 0.9, or 1 where ``ratio`` names layers.
            This, ``round_to`` and ``min_channels`` may also be mappings, as ``ratio`` may.
        recover: what is done, after the proof, to keep accuracy without labels or training: "reconstruct", "batchnorm",
            "bias", "fuse", an object of :mod:`fxprune.recovery`, or several of them, in order.
        other_samples: further calls that the result must take, with inputs of other sizes, or with other flags, where
            the forward goes other ways for them: the result holds a graph for each way. Images of some other sizes are
            tried without being asked.
        verify: prove the result; a failed proof raises and never returns a network.
        seed: of everything random.
        progress: show what is being done; by default only on a terminal.

    Returns:
        A ``torch.fx.GraphModule`` that shares no storage with ``model``, has its parameter names and mode, and carries
        a report (:func:`report`). Where the model's own forward cannot be traced (detectors), a copy of the model with
        pruned GraphModules inside, in which the report lists what is opaque.

    Raises:
        FxpruneError: one of its subclasses, each with what was wrong, where and what to do.
    """
    choices = (ratio, budget, criterion, exclude, scope, alike, residual, couplings)
    options = Options.checked(model, *choices, round_to, min_channels, max_ratio, seed)
    recoveries = resolve_recoveries(recover)
    with one_pass(progress, model) as steps:
        graph, sample = _analyzed(model, sample_input, steps, options.couplings, other_samples)
        feed = Feed.checked(calibration, loss, sample)
        _time_operations(graph, model, sample, {options.budget, *options.budgets}, steps)
        chosen, scores = _planned(graph, model, options, feed, steps)
        pruned = _applied(graph, model, sample, chosen, verify, steps, scores)
        return recovered(graph, model, pruned, recoveries, feed, steps)


def analyze(
    model: nn.Module, sample_input: Any, *, couplings: str = "keep", other_samples: Sequence[Any] = ()
) -> ChannelGraph:
    """The channel groups of a network: ``.groups``, ``.pinned``, ``.graph`` (networkx), ``.explain()``, ``.draw()``.

    A network in which everything is pinned has no groups; ``.pinned`` says why. ``couplings`` and ``other_samples``: as
    for :func:`compile`.

    Raises:
        FxpruneError: the model or the sample cannot be used; see :func:`compile`.
    """
    with one_pass(False, model) as steps:
        return _analyzed(model, sample_input, steps, check_couplings(couplings), other_samples)[0]


def plan(
    model: nn.Module,
    sample_input: Any,
    ratio: Ratio = None,
    *,
    budget: str | Mapping[str, float] = "macs",
    criterion: str | Criterion = "magnitude",
    calibration: Iterable[Any] | None = None,
    loss: Loss | None = None,
    exclude: Sequence[str | nn.Module] = (),
    scope: str = "global",
    alike: str = "free",
    residual: str = "coupled",
    couplings: str = "keep",
    round_to: int | str | Counts = "auto",
    min_channels: int | Counts = 1,
    max_ratio: float | Shares | None = None,
    other_samples: Sequence[Any] = (),
    seed: int = 0,
    progress: bool | None = None,
) -> Plan:
    """The plan :func:`compile` would follow; the same arguments. It can be saved, reviewed and given to :func:`apply`.

    Raises:
        FxpruneError: see :func:`compile`.
    """
    choices = (ratio, budget, criterion, exclude, scope, alike, residual, couplings)
    options = Options.checked(model, *choices, round_to, min_channels, max_ratio, seed)
    with one_pass(progress, model) as steps:
        graph, sample = _analyzed(model, sample_input, steps, options.couplings, other_samples)
        _time_operations(graph, model, sample, {options.budget, *options.budgets}, steps)
        return _planned(graph, model, options, Feed.checked(calibration, loss, sample), steps)[0]


def apply(
    model: nn.Module,
    sample_input: Any,
    plan: Plan,
    *,
    other_samples: Sequence[Any] = (),
    verify: bool = True,
    progress: bool | None = None,
) -> fx.GraphModule:
    """Cut a network as a plan says: the rewrite and the proof alone.

    Raises:
        PlanError: it is no plan, or the plan was made for another network.
        FxpruneError: see :func:`compile`.
    """
    if not isinstance(plan, Plan):
        raise PlanError(f"plan must be a Plan, not {type(plan).__name__}: make one with fxprune.plan or Plan.load")
    with one_pass(progress, model) as steps:
        couplings = check_couplings(setting(plan, "couplings", "keep"))
        graph, sample = _analyzed(model, sample_input, steps, couplings, other_samples)
        _time_operations(graph, model, sample, {setting(plan, "budget", "macs"), *setting(plan, "budgets", {})}, steps)
        return _applied(graph, model, sample, plan, verify, steps)


def remove(
    model: nn.Module,
    sample_input: Any,
    channels: Mapping[str | nn.Module, Any],
    *,
    couplings: str = "keep",
    other_samples: Sequence[Any] = (),
    verify: bool = True,
    progress: bool | None = None,
) -> fx.GraphModule:
    """Cut chosen channels, with all that is tied to them.

    Args:
        model, sample_input, couplings, other_samples, verify, progress: as for :func:`compile`.
        channels: by path of a layer, or by layer, the output channels to remove: ``{"conv1": [2, 6, 9]}``, or a boolean
            mask with an entry a channel, in which True goes.

    Raises:
        OptionError: a layer or a channel that does not exist.
        PlanError: a channel has to stay, or goes only with others; the message says why.
        FxpruneError: see :func:`compile`.
    """
    with one_pass(progress, model) as steps:
        graph, sample = _analyzed(model, sample_input, steps, check_couplings(couplings), other_samples)
        given = by_path(model, "channels", channels)
        settings = {"channels": as_lists(graph, given), "couplings": couplings, "versions": versions()}
        plan = Plan.from_masks(graph, masks_without(graph, given), settings)
        return _applied(graph, model, sample, plan, verify, steps)


def recover(
    pruned: nn.Module,
    model: nn.Module,
    how: str | Recovery | Sequence[str | Recovery] = "reconstruct",
    *,
    calibration: Iterable[Any] | None = None,
    seed: int = 0,
    progress: bool | None = None,
) -> fx.GraphModule:
    """A copy of a pruned network whose kept values make up for what was cut, without labels or training.

    Args:
        pruned: what :func:`compile`, :func:`apply` or :func:`load` returned, also after training.
        model: the network it was cut from; it is only read.
        how: as ``recover`` of :func:`compile`.
        calibration: as for :func:`compile`; targets are not looked at.
        seed: of everything random.
        progress: as for :func:`compile`.

    Raises:
        RecoveryError: an unknown recovery, one that lacks calibration, or a network that cannot be recovered.
        PlanError: ``pruned`` was not cut from this model.
        FxpruneError: see :func:`compile`.
    """
    recoveries = resolve_recoveries(how)
    plan = report(pruned).plan
    sample = pruned.meta["fxprune"].get("sample")  # type: ignore[union-attr, index]
    if plan is None or sample is None:
        raise RecoveryError("this module carries no plan or no sample: pass a network that fxprune.compile returned")
    device = next((t.device for t in (*model.parameters(), *model.buffers())), torch.device("cpu"))
    with one_pass(progress, model) as steps:
        sample = sample.with_values(seed).map(lambda tensor: tensor.to(device))
        graph, sample = _analyzed(model, sample, steps, check_couplings(setting(plan, "couplings", "keep")))
        feed = Feed.checked(calibration, None, sample)
        return recovered(graph, model, copy.deepcopy(pruned), recoveries, feed, steps, seed)  # type: ignore[arg-type]


def report(pruned: nn.Module) -> Report:
    """What a compilation did: asked and achieved, per group, pins with reasons, the proof, timings and ``.plan``.

    Raises:
        FxpruneError: the module was not made by fxprune.
    """
    about = getattr(pruned, "meta", {}).get("fxprune", {})
    if "report" not in about:
        raise FxpruneError(
            "this module carries no report: pass a network that fxprune.compile or fxprune.load returned"
        )
    found: Report = about["report"]
    return found


# -- the passes ------------------------------------------------------------------------------------------------------


@uncollected()
def _analyzed(
    model: nn.Module, sample_input: Any, steps: Steps, couplings: str, other_samples: Sequence[Any] = ()
) -> tuple[ChannelGraph, Sample]:
    with steps("capture"):
        sample = Sample.from_input(sample_input).beside(other_samples).map(torch.Tensor.detach)
        check_model(model)
        for given in (sample, *sample.others):
            check_sample(model, given)
        with torch.random.fork_rng(devices=[]):
            captured, untraced = trace(model, sample)
    with steps("analyze"):
        if couplings == "drop":
            drop_couplings(captured, model)
        graph = analyze_capture(captured, model, sample.batch_size, untraced)
    return graph, sample


def _time_operations(graph: ChannelGraph, model: nn.Module, sample: Sample, budgets: set[str], steps: Steps) -> None:
    if "latency" in budgets:
        with steps("time"):
            graph.latency = measured_latency(graph, model, sample, steps.counted)


def _planned(graph: ChannelGraph, model: nn.Module, options: Options, feed: Feed, steps: Steps) -> tuple[Plan, Scores]:
    # A pass over data makes garbage with every batch.
    with uncollected() if feed.calibration is None else nullcontext():
        return _chosen(graph, model, options, feed, steps)


def _chosen(graph: ChannelGraph, model: nn.Module, options: Options, feed: Feed, steps: Steps) -> tuple[Plan, Scores]:
    if not graph.groups and options.removes:
        raise ModelError(f"the model has no prunable channels ({_why_none(graph)})")
    criterion = resolve_criterion(options.criterion, seed=options.seed)
    with steps("score"):
        paths = ModelPaths(model)
        found = {n: graph.constants[n] if n in graph.constants else paths.attribute(n) for n in graph.shapes}
        with torch.no_grad():
            collector = feed.collector(graph, model, steps, options.seed)
            scores = judge(criterion, graph, found, collector)
            if options.scope == "reconstruction":
                scores = width_scores(graph, criterion, scores, found, collector, options.budget)
    with steps("plan"):
        masks = allocate(
            graph,
            scores,
            **options.goals,
            scope="global" if options.scope == "reconstruction" else options.scope,
            alike=options.alike,
            residual=options.residual,
            exclude=options.exclude,
            round_to=options.round_to,
            multiple=kernel_multiple(model),
            min_channels=options.min_channels,
            max_ratio=options.max_ratio,
        )
        plan = Plan.from_masks(graph, masks, options.settings(criterion, feed))
    return plan, scores if isinstance(scores, dict) else None


def _why_none(graph: ChannelGraph) -> str:
    opaque = [f"{o.op} is opaque: {o.reason}" for o in graph.opaque[:3]]
    pinned = [f"{p.tensor} dim {p.dim}: {p.reason}" for p in graph.pinned[:3]]
    return "; ".join([*opaque, *pinned]) or "it has no layers with weights"


def _applied(
    graph: ChannelGraph,
    model: nn.Module,
    sample: Sample,
    plan: Plan,
    verify: bool,
    steps: Steps,
    scores: Scores = None,
) -> fx.GraphModule:
    with steps("rewrite"), uncollected():
        masks = plan.masks(graph)
        pruned, certificates = certified(graph, model, masks)
    proof: Proof | None = None
    unproven = "structural, unproven" if is_meta(model) else "" if verify else "verify=False"
    if not unproven:
        with steps("verify"):
            proof = prove_plan(graph, model, pruned, plan, masks, sample, certificates)
            if proof.strays:
                graph.captured.hold_to_sizes()
                pruned, certificates = certified(graph, model, masks)
                proof = prove_plan(graph, model, pruned, plan, masks, sample, certificates)
    made = summarise(graph, model, plan, masks, proof, unproven, steps.seconds, scores)
    if made.budget == "latency":
        with steps("time"):
            predicted = (made.budget_before, made.budget_after)
            made = replace(made, latency=compared(predicted, model, pruned, sample), seconds=dict(steps.seconds))
    about = {"report": made, "sample": sample.to_meta()}
    pruned.meta = {**getattr(pruned, "meta", {}), "fxprune": about}  # type: ignore[assignment]
    return pruned  # type: ignore[return-value]  # an opaque forward keeps its own class, as the docstring says
