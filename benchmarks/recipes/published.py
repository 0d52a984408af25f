"""How the papers train: what their code or text says, and what is a choice where nothing could be read."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Recipe:
    """Training with SGD and momentum.

    Attributes:
        epochs: how many.
        batch: images in a step.
        rate: the first learning rate.
        decay: weight decay.
        drops: shares of the training after which the rate is divided by 10.
    """

    epochs: int
    batch: int
    rate: float
    decay: float
    drops: tuple[float, ...] = (0.5, 0.75)

    def rate_at(self, done: float) -> float:
        """The learning rate after a share of the training."""
        return float(self.rate * 0.1 ** sum(done >= drop for drop in self.drops))


# Shao et al. 2021: the released trainer, and its command for ResNet-56's fine-tuning, which repeats the schedule.
SPARSE = Recipe(160, 128, 0.1, 1e-4)
SHAO_FINE = Recipe(160, 64, 0.1, 1e-4)
SPARSE_STRENGTH, SPARSE_STRENGTH_OF_VGG = 1e-5, 1e-4
# Wu et al. 2023: inferred (five steps, a few epochs after each, then a fine-tuning; soft pruning as He et al. 2018).
BETWEEN = Recipe(10, 128, 0.01, 5e-4, ())
WU_FINE = Recipe(160, 128, 0.01, 5e-4)
SOFT = Recipe(200, 128, 0.1, 5e-4)
ITERATIONS = 5
# FOAD: the released script.
FOAD_FINE = Recipe(160, 64, 0.1, 1e-4)
# APBM: the recipe of DCFF's released code, with which its formulation agrees.
FUSED = Recipe(300, 256, 0.1, 5e-4)
FUSED_RATE = 0.5
# Xiu et al. 2022: inferred.
DISTIL = Recipe(100, 128, 0.01, 1e-4)
TEACHER = Recipe(100, 32, 0.05, 5e-4)
TEMPERATURE, SOFT_SHARE = 4.0, 0.9
# Reconstruction reads images without their labels; so many are enough for layers of up to 64 channels.
RECONSTRUCTED_FROM = 1024
# Zhuang et al. 2020: the recipe of slimming; the strength is a choice.
POLAR_STRENGTH, POLAR_PULL = 1e-4, 1.2

# The published reductions of FLOPs: ResNet-56 on CIFAR-10, for FOAD VGG-16; half where no figure could be read.
RATIOS = {
    "multi_source": 0.5,
    "entropy": 0.45,
    "parallel": 0.50,
    "filter_similarity_hard": 0.611,
    "filter_similarity_soft": 0.611,
    "filter_similarity_soft_tuned": 0.611,
    "foad": 0.637,
    "apbm": 0.5,
    "train_then_prune": 0.5,
    "slimming": 0.5,
    "polarization": 0.5,
    "hrank": 0.5,
    "uncut": 0.0,
    "magnitude": 0.5,
    "auto": 0.5,
    "torch_pruning": 0.5,
}


def changed(recipe: Recipe, batch: int | None, rate: float | None) -> Recipe:
    """A recipe with another batch or rate."""
    return replace(recipe, batch=batch or recipe.batch, rate=rate or recipe.rate)
