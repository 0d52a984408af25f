"""Rewriting: the smaller network is written as a new graph over new tensors."""

from fxprune.rewriting.pruned_module import PrunedGraphModule
from fxprune.rewriting.rewriter import Certificate, certified, node_keep, rewrite

__all__ = ["Certificate", "PrunedGraphModule", "certified", "node_keep", "rewrite"]
