"""The faults on all networks that reach them: the corpus, chains of its ops, arbitrary and crossing ones.

    python -m tests.mutation.wide --out wide.jsonl [--faults FILE]

Which functions a network reaches is found once, by running it without a fault. Each fault is then tried on networks
that reach it, until one comes out wrong; the proof is asked about every one of them. A run that was stopped goes on
where it was. ``--faults``: results of
``tests.mutation.run``; faults under which a network came out wrong there are left out.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import torch

from fxprune.util.progress import Steps
from tests.mutation.faults import FAULTS, Fault
from tests.mutation.run import BLOCKS, on_network, on_specification
from tests.nets.strategy import random_specification, single_block
from tests.rules.cases import Case
from tests.rules.chains import chained, random_chain
from tests.rules.corpus import CASES

WRONG = ("wrong and refused by the proof", "WRONG AND PROVEN")
RIGHT = "right and proven"
MOST = 60
SEEDS = 2


@dataclass(frozen=True, eq=False)
class Network:
    """A network's name, and what becomes of it for the seed of a plan."""

    name: str
    outcome: Callable[[int], str]


def networks(arbitrary: int) -> list[Network]:
    """The corpus, chains, blocks and arbitrary networks."""
    found = [Network(f"corpus {case.name}", partial(on_network, case)) for case in CASES]
    found += [
        Network(f"block {block.__name__} {seed}", partial(on_specification, single_block(4, block, seed)))
        for block in BLOCKS
        for seed in range(12)
    ]
    for seed in range(arbitrary):
        found.append(Network(f"arbitrary {seed}", partial(on_specification, random_specification(seed))))
        chain = _chain_case(seed)
        found += [Network(chain.name, partial(on_network, chain))] if chain is not None else []
    return found


def _chain_case(seed: int) -> Case | None:
    layout, cases, branches = random_chain(seed)
    if chained(layout, cases, branches) is None:
        return None

    def build() -> Any:
        made = chained(layout, cases, branches)
        assert made is not None
        return made[0]

    return Case(f"chain {[case.name for case in cases]}", build, layout.sample)


@contextlib.contextmanager
def recording(codes: dict[CodeType, str]) -> Iterator[set[str]]:
    """The places of ``codes`` that are called inside."""
    called: set[str] = set()

    def note(frame: FrameType, event: str, _: Any) -> None:
        if event == "call" and frame.f_code in codes:
            called.add(codes[frame.f_code])

    sys.setprofile(note)
    try:
        yield called
    finally:
        sys.setprofile(None)


def reached(faults: list[Fault], among: list[Network]) -> dict[str, list[Network]]:
    """By the place of a fault the networks that call the function there, and are right without a fault."""
    codes = {fault.function().__code__: fault.place for fault in faults}
    found: dict[str, list[Network]] = defaultdict(list)
    with Steps() as steps:
        for network in steps.counted("reach", among, len(among)):
            with recording(codes) as called:
                outcome = network.outcome(0)
            for place in called if outcome == RIGHT else ():
                found[place].append(network)
    return found


def outcomes(fault: Fault, candidates: list[Network]) -> dict[str, Any]:
    """What becomes of the networks that reach a fault; the search ends with the first that comes out wrong."""
    counts: Counter[str] = Counter()
    first = ""
    with fault.applied():
        for network in candidates[:: max(1, -(-len(candidates) // MOST))]:
            for seed in range(SEEDS):
                outcome = network.outcome(seed)
                counts[outcome] += 1
                first = first or (network.name if outcome in WRONG else "")
            if first:
                break
    return {"fault": str(fault), "reached by": len(candidates), "outcomes": dict(counts), "wrong": first}


def survivors(results: Path | None) -> list[Fault]:
    """The faults under which no network came out wrong in earlier results; all of them without any."""
    if results is None:
        return list(FAULTS)
    lines = [json.loads(line) for line in results.read_text(encoding="utf-8").splitlines()]
    met = {line["fault"] for line in lines if set(WRONG) & line["outcomes"].keys()}
    return [fault for fault in FAULTS if str(fault) not in met]


def main() -> None:
    """Find what reaches which fault, then try the faults."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--faults", type=Path, default=None)
    parser.add_argument("--arbitrary", type=int, default=200, help="how many arbitrary networks and chains")
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    done = {json.loads(line)["fault"] for line in given.out.open(encoding="utf-8")} if given.out.exists() else set()
    faults = [fault for fault in survivors(given.faults) if str(fault) not in done]
    found = reached(faults, networks(given.arbitrary))
    with given.out.open("a", encoding="utf-8") as file:
        for fault in faults:
            line = outcomes(fault, found[fault.place])
            file.write(json.dumps(line) + "\n")
            file.flush()
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
