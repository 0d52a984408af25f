"""Hints: features of the pruned network that should come close to the teacher's (Romero et al., 2015, 1412.6550)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fxprune.api import analyze, report
from fxprune.calibration.batches import describe_arguments, describe_value, read_batch, read_pair
from fxprune.capture.samples import Sample
from fxprune.distillation.options import DistillationLoss, as_parts
from fxprune.errors import DistillationError, FxpruneError, described
from fxprune.proof.masking import select
from fxprune.rewriting import carried, node_keep
from fxprune.util.paths import device_of

# The trained network as a function of its arguments: gives its output, and its features at the hints.
Called = Callable[..., tuple[Any, dict[str, Tensor]]]


class Student(nn.Module):
    """The trained network, together with the projections of features that only training needs."""

    def __init__(self, network: nn.Module, projections: Projections, seen: dict[str, Tensor]) -> None:
        super().__init__()
        self.network = network
        self.projections = projections
        self._seen = seen

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Any, dict[str, Tensor]]:
        """The network's output, and its features at the hints."""
        self._seen.clear()
        output = self.network(*args, **kwargs)
        return output, dict(self._seen)


class StudentAndTeacher:
    """Copies of the trained network and of its teacher, on a device; the caller's own are not changed."""

    def __init__(
        self, pruned: nn.Module, teacher: nn.Module, hints: Sequence[Hint], loss: DistillationLoss, device: torch.device
    ) -> None:
        self._kept: dict[str, Kept] = kept_channels(hints, pruned, teacher)
        self._about: Sample | None = carried(pruned).get("sample")
        self._hints, self._loss, self._device = hints, loss, device
        self.teacher = copy.deepcopy(teacher).to(device).eval().requires_grad_(False)
        self.network = copy.deepcopy(pruned).to(device)
        self._stack = ExitStack()
        self._given = self._stack.enter_context(recorded_outputs(self.teacher, [h.source for h in hints]))
        self._found = self._stack.enter_context(recorded_outputs(self.network, [h.student for h in hints]))
        self.student = Student(self.network, Projections((), {}, {}), self._found)

    @property
    def has_projections(self) -> bool:
        """Whether a hint learns a map between widths."""
        return any(hint.projection for hint in self._hints)

    def close(self) -> None:
        """Remove the hooks from the networks."""
        self._stack.close()

    def read(self, given: Any, number: int) -> tuple[Sample, Any]:
        """Arguments and target of a batch, on the device. Raises DistillationError: the network does not take it."""
        found = read_pair(given) if self._about is None else read_batch(given, self._about)
        if found is None:
            assert self._about is not None
            raise DistillationError(
                f"batch {number} of the loader does not fit the network: it is {describe_value(given)}; expected "
                f"{describe_arguments(self._about)}, or a pair of that and the target"
            )
        return found[0].map(self._on_device), pytree.tree_map_only(Tensor, self._on_device, found[1])

    def prepare_projections(self, sample: Sample) -> None:
        """Run both networks once to find the widths that projections must map between."""
        with torch.no_grad():
            self.network.eval()
            self.teacher_output(sample)
            _run(self.student, sample, "the pruned network")
        self._check_hints(self._found)
        self.student.projections = Projections(self._hints, self._found, self._given).to(self._device)

    @torch.no_grad()
    def teacher_output(self, sample: Sample) -> Any:
        """The teacher's output for a batch."""
        self._given.clear()
        return _run(self.teacher, sample, "teacher")

    def losses(self, student: Called, sample: Sample, target: Any, wanted: Any) -> dict[str, Tensor]:
        """The summands of the loss of one batch. Raises DistillationError: the networks do not fit each other."""
        output, features = _run(student, sample, "the pruned network")
        parts = as_parts(self._loss(output, wanted, target))
        if self._hints:
            self._check_hints(features)
            parts["hints"] = hint_loss(self._hints, features, self._given, self._kept, self.student.projections)
        if not any(part.requires_grad for part in parts.values()):
            raise DistillationError("the loss does not depend on the network's parameters: is any of them trainable?")
        return parts

    def trainable(self) -> list[nn.Parameter]:
        """The parameters to optimise. Raises DistillationError: there are none."""
        found = [p for p in self.student.parameters() if p.requires_grad]
        if not found:
            raise DistillationError("no parameter of the pruned network requires a gradient, so there is none to train")
        return found

    def _check_hints(self, features: dict[str, Tensor]) -> None:
        check_seen(features, [h.student for h in self._hints], self.network, "the pruned network")
        check_seen(self._given, [h.source for h in self._hints], self.teacher, "teacher")

    def _on_device(self, tensor: Tensor) -> Tensor:
        # A network may write to its input, but the data belongs to the caller.
        return tensor.detach().to(self._device, copy=True)


def _run(network: Callable[..., Any], sample: Sample, whose: str) -> Any:
    try:
        return sample.map(torch.clone).call(network)
    except DistillationError:
        raise
    except Exception as error:  # the user's own code runs here and may raise anything
        raise DistillationError(
            f"{whose} fails on a batch of the loader (tensors of shape {_shapes(sample.tensors)}): {described(error)}"
        ) from error


def _shapes(tensors: Iterable[Tensor]) -> str:
    return ", ".join(str(tuple(t.shape)) for t in tensors)


# Kept indices of each dim of the teacher's features, None for all.
Kept = tuple[Tensor | None, ...]


@dataclass(frozen=True)
class Hint:
    """A place at which features are compared, by the mean squared difference over the mean square of the teacher's,
    sample by sample.

    Args:
        student: path of a module of the pruned network, one that its graph calls (``fxprune.compile`` enters modules
            of the model's own classes, so it is a layer such as "layer1.0.bn2").
        teacher: path of the teacher's module; the same path by default.
        weight: the factor of the difference in the loss.
        projection: False compares the student's features with the kept channels of the teacher's. True learns a linear
            map (a 1x1 convolution, for maps) from the student's channels to the teacher's; it is trained with the
            student and then discarded. This is needed if the teacher is not the network that was pruned.

    Raises:
        DistillationError: the weight is not above 0.
    """

    student: str
    teacher: str | None = None
    weight: float = 1.0
    projection: bool = False

    def __post_init__(self) -> None:
        if not self.weight > 0:
            raise DistillationError(f"the weight of a hint must be above 0, not {self.weight!r}")

    @property
    def source(self) -> str:
        """Path of the teacher's module."""
        return self.student if self.teacher is None else self.teacher


def resolve_hints(hints: Any, student: nn.Module, teacher: nn.Module) -> tuple[Hint, ...]:
    """Turn a user's ``hints`` (paths or :class:`Hint`) into hints. Raises DistillationError: anything else."""
    if isinstance(hints, (str, Hint)) or not isinstance(hints, Sequence):
        hints = [hints]
    found = tuple(Hint(h) if isinstance(h, str) else h for h in hints)
    for hint in found:
        if not isinstance(hint, Hint):
            raise DistillationError(f"hints takes module paths and fxprune.distillation.Hint objects, not {hint!r}")
        for network, path, whose in ((student, hint.student, "the pruned network"), (teacher, hint.source, "teacher")):
            if path not in dict(network.named_modules()):
                raise DistillationError(f"hint {hint.student!r}: {whose} has no module {path!r}")
    return found


def kept_channels(hints: Sequence[Hint], pruned: nn.Module, teacher: nn.Module) -> dict[str, Kept]:
    """For each hint without projection, the teacher's kept indices, if the plan has them."""
    wanted = {h.student for h in hints if not h.projection and h.source == h.student}
    sample = carried(pruned).get("sample")
    if not wanted or sample is None:
        return {}
    try:
        plan = report(pruned).plan
        assert plan is not None
        device = device_of(teacher)
        given = sample.with_values(0).map(lambda tensor: tensor.to(device))
        graph = analyze(teacher, given, couplings=plan.settings.get("couplings", "keep"))
        keep = node_keep(graph, graph.captured, plan.masks(graph))
    except FxpruneError:
        # The teacher is not the network that was cut: its channels are not the student's.
        return {}
    nodes = (node for node in graph.captured.graph.nodes if node.op == "call_module" and str(node.target) in wanted)
    return {str(node.target): keep[node.name] for node in nodes if node.name in keep}


class Projections(nn.ModuleDict):
    """One linear map for each hint with a projection, from the student's channels to the teacher's."""

    def __init__(self, hints: Sequence[Hint], student: Mapping[str, Tensor], teacher: Mapping[str, Tensor]) -> None:
        made = {}
        for number, hint in enumerate(hints):
            if hint.projection:
                narrow, wide = student[hint.student], teacher[hint.source]
                dim = _channel_dim(hint, narrow, wide)
                made[str(number)] = nn.Linear(narrow.shape[dim], wide.shape[dim], bias=False)
        super().__init__(made)

    def project(self, number: int, hint: Hint, features: Tensor, wide: Tensor) -> Tensor:
        """The student's features, mapped to the teacher's width."""
        dim = _channel_dim(hint, features, wide)
        projected: Tensor = self[str(number)](features.movedim(dim, -1))
        return projected.movedim(-1, dim)


def hint_loss(
    hints: Sequence[Hint],
    student: Mapping[str, Tensor],
    teacher: Mapping[str, Tensor],
    kept: Mapping[str, Kept],
    projections: Projections,
) -> Tensor:
    """The weighted sum over all hints. Raises DistillationError: features of different shapes."""
    losses = []
    for number, hint in enumerate(hints):
        found, wanted = student[hint.student].float(), teacher[hint.source].float()
        if hint.projection:
            found = projections.project(number, hint, found, wanted)
        else:
            wanted = select(wanted, kept.get(hint.student, ()))
        _check_alike(hint, found, wanted)
        losses.append(hint.weight * _distance(found, wanted))
    return torch.stack(losses).sum()


@contextmanager
def recorded_outputs(network: nn.Module, paths: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """A dict that every call of the network fills with the outputs of the modules at ``paths``."""
    seen: dict[str, Tensor] = {}

    def remember(path: str) -> Any:
        def hook(module: nn.Module, given: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                # A later op may write to the output.
                seen[path] = output.clone()

        return hook

    with ExitStack() as hooks:
        for path in dict.fromkeys(paths):
            # Parts refuse hooks in their own method; if one is not called, check_seen names other modules.
            handle = nn.Module.register_forward_hook(network.get_submodule(path), remember(path))
            hooks.callback(handle.remove)
        yield seen


def check_seen(seen: Mapping[str, Tensor], paths: Sequence[str], network: nn.Module, whose: str) -> None:
    """Raise DistillationError for modules that were not called or gave no tensor, and suggest modules inside them."""
    for path in paths:
        if path not in seen:
            parts = network.get_submodule(path).named_modules()
            inside = [f"{path}.{n}" for n, m in parts if n and not m._modules and type(m) is not nn.Module]
            instead = f"; modules inside it: {', '.join(inside[-4:])}" if inside else ""
            raise DistillationError(
                f"hint {path!r}: {whose} does not call this module by itself, or it gives no tensor{instead}"
            )


def _channel_dim(hint: Hint, narrow: Tensor, wide: Tensor) -> int:
    """The dim that a projection maps: the only one in which the two differ."""
    if narrow.ndim == wide.ndim:
        dims = [dim for dim in range(narrow.ndim) if narrow.shape[dim] != wide.shape[dim]]
        if len(dims) == 1:
            return dims[0]
        if not dims:
            return 1 if narrow.ndim in (2, 4, 5) else narrow.ndim - 1
    raise DistillationError(
        f"hint {hint.student!r}: features of shape {tuple(narrow.shape)} and {tuple(wide.shape)} (the teacher's) "
        "differ in more than their channels, and no projection fits"
    )


def _distance(found: Tensor, wanted: Tensor) -> Tensor:
    """The distance, sample by sample, so that means over parts of a batch on several processes can be averaged."""
    apart, whole = ((t.square().flatten(1) if t.ndim > 1 else t.square()) for t in (found - wanted, wanted))
    if apart.ndim > 1:
        apart, whole = apart.mean(1), whole.mean(1)
    return (apart / whole.clamp_min(1e-6)).mean()


def _check_alike(hint: Hint, found: Tensor, wanted: Tensor) -> None:
    if found.shape != wanted.shape:
        raise DistillationError(
            f"hint {hint.student!r}: features have shape {tuple(found.shape)} and the teacher's {tuple(wanted.shape)}, "
            "and no plan says which channels belong together: pass Hint(..., projection=True)"
        )
