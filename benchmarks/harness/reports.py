"""The numbers of a report that tables show."""

from __future__ import annotations

from typing import Any

from fxprune import Report

REPORT_COLUMNS = """
    macs_g parameters_m asked macs_removed parameters_removed proof proof_error vacuous batches resolutions pinned
    opaque compile_s proof_s
""".split()


def report_fields(report: Report) -> dict[str, Any]:
    """A value for each of ``REPORT_COLUMNS``: sizes of the original, fractions removed, the proof, counts, seconds."""
    proof = report.proof
    seconds = dict(report.seconds)
    proof_seconds = seconds.pop("verify", None)
    return {
        "macs_g": report.macs_before / 1e9,
        "parameters_m": report.parameters_before / 1e6,
        "asked": report.ratio,
        "macs_removed": _removed(report.macs_before, report.macs_after),
        "parameters_removed": _removed(report.parameters_before, report.parameters_after),
        "proof": proof.method if proof else report.unproven,
        "proof_error": proof.relative_error if proof else None,
        "vacuous": proof.vacuous if proof else None,
        "batches": " ".join(map(str, proof.batch_sizes)) if proof else "",
        "resolutions": " ".join(proof.resolutions) if proof else "",
        "pinned": len(report.pinned),
        "opaque": ", ".join(dict.fromkeys(row.name for row in report.opaque)),
        "compile_s": sum(seconds.values()),
        "proof_s": proof_seconds,
    }


def _removed(before: float, after: float) -> float:
    return 1 - after / before if before else 0.0
