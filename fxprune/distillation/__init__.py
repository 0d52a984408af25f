"""Distillation: trains a pruned network to match the outputs of the network that it was cut from.

The loss is the divergence between the outputs of the two; it needs no labels, and is zero if the outputs are equal:

>>> import torch
>>> from fxprune.distillation import SoftTargets
>>> teacher = torch.tensor([[2.0, 0.0, 0.0]])
>>> soft = SoftTargets(temperature=1.0)(torch.zeros(1, 3), teacher, None)["soft"]
>>> wanted = torch.softmax(teacher, 1)
>>> torch.isclose(soft, (wanted * (wanted.log() - torch.tensor(1 / 3).log())).sum())
tensor(True)
>>> SoftTargets()(teacher, teacher, None)["soft"]
tensor(0.)
"""

from fxprune.distillation.distilling import distill
from fxprune.distillation.hints import Hint
from fxprune.distillation.options import Distilled, SoftTargets

__all__ = ["Distilled", "Hint", "SoftTargets", "distill"]
