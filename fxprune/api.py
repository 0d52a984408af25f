"""The public passes: ``analyze``, ``plan``, ``apply``, ``remove``, ``compile``, ``recover`` and ``report``."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from torch import fx, nn

from fxprune.analysis.solving import ChannelGraph
from fxprune.analysis.uncoupling import check_couplings
from fxprune.calibration import Loss
from fxprune.capture.exported import network_of, unwrapped
from fxprune.criteria import Criterion
from fxprune.errors import FxpruneError, ModelError, OptionError, PlanError, RecoveryError
from fxprune.options import (
    Alike,
    Budget,
    Counts,
    Couplings,
    CriterionName,
    Level,
    Options,
    PlanOptions,
    RecoveryName,
    Residual,
    Scope,
    Shares,
    check_level,
    checked_seed,
)
from fxprune.pipeline import run
from fxprune.planning import Plan
from fxprune.planning.plan import setting
from fxprune.program import Program, one_pass
from fxprune.recovery import Recovery, resolve_recoveries
from fxprune.reporting import Report
from fxprune.rewriting import carried
from fxprune.util.paths import device_of

if TYPE_CHECKING:
    from typing_extensions import Unpack

Ratio = float | Shares | None


def compile(  # noqa: A001  the public name says what it does
    model: nn.Module,
    sample_input: Any,
    ratio: Ratio = None,
    *,
    budget: Budget | Mapping[str, float] = "macs",
    criterion: CriterionName | Criterion = "auto",
    calibration: Iterable[Any] | None = None,
    loss: Loss | None = None,
    exclude: Sequence[str | nn.Module] = (),
    scope: Scope = "auto",
    alike: Alike = "free",
    residual: Residual = "auto",
    couplings: Couplings = "keep",
    round_to: int | Literal["auto"] | Counts = "auto",
    min_channels: int | Counts = 1,
    max_ratio: float | Shares | None = None,
    recover: RecoveryName | Recovery | Sequence[RecoveryName | Recovery] | None = "auto",
    other_samples: Sequence[Any] = (),
    keep_class: bool = False,
    verify: Level = True,
    seed: int = 0,
    progress: bool | None = None,
) -> fx.GraphModule:
    """Prune ``model`` by ``ratio`` of a budget: trace, solve the channel groups, score, plan, rewrite and prove.

    Args:
        model: any live network, or a ``torch.export.ExportedProgram``; it is not changed.
        sample_input: the arguments of one call: a tensor or a list is one positional argument, a tuple is all
            positional arguments, and a dict with string keys is the keyword arguments.
        ratio: the fraction of the budget to remove, ``0 <= ratio < 1``; at least that much is removed. 0 gives an equal
            copy. Or the share of channels to remove from single layers, ``{"layer1.*": 0.2, model.fc: 0.5}``, by
            fnmatch patterns of module paths or by modules: the first that matches a group decides, at least that share
            is removed, and other layers stay whole.
        budget: "macs" (multiply-accumulates of convolution, linear and matmul), "params", "channels", "memory" (bytes
            of the parameters plus the peak bytes of live activations, for the sample), or "latency" (seconds of one
            call with the sample in eval mode, as a sum over single operations; each is measured once on this machine
            and kept in the user's cache directory, and the report shows both predicted and measured seconds). A mapping
            of several budgets to fractions, ``{"macs": 0.5, "params": 0.3}``, meets all of them; leave ``ratio`` out
            then.
        criterion: name or object that scores channels; higher scores stay. :func:`known_criteria` lists the names.
            "auto" is "reconstruction" with calibration, "magnitude" without; the report says what was chosen and why.
            "zeros", without a ratio, removes the channels that are exactly zero, except those of ``exclude``; this
            changes no output. It takes no other option that chooses channels.
        calibration: data for "auto", recovery, and criteria that use activations or gradients: batches that can be
            iterated again, each an input of the model, or ``(input, target)``, or ``((a, b), target)``. If
            ``torch.distributed`` is initialised, every rank passes its own shard, and all get the plan of one process
            with all data.
        loss: a function of the output and the target that returns the mean over the batch, for criteria that use
            gradients; by default cross-entropy, if outputs are logits and targets are classes.
        exclude: fnmatch patterns of module or parameter paths, or modules, whose output channels stay.
        scope: "global" ranks all groups together. "uniform" removes the same share of each, to the nearest step, so
            that layers of equal width stay equal. "reconstruction" chooses the widths by the error that each channel
            adds, after a least-squares fit of the next layers, per unit of budget that it saves (it needs calibration);
            the criterion still orders the channels in a group. "auto" is "reconstruction" if the criterion is "auto"
            too and there is calibration, else "global".
        alike: "free", or "equal" to give one width to layers in the same place of repeated blocks (their paths are
            equal except for numbers).
        residual: "coupled", or "inner" to keep the width of groups that cross an addition. "auto" is "inner" if the
            criterion is "auto" too, there is calibration and the budget can be met that way, else "coupled".
        couplings: "keep", or "drop" to let every convolution and linear layer that reads a residual stream or a
            concatenation select its own input channels (with an ``index_select`` before it), while the stream keeps its
            width.
        round_to: a narrowed group's width is a multiple of this. "auto" suits kernels: 16, or 64 for half precision on
            a GPU; less for groups that would have fewer than eight such widths (two, for residual streams and depthwise
            convolutions, if a step saves at most 5 % of the MACs), and for all if the budget cannot be met
            otherwise; 1 if ``ratio`` names layers. The report shows the overshoot due to rounding.
        min_channels: a narrowed group keeps at least this many channels.
        max_ratio: at most this share of a group's channels is removed: by default 0.9, or 1 if ``ratio`` names layers.
            This, ``round_to`` and ``min_channels`` may also be mappings, as ``ratio`` may.
        recover: how to keep accuracy without labels, after the proof: "reconstruct", "match", "batchnorm", "bias",
            "fuse", an object of :mod:`fxprune.recovery`, or several of them, in order; None for nothing. "auto" is
            "reconstruct" and "match" with calibration; without it, nothing is done, and kept weights equal the
            original's bit for bit.
        other_samples: further calls that the result must accept, with inputs of other sizes or with other flags, if the
            forward takes other branches for them: the result holds a graph for each. Some other image sizes are always
            tried.
        keep_class: return a copy of ``model``, of its own class, whose tensors and attributes have the new sizes: its
            methods, hooks and properties work. Widths that no attribute of a module or of a configuration sets are
            kept, and the report names the source line that sets them.
        verify: prove the result; a failed proof raises and never returns a network. True proves it node by node, in a
            fraction of the time of running whole networks; "full" runs whole networks in float64, at the size of the
            sample and at others; False proves nothing.
        seed: the seed of everything random.
        progress: show the progress; by default only on a terminal.

    Returns:
        A ``torch.fx.GraphModule`` that shares no storage with ``model``, has its parameter names and mode, and carries
        a report (:func:`report`). If the model's own forward cannot be traced (detectors), a copy of the model with
        pruned GraphModules inside; the report lists the opaque parts.

    Raises:
        FxpruneError: one of its subclasses; the message says what is wrong, where, and what to do.
    """
    given = locals()
    whole, level, model = model, check_level(verify), network_of(model)
    if criterion == "zeros":
        _check_beside_zeros(given)
        stays = Options.checked(model, {"ratio": 0.0, "exclude": exclude}).exclude
        asked = (model, sample_input, progress, couplings, other_samples, level)
        return _cut(*asked, keep_class=keep_class, zeros=stays, given=whole)
    options = Options.checked(model, given)
    recoveries = resolve_recoveries(recover)
    with one_pass(progress, model) as steps:
        program = Program(
            model, sample_input, steps, options, other_samples, options.couplings, options.counted, level, recoveries,
            calibration, loss, keep_class=keep_class, given=whole,
        )  # fmt: skip
        return run(program).result


def _check_beside_zeros(given: Mapping[str, Any]) -> None:
    """Refuse options of :func:`compile` that choose channels or recover accuracy: "zeros" needs neither."""
    usual = inspect.signature(compile).parameters
    fine = "model sample_input criterion exclude couplings other_samples keep_class verify seed progress".split()
    odd = [n for n, v in given.items() if n not in fine and v is not usual[n].default and v != usual[n].default]
    if odd:
        raise OptionError(f'criterion="zeros" removes all zero channels, and only those: leave out {", ".join(odd)}')


def _cut(
    model: nn.Module,
    sample_input: Any,
    progress: bool | None,
    couplings: str,
    other_samples: Sequence[Any],
    level: bool | str,
    **chosen: Any,
) -> fx.GraphModule:
    """Cut channels that are chosen by a plan, by the caller or by their zero values."""
    with one_pass(progress, model) as steps:
        program = Program(
            model,
            sample_input,
            steps,
            other_samples=other_samples,
            couplings=check_couplings(couplings),
            verify=level,
            **chosen,
        )
        return run(program).result


def analyze(
    model: nn.Module, sample_input: Any, *, couplings: Couplings = "keep", other_samples: Sequence[Any] = ()
) -> ChannelGraph:
    """The channel groups of a network: ``.groups``, ``.pinned``, ``.graph`` (networkx), ``.explain()``, ``.draw()``.

    A network in which everything is pinned has no groups; ``.pinned`` says why. ``couplings`` and ``other_samples``: as
    for :func:`compile`.

    Raises:
        FxpruneError: the model or the sample cannot be used; see :func:`compile`.
    """
    model = network_of(model)
    with one_pass(False, model) as steps:
        program = Program(model, sample_input, steps, other_samples=other_samples, couplings=check_couplings(couplings))
        return run(program, until="analyze").graph


def plan(
    model: nn.Module,
    sample_input: Any,
    ratio: Ratio = None,
    *,
    other_samples: Sequence[Any] = (),
    keep_class: bool = False,
    progress: bool | None = None,
    **given: Unpack[PlanOptions],
) -> Plan:
    """The plan of :func:`compile` for the same arguments. It can be saved, reviewed and given to :func:`apply`.

    Raises:
        FxpruneError: see :func:`compile`.
    """
    model = network_of(model)
    if unknown := given.keys() - PlanOptions.__annotations__.keys():
        raise TypeError(f"plan() got an unexpected keyword argument {min(unknown)!r}")
    options = Options.checked(model, {"ratio": ratio, **given})
    with one_pass(progress, model) as steps:
        program = Program(
            model, sample_input, steps, options, other_samples, options.couplings, options.counted,
            calibration=given.get("calibration"), loss=given.get("loss"), keep_class=keep_class,
        )  # fmt: skip
        return run(program, until="plan").chosen_plan


def _signature_of_plan() -> inspect.Signature:
    """The signature of :func:`compile` without the arguments for the proof and recovery."""
    whole = inspect.signature(compile)
    taken = [p for name, p in whole.parameters.items() if name not in ("verify", "recover")]
    return whole.replace(parameters=taken, return_annotation=plan.__annotations__["return"])


plan.__signature__ = _signature_of_plan()  # type: ignore[attr-defined]


def apply(
    model: nn.Module,
    sample_input: Any,
    plan: Plan,
    *,
    other_samples: Sequence[Any] = (),
    keep_class: bool = False,
    verify: Level = True,
    progress: bool | None = None,
) -> fx.GraphModule:
    """Cut a network by a plan: the rewrite and the proof alone.

    Raises:
        PlanError: ``plan`` is not a plan, or is for another network.
        FxpruneError: see :func:`compile`.
    """
    if not isinstance(plan, Plan):
        raise PlanError(f"plan must be a Plan, not {type(plan).__name__}: make one with fxprune.plan or Plan.load")
    budgets = {setting(plan, "budget", "macs"), *setting(plan, "budgets", {})}
    asked = (network_of(model), sample_input, progress, setting(plan, "couplings", "keep"), other_samples)
    return _cut(*asked, check_level(verify), keep_class=keep_class, plan=plan, budgets=budgets, given=model)


def remove(
    model: nn.Module,
    sample_input: Any,
    channels: Mapping[Any, Any],
    *,
    couplings: Couplings = "keep",
    other_samples: Sequence[Any] = (),
    keep_class: bool = False,
    verify: Level = True,
    progress: bool | None = None,
) -> fx.GraphModule:
    """Cut chosen channels, with all that are tied to them.

    Args:
        model, sample_input, couplings, other_samples, keep_class, verify, progress: as for :func:`compile`.
        channels: the output channels to remove, by layer or its path: ``{"conv1": [2, 6, 9]}``, or a boolean mask with
            one entry per channel, in which True is removed.

    Raises:
        OptionError: a layer or a channel does not exist.
        PlanError: a channel must stay, or can only be removed with others; the message says why.
        FxpruneError: see :func:`compile`.
    """
    if not isinstance(channels, Mapping):
        raise OptionError(f"channels must map layers to channels, {{'conv1': [2, 6, 9]}}, not {channels!r:.80}")
    asked = (network_of(model), sample_input, progress, couplings, other_samples, check_level(verify))
    return _cut(*asked, channels=channels, keep_class=keep_class, given=model)


def recover(
    pruned: nn.Module,
    model: nn.Module,
    how: RecoveryName | Recovery | Sequence[RecoveryName | Recovery] = "auto",
    *,
    calibration: Iterable[Any] | None = None,
    seed: int = 0,
    progress: bool | None = None,
) -> fx.GraphModule:
    """A copy of a pruned network whose kept values are changed to compensate for the removed ones, without labels.

    Args:
        pruned: the result of :func:`compile`, :func:`apply` or :func:`load`, also after training.
        model: the network it was cut from; it is not changed.
        how: as ``recover`` of :func:`compile`.
        calibration: as for :func:`compile`; targets are not used.
        seed: the seed of everything random.
        progress: as for :func:`compile`.

    Raises:
        RecoveryError: the recovery is unknown or lacks calibration, or the network cannot be recovered.
        PlanError: ``pruned`` was not cut from this model.
        FxpruneError: see :func:`compile`.
    """
    pruned, model, recoveries = unwrapped(pruned), network_of(model), resolve_recoveries(how)
    if not isinstance(model, nn.Module):
        raise ModelError(f"model must be the network that it was cut from, not a {type(model).__name__}")
    plan = report(pruned).plan
    sample = carried(pruned).get("sample")
    if plan is None or sample is None:
        raise RecoveryError("this module carries no plan or no sample: pass a network that fxprune.compile returned")
    device, seed = device_of(model), checked_seed(seed)
    with one_pass(progress, model) as steps:
        program = Program(
            model, sample.with_values(seed).map(lambda tensor: tensor.to(device)), steps,
            couplings=check_couplings(setting(plan, "couplings", "keep")), recoveries=recoveries,
            calibration=calibration, seed=seed, plan=plan, pruned=copy.deepcopy(pruned), report=report(pruned),
        )  # fmt: skip
        return run(program).result


def report(pruned: nn.Module) -> Report:
    """The report of a compilation: asked and achieved, groups, pins with reasons, the proof, timings and ``.plan``.

    Raises:
        FxpruneError: the module was not made by fxprune.
    """
    about = carried(unwrapped(pruned))
    if "report" not in about:
        raise FxpruneError(
            "this module carries no report: pass a network that fxprune.compile or fxprune.load returned"
        )
    found: Report = about["report"]
    return found
