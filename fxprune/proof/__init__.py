"""Translation validation: proof that a pruned network is the original without its removed channels.

>>> import torch, fxprune
>>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2)).eval()
>>> fxprune.report(fxprune.compile(net, torch.randn(1, 4), 0.5)).proof.relative_error < 1e-11
True
"""

from fxprune.proof.nodes import Pair, UnjudgedError, check_structure, prove_nodes
from fxprune.proof.proving import Proof, prove

__all__ = ["Pair", "Proof", "UnjudgedError", "check_structure", "prove", "prove_nodes"]
