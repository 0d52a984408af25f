"""How far down single groups may go: accuracy after pruning without training, for several ``max_ratio``.

    python -m benchmarks.floors

Trained CIFAR-10 ResNets of the shared folder lose half and seven tenths of their multiply-accumulates by global
magnitude with any widths; batch norms are then recalibrated on 1,024 training images. The figure is the accuracy
on 2,000 test images.
"""

from __future__ import annotations

import torch
from safetensors.torch import load_file

import fxprune
from benchmarks.cifar import accuracy, cifar_resnet, load_images, recalibrate, shared_file
from fxprune.errors import BudgetError

SHARES = (1.0, 0.95, 0.9, 0.8, 0.7)


def main() -> None:
    """Print the table in Markdown."""
    torch.manual_seed(0)
    path = shared_file("data", "cifar10.zip")
    images, _ = load_images(path, "train", 1024)
    tested, labels = load_images(path, "test", 2000)
    print("| network | criterion | MACs removed |" + "".join(f" max_ratio {share:g} |" for share in SHARES))
    print("|---|---|---|" + "---|" * len(SHARES))
    for depth in (20, 56):
        model = cifar_resnet(depth)
        model.load_state_dict(load_file(shared_file("weights", f"cifar_resnet{depth}.safetensors")))
        for criterion in ("magnitude", "slimming"):
            for ratio in (0.5, 0.7):
                found = [_accuracy(model.eval(), criterion, ratio, share, images, tested, labels) for share in SHARES]
                print(f"| ResNet-{depth} | {criterion} | {ratio:.0%} | " + " | ".join(found) + " |", flush=True)


def _accuracy(
    model: torch.nn.Module,
    criterion: str,
    ratio: float,
    share: float,
    images: torch.Tensor,
    tested: torch.Tensor,
    labels: torch.Tensor,
) -> str:
    options = {"criterion": criterion, "max_ratio": share, "round_to": 1, "verify": False}
    try:
        pruned = fxprune.compile(model, images[:1], ratio, scope="global", **options)  # type: ignore[arg-type]
    except BudgetError:
        return "out of reach"
    recalibrate(pruned, images)
    return f"{100 * accuracy(pruned, tested, labels):.1f}"


if __name__ == "__main__":
    main()
