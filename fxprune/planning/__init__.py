"""Planning: scores and a budget in, the channels that stay out."""

from fxprune.cost.budgets import BUDGETS, PlannedGraph, budget_model
from fxprune.planning.allocating import allocate
from fxprune.planning.plan import Plan

__all__ = ["BUDGETS", "Plan", "PlannedGraph", "allocate", "budget_model"]
