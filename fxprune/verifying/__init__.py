"""Translation validation: proof that a pruned network is the original without its removed channels."""

from .proof import Proof
from .proving import prove

__all__ = ["Proof", "prove"]
