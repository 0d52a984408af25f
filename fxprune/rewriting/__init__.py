"""Rewriting: the smaller network is written as a new graph over new tensors."""

from fxprune.rewriting.pruned_module import UNTRACED_TRAINING
from fxprune.rewriting.rewriter import node_keep, rewrite

__all__ = ["UNTRACED_TRAINING", "node_keep", "rewrite"]
