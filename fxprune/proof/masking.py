"""Overwrites removed entries and randomises parameters, on private copies."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from fxprune.errors import ProofError
from fxprune.proof.copies import named_tensors
from fxprune.util.copies import is_constant

GAINS = (2.0, 1.0, 0.25)
"""The values to try in turn for the variance of random weights times their number of inputs.

The first is for a layer with ReLU (He et al. 2015, eq. 10), which keeps deep layers visible in the outputs; with it,
some networks magnify values or rounding too much.
"""


@torch.no_grad()
def overwrite_removed(module: nn.Module, keep: Keep, value: float) -> None:
    """Write ``value`` over removed floating entries of a private copy; 0 leaves running variances unchanged."""
    for name, tensor in named_tensors(module).items():
        if not (tensor.is_floating_point() or tensor.is_complex()):
            continue
        if value == 0 and name.endswith("running_var"):
            continue
        for dim, index in removed_entries(tensor, keep.get(name, ())):
            tensor.index_fill_(dim, index, value)


def removes_anything(module: nn.Module, keep: Keep) -> bool:
    """Whether the plan removes any entry."""
    tensors = named_tensors(module).items()
    return any(True for name, tensor in tensors for _ in removed_entries(tensor, keep.get(name, ())))


@torch.no_grad()
def randomise(module: nn.Module, pruned: nn.Module, keep: Keep, seed: int, gain: float = GAINS[0]) -> None:
    """Give both private copies new random parameters and running statistics, equal where an entry is kept.

    The values depend on ``seed``, ``gain`` (one of ``GAINS``) and the name alone. Other buffers hold meaningful tables
    and masks, so they stay unchanged.
    """
    full, narrow = named_tensors(module), named_tensors(pruned)
    done: set[int] = set()
    for name, tensor in full.items():
        if not _is_random(name, tensor):
            continue
        if id(tensor) not in done:
            done.add(id(tensor))
            _draw(tensor, name, seed, gain)
        if name in narrow:
            narrow[name].copy_(select(tensor, keep.get(name, ())))


def _is_random(name: str, tensor: Tensor) -> bool:
    statistics = name.endswith(("running_mean", "running_var"))
    return tensor.is_floating_point() and (isinstance(tensor, nn.Parameter) or statistics)


def _draw(tensor: Tensor, name: str, seed: int, gain: float) -> None:
    generator = torch.Generator(tensor.device).manual_seed(zlib.crc32(name.encode(errors="surrogatepass")) ^ seed)
    if name.endswith("running_var") or (tensor.ndim < 2 and bool((tensor >= 0).all())):
        tensor.uniform_(0.5, 1.5, generator=generator)
    elif tensor.ndim < 2:
        tensor.normal_(0, 0.1, generator=generator)
    else:
        # The same variance as that of normal values, and several times as fast to draw.
        fan_in = max(tensor.numel() // max(tensor.shape[0], 1), 1)
        bound = (3 * gain / fan_in) ** 0.5
        tensor.uniform_(-bound, bound, generator=generator)


Keep = Mapping[str, tuple[Tensor | None, ...]]
Tensors = Mapping[str, Tensor]


def select(tensor: Tensor, kept: tuple[Tensor | None, ...]) -> Tensor:
    """The kept entries, dim by dim."""
    for dim, index in enumerate(kept):
        if index is not None:
            tensor = tensor.index_select(dim, index.to(tensor.device))
    return tensor


def removed_entries(tensor: Tensor, kept: tuple[Tensor | None, ...]) -> Iterator[tuple[int, Tensor]]:
    """For each dim with removed entries, the dim and the removed indices."""
    for dim, index in enumerate(kept):
        if index is not None:
            present = torch.ones(tensor.shape[dim], dtype=torch.bool)
            present[index.cpu()] = False
            if bool(present.any()):
                yield dim, present.nonzero().flatten().to(tensor.device)


def all_names(full: Tensors, keep: Keep) -> dict[str, tuple[Tensor | None, ...]]:
    """``keep`` for every name of every tensor, tied names included. Raises ProofError: an entry fits no tensor."""
    by_identity = {id(full[name]): kept for name, kept in keep.items() if name in full}
    fit: set[tuple[int, int]] = set()
    for name, kept in keep.items():
        if name not in full:
            raise ProofError(f"the plan keeps entries of {name!r}, and the network has no such parameter or buffer")
        _check_fit(name, full[name], kept, fit)
    whole: tuple[None, ...] = ()
    return {name: keep.get(name, by_identity.get(id(tensor), whole)) for name, tensor in full.items()}


def _check_fit(name: str, tensor: Tensor, kept: tuple[Tensor | None, ...], fit: set[tuple[int, int]]) -> None:
    """``fit``: identity and size of the indices already found to fit, because many tensors share the same ones."""
    if len(kept) != tensor.ndim:
        raise ProofError(f"the plan has {len(kept)} dims for {name!r}, which has {tensor.ndim}")
    for dim, index in enumerate(kept):
        if index is None or (id(index), tensor.shape[dim]) in fit:
            continue
        fit.add((id(index), tensor.shape[dim]))
        if index.numel() and not 0 <= int(index.min()) <= int(index.max()) < tensor.shape[dim]:
            raise ProofError(f"the plan keeps indices of {name!r} beyond its dim {dim} of size {tensor.shape[dim]}")
        if torch.bincount(index.flatten()).count_nonzero() != index.numel():
            raise ProofError(f"the plan keeps an index of {name!r} twice along dim {dim}")


def check_tensors(full: Tensors, narrow: Tensors, keep: Keep) -> int:
    """Compare every tensor of the pruned network with the original's kept entries, bit for bit; returns the number.

    ``full`` includes the constants of the trace; ``keep`` is a result of :func:`all_names`. Raises ProofError: a tensor
    differs, or a floating one has no counterpart.
    """
    checked = 0
    for name, tensor in narrow.items():
        if name not in full:
            _check_added(name, tensor)
            continue
        _check_kept(name, tensor, select(full[name].detach(), keep.get(name, ())))
        checked += 1
    return checked


def _check_added(name: str, tensor: Tensor) -> None:
    # The original creates constants inside its opaque modules anew at every call; the outputs are compared instead.
    if is_constant(name):
        return
    # Index lists are the only other tensors a rewrite may add; values would have no counterpart to compare with.
    if tensor.is_floating_point() or tensor.is_complex():
        raise ProofError(f"kept tensors: {name!r} of the pruned network has no counterpart in the original")


def _check_kept(name: str, tensor: Tensor, expected: Tensor) -> None:
    if tensor.shape != expected.shape or tensor.dtype != expected.dtype:
        raise ProofError(
            f"kept tensors: {name!r} is {tuple(tensor.shape)} {tensor.dtype} in the pruned network, and the kept "
            f"entries of the original are {tuple(expected.shape)} {expected.dtype}"
        )
    if not _same(tensor, expected):
        left, right = tensor.detach().cpu(), expected.cpu()
        wrong = int(((left != right) & ~(left.isnan() & right.isnan())).sum())
        raise ProofError(f"kept tensors: {wrong} of {tensor.numel()} entries of {name!r} differ from the original's")


def _same(left: Tensor, right: Tensor) -> bool:
    if left is right:
        return True
    left, right = left.detach(), right.detach()
    if left.shape != right.shape or left.dtype != right.dtype:
        return False
    if left.device != right.device:
        right = right.to(left.device)
    if torch.equal(left, right):
        return True
    # NaN in a buffer is a bad value, but not a difference.
    return left.is_floating_point() and bool(((left == right) | (left.isnan() & right.isnan())).all())
