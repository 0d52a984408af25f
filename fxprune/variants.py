"""Variants: further graphs of a model, for images of sizes for which its forward takes other ways.

``if height % window:`` leaves one way in a graph. Where an image of another size goes another way, that one is captured
too, so that the result takes both; it holds one set of weights, and tells the ways apart by their own checks of sizes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import torch
from torch import nn

from fxprune.capture import Captured, capture
from fxprune.capture.decisions import asks_sizes
from fxprune.checking import refuses
from fxprune.errors import CaptureError, SampleError
from fxprune.rules import has_rule, is_leaf
from fxprune.samples import Sample, is_image

__all__ = ["find_variants"]

# Images that are so many pixels higher and wider are tried, with and without a remainder in windows and patches.
_DIFFERENCES = ((-32, -32), (32, 32), (7, 7), (-7, -7), (64, 64), (16, 16), (1, 1), (7, 32), (32, 7))
# Each costs about half of another proof.
_MOST = 4
# A model that refuses so many sizes is taken to want its own.
_REFUSALS = 3


def find_variants(model: nn.Module, captured: Captured) -> Iterator[Captured]:
    """Capture the forward on the other samples, and at other resolutions, where the graphs so far refuse them.

    A model without checks, or with opaque parts, has none; sizes that nobody gave may be refused by the model itself.

    Raises:
        SampleError: the model refuses one of the other samples, or cannot be traced whole.
    """
    given = captured.sample.others
    if captured.opaque and given:
        path = next(iter(captured.opaque)) or "the model's own forward"
        raise SampleError(f"other_samples are for models that can be traced whole, and {path} cannot: leave them out")
    if captured.opaque or not asks_sizes(captured.graph):
        return
    known, refusals = [captured.without_values(model)], 0
    # A graph that asks for values, such as whether they are finite, does not tell without values what it refuses.
    tried = _resized(captured.sample) if known[0](captured.sample) is None else ()
    for number, sample in (*enumerate(given), *((None, sample) for sample in tried)):
        if any(run(sample) is None for run in known):
            continue
        try:
            variant = _captured(model, sample, number, len(known))
        except CaptureError as error:
            if number is not None:
                raise SampleError(f"other_samples[{number}]: {error}") from error
            refusals += 1
        else:
            yield variant
            known.append(variant.without_values(model))
        if refusals == _REFUSALS or (number is None and len(known) > len(given) + _MOST):
            return


def _captured(model: nn.Module, sample: Sample, other: int | None, number: int) -> Captured:
    variant = capture(model, sample, keeps=has_rule, is_leaf=is_leaf, variant=number)
    # What had to be told that it is traced may leave out a check of its own, which holds when it is not.
    refusal = refuses(model, sample) if other is None and variant.told else None
    if refusal is not None:
        raise CaptureError(refusal)
    variant.other = other
    return variant


def _resized(sample: Sample) -> Iterator[Sample]:
    """The sample with images of other sizes, of ones: half of it, the next multiple of 32, and a quarter last."""
    sample = replace(sample, others=())
    sides = [size for tensor in sample.tensors if is_image(tensor) for size in tensor.shape[-2:]]
    if not sides:
        return
    half, most, whole = min(sides) // 2, 3 * min(sides) // 4, 32 - min(sides) % 32
    for higher, wider in ((-half, -half), (whole, whole), *_DIFFERENCES, (-most, -most)):
        if min(sides) + min(higher, wider) > 0:
            yield sample.map(partial(_changed, higher=higher, wider=wider))


def _changed(tensor: torch.Tensor, higher: int, wider: int) -> torch.Tensor:
    if not is_image(tensor):
        return tensor
    *front, height, width = tensor.shape
    return tensor.new_ones((*front, height + higher, width + wider))
