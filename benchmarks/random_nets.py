"""Arbitrary networks by the thousand: each is compiled, proven, and compared with its oracles; failures are kept.

    python -m benchmarks.random_nets --nets 20000 --out DIR

The network of a seed is always the same. A run that was stopped goes on where it was: DIR holds one line for every
hundred seeds, the source of every network that failed, and the counts of rules reached. Needs the tests beside it.
"""

from __future__ import annotations

import argparse
import json
import time
import traceback
import warnings
from pathlib import Path

import torch

from tests.nets.blocks.crossed import CROSSED
from tests.nets.reach import Reach
from tests.nets.specification import Specification
from tests.nets.strategy import random_specification, single_block
from tests.nets.tally import Tally
from tests.rules.chains import links, random_chain
from tests.rules.test_chains import check_chain
from tests.test_random_nets import check_network

CHUNK = 100


def arguments() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nets", type=int, default=20_000, help="how many seeds")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--out", type=Path, required=True, help="folder of results; a run that was stopped goes on")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after this long")
    return parser.parse_args()


def done_before(record: Path) -> int:
    """How many chunks the record holds."""
    return len(record.read_text(encoding="utf-8").splitlines()) if record.exists() else 0


def check_seed(seed: int, tally: Tally, folder: Path) -> bool:
    """Whether the network of a seed passes; one that fails is written down with what was raised.

    Every third one is a chain of ops of the corpus, the others are of the strategy.
    """
    text = ""
    try:
        if seed % 3 == 2:
            layout, ops, branches = random_chain(seed)
            text = f"{[links(layout)[number].name for number in ops]}, branches {branches}"
            check_chain(layout, ops, branches, seed % 100, tally)
        else:
            specification, share = drawn(seed), (1 + seed % 19) / 20
            options: dict[str, str] = {"scope": "uniform"} if seed % 4 == 3 else {}
            text = f"share {share}, {options}\n{specification!r}"
            check_network(specification, share, tally, **options)
    except Exception:
        report = f"# seed {seed}, {text}\n'''\n{traceback.format_exc()}\n'''\n"
        (folder / f"failed_{seed}.py").write_text(report, encoding="utf-8")
        return False
    return True


def drawn(seed: int) -> Specification:
    """The network of a seed: of the whole strategy, or one block in which views cross."""
    if seed % 12 == 1:
        return single_block(4, CROSSED[seed // 12 % len(CROSSED)], seed)
    return random_specification(seed)


def run_chunk(seeds: range, folder: Path) -> dict[str, object]:
    """The counts of a hundred seeds."""
    tally = Tally("compiled")
    began = time.monotonic()
    failed = [seed for seed in seeds if not check_seed(seed, tally, folder)]
    return {
        "first": seeds[0],
        "nets": len(seeds),
        "asked": tally.asked,
        "compiled": tally.done,
        "refused": dict(tally.reasons),
        "failed": failed,
        "seconds": round(time.monotonic() - began, 1),
    }


def main() -> None:
    """Run the seeds that are left, a hundred at a time."""
    given = arguments()
    given.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    record, counts, reach = given.out / "record.jsonl", given.out / "reach.json", Reach()
    if counts.exists():
        reach.merge(counts)
    reach.install()
    began = time.monotonic()
    for start in range(given.first + CHUNK * done_before(record), given.first + given.nets, CHUNK):
        if time.monotonic() - began > given.seconds:
            break
        line = run_chunk(range(start, min(start + CHUNK, given.first + given.nets)), given.out)
        with record.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        reach.save(counts)
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
