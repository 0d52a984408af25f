"""The passes of a compilation, in order, and the one function that runs them.

``analyze`` runs them up to "analyze", ``plan`` up to "plan". ``apply`` starts with a plan, so "score" and "plan" have
nothing to do. ``recover`` starts with a pruned network, so only the first and the last passes have something to do. A
loop, such as "prove, hold to sizes, rewrite, prove", is listed as often as it may run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace

import numpy as np
import torch

from fxprune.analysis.groups import Group
from fxprune.analysis.solving import ChannelGraph, analyze_capture
from fxprune.analysis.uncoupling import drop_couplings
from fxprune.axes.elements import Mask
from fxprune.calibration.silence import silent_channels
from fxprune.capture.checking import check_model, check_sample, is_meta
from fxprune.capture.exported import wrappers_in_words
from fxprune.capture.samples import Sample
from fxprune.capture.tracing import UNTRACED_TRAINING, trace
from fxprune.cost.measuring import compared, measured_latency
from fxprune.criteria import judge, resolve_criterion
from fxprune.criteria.reconstruction import Reconstruction
from fxprune.errors import BudgetError, CriterionError, ModelError, PlanError, RecoveryError, described
from fxprune.keeping import (
    check_lossless,
    configure,
    fieldless,
    find_config_edit,
    fitted,
    give_values,
    in_words,
    without_fieldless,
)
from fxprune.options import Options, by_path
from fxprune.planning import Plan, allocate
from fxprune.planning.by_hand import as_lists, masks_without, masks_without_zeros
from fxprune.planning.limits import excluded_groups, spared_groups
from fxprune.planning.plan import setting
from fxprune.planning.protecting import width_scores
from fxprune.program import CalibrationData, Program, kernel_multiple
from fxprune.recovery import Work, run_recoveries
from fxprune.reporting import LatencyRow, Report, versions
from fxprune.reporting.summarising import summarise
from fxprune.rewriting import rewrite_certified
from fxprune.rewriting.provable import prove_plan
from fxprune.rewriting.pruned_module import PrunedGraphModule
from fxprune.util.paths import ModelPaths
from fxprune.util.progress import paused_garbage_collection


@dataclass(frozen=True)
class Pass:
    """One step: ``run`` fills fields of the program if ``when`` holds; timings of equal names are summed."""

    name: str
    run: Callable[[Program], None]
    when: Callable[[Program], bool] = lambda program: True
    # Whether to collect garbage during the pass: passes over data make garbage with every batch, others hardly any.
    makes_garbage: Callable[[Program], bool] = lambda program: False


def capture(program: Program) -> None:
    """Trace the model on the sample: its graphs in both modes and for other sizes. The model is not changed."""
    check_model(program.model)
    sample = Sample.from_input(program.sample_input).beside(program.other_samples).map(torch.Tensor.detach)
    for given in (sample, *sample.others):
        check_sample(program.model, given)
    with torch.random.fork_rng(devices=[]):
        program.captured, program.untraced = trace(program.model, sample)
    program.sample = sample


def uncouple(program: Program) -> None:
    """Insert a selection of channels before each reader of a shared stream."""
    drop_couplings(program.captured, program.model)


def analyze(program: Program) -> None:
    """Solve the axes of every node, and find the channel groups."""
    program.graph = analyze_capture(program.captured, program.model, program.sample.batch_size, program.untraced)
    program.data = CalibrationData.checked(program.calibration, program.loss, program.sample)


def time_operations(program: Program) -> None:
    """Time the network's operations at several widths, for the budget "latency"."""
    graph, steps = program.graph, program.steps
    graph.cost_models["latency"] = measured_latency(graph, program.model, program.sample, steps)


def score(program: Program) -> None:
    """Give each channel of each group a number by the criterion."""
    _settle_residual(program)
    try:
        _score(program)
    except CriterionError as error:
        if program.why_no_data or program.options is None or program.options.criterion != "auto":
            raise
        program.choose(str(error))
        _score(program)


def _settle_residual(program: Program) -> None:
    """Let residual streams lose channels too if "auto" spares them but the budget cannot be met that way."""
    options = program.chosen_options
    if program.options is None or program.options.residual != "auto" or options.residual == "coupled":
        return
    try:
        _allocated(program, options)
    except BudgetError:
        program.chosen_options = replace(options, residual="coupled")
        program.notes += ("residual is coupled: without the channels of residual streams the budget cannot be met",)


def _score(program: Program) -> None:
    graph, options, data = program.graph, program.chosen_options, program.data
    if not graph.groups and options.removes:
        raise ModelError(f"the model has no prunable channels ({_why_none(graph)})")
    criterion = resolve_criterion(options.criterion, seed=options.seed)
    if isinstance(criterion, Reconstruction) and isinstance(options.ratio, Mapping):
        criterion = replace(criterion, weigh=False)  # each group has its share already
    paths = ModelPaths(program.model, graph.constants)
    found = {name: paths.attribute(name) for name in graph.shapes}
    with torch.no_grad():
        collector = data.collector(graph, program.model, program.steps, options.seed)
        spared = spared_groups(graph, options.ratio, options.exclude, options.residual)
        program.scores = judge(criterion, graph, found, collector, spared)
        if options.scope == "reconstruction":
            program.scores = width_scores(graph, criterion, program.scores, found, collector, options.budget, spared)


def allocate_budget(program: Program) -> None:
    """Choose the channels that stay, so that the budget is met."""
    graph, options = program.graph, program.chosen_options
    criterion = resolve_criterion(options.criterion, seed=options.seed)
    masks = _allocated(program, options)
    seen = {"calibration": f"{program.data.seen} samples"} if program.data.seen else {}
    program.plan = Plan.from_masks(graph, masks, {**options.settings(criterion), "versions": versions(), **seen})


def _allocated(program: Program, options: Options) -> dict[Group, Mask]:
    return allocate(
        program.graph,
        program.scores,
        **options.goals,
        scope="global" if options.scope == "reconstruction" else options.scope,
        alike=options.alike,
        residual=options.residual,
        exclude=[*options.exclude, *(group.name for group in program.held)],
        round_to=options.round_to,
        multiple=kernel_multiple(program.model),
        min_channels=options.min_channels,
        max_ratio=options.max_ratio,
    )


def allocate_again(program: Program) -> None:
    """Choose again without the widths that are held only for the class's configuration: the budget comes first."""
    try:
        allocate_budget(program)
    except BudgetError:
        kept = without_fieldless(program.held)
        if kept == program.held:
            raise
        program.graph.pinned = tuple(
            p for p in program.graph.pinned if p in kept.values() or p not in program.held.values()
        )
        program.held, program.follows_config = kept, False
        allocate_budget(program)


def choose_by_hand(program: Program) -> None:
    """Remove the channels that the caller names, with all that are tied to them."""
    channels = by_path(program.model, "channels", program.channels)
    named = as_lists(program.graph, channels)
    settings = {"channels": named, "couplings": program.couplings, "versions": versions()}
    program.plan = Plan.from_masks(program.graph, masks_without(program.graph, channels), settings)


def choose_zeros(program: Program) -> None:
    """Remove the channels that are exactly zero."""
    stays, paths = program.zeros or (), ModelPaths(program.model)
    tensors = {n: paths.attribute(n) for n in program.graph.shapes if n not in program.graph.constants}
    silent = {} if is_meta(program.model) else silent_channels(program.graph, program.model, program.sample)
    masks = masks_without_zeros(program.graph, tensors, silent)
    masks |= {group: np.ones_like(masks[group]) for group in excluded_groups(program.graph, stays)}
    gone, whole = sum(int((~mask).sum()) for mask in masks.values()), sum(map(len, masks.values()))
    program.notes = (f"zeros: {gone} of {whole} channels were exactly zero",)
    settings = {
        "criterion": "zeros",
        "exclude": list(program.zeros or ()),
        "couplings": program.couplings,
        "versions": versions(),
    }
    program.plan = Plan.from_masks(program.graph, masks, settings)


def cut(program: Program) -> None:
    """Write the smaller graphs and modules, over new tensors."""
    program.masks = program.chosen_plan.masks(program.graph)
    program.pruned, program.certificates = rewrite_certified(program.graph, program.model, program.masks)


def fit_class(program: Program) -> None:
    """Narrow a copy of the model's class to the same widths; hold others. Raises PlanError: of a plan that is given."""
    written = (program.masks, program.pruned, program.certificates)
    program.kept, found = fitted(program.graph, program.model, *written, program.rules)
    if not found:
        program.config_edit = find_config_edit(program.graph, program.model, program.masks, program.kept)
    if not found and program.follows_config and program.options is not None and program.options.alike == "equal":
        found = fieldless(program.graph, program.masks, program.config_edit)
    program.holds_more, program.held = bool(found), program.held | found
    program.graph.pinned += tuple(found.values())
    if found and program.options is None:
        raise PlanError(f"the plan narrows what the class cannot follow: {in_words(found)}")
    if found:
        program.pruned = None  # it was cut by an earlier plan


def refuse_class(program: Program) -> None:
    """Raises PlanError: each plan narrowed other widths that the class cannot follow."""
    last = in_words(dict([*program.held.items()][-3:]))
    raise PlanError(
        f"{_MOST_PLANS} plans narrowed widths that the class cannot follow, the last ones: {last}; exclude the layers "
        "that hold them, or compile without keep_class"
    )


def verify(program: Program) -> None:
    """Prove that the result is the model without what the plan removes."""
    program.proof = prove_plan(
        program.graph, program.model, program.pruned, program.chosen_plan, program.masks, program.sample,
        program.certificates, program.verify,
    )  # fmt: skip


def compare_outputs(program: Program) -> None:
    """Check that a result from which only zeros were removed has the original's outputs."""
    check_lossless(program.model, program.pruned, program.sample)


def refuse_other_sizes(program: Program) -> None:
    """Let the result refuse all sizes but the sample's, because the trace differs from the model there; cut again."""
    program.captured.refuse_other_sizes()
    cut(program)


def report(program: Program) -> None:
    """Make the report from the results of the passes, and attach it to the pruned network."""
    plan, scores = program.chosen_plan, program.scores if isinstance(program.scores, dict) else None
    program.report = summarise(
        program.graph, program.model, plan, program.masks, program.proof, program.why_unproven, program.steps.seconds,
        scores, (*program.notes, *wrappers_in_words(program.given)),
    )  # fmt: skip
    about = {"report": program.report, "sample": program.sample.to_meta()}
    program.pruned.meta = {**getattr(program.pruned, "meta", {}), "fxprune": about}


def compare_latency(program: Program) -> None:
    """Measure the seconds of a call, to compare with the prediction."""
    made = program.pruned.meta["fxprune"]["report"]
    predicted = (made.budget_before, made.budget_after)
    try:
        before, after, calls = compared(program.model, program.pruned, program.sample)
    except Exception as error:  # the user's own code runs here and may raise anything
        row = LatencyRow(predicted, None, f"not measured ({described(error)})")
    else:
        threads = torch.get_num_threads()
        how = f"eager, {threads} thread{'s' * (threads > 1)}, median of {calls} calls"
        row = LatencyRow(predicted, (before, after), how)
    _note(program, replace(made, latency=row))


def recover(program: Program) -> None:
    """Change kept values to compensate for the removed ones; the proof is of the network before this."""
    if program.recoveries and (is_meta(program.model) or not isinstance(program.pruned, PrunedGraphModule)):
        meta = "its weights are on the meta device"
        why = meta if is_meta(program.model) else "its own forward is opaque, so it has no graph"
        raise RecoveryError(f"{type(program.model).__name__} cannot be recovered: {why}")
    made = program.pruned.meta["fxprune"]["report"]
    seed = setting(made.plan, "seed", 0) if program.seed is None else program.seed
    given = (program.graph, program.model, program.pruned, made.plan, program.data.calibration, program.steps, seed)
    work = Work(*given)
    rows, fidelity, errors = run_recoveries(program.recoveries, work)
    if errors:
        made = replace(made, groups=tuple(replace(group, error=errors.get(group.name)) for group in made.groups))
    _note(program, replace(made, recovery=(*made.recovery, *rows), fidelity=fidelity))


def keep_class(program: Program) -> None:
    """Fill the copy of the class, and compare it with the graph. Raises PlanError or ProofError: they differ."""
    assert program.kept is not None
    if program.holds_more:
        raise PlanError("each plan narrows another width that the class cannot follow: name layers to prune in ratio")
    give_values(program.pruned, program.kept)
    kept, sample, edit = program.kept, program.sample, program.config_edit
    notes = configure(program.graph, program.model, program.pruned, kept, sample, edit)
    made = program.pruned.meta["fxprune"]["report"]
    _note(program, replace(made, notes=(*made.notes, *notes)))


def _always(program: Program) -> bool:
    return True


def _is_provable(program: Program) -> bool:
    return program.report is None and not program.why_unproven


def _is_compared(program: Program) -> bool:
    return bool(program.recoveries) or (program.calibration is not None and not is_meta(program.model))


def _counts_seconds(program: Program) -> bool:
    return program.report is not None and program.report.budget == "latency"


def _diverges(program: Program) -> bool:
    return program.proof is not None and bool(program.proof.diverges)


# A width that no attribute of the class can set is held, and the others are planned again.
_MOST_PLANS = 30
_AGAIN = (
    Pass("plan", allocate_again, when=lambda p: p.holds_more),
    Pass("rewrite", cut, when=lambda p: p.holds_more),
    Pass("keep", fit_class, when=lambda p: p.holds_more),
)
PASSES = (
    Pass("capture", capture),
    Pass("analyze", uncouple, when=lambda p: p.couplings == "drop"),
    Pass("analyze", analyze),
    Pass("time", time_operations, when=lambda p: "latency" in p.budgets),
    Pass("plan", choose_by_hand, when=lambda p: p.channels is not None),
    Pass("plan", choose_zeros, when=lambda p: p.zeros is not None),
    Pass("score", Program.choose, when=lambda p: p.plan is None),
    Pass("score", score, when=lambda p: p.plan is None, makes_garbage=lambda p: p.calibration is not None),
    Pass("plan", allocate_budget, when=lambda p: p.plan is None),
    Pass("rewrite", cut, when=lambda p: p.pruned is None),
    Pass("keep", fit_class, when=lambda p: p.keep_class, makes_garbage=_always),
    *_MOST_PLANS * _AGAIN,
    Pass("keep", refuse_class, when=lambda p: p.holds_more),
    Pass("verify", verify, when=_is_provable, makes_garbage=_always),
    Pass("rewrite", refuse_other_sizes, when=_diverges),
    Pass("verify", verify, when=_diverges, makes_garbage=_always),
    Pass("verify", compare_outputs, when=lambda p: p.zeros is not None and not is_meta(p.model)),
    Pass("report", report, when=lambda p: p.report is None, makes_garbage=_always),
    Pass("time", compare_latency, when=_counts_seconds, makes_garbage=_always),
    Pass("recover", recover, when=_is_compared, makes_garbage=_always),
    Pass("keep", keep_class, when=lambda p: p.keep_class, makes_garbage=_always),
)


def run(program: Program, *, until: str = "") -> Program:
    """Run the passes, up to and including those called ``until``, and check the program after each.

    Raises:
        FxpruneError: a pass failed; the caller's model is unchanged.
    """
    last = max((i for i, step in enumerate(PASSES) if step.name == until), default=len(PASSES))
    with paused_garbage_collection() as collecting:
        for number, step in enumerate(PASSES[: last + 1]):
            if not step.when(program):
                continue
            with program.steps(step.name), collecting() if step.makes_garbage(program) else nullcontext():
                step.run(program)
            program.check()
            program.dump(f"{number:02}-{step.run.__name__}")
    if program.report is not None:
        _note(program, replace(program.report, seconds=dict(program.steps.seconds)))
    return program


def _note(program: Program, made: Report) -> None:
    program.report = made
    program.pruned.meta["fxprune"] = {**program.pruned.meta["fxprune"], "report": made}
    if program.kept is not None:
        program.kept.meta = program.pruned.meta


def _why_none(graph: ChannelGraph) -> str:
    held = [o for o in graph.opaque if o.op != UNTRACED_TRAINING][:3]
    places = [f" at {o.source}" if o.source and o.source not in o.reason else "" for o in held]
    opaque = [f"{o.op}{at} is opaque: {o.reason}" for o, at in zip(held, places, strict=True)]
    reasons: dict[str, list[str]] = {}
    for pin in graph.pinned:
        reasons.setdefault(pin.reason, []).append(f"{pin.tensor} dim {pin.dim}")
    pinned = [f"{', '.join(names[:3])}{', ...' * (len(names) > 3)}: {why}" for why, names in list(reasons.items())[:4]]
    advice = "graph = fxprune.analyze(model, sample_input), print(graph) and graph.explain(name) show more"
    return "; ".join([*opaque, *pinned, advice]) if opaque or pinned else "it has no layers with weights"
