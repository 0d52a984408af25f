"""Whole small networks: the groups that a reader expects, and the narrower network built by hand as the oracle."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils import _pytree as pytree

import fxprune
from fxprune.analysis.solving import ChannelGraph
from fxprune.capture.samples import Sample
from fxprune.planning import Plan
from fxprune.rewriting import rewrite
from tests.architectures import convolutional, parameters, recurrent, tokens
from tests.architectures.architecture import Architecture
from tests.rules.oracles import TOLERANCE, difference

ARCHITECTURES = (*convolutional.NETWORKS, *recurrent.NETWORKS, *parameters.NETWORKS, *tokens.NETWORKS)
every = pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda a: a.name)


def network(architecture: Architecture, **widths: int) -> nn.Module:
    """Float64, in evaluation mode, with statistics and affine parameters that are neither zero nor one."""
    torch.manual_seed(1)
    model = architecture.build(**(dict(architecture.widths) | widths)).double().eval()
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.dim() == 1 and tensor.is_floating_point():
                tensor.copy_(torch.rand_like(tensor) + 0.5)
    return model


def arguments(architecture: Architecture, batch: int, other: bool = False) -> Sample:
    """Arguments in float64."""
    torch.manual_seed(100 + batch)
    make = architecture.other if other else architecture.sample
    assert make is not None
    return Sample.from_input(make(batch)).map(lambda t: t.double() if t.is_floating_point() else t)


def analysed(architecture: Architecture, model: nn.Module) -> ChannelGraph:
    sample = arguments(architecture, 2)
    return fxprune.analyze(model, sample.kwargs or sample.args)


@every
def test_groups_are_the_expected_ones(architecture: Architecture) -> None:
    graph = analysed(architecture, network(architecture))
    assert graph.opaque == ()
    expected = {architecture.groups[name]: size for name, size in architecture.widths.items()}
    assert {group.name: group.size for group in graph.groups} == expected


@every
def test_random_prunes_equal_the_narrow_network(architecture: Architecture) -> None:
    model = network(architecture)
    graph = analysed(architecture, model)
    plan, widths = _random_plan(architecture, graph)
    pruned, narrow = rewrite(graph, model, plan.masks(graph)), network(architecture, **widths)
    assert pruned.state_dict().keys() == narrow.state_dict().keys()
    _load(narrow, pruned)
    samples = [arguments(architecture, batch) for batch in (2, 5)]
    samples += [arguments(architecture, 3, other=True)] if architecture.other else []
    with torch.no_grad():
        for sample in samples:
            assert difference(sample.call(narrow), sample.call(pruned)) < TOLERANCE


def _random_plan(architecture: Architecture, graph: ChannelGraph) -> tuple[Plan, dict[str, int]]:
    generator = np.random.default_rng(0)
    masks, widths = {}, {}
    names = {group: name for name, group in architecture.groups.items()}
    for group in graph.groups:
        kept = max(1, group.size // 2)
        mask = np.zeros(group.size, dtype=np.bool_)
        mask[generator.permutation(group.size)[:kept]] = True
        masks[group], widths[names[group.name]] = mask, kept
    return Plan.from_masks(graph, masks, {}), widths


def _load(narrow: nn.Module, pruned: nn.Module) -> None:
    """The tensors of the pruned network, by name; of integer buffers (positions) the narrow network has its own."""
    found = {**dict(pruned.named_parameters()), **dict(pruned.named_buffers())}
    with torch.no_grad():
        for name, tensor in (*narrow.named_parameters(), *narrow.named_buffers()):
            if tensor.is_floating_point() or tensor.is_complex():
                assert tensor.shape == found[name].shape, name
                tensor.copy_(found[name])


@every
def test_compiled_networks_are_proven_and_train(architecture: Architecture) -> None:
    model = network(architecture)
    sample = arguments(architecture, 2)
    pruned = fxprune.compile(model, sample.kwargs or sample.args, architecture.ratio)
    report = fxprune.report(pruned)
    assert report.opaque == ()
    assert report.proof is not None
    assert not report.proof.vacuous
    with torch.no_grad():
        larger = arguments(architecture, 7)
        assert _shapes(larger.call(pruned)) == _shapes(larger.call(model))
    pruned.train()
    outputs = [leaf for leaf in pytree.tree_leaves(sample.call(pruned)) if _is_float(leaf)]
    torch.autograd.backward(torch.stack([leaf.square().mean() for leaf in outputs]).sum())
    gradients = [p.grad for p in pruned.parameters()]
    assert all(g is not None and bool(torch.isfinite(g).all()) for g in gradients) or not architecture.trains


def _is_float(leaf: Any) -> bool:
    return isinstance(leaf, torch.Tensor) and leaf.is_floating_point()


def _shapes(outputs: Any) -> list[torch.Size]:
    return [leaf.shape for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, torch.Tensor)]
