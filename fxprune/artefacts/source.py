"""``model.py``: the network as Python source that needs torch alone."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch.fx import GraphModule

from fxprune.artefacts.descriptions import Description
from fxprune.artefacts.source_forward import forward_source
from fxprune.artefacts.source_tree import HELPER, ModuleTree

__all__ = ["model_source"]

_USE = """
Load its weights with

    from safetensors.torch import load_file

    model = Model()
    model.load_state_dict(load_file("weights.safetensors"))
"""


def model_source(
    network: GraphModule, description: Description, tensors: Mapping[str, torch.Tensor], headline: str
) -> str:
    """Source of a module that defines ``Model``, a class without constructor arguments.

    ``tensors`` holds every tensor by name, of which only constants are written out; ``headline`` is the docstring's
    first line.
    """
    tree = ModuleTree(description)
    statements = tree.statements(tensors)
    forward = forward_source(network.graph, tree.access)
    constructor = "\n".join(f"        {line}" for line in ["super().__init__()", *statements])
    body = f"class Model(nn.Module):\n    def __init__(self) -> None:\n{constructor}\n\n{forward}"
    helper = f"\n{HELPER}" if "named(" in constructor else ""
    # The headline may quote names of the user's; it must not end the docstring.
    safe = headline.replace("\\", "/").replace('"', "'")
    return f'"""{safe}\n{_USE}"""\n\n{_imports(body)}\n{helper}\n\n{body}'


def _imports(body: str) -> str:
    lines = [f"import {name}" for name in ("math", "torch", "torchvision") if name == "torch" or f"{name}." in body]
    lines.append("import torch.nn.functional as F" if "F." in body else "")
    return "\n".join([*lines, "from torch import nn"]).replace("\n\n", "\n")
