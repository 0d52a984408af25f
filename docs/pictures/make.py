"""Make the pictures of the documentation, and run its notebook: ``python docs/pictures/make.py``.

The picture of a report's page needs a Chromium; where there is none it stays as it is.
"""

from __future__ import annotations

import ast
import contextlib
import io
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torchvision

import fxprune

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
RATIOS = (0.1, 0.3, 0.5, 0.6, 0.7, 0.8, 0.9)
FONT = 'font-family="system-ui" font-size="13"'
COLOURS = ("#2f6f4f", "#b07d2b")


def trained() -> dict[str, Any]:
    """The names of README's first example, once it has run."""
    found = re.search(r"<!-- example: front -->\n```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert found is not None
    names: dict[str, Any] = {}
    exec(found[1], names)
    return names


def residual() -> fxprune.Report:
    """The report of a ResNet-18 with random weights."""
    torch.manual_seed(0)
    model = torchvision.models.resnet18(weights=None).eval()
    return fxprune.report(fxprune.compile(model, torch.randn(1, 3, 224, 224), 0.5))


def widths_svg(report: fxprune.Report) -> str:
    """A bar for every group: what stays of it, on what it was."""
    rows = report.groups
    widest, height = max(row.before for row in rows), 26 * len(rows) + 10
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 640 {height}" {FONT}>']
    for place, row in enumerate(rows):
        y, whole, kept = 26 * place + 8, 380 * row.before / widest, 380 * row.after / widest
        parts.append(f'<text x="110" y="{y + 13}" text-anchor="end" fill="#777">{row.name}</text>')
        parts.append(f'<rect x="120" y="{y}" width="{whole:.0f}" height="18" rx="3" fill="#d9d3c3"/>')
        parts.append(f'<rect x="120" y="{y}" width="{kept:.0f}" height="18" rx="3" fill="{COLOURS[0]}"/>')
        parts.append(f'<text x="{130 + whole:.0f}" y="{y + 13}" fill="#777">{row.before} → {row.after}</text>')
    return "\n".join([*parts, "</svg>", ""])


def chart_svg(lines: dict[str, Sequence[tuple[float, float]]], title: str) -> str:
    """Lines over the share that is left, both in percent."""
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 640 340" {FONT}>']
    parts.append(f'<text x="60" y="20" fill="#777">{title}</text>')
    for step in range(0, 101, 20):
        x, y = 60 + 5.4 * step, 300 - 2.6 * step
        parts.append(f'<path d="M60 {y:g}H600" stroke="#bbb" stroke-width=".5"/>')
        parts.append(f'<text x="52" y="{y + 4:g}" text-anchor="end" fill="#777">{step} %</text>')
        parts.append(f'<text x="{x:g}" y="318" text-anchor="middle" fill="#777">{step} %</text>')
    for (name, points), colour in zip(lines.items(), COLOURS, strict=True):
        spots = [(60 + 540 * left, 300 - 260 * value) for left, value in points]
        path = "L".join(f"{x:.0f} {y:.0f}" for x, y in spots)
        parts.append(f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="2.5"/>')
        parts += [f'<circle cx="{x:.0f}" cy="{y:.0f}" r="4" fill="{colour}"/>' for x, y in spots]
        parts.append(f'<text x="330" y="{200 + 20 * COLOURS.index(colour)}" fill="{colour}">{name}</text>')
    parts.append('<text x="600" y="334" text-anchor="end" fill="#777">multiply-accumulates left</text></svg>')
    return "\n".join([*parts, ""])


def accuracies(names: dict[str, Any], **options: Any) -> list[tuple[float, float]]:
    """Share of the multiply-accumulates left, and accuracy on the test images, for each ratio and the original."""
    model, x, y = (names[name] for name in ("model", "x", "y"))
    found = [(1.0, model)]
    for ratio in RATIOS:
        pruned = fxprune.compile(model, x[:1], ratio, **options)
        found.append((1 - fxprune.report(pruned).achieved, pruned))
    return [(left, float((net(x[1300:]).argmax(1) == y[1300:]).float().mean())) for left, net in found]


def photograph(report: fxprune.Report, file: Path) -> None:
    """The beginning of a report's page as PNG."""
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        return
    with tempfile.TemporaryDirectory() as folder:
        report.save_html(f"{folder}/page.html")
        how = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--user-data-dir={folder}/profile"]
        size = ["--window-size=1000,1180", f"--screenshot={file}", f"file://{folder}/page.html"]
        subprocess.run([browser, *how, *size], check=True, capture_output=True, timeout=120)


def run_notebook(cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The cells with what they print and show, as Jupyter stores them; the first error ends it."""
    names: dict[str, Any] = {"__name__": "__main__"}
    done, count = [], 0
    for cell in cells:
        if cell["cell_type"] == "code":
            count += 1
            cell = {**cell, "execution_count": count, "outputs": _outputs("".join(cell["source"]), names, count)}
        done.append(cell)
    return done


def _outputs(source: str, names: dict[str, Any], count: int) -> list[dict[str, Any]]:
    tree, printed, shown = ast.parse(source), io.StringIO(), None
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    with contextlib.redirect_stdout(printed):
        exec(compile(tree, "notebook", "exec"), names)
        if last is not None:
            shown = eval(compile(ast.Expression(last.value), "notebook", "eval"), names)
    found: list[dict[str, Any]] = []
    if printed.getvalue():
        found.append({"output_type": "stream", "name": "stdout", "text": printed.getvalue().splitlines(keepends=True)})
    if shown is not None:
        data = {"text/plain": [repr(shown)]}
        if hasattr(shown, "_repr_html_"):
            data["text/html"] = shown._repr_html_().splitlines(keepends=True)
        found.append({"output_type": "execute_result", "execution_count": count, "metadata": {}, "data": data})
    return found


def main() -> None:
    """Write every picture, and the notebook's outputs."""
    report = residual()
    (HERE / "widths.svg").write_text(widths_svg(report))
    photograph(report, HERE / "report.png")
    names = trained()
    lines = {"with 256 images, no labels": accuracies(names, calibration=names["x"][:256].split(64))}
    lines["without data"] = accuracies(names)
    title = "accuracy of README's network on digits, without training after the cut"
    (HERE / "accuracy.svg").write_text(chart_svg(lines, title))
    file = HERE.parent / "digits.ipynb"
    book = json.loads(file.read_text())
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        book["cells"] = run_notebook(book["cells"])
        os.chdir(ROOT)
    file.write_text(json.dumps(book, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
