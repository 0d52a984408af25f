"""Checks the tensors of a pruned network beyond their values: kinds, flags, ties, order and memory."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

import torch
from torch import Tensor, fx, nn

from fxprune.errors import ProofError
from fxprune.util.copies import is_constant, share_elements
from fxprune.util.paths import named_modules

Tensors = Mapping[str, Tensor]
# By network (0: the original, 1: the pruned one) and name, the number of a tensor's memory range.
Blocks = Mapping[tuple[int, str], int]


def check_holding(original: nn.Module, pruned: nn.Module, full: Tensors, narrow: Tensors, traced: Tensors) -> None:
    """Compare the tensors ``full`` and ``narrow`` of both networks by name in everything but their values.

    ``traced``: the constants of the trace. Raises ProofError: a tensor is of another kind, its flags differ, a tie is
    broken or new, memory is shared with the original, the order differs, or the pruned network holds an unexplained
    tensor.
    """
    unsaved_full, unsaved_narrow = set(_unsaved(original)), set(_unsaved(pruned))
    common = [name for name in full if name in narrow]
    for name in common:
        _check_pair(name, full[name], narrow[name])
        if (name in unsaved_full) != (name in unsaved_narrow):
            saved = "is" if name in unsaved_full else "is not"
            raise _error(f"{name!r} {saved} in the state dict of the pruned network, unlike in that of the original")
    _check_order(full, common, [name for name in narrow if name in full])
    blocks = _blocks({(side, name): t for side, held in enumerate((full, narrow)) for name, t in held.items()})
    _check_memory(blocks)
    _check_ties(full, narrow, common, blocks)
    added = {name: tensor for name, tensor in narrow.items() if name not in full}
    _check_added(added, traced.keys(), unsaved_narrow, set(_read(pruned)))


def _error(text: str) -> ProofError:
    return ProofError(f"what the network holds: {text}; this is a fault of the pass, pass verify=False to look at it")


def _check_pair(name: str, full: Tensor, narrow: Tensor) -> None:
    if isinstance(full, nn.Parameter) != isinstance(narrow, nn.Parameter):
        kinds = ("a buffer", "a parameter") if isinstance(narrow, nn.Parameter) else ("a parameter", "a buffer")
        raise _error(f"{name!r} is {kinds[0]} of the original and {kinds[1]} of the pruned network")
    if full.requires_grad != narrow.requires_grad:
        raise _error(f"{name!r} has requires_grad={full.requires_grad} and became {narrow.requires_grad}")
    if full.device != narrow.device:
        raise _error(f"{name!r} is on {full.device} and came to {narrow.device}")
    if any(getattr(narrow, hooks, None) for hooks in ("_backward_hooks", "_post_accumulate_grad_hooks")):
        raise _error(f"{name!r} of the pruned network has a gradient hook")


def _unsaved(module: nn.Module) -> Iterator[str]:
    """Buffers that are not in the state dict."""
    for path, owner in named_modules(module, again=True):
        yield from (f"{path}.{name}".lstrip(".") for name in owner._non_persistent_buffers_set)


def _check_order(full: Tensors, ours: list[str], theirs: list[str]) -> None:
    for name, other in zip(ours, theirs, strict=True):
        if name != other:
            kind = "parameters" if isinstance(full[name], nn.Parameter) else "buffers"
            raise _error(
                f"the {kind} are in another order, and optimiser state depends on it: {other!r} has the place of "
                f"{name!r}"
            )


def _check_ties(full: Tensors, narrow: Tensors, common: list[str], blocks: Blocks) -> None:
    ours, theirs = (_classes({name: id(tensors[name]) for name in common}) for tensors in (full, narrow))
    _check_same_classes(ours, theirs, "one tensor")
    # Views of one memory are tied as well; for buffers, a run in training mode shows whether that matters.
    weights = [name for name in common if isinstance(full[name], nn.Parameter)]
    ours, theirs = (
        _sharing(tensors, {n: blocks[side, n] for n in weights if (side, n) in blocks})
        for side, tensors in enumerate((full, narrow))
    )
    _check_same_classes(ours, theirs, "one memory")


def _sharing(tensors: Tensors, blocks: Mapping[str, int]) -> set[frozenset[str]]:
    """The names of tensors that share elements; interleaved columns of one memory share none."""
    near = _classes(blocks)
    found = ({n for n in names if any(share_elements(tensors[n], tensors[o]) for o in names - {n})} for names in near)
    return {frozenset(names) for names in found if names}


def _classes(keys: Mapping[str, int]) -> set[frozenset[str]]:
    """The sets of names with equal keys that have more than one name."""
    found: dict[int, set[str]] = {}
    for name, key in keys.items():
        found.setdefault(key, set()).add(name)
    return {frozenset(names) for names in found.values() if len(names) > 1}


def _check_same_classes(full: set[frozenset[str]], narrow: set[frozenset[str]], what: str) -> None:
    for names in sorted(map(sorted, full - narrow)):
        raise _error(f"{', '.join(names)} are {what} of the original and no longer so in the pruned network")
    for names in sorted(map(sorted, narrow - full)):
        raise _error(f"{', '.join(names)} are {what} of the pruned network, and not so in the original")


def _blocks(tensors: Mapping[tuple[int, str], Tensor]) -> Blocks:
    """By key, the number of the memory range that a tensor lies in; overlapping tensors have the same number."""
    spans = sorted((*_span(tensor), name) for name, tensor in tensors.items() if tensor.numel())
    found: dict[tuple[int, str], int] = {}
    end, number = ("", 0), 0
    for device, start, stop, name in spans:
        number += (device, start) >= end or device != end[0]
        end = max(end, (device, stop))
        found[name] = number
    return found


def _span(tensor: Tensor) -> tuple[str, int, int]:
    """The device, the first address and the address after the last."""
    device = "cpu" if tensor.is_cpu else str(tensor.device)
    if tensor.layout is not torch.strided:
        return device, id(tensor), id(tensor) + 1
    reach = tensor.numel()
    if not tensor.is_contiguous():
        reach = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True)) + 1
    return device, tensor.data_ptr(), tensor.data_ptr() + reach * tensor.element_size()


def _check_memory(blocks: Blocks) -> None:
    """The pruned network must not share memory with the original: training one would change the other."""
    theirs = {block: name for (side, name), block in blocks.items() if not side}
    for (side, name), block in blocks.items():
        if side and block in theirs:
            raise _error(f"{name!r} of the pruned network shares its memory with {theirs[block]!r} of the original")


def _read(pruned: nn.Module) -> Iterator[str]:
    """The names of the tensors that graphs read."""
    for path, module in named_modules(pruned):
        if isinstance(module, fx.GraphModule):
            for graph in getattr(module, "graphs", {"": module.graph}).values():
                yield from (f"{path}.{node.target}".lstrip(".") for node in graph.nodes if node.op == "get_attr")


def _check_added(added: Tensors, traced: Collection[str], unsaved: set[str], read: set[str]) -> None:
    """A pruned network may hold only two further kinds of tensor: constants of the forward and index lists."""
    for name, tensor in added.items():
        what = "a parameter" if isinstance(tensor, nn.Parameter) else "a buffer"
        if name not in read or what == "a parameter" or not (name in unsaved or name in traced):
            raise _error(f"{name!r} is {what} of the pruned network that the original does not have")
        constant = name in traced or is_constant(name)
        if not constant and (tensor.dtype != torch.int64 or tensor.ndim != 1):
            raise _error(f"{name!r} of the pruned network is not an index list and has no counterpart in the original")
