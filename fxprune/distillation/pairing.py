"""The pruned network and its teacher, run side by side on one batch."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fxprune.calibration.batches import describe_arguments, describe_value, read_batch, read_pair
from fxprune.capture.samples import Sample
from fxprune.distillation.hints import Hint, Kept, Projections, check_seen, hint_loss, kept_channels, watched
from fxprune.distillation.losses import DistillationLoss, as_parts
from fxprune.errors import DistillationError

# What is trained, called with arguments: its output and its features at the hints.
Called = Callable[..., tuple[Any, dict[str, Tensor]]]


class Student(nn.Module):
    """The network that is trained, with what only training needs: projections of features."""

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


class Pair:
    """Copies of both networks on a device; the caller's own are only read.

    Args:
        pruned: what is trained.
        teacher: what it learns from.
        hints: where features are compared.
        loss: of the outputs.
        device: where both run.
    """

    def __init__(
        self,
        pruned: nn.Module,
        teacher: nn.Module,
        hints: Sequence[Hint],
        loss: DistillationLoss,
        device: torch.device,
    ) -> None:
        self._kept: dict[str, Kept] = kept_channels(hints, pruned, teacher)
        self._about: Sample | None = getattr(pruned, "meta", {}).get("fxprune", {}).get("sample")
        self._hints, self._loss, self._device = hints, loss, device
        self.teacher = copy.deepcopy(teacher).to(device).eval().requires_grad_(False)
        self.network = copy.deepcopy(pruned).to(device)
        self._stack = ExitStack()
        self._given = self._stack.enter_context(watched(self.teacher, [h.source for h in hints]))
        self._found = self._stack.enter_context(watched(self.network, [h.student for h in hints]))
        self.student = Student(self.network, Projections((), {}, {}), self._found)

    @property
    def has_projections(self) -> bool:
        """Whether a hint learns a map between widths."""
        return any(hint.projection for hint in self._hints)

    def close(self) -> None:
        """Take hooks off the networks."""
        self._stack.close()

    def read(self, given: Any, number: int) -> tuple[Sample, Any]:
        """Arguments and target of a batch, on the device.

        Raises:
            DistillationError: the batch is not what the network takes.
        """
        found = read_pair(given) if self._about is None else read_batch(given, self._about)
        if found is None:
            assert self._about is not None
            raise DistillationError(
                f"batch {number} of the loader does not fit the network: it is {describe_value(given)}; expected "
                f"{describe_arguments(self._about)}, or a pair of that and the target"
            )
        return found[0].map(self._placed), pytree.tree_map_only(Tensor, self._placed, found[1])

    def prepare_projections(self, sample: Sample) -> None:
        """Run both networks once to learn the widths that projections have to map between."""
        with torch.no_grad():
            self.network.eval()
            self.teach(sample)
            _run(self.student, sample, "the pruned network")
        self._check_hints(self._found)
        self.student.projections = Projections(self._hints, self._found, self._given).to(self._device)

    @torch.no_grad()
    def teach(self, sample: Sample) -> Any:
        """What the teacher makes of a batch."""
        self._given.clear()
        return _run(self.teacher, sample, "teacher")

    def losses(self, student: Called, sample: Sample, target: Any, wanted: Any) -> dict[str, Tensor]:
        """The summands of the loss for one batch, with gradients.

        Raises:
            DistillationError: the network fails on the batch, or outputs or features do not fit the teacher's.
        """
        output, features = _run(student, sample, "the pruned network")
        parts = as_parts(self._loss(output, wanted, target))
        if self._hints:
            self._check_hints(features)
            parts["hints"] = hint_loss(self._hints, features, self._given, self._kept, self.student.projections)
        if not any(part.requires_grad for part in parts.values()):
            raise DistillationError("the loss does not depend on the network's parameters: is any of them trainable?")
        return parts

    def trainable(self) -> list[nn.Parameter]:
        """Parameters to be optimised.

        Raises:
            DistillationError: there are none.
        """
        found = [p for p in self.student.parameters() if p.requires_grad]
        if not found:
            raise DistillationError("no parameter of the pruned network requires a gradient, so there is none to train")
        return found

    def _check_hints(self, features: dict[str, Tensor]) -> None:
        check_seen(features, [h.student for h in self._hints], self.network, "the pruned network")
        check_seen(self._given, [h.source for h in self._hints], self.teacher, "teacher")

    def _placed(self, tensor: Tensor) -> Tensor:
        # A network may write to its input, and the data is the caller's.
        return tensor.detach().to(self._device, copy=True)


def _run(network: Callable[..., Any], sample: Sample, whose: str) -> Any:
    try:
        return sample.map(torch.clone).call(network)
    except DistillationError:
        raise
    except Exception as error:  # the network is the user's own code: anything may come out of it
        raise DistillationError(
            f"{whose} fails on a batch of the loader (tensors of shape {_shapes(sample.tensors)}): "
            f"{type(error).__name__}: {error}"
        ) from error


def _shapes(tensors: Iterable[Tensor]) -> str:
    return ", ".join(str(tuple(t.shape)) for t in tensors)
