"""The proof node by node: the rewritten graphs against the captured ones, op for op."""

from fxprune.proof.nodes.pairs import Pair
from fxprune.proof.nodes.structure import Step, check_structure, matched

__all__ = ["Pair", "Step", "check_structure", "matched"]
