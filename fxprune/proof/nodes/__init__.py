"""The proof node by node: compares the rewritten graphs with the captured ones, op for op."""

from fxprune.proof.nodes.pairs import Pair, UnjudgedError
from fxprune.proof.nodes.proving import prove_nodes
from fxprune.proof.nodes.structure import check_structure

__all__ = ["Pair", "UnjudgedError", "check_structure", "prove_nodes"]
