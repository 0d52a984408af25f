"""Rewriting: the smaller network is written as a new graph over new tensors."""

from fxprune.rewriting.rewriter import rewrite

__all__ = ["rewrite"]
