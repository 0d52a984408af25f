"""Which rules, neighbouring rules and cases of the axis algebra many networks reach together."""

from __future__ import annotations

import functools
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fxprune.analysis.analyzer import Analyzer
from fxprune.axes.solver import Solver
from fxprune.rules.registry import rule_names

# What the solver does where two forms meet: each is a method of it.
CASES = (
    "_bind _fix _unify_products _unify_ragged_products _unify_without_common_outer _unify_concats "
    "_unify_product_concat _unify_periodic _unify_elements _in_runs _cross _split _split_product _refine _cut _factor"
).split()


@dataclass
class Reach:
    """Counts over all analyses made while it is installed.

    Attributes:
        networks: how many analyses.
        rules: how often each name of the rules table was met.
        pairs: how often one rule read the result of another, by the names of both.
        cases: how often each case of the axis algebra was met.
        neighbours: what became of the network that was made for a pair of rules.
    """

    networks: int = 0
    rules: Counter[str] = field(default_factory=Counter)
    pairs: Counter[str] = field(default_factory=Counter)
    cases: Counter[str] = field(default_factory=Counter)
    neighbours: dict[str, str] = field(default_factory=dict)

    def install(self) -> None:
        """Count from now on, in this process."""
        _after(Analyzer, "run", self._count)
        for case in CASES:
            _after(Solver, case, functools.partial(self._count_case, case))

    def _count(self, analyzer: Analyzer) -> None:
        self.networks += 1
        for node, call in analyzer.calls.items():
            self.rules[call.name] += 1
            before = (analyzer.calls[n] for n in node.all_input_nodes if n in analyzer.calls)
            self.pairs.update(f"{previous.name} > {call.name}" for previous in before)

    def _count_case(self, case: str, _: Solver) -> None:
        self.cases[case] += 1

    def save(self, path: Path) -> None:
        """Write the counts as JSON."""
        path.write_text(json.dumps(vars(self), indent=1, sort_keys=True), encoding="utf-8")

    def merge(self, path: Path) -> None:
        """Add the counts that another run wrote."""
        data = json.loads(path.read_text(encoding="utf-8"))
        self.networks += data["networks"]
        for name in ("rules", "pairs", "cases", "neighbours"):
            getattr(self, name).update(data.get(name, {}))

    def missing(self) -> list[str]:
        """Rules that no network has reached."""
        return [name for name in rule_names() if name not in self.rules]

    def __str__(self) -> str:
        known = rule_names()
        rules = f"{sum(name in self.rules for name in known)} of {len(known)} rules, {len(self.pairs)} pairs"
        return f"{self.networks} analyses reached {rules}; cases: {dict(sorted(self.cases.items()))}"


def _after(owner: type, name: str, action: Callable[[Any], None]) -> None:
    original = getattr(owner, name)

    @functools.wraps(original)
    def wrapped(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(self, *args, **kwargs)
        action(self)
        return result

    setattr(owner, name, wrapped)
