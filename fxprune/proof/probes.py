"""The inputs of a proof: the sample, and similar random values at another batch size and resolution or length.

A proof node by node uses sizes as small as the network accepts, with images that are not square.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxprune.capture.samples import IMAGE_DIMS, Sample, is_image
from fxprune.proof.copies import promoted

# The second resolution is smaller by about one of these shares, in multiples of the usual total stride, if enough is
# left; else it is larger, by at most twice, because attention is quadratic in pixels.
_SHARES, _PIXELS, _ENOUGH = (0.72, 0.0), 32, 96
# One of this many steps is dropped.
_FEW_STEPS = 4


DRAWS = {"range": "", "whole": "whole numbers as in the sample", "rows": "values as in the sample"}
"""Ways to draw values, in the order in which they are tried, and their words in labels: from the range of all values;
the same, except that places of whole numbers take values of random rows; values of random rows everywhere."""


@dataclass(frozen=True, eq=False)
class Probe:
    """One set of inputs."""

    label: str  # its name in messages
    sample: Sample  # the arguments
    resized: bool = False  # whether the resolution or the number of steps is not the sample's own
    guessed: bool = False  # whether it is only a guess that the network accepts such sizes
    drawn: str = ""  # how values were drawn, one of :data:`DRAWS`; "" for the sample's values

    @property
    def batch_size(self) -> int | None:
        """The size of dim 0 of all tensors; None if they do not share it."""
        return self.sample.batch_size

    @property
    def resolutions(self) -> tuple[str, ...]:
        """Height x width of each image-like input."""
        images = self.sample.image_lists
        tensors = images[0][:1] if images else [t for t in self.sample.tensors if is_image(t)]
        return tuple(f"{t.shape[-2]}x{t.shape[-1]}" for t in tensors)

    def in_dtype(self, dtype: torch.dtype) -> Sample:
        """Fresh copies of the arguments, floating ones in ``dtype``."""
        return self.sample.map(lambda tensor: promoted(tensor, dtype))


# A sample with few values gets more rows, so that no unit is zero on all of them.
_FEW_VALUES, _MORE_ROWS = 1024, 12
# Of a batch with more rows than this, two rows are run.
_ROWS = 4


def batch_sizes(sample: Sample) -> tuple[int, ...]:
    """The given size, or 2 if that is larger than necessary, and the next size, but at least 3.

    A sample of one row is traced with two rows, so both sizes differ from the trace's; more rows of the same sample
    show nothing new. The second size is larger for small inputs. There are none if the inputs share no batch dim.
    """
    given = sample.batch_size
    if not given:
        return ()
    first = given if given <= _ROWS else 2
    values = sum(tensor.numel() for tensor in sample.tensors if tensor.is_floating_point()) // given
    return first, _MORE_ROWS if 0 < values <= _FEW_VALUES else max(first + 1, 3)


def candidates(sample: Sample, seed: int, *, resize: bool = True, smallest: int = 1) -> list[list[Probe]]:
    """The probes to run: of each inner list, the first that the network accepts.

    First the sample itself, then random values at another batch size and resolution, or as near to these as the network
    accepts. A sample of fewer rows than ``smallest`` has its rows repeated, if the network accepts that.
    """
    generator = torch.Generator().manual_seed(seed)
    sizes = batch_sizes(sample)
    sizes = (max(sizes[0], smallest), sizes[1]) if sizes else sizes
    asked = [(f", batch {size}", sample.with_batch(size)) for size in sizes]
    given = ("" if not sizes else f", batch {sample.batch_size}", sample)
    first, second = asked[:1] if sample.batch_size in sizes[:1] else [*asked[:1], given], [*asked[1:], given]
    others: list[Probe] = []
    if resize and sample.image_lists:
        label = "random images, one more, of another size"
        others.append(_random(label, sample.with_another_image(), None, generator, _SHARES[-1]))
        resize = False
    images = any(is_image(tensor) for tensor in sample.tensors)
    resize, lengths = resize and images, resize and not images
    for suffix, values in second:
        if resize:
            label = f"random inputs{suffix}, another resolution"
            others += [_random(label, values, None, generator, share) for share in _shares(values)]
        elif lengths:
            label = f"random inputs{suffix}, another length"
            others += [_random(label, *shorter, generator) for shorter in shortened(values)]
        others.append(_random(f"random inputs{suffix}", values, None, generator))
        # Floats may be row numbers of a table, or become such: then only values of the sample are sure to be valid.
        others += [
            Probe(f"random inputs{suffix}, {words}", _drawn(values, generator, how), drawn=how)
            for how, words in DRAWS.items()
            if words
        ]
        others.append(Probe(f"the sample{suffix}", values))
    return [[Probe(f"the sample{suffix}", values) for suffix, values in first], others]


def shortened(sample: Sample) -> list[tuple[Sample, bool]]:
    """The sample with fewer steps (tables of positions are finite), and whether it is a guess that these are steps.

    Steps are dim 1 of integer tokens (batch, steps) and of all tensors as long; without tokens, the last dim (batch,
    channels, steps) or dim 1 (batch, steps, features) of a series of floats.
    """
    tokens = {t.shape[1] for t in sample.tensors if t.ndim == 2 and not t.is_floating_point()}
    lengths = tokens or {t.shape[1] for t in sample.tensors if t.ndim == 3}
    found = [sample.map(lambda t: _fewer(t, 1) if t.ndim > 1 and t.shape[1] in lengths else t)]
    if not tokens:
        found.insert(0, sample.map(lambda t: _fewer(t, -1) if t.ndim == 3 else t))
    given = [t.shape for t in sample.tensors]
    return [(other, not tokens) for other in found if [t.shape for t in other.tensors] != given]


def _fewer(tensor: Tensor, dim: int) -> Tensor:
    size = tensor.shape[dim]
    return tensor if size < _FEW_STEPS else tensor.narrow(dim, 0, size - size // _FEW_STEPS)


def randomised(probe: Probe, seed: int, drawn: str = "range") -> Probe:
    """Random values like those of ``probe``, in the same shapes; ``drawn``: one of :data:`DRAWS`."""
    generator = torch.Generator().manual_seed(seed)
    label = f"random inputs like {probe.label}"
    if drawn == "range":
        return _random(label, probe.sample, None, generator)
    return Probe(label, _drawn(probe.sample, generator, drawn), drawn=drawn)


def _drawn(sample: Sample, generator: torch.Generator, how: str) -> Sample:
    return sample.map(lambda tensor: _shuffled(tensor, generator, everything=how == "rows"))


def _shuffled(tensor: Tensor, generator: torch.Generator, *, everything: bool) -> Tensor:
    """Random values; at places where all rows hold whole numbers, or at ``everything``, the values of random rows."""
    if not tensor.is_floating_point() or tensor.ndim == 0 or not tensor.numel():
        return _random_like(tensor, generator, None)
    rows = torch.randint(len(tensor), tensor.shape, generator=generator).to(tensor.device)
    given = tensor.gather(0, rows)
    whole = (tensor == tensor.round()).all(0)
    return given if everything else torch.where(whole, given, _random_like(tensor, generator, None))


def _random(
    label: str, sample: Sample, guessed: bool | None, generator: torch.Generator, share: float | None = None
) -> Probe:
    """Random values; ``guessed`` is None if the sample keeps its length, ``share`` if it keeps its resolution."""
    images = (3, 4, 5) if sample.image_lists else IMAGE_DIMS
    drawn = sample.map(lambda t: _random_like(t, generator, share if t.ndim in images else None))
    return Probe(label, drawn, share is not None or guessed is not None, bool(guessed), "range")


def _shares(sample: Sample) -> list[float]:
    """The ``_SHARES`` that lead to different resolutions."""
    images = [tuple(tensor.shape[-2:]) for tensor in sample.tensors if is_image(tensor)]
    found = {tuple(_resized(image, share) for image in images): share for share in reversed(_SHARES)}
    return list(reversed(found.values()))


def _resized(resolution: Sequence[int], share: float) -> tuple[int, ...]:
    smallest = min((size for size in resolution if size > 1), default=0)
    fewer = max(int(share * smallest / _PIXELS), 1) * _PIXELS
    change = -fewer if smallest >= _ENOUGH else min(_PIXELS, smallest)
    # A side of one pixel, as in gates and scales, broadcasts to images of every size.
    return tuple(size + change if size > 1 else size for size in resolution)


def _random_like(tensor: Tensor, generator: torch.Generator, share: float | None) -> Tensor:
    """Random values in the range of ``tensor``, so that positive ones stay positive; normal ones if it is constant."""
    shape = list(tensor.shape)
    if share is not None and tensor.is_floating_point():
        shape[-2:] = _resized(shape[-2:], share)
    if tensor.dtype == torch.bool or tensor.is_complex() or tensor.numel() == 0:
        return tensor
    if not tensor.is_floating_point():
        span = int(tensor.min()), int(tensor.max()) + 1
        return torch.randint(*span, shape, generator=generator).to(tensor)
    finite = tensor[torch.isfinite(tensor)].double()
    low, high = (float(finite.min()), float(finite.max())) if finite.numel() else (0.0, 0.0)
    if low < 0 < high:
        # With a range around zero, units of both signs are active.
        low, high = -max(-low, high), max(-low, high)
    if low == high:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(tensor)
    values = low + (high - low) * torch.rand(shape, generator=generator, dtype=torch.float64)
    values = values.to(tensor)
    # Masks exclude entries by infinity, so it stays in place.
    return values if values.shape != tensor.shape else torch.where(torch.isfinite(tensor), values, tensor)


# The sides of the last maps: large enough to use the corners of a kernel of three, with height unlike width.
_LAST = (2, 3)
# The same for kernels without padding, which need more.
_LARGER = (3, 4)
_LEAST_ROWS = 2
_WINDOWS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool2d, nn.AvgPool3d)
# If inputs are small, so many rows cost little.
_SMALL, _MANY_ROWS = 8192, 17


# Mean number of entries per value of a graph above which it costs more to compute values than to number them.
_HEAVY = 1 << 16


def is_heavy(sample: Sample, graph: fx.Graph) -> bool:
    """Whether a graph's values are large on average for a sample."""
    nodes = [node for node in graph.nodes if isinstance(node.meta.get("val"), Tensor)]
    traced: int = sum(node.meta["val"].numel() for node in nodes if node.op == "placeholder")
    given = sum(tensor.numel() for tensor in sample.tensors)
    entries: int = sum(node.meta["val"].numel() for node in nodes)
    return entries * given > _HEAVY * len(nodes) * traced


def small_samples(sample: Sample, graph: fx.Graph, attribute: Callable[[str], Any]) -> Iterator[Sample]:
    """The sample with few rows and small images, then with larger ones, with images of its own size, and as traced."""
    few = _with_rows(sample, _LEAST_ROWS)
    # A kernel as large as one side of the maps, which are assumed square, needs the other side to be no smaller.
    read = {node.args[1] for node in graph.nodes if node.op == "call_method" and node.target == "size"}
    sides = [_LAST, _LAST[::-1]][: 1 + bool(read & {2, 3})]
    sides = sides[::-1] if 2 not in read else sides
    over = _reaches_over_edges(graph, attribute)
    for last in (*sides, _LARGER):
        small = _shrunk(few, graph, last, over=over and last is not _LARGER)
        if small is not None:
            yield small
    yield few
    if few is not sample:
        yield sample


def other_samples(sample: Sample, first: Sample, graph: fx.Graph) -> Iterator[Sample]:
    """Samples that differ from ``first`` in rows and in image sides or the number of steps, then in one of these."""
    values = sum(tensor.numel() for tensor in first.tensors)
    more = _with_rows(first, _MANY_ROWS if values <= _SMALL else _LEAST_ROWS + 1)
    turned = _shrunk(_with_rows(sample, first.batch_size), graph, _LAST[::-1])
    images = any(map(is_image, sample.tensors))
    others = [turned] if turned else [] if images else [other for other, _ in shortened(first)]
    candidates = [*(_with_rows(other, more.batch_size) for other in others), more, *others]
    yield from (other for other in candidates if _shapes(other) != _shapes(first))


def _with_rows(sample: Sample, rows: int | None) -> Sample:
    return sample.with_batch(rows) if rows and sample.batch_size and sample.batch_size != rows else sample


def _shapes(sample: Sample) -> list[torch.Size]:
    return [tensor.shape for tensor in sample.tensors]


def _reaches_over_edges(graph: fx.Graph, attribute: Callable[[str], Any]) -> bool:
    """Whether maps shrink only by windows that reach beyond the edges by at least half of their size.

    Then a map's size is the image's size divided by the map's total stride, rounded up.
    """
    for node in graph.nodes:
        after, before = _sides(node), max(map(_sides, node.all_input_nodes), default=())
        if not before or before == after or set(after) <= {1}:
            continue
        window = attribute(str(node.target)) if node.op == "call_module" else None
        if not isinstance(window, _WINDOWS) or isinstance(window.padding, str):
            return False
        given = (window.kernel_size, window.padding, getattr(window, "dilation", 1))
        sizes = zip(*((n,) * len(before) if isinstance(n, int) else n for n in given), strict=True)
        if any(2 * padding < dilation * (kernel - 1) for kernel, padding, dilation in sizes):
            return False
    return True


def _sides(node: fx.Node) -> tuple[int, ...]:
    """The sides of the maps that a node returns; empty if it returns none."""
    value = node.meta.get("val")
    return tuple(value.shape[2:]) if isinstance(value, Tensor) and value.ndim in (4, 5) else ()


def _shrunk(sample: Sample, graph: fx.Graph, last: tuple[int, int], *, over: bool = False) -> Sample | None:
    """The sample with images so small that the graph's last maps have a given size; None if that changes nothing.

    ``over``: whether windows reach over the edges, so that part of a stride adds one more position.
    """
    found = _images_and_maps(sample, graph)
    if found is None:
        return None
    sizes = zip(last, *found, strict=True)
    if over:  # by the largest stride that leads to that many positions
        smaller = [(size - 1) * (-(-image // max(side - 1, 1)) - 1) + 1 for size, image, side in sizes]
    else:
        smaller = [size * max(1, image // side) for size, image, side in sizes]
    changed = sample.map(lambda t: _cut(t, smaller) if is_image(t) else t)
    return None if _shapes(changed) == _shapes(sample) else changed


def _images_and_maps(sample: Sample, graph: fx.Graph) -> tuple[tuple[int, int], tuple[int, int]] | None:
    """The sides of the images and of the graph's smallest maps; None if there are no images."""
    images = [t.shape[-2:] for t in sample.tensors if is_image(t)]
    if not images:
        return None
    maps = [v.shape[-2:] for n in graph.nodes if isinstance(v := n.meta.get("val"), Tensor) and v.ndim in (4, 5)]
    height = min((m[0] for m in maps if m[0] > 1), default=1)
    width = min((m[1] for m in maps if m[1] > 1), default=1)
    return (images[0][0], images[0][1]), (height, width)


def _cut(image: Tensor, size: list[int]) -> Tensor:
    height, width = (min(new, old) for new, old in zip(size, image.shape[-2:], strict=True))
    return image[..., :height, :width].clone(memory_format=torch.preserve_format)
