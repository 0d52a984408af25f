"""Translation validation: proof that a pruned network is the original without its removed channels."""

from .nodes import Pair, check_structure
from .proof import Proof
from .proving import prove

__all__ = ["Pair", "Proof", "check_structure", "prove"]
