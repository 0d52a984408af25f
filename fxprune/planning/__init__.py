"""Planning: chooses the channels to keep from scores and a budget.

>>> import torch, fxprune
>>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2)).eval()
>>> graph = fxprune.analyze(net, torch.randn(1, 4))
>>> from fxprune.planning import allocate
>>> scores = {graph.groups[0]: torch.tensor([3.0, 1, 4, 1, 5, 9, 2, 6]).numpy()}
>>> allocate(graph, scores, ratio=0.5)[graph.groups[0]].tolist()
[False, False, True, False, True, True, False, True]
"""

from fxprune.cost.budgets import budget_model, known_budgets
from fxprune.planning.allocating import allocate
from fxprune.planning.plan import Plan

BUDGETS = known_budgets()

__all__ = ["BUDGETS", "Plan", "allocate", "budget_model"]
