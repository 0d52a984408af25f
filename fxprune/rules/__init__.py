"""Rules: one file per op family. Importing the package registers all of them.

>>> from fxprune.rules.registry import has_rule
>>> has_rule("conv2d"), has_rule("an_op_of_tomorrow")
(True, False)
"""

from fxprune.rules import (  # noqa: F401  importing these modules registers their rules
    indexing,
    joining,
    linear,
    normalization,
    padding,
    picking,
    pointwise,
    recurrent,
    reductions,
    reshaping,
    windows,
)
from fxprune.rules.registry import find_module_form, find_rule, has_rule, is_leaf, rule_names

__all__ = ["find_module_form", "find_rule", "has_rule", "is_leaf", "rule_names"]
