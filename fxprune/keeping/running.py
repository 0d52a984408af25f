"""Comparison of a kept class with the proven graph, up to rounding."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable, Iterator
from types import FunctionType
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from fxprune.capture.samples import Sample
from fxprune.errors import CriterionError, FxpruneError, ProofError, described
from fxprune.proof.comparing import compare
from fxprune.proof.copies import TOLERANCE, precision
from fxprune.proof.copies import private_copy as exact_copy
from fxprune.proof.probes import Probe
from fxprune.proof.running import evaluate, nothing_left_behind
from fxprune.util.copies import private_copy
from fxprune.util.modes import switch

# Tolerance in units of rounding of the largest value: both run the same kernels in the same order, except for layouts.
_ULPS = 64


def give_values(source: nn.Module, target: nn.Module) -> None:
    """Copy the graph's values to a kept class, by name. Raises ProofError: the two hold different tensors."""
    own = target.state_dict(keep_vars=True)
    for name, value in source.state_dict(keep_vars=True).items():
        if name not in own or own[name].shape != value.shape:
            raise ProofError(f"{name} of the pruned graph is no tensor of {type(target).__name__}")
        own[name].data.copy_(value.data)


def check_equal(kept: nn.Module, graph: nn.Module, samples: list[Sample]) -> None:
    """Compare the two on samples, also with random weights, and in a training step. Raises ProofError: they differ."""
    pair = (private_copy(kept), private_copy(graph))
    learning = next((s for s in samples if s.batch_size != 1), samples[0])  # norms may refuse to learn from one row
    for randomised in (False, True):
        if randomised:
            _randomise(*pair)
        for sample in samples:
            for call in ("eval", "train") if sample is learning else ("eval",):
                _compare(*pair, sample, call)
    del pair
    gc.collect()  # the copies lie in cycles, and are as large as the model


# Inputs on which nothing may change: the sample's own, and some with another sign or beyond thresholds.
_INPUTS: tuple[Callable[[torch.Tensor], torch.Tensor], ...] = (
    lambda t: t,
    lambda t: -t,
    lambda t: 1000 * t.abs(),
    lambda t: -1000 * t.abs(),
)


def check_lossless(model: nn.Module, pruned: nn.Module, sample: Sample) -> None:
    """Compare a network that lost only zeros with the original, in eval mode. Raises CriterionError: they differ."""
    dtype = precision(model, sample)
    pair = [exact_copy(network, dtype) for network in (model, pruned)]
    for number, change in enumerate(_INPUTS):
        given = sample.map(lambda t, change=change: change(t) if t.is_floating_point() else t)  # type: ignore[misc]
        try:
            with nothing_left_behind(model):
                expected, found = (evaluate(network, Probe("", given), dtype) for network in pair)
        except Exception:  # the forward is the user's code, and may refuse other values
            if number == 0:
                raise
            continue
        apart = compare(expected, found)
        if not apart.error <= TOLERANCE[dtype]:
            raise CriterionError(
                "channels whose weights are zero have an effect all the same "
                f"({apart.describe(TOLERANCE[dtype])}): they do not stay zero on the way to the next layer, as behind "
                "a sigmoid, or a mean runs over them; remove chosen ones with fxprune.remove"
            )


def _randomise(kept: nn.Module, graph: nn.Module) -> None:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in kept.parameters():
            drawn = torch.randn(parameter.shape, generator=generator) / max(parameter.shape[1:].numel(), 1) ** 0.5
            parameter.copy_(drawn)
    own = dict(kept.named_parameters(remove_duplicate=False))
    with torch.no_grad():
        for name, parameter in graph.named_parameters():
            parameter.copy_(own[name])


def _compare(kept: nn.Module, graph: nn.Module, sample: Sample, call: str) -> None:
    answers = []
    for module in (graph, kept):
        switch(module, call)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            try:
                answers.append(_answer(module, sample, learns=call == "train"))
            except FxpruneError:
                return  # the graph does not have this mode
            except Exception as error:  # the forward is the user's own code: it may raise anything
                if module is graph:  # a size that it refuses
                    _undo_writes(kept, graph)
                    return
                raise ProofError(
                    f"the forward of the narrowed {type(kept).__name__} raises {described(error)}"
                ) from error
    expected, found = answers
    if len(expected) != len(found):
        raise ProofError(f"{type(kept).__name__} returns {len(found)} tensors, its graph {len(expected)}")
    for number, (left, right) in enumerate(zip(expected, found, strict=True)):
        _check_tensor(f"value {number} in {call} mode of {type(kept).__name__}", left, right)
    if call == "train":
        _check_step(kept, graph)
        for module in (kept, graph):
            module.zero_grad()


def _undo_writes(kept: nn.Module, graph: nn.Module) -> None:
    """Give the graph the buffers of the kept class: it wrote into some before it failed."""
    own = dict(kept.named_buffers(remove_duplicate=False))
    for name, buffer in graph.named_buffers():
        if name in own and own[name].shape == buffer.shape:
            buffer.copy_(own[name])


def _check_step(kept: nn.Module, graph: nn.Module) -> None:
    """Compare the gradients and the buffers after a training step; a buffer that takes another shape is a cache."""
    own = {**dict(kept.named_parameters(remove_duplicate=False)), **dict(kept.named_buffers(remove_duplicate=False))}
    for name, parameter in graph.named_parameters():
        pair = [torch.zeros_like(t) if t.grad is None else t.grad for t in (parameter, own[name])]
        _check_tensor(f"the gradient of {name}", *pair)
    for name, buffer in graph.named_buffers():
        if name in own and own[name].shape == buffer.shape:
            _check_tensor(f"buffer {name} after a training step", buffer, own[name])


def _check_tensor(what: str, left: torch.Tensor, right: torch.Tensor) -> None:
    if left.shape != right.shape or left.dtype != right.dtype:
        raise ProofError(f"{what} is {tuple(right.shape)} {right.dtype}, the graph's {tuple(left.shape)} {left.dtype}")
    if torch.equal(left, right) or not left.numel():
        return
    if not (left.is_floating_point() or left.is_complex()):
        raise ProofError(f"{what} differs from the graph's")
    finite = torch.isfinite(left)
    scale = left[finite].abs().max().item() if finite.any() else 0.0
    if not torch.allclose(left, right, rtol=0, atol=_ULPS * torch.finfo(left.dtype).eps * scale, equal_nan=True):
        apart = (left - right)[finite].abs().max().item()
        raise ProofError(f"{what} differs from the graph's by {apart:.3g}, where the largest entry is {scale:.3g}")


def _answer(module: nn.Module, sample: Sample, *, learns: bool) -> list[torch.Tensor]:
    """The outputs; with ``learns``, parameters have gradients afterwards."""
    with torch.set_grad_enabled(learns):
        outputs = list(tensors_of(copy.deepcopy(sample.map(torch.Tensor.clone)).call(module)))
    if not learns:
        return outputs
    roots = [o for o in outputs if o.requires_grad and o.is_floating_point()]
    module.zero_grad()
    if roots:
        torch.autograd.backward([o.square().mean() for o in roots])
    return [o.detach() for o in outputs]


def tensors_of(value: Any, depth: int = 6) -> Iterator[torch.Tensor]:
    """Tensors in an output, in order, through containers and dataclasses."""
    if isinstance(value, torch.Tensor):
        yield value
    elif depth and isinstance(value, dict):
        for item in value.values():
            yield from tensors_of(item, depth - 1)
    elif depth and isinstance(value, (list, tuple)):
        for item in value:
            yield from tensors_of(item, depth - 1)
    elif depth and hasattr(value, "__dict__") and not isinstance(value, (type, FunctionType, nn.Module)):
        yield from tensors_of(vars(value), depth - 1)
    elif depth and not isinstance(value, (str, bytes, int, float, type(None))):
        yield from tensors_of([leaf for leaf in pytree.tree_leaves(value) if leaf is not value], depth - 1)
