"""What an export made and how it was checked."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["Exported"]


@dataclass(frozen=True)
class Exported:
    """A file that was run and compared with the network that it was made from.

    Attributes:
        path: the file, or the folder of the "source" format.
        format: "pt2", "onnx" or "source".
        dynamic: which sizes may change between calls: of "batch", "resolution" and "length" some or none.
        batch_sizes: the batch sizes that were run.
        resolutions: height x width of the image-like inputs that were run.
        relative_error: the largest difference to the pruned network, relative to the output's largest absolute value.
        tolerance: the largest that is accepted.
        notes: what a reader should know, such as why a size cannot change.
    """

    path: str
    format: str
    dynamic: tuple[str, ...]
    batch_sizes: tuple[int, ...]
    resolutions: tuple[str, ...]
    relative_error: float
    tolerance: float
    notes: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """JSON data."""
        return asdict(self)

    def __str__(self) -> str:
        sizes = f"batch {', '.join(map(str, self.batch_sizes))}" if self.batch_sizes else "the sample"
        if self.resolutions:
            sizes += f", resolution {', '.join(self.resolutions)}"
        free = " and ".join(self.dynamic) + " may change" if self.dynamic else "every size is fixed"
        checked = f"equals the pruned network to {self.relative_error:.1e} (tolerance {self.tolerance:.0e}; {sizes})"
        return "; ".join([f"{self.path}: {checked}", free, *self.notes])
