"""The options of a compilation that its plan depends on: one table, :class:`Options`, with one row per option.

A row holds the type, the default, a line of help, and how the command line reads it. The options of ``fxprune compile``
are made from the table, and so are the settings in a plan and the defaults that the report's page omits. A new option
needs a row here, a documented parameter of :func:`fxprune.compile`, and the code that uses it.

Importing this module does not load torch, because shell completion cannot wait for that.
"""

from __future__ import annotations

import glob
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import Field, dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypedDict, get_args

from fxprune.errors import BudgetError, ExcludeError, OptionError, check_choice
from fxprune.util.registry import registered_names

if TYPE_CHECKING:
    from torch import nn

    from fxprune.calibration import Loss
    from fxprune.criteria import Criterion

# Choices, for completion in editors. Budgets, criteria and recoveries are looked up by name, and users may register
# their own, so any other string is allowed, too.
Budget = Literal["channels", "latency", "macs", "memory", "params"] | str
CriterionName = Literal[
    "auto", "zeros", "apoz", "chip", "feature_distance", "feature_entropy", "filter_similarity", "fpgm", "hessian",
    "hrank", "information_fusion", "lamp", "magnitude", "mean_activation", "multi_source", "parallel", "random",
    "reconstruction", "slimming", "taylor", "taylor_activations", "thinet",
] | str  # fmt: skip
RecoveryName = Literal["auto", "batchnorm", "bias", "fuse", "match", "reconstruct"] | str
FormatName = Literal["pt2", "onnx", "source", "openvino", "aoti"]
FreeSize = Literal["batch", "resolution", "length"]
Scope = Literal["auto", "global", "uniform", "reconstruction"]
Alike = Literal["free", "equal"]
Residual = Literal["auto", "coupled", "inner"]
Couplings = Literal["keep", "drop"]
Level = bool | Literal["full"]
# Keys are patterns of paths or modules. Only Any lets a type checker accept mappings with either kind or both.
Shares = Mapping[Any, float]
Counts = Mapping[Any, int]

# The values of ``verify``: no proof, node by node, or by whole networks.
LEVELS = (False, True, "full")


def check_level(verify: bool | str) -> bool | str:
    """The value of ``verify``, checked. Raises OptionError: it is not one of the :data:`LEVELS`."""
    if not any(verify is level or (isinstance(verify, str) and verify == level) for level in LEVELS):
        raise OptionError(f"verify must be True, False or 'full', not {verify!r}")
    return verify


# The meaning of "auto". With data: the choice that keeps most accuracy in the tables of docs/recovery.md.
_WITH_DATA = {"criterion": "reconstruction", "scope": "reconstruction", "residual": "inner"}
_WITHOUT_DATA = {"criterion": "magnitude", "scope": "global", "residual": "coupled"}


class Words(NamedTuple):
    """An option on the command line."""

    help: str  # one line
    read: Callable[[str], Any] = str  # the value of one word
    many: str = ""  # "" for one word; "mapping" for one, or PATTERN=VALUE once or more; "list" for one or more
    choices: tuple[str, ...] = ()  # completions in a shell
    metavar: str | None = None  # the placeholder for the value in the help


def _row(default: Any, *words: Any, **more: Any) -> Any:
    return field(default=default, metadata={"words": Words(*words, **more)})


def _multiple(text: str) -> int | str:
    return text if text == "auto" else int(text)


@dataclass(frozen=True)
class Options:
    """The choices of :func:`fxprune.compile` that a plan depends on; see there.

    ``ratio`` is a fraction of ``budget``, or a mapping from patterns to shares. With several budgets, ``budgets`` holds
    all fractions, and ``ratio`` and ``budget`` are the first of them.
    """

    ratio: Any = _row(
        None,
        "Fraction of the budget to remove, at least 0 and below 1; or, repeated, those of several budgets "
        "(macs=0.5) or of the channels of layers (layer1.*=0.2).",
        float, "mapping", metavar="FRACTION|NAME=FRACTION",
    )  # fmt: skip
    budget: str = _row("macs", "What ratio is a fraction of.", choices=registered_names("cost", "budget"))
    criterion: str | Criterion = _row(
        "auto", "How channels are ranked: auto, or one of `fxprune criteria`; zeros, without a ratio, removes zeros.",
        choices=("auto", "zeros", *registered_names("criteria", "criterion")),
    )  # fmt: skip
    exclude: Sequence[str] = _row(
        (), "Module or parameter whose output channels stay; may be repeated.", many="list", metavar="PATTERN",
    )  # fmt: skip
    scope: str = _row(
        "auto", "Rank all groups together, take the same share of each, or go by what can be made up for.",
        choices=get_args(Scope),
    )  # fmt: skip
    alike: str = _row("free", "equal: one width for a place of repeated blocks.", choices=get_args(Alike))
    residual: str = _row("auto", "inner: groups across an add stay.", choices=get_args(Residual))
    couplings: str = _row("keep", "drop: readers of a stream select their own inputs.", choices=get_args(Couplings))
    round_to: int | str | Mapping[str, int] = _row(
        "auto", "Keep widths a multiple of this; patterns may be repeated.", _multiple, "mapping",
        metavar="auto|N|PATTERN=N",
    )  # fmt: skip
    min_channels: int | Mapping[str, int] = _row(
        1, "Least channels left in a group.", int, "mapping", metavar="N|PATTERN=N",
    )  # fmt: skip
    max_ratio: Any = _row(None, "Largest share removed from a group.", float, "mapping", metavar="SHARE|PATTERN=SHARE")
    seed: int = _row(0, "Of random weights, the sample and the criterion.", int)
    budgets: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def checked(cls, model: nn.Module, given: Mapping[str, Any]) -> Options:
        """The options, checked, with modules replaced by their paths. Raises RatioError, BudgetError or OptionError."""
        from torch import nn

        from fxprune.analysis.uncoupling import check_couplings
        from fxprune.cost.budgets import goals_of
        from fxprune.planning.limits import MAX_RATIO

        values = {name: given.get(name, row.default) for name, row in table().items()}
        values |= {
            n: by_path(model, n, values[n]) for n, row in table().items() if row.metadata["words"].many == "mapping"
        }
        if isinstance(values["criterion"], str) and values["criterion"] == "zeros":
            raise OptionError('criterion="zeros" compares outputs: give it to compile, whose report has the plan')
        ratio, budget, patterns = values["ratio"], values["budget"], values["exclude"]
        if isinstance(ratio, Mapping) and _are_budgets(model, ratio):
            ratio, budget = None, ratio
        check_choice(BudgetError, "scope", values["scope"], get_args(Scope))
        goals = {} if isinstance(ratio, Mapping) else goals_of(ratio, budget)
        if goals:
            budget, ratio = next(iter(goals.items()))
        if values["max_ratio"] is None:
            values["max_ratio"] = 1.0 if isinstance(ratio, Mapping) else MAX_RATIO
        if isinstance(patterns, nn.Module) or not isinstance(patterns, Iterable):
            raise ExcludeError(f"exclude takes a list of patterns and modules, not {type(patterns).__name__}")
        if not isinstance(patterns, str):
            values["exclude"] = [_path(model, "exclude", p) for p in patterns]
        values |= {"couplings": check_couplings(values["couplings"]), "seed": checked_seed(values["seed"])}
        return cls(**values | {"ratio": ratio, "budget": budget, "budgets": goals if len(goals) > 1 else {}})

    @property
    def counted(self) -> set[str]:
        """The names of all requested budgets."""
        return {self.budget, *self.budgets}

    @property
    def removes(self) -> bool:
        """Whether the options ask to remove anything."""
        return isinstance(self.ratio, Mapping) or self.ratio > 0 or any(self.budgets.values())

    @property
    def goals(self) -> dict[str, Any]:
        """``ratio`` and ``budget`` as :func:`fxprune.planning.allocate` takes them."""
        return {"budget": self.budgets} if self.budgets else {"ratio": self.ratio, "budget": self.budget}

    def settled(self, why_not: str) -> tuple[Options, str]:
        """Replace "auto", and describe the choice; ``why_not``: the reason why data cannot help, empty if they can."""
        usual = _WITHOUT_DATA if why_not else _WITH_DATA
        # A criterion that the caller chose decides the widths by itself.
        usual = usual if self.criterion == "auto" else _WITHOUT_DATA
        chosen = {name: value for name, value in usual.items() if getattr(self, name) == "auto"}
        words = ", ".join(f"{name} {value}" for name, value in chosen.items())
        return replace(self, **chosen), words  # type: ignore[arg-type]

    def settings(self, criterion: Criterion) -> dict[str, Any]:
        """JSON values that reproduce the plan."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        values |= {"criterion": repr(criterion), "exclude": list(self.exclude)}
        return {n: "of each group" if callable(v) else v for n, v in values.items() if n != "budgets" or v}


class PlanOptions(TypedDict, total=False):
    """The keyword arguments of :func:`fxprune.plan` after the ratio, for functions that pass them on."""

    budget: Budget | Mapping[str, float]
    criterion: CriterionName | Criterion
    calibration: Iterable[Any] | None
    loss: Loss | None
    exclude: Sequence[str | nn.Module]
    scope: Scope
    alike: Alike
    residual: Residual
    couplings: Couplings
    round_to: int | Literal["auto"] | Counts
    min_channels: int | Counts
    max_ratio: float | Shares | None
    seed: int


def table() -> dict[str, Field[Any]]:
    """The rows that a caller fills, by name; a row's ``metadata["words"]`` are its :class:`Words`."""
    return {row.name: row for row in fields(Options) if row.metadata}


def usual() -> dict[str, Any]:
    """The settings of a plan that was made from a ratio alone, without data."""
    from fxprune.planning.limits import MAX_RATIO

    values = {name: row.default for name, row in table().items() if name not in ("ratio", "exclude", "criterion")}
    return {**values, "scope": _WITHOUT_DATA["scope"], "residual": _WITHOUT_DATA["residual"], "max_ratio": MAX_RATIO}


def _are_budgets(model: nn.Module, ratio: Mapping[str, float]) -> bool:
    """Whether the keys are names of budgets, not of parts of the model."""
    from fxprune.cost.budgets import known_budgets

    named = {name for name in ratio if name in known_budgets() and not hasattr(model, str(name))}
    if named and len(named) < len(ratio):
        layers = next(name for name in ratio if name not in named)
        raise OptionError(f"ratio mixes budgets ({min(named)}) with layers ({layers!r:.40}): give the one or the other")
    return bool(named)


def by_path(model: nn.Module, option: str, value: Any) -> Any:
    """A mapping with its modules replaced by their paths; any other value stays as it is."""
    if not isinstance(value, Mapping):
        return value
    paths = {_path(model, option, key): item for key, item in value.items()}
    if odd := [key for key in paths if not isinstance(key, str)]:
        raise OptionError(f"{option} names {odd[0]!r:.40}: give patterns of paths, or modules")
    return paths


def _path(model: nn.Module, option: str, pattern: Any) -> Any:
    """The pattern itself, or the path of a module."""
    from torch import nn

    from fxprune.capture.exported import unwrapped

    if not isinstance(pattern, nn.Module):
        return pattern
    pattern = unwrapped(pattern)
    path = next((name for name, module in model.named_modules(remove_duplicate=False) if module is pattern), None)
    if path is None:
        raise OptionError(f"{option} names a {type(pattern).__name__} that is no part of the model")
    return glob.escape(path) if path else "*"


def checked_seed(seed: Any) -> int:
    """The seed as an integer. Raises OptionError: it is none, or not one of torch's seeds, which have 64 bits."""
    try:
        if isinstance(seed, bool):
            raise TypeError
        number = operator.index(seed)
    except TypeError:
        raise OptionError(f"seed must be a whole number, not {seed!r:.80}") from None
    if not -(2**63) <= number < 2**64:
        raise OptionError(f"seed must be a whole number from -2**63 to 2**64 - 1, not {number!r:.80}")
    return number
