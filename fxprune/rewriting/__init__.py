"""Rewriting: the smaller network is written as a new graph over new tensors."""

from fxprune.rewriting.rewriter import node_keep, rewrite

__all__ = ["node_keep", "rewrite"]
