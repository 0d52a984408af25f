"""Networks of the transformers library, where it is installed: widths found, proven, other lengths, a training step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils import _pytree as pytree

import fxprune
from benchmarks.harness import follows_batch, train_one_step
from benchmarks.networks import Network, find_network

pytest.importorskip("transformers")

from benchmarks import keeping

# heads, width of queries and keys, width of values, width of the MLP: of every layer.
_LAYER = [4, 16, 16, 128]
# By network, the sizes of all groups: the hidden width first (T5 and CLIP give it out), then those of the layers.
WIDTHS = {
    "vit": [64, *2 * _LAYER],
    "deit": [64, *2 * _LAYER],
    "clip": 4 * _LAYER,
    "bert": [64, 64, *2 * _LAYER],
    "roberta": [64, 64, *2 * _LAYER],
    "distilbert": [64, 64, *2 * _LAYER],
    "gpt2": [64, *2 * [4, 16, 16, 256]],
    # Both layers of a stack share its table of biases, and so the heads; cross attention has heads of its own.
    "t5": [*3 * [4], *2 * [16, 16, 128], *2 * [16, 16, 16, 16, 128]],
    # Groups of keys, queries per group, values, MLP; pairs of rotated keys are shared by all layers.
    "llama": [64, 8, *2 * [2, 2, 16, 128]],
    # Channels, rank of the step sizes, state.
    "mamba": [64, *2 * [128, 4, 8]],
    "swin": [32, 64, *2 * [2, 16, 16, 128], *2 * [4, 16, 16, 256]],
}
SLOW = [pytest.param("detr", marks=pytest.mark.deep), pytest.param("segformer", marks=pytest.mark.deep)]
CACHED = ["gpt2 with cache", "llama with cache", "t5 with cache", "mamba with cache"]
# They step over time in Python, which a trace writes down step by step.
FIXED_LENGTH = ("mamba", "mamba with cache")


def network(name: str) -> Network:
    return find_network("transformers", name)


@pytest.mark.parametrize(("name", "sizes"), WIDTHS.items(), ids=WIDTHS.keys())
def test_widths_are_found_without_hints(name: str, sizes: list[int]) -> None:
    net = network(name)
    graph = fxprune.analyze(net.model, net.sample)
    assert graph.opaque == ()
    assert sorted(group.size for group in graph.groups) == sorted(sizes)


@pytest.mark.parametrize("name", [*WIDTHS, *CACHED, *SLOW])
def test_half_of_the_macs_are_removed_and_all_is_proven(name: str) -> None:
    net = network(name)
    before = {key: value.clone() for key, value in net.model.state_dict().items()}
    pruned = fxprune.compile(net.model, net.sample, 0.3 if name in CACHED else 0.5)
    report = fxprune.report(pruned)
    assert [o.name for o in report.opaque if o.name != "the forward in training mode"] == []
    assert report.proof is not None
    assert not report.proof.vacuous
    assert follows_batch(net.model, pruned, net.sample) == "yes"
    assert all(torch.equal(value, before[key]) for key, value in net.model.state_dict().items())
    with torch.no_grad():
        expected, found = net.model(**net.sample), pruned(**net.sample)
    assert type(found) is type(expected)
    assert found.keys() == expected.keys()
    assert _shapes(found) == _shapes(expected)
    if name not in FIXED_LENGTH:
        assert _shapes(pruned(**_longer(net.sample))) == _shapes(net.model(**_longer(net.sample)))
    assert train_one_step(pruned, net.training_sample) > 0


@pytest.mark.parametrize("name", [n for n in WIDTHS if n not in FIXED_LENGTH])
def test_an_equal_copy_agrees_at_another_length_and_mask(name: str) -> None:
    net = network(name)
    copy = fxprune.compile(net.model, net.sample, 0.0)
    longer = _longer(net.sample)
    with torch.no_grad():
        assert difference(net.model(**longer), copy(**longer)) < 1e-4
        if "attention_mask" in longer:
            for mask in (torch.ones_like(longer["attention_mask"]), longer["attention_mask"].flip(1)):
                given = longer | {"attention_mask": mask}
                assert difference(net.model(**given), copy(**given)) < 1e-4


@pytest.mark.parametrize("name", CACHED)
def test_caches_are_outputs(name: str) -> None:
    net = network(name)
    pruned = fxprune.compile(net.model, net.sample, 0.3)
    key = "cache_params" if "mamba" in name else "past_key_values"
    with torch.no_grad():
        expected, found = net.model(**net.sample)[key], pruned(**net.sample)[key]
    assert type(found) is type(expected)
    assert [vars(layer).keys() for layer in _layers(found)] == [vars(layer).keys() for layer in _layers(expected)]
    if key == "past_key_values":
        assert found.get_seq_length() == expected.get_seq_length() > 0


def _layers(cache: Any) -> list[Any]:
    inner = [vars(cache)[name] for name in ("self_attention_cache", "cross_attention_cache") if name in vars(cache)]
    return [layer for part in inner or [cache] for layer in part.layers]


def _longer(sample: dict[str, Any]) -> dict[str, Any]:
    """Tokens (batch, length) a half longer; images as they are."""
    torch.manual_seed(7)
    longer = {}
    for name, value in sample.items():
        tokens = isinstance(value, torch.Tensor) and value.ndim == 2 and not value.is_floating_point()
        longer[name] = torch.cat([value, value[:, : value.shape[1] // 2]], 1) if tokens else value
    return longer


def _tensors(output: Any) -> list[torch.Tensor]:
    return [leaf for leaf in pytree.tree_leaves(tuple(output.values())) if isinstance(leaf, torch.Tensor)]


def difference(expected: Any, actual: Any) -> float:
    """The largest difference relative to the largest expected value, of each tensor of an output."""
    pairs = zip(_tensors(expected), _tensors(actual), strict=True)
    return max(float((a - b).abs().max() / a.abs().max().clamp(min=1e-12)) for a, b in pairs)


def _shapes(output: Any) -> list[torch.Size]:
    return [t.shape for t in _tensors(output)]


# Networks that keep their class: saved, loaded by their library alone, equal, generating alike.
QUICK = ("BERT", "GPT-2", "ViT", "ConvNeXt")


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.deep) for name in keeping.networks()]
)
def test_a_pruned_class_is_saved_and_loaded(name: str) -> None:
    _, removed, words, alike, generates, _ = keeping.round_trip(name, 0.2)
    assert float(removed.rstrip("%")) >= 20
    assert words.startswith("config: ")
    assert alike == "yes"
    assert generates in ("yes", "")
