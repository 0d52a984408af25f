"""Any command line, any name of a network, any plan: refused in words of ours, or done; never a traceback."""

from __future__ import annotations

import contextlib
import copy
import functools
import io
import json
import operator
import re
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from torch import nn

import fxprune
from fxprune import cli
from fxprune.cli import sources
from fxprune.errors import FxpruneError, PlanError
from fxprune.reporting import Report, print_report
from fxprune.reporting.page import as_html
from tests.test_reporting import make_report

NASTY = [
    "",
    "-",
    "--",
    "-o",
    "..",
    "/",
    "/dev/null",
    "\0",
    "ünï",
    "[red]x",
    "a" * 3000,
    "nan",
    "1e999",
    "-1",
    "9" * 400,
    "{}",
]
SPECS = [
    "torchvision:",
    "timm:",
    ":",
    "x.py:",
    "x.py:__import__",
    ".py:a",
    "torchvision:../x",
    "torchvision:resnet18:x",
]
COMMANDS = ["analyze", "compile", "report", "explain", "diff", "export", "benchmark", "criteria", "plan", "help"]
OPTIONS = (
    "--ratio --budget --criterion --scope --exclude --round-to --min-channels --max-ratio --seed --input-size "
    "--weights --calibration --output --json --verbose --no-verify --allow --format --plan --batch --help"
).split()

# Names from no library: a short one may be a network's, and building it takes long.
TEXTS = st.sampled_from(NASTY + SPECS) | st.text(max_size=8).filter(
    lambda text: not text.startswith(("timm", "torchv"))
)


def command_line(arguments: list[str]) -> tuple[int, str]:
    """Exit status and what is written to the error stream."""
    errors = io.StringIO()
    with (
        mock.patch.object(sys, "argv", ["fxprune", *arguments]),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(errors),
    ):
        try:
            cli.main()
        except SystemExit as stop:
            return (stop.code if isinstance(stop.code, int) else 1), errors.getvalue()
    return 0, errors.getvalue()


def test_any_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = st.sampled_from(OPTIONS) | TEXTS

    @given(st.sampled_from(COMMANDS) | TEXTS, st.lists(words, max_size=6))
    def check(command: str, rest: list[str]) -> None:
        code, errors = command_line([command, *rest])
        assert code in (0, 2)
        assert "Traceback" not in errors
        assert code == 0 or errors.strip()

    check()
    assert list(tmp_path.iterdir()) == []


@given(TEXTS, st.lists(TEXTS, max_size=2))
def test_any_name_of_a_network(text: str, sizes: list[str]) -> None:
    with contextlib.suppress(FxpruneError):
        sources.find_model(text, sizes, 0)


@pytest.mark.parametrize(
    "size", ["9" * 30, "1," + "9" * 15, "1,3,-1", "1:float99", "1,2:load", "1" + ",1" * 500, "1, 2"]
)
def test_sizes_that_nobody_has(size: str) -> None:
    with contextlib.suppress(FxpruneError):
        sources.sample_of_size(size)


# -- plans ------------------------------------------------------------------------------------------------------------


class Net(nn.Module):
    """A split, a group convolution and a shuffle, so that a plan has dims of many kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.middle, self.last = nn.Conv2d(2, 8, 1), nn.Conv2d(8, 8, 1, groups=2), nn.Conv2d(8, 3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        left, right = self.first(x).chunk(2, 1)
        return self.last(self.middle(torch.cat([right.relu(), left], 1)))


@functools.cache
def planned() -> tuple[nn.Module, torch.Tensor, str]:
    model, x = Net().eval(), torch.randn(2, 2, 3, 3)
    return model, x, fxprune.plan(model, x, 0.4).to_json()


VALUES = st.sampled_from(
    [
        None,
        True,
        -1,
        2**31,
        10**30,
        0.5,
        "",
        "0",
        "0-3",
        "0-7",
        "7",
        "3,1",
        "0-4000000000",
        "a",
        "0-3," * 50,
        [],
        {},
        [None],
        ["0-1"] * 4,
    ]
) | st.text("0123456789-, ", max_size=6)


@settings(max_examples=max(150, settings.default.max_examples))
@given(st.data())
def test_any_change_of_a_plan_is_refused_or_proven(data: st.DataObject) -> None:
    model, x, text = planned()
    document: Any = json.loads(text)
    holder = document
    while True:
        key = data.draw(st.sampled_from(sorted(holder) if isinstance(holder, dict) else range(len(holder))))
        if not isinstance(holder[key], (dict, list)) or not holder[key] or data.draw(st.integers(0, 3)) == 0:
            break
        holder = holder[key]
    holder[key] = data.draw(VALUES)
    try:
        plan = fxprune.Plan.from_json(json.dumps(document))
    except PlanError:
        return
    with contextlib.suppress(FxpruneError):
        pruned = fxprune.apply(model, x, plan)
        assert pruned(x).shape == (2, 3, 3, 3)


@given(st.text(max_size=30) | st.binary(max_size=30).map(lambda b: b.decode("latin-1")))
def test_any_text_is_a_plan_or_none(text: str) -> None:
    with contextlib.suppress(PlanError):
        fxprune.Plan.from_json(text)


# -- pages ------------------------------------------------------------------------------------------------------------

INJECTIONS = [
    """</script><script>alert(1)</script>"><img src=x onerror=alert(1)>' onmouseover='alert(1)</style><style>*{}""",
    "<!-- ]]>&lt;b&gt;{{ 7 * 7 }}{% raw %}",
    "javascript:alert(1)",
]


class Outline(HTMLParser):
    """The tags of a page in order, with the names of their attributes and what refers to other places."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[Any] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        links = [value for name, value in attrs if name in ("href", "src", "style") and "javascript" in str(value)]
        self.tags.append((tag, [name for name, _ in attrs], links))

    def handle_comment(self, data: str) -> None:
        self.tags.append("comment")


def outline(data: Any) -> list[Any] | None:
    """That of the page of a report, or None for what is no report."""
    try:
        return Outline(as_html(Report.from_dict(data))).tags
    except (FxpruneError, KeyError, TypeError, ValueError, AttributeError):
        return None


def texts(data: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where there is text in a document."""
    for key, value in data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ():
        yield from [(*path, key)] if isinstance(value, str) else texts(value, (*path, key))


@pytest.mark.parametrize("terminal", [False, True])
def test_text_in_a_report_gives_a_terminal_no_orders(terminal: bool) -> None:
    """A title of the window, a cleared screen, a bell, the C1 form of an escape, a carriage return, turned text."""
    orders = "\x1b]0;title\x07\x1b[2J\x9b2J\r\u202e"
    document = json.loads(json.dumps(make_report(2, 2).as_dict()))
    places = list(texts(document))
    for *path, last in places:
        holder = functools.reduce(operator.getitem, path, document)
        plain, holder[last] = holder[last], holder[last] + orders
        if outline(document) is None:
            holder[last] = plain
    report = Report.from_dict(document)
    assert json.dumps(document).count("title") > len(places) // 2
    out = io.StringIO()
    print_report(report, Console(file=out, force_terminal=terminal, width=200), verbose=True)
    shown = re.sub(r"\x1b\[[\d;]*m", "", out.getvalue())  # colours
    for text in (shown, str(report), str(report.compare(report))):
        assert "title" in text
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", text)


@pytest.mark.parametrize("injection", INJECTIONS)
def test_text_in_a_report_stays_text_on_its_page(injection: str) -> None:
    document = json.loads(json.dumps(make_report(2, 2).as_dict()))
    tried = 0
    for path in texts(document):
        pages = []
        for text in ("a plain word", injection):
            changed = copy.deepcopy(document)
            functools.reduce(operator.getitem, path[:-1], changed)[path[-1]] = text
            pages.append(outline(changed))
        assert pages[0] == pages[1], path
        tried += pages[1] is not None
    assert tried > 10
