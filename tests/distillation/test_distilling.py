"""Distillation on one process: what is trained, what stays, what is compared, what is refused."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.distillation import Hint, SoftTargets
from fxprune.errors import DistillationError, MissingDependencyError, OptionError
from tests.distillation.networks import Normed, Plain, Segmenting, images, pair, shuffled


def test_without_accelerate_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(MissingDependencyError, match=r"fxprune\[distill\]"):
        fxprune.distill(*pair(), shuffled(), steps=1)


def state(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}


def equal(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[n], right[n]) for n in left)


class TestTraining:
    """What needs the engine."""

    @pytest.fixture(autouse=True)
    def _engine(self) -> None:
        pytest.importorskip("accelerate")

    def test_the_outputs_come_closer_and_the_callers_networks_stay(self) -> None:
        pruned, teacher = pair(Normed)
        teacher.train().norm.eval()
        before, modes = (state(pruned), state(teacher)), [m.training for m in teacher.modules()]
        randomness = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
        found = fxprune.distill(pruned, teacher, images(32).split(8), steps=40, learning_rate=0.05, clip=5.0)
        assert equal(before[0], state(pruned))
        assert equal(before[1], state(teacher))
        assert modes == [m.training for m in teacher.modules()]
        assert all(p.requires_grad and p.grad is None for p in (*teacher.parameters(), *pruned.parameters()))
        assert torch.equal(randomness[0], torch.get_rng_state())
        assert randomness[1:] == (random.getstate(), np.random.get_state()[1].tolist())
        x = images(32)
        distances = [(net.eval()(x) - teacher.eval()(x)).square().mean() for net in (pruned, found.network)]
        assert distances[1] < 0.5 * distances[0]
        assert isinstance(found.network, torch.fx.GraphModule)
        assert not found.network.training
        assert fxprune.report(found.network).plan == fxprune.report(pruned).plan
        assert repr(found).startswith("Distilled(40 steps, loss ")
        assert not any(m._forward_hooks for m in (*found.network.modules(), *teacher.modules()))

    def test_the_same_seed_gives_the_same_weights(self) -> None:
        pruned, teacher = pair(lambda: Plain(dropout=0.3))
        runs = [fxprune.distill(pruned, teacher, shuffled(), steps=12, seed=seed) for seed in (3, 3, 4)]
        assert equal(state(runs[0].network), state(runs[1].network))
        assert not equal(state(runs[0].network), state(runs[2].network))

    def test_two_half_batches_make_the_step_of_a_whole_one(self) -> None:
        pruned, teacher = pair()
        x = images(32)
        whole = fxprune.distill(pruned, teacher, x.split(8), steps=6, seed=1)
        halves = fxprune.distill(pruned, teacher, x.split(4), steps=6, seed=1, accumulate=2)
        torch.testing.assert_close(state(halves.network), state(whole.network), rtol=1e-5, atol=1e-7)
        again = fxprune.distill(pruned, teacher, x.split(4), epochs=2, accumulate=2)
        assert again.steps == 8

    @pytest.mark.parametrize(
        ("schedule", "rates"),
        [
            ("constant", [0.5, 1, 1, 1, 1]),
            ("step", [0.5, 1, 1, 0.1, 0.01]),
            ("cosine", [0.5, 1, 0.8535534, 0.5, 0.1464466]),
        ],
    )
    def test_learning_rates(self, schedule: str, rates: list[float]) -> None:
        options = {"steps": 5, "schedule": schedule, "warmup": 1, "learning_rate": 0.02, "log_every": 1}
        found = fxprune.distill(*pair(), shuffled(), **options)
        assert [row["learning_rate"] for row in found.history] == pytest.approx([0.02 * rate for rate in rates])

    def test_adamw_and_a_custom_optimiser(self) -> None:
        named = fxprune.distill(*pair(), shuffled(), steps=4, optimizer="adamw", learning_rate=0.003, weight_decay=0.1)
        made = fxprune.distill(
            *pair(), shuffled(), steps=4, optimizer=lambda p: torch.optim.AdamW(p, lr=0.003, weight_decay=0.1)
        )
        assert equal(state(named.network), state(made.network))

    def test_hints_compare_kept_channels_with_no_projection(self) -> None:
        pruned, teacher = pair(Normed)
        # A layer that reads the input gives, before training, just what the teacher's kept channels give.
        found = fxprune.distill(pruned, teacher, images(8).split(8), steps=1, hints="first")
        assert pruned.first.out_channels < teacher.first.out_channels
        assert found.history[0]["hints"] == 0
        found = fxprune.distill(pruned, teacher, images(8).split(8), steps=1, hints=[Hint("after", weight=0.5)])
        kept = fxprune.report(pruned).plan.keep["after.weight"][0]
        x = images(8)
        student = pruned.train()
        first = torch.relu(student.norm(student.first(x)))
        features = student.after(student.second(first))
        second = teacher.second(torch.relu(teacher.norm(teacher.first(x))))
        wanted = teacher.after(second) if kept is None else teacher.after(second)[:, kept]
        expected = 0.5 * ((features - wanted).square().mean((1, 2, 3)) / wanted.square().mean((1, 2, 3))).mean()
        assert found.history[0]["hints"] == pytest.approx(expected.item(), rel=1e-5)

    def test_a_projection_learns_and_is_thrown_away(self) -> None:
        pruned, _ = pair(Normed)
        torch.manual_seed(5)
        teacher = Normed()
        teacher.second, teacher.after = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        hints = [Hint("norm", "after", projection=True), Hint("head")]
        found = fxprune.distill(pruned, teacher, shuffled(), steps=40, hints=hints, learning_rate=0.05)
        assert found.history[-1]["hints"] < found.history[0]["hints"]
        assert list(found.network.state_dict()) == list(pruned.state_dict())

    def test_a_custom_loss(self) -> None:
        seen = []

        def loss(student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
            seen.append((teacher.requires_grad, target.shape))
            return (student - teacher).square().mean()

        fxprune.distill(*pair(), shuffled(), steps=2, loss=loss)
        assert seen == [(False, (4,))] * 2

    def test_the_best_network_is_kept(self) -> None:
        pruned, teacher = pair()
        scores = iter([0.1, 0.9, 0.3])
        weights = []

        def evaluate(network: nn.Module) -> float:
            assert not network.training
            assert not torch.is_grad_enabled()
            weights.append(state(network))
            return next(scores)

        options = {"steps": 6, "evaluate_every": 2, "evaluate": evaluate, "keep": "best"}
        found = fxprune.distill(pruned, teacher, shuffled(), **options)
        assert (found.score, found.best_step) == (0.9, 4)
        assert equal(state(found.network), weights[1])
        assert [row.get("score") for row in found.history] == [None, 0.1, 0.9, 0.3]

    def test_mixed_precision_keeps_weights_and_leaves_no_setting_behind(self) -> None:
        pruned, teacher = pair(Normed)
        half = fxprune.distill(pruned, teacher, shuffled(), steps=5, precision="bf16")
        full = fxprune.distill(pruned, teacher, shuffled(), steps=5)
        assert all(v.dtype == torch.float32 for v in half.network.parameters())
        torch.testing.assert_close(state(half.network), state(full.network), rtol=0.05, atol=0.05)
        assert not equal(state(half.network), state(full.network))

    @pytest.mark.parametrize("precision", ["no", "bf16"])
    def test_pixels_and_outputs_by_name(self, precision: str) -> None:
        pruned, teacher = pair(Segmenting)
        masks = torch.randint(0, 5, (24, 6, 6))
        loader = list(zip(images(24).split(8), masks.split(8), strict=True))
        options = {"steps": 40, "learning_rate": 0.3, "precision": precision, "loss": SoftTargets(labels=0)}
        found = fxprune.distill(pruned, teacher, loader, **options)
        assert found.history[-1]["soft"] < 0.5 * found.history[0]["soft"]
        assert found.network(images(2)).keys() == {"out", "aux"}

    def test_a_network_that_was_not_compiled(self) -> None:
        _, teacher = pair()
        assert fxprune.distill(Plain(), teacher, shuffled(), steps=2).steps == 2

    def test_the_log(self, tmp_path: Path) -> None:
        found = fxprune.distill(*pair(), shuffled(), steps=9, folder=tmp_path / "run", log_every=4)
        rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
        assert [row["step"] for row in rows] == [1, 4, 8, 9]
        assert [row["loss"] for row in rows] == [row["loss"] for row in found.history]
        assert rows[0].keys() == {"step", "loss", "soft", "labels", "learning_rate", "time"}

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({}, "steps="),
            ({"steps": 1, "epochs": 1}, "steps="),
            ({"steps": 0}, "at least 1"),
            ({"steps": 1, "schedule": "linear"}, '"cosine"'),
            ({"steps": 1, "precision": "int8"}, '"bf16"'),
            ({"steps": 1, "optimizer": "lion"}, '"adamw"'),
            ({"steps": 1, "learning_rate": -1.0}, "above 0"),
            ({"steps": 1, "optimizer": torch.optim.SGD, "learning_rate": 0.1}, "by name"),
            ({"steps": 1, "clip": 0}, "above 0"),
            ({"steps": 1, "accumulate": None}, "accumulate must be a whole number"),
            ({"steps": 1, "weight_decay": None}, "weight_decay must be a number of at least 0"),
            ({"steps": 1, "keep": "best"}, "evaluate="),
            ({"steps": 1, "evaluate": 3}, "function"),
        ],
    )
    def test_options_that_make_no_sense(self, options: dict[str, object], words: str) -> None:
        with pytest.raises(OptionError, match=words):
            fxprune.distill(*pair(), shuffled(), **options)

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"hints": "head.deep"}, "no module 'head.deep'"),
            ({"hints": 3}, "module paths"),
            ({"loader": []}, "no batch"),
            ({"loader": torch.randn(4, 3, 6, 6)}, r"\[batch\]"),
            ({"loader": iter([images(4)])}, "empty after one pass"),
            ({"loader": [torch.randn(4, 6)]}, "batch 0 .* does not fit"),
            ({"loader": [torch.randn(4, 5, 6, 6)]}, "fails on a batch"),
            ({"loss": lambda s, t, y: s}, "without dims"),
            ({"loss": lambda s, t, y: t.mean()}, "does not depend"),
            ({"loss": lambda s, t, y: s.mean() * float("nan")}, "no longer finite|the loss is nan"),
            ({"evaluate": lambda network: "good"}, "must return a number"),
            ({"teacher": "model"}, "torch.nn.Module"),
        ],
    )
    def test_things_that_do_not_fit(self, options: dict[str, object], words: str) -> None:
        pruned, teacher = pair()
        given = {"steps": 3, "loader": [images(4)], "teacher": teacher, **options}
        with pytest.raises(DistillationError, match=words):
            fxprune.distill(pruned, given.pop("teacher"), given.pop("loader"), **given)

    def test_hints_that_cannot_be_compared(self) -> None:
        class Nested(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.body, self.head = Normed(), nn.Linear(5, 5)

            def forward(self, x: Tensor) -> Tensor:
                return self.head(self.body(x))

        pruned, teacher = pair(Nested)
        with pytest.raises(DistillationError, match=r"body\.head"):
            fxprune.distill(pruned, teacher, [images(4)], steps=1, hints="body")
        other = Nested()
        other.body.first, other.body.norm = nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16)
        other.body.second, other.body.after, other.body.head = (
            nn.Conv2d(16, 16, 3, padding=1),
            nn.BatchNorm2d(16),
            nn.Linear(16, 5),
        )
        with pytest.raises(DistillationError, match="projection=True"):
            fxprune.distill(pruned, other, [images(4)], steps=1, hints="body.norm")
