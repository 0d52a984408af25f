"""Translation validation: proof that a pruned network is the original without its removed channels."""

from fxprune.proof.nodes import Pair, UnjudgedError, check_structure, prove_nodes
from fxprune.proof.proof import Proof
from fxprune.proof.proving import prove

__all__ = ["Pair", "Proof", "UnjudgedError", "check_structure", "prove", "prove_nodes"]
