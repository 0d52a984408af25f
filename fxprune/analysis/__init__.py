"""Finds a network's channel groups (channels that are removed together), the widths that stay, and the reasons.

>>> import torch, fxprune
>>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2)).eval()
>>> graph = fxprune.analyze(net, torch.randn(1, 4))
>>> [(group.name, group.size) for group in graph.groups]
[('0', 8)]
>>> print(graph.explain("0", "2"))
0.weight dim 0
  = 2.weight dim 1, by 2
"""
