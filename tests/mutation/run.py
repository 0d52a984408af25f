"""Run the faults one after another and count what notices them.

    python -m tests.mutation.run --out results.jsonl

For each fault, on networks that reach the faulty function: does the pass refuse, does the proof refuse, and where a
network is returned, does it still compute what the oracles say? Then, is there a test that fails? The folder of tests
has to lie beside the benchmarks.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import fxprune
from fxprune.errors import ProofError
from fxprune.planning import Plan
from tests.mutation.faults import FAULTS, Fault
from tests.nets.blocks.composite import copied, padded_shortcut, regrouped, shuffled
from tests.nets.blocks.crossed import CROSSED, FAULTS_SHOW
from tests.nets.kept import InconsistentKeepError
from tests.nets.oracles import narrow_twin
from tests.nets.specification import Specification
from tests.nets.strategy import random_specification, single_block
from tests.nets.tally import Tally
from tests.nets.values import in_double, relative_error
from tests.rules.cases import Case
from tests.rules.corpus import CASES
from tests.rules.oracles import TOLERANCE, Kept, difference, masked, random_plan
from tests.rules.prepared import analysed, built, sampled
from tests.rules.test_corpus import test_random_prunes_equal_the_oracle
from tests.test_random_nets import check_network

SEEDS = (3, 12, 27, 41, 66, 90)
TESTS = {
    "axes": ["tests/axes", "tests/test_groups.py", "tests/test_groups_against_brute_force.py"],
    "rules": ["tests/test_crossings.py", "tests/test_sizes.py", "tests/test_rewriting.py"],
    "rewriting": ["tests/test_rewriting.py", "tests/test_untouched.py", "tests/test_public_face.py"],
    "planning": ["tests/planning", "tests/test_random_nets.py"],
}


def reached(fault: Fault, most: int) -> list[Case]:
    """Networks of the corpus that the fault names, evenly taken."""
    found = [case for case in CASES if case.name.startswith(tuple(fault.cases.split("|")))]
    return found[:: max(1, -(-len(found) // most))]


def right(case: Case, net: nn.Module, plan: Plan, pruned: nn.Module) -> bool | None:
    """Whether the outputs are those of the oracle; None where no narrower network can be worked out by hand."""
    kept, args = Kept(plan), sampled(case, 5)
    oracles: list[Callable[[], Any]] = [lambda: masked(net, plan)(*args)]
    if case.narrow is not None:
        narrow = case.narrow
        oracles = [lambda: narrow(net, kept, args)]
    with torch.no_grad():
        try:
            expected = oracles[0]()
        except Exception:
            return None
        try:
            return difference(expected, pruned(*args)) < TOLERANCE
        except Exception:
            return False


BLOCKS = (*CROSSED, *FAULTS_SHOW, regrouped, shuffled, padded_shortcut, copied)


def on_specification(specification: Specification, seed: int) -> str:
    """What becomes of an arbitrary network under a fault."""
    model, sample = specification.build().double(), in_double(specification.sample(2))
    try:
        with limited(6):
            graph = fxprune.analyze(model, sample)
            plan = random_plan(graph, seed)
            pruned = fxprune.apply(model, sample, plan, verify=False)
            proven = is_proven(model, sample, plan)
    except HangError:
        return "hangs"
    except Exception:
        return "refused before the proof"
    return described(proven, equals_oracle(specification, model, plan, pruned))


def is_proven(model: nn.Module, sample: Any, plan: Plan) -> bool:
    """Whether the proof lets the network pass."""
    try:
        fxprune.apply(model, sample, plan)
    except ProofError:
        return False
    return True


def equals_oracle(specification: Specification, model: nn.Module, plan: Plan, pruned: nn.Module) -> bool | None:
    """Whether outputs are those of the narrow twin, or of the masked original where there is no narrower network."""
    inputs = in_double(specification.sample(3, seed=3))
    try:
        oracle = narrow_twin(specification, model, plan.keep)
    except InconsistentKeepError:
        if not specification.masking_is_exact():
            return None
        oracle = masked(model, plan)
    try:
        return relative_error(pruned(*inputs), oracle(*inputs)) < TOLERANCE
    except Exception:
        return False


def described(proven: bool, answer: bool | None) -> str:
    """An outcome in words."""
    if proven:
        return {True: "right and proven", False: "WRONG AND PROVEN", None: "proven, no oracle"}[answer]
    return "right and refused by the proof" if answer else "wrong and refused by the proof"


class HangError(BaseException):
    """A fault that never comes to an end."""


@contextlib.contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Stop what takes more than so many seconds of the processor."""

    def stop(*_: Any) -> None:
        raise HangError

    signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def on_network(case: Case, seed: int = 0) -> str:
    """What becomes of one network under a fault."""
    try:
        with limited(6):
            return _on_network(case, seed)
    except HangError:
        return "hangs"


def _on_network(case: Case, seed: int) -> str:
    net, sample = built(case), sampled(case, 2)
    try:
        graph = fxprune.analyze(net, sample)
        plan = random_plan(graph, seed)
        pruned = fxprune.apply(net, sample, plan, verify=False)
    except Exception:
        return "refused before the proof"
    try:
        proven = is_proven(net, sample, plan)
    except Exception:
        return "refused before the proof"
    return described(proven, right(case, net, plan, pruned))


def noticed_in_corpus(fault: Fault) -> Case | None:
    """The first network of the corpus whose test fails."""
    for case in reached(fault, 150):
        analysed.cache_clear()
        try:
            with limited(6):
                test_random_prunes_equal_the_oracle(case)
        except BaseException:
            return case
    return None


def noticed_elsewhere(fault: Fault) -> str:
    """Which other part of the suite fails, or an empty text."""
    for seed in SEEDS:
        tally = Tally("compiled")
        try:
            with limited(20):
                check_network(random_specification(seed), 0.5, tally)
        except BaseException:
            return f"arbitrary network {seed}"
        if tally.done < tally.asked:
            return f"arbitrary network {seed} refused"
    for file in TESTS[fault.place.partition(".")[0]]:
        with contextlib.redirect_stdout(io.StringIO()):
            code = pytest.main(["-x", "-q", "-o", "addopts=", "-p", "no:cacheprovider", "-p", "no:xdist", file])
        if code not in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
            return file
    return ""


def run(fault: Fault) -> dict[str, Any]:
    """One fault's outcome."""
    began = time.monotonic()
    with fault.applied():
        outcomes = Counter(on_network(case) for case in reached(fault, 4))
        case = noticed_in_corpus(fault)
        outcomes.update(on_network(case, seed) for seed in (0, 1) if case is not None)
        test = noticed_elsewhere(fault) if case is None else f"corpus: {case.name}"
    analysed.cache_clear()
    return {"fault": str(fault), "outcomes": dict(outcomes), "test": test, "seconds": round(time.monotonic() - began)}


def run_blocks(fault: Fault) -> dict[str, Any]:
    """One fault's outcome on arbitrary networks of one block."""
    with fault.applied():
        outcomes = Counter(on_specification(single_block(4, block, seed), seed) for block in BLOCKS for seed in (1, 2))
    return {"fault": str(fault), "outcomes": dict(outcomes)}


def main() -> None:
    """Run all faults, or those from a number on."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--only", default="", help="faults whose text holds this")
    parser.add_argument("--blocks", action="store_true", help="the proof alone, on arbitrary networks of one block")
    given = parser.parse_args()
    torch.set_num_threads(1)
    chosen = [fault for fault in FAULTS[given.first :] if given.only in str(fault)]
    with given.out.open("a", encoding="utf-8") as file:
        for fault in chosen:
            line = run_blocks(fault) if given.blocks else run(fault)
            file.write(json.dumps(line) + "\n")
            file.flush()
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
