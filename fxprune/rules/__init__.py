"""Rules: one op family a file. Importing the package registers all of them."""

from fxprune.rules import (
    convolution,
    cutting,
    embedding,
    factories,
    indexing,
    joining,
    linear,
    normalization,
    pointwise,
    recurrent,
    reductions,
    reparametrization,
    repeating,
    reshaping,
    windows,
)
from fxprune.rules.registry import find_module_form, find_rule, has_rule, is_leaf, rule_names

__all__ = [
    "convolution",
    "cutting",
    "embedding",
    "factories",
    "find_module_form",
    "find_rule",
    "has_rule",
    "indexing",
    "is_leaf",
    "joining",
    "linear",
    "normalization",
    "pointwise",
    "recurrent",
    "reductions",
    "reparametrization",
    "repeating",
    "reshaping",
    "rule_names",
    "windows",
]
