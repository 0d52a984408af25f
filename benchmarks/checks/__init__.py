"""What a pruned network must still do: train, and take another batch size or resolution where the original does."""

from benchmarks.checks.running import follows_batch, follows_resolution
from benchmarks.checks.training import TrainingStepError, train_one_step

__all__ = ["TrainingStepError", "follows_batch", "follows_resolution", "train_one_step"]
