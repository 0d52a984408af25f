"""The constructor of a generated ``model.py``: statements that build the module tree and its tensors."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping

import torch
from torch import nn

from fxprune.saving.descriptions import Description, ModuleEntry
from fxprune.saving.layers import build_layer
from fxprune.saving.source_data import ConstantTable, StateSource, literal_source, zeros_source
from fxprune.saving.source_names import call, is_plain_name, quoted
from fxprune.saving.tensors import TensorEntry
from fxprune.saving.values import decode

HELPER = '''
def named(**modules: nn.Module) -> nn.Module:
    """A module that only holds others under the names they have in the original network."""
    holder = nn.Module()
    for name, module in modules.items():
        holder._modules[name] = module
    return holder
'''


class ModuleTree:
    """The modules and tensors of a description, printed as source; ``tensors`` holds all values by name."""

    def __init__(self, description: Description, tensors: Mapping[str, torch.Tensor]) -> None:
        self._description = description
        self._tensors = tensors
        self.constants = ConstantTable()
        self.states = StateSource(self.access, tensors, self.constants)
        self.islands: dict[str, str] = {}
        self._entries = {entry.path: entry for entry in description.modules}
        self._children: dict[str, list[str]] = {"": []}
        for entry in (e for e in description.modules if e.path):
            parent, _, name = entry.path.rpartition(".")
            self._children.setdefault(entry.path, [])
            if entry.shared_with is None and parent in self._children:
                self._children[parent].append(name)
        self._made: dict[str, set[str]] = {}
        self._lists = self._containers_that_print_as_lists()

    def _containers_that_print_as_lists(self) -> set[str]:
        """Paths of containers that hold nothing but "0", "1", ... in order."""
        holding_more = {e.path.rpartition(".")[0] for e in self._description.modules if e.shared_with is not None}
        holding_more |= {entry.name.rpartition(".")[0] for entry in self._description.tensors}
        holding_more |= {e.path for e in self._description.modules if e.foreign is not None}
        return {
            path
            for path, names in self._children.items()
            if path and names and set(names) == {str(i) for i in range(len(names))} and path not in holding_more
        }

    def statements(self) -> list[str]:
        """The body of ``__init__``; constants are written out, of the other tensors the shape and dtype."""
        lines = []
        for name in self._children[""]:
            start = f"self.{name} = " if is_plain_name(name) else f"self._modules[{quoted(name)}] = "
            lines.append(start + self._module(name, 8, len(start)))
        for entry in self._description.modules:
            if entry.shared_with is not None and entry.path.rpartition(".")[0] in self._children:
                parent, _, name = entry.path.rpartition(".")
                lines.append(self._add(parent, name, self.access(entry.shared_with)))
        for tensor_entry in self._description.tensors:
            lines += self._tensor(tensor_entry, self._tensors)
        return lines + self._attributes() + self._frozen()

    def access(self, path: str, below: str = "") -> str:
        """The expression that reaches what lies at ``path`` below the module ``below``, which is ``self``."""
        expression, parent = "self", below
        for name in path.split(".") if path else []:
            if parent in self._lists:
                expression += f"[{name}]"
            else:
                plain = is_plain_name(name)
                expression = f"{expression}.{name}" if plain else f"part({expression}, {quoted(name)})"
            parent = f"{parent}.{name}" if parent else name
        return expression

    def _module(self, path: str, indent: int, reserve: int) -> str:
        """The expression that makes a module; ``reserve`` is what else stands on its first line."""
        entry = self._entries[path]
        names = self._children[path]
        if entry.layer is not None:
            return _layer_source(entry, indent, reserve)
        if entry.foreign is not None:
            return self._holding("restored(", [self.kind(entry)], path, indent, reserve)
        if path in self._lists:
            items = [self._module(f"{path}.{i}", indent + 4, 1) for i in range(len(names))]
            start, end = ("nn.Sequential(", ")") if entry.container == "Sequential" else ("nn.ModuleList([", "])")
            return call(start, items, indent, end, reserve)
        if entry.container != "Module":
            return self._holding("restored(", [self.kind(entry)], path, indent, reserve)
        return self._holding("named(", [], path, indent, reserve) if names else "nn.Module()"

    def kind(self, entry: ModuleEntry) -> str:
        """The name of a module's class, or of the class that is written for a graph inside a module of others."""
        if entry.foreign is None:
            return f"nn.{entry.container}"
        foreign = entry.foreign
        if entry.graphs is None:
            return self.states.name(foreign["kind"])
        taken = set(self.islands.values())
        wanted = "Traced" + re.sub(r"[^A-Za-z0-9_]+", "_", foreign["name"])
        names = [wanted, *(f"{wanted}_{i}" for i in range(2, len(taken) + 3))]
        return self.islands.setdefault(entry.path, next(name for name in names if name not in taken))

    def _holding(self, head: str, first: list[str], path: str, indent: int, reserve: int) -> str:
        """A call that takes the modules below a path as keywords."""
        names = self._children[path]
        plain = [f"{n}={self._module(f'{path}.{n}', indent + 4, len(n) + 2)}" for n in names if is_plain_name(n)]
        odd = [n for n in names if not is_plain_name(n)]
        items = [f"{quoted(n)}: {self._module(f'{path}.{n}', indent + 8, len(n) + 5)}" for n in odd]
        if items:
            plain.append(call("**{", items, indent + 4, "}"))
        return call(head, [*first, *plain], indent, reserve=reserve)

    def _attributes(self) -> list[str]:
        """Statements that give foreign modules and containers what they hold beside modules and tensors."""
        lines = []
        for entry in (e for e in self._description.modules if e.container in ("ParameterList", "ParameterDict")):
            held = [tensor.name.rpartition(".") for tensor in self._description.tensors]
            keys = [name for path, _, name in held if path == entry.path]
            note = f'"_keys": dict.fromkeys({keys})' if entry.container == "ParameterDict" else f'"_size": {len(keys)}'
            lines.append(f"vars({self.access(entry.path)}).update({{{note}}})")
        for entry in (e for e in self._description.modules if e.foreign is not None):
            foreign, owner = entry.foreign or {}, self.access(entry.path)
            for slot, names in foreign.get("absent", {}).items():
                lines += [f"{owner}.{slot}[{quoted(name)}] = None" for name in names]
            if attributes := foreign.get("state"):
                lines.append(call(f"vars({owner}).update({{", self.states.items(attributes), 8, "})"))
        return lines

    def _add(self, parent: str, name: str, expression: str) -> str:
        return f"{self.access(parent)}._modules[{quoted(name)}] = {expression}"

    def _tensor(self, entry: TensorEntry, tensors: Mapping[str, torch.Tensor]) -> list[str]:
        path, _, name = entry.name.rpartition(".")
        owner = self._entries.get(path, ModuleEntry(""))
        if entry.tied_to is None and name in self._made_by(owner):
            return []
        if entry.tied_to is not None:
            value = self.access(entry.tied_to)
        elif entry.kind == "constant":
            value = self.constants.expression(tensors[entry.name])
        else:
            value = zeros_source(tensors[entry.name])
        return self._register(path, name, entry, value)

    def _made_by(self, owner: ModuleEntry) -> set[str]:
        """Names of the tensors that a layer's constructor makes."""
        if owner.path not in self._made:
            layer = build_layer(owner.path, owner.layer) if owner.layer is not None else nn.Module()
            self._made[owner.path] = {*layer._parameters, *layer._buffers}
        return self._made[owner.path]

    def _register(self, path: str, name: str, entry: TensorEntry, value: str) -> list[str]:
        owner = self.access(path)
        foreign = (known := self._entries.get(path)) is not None and known.foreign is not None
        by_hand = foreign or not (is_plain_name(name) or name.isdecimal())
        if entry.kind == "parameter":
            if entry.tied_to is None:
                value = f"nn.Parameter({value}{'' if entry.requires_grad else ', requires_grad=False'})"
            if by_hand:
                return [f"{owner}._parameters[{quoted(name)}] = {value}"]
            return [call(f"{owner}.register_parameter(", [quoted(name), value], 8)]
        kept_out = entry.kind == "constant"
        if by_hand and not foreign:
            note = f"{owner}._non_persistent_buffers_set.add({quoted(name)})"
            return [f"{owner}._buffers[{quoted(name)}] = {value}", *[note] * kept_out]
        return [call(f"{owner}.register_buffer(", [quoted(name), value, *["persistent=False"] * kept_out], 8)]

    def _frozen(self) -> list[str]:
        parameters = [e for e in self._description.tensors if e.kind == "parameter" and e.tied_to is None]
        frozen = [e for e in parameters if not e.requires_grad]
        if frozen and len(frozen) == len(parameters):
            return ["self.requires_grad_(False)"]
        return [f"{self.access(e.name)}.requires_grad_(False)" for e in frozen if self._made_by_layer(e)]

    def _made_by_layer(self, entry: TensorEntry) -> bool:
        owner = self._entries.get(entry.name.rpartition(".")[0])
        return owner is not None and owner.layer is not None


def _layer_source(entry: ModuleEntry, indent: int, reserve: int) -> str:
    layer = entry.layer or {}
    kind = getattr(nn, layer["class"])
    required = [
        name
        for name, parameter in inspect.signature(kind.__init__).parameters.items()
        if name != "self" and parameter.default is parameter.empty
    ]
    rendered = []
    for name, value in layer["arguments"].items():
        source = literal_source(decode(value, {}))
        rendered.append(source if name in required else f"{name}={source}")
    return call(f"nn.{layer['class']}(", rendered, indent, reserve=reserve)
