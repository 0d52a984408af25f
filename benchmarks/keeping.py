"""Kept classes: small networks of transformers are pruned, saved, loaded by their library alone, and compared."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import torch
import transformers
import typer
from rich.progress import track

import fxprune
from benchmarks.harness import failure_text
from benchmarks.language_model import language_model, missing, texts
from benchmarks.tables import markdown_table, write_page
from fxprune.recovery import Reconstruct

_COLUMNS = (
    "model",
    "parameters removed",
    "configuration",
    "loads and answers alike",
    "generates alike",
    "processor seconds",
)
_NOTE = """What was measured: small networks of transformers with random weights, pruned with `keep_class=True,
alike="equal"`, saved by `save_pretrained`, and loaded by `from_pretrained` of the library alone. Below the table, a
trained model loses a share of each feed-forward block and is recovered with calibration; a new process that loads
transformers alone asks its folder.

To repeat it: `python -m benchmarks.keeping`.

How to read it: *configuration* says which fields changed. *Loads and answers alike*: the outputs are equal to the bit.
*Generates alike*: the tokens are equal, with a cache and without. If no field of the configuration says a width, the
class is kept, but the library cannot load the folder; the note names that width."""
_QUESTIONS = ("What is the capital of France?", "Why is the sky blue? Answer in one sentence.")
_TOKENS = 40
_ASK = """
import sys
from transformers import AutoModelForCausalLM, AutoTokenizer
folder, tokens, *questions = sys.argv[1:]
model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
assert "fxprune" not in sys.modules
for question in questions:
    asked = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    answer = model.generate(**asked, max_new_tokens=int(tokens), do_sample=False)[0, asked["input_ids"].shape[1]:]
    print(tokenizer.decode(answer, skip_special_tokens=True).replace("\\n", " "))
"""

_DECODER = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 32,
}
_GROUPED = {**_DECODER, "num_key_value_heads": 2}
_EXPERTS = {**_GROUPED, "num_local_experts": 8, "num_experts_per_tok": 2}
_IMAGES = {**_DECODER, "image_size": 32, "patch_size": 8}


def networks() -> dict[str, tuple[str, str, dict[str, Any], tuple[str, ...], dict[str, Any]]]:
    """By name: class, configuration, its fields, the inputs, and other options of the compilation."""
    text = ("input_ids",)
    halves = {f"{half}_{field}": n for half in ("encoder", "decoder") for field, n in _HALF.items()}
    towers = {"text_config": dict(_DECODER), "vision_config": dict(_IMAGES)}
    seq, sound = ("input_ids", "decoder_input_ids"), ("input_features", "decoder_input_ids")
    return {
        "Llama": ("LlamaForCausalLM", "LlamaConfig", _GROUPED, text, {}),
        "Qwen3": ("Qwen3ForCausalLM", "Qwen3Config", {**_GROUPED, "head_dim": 8}, text, {}),
        "Gemma3": ("Gemma3ForCausalLM", "Gemma3TextConfig", {**_GROUPED, "head_dim": 8}, text, {}),
        "Mistral": ("MistralForCausalLM", "MistralConfig", _GROUPED, text, {}),
        "Mixtral": ("MixtralForCausalLM", "MixtralConfig", _EXPERTS, text, {}),
        "GPT-2": ("GPT2LMHeadModel", "GPT2Config", _GPT2, text, {"residual": "coupled"}),
        "BERT": ("BertModel", "BertConfig", _DECODER, text, {}),
        "T5": ("T5ForConditionalGeneration", "T5Config", _T5, seq, {}),
        "ViT": ("ViTForImageClassification", "ViTConfig", _IMAGES, ("pixel_values",), {}),
        "Swin": ("SwinForImageClassification", "SwinConfig", _SWIN, ("pixel_values",), _SHARES),
        "ConvNeXt": ("ConvNextForImageClassification", "ConvNextConfig", _CONVNEXT, ("pixel_values",), _ONE_SHARE),
        "Whisper": ("WhisperForConditionalGeneration", "WhisperConfig", {**_WHISPER, **halves}, sound, {}),
        "CLIP": ("CLIPModel", "CLIPConfig", {**towers, "projection_dim": 16}, ("input_ids", "pixel_values"), {}),
    }


# Stages of several widths, whose configuration says one factor for all, or one number for a stage and its blocks.
_SHARES = {"scope": "uniform", "exclude": ["*attention*"]}
_ONE_SHARE = {"ratio": {"*": 0.25}, "round_to": 1, "residual": "coupled"}
_HALF = {"layers": 1, "attention_heads": 4, "ffn_dim": 64}
_GPT2 = {"vocab_size": 97, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 32}
_T5 = {
    "vocab_size": 97,
    "pad_token_id": 0,
    "decoder_start_token_id": 0,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 64,
    "num_layers": 1,
    "num_heads": 4,
}
_SWIN = {"image_size": 32, "patch_size": 2, "embed_dim": 16, "depths": [1, 1], "num_heads": [2, 4], "window_size": 4}
_CONVNEXT = {"hidden_sizes": [16, 24, 32, 40], "depths": [1, 1, 1, 1]}
_WHISPER = {
    "vocab_size": 97,
    "num_mel_bins": 8,
    "d_model": 32,
    "max_source_positions": 16,
    "max_target_positions": 16,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
}
_MADE = {
    "input_ids": lambda: torch.randint(3, 97, (2, 12)),
    "decoder_input_ids": lambda: torch.randint(3, 97, (2, 5)),
    "pixel_values": lambda: torch.randn(2, 3, 32, 32),
    "input_features": lambda: torch.randn(2, 8, 32),
}


def main(
    models: Annotated[list[str] | None, typer.Argument(help="Names of the table; all by default.")] = None,
    ratio: Annotated[float, typer.Option(help="Of the parameters.")] = 0.2,
    share: Annotated[float, typer.Option(help="Of each feed-forward block of the trained model.")] = 0.15,
    out: Annotated[Path, typer.Option(help="The page to write.")] = Path("benchmarks/results/keeping.md"),
) -> None:
    """Write a table of round trips."""
    transformers.logging.set_verbosity_error()
    rows = [list(round_trip(name, ratio)) for name in track(models or list(networks()))]
    write_page(out, "Kept classes", _NOTE, "\n\n".join([markdown_table(_COLUMNS, rows), *_trained(share)]))


def _trained(share: float) -> Iterator[str]:
    """A trained language model, cut, saved, and asked from its folder in another process."""
    if absent := missing():
        yield f"A trained model: skipped, as this needs {', '.join(absent)}."
        return
    model, tokenizer = language_model()
    calibration, _ = texts(tokenizer, 32, 1, 256)
    pruned: Any = fxprune.compile(
        model,
        {"input_ids": calibration[:2, :16]},
        {"*.mlp.gate_proj": share},
        alike="equal",
        keep_class=True,
        calibration=[{"input_ids": part} for part in calibration.split(4)],
        recover=Reconstruct(everywhere=False),
    )
    report = fxprune.report(pruned)
    yield "A trained model: SmolLM2-135M-Instruct, {:.1f} M parameters before and {:.1f} M after; {}.".format(
        report.parameters_before / 1e6,
        report.parameters_after / 1e6,
        next(note for note in report.notes if note.startswith("config")),
    )
    answers = []
    for network in (model, pruned):
        with tempfile.TemporaryDirectory() as folder:
            for part in (network, tokenizer):
                part.save_pretrained(folder)
            command = [sys.executable, "-c", _ASK, folder, str(_TOKENS), *_QUESTIONS]
            answers.append(subprocess.run(command, capture_output=True, text=True, check=True, cwd=folder).stdout)
    rows = zip(_QUESTIONS, *(answer.splitlines() for answer in answers), strict=True)
    yield markdown_table(("question", "the original's answer", "the pruned one's"), list(rows))


def round_trip(name: str, ratio: float) -> Iterator[str]:
    """The cells of a network's row: pruned, saved, and loaded by its library."""
    class_name, config_name, fields, inputs, options = networks()[name]
    torch.manual_seed(0)
    cls = getattr(transformers, class_name)
    model = cls(getattr(transformers, config_name)(**fields)).eval()
    sample = {given: _MADE[given]() for given in inputs}
    if hasattr(model.config, "use_cache"):
        sample["use_cache"] = False
    started = time.process_time()
    asked: dict[str, Any] = {"ratio": ratio, "budget": "params", "residual": "inner", **options}
    if isinstance(asked["ratio"], Mapping):
        del asked["budget"]
    yield name
    try:
        pruned = fxprune.compile(model, sample, keep_class=True, alike="equal", **asked)
    except fxprune.FxpruneError as error:
        yield from ("", failure_text(error), "", "", f"{time.process_time() - started:.1f}")
        return
    seconds = time.process_time() - started
    report = fxprune.report(pruned)
    yield f"{1 - report.parameters_after / report.parameters_before:.1%}"
    yield next((note for note in report.notes if "config" in note), "not built from one")
    with tempfile.TemporaryDirectory() as folder:
        pruned.save_pretrained(folder)
        try:
            loaded = cls.from_pretrained(folder).eval()
        except RuntimeError:
            yield from ("no", "", f"{seconds:.1f}")
            return
    with torch.no_grad():
        pairs = zip(_tensors(loaded(**sample)), _tensors(pruned(**sample)), strict=True)
        yield "yes" if all(torch.equal(a, b) for a, b in pairs) else "no"
        yield _generates(loaded, pruned, next(iter(sample.values())))
    yield f"{seconds:.1f}"


def _tensors(output: Any) -> list[torch.Tensor]:
    return [value for value in output.values() if isinstance(value, torch.Tensor)]


def _generates(loaded: Any, pruned: Any, given: torch.Tensor) -> str:
    if not pruned.can_generate():
        return ""
    how = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None}
    found = [net.generate(given, use_cache=cache, **how) for net in (loaded, pruned) for cache in (True, False)]
    return "yes" if all(torch.equal(found[0], other) for other in found[1:]) else "no"


if __name__ == "__main__":
    typer.run(main)
