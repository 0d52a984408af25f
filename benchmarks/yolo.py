"""YOLO networks of ultralytics: pruned, trained by the library's own trainer, stopped, taken up again, exported."""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from PIL import Image
from rich.progress import track

import fxprune
from benchmarks.harness import failure_text
from benchmarks.tables import markdown_table, write_page

_COLUMNS = ("network", "parameters", "left", "trained, stopped, resumed", "loaded and validated", "ONNX", "seconds")
_NOTE = """What was measured: the smallest YOLO network of each kind, built from its yaml with random weights, pruned
with `keep_class=True` and trained for two epochs on six images of noise, as in [the guide](guides/detector.md). The run
is stopped after the first epoch and continued by `resume=True`.

To repeat it: `python -m benchmarks.yolo`.

How to read it: *loaded and validated*: ultralytics alone opens the checkpoint, at the pruned sizes. *ONNX*: the largest
difference of a number in the exported network's output, run in onnxruntime; boxes are in pixels. *Seconds* are those of
pruning."""
_NAMES = """yolov8n yolov8n-seg yolov8n-pose yolo11n yolo11n-seg yolo11n-pose yolo12n yolo12n-seg
    yolo12n-pose yolo26n yolo26n-seg yolo26n-pose""".split()
_BOX = "0 0.5 0.5 0.4 0.4"
_POINTS = 17
_ROWS = {
    "detect": _BOX,
    "segment": "0 0.3 0.3 0.7 0.3 0.7 0.7 0.3 0.7",
    "pose": " ".join([_BOX, *["0.5 0.5 2"] * _POINTS]),
}


def main(
    names: Annotated[
        list[str] | None, typer.Argument(help="Names of yaml files; those of the table by default.")
    ] = None,
    ratio: Annotated[float, typer.Option(help="Of the multiply-accumulates.")] = 0.3,
    size: Annotated[int, typer.Option(help="Of the images.")] = 64,
    out: Annotated[Path, typer.Option(help="The page to write.")] = Path("benchmarks/results/yolo.md"),
) -> None:
    """Write a table of what a pruned YOLO goes through."""
    os.environ.setdefault("YOLO_OFFLINE", "True")
    rows = []
    for name in track(names or _NAMES):
        with tempfile.TemporaryDirectory() as folder:
            rows.append(list(_row(name, ratio, size, Path(folder))))
        write_page(out, "YOLO", _NOTE, markdown_table(_COLUMNS, rows))


def _row(name: str, ratio: float, size: int, folder: Path) -> Iterator[str]:
    from ultralytics import YOLO

    torch.manual_seed(0)
    yolo, shape = YOLO(f"{name}.yaml"), {"data_kpt_shape": (_POINTS, 3)} if name.endswith("pose") else {}
    model = type(yolo.model)(f"{name}.yaml", nc=1, verbose=False, **shape).eval()
    yield name
    yield f"{_count(model) / 1e6:.2f} M"
    started = time.process_time()
    try:
        pruned = fxprune.compile(model, torch.randn(1, 3, size, size), ratio, keep_class=True)
    except fxprune.FxpruneError as error:
        yield from (failure_text(error), "", "", "", "")
        return
    seconds = time.process_time() - started
    yield f"{_count(pruned) / 1e6:.2f} M"
    data = _data(folder, size, yolo.task)
    how = {"data": str(data), "imgsz": size, "device": "cpu", "workers": 0, "plots": False, "verbose": False}
    yolo.model = pruned
    resumed, best = _trained(yolo, pruned, folder, how)
    yield "yes" if resumed else "no"
    again = YOLO(best)
    again.val(**how, project=str(folder / "runs"))
    yield "yes" if _count(again.model) == _count(pruned) else "no"
    yield f"{_exported(best, size):.1g}"
    yield f"{seconds:.1f}"


def _count(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _data(folder: Path, size: int, task: str) -> Path:
    generator = np.random.default_rng(0)
    for part in ("images", "labels"):
        (folder / part).mkdir()
    for number in range(6):
        pixels = generator.integers(0, 255, (size, size, 3), np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{number}.png")
        (folder / "labels" / f"{number}.txt").write_text(_ROWS[task] + "\n")
    points = f"kpt_shape: [{_POINTS}, 3]\nflip_idx: {list(range(_POINTS))}\n" if task == "pose" else ""
    data = folder / "data.yaml"
    data.write_text(f"path: {folder}\ntrain: images\nval: images\nnames: [thing]\n{points}")
    return data


class _StoppedError(Exception):
    pass


def _stop(trainer: Any) -> None:
    if trainer.epoch == 0:
        raise _StoppedError


def _trained(yolo: Any, pruned: torch.nn.Module, folder: Path, how: dict[str, Any]) -> tuple[bool, Path]:
    """Whether a run that was stopped after an epoch went on with the next; the weights that it left."""

    class PrunedTrainer(yolo._smart_load("trainer")):  # type: ignore[misc]
        def get_model(self, cfg: Any = None, weights: Any = None, verbose: bool = True) -> torch.nn.Module:
            return pruned if weights is None else weights.float().requires_grad_()

    yolo.add_callback("on_model_save", _stop)
    with contextlib.suppress(_StoppedError):
        yolo.train(trainer=PrunedTrainer, epochs=2, batch=2, project=str(folder / "runs"), name="pruned", **how)
    weights = folder / "runs" / "pruned" / "weights"
    last = type(yolo)(weights / "last.pt")
    last.train(trainer=PrunedTrainer, resume=True)
    return (last.trainer.start_epoch, last.trainer.epoch) == (1, 1), weights / "best.pt"


def _exported(best: Path, size: int) -> float:
    """The largest difference of the exported network's output."""
    import onnxruntime
    from ultralytics import YOLO

    session = onnxruntime.InferenceSession(YOLO(best).export(format="onnx", imgsz=size, verbose=False))
    x = torch.rand(1, 3, size, size)
    with torch.no_grad():
        expected = YOLO(best).model.float().eval().fuse(verbose=False)(x)
    while isinstance(expected, (list, tuple)):
        expected = expected[0]
    found = session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]
    return float(np.abs(found - expected.numpy()).max())


if __name__ == "__main__":
    typer.run(main)
