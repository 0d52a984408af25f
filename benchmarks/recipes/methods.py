"""The methods of the papers, each as a whole, and what they are compared with."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD

import fxprune
from benchmarks import rivals
from benchmarks.published import VGG16_RATES, criterion_for
from benchmarks.recipes import training
from benchmarks.recipes.data import Images, Masks
from benchmarks.recipes.training import Fused, Hooks, Polarised, Soft, Sparse, Trainer
from fxprune.criteria import Magnitude
from fxprune.distillation import SoftTargets
from fxprune.schedules import FusedTraining, IterativePruning, Polarization, SoftPruning, SparseTraining


class Epochs:
    """Batches that can be read again, each time in another order."""

    def __init__(self, images: Images, batch: int) -> None:
        self._images, self._batch = images, batch

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        # The trainer seeds torch by seed and epoch before it begins one.
        return self._images.batches(self._batch, int(torch.randint(2**31, ())))


def multi_source(run: Run) -> nn.Module:
    """One cut by features and weights, sets of channels compared by their effect; then distillation.

    That of a network that segments is pixel by pixel, and does without masks.
    """
    pruned, trainer = run.compile(run.network, "multi_source"), run.trainer
    recipe = training.changed(training.DISTIL, trainer.batch, trainer.rate)
    epochs, steps = trainer.epochs(training.DISTIL, 1.0)
    with trainer.timed("distil"):
        found = fxprune.distill(
            pruned,
            copy.deepcopy(run.network),
            Epochs(trainer.images, recipe.batch),
            steps=epochs * steps,
            loss=SoftTargets(training.TEMPERATURE, 0.0 if run.segments else 1 - training.SOFT_SHARE),
            learning_rate=recipe.rate,
            weight_decay=recipe.decay,
            precision="bf16" if trainer.half else "no",
            folder=None if trainer.state is None else trainer.state / "distil",
            seed=trainer.seed,
        )
    return found.network.eval()


def sparse_then(run: Run, criterion: Any) -> nn.Module:
    """Sparse training of the scales, one cut, fine-tuning (entropy, parallel, slimming)."""
    of_vgg = run.model.lower().startswith("vgg")
    strength = training.SPARSE_STRENGTH_OF_VGG if of_vgg else training.SPARSE_STRENGTH
    hooks = Sparse(SparseTraining(run.network, strength))
    return _regularised(run, hooks, criterion)


def polarization(run: Run) -> nn.Module:
    """Polarised scales, one cut by them, fine-tuning."""
    # A trained network may have scales above the paper's bound of 1, and clipping those would damage it.
    bound = max(1.0, *(float(m.weight.detach().max()) for m in run.network.modules() if isinstance(m, nn.BatchNorm2d)))
    regulariser = Polarization(run.network, training.POLAR_STRENGTH, training.POLAR_PULL, bound)
    return _regularised(run, Polarised(regulariser), "slimming")


def _regularised(run: Run, hooks: Hooks, criterion: Any) -> nn.Module:
    run.trainer.fit("sparse", run.network, training.SPARSE, 0.5, hooks=hooks)
    pruned = run.compile(run.network, criterion)
    run.trainer.fit("fine-tune", pruned, training.SHAO_FINE, 0.5)
    return pruned


def filter_similarity_hard(run: Run) -> nn.Module:
    """Five cuts, each with the similarities of the present filters, and training after each."""
    schedule = IterativePruning(
        run.network,
        run.sample,
        run.ratio,
        steps=training.ITERATIONS,
        criterion=criterion_for("filter_similarity", ""),
        residual="inner",
        round_to=1,
    )
    network: nn.Module = run.network
    optimizer: SGD | None = None
    while not schedule.finished:
        network, optimizer = schedule.step(network, optimizer) if optimizer else schedule.step(network)
        last = schedule.finished
        if last:
            run.note(network)
        name, recipe = ("fine-tune", training.WU_FINE) if last else (f"step {schedule.done}", training.BETWEEN)
        optimizer = run.trainer.fit(name, network, recipe, 0.6 if last else 0.1, optimizer=optimizer)
    return network


def filter_similarity_soft_tuned(run: Run) -> nn.Module:
    """Soft, and then fine-tuned at the compact width, which the paper's abstract does not speak of."""
    pruned = filter_similarity_soft(run, 0.6)
    run.trainer.fit("fine-tune", pruned, training.WU_FINE, 0.4)
    return pruned


def filter_similarity_soft(run: Run, share: float = 1.0) -> nn.Module:
    """Channels chosen and silenced anew after every epoch, compacted at the end."""
    criterion = criterion_for("filter_similarity", "")
    schedule = SoftPruning(run.network, run.sample, run.ratio, criterion=criterion, residual="inner", round_to=1)
    run.trainer.fit("soft", run.network, training.SOFT, share, hooks=Soft(schedule))
    return run.note(schedule.compact())


def foad(run: Run) -> nn.Module:
    """One cut by distances between feature maps, then fine-tuning."""
    return _tuned(run, run.compile(run.network, criterion_for("feature_distance", "")))


def apbm(run: Run) -> nn.Module:
    """From scratch at compact width, with kernels fused from all filters."""
    epochs, _ = run.trainer.epochs(training.FUSED, 1.0)
    schedule = FusedTraining(run.network, run.sample, epochs=epochs, rates=fused_rates(run))
    run.trainer.fit("fused", schedule.network, training.FUSED, hooks=Fused(schedule))
    return schedule.compact()


def fused_rates(run: Run) -> dict[str, float]:
    """DCFF's published rates for VGG-16; the same for all layers inside residual blocks elsewhere."""
    convolutions = [name for name, module in run.network.named_modules() if isinstance(module, nn.Conv2d)]
    if run.model == "VGG-16":
        return dict(zip(convolutions, VGG16_RATES, strict=True))
    inside = ("conv1", "conv2") if any(name.endswith(".conv3") for name in convolutions) else ("conv1",)
    return {f"layer*.{name}": training.FUSED_RATE for name in inside}


def train_then_prune(run: Run) -> nn.Module:
    """What fused training is compared with: half of the training wide, one cut to the same widths, half narrow."""
    run.trainer.fit("wide", run.network, training.FUSED, 0.5)
    widths = FusedTraining(run.network, run.sample, epochs=1, rates=fused_rates(run))
    pruned = run.note(fxprune.apply(run.network, run.sample, widths.plan))
    run.trainer.fit("narrow", pruned, training.FUSED, 0.5)
    return pruned


def uncut(run: Run) -> nn.Module:
    """What a cut network is compared with: the whole one, trained for as long."""
    run.trainer.fit("fine-tune", run.network, training.FOAD_FINE)
    return run.network


def magnitude(run: Run) -> nn.Module:
    """One cut by the L1 norm of filters, then fine-tuning."""
    return _tuned(run, run.compile(run.network, Magnitude(1, "producer")))


def auto(run: Run) -> nn.Module:
    """What ``compile`` does of itself with calibration, the reconstruction included, then fine-tuning."""
    images = run.trainer.images.calibration(training.RECONSTRUCTED_FROM)
    return _tuned(run, run.note(fxprune.compile(run.network, run.sample, run.ratio, calibration=images, round_to=1)))


def torch_pruning(run: Run) -> nn.Module:
    """Another library's cut by distances from the geometric median, its best one here, then fine-tuning."""
    cut, _ = rivals.pruned(run.network, "fpgm", run.ratio, run.trainer.images.calibration(128))
    return _tuned(run, run.note(cut))


def _tuned(run: Run, pruned: nn.Module) -> nn.Module:
    run.trainer.fit("fine-tune", pruned, training.FOAD_FINE)
    return pruned


def _settings(run: Run) -> str:
    """Whose settings of a criterion a network takes: a CIFAR ResNet of any depth those of ResNet-56."""
    return "ResNet-56" if run.model.startswith("cifar_resnet") else run.model


METHODS: Mapping[str, Callable[[Run], nn.Module]] = {
    "multi_source": multi_source,
    "entropy": lambda run: sparse_then(run, criterion_for("entropy", _settings(run))),
    "parallel": lambda run: sparse_then(run, criterion_for("parallel", _settings(run))),
    "filter_similarity_hard": filter_similarity_hard,
    "filter_similarity_soft": filter_similarity_soft,
    "filter_similarity_soft_tuned": filter_similarity_soft_tuned,
    "foad": foad,
    "apbm": apbm,
    "train_then_prune": train_then_prune,
    "slimming": lambda run: sparse_then(run, "slimming"),
    "polarization": polarization,
    "hrank": lambda run: _tuned(run, run.compile(run.network, "hrank")),
    "uncut": uncut,
    "magnitude": magnitude,
    "auto": auto,
    "torch_pruning": torch_pruning,
}

FROM_SCRATCH = ("apbm", "train_then_prune")


# Networks whose published pruning lets every layer select its inputs from a stream that keeps its width.
_SELECTING = ("ResNet-164", "DenseNet-40")


@dataclass
class Run:
    """One method on one network.

    Attributes:
        model: the network's name.
        network: at full width; trained, or freshly initialised where a method trains from scratch.
        trainer: with the data.
        ratio: fraction of the MACs that goes.
        before: accuracy of the trained network before anything was done; None where training begins from scratch.
        cut: accuracy right after channels went, for the last time.
        recover: of ``fxprune.compile``; None as in the papers, which train what was cut as it is.
    """

    model: str
    network: nn.Module
    trainer: Trainer
    ratio: float
    before: float | None = None
    cut: float | None = None
    recover: str | None = None

    @property
    def segments(self) -> bool:
        """Whether the network labels pixels. Nearly all of such a network may lie in its residual streams."""
        return isinstance(self.trainer.images, Masks)

    @property
    def sample(self) -> Tensor:
        """An input."""
        return self.trainer.images.sample

    def compile(self, network: nn.Module, criterion: Any) -> nn.Module:
        """One-shot pruning on 128 training images, inside the residual blocks where the papers classify images."""
        pruned = fxprune.compile(
            network,
            self.sample,
            self.ratio,
            criterion=criterion,
            calibration=self.trainer.images.calibration(128),
            residual="coupled" if self.segments else "inner",
            round_to=1,
            recover=self.recover,
            couplings="drop" if self.model in _SELECTING else "keep",
        )
        return self.note(pruned)

    def note(self, pruned: nn.Module) -> nn.Module:
        """Keep the accuracy of a network that has just been cut."""
        self.cut = self.trainer.images.accuracy(pruned)
        return pruned
