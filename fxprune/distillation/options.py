"""The settings, the result and the default loss of a distillation."""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from fxprune.errors import DistillationError, OptionError, check_choice, check_count

MakeOptimizer = Callable[[list[nn.Parameter]], Optimizer]
_RATES = {"sgd": 0.01, "adamw": 1e-3}
_SCHEDULES = ("cosine", "step", "constant")
_PRECISIONS = ("no", "bf16", "fp16")


@dataclass(frozen=True)
class Training:
    """Checked settings, see :func:`fxprune.distill`. Raises OptionError: a value is invalid."""

    steps: int | None
    epochs: int | None
    optimizer: str | MakeOptimizer
    learning_rate: float | None
    weight_decay: float
    schedule: str
    warmup: int
    accumulate: int
    clip: float | None
    precision: str
    evaluate_every: int | None
    keep: str
    checkpoint_every: int
    log_every: int
    seed: int

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.epochs is None):
            raise OptionError("say how long to train: either steps= (of the optimiser) or epochs= (over the loader)")
        check_count(OptionError, "accumulate", self.accumulate)
        for name in ("checkpoint_every", "log_every", "steps", "epochs", "evaluate_every"):
            if getattr(self, name) is not None:
                check_count(OptionError, name, getattr(self, name))
        check_count(OptionError, "warmup", self.warmup, least=0)
        check_count(OptionError, "seed", self.seed, least=None)
        check_choice(OptionError, "schedule", self.schedule, _SCHEDULES)
        check_choice(OptionError, "precision", self.precision, _PRECISIONS)
        check_choice(OptionError, "keep", self.keep, ("last", "best"))
        if not callable(self.optimizer):
            check_choice(OptionError, "optimizer", self.optimizer, tuple(_RATES))
        elif self.learning_rate is not None:
            raise OptionError("learning_rate goes to an optimiser chosen by name; give yours its rate when made")
        _check_number("learning_rate", self.learning_rate)
        _check_number("clip", self.clip)
        _check_number("weight_decay", self.weight_decay, or_zero=True, or_none=False)

    def total(self, batches: int | None) -> int:
        """The number of steps. Raises OptionError: epochs are given, but the loader has no length."""
        if self.steps is not None:
            return self.steps
        assert self.epochs is not None
        if not batches:
            raise OptionError("epochs= needs a loader that knows how many batches it has: pass steps= instead")
        return max(1, self.epochs * batches // self.accumulate)

    def make_optimizer(self, parameters: list[nn.Parameter]) -> Optimizer:
        """The optimiser over the parameters. Raises OptionError: the user's function returned something else."""
        if callable(self.optimizer):
            made = self.optimizer(parameters)
            if not isinstance(made, Optimizer):
                raise OptionError(f"optimizer must return a torch.optim.Optimizer, not {type(made).__name__}")
            return made
        rate = _RATES[self.optimizer] if self.learning_rate is None else self.learning_rate
        if self.optimizer == "sgd":
            return torch.optim.SGD(parameters, lr=rate, momentum=0.9, weight_decay=self.weight_decay)
        return torch.optim.AdamW(parameters, lr=rate, weight_decay=self.weight_decay)

    def factor(self, step: int, total: int) -> float:
        """The factor of the learning rate at a step; the first step is 0."""
        if step < self.warmup:
            return (step + 1) / (self.warmup + 1)
        done = (step - self.warmup) / max(1, total - self.warmup)
        if self.schedule == "cosine":
            return 0.5 * (1 + math.cos(math.pi * done))
        if self.schedule == "step":
            return 0.1 ** ((done >= 0.5) + (done >= 0.75))
        return 1.0

    def settings(self) -> dict[str, Any]:
        """The settings that must be the same to continue a run, as JSON values."""
        kind = "a function" if callable(self.optimizer) else self.optimizer
        names = ("learning_rate", "weight_decay", "schedule", "warmup", "accumulate", "clip", "precision", "seed")
        return {"optimizer": kind, **{name: getattr(self, name) for name in names}}


def _check_number(name: str, value: Any, *, or_zero: bool = False, or_none: bool = True) -> None:
    known = isinstance(value, (int, float)) and not isinstance(value, bool)
    if (value is not None or not or_none) and not (known and (0 < value < math.inf or (or_zero and value == 0))):
        raise OptionError(f"{name} must be a number {'of at least' if or_zero else 'above'} 0, not {value!r}")


@dataclass(frozen=True)
class Distilled:
    """A trained network, and the record of its training.

    Attributes:
        network: a copy of the pruned network with trained weights, on its device and in its mode.
        steps: the total number of optimiser steps.
        history: one dict for each logged step: "step", the loss and its parts, "learning_rate", maybe "score".
        score: the score of ``network`` by ``evaluate``; None without it.
        best_step: the step with the best score; None without ``evaluate``.
        seconds: wall time of this call.
        resumed: the step from which this call continued; 0 for a fresh start.
    """

    network: nn.Module
    steps: int
    history: list[dict[str, Any]] = field(repr=False)
    score: float | None = None
    best_step: int | None = None
    seconds: float = 0.0
    resumed: int = 0

    def __repr__(self) -> str:
        parts = [f"{self.steps} steps"]
        losses = [row["loss"] for row in self.history if "loss" in row]
        if losses:
            parts.append(f"loss {losses[0]:.4g} to {losses[-1]:.4g}")
        if self.score is not None:
            parts.append(f"score {self.score:.4g}")
            parts.append(f"best after step {self.best_step}")
        if self.resumed:
            parts.append(f"resumed after step {self.resumed}")
        return f"Distilled({', '.join(parts)}, {self.seconds:.1f} s)"


def seed_everything(*place: int | str) -> None:
    """Seed torch, numpy and ``random`` from a place such as ``(seed, "step", 17)``."""
    digest = hashlib.blake2b(repr(place).encode(), digest_size=8).digest()
    number = int.from_bytes(digest, "big") >> 1
    torch.manual_seed(number)
    random.seed(number)
    np.random.seed(number % 2**32)


# Takes the pruned network's output, the teacher's and the target (None if the loader gives none).
DistillationLoss = Callable[[Any, Any, Any], Any]


@dataclass(frozen=True)
class SoftTargets:
    """Cross-entropy with the labels plus the divergence from the teacher's softened outputs.

    ``labels * CE(y, s) + (1 - labels) * T^2 * KL(softmax(t / T) || softmax(s / T))`` (Hinton et al., 2015, arXiv
    1503.02531, section 2), the mean over samples and, for
    outputs (N, classes, H, W), over pixels. Networks with several outputs (a dict with "out" and "aux", a tuple) are
    compared output by output, by name or place; outputs that the teacher lacks are compared with the labels alone.

    Args:
        temperature: T, above 0. Higher values give more weight to classes that the teacher considers unlikely.
        labels: the weight of the labels, between 0 and 1; None is 0.1 if the loader gives labels, else 0.
        class_dim: the dim of the classes, 1 as in ``torch.nn.functional.cross_entropy``; -1 for (N, tokens, classes).
        ignore_index: pixels with this label count for the divergence alone.
        further: the weight of every output after the first one.

    Raises:
        DistillationError: a value is invalid.
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
        """The summands, "soft" and maybe "labels". Raises DistillationError: outputs or labels do not fit."""
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
            # A term with zero gradient: data parallel training requires every parameter to take part.
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
    """The floating-point tensors of an output by name or place, "" for one. Raises DistillationError: none."""
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
    """The result of a loss as named summands. Raises DistillationError: not a scalar tensor or a dict of such."""
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
