"""Planning: scores and a budget in, the channels that stay out."""

from fxprune.cost.budgets import budget_model, known_budgets
from fxprune.planning.allocating import allocate
from fxprune.planning.plan import Plan

BUDGETS = known_budgets()

__all__ = ["BUDGETS", "Plan", "allocate", "budget_model"]
