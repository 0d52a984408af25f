"""The one object that flows through the passes: the request, and the results of each pass.

``print(program)`` shows the network node by node, in its current state. With ``FXPRUNE_DUMP=DIR`` in the environment,
that text is written to ``DIR`` after every pass, so that two passes can be compared with ``diff``.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn

from fxprune.analysis.groups import Group
from fxprune.analysis.solving import ChannelGraph
from fxprune.axes.elements import FloatArray, Mask
from fxprune.axes.expressions import Channels
from fxprune.calibration import Calibration, Collector, Loss
from fxprune.capture import Captured
from fxprune.capture.checking import is_meta
from fxprune.capture.guards import without_compilation
from fxprune.capture.reachable import restored
from fxprune.capture.samples import Sample
from fxprune.capture.tracing import OpaqueOp
from fxprune.errors import AnalysisError, OptionError
from fxprune.keeping import ConfigEdit, Held, Rules
from fxprune.options import Options
from fxprune.planning import Plan
from fxprune.proof import Proof
from fxprune.recovery import Auto, Recovery
from fxprune.reporting import Report
from fxprune.rewriting import Certificate
from fxprune.util.copies import deep_recursion
from fxprune.util.paths import named_modules
from fxprune.util.progress import Steps, random_state_kept
from fxprune.util.writing import file_errors

# The proof seeds the generators and switches kernels for the whole process, so one pass runs at a time.
_LOCK = threading.RLock()

NEEDS_DATA = (
    "a trained network needs data or training to keep its accuracy: pass calibration=, a list or DataLoader of batches "
    "of what the model takes (labels are not needed), or train the result"
)


def kernel_multiple(model: nn.Module) -> int:
    """The multiple that suits kernels: 64 for tensor cores (half precision on a GPU), else 16 for vectors."""
    weight = next(model.parameters(), None)
    return 64 if weight is not None and weight.is_cuda and weight.dtype in (torch.float16, torch.bfloat16) else 16


@dataclass(frozen=True)
class CalibrationData:
    """The data that criteria may use besides weights (or None), and the loss for gradients (or None)."""

    calibration: Calibration | None = None
    loss: Loss | None = None

    @classmethod
    def checked(cls, calibration: Iterable[Any] | None, loss: Loss | None, sample: Sample) -> CalibrationData:
        """Check the user's ``calibration`` and ``loss``. Raises CalibrationError or OptionError: unusable."""
        if loss is not None and not callable(loss):
            raise OptionError(f"loss must be a function of the output and the target, not {loss!r}")
        return cls(None if calibration is None else Calibration(calibration, sample), loss)

    @property
    def seen(self) -> int:
        """The number of samples in the last pass over the data, on all ranks together."""
        return 0 if self.calibration is None else self.calibration.seen

    def collector(self, graph: ChannelGraph, model: nn.Module, steps: Steps, seed: int) -> Collector | None:
        """The collector that runs over the data; None without data."""
        if self.calibration is None:
            return None
        return Collector(graph, model, self.calibration, self.loss, steps, seed)


@dataclass
class Program:
    """One network on its way through the passes of :mod:`fxprune.pipeline`.

    The first part of the fields is given. Each field of the second part is filled by the pass named in its comment.
    """

    model: nn.Module  # the caller's network, which is only read
    sample_input: Any  # one call's arguments, as the caller gave them
    steps: Steps  # names the running pass and keeps the seconds of each
    options: Options | None = None  # all that a plan depends on; None if a plan is given
    other_samples: Sequence[Any] = ()  # further calls that the result must take
    couplings: str = "keep"  # "keep" or "drop"
    budgets: Collection[str] = ("macs",)  # the costs to count
    verify: bool | str = True  # whether the result is proven node by node, or by whole networks ("full")
    recoveries: Sequence[Recovery] = ()  # run after the proof; "choose" drops unusable ones
    calibration: Iterable[Any] | None = None  # batches, or None
    loss: Loss | None = None  # the loss for criteria that read gradients
    seed: int | None = None  # the random seed; None: the plan's
    channels: Mapping[Any, Any] | None = None  # the channels to remove, by layer or its path
    keep_class: bool = False  # whether the result is a copy of the model, of its own class
    # If only channels that are exactly zero are removed: the patterns of layers to exclude; else None.
    zeros: Sequence[str] | None = None
    given: Any = None  # what the caller passed as the model: maybe a wrapper around it

    sample: Sample = field(init=False)  # capture
    captured: Captured = field(init=False)  # capture
    untraced: tuple[OpaqueOp, ...] = ()  # capture
    data: CalibrationData = field(init=False)  # capture
    graph: ChannelGraph = field(init=False)  # analyze
    chosen_options: Options = field(init=False)  # choose
    notes: tuple[str, ...] = ()  # choose
    scores: Mapping[Group, FloatArray] | Any = None  # score
    plan: Plan | None = None  # plan, or given
    masks: Mapping[Channels, Mask] = field(default_factory=dict)  # rewrite
    pruned: Any = None  # rewrite, or given
    certificates: Sequence[Certificate] = ()  # rewrite
    kept: nn.Module | None = None  # keep
    held: Held = field(default_factory=dict)  # keep: groups that no attribute can narrow
    holds_more: bool = False  # keep: whether the last try found more of them
    follows_config: bool = True  # plan: whether widths are held that the class's configuration cannot set
    rules: Rules = field(default_factory=dict)  # keep
    config_edit: ConfigEdit = field(default_factory=ConfigEdit)  # keep
    proof: Proof | None = None  # verify
    report: Report | None = None  # report
    _checked: Any = None  # the network whose sizes were last checked against the plan

    @property
    def chosen_plan(self) -> Plan:
        """The plan, after the pass that makes it."""
        assert self.plan is not None
        return self.plan

    @cached_property
    def _is_meta(self) -> bool:
        return is_meta(self.model)

    @property
    def why_no_data(self) -> str:
        """The reason why data cannot help to choose channels and to recover; empty if they can."""
        if self._is_meta:
            return "its weights are on the meta device"
        if self.data.calibration is None:
            return "there is no calibration"
        return "its own forward is opaque, so it has no graph" if "" in self.graph.captured.opaque else ""

    @property
    def why_unproven(self) -> str:
        """The reason why there is no proof; empty if there will be one."""
        if self._is_meta:
            return "structural, unproven"
        return "" if self.verify else "verify=False"

    def choose(self, why_not: str = "") -> None:
        """Replace "auto" by the actual choices, and note them; ``why_not``: the reason why data cannot help, if any."""
        assert self.options is not None
        why_not = why_not or self.why_no_data
        self.chosen_options, words = self.options.settled(why_not)
        asked = [r for r in self.recoveries if isinstance(r, Auto)]
        if self.why_no_data:
            self.recoveries = [r for r in self.recoveries if not isinstance(r, Auto)]
        if asked:
            done = "nothing" if self.why_no_data else asked[0].stands_for
            words = f"{words}, recover {done}" if words else f"recover {done}"
        because = why_not or "channels go whose part the next layers can take over, by the calibration's inputs"
        if not why_not and self.options.criterion != "auto":
            because = "a criterion that was chosen brings its own widths"
        self.notes = (f"auto chose {words}: {because}",) if words else ()
        if asked and self.data.calibration is None and self.options.removes:
            self.notes += (NEEDS_DATA,)

    @property
    def result(self) -> fx.GraphModule:
        """The pruned network. It has the model's own class with ``keep_class``, or if the model's forward is opaque."""
        network: fx.GraphModule = self.pruned if self.kept is None else self.kept  # type: ignore[assignment]
        return network

    def __str__(self) -> str:
        if hasattr(self, "graph"):
            return self.graph.listing(self.masks)
        if hasattr(self, "captured"):
            return "\n".join(str(part.graph) for part in self.captured.everything())
        return f"{type(self.model).__name__}, not captured yet"

    def dump(self, name: str) -> None:
        """Write the program to the folder that ``FXPRUNE_DUMP`` names, if any. Raises FileError: that is impossible."""
        folder = os.environ.get("FXPRUNE_DUMP")
        if folder:
            with file_errors(f"{folder}, which FXPRUNE_DUMP names, cannot be written"):
                Path(folder).mkdir(parents=True, exist_ok=True)
                (Path(folder) / f"{name}.txt").write_text(f"{self}\n", encoding="utf-8")

    def check(self) -> None:
        """Check the invariants that must hold after every pass.

        Raises:
            AnalysisError: torch.fx cannot run a graph, a mask does not fit its group, or a tensor of the result does
                not have the size in the plan.
        """
        if self.plan is not None and hasattr(self, "graph"):
            self._check_masks()
        if self.plan is not None and isinstance(self.pruned, fx.GraphModule) and self.pruned is not self._checked:
            self._check_sizes(self.plan, self.pruned)
            self._checked = self.pruned

    def _check_masks(self) -> None:
        for group in self.graph.groups:
            mask = self.masks.get(group.variable)
            if mask is not None and (mask.shape != (group.size,) or not mask.any()):
                raise AnalysisError(f"the plan's mask of {group.name} does not fit its {group.size} channels")

    def _check_sizes(self, plan: Plan, pruned: fx.GraphModule) -> None:
        parts = named_modules(pruned)
        held = ((f"{path}.{n}" if path else n, t) for path, p in parts for n, t in (p._parameters | p._buffers).items())
        for name, tensor in held:
            for dim, kept in enumerate(plan.keep.get(name) or ()):
                if kept is not None and tensor is not None and tensor.shape[dim] != kept.numel():
                    raise AnalysisError(
                        f"{name} dim {dim} has {tensor.shape[dim]} entries, and the plan keeps {len(kept)}"
                    )


@contextmanager
def one_pass(progress: bool | None, model: Any) -> Iterator[Steps]:
    """Run passes over a model, with progress shown if ``progress``; state that the model's code shares is restored."""
    with ExitStack() as around:
        around.enter_context(_LOCK)
        around.enter_context(random_state_kept())
        # Tensors made in inference mode could not be trained, and autocast would round what is proven.
        around.enter_context(torch.inference_mode(False))
        around.enter_context(without_compilation())
        for device in ("cpu", "cuda"):
            if torch.is_autocast_enabled(device):
                around.enter_context(torch.autocast(device, enabled=False))
        if isinstance(model, nn.Module):
            around.enter_context(deep_recursion(model))
            around.enter_context(restored(model))
        steps = around.enter_context(Steps(progress))
        yield steps
