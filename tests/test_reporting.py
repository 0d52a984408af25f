import dataclasses
import io
import json

import pytest
from rich.console import Console

from fxprune.planning.plan import Plan
from fxprune.proof.proving import Proof
from fxprune.reporting import MACS_MEANING, GroupRow, OpaqueRow, PinnedRow, Report, as_text, print_report, versions
from fxprune.util.tables import percent, quantity

PROOF = Proof(
    method="masked",
    relative_error=2.3e-15,
    tolerance=1e-9,
    dtype="float64",
    batch_sizes=(2, 3),
    resolutions=("224x224", "256x256"),
    tensors_checked=161,
    vacuous=False,
    randomised=True,
    notes=("parameters were randomised as well.",),
    seconds=3.2,
)


def make_report(groups: int = 24, pinned: int = 8) -> Report:
    return Report(
        ratio=0.5,
        budget="macs",
        budget_before=4089184256,
        budget_after=2021456324,
        macs_before=4089184256,
        macs_after=2021456324,
        parameters_before=25557032,
        parameters_after=12345678,
        groups=tuple(
            GroupRow(f"layer{i}.conv1", 64 + i, 32, (f"layer{i}.conv1.weight[0]", f"layer{i}.bn1.weight[0]"))
            for i in range(groups)
        ),
        pinned=tuple(
            PinnedRow(f"fc{i}.weight[0]", 1000, "it is a dim of the network's output", "resnet.py:280 linear")
            for i in range(pinned)
        ),
        opaque=(OpaqueRow("roi_heads", "a loop depends on values", "faster_rcnn.py:12", 1200),),
        proof=PROOF,
        seconds={"capture": 0.4, "proof": 3.2},
        settings={"criterion": "magnitude", "scope": "global", "seed": 0, "versions": versions()},
        plan=Plan({}, {}, {}, {}),
        network="ResNet",
    )


def test_achieved() -> None:
    report = make_report()
    assert report.achieved == pytest.approx(1 - 2021456324 / 4089184256)
    assert dataclasses.replace(report, budget_before=0, budget_after=0).achieved == 0
    assert report.headline == f"50.6% of the {MACS_MEANING} and 51.7% of the parameters removed"


def test_survives_json() -> None:
    report = make_report()
    data = json.loads(json.dumps(report.as_dict(), allow_nan=False))
    assert "plan" not in data
    assert Report.from_dict(data, plan=report.plan) == report


def test_survives_json_without_a_proof() -> None:
    report = dataclasses.replace(make_report(), proof=None, unproven="structural, unproven", plan=None)
    assert Report.from_dict(json.loads(json.dumps(report.as_dict()))) == report
    assert "none (structural, unproven)" in str(report)


def test_fits_one_screen() -> None:
    lines = str(make_report(groups=200, pinned=90)).splitlines()
    assert len(lines) <= 45
    assert max(map(len, lines)) <= 100
    assert all(line == line.rstrip() for line in lines)


def test_says_what_matters() -> None:
    text = str(make_report())
    for expected in (
        "ResNet: 50.6 % of MACs removed, 50.0 % asked",
        f"* {MACS_MEANING}",
        "4.089 G   2.021 G    50.6 %",
        "... 14 more groups",
        "fc0.weight[0] (1000)",
        "it is a dim of the network's output",
        "roi_heads (1.2 k parameters)",
        "outputs equal the masked original's to 2.3e-15 (tolerance 1e-09, float64, batch 2, 3,",
        "161 tensors equal bit for bit",
        "capture 0.40, proof 3.20; 3.60 in all",
        "criterion magnitude, scope global, seed 0",
    ):
        assert expected in text


def test_the_most_cut_groups_come_first() -> None:
    text = str(make_report())
    assert text.index("layer23.conv1") < text.index("layer20.conv1")
    assert "layer0.conv1" not in text


def test_verbose_shows_everything() -> None:
    text = as_text(make_report(), verbose=True)
    assert "more" not in text.replace("more groups", "")
    assert "layer0.bn1.weight[0]" in text
    assert text.count("resnet.py:280 linear") == 8


def test_a_vacuous_proof_is_marked_in_capitals() -> None:
    report = dataclasses.replace(make_report(), proof=dataclasses.replace(PROOF, vacuous=True))
    assert "VACUOUS" in str(report)


def test_names_are_not_markup() -> None:
    report = dataclasses.replace(make_report(), network="[bold]x", groups=(GroupRow("[red]a", 4, 2),))
    assert "[red]a" in str(report)
    assert "[bold]x" in str(report)


def test_print_report_writes_to_the_console() -> None:
    stream = io.StringIO()
    print_report(make_report(), Console(file=stream, width=100))
    assert "ResNet" in stream.getvalue()


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0, "0"), (999, "999"), (1000, "1 k"), (999_960, "1 M"), (4089184256, "4.089 G"), (25557032, "25.56 M")],
)
def test_quantity(value: float, expected: str) -> None:
    assert quantity(value) == expected


def test_percent() -> None:
    assert percent(0.5064) == "50.6 %"


def test_versions() -> None:
    assert set(versions()) == {"fxprune", "torch", "python"}
