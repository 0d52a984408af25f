"""The HTML report: it says what the report holds, needs no network, and shows without faults in a browser."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from torch import nn

import fxprune
from fxprune.analysis.drawing import draw_network, places
from fxprune.reporting import Report
from fxprune.reporting.page import as_html, layers, macs_of, reproduction, stages
from fxprune.reporting.page import comparison_as_html as as_page
from tests.test_reporting import make_report

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
VOID = {"meta", "link", "input", "br", "img"}


class Branches(nn.Module):
    """Stages, a residual, a pinned width with a long name and text that HTML would read as markup."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
        self.body = nn.ModuleDict({"a_branch_with_a_very_long_name_" * 3 + str(i): nn.Conv2d(16, 16, 1) for i in "12"})
        self.head = nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for branch in self.body.values():
            x = x + branch(x).relu()
        return self.head(x.mean((2, 3)))


@pytest.fixture(scope="module")
def report() -> Report:
    torch.manual_seed(0)
    return fxprune.report(fxprune.compile(Branches().eval(), torch.randn(2, 3, 8, 8), 0.4))


@pytest.fixture(scope="module")
def page(report: Report, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("page") / "report.html"
    report.save_html(file)
    return file


class Checker(HTMLParser):
    """Every tag is closed in its turn."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: set[str] = set()
        self.links: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.ids |= {str(found["id"])} if "id" in found else set()
        self.links |= {str(found[name]) for name in ("href", "src") if name in found}
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_whole_and_needs_no_network(page: Path) -> None:
    text = page.read_text()
    checker = Checker()
    checker.feed(text)
    assert checker.open == []
    assert {link.removeprefix("#") for link in checker.links if link.startswith("#")} <= checker.ids
    assert all(link.startswith(("#", "data:")) for link in checker.links)
    assert set(re.findall(r"https?://[\w./]+", text)) == {"http://www.w3.org/2000/svg"}
    assert "@import" not in text
    assert "url(" not in text


def test_it_says_what_the_report_holds(page: Path, report: Report) -> None:
    text = page.read_text()
    assert f"{100 * report.achieved:.1f} % of MACs removed" in text
    for row in report.groups:
        assert f'{row.name}</td><td class="number">{row.before}</td>' in text
        assert f'"number">{row.after}</td>' in text
    for pin in report.pinned:
        assert f"{pin.name} ({pin.width})" in text
        assert pin.reason.replace("'", "&#39;") in text
    assert report.proof is not None
    assert f"{report.proof.relative_error:.1e}" in text
    assert all(f"<td>{name}</td>" in text for name in report.seconds)
    assert reproduction(report) in text


def test_tables_sort_and_filter_and_the_page_has_a_dark_form(page: Path, report: Report) -> None:
    text = page.read_text()
    row = report.groups[0]
    before, after = macs_of(report, row)
    assert report.macs_before >= before > after > 0
    assert f'data-value="{before}"' in text
    assert 'data-rows="of-groups"' in text
    assert "prefers-color-scheme:dark" in text


def test_a_group_is_told_by_one_number_in_bars_rows_plots_and_boxes(page: Path, report: Report) -> None:
    text = page.read_text()
    for number, row in enumerate(report.groups):
        drawn = [node for node in report.drawing if node.groups == (row.name,)]
        assert text.count(f'<g data-group="{number}">') == len(drawn) > 0
        assert text.count(f">{row.before}→{row.after}</text>") >= len(drawn)
        assert f'<div class="row" data-group="{number}"><div class="name">{drawn[0].label}</div>' in text
        assert f'<figure data-group="{number}"><figcaption><code>{row.name}</code>' in text
        assert f'<tr id="group-{number}" data-group="{number}"' in text


def test_layers_and_stages_add_up(report: Report) -> None:
    assert report.plan is not None
    for layer in layers(report):
        kept = report.plan.keep[f"{layer.name}.weight"][0]
        assert layer.after == (layer.before if kept is None else len(kept))
    assert layers(report)[0].name == "stem.0"
    assert sum(s.macs[0] for s in stages(report)) == report.macs_before
    assert sum(s.macs[1] for s in stages(report)) == report.macs_after
    assert sum(s.parameters[0] for s in stages(report)) == report.parameters_before
    assert sum(s.parameters[1] for s in stages(report)) == report.parameters_after
    assert {stage.name for stage in stages(report)} == {"stem", "body", "head"}


def test_scores_count_every_channel_once(report: Report) -> None:
    assert len(report.scores) == len(report.groups)
    for row, group in zip(report.scores, report.groups, strict=True):
        assert sum(row.kept) == group.after
        assert sum(row.removed) == group.before - group.after
        assert row.low <= row.high


def test_the_reproduction_reproduces(report: Report) -> None:
    torch.manual_seed(0)
    call = reproduction(report).replace("fxprune.compile", "fxprune.plan")
    plan = eval(call, {"fxprune": fxprune, "model": Branches().eval(), "sample_input": torch.randn(2, 3, 8, 8)})
    assert plan == report.plan


@pytest.mark.parametrize("options", [{"criterion": "lamp", "ratio": 0.3}, {"criterion": "zeros"}])
def test_the_reproduction_names_the_criterion(options: dict[str, object]) -> None:
    x = torch.randn(2, 3, 8, 8)
    torch.manual_seed(0)
    model = Branches().eval()
    with torch.no_grad():
        model.stem[0].weight[:2] = model.stem[1].weight[:2] = model.stem[1].bias[:2] = 0
        for branch in model.body.values():
            branch.weight[:2] = branch.bias[:2] = 0
    made = fxprune.compile(model, x, **options, verify=False)
    again = eval(reproduction(fxprune.report(made)), {"fxprune": fxprune, "model": model, "sample_input": x})
    assert fxprune.report(again).plan == fxprune.report(made).plan
    with_source = replace(fxprune.report(made), source="net.py:net")
    assert f"--criterion {options['criterion']}" in reproduction(with_source)
    assert "None" not in reproduction(with_source)


def test_the_reproduction_says_where_data_go(report: Report) -> None:
    known = replace(report, settings={**report.settings, "calibration": "9 samples"})
    assert reproduction(known).endswith("calibration=batches, recover=None)")


def test_names_are_no_markup() -> None:
    text = as_html(replace(make_report(), network="<script>alert(1)</script>", plan=None))
    assert "<script>alert" not in text
    assert "&lt;script&gt;alert(1)" in text


def test_a_saved_report_gives_the_same_page(report: Report, page: Path) -> None:
    again = Report.from_dict(report.as_dict(), plan=report.plan)
    again.save_html(page.with_name("again.html"))
    assert page.with_name("again.html").read_text() == page.read_text()


# -- pictures ----------------------------------------------------------------------------------------------------------


def test_the_drawing_shows_every_operation_below_its_inputs() -> None:
    graph = fxprune.analyze(Branches().eval(), torch.randn(2, 3, 8, 8))
    nodes = draw_network(graph)
    spots = places(nodes)
    assert len(set(spots)) == len(nodes)
    for node, (row, _) in zip(nodes, spots, strict=True):
        assert all(spots[i][0] < row for i in node.inputs)
    labels = [node.label for node in nodes]
    assert labels[0].startswith("input")
    assert labels[-1] == "output"
    assert {"stem.0", "head"} <= set(labels)
    by_label = dict(zip(labels, nodes, strict=True))
    assert by_label["stem.0"].groups == by_label["stem.1"].groups == ("stem.0",)
    assert "it is a dim of the network's output" in by_label["head"].pin
    svg = graph.draw("svg")
    checker = Checker()
    checker.feed(svg)
    assert checker.open == []
    assert svg.count("<rect") == len(nodes)


def test_a_notebook_shows_graph_report_and_comparison(report: Report) -> None:
    graph = fxprune.analyze(Branches().eval(), torch.randn(2, 3, 8, 8))
    assert "<svg" in graph._repr_html_()
    shown = (graph, report, report.compare(report), report.plan)
    for value in shown:
        checker = Checker()
        checker.feed(value._repr_html_())
        assert checker.open == []
        assert len(repr(value)) < 100


def test_other_formats_are_refused() -> None:
    graph = fxprune.analyze(Branches().eval(), torch.randn(2, 3, 8, 8))
    assert graph.draw().startswith("graph channels {")
    with pytest.raises(fxprune.FxpruneError, match="choose 'dot' or 'svg'"):
        graph.draw("png")


# -- in a browser ------------------------------------------------------------------------------------------------------

PROBE = """<script>
window.onerror = function (message) { parent.postMessage("error: " + message, "*"); };
window.addEventListener("load", function () {
  document.querySelectorAll("details").forEach(function (d) { d.open = true; });
  ["closer", "farther", "whole", "start"].forEach(function (id) { document.getElementById(id).click(); });
  var find = document.getElementById("find");
  find.value = "head"; find.dispatchEvent(new Event("input"));
  var dim = document.querySelectorAll("g.dim").length, all = document.querySelectorAll("#graph g").length;
  find.value = ""; find.dispatchEvent(new Event("input"));
  function chosen() { return ["tr", ".row", "figure", "#graph g"].map(function (s) {
    return document.querySelectorAll(s + ".chosen").length; }); }
  var links = [], card = document.getElementById("chosen");
  var marked = "[data-group='" + document.querySelector("tr[data-group]").dataset.group + "']";
  ["tr", ".row", "#graph g"].forEach(function (s) {
    document.querySelector(s + marked).dispatchEvent(new MouseEvent("click", { bubbles: true }));
    links.push(chosen());
    card.querySelector("button").click();
    links.push(chosen());
  });
  var wide = [];
  document.querySelectorAll("body *").forEach(function (e) {
    if (e.closest("svg") || e.closest(".scroll table")) return;
    if (e.getBoundingClientRect().right > innerWidth + 1) wide.push(e.tagName + "." + e.className);
  });
  parent.postMessage(JSON.stringify({inner: innerWidth, page: document.documentElement.scrollWidth, wide: wide,
    links: links, card: card.hidden, dim: dim, all: all, title: document.title}), "*");
});
</script>"""


@pytest.mark.parametrize("width", [1280, 400])
def test_in_a_browser(page: Path, width: int, tmp_path: Path) -> None:
    browser = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if browser is None:
        pytest.skip(f"no browser here: {', '.join(BROWSERS)}")
    (tmp_path / "inner.html").write_text(page.read_text().replace("<head>", f"<head>{PROBE}"))
    (tmp_path / "outer.html").write_text(
        f'<iframe src="inner.html" style="width:{width}px;height:900px;border:0"></iframe>'
        '<p id="said">nothing</p><script>'
        'addEventListener("message", function (e) { document.getElementById("said").textContent = e.data; });</script>'
    )
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=4000", "--enable-logging=stderr"]
    command = [browser, *options, f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={width + 60},1000"]
    shown = subprocess.run(
        [*command, "--dump-dom", (tmp_path / "outer.html").as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert "CONSOLE" not in shown.stderr
    said = re.search(r'<p id="said">(.*?)</p>', shown.stdout)
    assert said is not None
    found = json.loads(said[1].replace("&quot;", '"'))
    assert found["inner"] == width
    assert found["page"] <= width
    assert found["wide"] == []
    assert 0 < found["dim"] < found["all"]
    assert found["links"][::2] == [found["links"][0]] * 3
    assert all(found["links"][0])
    assert not any(map(any, found["links"][1::2]))
    assert found["card"]
    assert "of MACs removed" in found["title"]


# -- two beside one another --------------------------------------------------------------------------------------------


def test_two_results_beside_one_another(report: Report, tmp_path: Path) -> None:
    torch.manual_seed(0)
    other = fxprune.report(fxprune.compile(Branches().eval(), torch.randn(2, 3, 8, 8), 0.2, budget="params"))
    found = report.compare(other, ("A", "<b>"))
    macs = found.costs[0]
    assert (macs.before, macs.after) == ((report.macs_before,) * 2, (report.macs_after, other.macs_after))
    assert [row.after for row in found.widths] == [
        (a.after, b.after) for a, b in zip(report.groups, other.groups, strict=True)
    ]
    assert found.settings["budget"] == ("macs", "params")
    assert "scope" not in found.settings
    assert "A beside <b>" in str(found)
    found.save_html(tmp_path / "both.html")
    text = (tmp_path / "both.html").read_text()
    checker = Checker()
    checker.feed(text)
    assert checker.open == []
    assert "<b></h1>" not in text
    assert f'<td class="name">{report.groups[0].name}</td>' in text


def test_networks_of_other_groups_stand_beside_one_another_too(report: Report) -> None:
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
    other = fxprune.report(fxprune.compile(net, torch.randn(1, 4), 0.5, calibration=[torch.randn(16, 4)]))
    rows = {row.name: row for row in report.compare(other).widths}
    assert rows["stem.0"].after == (report.groups[0].after, None)
    assert rows["0"].before == (None, 8)
    assert rows["0"].errors[1] is not None
    assert " / " in str(report.compare(other))
    assert "None" not in as_page(report.compare(other))
