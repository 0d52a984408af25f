"""A captured graph beside the graph that was written for it, and how messages speak of their nodes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx, nn

from fxprune.capture.samples import Sample
from fxprune.errors import ProofError
from fxprune.proof.locating import NodeKeep
from fxprune.util.paths import attribute


class UnjudgedError(Exception):
    """A node that cannot be judged by itself; the text says why. It is no sign of a fault."""


@dataclass(frozen=True, eq=False)
class Pair:
    """One graph of the original and one of the pruned network, with what the pass says about them.

    Attributes:
        label: how messages name the graph, such as "eval" or "training".
        full: the captured graph.
        narrow: the rewritten graph.
        images: by node of ``full``, the node of ``narrow`` or the number that stands for it; None, or no entry, where
            nothing does. It is no more than a claim.
        kept: by the name of a node of ``full`` whose value loses something, the kept indices of every dim, None for
            all; a claim, too.
        root: what the targets of ``narrow`` are looked up in.
        sample: inputs that go this way.
        constants: tensors that the trace made, by the names that ``full`` has for them.
        prefix: what stands before the targets of ``full`` and is cut from those of ``narrow``.
        training: whether it is the graph of training mode.
        both_modes: whether training mode runs the graph of eval mode.
    """

    label: str
    full: fx.Graph
    narrow: fx.Graph
    images: Mapping[fx.Node, Any]
    kept: NodeKeep
    root: nn.Module
    sample: Sample
    constants: Mapping[str, Tensor]
    prefix: str = ""
    training: bool = False
    both_modes: bool = False

    def named(self, node: fx.Node) -> tuple[str, Any]:
        """The true name of what a node of ``narrow`` calls or reads, and the module or tensor itself."""
        name_of: Callable[[Any], str] = getattr(self.root, "name_of", str)
        name = name_of(node.target)
        return name, attribute(self.root, name)


def described(node: fx.Node) -> str:
    """A node in words."""
    target = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
    return f"{node.name} ({node.op} {target})"


def fault(pair: Pair, node: fx.Node, text: str) -> ProofError:
    """The error for a node of the captured graph; it says which, of which module, and from which line of source."""
    module, source = node.meta.get("module"), node.meta.get("source")
    place = (f" in module {module}" if module else "") + (f" at {source}" if source else "")
    return ProofError(f"{pair.label} graph, node {described(node)}{place}: {text}")


def is_number(node: fx.Node) -> bool:
    """Whether a node of a captured graph gives a number or a truth value in Python."""
    return isinstance(node.meta.get("val"), (bool, int, float))


def is_sizes(node: fx.Node) -> bool:
    """Whether it gives a whole number, or several."""
    value = node.meta.get("val")
    items = value if isinstance(value, (list, tuple)) else (value,)
    return all(isinstance(item, int) and not isinstance(item, bool) for item in items)
