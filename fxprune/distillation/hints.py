"""Hints: features of the pruned network that should come close to the teacher's (Romero et al., 2015, 1412.6550)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fxprune.api import analyze, report
from fxprune.errors import DistillationError, FxpruneError
from fxprune.rewriting import node_keep

# Kept indices of each dim of the teacher's features, None for all.
Kept = tuple[Tensor | None, ...]


@dataclass(frozen=True)
class Hint:
    """One place at which features are compared: mean squared difference over the mean square of the teacher's,
    sample by sample.

    Args:
        student: path of a module of the pruned network, one that its graph calls (``fxprune.compile`` enters modules
            of the model's own classes, so it is a layer such as "layer1.0.bn2").
        teacher: path of the teacher's module; the same path by default.
        weight: what the difference is multiplied by in the loss.
        projection: False compares the kept channels of the teacher's features with the student's, like with like. True
            learns a linear map (a 1x1 convolution, for maps) from the student's channels to the teacher's; it is
            trained along and thrown away. Needed where the teacher is not the network that was pruned.

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
    """What a user passes as ``hints``: paths and :class:`Hint` objects.

    Raises:
        DistillationError: something else, or a path that a network does not have.
    """
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
    """For each hint without projection the teacher's kept indices, where the plan tells."""
    wanted = {h.student for h in hints if not h.projection and h.source == h.student}
    sample = getattr(pruned, "meta", {}).get("fxprune", {}).get("sample")
    if not wanted or sample is None:
        return {}
    try:
        plan = report(pruned).plan
        assert plan is not None
        device = next((t.device for t in (*teacher.parameters(), *teacher.buffers())), torch.device("cpu"))
        given = sample.with_values(0).map(lambda tensor: tensor.to(device))
        graph = analyze(teacher, given, couplings=plan.settings.get("couplings", "keep"))
        keep = node_keep(graph, graph.captured, plan.masks(graph))
    except FxpruneError:
        # Another network than the one that was cut: its channels are not the student's.
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
        """The student's features in the teacher's width."""
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
    """The weighted sum over all hints.

    Raises:
        DistillationError: features of different shapes.
    """
    losses = []
    for number, hint in enumerate(hints):
        found, wanted = student[hint.student].float(), teacher[hint.source].float()
        if hint.projection:
            found = projections.project(number, hint, found, wanted)
        else:
            wanted = _sliced(wanted, kept.get(hint.student, ()))
        _check_alike(hint, found, wanted)
        losses.append(hint.weight * _distance(found, wanted))
    return torch.stack(losses).sum()


@contextmanager
def watched(network: nn.Module, paths: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """A dict that every call of the network fills with what the modules at ``paths`` gave."""
    seen: dict[str, Tensor] = {}

    def remember(path: str) -> Any:
        def hook(module: nn.Module, given: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                # A later op may write into it.
                seen[path] = output.clone()

        return hook

    with ExitStack() as hooks:
        for path in dict.fromkeys(paths):
            # Where a module is not called, which its own method refuses, it is told below what to name instead.
            handle = nn.Module.register_forward_hook(network.get_submodule(path), remember(path))
            hooks.callback(handle.remove)
        yield seen


def check_seen(seen: Mapping[str, Tensor], paths: Sequence[str], network: nn.Module, whose: str) -> None:
    """Refuse paths of modules that were not called or gave no tensor.

    Raises:
        DistillationError: names the module, and those inside it that could be meant.
    """
    for path in paths:
        if path not in seen:
            inside = [f"{path}.{n}" for n, m in network.get_submodule(path).named_modules() if n and _is_leaf(m)]
            instead = f"; modules inside it: {', '.join(inside[-4:])}" if inside else ""
            raise DistillationError(
                f"hint {path!r}: {whose} does not call this module by itself, or it gives no tensor{instead}"
            )


def _is_leaf(module: nn.Module) -> bool:
    return not any(True for _ in module.children()) and type(module) is not nn.Module


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


def _sliced(features: Tensor, kept: Kept) -> Tensor:
    for dim, index in enumerate(kept):
        if index is not None:
            features = features.index_select(dim, index.to(features.device))
    return features


def _distance(found: Tensor, wanted: Tensor) -> Tensor:
    """Sample by sample, so that the mean over a batch is that of its parts, which other processes may hold."""
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
