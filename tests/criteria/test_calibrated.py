"""Criteria through ``compile``: every name, what they need, and what they must not touch or depend on."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.criteria import (
    APoZ,
    FeatureCriterion,
    FeatureDistance,
    FeatureEntropy,
    Magnitude,
    MeanActivation,
    Minimum,
    MultiSource,
    Parallel,
    Product,
    Random,
    RankAverage,
    Slimming,
    Taylor,
    WeightedSum,
    criterion_by_name,
)
from fxprune.errors import CalibrationError, CriterionError, OptionError
from tests.criteria.calibrated import Small, batches, images, scores

NEED_DATA = """
    apoz chip feature_distance feature_entropy hessian hrank mean_activation multi_source parallel reconstruction taylor
    taylor_activations thinet
""".split()
SELECTORS = ["feature_distance", "filter_similarity", "multi_source", "parallel"]


@pytest.mark.parametrize("name", fxprune.known_criteria())
def test_every_name_compiles_and_leaves_the_model_alone(name: str) -> None:
    model = Small().train()
    before = copy.deepcopy(model.state_dict())
    data = batches()
    pruned = fxprune.compile(model, images(2)[0], 0.4, criterion=name, calibration=data)
    report = fxprune.report(pruned)
    assert report.proof is not None
    assert model.training
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    assert torch.equal(data[0][0], images()[0][:5])
    assert ("calibration" in report.settings) == (name in NEED_DATA)


@pytest.mark.parametrize("name", NEED_DATA)
def test_criteria_that_need_calibration_say_so(name: str) -> None:
    with pytest.raises(CalibrationError, match="criterion '.*' looks at .* pass calibration="):
        fxprune.plan(Small(), images(2)[0], 0.4, criterion=name)


@pytest.mark.parametrize("name", ["taylor", "taylor_activations", "hessian"])
def test_gradients_need_targets_or_a_loss(name: str) -> None:
    data = [images()[0]]
    with pytest.raises(CalibrationError, match="gradients need a loss"):
        fxprune.plan(Small(), images(2)[0], 0.4, criterion=name, calibration=data)
    with pytest.raises(CalibrationError, match=r"no loss is known for an output of shape \(.*, 5\) and a target of"):
        fxprune.plan(Small(), images(2)[0], 0.4, criterion=name, calibration=[(data[0], torch.zeros(12, 3))])
    plan = fxprune.plan(
        Small(), images(2)[0], 0.4, criterion=name, calibration=data, loss=lambda output, _: output.square().mean()
    )
    assert plan.settings["calibration"] == "12 samples"


def test_wrong_losses() -> None:
    arguments: dict[str, Any] = {"criterion": "taylor", "calibration": batches()}
    with pytest.raises(OptionError, match="loss must be a function"):
        fxprune.plan(Small(), images(2)[0], 0.4, loss="mse", **arguments)  # type: ignore[arg-type]
    for wrong in (lambda o, t: 1.0, lambda o, t: o, lambda o, t: torch.zeros(())):
        with pytest.raises(CalibrationError, match="the loss must be a tensor without dims"):
            fxprune.plan(Small(), images(2)[0], 0.4, loss=wrong, **arguments)


def test_a_generator_serves_one_pass() -> None:
    model, sample = Small(), images(2)[0]
    once = fxprune.plan(model, sample, 0.4, criterion="apoz", calibration=(b for b in batches()))
    assert once == fxprune.plan(model, sample, 0.4, criterion="apoz", calibration=batches())
    with pytest.raises(CalibrationError, match="a second pass is needed"):
        fxprune.plan(model, sample, 0.4, criterion="multi_source", calibration=(b for b in batches()))


def test_a_batch_that_the_model_refuses() -> None:
    wrong = [torch.randn(2, 4, 6, 6, dtype=torch.float64)]
    with pytest.raises(CalibrationError, match=r"fails on a batch of calibration, .*\(2, 4, 6, 6\)"):
        fxprune.plan(Small(), images(2)[0], 0.4, criterion="apoz", calibration=wrong)


SCORERS = [name for name in fxprune.known_criteria() if name not in ("filter_similarity", "parallel", "multi_source")]


# A selector is no scorer; reconstruction draws other positions for every batch.
SAME_IN_ANY_BATCH = [n for n in NEED_DATA if n in SCORERS and n not in ("feature_distance", "reconstruction")]


@pytest.mark.parametrize("name", SAME_IN_ANY_BATCH)
def test_batches_of_other_sizes_give_the_same_scores(name: str) -> None:
    criterion = criterion_by_name(name)
    whole, parts = scores(criterion, data=[images()]), scores(criterion, data=batches(5))
    for group, values in whole.items():
        np.testing.assert_allclose(parts[group], values, rtol=1e-6, atol=1e-12)


def permuted(model: Small, order: Tensor) -> Small:
    moved = copy.deepcopy(model)
    with torch.no_grad():
        moved.conv1.weight.copy_(model.conv1.weight[order])
        moved.conv2.weight.copy_(model.conv2.weight[:, order])
        for name in ("weight", "bias", "running_mean", "running_var"):
            getattr(moved.bn1, name).copy_(getattr(model.bn1, name)[order])
    return moved


# Random scores belong to places; of near channels FOAD keeps the first.
@pytest.mark.parametrize("name", sorted(set(fxprune.known_criteria()) - {"random", "feature_distance"}))
def test_permuted_channels_give_permuted_plans(name: str) -> None:
    model, order = Small(), torch.randperm(12)
    arguments: dict[str, Any] = {"criterion": name, "calibration": batches()}
    before = fxprune.plan(model, images(2)[0], 0.4, **arguments).groups
    after = fxprune.plan(permuted(model, order), images(2)[0], 0.4, **arguments).groups
    assert sorted(order[list(after["conv1"])].tolist()) == list(before["conv1"])
    assert (after["stem"], after["last"]) == (before["stem"], before["last"])


@pytest.mark.parametrize("name", SELECTORS)
@pytest.mark.parametrize("ratio", [0.1, 0.5, 0.75])
def test_selectors_keep_to_limits(name: str, ratio: float) -> None:
    plan = fxprune.plan(
        Small(),
        images(2)[0],
        ratio,
        criterion=name,
        calibration=batches(),
        exclude=["last"],
        round_to=2,
        min_channels=2,
    )
    assert len(plan.groups["last"]) == 6
    assert all(len(plan.groups[g]) % 2 == 0 and len(plan.groups[g]) >= 2 for g in ("stem", "conv1"))


@pytest.mark.parametrize("name", SELECTORS)
def test_selectors_meet_the_budget(name: str) -> None:
    model, sample = Small(), images(2)[0]
    removed = []
    for ratio in (0.0, 0.2, 0.4, 0.6, 0.8):
        pruned = fxprune.compile(model, sample, ratio, criterion=name, calibration=batches(), verify=False)
        achieved = fxprune.report(pruned).achieved
        removed.append(achieved)
        assert achieved >= ratio
    assert removed == sorted(removed)


def test_inner_residual() -> None:
    plan = fxprune.plan(Small(), images(2)[0], 0.3, criterion="parallel", calibration=batches(), residual="inner")
    assert len(plan.groups["stem"]) == 8


# -- combinations -----------------------------------------------------------------------------------------------------


def test_combinations() -> None:
    parts = (Magnitude(normalise="none"), APoZ(), Slimming())
    alone = [scores(part)["conv1"] for part in parts]
    scaled = [(s - s.min()) / (s.max() - s.min()) for s in alone]
    np.testing.assert_allclose(scores(WeightedSum(parts, weights=(1, 2, 3)))["conv1"], np.dot([1, 2, 3], scaled))
    np.testing.assert_allclose(scores(Product(parts))["conv1"], np.prod(scaled, axis=0))
    np.testing.assert_allclose(scores(Minimum(parts))["conv1"], np.min(scaled, axis=0))
    ranks = [np.argsort(np.argsort(s)) / 11 for s in alone[::2]]
    np.testing.assert_allclose(scores(RankAverage(parts[::2]))["conv1"], np.mean(ranks, axis=0))
    # Slimming cannot judge a group without batch norm and leaves it to the others.
    np.testing.assert_allclose(
        scores(Minimum((Slimming(), Magnitude())))["last"], scores(Minimum((Magnitude(),)))["last"]
    )


def test_combinations_observe_in_one_pass() -> None:
    class Counted(list):  # type: ignore[type-arg]
        passes = 0

        def __iter__(self) -> Any:
            Counted.passes += 1
            return super().__iter__()

    both = WeightedSum((Taylor(), APoZ(), FeatureEntropy()))
    fxprune.plan(Small(), images(2)[0], 0.4, criterion=both, calibration=Counted(batches()))
    assert Counted.passes == 1


def test_parallel_of_any_two() -> None:
    plan = fxprune.plan(
        Small(), images(2)[0], 0.4, criterion=Parallel(MeanActivation(), Magnitude()), calibration=batches()
    )
    assert len(plan.groups["conv1"]) < 12


def test_wrong_parts() -> None:
    for wrong in ((), (Magnitude,), ("apoz",)):
        with pytest.raises(CriterionError, match="combines scorers"):
            WeightedSum(wrong)  # type: ignore[arg-type]
    with pytest.raises(CriterionError, match="as many weights"):
        WeightedSum((Random(), Magnitude()), weights=(1.0,))
    with pytest.raises(CriterionError, match="two scorers"):
        Parallel("apoz", Magnitude())  # type: ignore[arg-type]


# -- other networks ---------------------------------------------------------------------------------------------------


class Attention(nn.Module):
    """Tokens, heads, layer norm, GELU: no batch norm, no ReLU, no maps."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm = nn.Embedding(20, 16), nn.LayerNorm(16)
        self.attention = nn.MultiheadAttention(16, 4, batch_first=True)
        self.up, self.down, self.head = nn.Linear(16, 24), nn.Linear(24, 16), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        y = self.norm(x)
        x = x + self.attention(y, y, y)[0]
        x = x + self.down(nn.functional.gelu(self.up(x)))
        return self.head(x.mean(1))


@pytest.mark.parametrize("name", sorted(set(fxprune.known_criteria()) - {"slimming"}))
def test_transformers(name: str) -> None:
    tokens = torch.randint(0, 20, (4, 7))
    data = [(tokens, torch.tensor([0, 1, 2, 3]))]
    model = Attention().eval()
    if name == "parallel":
        criterion: Any = Parallel(FeatureEntropy(), Magnitude())
    else:
        criterion = name
    fxprune.compile(model, tokens[:2], 0.3, criterion=criterion, calibration=data)


def test_no_data_to_judge_by() -> None:
    with pytest.raises(CriterionError, match="'slimming' finds nothing to judge by"):
        fxprune.plan(Attention().eval(), torch.randint(0, 20, (2, 7)), 0.3, criterion="slimming")


def test_structure_alone() -> None:
    model = Small().to("meta")
    sample = images(2)[0].to("meta")
    plan = fxprune.plan(model, sample, 0.4, criterion="feature_entropy", calibration=batches())
    assert plan.groups["conv1"] == tuple(range(len(plan.groups["conv1"])))


def test_a_custom_criterion() -> None:
    class Peak(FeatureCriterion):
        name = "peak"

        def measure(self, maps: Tensor) -> Tensor:
            return maps.flatten(2).amax(2)

    plan = fxprune.plan(Small(), images(2)[0], 0.4, criterion=Peak(normalise="max"), calibration=batches())
    assert plan.settings["calibration"] == "12 samples"


def test_rank_mode_and_corrected_covering() -> None:
    for criterion in (MultiSource(global_mode="rank", fusion="product"), FeatureDistance(kept_block_slots=False)):
        fxprune.plan(Small(), images(2)[0], 0.4, criterion=criterion, calibration=batches())
