"""What the pass costs and brings on an accelerator, in one run of some minutes: a row for each measurement.

``python -m benchmarks.accelerator`` on a machine with CUDA; ``--size tiny --device cpu`` tries it anywhere.
"""

from __future__ import annotations

import copy
import functools
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor, nn
from torchvision import models

import fxprune
from benchmarks import rivals
from benchmarks.harness import TimeLimitReached, failure_text, time_limit
from benchmarks.tables import ResumableTable, write_page
from fxprune.capture.samples import Sample
from fxprune.cost.measuring import timed_alternately

_RATIO, _BATCH = 0.5, 8
_MULTIPLES = (1, 8, 16, 64)
_LONGEST = 60.0  # seconds that one measurement may take
_COLUMNS = ("measurement", "network", "what", "seconds", "MACs removed", "original ms", "pruned ms", "note")
_NOTE = f"""Networks with random weights, half of whose MACs go; the Llama-like one in bfloat16, batches of {_BATCH} for
latencies. *compile* is analysis, plan, rewrite and proof, *reconstruct* the same with four batches of calibration and
what `compile` repairs by default, *latency budget* a third of the measured latency instead of MACs. *eager* and
*compiled* time the original and the pruned network in turns; widths that were narrowed are multiples of `round_to`;
compiled is `torch.compile`, with CUDA graphs where there is CUDA. What did not fit into the minutes is missing."""


def main(
    device: Annotated[str, typer.Option(help="Where networks run.")] = "cuda",
    size: Annotated[str, typer.Option(help='"full" or "tiny".')] = "full",
    minutes: Annotated[float, typer.Option(help="No measurement begins later than this.")] = 7.5,
    out: Annotated[Path, typer.Option(help="Table to write or go on with; .md beside it.")] = Path(
        "benchmarks/results/accelerator.csv"
    ),
) -> None:
    """Measure all that fits into the time, the most telling first."""
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise typer.BadParameter("there is no CUDA device: try --size tiny --device cpu", param_hint="--device")
    until = time.perf_counter() + 60 * minutes
    table = ResumableTable(out, _COLUMNS)
    subjects = [Subject(name, build, torch.device(device)) for name, build in NETWORKS[size].items()]
    for what, measure in measurements(torch.device(device)):
        for subject in subjects:
            key, left = f"{subject.name}: {what}", until - time.perf_counter()
            if left > 0 and key not in table.rows:
                row = _limited(measure, subject, min(left, _LONGEST))
                table.add({"measurement": key, "network": subject.name, "what": what, **row})
                print(key, row, flush=True)
    where = torch.cuda.get_device_name() if device.startswith("cuda") else device
    write_page(out.with_suffix(".md"), f"On an accelerator: {where}", _NOTE, table.markdown(_COLUMNS[1:]))


# -- networks ----------------------------------------------------------------------------------------------------------

Built = tuple[nn.Module, Any]


@dataclass
class Subject:
    """A network on a device, with its pruned forms, each made when it is first asked for.

    Attributes:
        name: of the network.
        build: makes it and a sample.
        device: where it runs.
        forms: the pruned networks by what ``round_to`` was.
    """

    name: str
    build: Callable[[], Built]
    device: torch.device
    forms: dict[int, nn.Module] = field(default_factory=dict)

    @functools.cached_property
    def network(self) -> nn.Module:
        """In eval mode."""
        torch.manual_seed(0)
        return self.build()[0].eval().to(self.device)

    @functools.cached_property
    def sample(self) -> Tensor:
        """One input, of batch size 1."""
        found: Tensor = self.build()[1].to(self.device)
        return found

    def batch(self, count: int = _BATCH) -> Tensor:
        """Other inputs of the same kind."""
        if self.sample.is_floating_point():
            return torch.randn(count, *self.sample.shape[1:], device=self.device)
        return torch.randint(0, 1000, (count, *self.sample.shape[1:]), device=self.device)

    def pruned(self, multiple: int) -> nn.Module:
        """Half of the MACs gone, widths multiples of a number; not proven."""
        if multiple not in self.forms:
            self.forms[multiple] = fxprune.compile(
                self.network, self.sample, _RATIO, round_to=multiple, verify=False, recover=None
            ).eval()
        return self.forms[multiple]


def _image(build: Callable[..., nn.Module], side: int = 224, **options: Any) -> Callable[[], Built]:
    return lambda: (build(**options), torch.randn(1, 3, side, side))


def _llama(hidden: int, layers: int, heads: int, vocabulary: int) -> Callable[[], Built]:
    def build() -> Built:
        from transformers import LlamaConfig, LlamaForCausalLM  # type: ignore[import-not-found, unused-ignore]

        config = LlamaConfig(
            hidden_size=hidden,
            intermediate_size=4 * hidden,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=max(1, heads // 4),
            vocab_size=vocabulary,
            use_cache=False,
        )
        network: nn.Module = LlamaForCausalLM(config).bfloat16()
        return network, torch.randint(0, 1000, (1, 64))

    return build


_TINY_VIT = {"image_size": 32, "patch_size": 8, "num_layers": 2, "num_heads": 4, "hidden_dim": 32, "mlp_dim": 64}
_TINY_SWIN = {
    "patch_size": [4, 4],
    "embed_dim": 16,
    "depths": [1, 1],
    "num_heads": [2, 4],
    "window_size": [4, 4],
    "stochastic_depth_prob": 0.0,
}

NETWORKS: Mapping[str, Mapping[str, Callable[[], Built]]] = {
    "full": {
        "ResNet-50": _image(models.resnet50),
        "ViT-B/16": _image(models.vit_b_16),
        "Swin-T": _image(models.swin_t),
        "ConvNeXt-T": _image(models.convnext_tiny),
        "Llama, 1 B": _llama(2048, 16, 32, 32000),
    },
    "tiny": {
        "ResNet-18": _image(models.resnet18, 32),
        "ViT": _image(models.VisionTransformer, 32, **_TINY_VIT),
        "Swin": _image(models.SwinTransformer, 32, **_TINY_SWIN),
        "Llama": _llama(64, 2, 4, 1000),
    },
}


# -- measurements ------------------------------------------------------------------------------------------------------

Row = dict[str, object]


def measurements(device: torch.device) -> Iterator[tuple[str, Callable[[Subject], Row]]]:
    """Names and functions, the most telling first."""
    yield "compile", _compiled
    for multiple in _MULTIPLES:
        yield f"eager, round_to {multiple}", functools.partial(_latency, multiple, _as_it_is)
    yield "torch-pruning", _rival
    yield "reconstruct", _reconstructed
    yield "latency budget", _budgeted
    if device.type != "cpu":
        yield "compile on the CPU", _compiled_on_cpu
    for multiple in _MULTIPLES:
        yield f"compiled, round_to {multiple}", functools.partial(_latency, multiple, _optimised)


def _limited(measure: Callable[[Subject], Row], subject: Subject, seconds: float) -> Row:
    """The row, or one that says why there is none."""
    try:
        with time_limit(seconds):
            return measure(subject)
    except TimeLimitReached as error:
        return {"note": str(error)}
    except Exception as error:  # a network that fails is a result, and must not hide the others
        return {"note": failure_text(error)}


def _compiled(subject: Subject, **options: Any) -> Row:
    started = time.perf_counter()
    pruned = fxprune.compile(subject.network, subject.sample, options.pop("ratio", _RATIO), **options)
    _wait(subject.device)
    report = fxprune.report(pruned)
    proof = report.proof
    note = f"proof {proof.relative_error:.1e}, {report.seconds.get('verify', 0.0):.1f} s" if proof else report.unproven
    return {
        "seconds": round(time.perf_counter() - started, 2),
        "MACs removed": f"{1 - report.macs_after / report.macs_before:.1%}",
        "note": note,
    }


def _reconstructed(subject: Subject) -> Row:
    return _compiled(subject, calibration=[subject.batch() for _ in range(4)])


def _budgeted(subject: Subject) -> Row:
    return _compiled(subject, budget="latency", ratio=1 / 3)


def _compiled_on_cpu(subject: Subject) -> Row:
    return _compiled(Subject(subject.name, subject.build, torch.device("cpu")))


def _rival(subject: Subject) -> Row:
    network = copy.deepcopy(subject.network)
    started = time.perf_counter()
    # Half of the MACs are about three tenths of the channels.
    rivals.prune(network, subject.sample, 0.3)
    _wait(subject.device)
    return {"seconds": round(time.perf_counter() - started, 2)}


def _latency(multiple: int, prepare: Callable[[nn.Module], nn.Module], subject: Subject) -> Row:
    values = Sample.from_input(subject.batch())
    networks = [prepare(network) for network in (subject.network, subject.pruned(multiple))]
    with torch.no_grad():
        times = timed_alternately([functools.partial(values.call, network) for network in networks], 1.0)
    before, after = (round(1e3 * statistics.median(found), 3) for found in times)
    return {"original ms": before, "pruned ms": after, "note": f"{before / after:.2f} times faster"}


def _as_it_is(network: nn.Module) -> nn.Module:
    return network


def _optimised(network: nn.Module) -> nn.Module:
    mode = "reduce-overhead" if next(network.parameters()).is_cuda else "default"
    compiled: nn.Module = torch.compile(network, mode=mode)
    return compiled


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    typer.run(main)
