"""Arbitrary networks by the thousand: each is compiled, proven, and compared with its oracles; failures are kept.

    python -m tests.nets.at_scale --nets 20000 --out DIR     # networks by seed
    python -m tests.nets.at_scale --habits --out DIR         # networks with state, modes, hooks, caches, ... by seed
    python -m tests.nets.at_scale --each PATTERN --out DIR   # each habit alone, those whose name has PATTERN in it
    python -m tests.nets.at_scale --pairs --out DIR          # one network for each pair of rules
    python -m tests.nets.at_scale --describe --out DIR       # what was reached, in words

The network of a number is always the same. A run that was stopped goes on where it was: DIR holds one line for every
hundred numbers, the source of every network that failed, and the counts of rules reached. Needs the tests beside it.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import re
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from tests.nets.habits.drawing import singles
from tests.nets.judging import WrongError, judge
from tests.nets.reach import Reach
from tests.nets.reducing import RecordingChooser, ReplayingChooser, reduced
from tests.nets.specification import Specification
from tests.nets.strategy import random_specification, write_with_habits
from tests.nets.tally import Tally
from tests.rules import neighbours
from tests.rules.chains import random_chain
from tests.rules.test_chains import check_chain
from tests.test_random_nets import check_network

CHUNK = 100
# Checks and counts the network of a number.
Check = Callable[[int, Tally], None]


class FailedError(Exception):
    """A network that is wrong; the message is what it is, and the cause is what was raised."""


def arguments() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nets", type=int, default=20_000, help="how many seeds")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--habits", action="store_true", help="instead: networks with habits of real code, by seed")
    parser.add_argument("--each", metavar="PATTERN", help="instead: each habit alone whose name a pattern is found in")
    parser.add_argument("--pairs", action="store_true", help="instead of seeds: each pair of rules in turn")
    parser.add_argument("--describe", action="store_true", help="say what a folder's runs have reached, and stop")
    parser.add_argument("--out", type=Path, required=True, help="folder of results; a run that was stopped goes on")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after this long")
    return parser.parse_args()


def check_seed(seed: int, tally: Tally) -> None:
    """Check the network of a seed: every third one is a chain of ops of the corpus, the others are of the strategy."""
    text = ""
    try:
        if seed % 3 == 2:
            layout, cases, branches = random_chain(seed)
            text = f"{[case.name for case in cases]}, branches {branches}"
            check_chain(layout, cases, branches, seed % 100, tally)
        else:
            specification, share = random_specification(seed), (1 + seed % 19) / 20
            options: dict[str, str] = {"scope": "uniform"} if seed % 4 == 3 else {}
            text = f"share {share}, {options}\n{specification!r}"
            check_network(specification, share, tally, **options)
    except Exception as error:
        raise FailedError(text) from error


def failing_kind(specification: Specification, seed: int) -> str:
    """How the network fails, empty where it does not."""
    try:
        judge(specification, seed)
    except Exception as error:
        return error.kind if isinstance(error, WrongError) else type(error).__name__
    return ""


def habit_checker(most: int = 1) -> Check:
    """The check of a network with habits; the first ``most`` failures of a kind are reduced."""
    kinds: Counter[str] = Counter()

    def check(seed: int, tally: Tally) -> None:
        chooser = RecordingChooser(seed)
        specification = write_with_habits(chooser)
        kind = judged(specification, seed, tally)
        if not kind:
            return
        kinds[kind] += 1
        if kinds[kind] <= most:

            def fails(choices: Sequence[int]) -> bool:
                return failing_kind(write_with_habits(ReplayingChooser(choices)), seed) == kind

            specification = write_with_habits(ReplayingChooser(reduced(chooser.choices, fails)))
        raise_failure(specification, seed, kind)

    return check


def each_checker(chosen: Sequence[str]) -> Check:
    """The check of one habit alone, by its place among the chosen names."""

    def check(number: int, tally: Tally) -> None:
        specification = singles()[chosen[number]]()
        kind = judged(specification, number, tally)
        if kind:
            raise_failure(specification, number, f"{chosen[number]}: {kind}")

    return check


def judged(specification: Specification, seed: int, tally: Tally) -> str:
    """Count the verdict, in words without numbers and names; how the network fails, empty where it does not."""
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            verdict = judge(specification, seed)
    except Exception as error:
        return error.kind if isinstance(error, WrongError) else type(error).__name__
    plain = re.compile(r"<net \w+>|\d+|'[^']*'")
    tally.add(int(verdict.compiled), reason=plain.sub("*", verdict.reason)[:120])
    tally.compared.update(set(verdict.compared))
    tally.runs.update({plain.sub("*", reason)[:120] for reason in verdict.refused})
    return ""


def raise_failure(specification: Specification, seed: int, kind: str) -> None:
    """Raise what is wrong with the network, its source as the message."""
    try:
        judge(specification, seed)
    except Exception as error:
        said = "\n".join(f"# {line}" for line in f"{type(error).__name__}: {error}".splitlines()[:8])
        raise FailedError(f"{kind}\n{said}\n{specification!r}") from error
    raise FailedError(f"{kind}, the first time only\n{specification!r}")


def pair_checker(reach: Reach) -> Check:
    """The check of a pair of rules by its number; what becomes of it is noted in ``reach``, and not tried again."""

    def check(number: int, tally: Tally) -> None:
        first, second = neighbours.pairs()[number]
        key = f"{first} > {second}"
        if reach.neighbours.get(key) in ("compiled", "refused"):
            return
        fit = neighbours.fitting(first, second)
        if fit is None:
            reach.neighbours[key] = "no fit"
            return
        layout, cases = fit
        try:
            reach.neighbours[key] = check_chain(layout, cases, (False, False), number % 100, tally)
        except Exception as error:
            reach.neighbours[key] = "failed"
            raise FailedError(f"{key}: {[case.name for case in cases]}") from error

    return check


def run_chunk(numbers: range, check: Check, folder: Path, kind: str) -> dict[str, object]:
    """The counts of a hundred networks; one that fails is written down with what was raised."""
    tally, failed = Tally("compiled"), []
    kinds: Counter[str] = Counter()
    began = time.monotonic()
    for number in numbers:
        try:
            check(number, tally)
        except FailedError as error:
            failed.append(number)
            kinds[str(error).partition("\n")[0][:100]] += 1
            cause = traceback.format_exception(error.__cause__ or error)
            report = f"# {kind} {number}, {error}\n'''\n{''.join(cause)}\n'''\n"
            (folder / f"failed_{kind}_{number}.py").write_text(report, encoding="utf-8")
    return {
        "first": numbers[0],
        "nets": len(numbers),
        "asked": tally.asked,
        "compiled": tally.done,
        "refused": dict(tally.reasons),
        "refused to run": dict(tally.runs),
        "compared": dict(tally.compared),
        "failed": failed,
        "kinds": dict(kinds) if kind in ("habit", "each") else {},
        "seconds": round(time.monotonic() - began, 1),
    }


def run(numbers: range, check: Check, reach: Reach, kind: str, given: argparse.Namespace) -> None:
    """Check what is left of the numbers, a hundred at a time."""
    record = given.out / f"record_{kind}.jsonl"
    done = len(record.read_text(encoding="utf-8").splitlines()) if record.exists() else 0
    began = time.monotonic()
    for start in range(numbers.start + CHUNK * done, numbers.stop, CHUNK):
        if time.monotonic() - began > given.seconds:
            break
        line = run_chunk(range(start, min(start + CHUNK, numbers.stop)), check, given.out, kind)
        with record.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        reach.save(given.out / "reach.json")
        print(json.dumps(line), flush=True)


def describe(reach: Reach, folder: Path) -> str:
    """What the runs of a folder have reached."""
    lines = [str(reach)]
    for record in sorted(folder.glob("record_*.jsonl")):
        counts = [json.loads(line) for line in record.read_text(encoding="utf-8").splitlines()]
        names = ("nets", "asked", "compiled")
        sums = ", ".join(f"{name} {sum(line[name] for line in counts)}" for name in names)
        lines.append(f"{record.stem}: {sums}, failed {[n for line in counts for n in line['failed']]}")
    rules, outcomes = set(neighbours.same_rule().values()), Counter(reach.neighbours.values())
    lines.append(f"pairs of the {len(rules)} rules that differ: {dict(outcomes)} of {len(neighbours.pairs())}")
    lines += [f"rules that {what}: {', '.join(names)}" for what, names in neighbours.missing().items()]
    for outcome in ("no fit", "refused"):
        found = Counter(key.partition(" > ")[2] for key, value in reach.neighbours.items() if value == outcome)
        lines.append(f"{outcome}, by the second rule: {dict(found.most_common())}")
    return "\n".join(lines)


def main() -> None:
    """Run what the command line asks for."""
    given = arguments()
    given.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    reach = Reach()
    if (given.out / "reach.json").exists():
        reach.merge(given.out / "reach.json")
    if given.describe:
        print(describe(reach, given.out))
        return
    if given.pairs:
        numbers, check, kind = range(len(neighbours.pairs())), pair_checker(reach), "pair"
    elif given.each is not None:
        chosen = [name for name in singles() if re.search(given.each, name)]
        numbers, check, kind = range(len(chosen)), each_checker(chosen), "each"
    elif given.habits:
        numbers, check, kind = range(given.first, given.first + given.nets), habit_checker(), "habit"
    else:
        numbers, check, kind = range(given.first, given.first + given.nets), check_seed, "seed"
    reach.install()
    run(numbers, check, reach, kind, given)


if __name__ == "__main__":
    main()
