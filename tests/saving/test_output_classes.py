"""Networks that return objects of a library's own class: saved by import path, loaded where the class is allowed."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import fxprune
from fxprune.errors import ArtefactError
from tests.saving.test_loading import edit_graph

HERE = "tests.saving.test_output_classes"


@dataclass
class Answer:
    logits: torch.Tensor
    hidden: tuple[torch.Tensor, ...] = ()


class Named(dict[str, Any]):
    """A dict whose entries are attributes too, as libraries have them."""

    def __getattr__(self, name: str) -> Any:
        return self[name]


class Net(nn.Module):
    def __init__(self, kind: type) -> None:
        super().__init__()
        self.kind = kind
        self.body, self.head = nn.Linear(6, 24), nn.Linear(24, 3)

    def forward(self, x: torch.Tensor) -> Any:
        hidden = self.body(x).relu()
        logits = self.head(hidden)
        return self.kind(logits=logits, hidden=(logits.exp(),))


def saved(kind: type, folder: Path) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    x = torch.randn(4, 6)
    pruned = fxprune.compile(Net(kind).eval(), x, 0.5)
    fxprune.save(pruned, folder)
    return pruned, x


@pytest.mark.parametrize("kind", [Answer, Named])
def test_they_come_back_as_they_were(kind: type, tmp_path: Path) -> None:
    pruned, x = saved(kind, tmp_path / "net")
    loaded = fxprune.load(tmp_path / "net", allow=[f"{HERE}:{kind.__name__}"])
    found, expected = loaded(x), pruned(x)
    assert type(found) is kind
    assert torch.equal(found.logits, expected.logits)
    assert torch.equal(found.hidden[0], expected.hidden[0])
    # A second time, from what was loaded.
    fxprune.save(loaded, tmp_path / "again")
    assert (tmp_path / "again" / "model.py").read_text() == (tmp_path / "net" / "model.py").read_text()


@pytest.mark.parametrize("kind", [Answer, Named])
def test_the_code_imports_the_class_and_nothing_else(kind: type, tmp_path: Path) -> None:
    pruned, x = saved(kind, tmp_path / "net")
    code = tmp_path / "net" / "model.py"
    imports = [
        line for line in code.read_text().splitlines() if line.startswith(("import", "from")) and "torch" not in line
    ]
    assert imports == [f"from {HERE} import {kind.__name__}"]
    specification = importlib.util.spec_from_file_location("saved_model", code)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    model = module.Model().eval()
    model.load_state_dict(load_file(tmp_path / "net" / "weights.safetensors"))
    assert torch.equal(model(x).logits, pruned(x).logits)


def test_loading_wants_the_class_named(tmp_path: Path) -> None:
    saved(Answer, tmp_path / "net")
    with pytest.raises(ArtefactError, match=f"allow=\\['{HERE}:Answer'\\]"):
        fxprune.load(tmp_path / "net")


@pytest.mark.parametrize("path", ["os:system", f"{HERE}:saved", "subprocess:Popen", "builtins:eval"])
def test_a_folder_cannot_have_anything_else_called(path: str, tmp_path: Path) -> None:
    saved(Answer, tmp_path / "net")

    def change(data: dict[str, Any]) -> None:
        text = json.dumps(data).replace(f"{HERE}:Answer", path)
        data.clear()
        data.update(json.loads(text))

    edit_graph(tmp_path / "net", change)
    with pytest.raises(ArtefactError, match="allow="):
        fxprune.load(tmp_path / "net", allow=[f"{HERE}:Answer"])
    # Nor where the caller allows it by mistake: it is no class of outputs.
    with pytest.raises(ArtefactError, match="not an output class"):
        fxprune.load(tmp_path / "net", allow=[path])


def test_a_class_that_cannot_be_imported_is_named(tmp_path: Path) -> None:
    @dataclass
    class Local:
        logits: torch.Tensor
        hidden: Any = None

    with pytest.raises(ArtefactError, match="cannot be imported"):
        saved(Local, tmp_path / "net")
    assert not (tmp_path / "net").exists()
