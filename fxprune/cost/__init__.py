"""The costs of a network as functions of its widths: multiply-accumulates, parameters, memory, seconds.

>>> import torch, fxprune
>>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2)).eval()
>>> graph = fxprune.analyze(net, torch.randn(1, 4))
>>> from fxprune.cost.budgets import budget_model
>>> macs = budget_model(graph, "macs")  # 4 x 8 and 8 x 2
>>> macs.full, macs.total({graph.groups[0].variable: 5})
(48.0, 30.0)
"""
