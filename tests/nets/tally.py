"""Counts over many drawn networks, so that refusing is seen and does not pass for success."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass
class Tally:
    """Successes among attempts, why the others failed, what was compared, and what results refused to run on."""

    what: str
    done: int = 0
    asked: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    runs: Counter[str] = field(default_factory=Counter)
    compared: Counter[str] = field(default_factory=Counter)

    def add(self, done: int, asked: int = 1, reason: str = "") -> None:
        """Count ``done`` successes among ``asked`` attempts."""
        self.done += done
        self.asked += asked
        if done < asked:
            self.reasons[reason or "not done"] += asked - done

    @property
    def rate(self) -> float:
        """The share of successes; 1 where nothing was asked."""
        return self.done / self.asked if self.asked else 1.0

    def __str__(self) -> str:
        why = "".join(f"\n  {count} x {reason}" for reason, count in self.reasons.most_common(8))
        return f"{self.what}: {self.rate:.1%} ({self.done} of {self.asked}){why}"
