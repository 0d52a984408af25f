"""timm's networks; the smallest model of each of its families is listed in ``timm_families.csv`` beside this file.

``python -m benchmarks.networks.timm_networks`` writes that list again, which builds every model on the meta device.
"""

from __future__ import annotations

import csv
import warnings
from collections.abc import Iterable
from pathlib import Path

import torch
from rich.progress import track

_LIST = Path(__file__).with_name("timm_families.csv")
_COLUMNS = ("family", "model", "parameters")
# Models of timm's own test suite, too small to stand for their family.
_FOR_TESTS = "test_"


def names() -> list[str]:
    """Every model that timm can build."""
    import timm

    return list(timm.list_models())


def smallest_of_families() -> list[str]:
    """The model with the fewest parameters of each family, as listed; of families not listed it is found now."""
    import timm

    with _LIST.open(newline="", encoding="utf-8") as file:
        listed = {row["family"]: row["model"] for row in csv.DictReader(file)}
    return [listed[family] if family in listed else smallest(family)[0] for family in timm.list_modules()]


def smallest(family: str) -> tuple[str, int]:
    """The model of a family with the fewest parameters, and their number."""
    import timm

    candidates = [name for name in timm.list_models(module=family) if not name.startswith(_FOR_TESTS)]
    return min(((name, _parameters(name)) for name in candidates), key=lambda found: found[1])


def _parameters(name: str) -> int:
    import timm

    with torch.device("meta"):
        return sum(parameter.numel() for parameter in timm.create_model(name, pretrained=False).parameters())


def write_list(families: Iterable[str]) -> None:
    """Find the smallest model of each family and write the list."""
    with _LIST.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(_COLUMNS)
        writer.writerows((family, *smallest(family)) for family in families)


if __name__ == "__main__":
    import timm

    warnings.simplefilter("ignore")
    write_list(track(timm.list_modules()))
