"""Everything about a module and the process that a compilation must not change."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_state_dict_hooks")


def snapshot(module: nn.Module) -> dict[str, Any]:
    """Return copies of tensors and grads, and the modes, hooks, flags and identities of everything in ``module``."""
    parts: dict[str, Any] = {"random": torch.random.get_rng_state().clone(), "gradients on": torch.is_grad_enabled()}
    for name, tensor in module.state_dict(keep_vars=True).items():
        parts[f"{name} object"] = id(tensor)
        parts[f"{name} flags"] = (tensor.requires_grad, tensor.dtype, tensor.data_ptr(), tensor._version)
        parts[f"{name} values"] = tensor.detach().clone()
        parts[f"{name} gradient"] = None if tensor.grad is None else tensor.grad.clone()
    for name, part in module.named_modules():
        parts[f"module {name}"] = (id(part), part.training, sorted(vars(part)), *(len(getattr(part, h)) for h in HOOKS))
    return parts


def changes(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Return what differs, tensors compared bit by bit."""
    return [name for name in before.keys() | after.keys() if not _same(before.get(name), after.get(name))]


def _same(left: Any, right: Any) -> bool:
    if isinstance(left, Tensor) and isinstance(right, Tensor):
        return torch.equal(left, right)
    return bool(left == right)
