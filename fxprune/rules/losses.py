"""Losses computed inside the forward: what they compare keeps its size."""

from __future__ import annotations

from fxprune.rules.call import Call
from fxprune.rules.registry import rule

_LOSSES = """
    binary_cross_entropy binary_cross_entropy_with_logits cosine_embedding_loss cross_entropy
    hinge_embedding_loss huber_loss kl_div l1_loss margin_ranking_loss mse_loss multi_margin_loss multilabel_margin_loss
    multilabel_soft_margin_loss nll_loss poisson_nll_loss smooth_l1_loss soft_margin_loss triplet_margin_loss
"""


@rule(_LOSSES, "input")
def loss(call: Call) -> None:
    call.pin_inputs("a loss compares it")
    call.output_fixed("it is a loss")
