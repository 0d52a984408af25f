"""What a model's own ``train()`` and ``eval()`` do, found out on a private copy, and the graph of training mode."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from fxprune.capture import clone
from fxprune.capture.capturing import Captured, OpaqueCalls, capture
from fxprune.capture.decisions import asks_values
from fxprune.capture.folding import check_unwritten
from fxprune.capture.lowering import mutates
from fxprune.capture.recording import record_calls
from fxprune.capture.state import Place
from fxprune.errors import CaptureError, FxpruneError, ModelError, described
from fxprune.rules import is_leaf
from fxprune.util.modes import Effects, flags_of, has_own_modes, own_modes, switch
from fxprune.util.paths import attribute, modules_of


@dataclass(frozen=True)
class Modes:
    """How a model switches modes."""

    # What calls of parts do that have a ``train`` or ``eval`` of their own.
    effects: Effects = field(default_factory=dict)
    # By ``training`` the mode of every module by path, after ``train()`` and after ``eval()`` of the model; empty
    # where every module takes the model's mode.
    flags: dict[bool, dict[str, bool]] = field(default_factory=dict)
    # Attributes that ``train()`` or ``eval()`` sets beside the modes, so that they may change the forward.
    sets: tuple[str, ...] = ()

    def below(self, prefix: str, training: bool) -> dict[str, bool]:
        """The modes of the modules of a part, whose path and a dot are ``prefix``, by their paths in the part."""
        flags = self.flags.get(training, {}).items()
        return {f"{path}.".removeprefix(prefix)[:-1]: mode for path, mode in flags if f"{path}.".startswith(prefix)}


def modes_of(model: nn.Module) -> Modes:
    """Find out from the model's classes. Raises ModelError: a pruned network cannot repeat what a call does."""
    if not any(map(has_own_modes, modules_of(model))):
        return Modes()
    copy = clone.meta_clone(model)
    for twin, original in zip(copy.parameters(), model.parameters(), strict=True):
        twin.requires_grad_(original.requires_grad)
    flags: dict[bool, dict[str, bool]] = {}
    sets: set[str] = set()
    try:
        for training in (True, False):
            state, held = clone.State(copy), _held(copy)
            with _Untouched():
                switch(copy, "train" if training else "eval")
            _check_held(held, _held(copy))
            flags[training] = flags_of(copy)
            sets.update(name for name in state.changed() if not f".{name}".endswith(".training"))
        effects = own_modes(copy)
    except FxpruneError:
        raise
    except Exception as error:  # the user's own code: it may raise anything
        raise ModelError(f"the model's own train() or eval() cannot be followed: {error}") from error
    for name in sets:
        if is_leaf(attribute(copy, name.rpartition(".")[0])):
            raise ModelError(f"the model's own train() or eval() sets {name}: a pruned network would not do so again")
    return Modes(effects, flags, tuple(sorted(sets)))


def _held(copy: nn.Module) -> dict[str, tuple[Any, bool]]:
    """Modules and tensors by name, and which parameters require gradients."""
    tensors = (*copy.named_parameters(remove_duplicate=False), *copy.named_buffers(remove_duplicate=False))
    modules = copy.named_modules(remove_duplicate=False)
    return {n: (t, t.requires_grad) for n, t in tensors} | {f"{n} (a module)": (m, True) for n, m in modules}


def _check_held(before: dict[str, tuple[Any, bool]], after: dict[str, tuple[Any, bool]]) -> None:
    changed = next(_differences(before, after), None)
    if changed is not None:
        raise ModelError(
            f"the model's own train() or eval() changes {changed}: a pruned network would not do so again; call it "
            "before pruning, so that it finds its work done"
        )


def _differences(before: dict[str, tuple[Any, bool]], after: dict[str, tuple[Any, bool]]) -> Iterator[str]:
    for name in before.keys() | after.keys():
        (old, wanted), (new, wants) = before.get(name, (None, False)), after.get(name, (None, False))
        if old is not new:
            yield name
        elif wanted != wants:
            yield f"requires_grad of {name}"


class _Untouched(TorchFunctionMode):
    """Refuses writes to tensors, and new values for them."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        sets = name == "__set__" and "requires_grad" not in repr(getattr(func, "__self__", ""))
        if sets or (mutates(func) and name != "requires_grad_"):
            shape = tuple(args[0].shape) if isinstance(args[0], torch.Tensor) else ()
            raise ModelError(
                f"the model's own train() or eval() changes the values of a tensor of shape {shape}: a pruned network "
                "would not do so again"
            )
        return func(*args, **(kwargs or {}))


def effects_below(effects: Effects, path: str) -> Effects:
    """The effects of calls of a part, and of parts inside it."""
    return {f"{p}.".removeprefix(f"{path}.")[:-1]: e for p, e in effects.items() if f"{p}.".startswith(f"{path}.")}


def capture_training(
    model: nn.Module, captured: Captured, modes: Modes, written: Mapping[Place, Any]
) -> Captured | None:
    """The forward in training mode, or None where it equals ``captured``. Raises CaptureError: it cannot be traced."""
    if "" in captured.opaque or not (captured.modes_read or captured.opaque or modes.sets):
        check_unwritten(captured.buffers_read, captured.graph, training=True)
        return None
    training = capture(
        model,
        captured.sample,
        training=True,
        prefix=captured.prefix,
        opaque=_opaque_in_training(model, captured),
        specialization=captured.specialization,
        flags=modes.below(captured.prefix, training=True),
        written=written,
        live=captured.answers is not None,
    )
    if captured.answers is not None and asks_values(training.graph) and not asks_values(captured.graph):
        raise CaptureError("values decide in training mode which way it goes")
    check_unwritten(captured.buffers_read, training.graph, training=True)
    check_unwritten(training.buffers_read, captured.graph, training=False)
    captured.flags |= training.flags
    captured.modes_read |= training.modes_read
    captured.written |= training.written
    captured.remembers = tuple(dict.fromkeys((*captured.remembers, *training.remembers)))
    # What is opaque may give another structure in training, which fits one of the two graphs alone.
    captured.modes_read |= {path for path in captured.opaque if _given(captured, path) != _given(training, path)}
    # So may a part in whose train() more is set than modes.
    holders = (f"{name.rpartition('.')[0]}." for name in modes.sets)
    captured.modes_read |= {p.removeprefix(captured.prefix)[:-1] for p in holders if p.startswith(captured.prefix)}
    graphs = training.graph, captured.graph
    same = not training.constants and not captured.constants and len({len(graph.nodes) for graph in graphs}) == 1
    return None if same and len(set(map(str, graphs))) == 1 else training


def _given(captured: Captured, path: str) -> list[str]:
    """The structure of the output of each call of an opaque module."""
    nodes = (node for node in captured.graph.nodes if node.op == "call_module" and node.target == path)
    return [repr(pytree.tree_map_only(torch.Tensor, lambda t: (t.dtype, t.shape), node.meta["val"])) for node in nodes]


def _opaque_in_training(model: nn.Module, captured: Captured) -> dict[str, OpaqueCalls]:
    """The outputs of each opaque module in training mode, which may differ from those in eval mode."""
    if not captured.opaque:
        return {}
    try:
        recorded = record_calls(model, captured.sample, training=True)
    except Exception as error:  # the user's own code: it may raise anything
        message = f"an opaque module cannot be run in training mode: {described(error)}"
        raise CaptureError(message) from error
    return {path: (reason, recorded[path].results) for path, reason in captured.opaque.items() if path in recorded}
