"""What a proof found."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Proof:
    """The outcome of a translation validation that did not fail.

    Attributes:
        method: "masked" (outputs equal the original with removed entries set to zero), "nan-carrying" (equal the
            original evaluated over the kept entries only), or "skipped".
        relative_error: the worst over all comparisons, relative to the largest absolute value of the reference.
        tolerance: the largest relative error that would have passed.
        dtype: the floating type of the comparison, such as "float64".
        batch_sizes: sizes of dim 0 that were run; empty where the inputs share no batch dim.
        resolutions: height x width of the image-like inputs that were run.
        tensors_checked: parameters and buffers compared bit for bit.
        vacuous: the removed entries had no measurable effect, so equal outputs say little.
        randomised: parameters were also randomised, to see the effect of all of them.
        notes: what else a reader should know, a sentence each.
        seconds: wall-clock time of the proof.
        diverges: where, at another resolution or length, the traced network computes something else than the original
            instead of refusing; empty where it does not.
        nodes: how many nodes were judged by themselves; 0 where whole networks were compared.
        device: where it ran.
    """

    method: str
    relative_error: float
    tolerance: float
    dtype: str
    batch_sizes: tuple[int, ...]
    resolutions: tuple[str, ...]
    tensors_checked: int
    vacuous: bool
    randomised: bool
    notes: tuple[str, ...]
    seconds: float
    diverges: str = ""
    nodes: int = 0
    device: str = "cpu"

    def joined(self, other: Proof) -> Proof:
        """Both as one, where ``other`` is that of the same networks on inputs of other sizes."""
        where = f"on images of {', '.join(other.resolutions)}: "
        return replace(
            self,
            relative_error=max(self.relative_error, other.relative_error),
            batch_sizes=tuple(sorted({*self.batch_sizes, *other.batch_sizes})),
            resolutions=tuple(dict.fromkeys((*self.resolutions, *other.resolutions))),
            notes=(*self.notes, *(f"{where}{note}" for note in other.notes if note not in self.notes)),
            seconds=self.seconds + other.seconds,
        )

    def as_dict(self) -> dict[str, Any]:
        """The same as plain JSON values."""
        values = asdict(self)
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
