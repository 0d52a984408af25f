"""What options may be, for completion in a shell: written down, so that no heavy library is imported for it."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["BUDGETS", "CRITERIA", "FORMATS", "RECOVERIES", "RUNTIMES", "complete"]

BUDGETS = ("macs", "params", "channels", "memory", "latency")
CRITERIA = tuple(
    """
    apoz chip feature_distance feature_entropy filter_similarity fpgm hessian hrank information_fusion lamp magnitude
    mean_activation multi_source parallel random reconstruction slimming taylor taylor_activations thinet
    """.split()
)
FORMATS = ("pt2", "onnx", "source")
RECOVERIES = ("batchnorm", "bias", "fuse", "reconstruct")
RUNTIMES = ("eager", "compile", "onnxruntime")


def complete(choices: tuple[str, ...]) -> Callable[[str], list[str]]:
    """What a shell may complete a word to."""

    def completion(incomplete: str) -> list[str]:
        return [choice for choice in choices if choice.startswith(incomplete)]

    return completion
