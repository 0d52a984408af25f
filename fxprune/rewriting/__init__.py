"""Writes the smaller network as a new graph over new tensors.

>>> import torch, fxprune
>>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2)).eval()
>>> graph = fxprune.analyze(net, torch.randn(1, 4))
>>> from fxprune.rewriting import rewrite
>>> keep = {graph.groups[0].variable: torch.arange(8).numpy() < 3}
>>> rewrite(graph, net, keep).get_submodule("2")
Linear(in_features=3, out_features=2, bias=True)
"""

from fxprune.rewriting.pruned_module import PrunedGraphModule, carried
from fxprune.rewriting.rewriter import Certificate, node_keep, rewrite, rewrite_certified

__all__ = ["Certificate", "PrunedGraphModule", "carried", "node_keep", "rewrite", "rewrite_certified"]
