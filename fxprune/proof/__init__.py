"""Translation validation: proof that a pruned network is the original without its removed channels."""

from fxprune.proof.nodes import Pair, check_structure
from fxprune.proof.proof import Proof
from fxprune.proof.proving import prove

__all__ = ["Pair", "Proof", "check_structure", "prove"]
