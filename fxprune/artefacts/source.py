"""``model.py``: the network as Python source that needs torch alone."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping

import torch
from torch.fx import Graph, GraphModule

from fxprune.artefacts.descriptions import Description, graphs_of
from fxprune.artefacts.namedtuples import is_namedtuple
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
    graphs = graphs_of(network)
    forward = forward_source(graphs, tree.access)
    constructor = "\n".join(f"        {line}" for line in ["super().__init__()", *statements])
    body = f"class Model(nn.Module):\n    def __init__(self) -> None:\n{constructor}\n\n{forward}"
    helper = f"\n{HELPER}" if "named(" in constructor else ""
    # The headline may quote names of the user's; it must not end the docstring.
    safe = textwrap.fill(headline.replace("\\", "/").replace('"', "'"), 117)
    tuples = _namedtuples(graphs)
    constants = tree.constants.definitions()
    return f'"""{safe}\n{_USE}"""\n\n{_imports(body, tuples, constants)}\n{tuples}{helper}\n\n{body}{constants}'


def _imports(body: str, tuples: str, constants: str) -> str:
    wanted = {
        "import base64": bool(constants),
        "import collections": "collections." in body,
        "import math": "math." in body,
        "import zlib": bool(constants),
        "from collections import namedtuple": bool(tuples),
        "": True,
        "import torch": True,
        "import torch.nn.functional as F": "F." in body,
        "import torchvision": "torchvision." in body,
        "from torch import nn": True,
    }
    return "\n".join(line for line, needed in wanted.items() if needed).lstrip("\n")


def _namedtuples(graphs: Mapping[str, Graph]) -> str:
    classes = {
        node.target.__name__: node.target for g in graphs.values() for node in g.nodes if is_namedtuple(node.target)
    }
    lines = [
        f"{name} = namedtuple({name!r}, {list(kind._fields)!r})".replace("'", '"') for name, kind in classes.items()
    ]
    return "".join(["\n", *(f"{line}\n" for line in lines)]) if lines else ""
