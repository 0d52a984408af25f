"""The pruned network as a copy of the user's model, of its own class: what ``keep_class=True`` gives."""

from fxprune.keeping.configuring import Solution, finish, solve, unsaid, without_unsaid
from fxprune.keeping.fitting import Held, Rules, fitted, in_words
from fxprune.keeping.running import check_without_loss, give_values

__all__ = [
    "Held",
    "Rules",
    "Solution",
    "check_without_loss",
    "finish",
    "fitted",
    "give_values",
    "in_words",
    "solve",
    "unsaid",
    "without_unsaid",
]
