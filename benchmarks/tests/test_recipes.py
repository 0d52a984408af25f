"""Stages that go on where they were stopped, and the augmentation of images, against what is written out."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from benchmarks.recipes.data import FolderImages, Margin, SmallImages, augmented, masks_of, pairs_of, verified
from benchmarks.recipes.training import Recipe, Soft, Trainer
from fxprune.schedules import SoftPruning

RECIPE = Recipe(4, 6, 0.05, 1e-4)


class Small(nn.Sequential):
    """Two convolutions and a classifier for images of 6x6 pixels, in float64."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        first = (nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        second = (nn.Conv2d(8, 6, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten())
        super().__init__(*first, *second, nn.Linear(54, 5))
        self.double().eval()


def images(count: int) -> tuple[Tensor, Tensor]:
    """Images (count, 3, 6, 6) and labels."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(count, 3, 6, 6, generator=generator, dtype=torch.float64)
    return x, torch.randint(0, 5, (count,), generator=generator)


class Few:
    """Twelve images, in an order that the seed gives."""

    classes, sample, loss = 5, images(2)[0], nn.CrossEntropyLoss()

    def length(self) -> int:
        return 12

    def batches(self, size: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        x, y = images(12)
        for index in torch.randperm(12, generator=torch.Generator().manual_seed(seed)).split(size):
            yield x[index], y[index]

    def calibration(self, count: int) -> list[tuple[Tensor, Tensor]]:
        return [images(count)]

    def accuracy(self, network: nn.Module) -> float:
        return 0.0


class Stopped(Soft):
    """Ends the process, so to speak, in the third epoch."""

    def before_epoch(self) -> None:
        if self._schedule.epoch == 2:
            raise KeyboardInterrupt
        super().before_epoch()


def test_a_stopped_stage_continues_bit_for_bit(tmp_path: Path) -> None:
    networks = [Small(), Small(), Small()]
    schedules = [SoftPruning(network, Few.sample, 0.4) for network in networks]
    for network, schedule, hooks, state in zip(
        networks, schedules, (Soft, Stopped, Soft), (None, tmp_path, tmp_path), strict=True
    ):
        trainer = Trainer(Few(), state=state, half=False)
        if hooks is Stopped:
            with pytest.raises(KeyboardInterrupt):
                trainer.fit("soft", network, RECIPE, hooks=hooks(schedule))
        else:
            trainer.fit("soft", network, RECIPE, hooks=hooks(schedule))
    assert [schedule.epoch for schedule in schedules] == [4, 2, 4]
    states = [network.state_dict() for network in networks]
    assert all(torch.equal(states[0][name], states[2][name]) for name in states[0])
    assert schedules[0].plan == schedules[2].plan


def test_budgets() -> None:
    assert Trainer(Few()).epochs(RECIPE, 0.5) == (4, 2)
    assert Trainer(Few(), steps=200).epochs(RECIPE, 0.5) == (4, 25)
    assert Trainer(Few(), steps=100).epochs(RECIPE, 0.5) == (2, 25)
    assert Trainer(Few(), steps=10).epochs(RECIPE, 0.5) == (1, 5)
    assert [RECIPE.rate_at(done) for done in (0, 0.49, 0.5, 0.75)] == pytest.approx([0.05, 0.05, 0.005, 0.0005])


def test_augmented_images_are_parts_of_the_padded_ones() -> None:
    x = torch.arange(1.0, 1 + 6 * 3 * 8 * 8).reshape(6, 3, 8, 8)
    found = augmented(x, torch.Generator().manual_seed(3))
    padded = nn.functional.pad(x, (4, 4, 4, 4))
    mirrored = 0
    for image, whole in zip(found, padded, strict=True):
        parts = [whole[:, r : r + 8, c : c + 8] for r in range(9) for c in range(9)]
        straight = any(torch.equal(image, part) for part in parts)
        mirrored += not straight
        assert straight or any(torch.equal(image, part.flip(2)) for part in parts)
    assert 0 < mirrored < 6


def test_images_of_a_folder(tmp_path: Path) -> None:
    from torchvision.io import write_png

    for split in ("train", "test"):
        for name, level in (("dark", 0), ("light", 255)):
            (tmp_path / split / name).mkdir(parents=True)
            for number in range(3):
                picture = torch.full((3, 32, 32), level, dtype=torch.uint8)
                write_png(picture, str(tmp_path / split / name / f"{number}.png"))

    class Brightness(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([-x.mean((1, 2, 3)), x.mean((1, 2, 3))], dim=1)

    for data in (SmallImages(tmp_path, None, None), FolderImages(tmp_path, 16, None, None)):
        assert (data.classes, data.length(), data.sample.shape[:2]) == (2, 6, (2, 3))
        assert data.accuracy(Brightness()) == 1.0
        first, again = (list(data.batches(2, 5)) for _ in range(2))
        assert len(first) == 3
        assert all(torch.equal(a, c) and torch.equal(b, d) for (a, b), (c, d) in zip(first, again, strict=True))
        assert sorted(torch.cat([y for _, y in first]).tolist()) == [0, 0, 0, 1, 1, 1]
        assert sum(len(y) for _, y in data.calibration(4)) == 4
    assert copy.deepcopy(first[0][0]).shape == (2, 3, 16, 16)


def test_masks_of_a_square() -> None:
    image = torch.zeros(1, 3, 12, 12)
    image[:, :, 4:8, 4:8] = 1
    found = masks_of(image)[0]
    # Averaged over 3x3 pixels, the distance exceeds its mean wherever the square has at least two of the nine.
    inside = torch.zeros(12, 12, dtype=torch.bool)
    inside[3:9, 3:9] = True
    for corner in ((3, 3), (3, 8), (8, 3), (8, 8)):
        inside[corner] = False
    near = torch.stack([inside.roll((y, x), (0, 1)) for y in (-1, 0, 1) for x in (-1, 0, 1)]).any(0)
    assert torch.equal(found == 1, inside)
    assert torch.equal(found == 2, near & ~inside)


def test_margin_by_hand() -> None:
    """Unit centres along two axes; the embedding (3, 4) has the cosines 0.6 and 0.8."""
    loss = Margin(2, 2, scale=10.0, margin=0.2)
    loss.centres.data = torch.tensor([[2.0, 0.0], [0.0, 5.0]])
    found = loss(torch.tensor([[3.0, 4.0]]), torch.tensor([1]))
    assert found.item() == pytest.approx(float(torch.tensor([6.0, 6.0]).logsumexp(0)) - 6.0)


def test_pairs_and_thresholds() -> None:
    labels = torch.arange(40) % 4
    left, right = pairs_of(labels)
    same = labels[left] == labels[right]
    assert same.tolist() == [True, False] * 40
    assert not (left == right).any()
    cosines = torch.where(same, 0.7, 0.1) + 0.1 * torch.rand(80, generator=torch.Generator().manual_seed(0))
    assert verified(cosines, same) == 1.0
    cosines[:8] = -cosines[:8]  # the first of ten folds: below every threshold, of which half is right
    assert verified(cosines, same) == pytest.approx(0.95)
