"""What the pruned network's outputs should come close to: the teacher's, and the labels where there are any."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fxprune.errors import DistillationError

# Given the pruned network's output, the teacher's and the target (None where the loader gives none).
DistillationLoss = Callable[[Any, Any, Any], Any]


@dataclass(frozen=True)
class SoftTargets:
    """Cross-entropy with labels beside the divergence from the teacher's softened outputs.

    ``labels * CE(y, s) + (1 - labels) * T^2 * KL(softmax(t / T) || softmax(s / T))`` (Hinton et al., 2015, arXiv
    1503.02531, section 2), the mean over samples and, for
    outputs (N, classes, H, W), over pixels. Networks with several outputs (a dict with "out" and "aux", a tuple) are
    compared output by output, by name or place; what the teacher does not give is compared with the labels alone.

    Args:
        temperature: T, above 0. Higher values tell more of the classes that the teacher thinks unlikely.
        labels: the weight of the labels, between 0 and 1; None is 0.1 where the loader gives labels and 0 elsewhere.
        class_dim: the dim of the classes, 1 as in ``torch.nn.functional.cross_entropy``; -1 for (N, tokens, classes).
        ignore_index: pixels with this label count for the divergence alone.
        further: the weight of every output behind the first one.

    Raises:
        DistillationError: a value makes no sense.
    """

    temperature: float = 4.0
    labels: float | None = None
    class_dim: int = 1
    ignore_index: int = -100
    further: float = 0.5

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise DistillationError(f"temperature must be above 0, not {self.temperature!r}")
        if self.labels is not None and not 0 <= self.labels <= 1:
            raise DistillationError(f"labels is a weight between 0 and 1, not {self.labels!r}")
        if not self.further >= 0:
            raise DistillationError(f"further must be at least 0, not {self.further!r}")

    def __call__(self, student: Any, teacher: Any, target: Any) -> dict[str, Tensor]:
        """The two summands, "soft" and, where labels count, "labels".

        Raises:
            DistillationError: outputs that do not fit each other, or labels that are missing or do not fit.
        """
        share = self._share(target)
        soft: list[Tensor] = []
        hard: list[Tensor] = []
        given = named_outputs(teacher)
        for number, (name, output) in enumerate(named_outputs(student).items()):
            weight = self.further if number else 1.0
            wanted = given.get(name, next(iter(given.values())) if number == 0 else None)
            soft.append(weight * self._divergence(output, wanted, name))
            if share:
                hard.append(weight * self._cross_entropy(output, target))
        parts = {"soft": (1 - share) * sum(soft, torch.zeros(()).to(soft[0]))}
        return parts | {"labels": share * sum(hard, torch.zeros(()).to(hard[0]))} if hard else parts

    def _share(self, target: Any) -> float:
        if target is None and self.labels:
            raise DistillationError(
                f"labels={self.labels:g} asks for labels, and the loader gives none: let it yield (input, labels), or "
                "leave labels out to learn from the teacher alone"
            )
        if self.labels is None:
            return 0.1 if isinstance(target, Tensor) else 0.0
        return float(self.labels)

    def _divergence(self, output: Tensor, wanted: Tensor | None, name: str) -> Tensor:
        if wanted is None:
            # A part of the loss with no gradient: data parallel training wants every parameter to take part.
            return 0.0 * output.float().sum()
        if wanted.shape != output.shape:
            raise DistillationError(
                f"output {name or 'of the network'} has shape {tuple(output.shape)} and the teacher's "
                f"{tuple(wanted.shape)}: both have to give the same classes; pass loss= to compare them in another way"
            )
        logs = F.log_softmax(output.float() / self.temperature, dim=self.class_dim)
        goal = F.log_softmax(wanted.detach().float() / self.temperature, dim=self.class_dim)
        each = F.kl_div(logs, goal, reduction="none", log_target=True).sum(self.class_dim)
        return self.temperature**2 * each.mean()

    def _cross_entropy(self, output: Tensor, target: Any) -> Tensor:
        logits = output.float().movedim(self.class_dim, 1) if output.ndim > 1 else output.float()
        indices = isinstance(target, Tensor) and target.shape == (logits.shape[0], *logits.shape[2:])
        shares = isinstance(target, Tensor) and target.is_floating_point() and target.shape == logits.shape
        if not (indices or shares):
            raise DistillationError(
                f"labels {_shape(target)} do not fit an output {_shape(output)}: give class indices (N, ...) or class "
                "shares like the output, labels=0 to leave them out, or loss= for another loss"
            )
        goal = target if shares else target.long()
        return F.cross_entropy(logits, goal, ignore_index=self.ignore_index)


def named_outputs(output: Any) -> dict[str, Tensor]:
    """The floating-point tensors of an output by name (of a dict) or place (of a tuple); "" for a tensor by itself.

    Raises:
        DistillationError: there is none.
    """
    if isinstance(output, Tensor):
        return {"": output}
    items: Any = ()
    if isinstance(output, Mapping):
        items = output.items()
    elif isinstance(output, (tuple, list)):
        items = enumerate(output)
    found = {str(n): v for n, v in items if isinstance(v, Tensor) and v.is_floating_point()}
    if not found:
        raise DistillationError(
            f"an output of type {type(output).__name__} holds no tensor that could be compared: pass loss=, a function "
            "of the network's output, the teacher's and the target"
        )
    return found


def as_parts(value: Any) -> dict[str, Tensor]:
    """What a loss returned as named summands.

    Raises:
        DistillationError: it is neither a tensor without dims nor a dict of such.
    """
    parts = dict(value) if isinstance(value, Mapping) else {"loss": value}
    wrong = next((n for n, v in parts.items() if not isinstance(v, Tensor) or v.ndim), None)
    if wrong is not None or not parts:
        raise DistillationError(
            "loss must return a tensor without dims, the mean over the batch, or a dict of such tensors by name; it "
            f"returned {_shape(parts.get(wrong)) if parts and wrong is not None else 'an empty dict'}"
        )
    return parts


def _shape(value: Any) -> str:
    return f"of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"of type {type(value).__name__}"
