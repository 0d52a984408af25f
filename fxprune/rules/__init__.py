"""Rules: one op family a file. Importing the package registers all of them."""

from fxprune.rules import (  # noqa: F401  importing them is what registers their rules
    convolution,
    cutting,
    einsum,
    embedding,
    factories,
    fourier,
    indexing,
    joining,
    linear,
    losses,
    normalization,
    packing,
    padding,
    picking,
    pointwise,
    recurrent,
    reductions,
    reparametrization,
    repeating,
    reshaping,
    rolling,
    selecting,
    vision,
    windows,
    writing,
)
from fxprune.rules.registry import find_module_form, find_rule, has_rule, is_leaf, rule_names

__all__ = ["find_module_form", "find_rule", "has_rule", "is_leaf", "rule_names"]
