"""``model.py``: the network as Python source that needs torch alone."""

from __future__ import annotations

import copy
import textwrap
from collections.abc import Mapping

import torch
from torch import nn
from torch.fx import Graph, GraphModule

from fxprune.rewriting import choosing
from fxprune.saving.descriptions import Description, graphs_of
from fxprune.saving.graphs import is_namedtuple
from fxprune.saving.layers import submodule
from fxprune.saving.source_data import RESTORED, RESTORED_OBJECT
from fxprune.saving.source_forward import forward_source, has_variants
from fxprune.saving.source_names import PART
from fxprune.saving.source_tree import HELPER, ModuleTree
from fxprune.util.modes import flags_of

_USE = """
Load its weights with

    from safetensors.torch import load_file

    model = Model()
    model.load_state_dict(load_file("weights.safetensors"))
"""


def model_source(
    network: nn.Module, description: Description, tensors: Mapping[str, torch.Tensor], headline: str
) -> str:
    """Source of a module that defines ``Model``, a class without constructor arguments.

    ``tensors`` holds every tensor by name, of which only constants are written out; ``headline`` is the docstring's
    first line.
    """
    tree = ModuleTree(description, tensors)
    root = description.root
    base = "nn.Module" if root is None else tree.kind(root)
    start = "super().__init__()" if root is None else "nn.Module.__init__(self)"
    constructor = "\n".join(f"        {line}" for line in [start, *tree.statements()])
    graphs = _graphs(network, tree)
    refusal = description.modes.get("untraced", "")
    own = f"\n{forward_source(graphs[''], tree.access, tree.states.name, refusal)}" if "" in graphs else ""
    islands = "".join(_island_source(graphs[path], path, name, tree) for path, name in tree.islands.items())
    own += _train_source(network) if description.modes.get("effects") else ""
    body = f"class Model({base}):\n    def __init__(self) -> None:\n{constructor}\n{own}"
    helpers = [HELPER] * ("named(" in constructor) + [RESTORED] * ("restored(" in constructor)
    helpers += [RESTORED_OBJECT] * ("restored_object(" in constructor)
    helpers += [PART] * ("part(" in body + islands)
    if any(map(has_variants, graphs.values())):
        helpers.append(f"\n{choosing.source()}")
    helper = "".join(f"\n{text}" for text in helpers)
    # The headline may quote names of the user's; it must not end the docstring.
    safe = textwrap.fill(headline.replace("\\", "/").replace('"', "'"), 117)
    tuples = _namedtuples(graphs)
    constants = tree.constants.definitions()
    imports = "\n".join([_imports(helper + islands + body, tuples, constants), *_foreign_imports(tree)])
    return f'"""{safe}\n{_USE}"""\n\n{imports}\n{tuples}{helper}\n\n{islands}{body}{constants}'


def _train_source(network: nn.Module) -> str:
    """The ``train`` method of a network some of whose parts do not take its mode."""
    odd = {}
    for mode in (True, False):
        flags = flags_of(copy.deepcopy(network).train(mode))
        odd[mode] = {path: flag for path, flag in flags.items() if flag is not mode}
    return f'''
    def train(self, mode=True):
        """Switch to training mode, or back; some parts keep a mode of their own."""
        super().train(mode)
        parts = dict(self.named_modules())
        for path, flag in {odd!a}[mode].items():
            if path in parts:
                parts[path].training = flag
        return self
'''


def _graphs(network: nn.Module, tree: ModuleTree) -> dict[str, Mapping[str, Graph]]:
    """The graphs of the network itself, under "", and of the GraphModules inside its opaque modules."""
    modules = {path: submodule(network, path) for path in ("", *tree.islands)}
    return {path: graphs_of(module) for path, module in modules.items() if isinstance(module, GraphModule)}


def _island_source(graphs: Mapping[str, Graph], path: str, name: str, tree: ModuleTree) -> str:
    forward = forward_source(graphs, lambda target: tree.access(target, path), tree.states.name)
    return f"class {name}(nn.Module):\n{forward}\n\n"


def _foreign_imports(tree: ModuleTree) -> list[str]:
    lines = tree.states.imports()
    return ["", *lines] if lines else []


def _imports(body: str, tuples: str, constants: str) -> str:
    wanted = {
        "import base64": bool(constants),
        "import collections": "collections." in body,
        "import copy": "copy." in body,
        "import inspect": "inspect." in body,
        "import functools": "functools." in body,
        "import math": "math." in body,
        "import operator": "operator." in body,
        "import sys": "sys." in body,
        "import zlib": bool(constants),
        "from collections import namedtuple": bool(tuples),
        "from collections.abc import Callable, Sequence": "Callable[" in body,
        "from concurrent.futures import ThreadPoolExecutor": "ThreadPoolExecutor(" in body,
        "from typing import Any": "Any" in body,
        "": True,
        "import torch": True,
        "import torch.nn.functional as F": "F." in body,
        "import torchvision": "torchvision." in body,
        "from torch import nn": True,
    }
    return "\n".join(line for line, needed in wanted.items() if needed).lstrip("\n")


def _namedtuples(graphs: Mapping[str, Mapping[str, Graph]]) -> str:
    nodes = [node for modes in graphs.values() for graph in modes.values() for node in graph.nodes]
    classes = {node.target.__name__: node.target for node in nodes if is_namedtuple(node.target)}
    lines = [
        f"{name} = namedtuple({name!r}, {list(kind._fields)!r})".replace("'", '"') for name, kind in classes.items()
    ]
    return "".join(["\n", *(f"{line}\n" for line in lines)]) if lines else ""
