"""``model.py``: the network of a description as Python source that needs only torch."""

from __future__ import annotations

import base64
import copy
import functools
import inspect
import keyword
import re
import textwrap
import zlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from fxprune.rewriting import choosing
from fxprune.saving.descriptions import GRAPH_MODULE, Json, graphs_of
from fxprune.saving.layers import build_layer
from fxprune.saving.opaque import ATTRIBUTES
from fxprune.saving.source_forward import call, conversion_source, forward_source, has_specializations
from fxprune.saving.values import PLAIN, Codec, quoted
from fxprune.util.modes import flags_of

_USE = """
Load its weights with

    from safetensors.torch import load_file

    model = Model()
    model.load_state_dict(load_file("weights.safetensors"))
"""
_IMPORTED = "base64 collections copy functools inspect math operator sys types zlib".split()
# Helpers, each defined in the source if it is called there.
_HELPERS = {
    "restored": '''
def restored(kind: type, /, **modules: nn.Module) -> nn.Module:
    """A module made without its constructor, with its submodules."""
    module = kind.__new__(kind)
    nn.Module.__init__(module)
    module._modules.update(modules)
    return module
''',
    "restored_object": '''
def restored_object(kind: type, attributes: dict) -> object:
    """An object made without its constructor, with its attributes."""
    made = object.__new__(kind)
    vars(made).update(attributes)
    return made
''',
    "part": '''
def part(module: nn.Module, name: str) -> nn.Module | torch.Tensor:
    """The part of a module under a name that cannot be written as an attribute."""
    tables = (module._modules, module._parameters, module._buffers)
    return next(table[name] for table in tables if name in table)
''',
}
_UNPACK = '''
def unpack(text: str, stored: torch.dtype, dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
    """A constant from its compressed bytes."""
    data = zlib.decompress(base64.b85decode(text.replace("\\n", "")))
    return torch.frombuffer(bytearray(data), dtype=stored).to(dtype).reshape(shape)
'''
_OWN_NAMES = {*_HELPERS, "Model", "unpack", "torch", "nn", "F"}
_TAKEN = frozenset(vars(nn.Module()))
_LONGEST_LITERAL, _LINE = 48, 100


def model_source(network: nn.Module, description: Json, tensors: Mapping[str, torch.Tensor], headline: str) -> str:
    """Source of a module that defines ``Model``, a class without constructor arguments.

    ``tensors`` holds every tensor by name, but only the values of constants are written; ``headline`` is the first
    line of the docstring.
    """
    tree = _Tree(description, tensors)
    root = next((entry for entry in description["modules"] if not entry["path"]), None)
    base = "nn.Module" if root is None else tree.kind(root)
    start = "super().__init__()" if root is None else "nn.Module.__init__(self)"
    body = "".join(f"        {line}\n" for line in [start, *tree.statements()])
    body = f"class Model({base}):\n    def __init__(self) -> None:\n{body}"
    islands = ""
    for path, name in tree.islands.items():
        graphs, access = graphs_of(tree.entries[path]), functools.partial(tree.access, below=path)
        own = forward_source(graphs, access, tree.values.name) + conversion_source(tensors, f"{path}.")
        islands += f"class {name}(nn.Module):\n{own}\n\n"
    modes = description.get("modes", {})
    if root is None:
        body += f"\n{forward_source(graphs_of(description), tree.access, tree.values.name, modes.get('untraced', ''))}"
    body += (_train_source(network) if modes.get("effects") else "") + conversion_source(tensors, "")
    helpers = [text for name, text in _HELPERS.items() if f"{name}(" in body + islands]
    entries = (description, *tree.entries.values())
    if any(has_specializations(graphs_of(entry)) for entry in entries):
        helpers.append(f"\n{choosing.source()}")
    helper = "".join(f"\n{text}" for text in helpers)
    # The headline may quote the user's names; it must not end the docstring.
    safe = textwrap.fill(headline.replace("\\", "/").replace('"', "'"), 117)
    tuples = _namedtuples(entries)
    constants = tree.values.definitions()
    imports = "\n".join([_imports(tuples, helper + islands + body, constants), *tree.values.imports()])
    return f'"""{safe}\n{_USE}"""\n\n{imports}\n{tuples}{helper}\n\n{islands}{body}{constants}'


def _train_source(network: nn.Module) -> str:
    """The ``train`` method of a network in which some parts do not follow its mode."""
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


def _imports(tuples: str, body: str, constants: str) -> str:
    own = [f"import {name}" for name in _IMPORTED if f"{name}." in body + constants]
    wanted = {
        "from collections import namedtuple": tuples,
        "from collections.abc import Callable, Sequence": "Callable[" in body,
        "from concurrent.futures import ThreadPoolExecutor": "ThreadPoolExecutor(" in body,
        "from typing import Any": "Any" in body,
        "": True,
        "import torch": True,
        "import torch.nn.functional as F": "F." in body,
        "import torchvision": "torchvision." in body,
        "from torch import nn": True,
    }
    return "\n".join([*own, *(line for line, needed in wanted.items() if needed)]).lstrip("\n")


def _namedtuples(entries: tuple[Json, ...]) -> str:
    nodes = [node for entry in entries for graph in graphs_of(entry).values() for node in graph]
    targets = [node["target"] for node in nodes if isinstance(node["target"], dict) and "namedtuple" in node["target"]]
    classes = {name: fields for name, *fields in (target["namedtuple"] for target in targets)}
    lines = [f"{name} = namedtuple({PLAIN.prints([name, fields])})\n" for name, fields in classes.items()]
    return "".join(["\n", *lines]) if lines else ""


def is_plain_name(text: str) -> bool:
    """Whether the text can be the name of a part in source code, also inside a class."""
    taken = keyword.iskeyword(text) or hasattr(nn.Module, text) or text in _TAKEN
    return bool(re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", text)) and not taken and not text.startswith(("__", "forward"))


class _Tree:
    """The modules and tensors of a description, printed as source; ``tensors`` holds all values by name."""

    def __init__(self, description: Json, tensors: Mapping[str, torch.Tensor]) -> None:
        self._tensors = tensors
        self._listed = description["tensors"]
        self.values = _Values(self.access, tensors)
        self.islands: dict[str, str] = {}
        self.entries: dict[str, Json] = {entry["path"]: entry for entry in description["modules"]}
        self._children: dict[str, list[str]] = {"": []}
        for entry in (entry for path, entry in self.entries.items() if path):
            parent, _, name = entry["path"].rpartition(".")
            self._children.setdefault(entry["path"], [])
            if "shared_with" not in entry and parent in self._children:
                self._children[parent].append(name)
        layers = {path: build_layer(path, entry) for path, entry in self.entries.items() if "class" in entry}
        self._made = {f"{path}.{n}" for path, made in layers.items() for n in (*made._parameters, *made._buffers)}
        # Containers that hold only "0", "1", ... in order are printed as lists.
        holding_more = {path.rpartition(".")[0] for path, entry in self.entries.items() if "shared_with" in entry}
        holding_more |= {entry["name"].rpartition(".")[0] for entry in self._listed}
        holding_more |= {path for path, entry in self.entries.items() if "kind" in entry}
        self._lists = {
            path
            for path, names in self._children.items()
            if path and names and set(names) == {str(i) for i in range(len(names))} and path not in holding_more
        }

    def statements(self) -> list[str]:
        """The body of ``__init__``; constants with their values, other tensors only with shape and dtype."""
        lines = []
        for name in self._children[""]:
            start = f"self.{name} = " if is_plain_name(name) else f"self._modules[{quoted(name)}] = "
            lines.append(start + self._module(name, 8, len(start)))
        for path, entry in self.entries.items():
            parent, _, name = path.rpartition(".")
            if "shared_with" in entry and parent in self._children:
                lines.append(f"{self.access(parent)}._modules[{quoted(name)}] = {self.access(entry['shared_with'])}")
        lines += [line for entry in self._listed for line in self._tensor(entry)]
        return [*lines, *self._attributes(), *self._frozen()]

    def access(self, path: str, below: str = "") -> str:
        """The expression for the part at ``path`` below the module ``below``, which is ``self``."""
        expression, parent = "self", below
        for name in path.split(".") if path else []:
            if parent in self._lists:
                expression += f"[{name}]"
            else:
                plain = is_plain_name(name)
                expression = f"{expression}.{name}" if plain else f"part({expression}, {quoted(name)})"
            parent = f"{parent}.{name}" if parent else name
        return expression

    def kind(self, entry: Json) -> str:
        """The name of a module's class, or of the class that is written for a graph inside an opaque module."""
        if "kind" not in entry:
            kind = entry.get("container", "Module")
            return "nn.Module" if kind.endswith("Parts") else f"nn.{kind}"
        if entry["kind"] != GRAPH_MODULE:
            return self.values.name(entry["kind"])
        wanted = "Traced" + re.sub(r"[^A-Za-z0-9_]+", "_", entry["name"])
        return self.islands.setdefault(entry["path"], _free_name(wanted, set(self.islands.values())))

    def _module(self, path: str, indent: int, reserve: int) -> str:
        """The expression that makes a module; ``reserve`` is the width of other text on its first line."""
        entry, names = self.entries[path], self._children[path]
        if "class" in entry:
            return _layer_source(entry, indent, reserve)
        kind = self.kind(entry)
        if path in self._lists:
            items = [self._module(f"{path}.{i}", indent + 4, 1) for i in range(len(names))]
            start, end = (f"{kind}(", ")") if kind == "nn.Sequential" else ("nn.ModuleList([", "])")
            return call(start, items, indent, end, reserve)
        if kind == "nn.Module" and not names:
            return "nn.Module()"
        plain = [f"{n}={self._module(f'{path}.{n}', indent + 4, len(n) + 2)}" for n in names if is_plain_name(n)]
        odd = [n for n in names if not is_plain_name(n)]
        items = [f"{quoted(n)}: {self._module(f'{path}.{n}', indent + 8, len(n) + 5)}" for n in odd]
        rest = [call("**{", items, indent + 4, "}")] if items else []
        return call("restored(", [kind, *plain, *rest], indent, reserve=reserve)

    def _attributes(self) -> list[str]:
        """Statements that set the attributes of foreign modules and containers other than modules and tensors."""
        lines = []
        for path, entry in self.entries.items():
            keys = [name for holder, _, name in (e["name"].rpartition(".") for e in self._listed) if holder == path]
            if entry.get("container") == "ParameterList":
                lines.append(f'vars({self.access(path)}).update({{"_size": {len(keys)}}})')
            if entry.get("container") == "ParameterDict":
                lines.append(f'vars({self.access(path)}).update({{"_keys": dict.fromkeys({keys!a})}})')
        for path, entry in self.entries.items():
            owner = self.access(path)
            for slot, names in entry.get("absent", {}).items():
                lines += [f"{owner}.{slot}[{quoted(name)}] = None" for name in names]
            if attributes := entry.get("state"):
                lines.append(call(f"vars({owner}).update({{", self.values.items(attributes), 8, "})"))
        return lines

    def _tensor(self, entry: Json) -> list[str]:
        """The statements that register a tensor; none if its layer does that."""
        tensor, tied_to = self._tensors[entry["name"]], entry.get("tied_to")
        path, _, name = entry["name"].rpartition(".")
        if tied_to is None and entry["name"] in self._made:
            return []
        owner, foreign = self.access(path), "kind" in self.entries.get(path, {})
        by_hand, constant = foreign or not (is_plain_name(name) or name.isdecimal()), entry["kind"] == "constant"
        value = self.access(tied_to) if tied_to is not None else _zeros_source(tensor)
        if tied_to is None and constant:
            value = self.values.constant(entry["name"])
        if entry["kind"] == "parameter":
            if tied_to is None:
                value = f"nn.Parameter({value}{'' if tensor.requires_grad else ', requires_grad=False'})"
            if by_hand:
                return [f"{owner}._parameters[{quoted(name)}] = {value}"]
            return [call(f"{owner}.register_parameter(", [quoted(name), value], 8)]
        if by_hand and not foreign:
            note = f"{owner}._non_persistent_buffers_set.add({quoted(name)})"
            return [f"{owner}._buffers[{quoted(name)}] = {value}", *[note] * constant]
        return [call(f"{owner}.register_buffer(", [quoted(name), value, *["persistent=False"] * constant], 8)]

    def _frozen(self) -> list[str]:
        parameters = [entry for entry in self._listed if entry["kind"] == "parameter" and "tied_to" not in entry]
        frozen = [entry for entry in parameters if not entry.get("requires_grad", True)]
        if frozen and len(frozen) == len(parameters):
            return ["self.requires_grad_(False)"]
        return [f"{self.access(e['name'])}.requires_grad_(False)" for e in frozen if e["name"] in self._made]


def _layer_source(entry: Json, indent: int, reserve: int) -> str:
    parameters = inspect.signature(getattr(nn, entry["class"]).__init__).parameters
    rendered = [
        ("" if parameters.get(name, inspect.Parameter).default is inspect.Parameter.empty else f"{name}=")
        + PLAIN.print(value)
        for name, value in entry["arguments"].items()
    ]
    return call(f"nn.{entry['class']}(", rendered, indent, reserve=reserve)


def _free_name(wanted: str, taken: set[str]) -> str:
    candidates = [wanted, *(f"{wanted}_{i}" for i in range(2, len(taken) + 3))]
    return next(name for name in candidates if name not in taken)


class _Values(Codec):
    """Prints attributes, with the imports that they need and the tensors that have no short expression.

    ``access`` returns the expression for a module; ``tensors`` holds the tensors by name.
    """

    def __init__(self, access: Any, tensors: Mapping[str, torch.Tensor]) -> None:
        super().__init__(ATTRIBUTES)
        self.access = access
        self._tensors = tensors
        self._names: dict[str, str] = {}
        self._packed: dict[str, str] = {}

    def name(self, path: str) -> str:
        """The name under which a class or function is imported."""
        last = path.rpartition(":")[2].replace(".", "_")
        return self._names.setdefault(path, _free_name(last, {*self._names.values(), *_OWN_NAMES}))

    def imports(self) -> list[str]:
        """The import statements of everything that was named so far, after an empty line."""
        named: dict[str, list[str]] = {}
        nested = []
        for path, name in sorted(self._names.items()):
            module, _, qualified = path.partition(":")
            outer, _, inner = qualified.partition(".")
            nested += [f"{name} = {qualified}"] if inner else []
            named.setdefault(module, []).append(outer if inner or outer == name else f"{outer} as {name}")
        lines = [call(f"from {module} import ", list(dict.fromkeys(n)), 0, "") for module, n in named.items()]
        return ["", *lines, *nested] if lines else []

    def attributes(self, state: Mapping[str, Any]) -> str:
        """A dictionary display of attributes by name."""
        return f"{{{', '.join(self.items(state))}}}"

    def items(self, state: Mapping[str, Any]) -> list[str]:
        """The entries of that display."""
        return [f"{quoted(name)}: {self.print(value)}" for name, value in state.items()]

    def constant(self, name: str) -> str:
        """An expression that makes exactly the tensor with this name."""
        tensor = self._tensors[name].detach().cpu().contiguous()
        if (short := _short_source(tensor)) is not None:
            return short
        return self._packed.setdefault(_packed_source(tensor), f"CONSTANT_{len(self._packed) + 1}") + ".clone()"

    def definitions(self) -> str:
        """The source that defines the packed constants; empty if there are none."""
        lines = [f"{name} = {source}\n" for source, name in self._packed.items()]
        return "".join(["\n", _UNPACK, "\n\n", *lines]) if lines else ""


def _zeros_source(tensor: torch.Tensor) -> str:
    """Zeros of the tensor's shape and dtype, to be filled from the state dict."""
    dtype = "" if tensor.dtype is torch.float32 else f", dtype={tensor.dtype}"
    return f"torch.zeros({', '.join(map(str, tensor.shape)) or '()'}{dtype})"


def _short_source(tensor: torch.Tensor) -> str | None:
    shape, dtype = tuple(tensor.shape), f"dtype={tensor.dtype}"
    if tensor.numel() == 0:
        return f"torch.zeros({shape}, {dtype})"
    if tensor.numel() <= 16 and len(literal := PLAIN.print(PLAIN.write(tensor.tolist()))) <= _LONGEST_LITERAL:
        return f"torch.tensor({literal}, {dtype})"
    first = tensor.flatten()[0]
    if _same_bits(tensor, first.expand(shape).contiguous()):
        return f"torch.full({shape}, {PLAIN.print(PLAIN.write(first.item()))}, {dtype})"
    counts = not tensor.is_complex() and tensor.dtype is not torch.bool
    if counts and _same_bits(tensor, torch.arange(tensor.numel(), dtype=tensor.dtype)):
        return f"torch.arange({tensor.numel()}, {dtype}).reshape({shape})"
    return None


def _packed_source(tensor: torch.Tensor) -> str:
    # Tables of positions are long, but their values are small.
    stored = tensor.dtype
    if stored in (torch.int64, torch.int32):
        low, high = int(tensor.min()), int(tensor.max())
        fitting = (d for d in (torch.uint8, torch.int16) if torch.iinfo(d).min <= low and high <= torch.iinfo(d).max)
        stored = next(fitting, stored)
    data = tensor.to(stored).flatten().view(torch.uint8).numpy().tobytes()
    text = base64.b85encode(zlib.compress(data, 9)).decode("ascii")
    # This encoding has neither quotes nor backslashes.
    lines = "\n".join(text[i : i + _LINE] for i in range(0, len(text), _LINE))
    return f'unpack(\n    """\n{lines}\n""",\n    {stored},\n    {tensor.dtype},\n    {tuple(tensor.shape)},\n)'


def _same_bits(left: torch.Tensor, right: torch.Tensor) -> bool:
    # Bits, not values: zero equals minus zero, and NaN does not equal itself.
    return torch.equal(left.flatten().view(torch.uint8), right.flatten().view(torch.uint8))
