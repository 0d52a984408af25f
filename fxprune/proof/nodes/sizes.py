"""Sizes at which a proof node by node runs: as small as the network takes, and not square."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, fx

from fxprune.capture.samples import Sample, is_image
from fxprune.proof.probes import shortened

# The last maps have these sizes: a kernel of three shows its corners, and height is told from width.
_LAST = (2, 3)
# Where kernels without padding need more.
_LARGER = (3, 4)
_ROWS = 2
# Where inputs are small, so many rows cost little.
_FEW_VALUES, _MORE_ROWS = 8192, 17


def small_samples(sample: Sample, graph: fx.Graph) -> Iterator[Sample]:
    """The sample with few rows and small images, then larger ones, those of its own size, and as it was traced."""
    few = _with_rows(sample, _ROWS)
    small = [_resized(few, graph, last) for last in (_LAST, _LARGER)]
    yield from (s for s in (*small, few, sample if few is not sample else None) if s is not None)


def other_samples(sample: Sample, first: Sample, graph: fx.Graph) -> Iterator[Sample]:
    """Samples that differ from ``first`` in rows and in the sides of images or the number of steps, then in one."""
    values = sum(tensor.numel() for tensor in first.tensors)
    more = _with_rows(first, _MORE_ROWS if values <= _FEW_VALUES else _ROWS + 1)
    turned = _resized(_with_rows(sample, first.batch_size), graph, _LAST[::-1])
    images = any(map(is_image, sample.tensors))
    others = [turned] if turned else [] if images else [other for other, _ in shortened(first)]
    candidates = [*(_with_rows(other, more.batch_size) for other in others), more, *others]
    yield from (other for other in candidates if _shapes(other) != _shapes(first))


def _with_rows(sample: Sample, rows: int | None) -> Sample:
    return sample.with_batch(rows) if rows and sample.batch_size and sample.batch_size != rows else sample


def _shapes(sample: Sample) -> list[torch.Size]:
    return [tensor.shape for tensor in sample.tensors]


def _resized(sample: Sample, graph: fx.Graph, last: tuple[int, int]) -> Sample | None:
    """The sample with images so small that the graph's last maps have a given size; None where that is no change."""
    strides = _strides(sample, graph)
    if strides is None:
        return None
    smaller = [size * stride for size, stride in zip(last, strides, strict=True)]
    changed = sample.map(lambda t: _cut(t, smaller) if is_image(t) else t)
    return None if _shapes(changed) == _shapes(sample) else changed


def _strides(sample: Sample, graph: fx.Graph) -> tuple[int, int] | None:
    """By how much the graph's smallest maps are smaller than its images; None where there are no images."""
    images = [t.shape[-2:] for t in sample.tensors if is_image(t)]
    if not images:
        return None
    maps = [v.shape[-2:] for n in graph.nodes if isinstance(v := n.meta.get("val"), Tensor) and v.ndim in (4, 5)]
    height = min((m[0] for m in maps if m[0] > 1), default=1)
    width = min((m[1] for m in maps if m[1] > 1), default=1)
    return max(1, images[0][0] // height), max(1, images[0][1] // width)


def _cut(image: Tensor, size: list[int]) -> Tensor:
    height, width = (min(new, old) for new, old in zip(size, image.shape[-2:], strict=True))
    return image[..., :height, :width].clone(memory_format=torch.preserve_format)
