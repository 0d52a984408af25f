"""What an export made and how it was checked."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import nn

from fxprune.capture.samples import Sample, is_image
from fxprune.errors import ExportError
from fxprune.proof.comparing import Leaves, compare, leaves_of
from fxprune.proof.probes import Probe, candidates


@dataclass(frozen=True)
class Exported:
    """A file that was run and compared with the network that it was made from.

    Attributes:
        path: the file, or the folder of the "source" format.
        format: "pt2", "onnx" or "source".
        dynamic: which sizes may change between calls: of "batch", "resolution" and "length" some or none.
        batch_sizes: the batch sizes that were run.
        resolutions: height x width of the image-like inputs that were run.
        relative_error: the largest difference to the pruned network, relative to the output's largest absolute value.
        tolerance: the largest that is accepted.
        notes: what a reader should know, such as why a size cannot change.
    """

    path: str
    format: str
    dynamic: tuple[str, ...]
    batch_sizes: tuple[int, ...]
    resolutions: tuple[str, ...]
    relative_error: float
    tolerance: float
    notes: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """JSON data."""
        return asdict(self)

    def __str__(self) -> str:
        sizes = f"batch {', '.join(map(str, self.batch_sizes))}" if self.batch_sizes else "the sample"
        if self.resolutions:
            sizes += f", resolution {', '.join(self.resolutions)}"
        free = " and ".join(self.dynamic) + " may change" if self.dynamic else "every size is fixed"
        checked = f"equals the pruned network to {self.relative_error:.1e} (tolerance {self.tolerance:.0e}; {sizes})"
        return "; ".join([f"{self.path}: {checked}", free, *self.notes])


# What is computed in another order by another runtime differs by rounding.
_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}
_HALF = 2e-2
# Rounding errors of a layer's sums are this many units in the last place, or fewer.
_UNITS = 30
_SHORTEST = 4


@dataclass(frozen=True, eq=False)
class Check:
    """Inputs and what the network answers."""

    probe: Probe  # the inputs
    expected: Leaves  # the tensors of the output, in order
    tolerance: float  # the largest relative difference that is accepted

    @property
    def tells(self) -> bool:
        """Whether any output is not zero."""
        return any(bool((leaf != 0).any()) for leaf in self.expected.values())


def find_checks(network: nn.Module, sample: Sample, seed: int = 0, smallest: int = 2) -> list[Check]:
    """What the network itself takes: the sample, other values at another batch size, and these at other sizes.

    Other sizes are another resolution or length; and of each size of an input that is no image, all dims of that size
    at half or twice of it. torch.export takes a batch of one for a size that never changes: ``smallest`` avoids it.

    Raises:
        ExportError: the network refuses the sample.
    """
    plain, resized = (candidates(sample, seed, resize=resize, smallest=smallest) for resize in (False, True))
    found: list[Check] = []
    for slot in [*plain, [probe for probe in resized[1][:1] if probe.resized]]:
        check, reason = _first_taken(network, slot)
        if check is not None:
            found.append(check if _is_steady(network, check) else _of_one_sign(network, check))
        elif not found:
            raise ExportError(f"the network cannot be run on its sample ({reason:.300}): give a sample_input that fits")
    for size in _lengths(found[0].probe.sample):
        check, _ = _first_taken(network, [_with_length(found[0].probe, size, new) for new in (size // 2, 2 * size)])
        found += [check] if check is not None and not _has_shapes_of(check, found) else []
    return found


def _first_taken(network: nn.Module, probes: Sequence[Probe]) -> tuple[Check | None, str]:
    """The first of the probes that the network takes, or why it does not take the last."""
    reason = ""
    for probe in probes:
        try:
            return _check(network, probe), ""
        except Exception as error:  # the network's own code: anything may come out of it
            reason = f"{type(error).__name__}: {error}"
    return None, reason


def _is_steady(network: nn.Module, check: Check) -> bool:
    """Whether rounding stays far below the tolerance, as it does not where masks of random values add up to little."""
    generator, change = torch.Generator().manual_seed(0), torch.finfo(torch.float32).eps ** 0.5

    def moved(tensor: torch.Tensor) -> torch.Tensor:
        noise = torch.rand(tensor.shape, generator=generator).to(tensor.device)
        return tensor * (1 + change * (2 * noise - 1)).to(tensor.dtype) if tensor.is_floating_point() else tensor

    other, _ = _first_taken(network, [replace(check.probe, sample=check.probe.sample.map(moved))])
    if other is None or check.tolerance >= _HALF:
        return True
    unit = torch.finfo(torch.float32 if check.tolerance >= _TOLERANCE[torch.float32] else torch.float64).eps
    return bool(compare(check.expected, other.expected).error / change * unit * _UNITS < check.tolerance)


def _of_one_sign(network: nn.Module, check: Check) -> Check:
    """The same check with magnitudes for inputs, where these are steadier."""
    sample = check.probe.sample.map(lambda t: t.abs() if t.is_floating_point() and not is_image(t) else t)
    other, _ = _first_taken(network, [replace(check.probe, sample=sample)])
    return other if other is not None and _is_steady(network, other) else check


def with_rows(network: nn.Module, check: Check, rows: int) -> Check | None:
    """The same check at another batch size; None where the network does not take it."""
    probe = replace(check.probe, sample=check.probe.sample.with_batch(rows))
    return _first_taken(network, [probe])[0]


def _lengths(sample: Sample) -> list[int]:
    """Sizes of inputs that are no images, beside the batch; half of a smaller one would be 1, which never changes."""
    return sorted({size for t in sample.tensors if not is_image(t) for size in t.shape[1:] if size >= _SHORTEST})


def _with_length(probe: Probe, size: int, new: int) -> Probe:
    def resized(tensor: torch.Tensor) -> torch.Tensor:
        for dim in range(1, 0 if is_image(tensor) else tensor.ndim):
            if tensor.shape[dim] == size:
                tensor = tensor.index_select(dim, torch.arange(new, device=tensor.device) % size)
        return tensor

    return Probe(f"{probe.label}, {new} in place of {size}", probe.sample.map(resized), resized=True)


def _has_shapes_of(check: Check, others: Sequence[Check]) -> bool:
    shapes = [tensor.shape for tensor in check.probe.sample.tensors]
    return any([tensor.shape for tensor in other.probe.sample.tensors] == shapes for other in others)


def _check(network: nn.Module, probe: Probe) -> Check:
    sample = probe.sample.map(torch.Tensor.clone)
    with torch.no_grad():
        expected = tensors_of(sample.call(lambda *args, **kwargs: nn.Module.__call__(network, *args, **kwargs)))
    floats = [leaf.dtype for leaf in expected.values() if leaf.is_floating_point()]
    return Check(probe, expected, max([_TOLERANCE.get(dtype, _HALF) for dtype in floats], default=0.0))


def tensors_of(output: Any) -> Leaves:
    """The tensors of an output under their positions, as some formats keep nothing else of its structure."""
    tensors = [leaf for leaf in leaves_of(output).values() if isinstance(leaf, torch.Tensor)]
    return {f"output {number}": tensor for number, tensor in enumerate(tensors)}


def worst_error(run: Callable[[Sample], Leaves], checks: Sequence[Check]) -> float:
    """The largest relative difference over all checks. Raises ExportError: above a tolerance, or ``run`` refuses."""
    worst = 0.0
    for check in checks:
        try:
            with torch.no_grad(), contextlib.redirect_stdout(None):
                result = run(check.probe.sample.map(torch.Tensor.clone))
        except Exception as error:
            raise ExportError(f"it refuses {check.probe.label} ({type(error).__name__}: {error!s:.300})") from error
        difference = compare(check.expected, result)
        if not difference.error <= check.tolerance:
            raise ExportError(f"{difference.describe(check.tolerance)} on {check.probe.label}")
        worst = max(worst, difference.error)
    return worst
