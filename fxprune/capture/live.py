"""Values that depend on data, computed on the sample while a forward is traced: numbers, and sizes of results.

The trace needs them to go on. Each decision made by them becomes a check in the graph, as for sizes.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import fx, nn

from fxprune.capture.arguments import placeholders
from fxprune.capture.clone import meta_like
from fxprune.capture.decisions import Decisions, is_check
from fxprune.capture.lowering import holds_tensor, leaves, map_leaves, node_form
from fxprune.capture.masked import Picked, classes
from fxprune.capture.moments import Selections
from fxprune.capture.numbers import size_of, traced
from fxprune.capture.samples import Sample
from fxprune.errors import CaptureError
from fxprune.util.paths import attribute


class LiveValues:
    """Runs a graph that is being written on a sample with values, as far as values are asked for.

    ``model`` makes a private copy, in the mode that is traced; ``constants`` are the graph's, ``prefix`` is that of its
    names. ``answers`` of earlier traces of the same forward are given again in their order; new ones are added.
    """

    def __init__(
        self,
        model: Callable[[], nn.Module],
        sample: Sample,
        constants: Mapping[str, torch.Tensor],
        prefix: str,
        answers: list[Any],
    ) -> None:
        self._make, self._sample, self._constants, self._prefix = model, sample, constants, prefix
        self._answers, self._asked = answers, 0
        self._model: nn.Module | None = None
        self._inputs: dict[str, Any] = {}
        self._known: dict[fx.Node, Any] = {}

    @property
    def device(self) -> torch.device:
        """Where the sample is."""
        return next((tensor.device for tensor in self._sample.tensors), torch.device("cpu"))

    def of(self, node: fx.Node) -> Any:
        """The result of a node: numbers as they are, tensors on the meta device."""
        self._asked += 1
        if self._asked > len(self._answers):
            # In a thread of its own no mode of the trace sees what runs.
            with ThreadPoolExecutor(1) as thread:
                self._answers.append(thread.submit(self._run_to, node).result())
        value = self._answers[self._asked - 1]
        return map_leaves(lambda leaf: meta_like(leaf) if isinstance(leaf, torch.Tensor) else leaf, value)

    def _run_to(self, node: fx.Node) -> Any:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            if self._model is None:
                self._model = self._make()
                placeholders(
                    self._model.forward, self._sample, lambda name, value, *_: self._inputs.update({name: value})
                )
            for present in node.graph.nodes:
                if present not in self._known:
                    self._known[present] = self._value(present, self._model)
                if present is node:
                    break
        return map_leaves(lambda leaf: meta_like(leaf) if isinstance(leaf, torch.Tensor) else leaf, self._known[node])

    def _value(self, node: fx.Node, model: nn.Module) -> Any:
        name = str(node.target)
        if is_check(node):
            return None
        if node.op == "placeholder":
            return self._inputs[name]
        if node.op == "get_attr":
            constant = self._constants.get(name)
            return attribute(model, name.removeprefix(self._prefix)) if constant is None else constant.clone()
        args, kwargs = fx.node.map_arg((node.args, dict(node.kwargs)), self._known.__getitem__)
        if node.op == "call_module":
            return attribute(model, name.removeprefix(self._prefix))(*args, **kwargs)
        if node.op == "call_method":
            return getattr(args[0], name)(*args[1:], **kwargs)
        assert callable(node.target)
        return node.target(*args, **kwargs)


class DataReads:
    """Writes values that depend on data into a recorder's graph: numbers read, and results of unknown size.

    ``live``: the values; ``selections``: how many entries masks select; ``new`` makes a node,
    ``node_of`` gives that of a tensor, ``call`` writes a call, and ``adopt`` tells what it gives.
    """

    def __init__(
        self,
        live: LiveValues,
        new: Callable[..., fx.Node],
        node_of: Callable[[torch.Tensor], fx.Node],
        call: Callable[..., fx.Node],
        adopt: Callable[[fx.Node, Any], None],
        decisions: Decisions,
        selections: Selections,
    ) -> None:
        self.selections, decisions.asked = selections, selections.asked
        self._live, self._new, self._node_of, self._call, self._adopt = live, new, node_of, call, adopt
        self._decisions = decisions
        self._picked: dict[int, tuple[torch.Tensor, int, Picked]] = {}
        self._results: list[torch.Tensor] = []

    def read(self, name: str, tensor: Any) -> Any:
        """The result of ``tensor.item()`` and the like, as a traced number. Raises CaptureError: it cannot be one."""
        if name == "tolist" and isinstance(tensor, torch.Tensor) and (rows := self.steps(name, tensor)) is not None:
            return rows
        if isinstance(tensor, torch.Tensor) and name == "tolist" and tensor.dim() == 1:
            self._decisions.add(operator.eq, (size_of(self._node_of(tensor), 0, len(tensor)), len(tensor)))
            return [self.read("item", self._entry(tensor, place)) for place in range(len(tensor))]
        if not isinstance(tensor, torch.Tensor) or name not in _READS:
            raise CaptureError(f"the forward reads tensor values: {name}() cannot be answered without data")
        if not _depends_on_inputs(self._node_of(tensor)):
            raise CaptureError("the forward decides by random numbers, which are others at each call")
        node = self._new("call_method", "item", (self._node_of(tensor),), {}, None)
        value = node.meta["val"] = self.selections.answer(self._node_of(tensor), self._live.of(node))
        number = traced(int(value) if isinstance(value, bool) else value, operator.pos, (node,))
        number.written = node
        if name == "item" and not isinstance(value, bool):
            return number
        if name == "__bool__" or isinstance(value, bool):
            self._decisions.add(operator.ne if value else operator.eq, (number, 0))
        else:
            self._decisions.add(operator.eq, (number, value))
        return _READS[name](value)

    def steps(self, name: str, tensor: torch.Tensor) -> Any:
        """What ``tensor.tolist()`` or ``tensor.unbind()`` gives of the numbers of what is not empty; None of others."""
        return self.selections.steps(self._node_of(tensor), name, self._decisions.add, self._live.device)

    def _entry(self, tensor: torch.Tensor, place: int) -> torch.Tensor:
        with torch._C.DisableTorchFunction():
            entry = tensor[place]
        self._call("call_function", operator.getitem, (tensor, place), {}, entry)
        return entry

    def result(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The result of a call whose sizes the meta device cannot know: those for the sample's values."""
        op, target, args = node_form(func, args, kwargs)
        node = self._call(op, target, args, kwargs, None)
        value = self._live.of(node)
        if not holds_tensor(value):
            raise CaptureError(f"the forward reads tensor values: {func.__name__}() cannot be answered without data")
        value = node.meta["val"] = self.selections.sized(node, value)
        self._adopt(node, value)
        if classes([node], self._decisions.add) is None:
            node.meta["by_values"] = True
            self._results += [leaf for leaf in leaves(value) if isinstance(leaf, torch.Tensor)]
        return value

    def entries(self, picked: Picked, func: Any, args: tuple[Any, ...]) -> torch.Tensor:
        """The entries under a mask, which a write under the same mask recognises."""
        tensor: torch.Tensor = self.result(func, args, {})
        self._picked[id(tensor)] = tensor, tensor._version, picked
        return tensor

    def picked(self, tensor: Any, mask: Any, value: Any) -> tuple[Any, Any, Any]:
        """The arguments of a write, with entries picked under the same mask replaced by where they were picked from.

        Other entries are written at the places where the mask is True.
        """
        _, version, known = self._picked.get(id(value), (None, None, None))
        try:
            fits = known is not None and value._version == version and known.values(mask).shape == tensor.shape
        except CaptureError:
            fits = False
        if fits or not all(isinstance(t, torch.Tensor) and t.is_meta and t.dim() for t in (tensor, mask, value)):
            return tensor, mask, known if fits else value
        return tensor, tuple(self.result(torch.where, (mask,), {})) if mask.dtype == torch.bool else mask, value

    def finish(self) -> None:
        """Check that sizes of 0 and 1, which broadcast and vanish in products, are the same for other values."""
        for tensor in (t for t in self._results if self._node_of(t).users):
            self._decisions.place = self._node_of(tensor).meta["source"]
            for dim, size in enumerate(tensor.shape):
                if size < 2 and (dim == 0 or "selects" not in self._node_of(tensor).meta):
                    self._decisions.add(operator.eq, (size_of(self._node_of(tensor), dim, size), size))


_READS: dict[str, Callable[[Any], Any]] = {
    "item": lambda value: value,
    "__bool__": bool,
    "__int__": int,
    "__float__": float,
    "__index__": operator.index,
}


def _depends_on_inputs(node: fx.Node) -> bool:
    pending, seen = [node], {node}
    while pending:
        top = pending.pop()
        if top.op == "placeholder":
            return True
        pending += [given for given in top.all_input_nodes if given not in seen]
        seen.update(pending)
    return False
