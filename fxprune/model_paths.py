"""Submodules and tensors of one model by dotted path."""

from __future__ import annotations

from typing import Any

from torch import nn

__all__ = ["ModelPaths", "attribute"]


def attribute(model: nn.Module, name: str) -> Any:
    """The attribute at a dotted path."""
    path, _, leaf = name.rpartition(".")
    return getattr(model.get_submodule(path), leaf)


class ModelPaths:
    """Many look-ups in a model that does not change meanwhile: each module is searched for once."""

    def __init__(self, model: nn.Module) -> None:
        self._modules: dict[str, nn.Module] = {"": model}

    def module(self, path: str) -> nn.Module:
        """The submodule at a path; that of the model itself is empty.

        Raises:
            AttributeError: there is none.
        """
        found = self._modules.get(path)
        if found is None:
            parent, _, leaf = path.rpartition(".")
            found = self._modules[path] = self.module(parent).get_submodule(leaf)
        return found

    def attribute(self, name: str) -> Any:
        """The attribute at a dotted path."""
        path, _, leaf = name.rpartition(".")
        return getattr(self.module(path), leaf)
