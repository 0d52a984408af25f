"""Everything fxprune raises on purpose, and checks of arguments that several rooms make.

Every exception derives from :class:`FxpruneError`, so one ``except`` catches them all. Where Python has a builtin for
the kind of mistake (a wrong value, a missing import), the exception derives from that too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

__all__ = [
    "AnalysisError", "ArtefactError", "BudgetError", "CalibrationError", "CaptureError", "CriterionError",
    "DistillationError", "ExcludeError", "ExportError", "FileError", "FxpruneError", "MissingDependencyError",
    "ModeError", "ModelError", "OptionError", "PlanError", "ProofError", "RatioError", "RecoveryError", "RewriteError",
    "SampleError",
]  # fmt: skip


class FxpruneError(Exception):
    """Base of every error that fxprune raises on purpose."""


class ModelError(FxpruneError, ValueError):
    """The model itself cannot be used: NaN weights, lazy or quantised modules, hooks, nothing to prune."""


class SampleError(FxpruneError, ValueError):
    """``sample_input`` holds no tensor, or does not fit the model in shape, dtype or device."""


class RatioError(FxpruneError, ValueError):
    """``ratio`` is not a number with ``0 <= ratio < 1``."""


class BudgetError(FxpruneError, ValueError):
    """The budget is unknown, or the ratio asked for is above the reachable maximum.

    Attributes:
        reachable: the largest ratio that can be reached, between 0 and 1; None if the budget is unknown.
        pinned: the names of the pinned widths that limit the ratio, most costly first.
    """

    def __init__(self, message: str, *, reachable: float | None = None, pinned: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.reachable = reachable
        self.pinned = list(pinned)


class OptionError(FxpruneError, ValueError):
    """An option other than a budget, a criterion or a pattern has an invalid value."""


class CriterionError(FxpruneError, ValueError):
    """The criterion is unknown, lacks the calibration it needs, or returned scores that do not fit the groups."""


class CalibrationError(FxpruneError, ValueError):
    """``calibration`` is missing or empty, or a batch or target does not fit the model or the loss."""


class ExcludeError(FxpruneError, ValueError):
    """A pattern of ``exclude`` matches no module and no parameter."""


class CaptureError(FxpruneError):
    """The model cannot be traced; the message names the module and its source line.

    Attributes:
        path: the innermost module whose forward failed; empty for the model itself.
        graph: the graph traced up to the failure; None if the forward did not run.
    """

    def __init__(self, message: str, *, path: str = "", graph: Any = None) -> None:
        super().__init__(message)
        self.path = path
        self.graph = graph


class AnalysisError(FxpruneError):
    """The channel groups of a captured graph cannot be solved."""


class PlanError(FxpruneError, ValueError):
    """A plan is malformed, or was made for another network."""


class RecoveryError(FxpruneError, ValueError):
    """The recovery is unknown, has an invalid setting, or lacks the data or the network that it needs."""


class DistillationError(FxpruneError, ValueError):
    """Networks, loader, loss and hints do not fit each other, training diverges, or a checkpoint is of another run."""


class ModeError(FxpruneError, RuntimeError):
    """Some parts of a network are in training mode and others are not, and no graph was made for this mixture."""


class RewriteError(FxpruneError):
    """The smaller graph cannot be emitted from the plan."""


class ProofError(FxpruneError):
    """The pruned network does not equal the masked original; no network is returned."""


class ArtefactError(FxpruneError, ValueError):
    """A saved folder is truncated, tampered with or foreign, or a network cannot be written as one."""


class ExportError(FxpruneError):
    """A network cannot be exported to a format, or the exported file does not equal it."""


class FileError(FxpruneError, OSError):
    """The system refuses to read or write a file: a full disk, a missing permission, an impossible path."""


class MissingDependencyError(FxpruneError, ImportError):
    """An optional package is needed and not installed; the message says which extra to install."""


def described(error: BaseException) -> str:
    """The type of an error and the first line of its message, cut to 300 characters."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300] if lines else ''}"


def check_choice(error: type[FxpruneError], name: str, value: object, choices: Sequence[str]) -> None:
    """Raise ``error`` unless an argument has one of the values."""
    if value not in choices:
        *most, last = (f'"{choice}"' for choice in choices)
        raise error(f"{name} must be {', '.join(most)} or {last}, not {value!r}")


def check_count(error: type[FxpruneError], name: str, value: object, least: int | None = 1) -> None:
    """Raise ``error`` unless an argument is a whole number, of at least ``least``."""
    if isinstance(value, bool) or not isinstance(value, int) or (least is not None and value < least):
        bound = "" if least is None else f" of at least {least}"
        raise error(f"{name} must be a whole number{bound}, not {value!r}")


def check_share(error: type[FxpruneError], name: str, value: object) -> None:
    """Raise ``error`` unless an argument is a number between 0 and 1."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
        raise error(f"{name} must be a number between 0 and 1, not {value!r}")
