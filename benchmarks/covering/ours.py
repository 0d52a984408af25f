"""One network, compiled, proven and tried out."""

from __future__ import annotations

import math
from typing import Any

from torch import fx

import fxprune
from benchmarks.checks import follows_batch, train_one_step
from benchmarks.covering.shares import shares_left_by_uniform_plan
from benchmarks.harness.failures import failure_text
from benchmarks.harness.processes import Outcome, Record
from benchmarks.harness.reports import REPORT_COLUMNS, report_fields
from benchmarks.networks import Network, find_network, with_images_of
from fxprune.errors import BudgetError, ProofError

COLUMNS = ["model", "pruned", "equal", *REPORT_COLUMNS, "share_left", "share_left_all", "in_the_way", "other_batch"]
COLUMNS += ["parameters_trained", "seconds", "peak_mib", "failure"]


def cover(record: Record, library: str, model: str, ratio: float, meta: bool, image_size: int) -> None:
    """One row: pruned at ``ratio`` of MACs (or as far as one can get), proven and trained a step unless on ``meta``."""
    network = find_network(library, model, meta=meta)
    if image_size:
        network = with_images_of(network, image_size)
    record(asked=ratio)
    pruned = _compiled(record, network, ratio)
    record(pruned=True)
    if not meta:  # before the original runs, which may leave hooks on itself
        record(**shares_left_by_uniform_plan(network.model, network.sample))
    record(other_batch=follows_batch(network.model, pruned, network.sample))
    if not meta:
        record(parameters_trained=train_one_step(pruned, network.training_sample))


def _compiled(record: Record, network: Network, ratio: float) -> fx.GraphModule:
    try:
        return _proven(record, network, ratio)
    except BudgetError as error:
        if not error.reachable:
            raise
        record(in_the_way=", ".join(error.pinned))
        # Just below what the message calls reachable, whose digits are rounded.
        return _proven(record, network, math.floor(error.reachable * 1000) / 1000)


def _proven(record: Record, network: Network, ratio: float) -> fx.GraphModule:
    """Compile with the proof; where that fails, say so and go on with the unproven network."""
    try:
        pruned = fxprune.compile(network.model, network.sample, ratio)
    except ProofError as error:
        record(equal=f"no: {failure_text(error)}", failure=failure_text(error))
        pruned = fxprune.compile(network.model, network.sample, ratio, verify=False)
    report = fxprune.report(pruned)
    record(**{name: value for name, value in report_fields(report).items() if name != "asked"})
    if report.proof is not None:
        record(equal="vacuous" if report.proof.vacuous else "yes")
    return pruned


def cover_row(outcome: Outcome) -> dict[str, Any]:
    """The cells of one outcome."""
    fields = outcome.fields
    other_batch = str(fields.get("other_batch", ""))
    failure = outcome.failure or (other_batch if other_batch.startswith("no") else "")
    measured = {"seconds": outcome.seconds, "peak_mib": round(outcome.peak_mib), "failure": failure}
    return {"pruned": False} | fields | measured
