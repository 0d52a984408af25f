"""Rewriting: the smaller network is written as a new graph over new tensors."""

from fxprune.rewriting.pruned_module import UNTRACED_TRAINING, PrunedGraphModule
from fxprune.rewriting.rewriter import Certificate, certified, node_keep, rewrite

__all__ = ["UNTRACED_TRAINING", "Certificate", "PrunedGraphModule", "certified", "node_keep", "rewrite"]
